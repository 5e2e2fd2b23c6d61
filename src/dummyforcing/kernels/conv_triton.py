"""The convolution of `kernels/conv.py` in Triton. To be imported where there is a GPU.

A program makes a run of pixels of one frame, as a product of matrices whose rows are the pixels. Feature maps
have zeros behind each row and frame, so that for every tap the pixels that are seen are another run, which
the tensor memory accelerator brings as it is. (Rectangles, which need no zeros, must be reshaped; for that
Triton 3.6 has a buffer too few, and overwrites what is still read.)
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from dummyforcing.kernels.constants import MARGIN, SMALLEST_NORM


@triton.jit(do_not_specialize=["pixels", "height", "width"])
def sum_neighbors_kernel(
    parts,
    bias,
    out,
    pixels,
    height,
    width,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Each program has ROWS pixels, with all of their channels."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    is_channel = column < N
    y, x = row // width % height, row % width
    total = tl.load(bias + column, is_channel, other=0.0).to(tl.float32)[None, :]
    for tap in tl.static_range(9):
        down, right = tap // 3 - 1, tap % 3 - 1
        seen = (row < pixels) & (y + down >= 0) & (y + down < height) & (x + right >= 0) & (x + right < width)
        place = (row + down * width + right)[:, None] * (9 * N) + tap * N + column[None, :]
        total += tl.load(parts + place, seen[:, None] & is_channel[None, :], other=0.0)
    mask = (row < pixels)[:, None] & is_channel[None, :]
    tl.store(out + row[:, None] * N + column[None, :], total.to(out.dtype.element_ty), mask)


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


BELOW = tl.constexpr(MARGIN[0])


@triton.jit
def scaled(acc, first, scale, bias, WIDTH: tl.constexpr, N: tl.constexpr, PERIOD: tl.constexpr):
    """Scale sums of WIDTH of N channels, and add their bias."""
    channel = first + tl.arange(0, WIDTH)
    is_channel = channel < N
    if scale is not None:
        acc *= tl.load(scale + channel % PERIOD, is_channel, other=0.0)[None, :]
    if bias is not None:
        acc += tl.load(bias + channel % PERIOD, is_channel, other=0.0).to(tl.float32)[None, :]
    return acc


@triton.jit
def write(total, first, place, inside, residual, out, WIDTH: tl.constexpr, N: tl.constexpr):
    """Add a residual, if there is any, and write WIDTH of N channels."""
    channel = first + tl.arange(0, WIDTH)
    mask = inside[:, None] & (channel < N)[None, :]
    place = place[:, None] * N + channel[None, :]
    if residual is not None:
        total += tl.load(residual + place, mask, other=0.0).to(tl.float32)
    tl.store(out + place, total.to(out.dtype.element_ty), mask)


@triton.jit
def square_sums(total, FIRST: tl.constexpr, WIDTH: tl.constexpr, PERIOD: tl.constexpr):
    """Of the channels of the left and the right pixel of a pair."""
    squares = total * total
    if FIRST + WIDTH <= PERIOD:
        left = tl.sum(squares, axis=1)
        return left, tl.zeros_like(left)
    elif FIRST >= PERIOD:
        right = tl.sum(squares, axis=1)
        return tl.zeros_like(right), right
    else:
        is_left = (FIRST + tl.arange(0, WIDTH) < PERIOD)[None, :]
        return tl.sum(tl.where(is_left, squares, 0.0), axis=1), tl.sum(
            tl.where(is_left, 0.0, squares), axis=1
        )


@triton.jit
def activated(
    total, left, right, inside, gamma, gain, FIRST: tl.constexpr, WIDTH: tl.constexpr, PERIOD: tl.constexpr
):
    """Multiply with factors of pixels and gains of channels, apply SiLU; zero outside of the frame."""
    channel = FIRST + tl.arange(0, WIDTH)
    if FIRST + WIDTH <= PERIOD:
        total *= left[:, None]
    elif FIRST >= PERIOD:
        total *= right[:, None]
    else:
        total *= tl.where((channel < PERIOD)[None, :], left[:, None], right[:, None])
    total *= tl.load(gamma + channel % PERIOD).to(tl.float32)[None, :]
    return tl.where(inside[:, None], total * (gain / (1 + tl.exp(-total))), 0.0)


@triton.jit(do_not_specialize=["frames", "height", "width", "pitch"])
def conv_kernel(
    x,
    weights1,
    weights2,
    scale,
    bias,
    residual,
    gamma,
    out,
    out_step,  # from a sample to the next
    smallest,
    gain,
    frames,  # of a sample of the output
    height,
    width,
    pitch,  # from a row to the next in `x`
    KT: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    C: tl.constexpr,
    N: tl.constexpr,
    PERIOD: tl.constexpr,  # output channels of a pixel
    PARTS: tl.constexpr,  # frames that the channels of `x` hold
    M: tl.constexpr,
    K: tl.constexpr,
    N1: tl.constexpr,
    N2: tl.constexpr,
):
    """Each program has M pixels and N1 + N2 channels; K input channels of a tap at a time.

    N1 and N2 are powers of two, as in 96 = 64 + 32: rounded up to one, a third of the work would be for
    nothing. Where K does not divide C, pixels come with zeros, and weights of the next tap count for nothing.
    """
    BLOCKS: tl.constexpr = (C + K - 1) // K
    DOUBLES: tl.constexpr = KH == 2
    COPIES: tl.constexpr = 4 if DOUBLES else 1
    copy = tl.program_id(0) % COPIES  # side by side: they read the same pixels
    n = tl.program_id(0) // COPIES * (N1 + N2)
    first = tl.program_id(1) * M
    frame = tl.program_id(2)
    source = frame // PARTS + frame // frames * (KT - 1)
    corner = first - KH // 2 * pitch - KW // 2  # where the run of the first tap begins
    if DOUBLES:
        corner += copy // 2 * pitch + copy % 2
    acc1 = tl.zeros((M, N1), tl.float32)
    if N2 > 0:
        acc2 = tl.zeros((M, N2), tl.float32)
    weight = copy * N + n
    for i in range(KT * KH * KW * BLOCKS):
        tap = i // BLOCKS
        c = i % BLOCKS * K
        k = tap * C + c
        line = (source + tap // (KH * KW)) * (height + BELOW) + tap // KW % KH
        pixels = x.load([corner + line * pitch + tap % KW, frame % PARTS * C + c])
        acc1 = tl.dot(pixels, weights1.load([weight, k]).T, acc1)
        if N2 > 0:
            acc2 = tl.dot(pixels, weights2.load([weight + N1, k]).T, acc2)
    y = (first + tl.arange(0, M)) // pitch
    z = (first + tl.arange(0, M)) % pitch
    inside = (y < height) & (z < width)
    # Places within a frame have 32 bits, which takes half of the registers that their addresses would.
    begin = frame.to(tl.int64) * COPIES * height * width * N
    pixel = y * width + z
    if DOUBLES:
        pixel = 4 * y * width + copy // 2 * 2 * width + 2 * z + copy % 2
    acc1 = scaled(acc1, n, scale, bias, N1, N, PERIOD)
    if N2 > 0:
        acc2 = scaled(acc2, n + N1, scale, bias, N2, N, PERIOD)
    if gamma is not None:  # this program has all channels
        left, right = square_sums(acc1, 0, N1, PERIOD)
        if N2 > 0:
            more_left, more_right = square_sums(acc2, N1, N2, PERIOD)
            left += more_left
            right += more_right
        left = tl.sqrt(PERIOD + 0.0) / tl.maximum(tl.sqrt(left), smallest)
        right = tl.sqrt(PERIOD + 0.0) / tl.maximum(tl.sqrt(right), smallest)
        acc1 = activated(acc1, left, right, inside, gamma, gain, 0, N1, PERIOD)
        if N2 > 0:
            acc2 = activated(acc2, left, right, inside, gamma, gain, N1, N2, PERIOD)
        begin = (frame // frames).to(tl.int64) * out_step + (frame % frames).to(tl.int64) * (
            (height + BELOW) * pitch * N
        )
        pixel = first + tl.arange(0, M)
        inside = pixel < (height + BELOW) * pitch
    out += begin
    if residual is not None:
        residual += begin
    write(acc1, n, pixel, inside, residual, out, N1, N)
    if N2 > 0:
        write(acc2, n + N1, pixel, inside, residual, out, N2, N)


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
    batch, time, height, width, _ = x.shape
    copies, factor = (4, 2) if kernel[1] == 2 else (1, 1)
    n = len(matrix) // copies // (2 if kernel[2] == 4 else 1)
    size = factor * (height - MARGIN[0]), factor * (width - MARGIN[1])
    out = x.new_empty(batch, (time - kernel[0] + 1) * frames, *size, n, dtype=dtype)
    _launch(x, matrix, kernel, scale, bias, residual, out, frames)
    return out


def convolve_norm(
    x: Tensor,
    matrix: Tensor,
    kernel: tuple[int, int, int],
    scale: Tensor | None,
    bias: Tensor,
    gamma: Tensor,
    gain: float,
    out: Tensor,
) -> None:
    """See `kernels.conv.convolve_norm`."""
    _launch(x, matrix, kernel, scale, bias, None, out, 1, gamma, gain)


def _launch(
    x: Tensor,
    matrix: Tensor,
    kernel: tuple[int, int, int],
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    frames: int,
    gamma: Tensor | None = None,
    gain: float = 1.0,
) -> None:
    batch, time, height, width, channels = x.shape
    height, pitch = height - MARGIN[0], width
    width -= MARGIN[1]
    kt, kh, kw = kernel
    copies = 4 if kh == 2 else 1
    channels, n = channels // frames, len(matrix) // copies
    time = (time - kt + 1) * frames
    maps, period = x.flatten(0, 3), n
    if kw == 4:  # from here on two pixels are one, which sees half of the one before and of the one behind
        rows = (len(maps) // 2, 4 * channels)
        maps = maps.as_strided(rows, (2 * channels, 1), maps.storage_offset() - channels)
        width, pitch, channels, kw, period = width // 2, pitch // 2, 4 * channels, 1, n // 2
    blocks = choose_blocks(channels, n, x.element_size(), whole=frames > 1)
    written = height + (0 if gamma is None else MARGIN[0])  # rows
    grid = (
        copies * triton.cdiv(n, blocks.n1 + blocks.n2),
        triton.cdiv(written * pitch, blocks.pixels),
        batch * time,
    )
    with torch.cuda.device_of(x):  # Triton looks at the current device, not at that of the tensors
        conv_kernel[grid](
            TensorDescriptor.from_tensor(maps, [blocks.pixels, blocks.k]),
            TensorDescriptor.from_tensor(matrix, [blocks.n1, blocks.k]),
            TensorDescriptor.from_tensor(matrix, [blocks.n2 or blocks.n1, blocks.k]),
            scale,
            bias,
            residual,
            gamma,
            out,
            out.stride(0),
            SMALLEST_NORM,
            gain,
            time,
            height,
            width,
            pitch,
            KT=kt,
            KH=kh,
            KW=kw,
            C=channels,
            N=n,
            PERIOD=period,
            PARTS=frames,
            M=blocks.pixels,
            K=blocks.k,
            N1=blocks.n1,
            N2=blocks.n2,
            num_warps=blocks.warps,
            num_stages=blocks.stages,
        )


def sum_neighbors(parts: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """See `kernels.conv.sum_neighbors`."""
    batch, time, height, width, channels = parts.shape
    n = channels // 9
    out = parts.new_empty(batch, time, height, width, n, dtype=dtype)
    pixels, columns = batch * time * height * width, triton.next_power_of_2(n)
    rows = max(1024 // columns, 1)
    with torch.cuda.device_of(parts):
        sum_neighbors_kernel[(triton.cdiv(pixels, rows),)](
            parts, bias, out, pixels, height, width, N=n, ROWS=rows, COLUMNS=columns
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
    if itemsize == 1 and n2 == 64:
        return Blocks(128, min(k, 64), n1, n2, 4, 4)
    return Blocks(256, k, n1, n2, 8, 3) if n1 == 128 else Blocks(128, k, n1, n2, 4, 4)
