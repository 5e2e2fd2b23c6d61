"""How much memory there is, and saying no before it runs out."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dummyforcing.errors import UserError

PASS_PIXELS = 20_000
"""Latent pixels, of all samples, that go through the VAE's decoder at once: enough to fill a GPU.

The memory grows with them. Three latent frames of 832x480; of larger videos, one.
"""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a generation needs at its peak, by what they are for."""

    text_encoder: float
    """Weights, as those of the next two."""
    transformer: float
    vae: float
    cache: float
    """Keys and values under the policy, when they are largest."""
    denoising: float
    """Intermediate values of the transformer."""
    decoding: float
    """Intermediate values of the VAE's decoder."""
    frames: float
    """The decoded video, which is always kept in the main memory."""
    is_on_gpu: bool = False
    is_offloaded: bool = False

    @property
    def weights(self) -> float:
        """All weights."""
        return self.text_encoder + self.transformer + self.vae

    @property
    def activations(self) -> float:
        """Intermediate values: on a GPU the decoder runs beside the transformer, else they run in turns."""
        if self.is_on_gpu and not self.is_offloaded:
            return self.denoising + self.decoding
        return max(self.denoising, self.decoding)

    @property
    def total(self) -> float:
        """All of it together."""
        return self.weights + self.cache + self.activations + self.frames

    def on_gpu(self) -> "MemoryEstimate":
        """What of it is in the memory of a GPU."""
        return replace(self, frames=0, is_on_gpu=True)

    def offloaded(self) -> "MemoryEstimate":
        """What remains if the text encoder stays in the main memory, and the VAE comes only to decode."""
        decoding = self.decoding + self.vae
        return replace(self, text_encoder=0, vae=0, decoding=decoding, is_offloaded=True)


def available_memory(device: torch.device) -> float:
    """Bytes that are free on a device; infinite where the system does not tell."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + unused)  # torch gives back what it only holds
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


def require_memory(
    estimate: MemoryEstimate, device: torch.device, remedies: Iterable[tuple[str, MemoryEstimate]] = ()
) -> None:
    """Refuse what cannot fit.

    Args:
        estimate: What is needed besides what is in memory already.
        device: Where it is needed.
        remedies: What could be asked for instead, and what it would need.

    Raises:
        UserError: If the estimate exceeds the free memory; breaks it down, names the first remedy that fits.
    """
    free = available_memory(device)

    def need(estimate: MemoryEstimate) -> MemoryEstimate:
        return estimate if device.type == "cpu" else estimate.on_gpu()

    needed = need(estimate)
    if needed.total <= free:
        return
    parts = ", ".join(
        f"{size / 1e9:.1f} GB {what}"
        for what, size in (
            ("weights", needed.weights),
            ("KV cache", needed.cache),
            ("activations", needed.activations),
            ("decoded frames", needed.frames),
        )
        if size
    )
    fitting = (
        f"{name} ({need(other).total / 1e9:.1f} GB)" for name, other in remedies if need(other).total <= free
    )
    raise UserError(
        f"This video needs about {needed.total / 1e9:.1f} GB of memory ({parts}), but only "
        f"{free / 1e9:.1f} GB are free; take {next(fitting, 'a smaller size or fewer frames')}."
    )
