"""How much memory there is, and saying no before it runs out."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dummyforcing.errors import UserError

PASS_PIXELS = 20_000
"""Latent pixels, of all samples, that go through the VAE's decoder at once: enough to fill a GPU.

The memory grows with them. Three latent frames of 832x480; of larger videos, one.
"""
PAST_MAPS, PASS_MAPS = 7.5, 6.5
"""What the VAE's decoder holds of past frames, and at most of each latent frame of a pass, in feature maps of
its last stage for four pixel frames. On an H200 it was 7.5 and 6.3 at 480p, 720p and 1080p."""
HALO_ROWS = 5
"""Rows of latents by which the memory of a band exceeds its share. Its halo has more of them at the lowest
resolution, 26 for Wan, but two at the highest, which takes most of the memory."""


@dataclass(frozen=True)
class DecoderMemory:
    """Bytes of a VAE's decoder while it decodes, besides its weights."""

    working: float
    """On its device: all intermediate values, with several bands those of the largest."""
    waiting: float
    """In the main memory: past features of the bands that are not being worked on."""


@dataclass(frozen=True)
class DecoderSizes:
    """What the memory of a VAE's decoder depends on."""

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

    def memory(self, shape: Sequence[int], itemsize: int, bands: int = 1) -> DecoderMemory:
        """Estimate what decoding takes.

        Args:
            shape: Of the latents of a call, `(B, F, h, w)`.
            itemsize: Bytes of a value.
            bands: How many rows of latents are decoded at a time: about `h / bands`.
        """
        batch, frames, height, width = shape
        pixels = 4 * batch * height * width * self.stride**2  # of a latent frame
        one = pixels * self.width * itemsize
        passed = min(frames, max(PASS_PIXELS // (batch * height * width), 1)) * PASS_MAPS * one
        past, given = PAST_MAPS * one, frames * pixels * 9 * torch.float32.itemsize
        if bands == 1:
            return DecoderMemory(past + passed + given, 0)
        share = min(-(-height // bands) + HALO_ROWS, height) / height
        middle = one / 4 + frames * one / 32  # whole frames at the lowest resolution
        return DecoderMemory(share * (past + passed) + middle + given, (bands - 1) * share * past)


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
    waiting: float = 0
    """Past features of the bands that the VAE's decoder is not working on, likewise."""
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
        return self.weights + self.cache + self.activations + self.waiting + self.frames

    def on_gpu(self) -> "MemoryEstimate":
        """What of it is in the memory of a GPU."""
        return replace(self, frames=0, waiting=0, is_on_gpu=True)

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


def fewest_bands(totals: Iterable[float], free: float) -> int:
    """In how many bands to decode: as few as fit; if none do, those that need least.

    Args:
        totals: Bytes needed with one band, with two, and so on.
        free: Bytes that are there.
    """
    needed: list[float] = []
    for total in totals:
        if total <= free:
            return len(needed) + 1
        needed.append(total)
    return needed.index(min(needed)) + 1


def require_memory(
    estimates: Sequence[MemoryEstimate],
    device: torch.device,
    remedies: Iterable[tuple[str, Sequence[MemoryEstimate]]] = (),
) -> int:
    """Refuse what cannot fit.

    Args:
        estimates: What is needed besides what is in memory already, with one band of the VAE's decoder, with
            two, and so on.
        device: Where it is needed.
        remedies: What could be asked for instead, and what it would need.

    Returns:
        The number of bands to decode in.

    Raises:
        UserError: If all estimates exceed the free memory; breaks the least one down, and names the first
            remedy that fits.
    """
    free = available_memory(device)

    def choose(estimates: Sequence[MemoryEstimate]) -> tuple[int, MemoryEstimate]:
        needs = [need if device.type == "cpu" else need.on_gpu() for need in estimates]
        bands = fewest_bands((need.total for need in needs), free)
        return bands, needs[bands - 1]

    bands, needed = choose(estimates)
    if needed.total <= free:
        return bands
    parts = ", ".join(
        f"{size / 1e9:.1f} GB {what}"
        for what, size in (
            ("weights", needed.weights),
            ("KV cache", needed.cache),
            ("activations", needed.activations + needed.waiting),
            ("decoded frames", needed.frames),
        )
        if size
    )
    others = ((name, choose(other)[1].total) for name, other in remedies)
    fitting = (f"{name} ({total / 1e9:.1f} GB)" for name, total in others if total <= free)
    raise UserError(
        f"This video needs about {needed.total / 1e9:.1f} GB of memory ({parts}), but only "
        f"{free / 1e9:.1f} GB are free; take {next(fitting, 'a smaller size or fewer frames')}."
    )
