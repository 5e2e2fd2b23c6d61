"""Rotary position embedding over (frame, row, column), as Wan 2.1 uses it.

Each head's channels are split into three parts, for time, rows and columns; each part rotates adjacent
pairs `(2i, 2i+1)` with its own frequencies. The time coordinate is the absolute latent frame number, so keys
can be cached after rotation and never touched again.
"""

import torch
from torch import Tensor

from dummyforcing.kernels.choice import runs_in_triton
from dummyforcing.kernels.transfers import send

THETA = 10_000.0


def rope_table(
    frames: Tensor, height: int, width: int, head_dim: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines for every token of some latent frames, in frame, row, column order.

    Angles are evaluated in float64: at frame 1000 a float32 angle would already be wrong in the 5th digit.

    Args:
        frames: Absolute latent frame numbers, `(F,)`; any non-negative value, in any order.
        height: Rows of the patch grid.
        width: Columns of the patch grid.
        head_dim: Channels of one head, `D`; even.
        device: Where the result lives.

    Returns:
        `(cos, sin)`, each `(F * height * width, D / 2)` float32.
    """
    spatial = 2 * (head_dim // 6)
    angles = []
    for positions, size in (
        (send(frames, device), head_dim - 2 * spatial),
        (torch.arange(height, device=device), spatial),
        (torch.arange(width, device=device), spatial),
    ):
        rates = THETA ** (-torch.arange(0, size, 2, dtype=torch.float64, device=device) / size)
        angles.append(positions.to(torch.float64)[:, None] * rates)
    t, y, x = angles
    shape = (len(t), height, width, -1)
    grid = torch.cat(
        [
            t[:, None, None].expand(shape),
            y[None, :, None].expand(shape),
            x[None, None, :].expand(shape),
        ],
        dim=-1,
    ).flatten(0, 2)
    return grid.cos().float(), grid.sin().float()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate adjacent channel pairs.

    Args:
        x: Queries or keys, `(B, L, H, D)`, any floating dtype.
        cos: From `rope_table`, `(L, D / 2)` float32.
        sin: Likewise.

    Returns:
        The rotated tensor, same shape and dtype; the rotation itself runs in float32.
    """
    width = x.shape[-1]
    if runs_in_triton(x) and len(cos) == x.shape[1] and not width & (width - 1):
        from dummyforcing.kernels import ops_triton

        return ops_triton.apply_rope(x, cos, sin)
    even, odd = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)
