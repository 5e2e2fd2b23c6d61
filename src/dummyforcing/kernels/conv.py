"""Convolutions of feature maps in one kernel each, float8 included: in torch, and in Triton on a GPU.

Feature maps are `(B, T, H, W, C)`, weights a matrix with a row for each output channel, `(N, taps * C)`: all
input channels of a tap side by side.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dummyforcing.kernels.choice import runs_in_triton
from dummyforcing.kernels.constants import FP8, FP8_MAX, MARGIN, TINIEST
from dummyforcing.kernels.vae import reference_add_norm


def empty_maps(like: Tensor, frames: int, width: int, dtype: torch.dtype) -> Tensor:
    """Memory for feature maps with margins, after a pixel of zeros: the one beside the first of all.

    Args:
        like: `(B, ..., H, W, C)`.
        frames: How many each sample has.
        width: Channels.
        dtype: Of the result.

    Returns:
        `(B, frames, H + 1, W + 2, width)`, contiguous; what is in it is undefined.
    """
    size = (like.shape[0], frames, like.shape[2] + MARGIN[0], like.shape[3] + MARGIN[1], width)
    memory = like.new_empty((math.prod(size[:-1]) + 2) * width, dtype=dtype)
    memory[:width].zero_()
    return memory[width:-width].view(size)


class Weights(NamedTuple):
    """Weights of a convolution, and what its output is multiplied with."""

    matrix: Tensor
    """`(N, kt * kh * kw * C)`; more rows where `weights_to_double` or `in_pairs` made it."""
    kernel: tuple[int, int, int]
    """In time, height and width: odd, but 2 in height and width to double them, and 4 in width of pairs."""
    scale: Tensor | None = None
    """Of each output channel, `(N,)` float32; None: 1."""


def weights_of(weight: Tensor) -> Weights:
    """Arrange `(N, C, kt, kh, kw)`; shares memory where the layout is channels-last."""
    matrix = weight.permute(0, 2, 3, 4, 1).reshape(len(weight), -1)
    return Weights(matrix, (weight.shape[2], weight.shape[3], weight.shape[4]))


def weights_to_double(weight: Tensor) -> Weights:
    """Arrange a 3x3 convolution after which follows a repetition of every pixel: four of 2x2 before it.

    A pixel's copies have the same neighbours, so each of the four sees two rows and two columns of different
    pixels, and weights of equal ones are added up: 4 products instead of 9, exact but for rounding.

    Args:
        weight: `(N, C, 3, 3)`.

    Returns:
        For the upper left, upper right, lower left and lower right copies, one below the other.
    """
    whole = weight.float()
    parts = []
    for rows in (((0,), (1, 2)), ((0, 1), (2,))):
        for columns in (((0,), (1, 2)), ((0, 1), (2,))):
            taps = [whole[:, :, list(r)][..., list(c)].sum((2, 3)) for r in rows for c in columns]
            parts.append(torch.stack(taps, 1).flatten(1))
    return Weights(torch.cat(parts).to(weight.dtype), (1, 2, 2))


def in_pairs(weights: Weights) -> Weights:
    """Arrange for pixels two by two: each pair sees four pixels of a row, of which each uses three.

    A matrix product with few columns waits for its rows. This one has twice as many columns and half as many
    rows; a quarter of its products are with zeros.

    Args:
        weights: 3 wide, `N` rows.

    Returns:
        4 wide, `2 N` rows: those of the left pixel first.
    """
    kt, kh, _ = weights.kernel
    one = weights.matrix.view(len(weights.matrix), kt, kh, 3, -1)
    two = one.new_zeros(2, *one.shape[:3], 4, one.shape[-1])
    two[0, :, :, :, :3] = one
    two[1, :, :, :, 1:] = one
    return Weights(two.view(2 * len(one), -1), (kt, kh, 4), weights.scale)


def weights_by_neighbor(weight: Tensor) -> Weights:
    """Arrange a 3x3 convolution of few output channels: what each pixel gives to itself and its neighbors.

    With 3 output channels a matrix product reads pixels 9 times for next to nothing; like this it reads them
    once, and `sum_neighbors` adds up what belongs together.

    Args:
        weight: `(N, C, kt, 3, 3)`.

    Returns:
        `9 N` output channels; those that come from the upper left neighbor first.
    """
    matrix = weight.permute(3, 4, 0, 2, 1).reshape(9 * len(weight), -1)
    return Weights(matrix, (weight.shape[2], 1, 1))


def sum_neighbors(parts: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """Add up what the pixel and its neighbors give.

    Args:
        parts: As by `weights_by_neighbor`, `(B, T, H, W, 9 N)` float32.
        bias: `(N,)`.
        dtype: Of the result.

    Returns:
        `(B, T, H, W, N)`.
    """
    if runs_in_triton(parts):
        from dummyforcing.kernels import conv_triton

        return conv_triton.sum_neighbors(parts, bias, dtype)
    return reference_sum_neighbors(parts, bias, dtype)


def reference_sum_neighbors(parts: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """`sum_neighbors` in torch."""
    height, width = parts.shape[2:4]
    out = bias.float()
    for tap, part in enumerate(F.pad(parts, (0, 0, 1, 1, 1, 1)).chunk(9, -1)):
        y, x = divmod(tap, 3)
        out = out + part[:, :, y : y + height, x : x + width]
    return out.to(dtype)


def to_float8(weights: Weights, gain: float) -> Weights:
    """Round to float8, with a scale for each output channel.

    Args:
        weights: Without scales.
        gain: What inputs are multiplied with.
    """
    matrix = weights.matrix.float()
    scale = FP8_MAX / matrix.abs().amax(1).clamp_min(TINIEST)
    return Weights((matrix * scale[:, None]).to(FP8), weights.kernel, 1 / (scale * gain))


def convolve(
    x: Tensor,
    weights: Weights,
    dtype: torch.dtype,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    frames: int = 1,
) -> Tensor:
    """Convolve; sums are in float32.

    Args:
        x: As `empty_maps` gives it, `(B, kt - 1 + T, H + 1, W + 2, frames * C)`, with zeros in the last row
            and the last two columns: the result is that of zeros on all sides. In pairs W is even.
        weights: Of the dtype of `x`. Those of `weights_to_double` double height and width.
        dtype: Of the result.
        bias: `(N,)`.
        residual: Added, like the result.
        frames: How many frames the channels hold, one after the other; with a kernel of one frame.

    Returns:
        `(B, T * frames, H, W, N)`, or `(B, T * frames, 2 H, 2 W, N)`.
    """
    if runs_in_triton(x):
        from dummyforcing.kernels import conv_triton

        return conv_triton.convolve(x, *weights, dtype, bias, residual, frames)
    return reference_convolve(x, weights, dtype, bias, residual, frames)


def convolve_norm(x: Tensor, weights: Weights, bias: Tensor, gamma: Tensor, gain: float, out: Tensor) -> None:
    """Convolve, normalise over the channels, apply SiLU: into what the next convolution reads.

    Args:
        x: See `convolve`.
        weights: With as many rows as `norms_at_once` says.
        bias: `(N,)`.
        gamma: Gains of the normalisation, `(N,)`.
        gain: What the result is multiplied with at the end, for float8.
        out: `(B, T, H + 1, W + 2, N)`, of which only the samples need be contiguous; its margins become zero.
    """
    if runs_in_triton(x):
        from dummyforcing.kernels import conv_triton

        conv_triton.convolve_norm(x, *weights, bias, gamma, gain, out)
    else:
        total = reference_convolve(x, weights, torch.float32, bias)
        reference_add_norm(total, None, None, out, gamma=gamma, silu=True, gain=gain)


def norms_at_once(rows: int) -> bool:
    """Whether a program has all channels of a pixel, with so many rows of weights."""
    return rows in (32, 48, 64, 96, 128, 192)


def reference_convolve(
    x: Tensor,
    weights: Weights,
    dtype: torch.dtype,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    frames: int = 1,
) -> Tensor:
    """`convolve` in torch."""
    x = x[:, :, : -MARGIN[0], : -MARGIN[1]].float()
    batch, time, height, width, channels = x.shape
    kt, kh, kw = weights.kernel
    channels //= frames
    pixels = x.reshape(batch, time, height, width, frames, channels)
    pixels = pixels.permute(0, 5, 1, 4, 2, 3).reshape(batch, channels, time * frames, height, width)
    matrix = weights.matrix.float().view(-1, kt, kh, kw, channels).permute(0, 4, 1, 2, 3)
    if kw == 4:  # a pair's left pixel has all weights
        matrix, kw = matrix[: len(matrix) // 2, ..., :3], 3
    one = (1, 1, 1)
    if kh == 2:  # the four copies of a pixel
        parts = [
            F.conv3d(F.pad(pixels, (1 - px, px, 1 - py, py)), part, None, one, (0, 0, 0), one, 1)
            for part, (py, px) in zip(matrix.chunk(4), ((0, 0), (0, 1), (1, 0), (1, 1)), strict=True)
        ]
        out = torch.stack(parts).view(2, 2, *parts[0].shape).permute(2, 3, 4, 5, 0, 6, 1)
        out = out.flatten(5, 6).flatten(3, 4)
    else:
        out = F.conv3d(pixels, matrix, None, one, (0, kh // 2, kw // 2), one, 1)
    out = out.permute(0, 2, 3, 4, 1)
    out = out if weights.scale is None else out * weights.scale
    for part in (bias, residual):
        out = out if part is None else out + part
    return out.to(dtype).contiguous()
