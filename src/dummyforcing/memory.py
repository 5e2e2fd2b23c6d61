"""How much memory there is, and saying no before it runs out."""

import os
from dataclasses import astuple, dataclass
from pathlib import Path

import torch

from dummyforcing.errors import UserError


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a generation needs at its peak, by what they are for."""

    weights: float
    cache: float
    """Keys and values under the policy, when they are largest."""
    activations: float
    """Intermediate values of the transformer or of the VAE's decoder, whichever takes more."""
    frames: float
    """The decoded video."""

    @property
    def total(self) -> float:
        """All of it together."""
        return float(sum(astuple(self)))


def available_memory(device: torch.device) -> float:
    """Bytes that are free on a device; infinite where the system does not tell."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    free = []
    meminfo, cgroup = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free.append(1024.0 * int(lines["MemAvailable"].split()[0]))
    elif "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        free.append(float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    if (cgroup / "memory.max").exists() and (limit := (cgroup / "memory.max").read_text().strip()).isdigit():
        free.append(float(limit) - float((cgroup / "memory.current").read_text()))
    return min(free, default=float("inf"))


def require_memory(estimate: MemoryEstimate, device: torch.device) -> None:
    """Refuse what cannot fit.

    Args:
        estimate: What is needed besides what is in memory already.
        device: Where it is needed.

    Raises:
        UserError: If the estimate exceeds the free memory; breaks it down.
    """
    free = available_memory(device)
    if estimate.total > free:
        parts = ", ".join(
            f"{size / 1e9:.1f} GB {what}"
            for what, size in (
                ("weights", estimate.weights),
                ("KV cache", estimate.cache),
                ("activations", estimate.activations),
                ("decoded frames", estimate.frames),
            )
        )
        raise UserError(
            f"This video needs about {estimate.total / 1e9:.1f} GB of memory ({parts}), but only "
            f"{free / 1e9:.1f} GB are free; take a smaller size or fewer frames."
        )
