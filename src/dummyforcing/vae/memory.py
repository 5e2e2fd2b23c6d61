"""Memory that a VAE's decoder takes, and how much there is."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

PASS_PIXELS = 20_000
"""Latent pixels, of all samples, that go through the VAE's decoder at once: enough to fill a GPU.

The memory grows with them. Three latent frames of 832x480; of larger videos, one.
"""
PAST_MAPS, PASS_MAPS = 7.5, 6.5
"""What the VAE's decoder holds of past frames, and at most of each latent frame of a pass, in feature maps of
its last stage for four pixel frames. On an H200 it was 7.5 and 6.3 at 480p, 720p and 1080p."""
HALO_ROWS = 5
"""Rows of latents by which the memory of a tile exceeds its share. Its halo has more of them at the lowest
resolution, 26 for Wan, but two at the highest, which takes most of the memory."""

MOST_TILES = 256
"""More are not looked at: they would have little more rows than their halo."""


@dataclass(frozen=True)
class DecoderMemory:
    """Bytes of a VAE's decoder while it decodes, besides its weights."""

    working: float
    """On its device: all intermediate values, with several tiles those of the largest."""
    waiting: float
    """In the main memory: past features of the tiles that are not being worked on."""


@dataclass(frozen=True)
class DecoderSizes:
    """Sizes that the memory of a VAE's decoder depends on."""

    width: float = 96.0
    """Channels per pixel at the widest resolution, the last; as all that follows, of Wan 2.1 by default."""
    stride: int = 8
    """Pixels per latent, in height and in width."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "DecoderSizes":
        """Read them from the config of diffusers' `AutoencoderKLWan`."""
        channels = config.get("decoder_base_dim") or config.get("base_dim", 96)
        patch, stages = config.get("patch_size") or 1, len(config.get("dim_mult", range(4)))
        return cls(channels / patch**2, 2 ** (stages - 1) * patch)

    def memory(self, shape: Sequence[int], itemsize: int, tiles: int = 1) -> DecoderMemory:
        """Estimate what decoding takes.

        Args:
            shape: Of the latents of a call, `(B, F, h, w)`.
            itemsize: Bytes of a value.
            tiles: How many rows of latents are decoded at a time: about `h / tiles`.
        """
        batch, frames, height, width = shape
        pixels = 4 * batch * height * width * self.stride**2  # of a latent frame
        one = pixels * self.width * itemsize
        passed = min(frames, max(PASS_PIXELS // (batch * height * width), 1)) * PASS_MAPS * one
        past, given = PAST_MAPS * one, frames * pixels * 9 * torch.float32.itemsize
        if tiles == 1:
            return DecoderMemory(past + passed + given, 0)
        share = min(-(-height // tiles) + HALO_ROWS, height) / height
        middle = one / 4 + frames * one / 32  # whole frames at the lowest resolution
        return DecoderMemory(share * (past + passed) + middle + given, (tiles - 1) * share * past)


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
    if (used := Path("/proc/self/statm")).exists():
        import resource  # not on Windows

        address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
        if address_space != resource.RLIM_INFINITY:
            free.append(float(address_space - int(used.read_text().split()[0]) * resource.getpagesize()))
    return min(free, default=float("inf"))


def fewest_tiles(totals: Iterable[float], free: float) -> int:
    """Choose the number of tiles to decode in: as few as fit; if none do, those that need least.

    Args:
        totals: Bytes needed with one tile, with two, and so on.
        free: Bytes that are there.
    """
    needed: list[float] = []
    for total in totals:
        if total <= free:
            return len(needed) + 1
        needed.append(total)
    return needed.index(min(needed)) + 1
