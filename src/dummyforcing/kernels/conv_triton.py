"""The convolution of `kernels/conv.py` in Triton. To be imported where there is a GPU.

A program makes a rectangle of pixels of one frame, as a product of matrices: its rows are the pixels, and for
each tap and block of channels the tensor memory accelerator brings the rectangle beside, with zeros where the
frame ends. Nothing is padded, copied or gathered for it.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

RECTANGLES = {128: ((8, 16), (16, 8), (4, 32)), 256: ((16, 16), (8, 32))}
"""Height and width of the pixels of a program, by their number; those that cover a frame best are taken."""


class Blocks(NamedTuple):
    """How the work of a convolution is divided."""

    pixels: int
    """Of a program."""
    k: int
    """Input channels of a step."""
    n1: int
    """Output channels of a program: so many and so many more."""
    n2: int
    warps: int
    stages: int
    """Steps that are loaded ahead."""


@triton.jit
def finish(acc, first, place, inside, scale, bias, residual, out, WIDTH: tl.constexpr, N: tl.constexpr):
    """Scale, add, and write the sums of WIDTH of N channels."""
    channel = first + tl.arange(0, WIDTH)
    is_channel = channel < N
    mask = inside[:, None] & is_channel[None, :]
    place = place[:, None] * N + channel[None, :]
    if scale is not None:
        acc *= tl.load(scale + channel, is_channel, other=0.0)[None, :]
    if bias is not None:
        acc += tl.load(bias + channel, is_channel, other=0.0).to(tl.float32)[None, :]
    if residual is not None:
        acc += tl.load(residual + place, mask, other=0.0).to(tl.float32)
    tl.store(out + place, acc.to(out.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["frames", "height", "width"])
def conv_kernel(
    x,
    weights1,
    weights2,
    scale,
    bias,
    residual,
    out,
    frames,  # of a sample of the output
    height,
    width,
    KT: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    C: tl.constexpr,
    N: tl.constexpr,
    PARTS: tl.constexpr,  # frames that the channels of `x` hold
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    K: tl.constexpr,
    N1: tl.constexpr,
    N2: tl.constexpr,
):
    """Each program has ROWS x COLUMNS pixels and N1 + N2 channels; K input channels of a tap at a time.

    N1 and N2 are powers of two, as in 96 = 64 + 32: rounded up to one, a third of the work would be for
    nothing. Where K does not divide C, pixels come with zeros, and weights of the next tap count for nothing.
    """
    M: tl.constexpr = ROWS * COLUMNS
    BLOCKS: tl.constexpr = (C + K - 1) // K
    DOUBLES: tl.constexpr = KH == 2
    COPIES: tl.constexpr = 4 if DOUBLES else 1
    copy = tl.program_id(0) % COPIES  # side by side: they read the same pixels
    n = tl.program_id(0) // COPIES * (N1 + N2)
    across = tl.cdiv(width, COLUMNS)
    h = tl.program_id(1) // across * ROWS
    w = tl.program_id(1) % across * COLUMNS
    frame = tl.program_id(2)
    source = frame // PARTS + frame // frames * (KT - 1)
    if DOUBLES:
        top, left = h - 1 + copy // 2, w - 1 + copy % 2
    else:
        top, left = h - KH // 2, w - KW // 2
    acc1 = tl.zeros((M, N1), tl.float32)
    if N2 > 0:
        acc2 = tl.zeros((M, N2), tl.float32)
    row = copy * N + n
    for i in range(KT * KH * KW * BLOCKS):
        tap = i // BLOCKS
        c = i % BLOCKS * K
        k = tap * C + c
        place = [source + tap // (KH * KW), top + tap // KW % KH, left + tap % KW, frame % PARTS * C + c]
        pixels = x.load(place).reshape(M, K)
        acc1 = tl.dot(pixels, weights1.load([row, k]).T, acc1)
        if N2 > 0:
            acc2 = tl.dot(pixels, weights2.load([row + N1, k]).T, acc2)
    y = h + tl.arange(0, M) // COLUMNS
    z = w + tl.arange(0, M) % COLUMNS
    inside = (y < height) & (z < width)
    if DOUBLES:
        y = 2 * y + copy // 2
        z = 2 * z + copy % 2
        pixel = (frame.to(tl.int64) * 2 * height + y) * 2 * width + z
    else:
        pixel = (frame.to(tl.int64) * height + y) * width + z
    finish(acc1, n, pixel, inside, scale, bias, residual, out, N1, N)
    if N2 > 0:
        finish(acc2, n + N1, pixel, inside, scale, bias, residual, out, N2, N)


def convolve(
    x: Tensor,
    matrix: Tensor,
    kernel: tuple[int, int, int],
    scale: Tensor | None,
    dtype: torch.dtype,
    bias: Tensor | None,
    residual: Tensor | None,
    frames: int,
) -> Tensor:
    """See `kernels.conv.convolve`; the weights are taken apart."""
    batch, time, height, width, channels = x.shape
    kt, kh, kw = kernel
    doubles = kh == 2
    copies, factor = (4, 2) if doubles else (1, 1)
    channels, n = channels // frames, len(matrix) // copies
    time = (time - kt + 1) * frames
    out = x.new_empty(batch, time, factor * height, factor * width, n, dtype=dtype)
    blocks = choose_blocks(channels, n, x.element_size(), whole=frames > 1)
    rows, columns = min(RECTANGLES[blocks.pixels], key=lambda side: _area(height, width, side))
    maps = x.flatten(0, 1)
    grid = (
        copies * triton.cdiv(n, blocks.n1 + blocks.n2),
        triton.cdiv(height, rows) * triton.cdiv(width, columns),
        batch * time,
    )
    with torch.cuda.device_of(x):  # Triton looks at the current device, not at that of the tensors
        conv_kernel[grid](
            TensorDescriptor.from_tensor(maps, [1, rows, columns, blocks.k]),
            TensorDescriptor.from_tensor(matrix, [blocks.n1, blocks.k]),
            TensorDescriptor.from_tensor(matrix, [blocks.n2 or blocks.n1, blocks.k]),
            scale,
            bias,
            residual,
            out,
            time,
            height,
            width,
            KT=kt,
            KH=kh,
            KW=kw,
            C=channels,
            N=n,
            PARTS=frames,
            ROWS=rows,
            COLUMNS=columns,
            K=blocks.k,
            N1=blocks.n1,
            N2=blocks.n2,
            num_warps=blocks.warps,
            num_stages=blocks.stages,
        )
    return out


def choose_blocks(channels: int, n: int, itemsize: int, whole: bool) -> Blocks:
    """Choose how the work of a convolution is divided.

    Args:
        channels: Of the input, at least 16, or 32 in float8.
        n: Output channels.
        itemsize: Bytes of a value of the input.
        whole: Whether steps must divide the input channels, as others follow.
    """
    widest = 128 // itemsize  # what tensor cores read of a row of shared memory
    k = min(widest, channels & -channels)  # the largest power of two that divides them
    if k < widest // 2 and not whole:
        k = min(widest, triton.next_power_of_2(channels))
    n1 = next((part for part in (128, 64, 32) if n >= part), 16)
    n2 = n1 // 2 if n1 > 16 and n == n1 + n1 // 2 else 0
    return Blocks(128, k, n1, n2, 8, 4)


def _area(height: int, width: int, side: tuple[int, int]) -> int:
    """Pixels of the rectangles that cover a frame."""
    rows, columns = (-(-size // step) * step for size, step in zip((height, width), side, strict=True))
    return rows * columns
