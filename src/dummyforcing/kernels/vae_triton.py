"""The functions of `kernels/vae.py` in Triton. To be imported where there is a GPU."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dummyforcing.kernels.constants import SMALLEST_NORM

ELEMENTS = 4096
"""Of a feature map, per program: 32 for each thread of four warps, so that enough loads are on their way."""


@triton.jit(do_not_specialize=["pixels", "height", "width"])
def add_norm_kernel(
    x,
    bias,
    residual,
    gamma,
    out,
    pixels,  # of a sample, those beside the frames included
    height,
    width,
    x_step,  # from a sample to the next in `x`
    out_step,  # from a sample to the next in `out`
    smallest,
    gain,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,  # channels of `out`: those beyond C become zero
    BELOW: tl.constexpr,  # rows and columns of `out` beyond those of a frame
    BESIDE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    NORM: tl.constexpr,
    SILU: tl.constexpr,
    KEEP: tl.constexpr,
    SCALE: tl.constexpr,
):
    """Each program has ROWS pixels of one sample, with all of their channels."""
    sample = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)  # of 32 bits, which are divided fast
    column = tl.arange(0, COLUMNS)
    is_channel = column < C
    is_inside = row < pixels
    pixel = row
    if BELOW + BESIDE > 0:
        line = row // (width + BESIDE)
        y, z = line % (height + BELOW), row % (width + BESIDE)
        is_inside &= (y < height) & (z < width)
        pixel = (line // (height + BELOW) * height + y) * width + z
    mask = is_inside[:, None] & is_channel[None, :]
    source = sample * x_step + pixel.to(tl.int64)[:, None] * C + column[None, :]
    total = tl.load(x + source, mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        total += tl.load(bias + column, is_channel, other=0.0).to(tl.float32)[None, :]
    if HAS_RESIDUAL:
        total += tl.load(residual + source, mask, other=0.0).to(tl.float32)
    if KEEP:
        tl.store(x + source, total.to(x.dtype.element_ty), mask)
    if NORM:
        norm = tl.sqrt(tl.sum(total * total, axis=1))
        gains = tl.load(gamma + column, is_channel, other=0.0).to(tl.float32) * tl.sqrt(C + 0.0)
        total *= (1 / tl.maximum(norm, smallest))[:, None] * gains[None, :]
    if SILU:
        total = total / (1 + tl.exp(-total))
    if SCALE:
        total *= gain
    if BELOW + BESIDE > 0:
        total = tl.where(is_inside[:, None], total, 0.0)
    place = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
    mask = (row < pixels)[:, None] & (column < WIDTH)[None, :]
    tl.store(out + sample * out_step + place, total.to(out.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["pixels", "height", "width"])
def upsample_kernel(
    x,
    bias,
    residual,
    out,
    pixels,
    height,
    width,
    C: tl.constexpr,
    FRAMES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):
    """Each program has ROWS pixels, with the channels of one of the FRAMES that they become."""
    frame = tl.program_id(1)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    is_channel = column < C
    mask = (row < pixels)[:, None] & is_channel[None, :]
    source = row[:, None] * (FRAMES * C) + frame * C + column[None, :]
    total = tl.load(x + source, mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        total += tl.load(bias + frame * C + column, is_channel, other=0.0).to(tl.float32)[None, :]
    if HAS_RESIDUAL:
        total += tl.load(residual + source, mask, other=0.0).to(tl.float32)
    result = total.to(out.dtype.element_ty)
    line = row // width  # of all frames
    time = line // height
    first = ((time * FRAMES + frame) * height + line % height) * 4 * width + row % width * 2
    for y in tl.static_range(2):
        for x_ in tl.static_range(2):
            place = (first + y * 2 * width + x_)[:, None] * C + column[None, :]
            tl.store(out + place, result, mask)


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
    """See `kernels.vae.add_norm`."""
    batch, channels = x.shape[0], x.shape[-1]
    height, width = x.shape[2:4]
    _, _, high, long, wide = out.shape
    pixels = x.shape[1] * high * long
    sizes = _sizes(channels, wide)
    with torch.cuda.device_of(x):  # Triton looks at the current device, not at that of the tensors
        add_norm_kernel[(triton.cdiv(pixels, sizes["ROWS"]), batch)](
            x,
            bias,
            residual,
            gamma,
            out,
            pixels,
            height,
            width,
            x.stride(0),
            out.stride(0),
            SMALLEST_NORM,
            gain,
            WIDTH=wide,
            BELOW=high - height,
            BESIDE=long - width,
            HAS_BIAS=bias is not None,
            HAS_RESIDUAL=residual is not None,
            NORM=gamma is not None,
            SILU=silu,
            KEEP=keep,
            SCALE=gain != 1,
            **sizes,
        )


def upsample(x: Tensor, bias: Tensor | None, residual: Tensor | None, frames: int) -> Tensor:
    """See `kernels.vae.upsample`."""
    batch, time, height, width, channels = x.shape
    sizes = _sizes(channels // frames, channels // frames)
    pixels = batch * time * height * width
    out = torch.empty(
        batch, time * frames, 2 * height, 2 * width, channels // frames, dtype=x.dtype, device=x.device
    )
    with torch.cuda.device_of(x):
        upsample_kernel[(triton.cdiv(pixels, sizes["ROWS"]), frames)](
            x,
            bias,
            residual,
            out,
            pixels,
            height,
            width,
            FRAMES=frames,
            HAS_BIAS=bias is not None,
            HAS_RESIDUAL=residual is not None,
            **sizes,
        )
    return out


def _sizes(channels: int, width: int) -> dict[str, Any]:
    columns = triton.next_power_of_2(width)
    return {"C": channels, "COLUMNS": columns, "ROWS": max(ELEMENTS // columns, 1)}
