"""Tiles of rows, so that the decoder of a Wan VAE has only a part of the frame in memory; exact.

Only the attention of the middle block sees whole frames, at the lowest resolution. The up blocks after it see
a neighbourhood: rows of the output need a few more rows of their input than their own, the halo. At each
resolution a tile has just these, and its padding with zeros spoils rows of the halo alone.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanDecoder3d, WanResample, WanResidualUpBlock
from torch import Tensor, nn

from dummyforcing.errors import BadRequest

Rows = tuple[int, int]
"""The first row, and the one behind the last."""
History = dict[nn.Module, Tensor]
"""The last frames that each convolution in time has seen."""


class Ranks(Protocol):
    """GPUs that decode a video together, some tiles each; see `runtime/ranks.py`."""

    @property
    def rank(self) -> int:
        """The number of this one."""

    @property
    def size(self) -> int:
        """How many there are."""

    def gather(self, x: Tensor, sizes: Sequence[int], dim: int, beside: bool = False) -> Tensor:
        """Put together what each has, which differs in size in a dimension."""

    def collect(self, value: Any) -> list[Any] | None:
        """What all have, on rank 0; None on the others."""


class Tile:
    """Rows of a video on their way through the up blocks of a decoder; holds its history between calls."""

    def __init__(self, layers: WanDecoder3d, rows: Rows, height: int) -> None:
        """Begin a video.

        Args:
            layers: The decoder.
            rows: Of the latents.
            height: Rows of latents of the whole video.
        """
        self.rows = rows_needed(layers, rows, height)
        self.history: History = {}

    def bring(self, device: torch.device) -> History:
        """The history on the decoder's device; nothing waits for the copy."""
        return {conv: past.to(device, non_blocking=True) for conv, past in self.history.items()}

    def keep(self, conv: nn.Module, past: Tensor, device: torch.device) -> None:
        """Take over a convolution's history, in the main memory of a decoder on `device`."""
        self.history[conv] = past.to("cpu", copy=True)
        if device.type == "cuda":
            self.history[conv] = self.history[conv].pin_memory()

    def put_away(self, history: History) -> None:
        """Keep the history in the main memory; nothing waits for the copy."""
        for conv, past in history.items():
            if not past.is_cuda:
                self.history[conv] = past
                continue
            if conv not in self.history:
                self.history[conv] = torch.empty(past.shape, dtype=past.dtype, pin_memory=True)
            self.history[conv].copy_(past, non_blocking=True)


def split_rows(height: int, tiles: int) -> list[Rows]:
    """Cut rows into tiles, as equal as can be.

    Raises:
        BadRequest: If there are not as many rows as tiles.
    """
    if not 1 <= tiles <= height:
        raise BadRequest(f"{height} rows of latents cannot make {tiles} tiles", f"take 1 to {height}")
    return [(i * height // tiles, (i + 1) * height // tiles) for i in range(tiles)]


def rows_needed(layers: WanDecoder3d, rows: Rows, height: int) -> list[Rows]:
    """The rows that must be there for some rows of the output to be exact.

    Args:
        layers: The decoder.
        rows: The rows wanted, of the latents.
        height: Rows of latents of the whole video.

    Returns:
        The rows that each up block reads, in the pixels of its input, and those of the output.
    """
    blocks: list[Any] = list(layers.up_blocks)
    scale = 2 ** sum(upsampler_of(block) is not None for block in blocks)
    needed = [(rows[0] * scale, rows[1] * scale)]
    halo = halo_of(layers.conv_out)
    first, end = needed[0][0] - halo, needed[0][1] + halo
    for block in reversed(blocks):
        upsampler = upsampler_of(block)
        if upsampler is not None:
            halo, scale = halo_of(upsampler), scale // 2
            first, end = (first - halo) // 2, -(-(end + halo) // 2)
        halo = halo_of(block.resnets)
        first, end = max(first - halo, 0), min(end + halo, height * scale)
        needed.insert(0, (first, end))
    return needed


def halo_of(module: nn.Module) -> int:
    """Rows above and below a pixel that some convolutions one after the other see.

    Those of a shortcut beside them see the pixel alone and do not count.
    """
    convolutions = (part for part in module.modules() if isinstance(part, nn.Conv2d | nn.Conv3d))
    return sum(conv.kernel_size[-2] // 2 for conv in convolutions)


def upsampler_of(block: Any) -> WanResample | None:
    """The layer that doubles height and width at the end of an up block."""
    if isinstance(block, WanResidualUpBlock):
        return block.upsampler
    return block.upsamplers[0] if block.upsamplers else None
