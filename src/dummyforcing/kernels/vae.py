"""The elementwise work between the convolutions of the VAE's decoder: in torch, and in Triton on a GPU.

Feature maps are `(B, T, H, W, C)`: the channels of a pixel lie side by side.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dummyforcing.kernels.choice import runs_in_triton
from dummyforcing.kernels.constants import SMALLEST_NORM


def add_norm(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    *,
    gamma: Tensor | None = None,
    silu: bool = False,
    keep: bool = False,
    gain: float = 1.0,
) -> None:
    """Add up, normalise over the channels, activate; in float32, whatever the dtypes.

    Args:
        x: Feature maps, contiguous, `(B, T, H, W, C)`. Its contents are lost unless `keep` is given.
        bias: Added to every pixel, `(C,)`.
        residual: Added, like `x`.
        out: Gets the result; like `x`, but only its samples need be contiguous, and where it has more rows,
            columns or channels the others become zero.
        gamma: Gains of the normalisation, `(C,)`; None: the sum is not normalised.
        silu: Whether SiLU follows the normalisation.
        keep: Whether `x` gets the sum.
        gain: What a normalised sum is multiplied with at the end, for float8.
    """
    if runs_in_triton(x):
        from dummyforcing.kernels import vae_triton

        vae_triton.add_norm(x, bias, residual, out, gamma=gamma, silu=silu, keep=keep, gain=gain)
    else:
        reference_add_norm(x, bias, residual, out, gamma=gamma, silu=silu, keep=keep, gain=gain)


def reference_add_norm(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    *,
    gamma: Tensor | None = None,
    silu: bool = False,
    keep: bool = False,
    gain: float = 1.0,
) -> None:
    """`add_norm` in torch."""
    _, _, height, width, channels = x.shape
    for beside in (out[..., channels:], out[:, :, height:], out[:, :, :, width:]):
        beside.zero_()
    out = out[:, :, :height, :width, :channels]
    total = x.float()
    for part in (bias, residual):
        if part is not None:
            total.add_(part)
    if keep and total is not x:
        x.copy_(total)
    if gamma is None:
        out.copy_(total)
        return
    norm = torch.linalg.vector_norm(total, dim=-1, keepdim=True).clamp_min_(SMALLEST_NORM)
    place = out if out.dtype == torch.float32 else torch.empty_like(total)
    torch.mul(total, gamma.shape[0] ** 0.5 / norm, out=place).mul_(gamma)
    if silu:
        F.silu(place, inplace=True)
    if gain != 1:
        place.mul_(gain)
    if place is not out:
        out.copy_(place)


def upsample(x: Tensor, bias: Tensor | None, residual: Tensor | None, frames: int = 1) -> Tensor:
    """Add up, and repeat every pixel twice in height and width.

    Args:
        x: Feature maps, contiguous, `(B, T, H, W, frames * C)`. Its contents are lost.
        bias: Added to every pixel, `(frames * C,)`.
        residual: Added, like `x`.
        frames: How many frames the channels hold, one after the other.

    Returns:
        `(B, T * frames, 2 H, 2 W, C)`, in the dtype of `x`.
    """
    if runs_in_triton(x):
        from dummyforcing.kernels import vae_triton

        return vae_triton.upsample(x, bias, residual, frames)
    return reference_upsample(x, bias, residual, frames)


def reference_upsample(x: Tensor, bias: Tensor | None, residual: Tensor | None, frames: int = 1) -> Tensor:
    """`upsample` in torch."""
    total = x.float()
    for part in (bias, residual):
        if part is not None:
            total.add_(part)
    batch, time, height, width, channels = x.shape
    channels //= frames
    pixels = total.to(x.dtype).view(batch, time, height, width, frames, channels).permute(0, 1, 4, 2, 3, 5)
    out = x.new_empty(batch, time, frames, height, 2, width, 2, channels)
    out.copy_(pixels[:, :, :, :, None, :, None])
    return out.view(batch, time * frames, 2 * height, 2 * width, channels)
