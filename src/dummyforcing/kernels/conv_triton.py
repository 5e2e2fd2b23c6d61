"""The convolution of `kernels/conv.py` in Triton. To be imported where there is a GPU.

A program makes a rectangle of pixels of one frame, as a product of matrices: its rows are the pixels, and for
each tap and block of channels the tensor memory accelerator brings the rectangle beside, with zeros where the
frame ends. Nothing is padded, copied or gathered for it.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

RECTANGLES = ((8, 16), (16, 8), (4, 32))
"""Height and width of the pixels of a program; the one that covers a frame best is taken."""


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
    x1,
    x2,
    w11,
    w12,
    w21,
    w22,
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
    K1: tl.constexpr,
    K2: tl.constexpr,
    N1: tl.constexpr,
    N2: tl.constexpr,
):
    """Each program has ROWS x COLUMNS pixels and N1 + N2 channels; K1 + K2 input channels at a time.

    Both are sums of two powers of two, as 96 = 64 + 32 is: rounded up to one, a third of the work would be
    for nothing.
    """
    M: tl.constexpr = ROWS * COLUMNS
    BLOCKS: tl.constexpr = C // (K1 + K2)
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
        c = i % BLOCKS * (K1 + K2)
        t = source + tap // (KH * KW)
        y = top + tap // KW % KH
        x = left + tap % KW
        k = tap * C + c
        c += frame % PARTS * C
        a1 = x1.load([t, y, x, c]).reshape(M, K1)
        acc1 = tl.dot(a1, w11.load([row, k]).T, acc1)
        if N2 > 0:
            acc2 = tl.dot(a1, w21.load([row + N1, k]).T, acc2)
        if K2 > 0:
            a2 = x2.load([t, y, x, c + K1]).reshape(M, K2)
            acc1 = tl.dot(a2, w12.load([row, k + K1]).T, acc1)
            if N2 > 0:
                acc2 = tl.dot(a2, w22.load([row + N1, k + K1]).T, acc2)
    y = h + tl.arange(0, M) // COLUMNS
    x = w + tl.arange(0, M) % COLUMNS
    inside = (y < height) & (x < width)
    if DOUBLES:
        y = 2 * y + copy // 2
        x = 2 * x + copy % 2
        place = (frame.to(tl.int64) * 2 * height + y) * 2 * width + x
    else:
        place = (frame.to(tl.int64) * height + y) * width + x
    finish(acc1, n, place, inside, scale, bias, residual, out, N1, N)
    if N2 > 0:
        finish(acc2, n + N1, place, inside, scale, bias, residual, out, N2, N)


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
    (k1, k2), (n1, n2), warps, stages = choose_blocks(channels, n, x.element_size())
    rows, columns = min(RECTANGLES, key=lambda side: _area(height, width, side))
    maps = x.flatten(0, 1)
    grid = (
        copies * triton.cdiv(n, n1 + n2),
        triton.cdiv(height, rows) * triton.cdiv(width, columns),
        batch * time,
    )
    with torch.cuda.device_of(x):  # Triton looks at the current device, not at that of the tensors
        conv_kernel[grid](
            *(TensorDescriptor.from_tensor(maps, [1, rows, columns, k or k1]) for k in (k1, k2)),
            *(
                TensorDescriptor.from_tensor(matrix, [part or n1, k or k1])
                for part in (n1, n2)
                for k in (k1, k2)
            ),
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
            K1=k1,
            K2=k2,
            N1=n1,
            N2=n2,
            num_warps=warps,
            num_stages=stages,
        )
    return out


def choose_blocks(channels: int, n: int, itemsize: int) -> tuple[tuple[int, int], tuple[int, int], int, int]:
    """Choose input and output channels of a step and a program, warps, and steps that are loaded ahead.

    Args:
        channels: Of the input, a multiple of 16, or of 32 in float8.
        n: Output channels.
        itemsize: Bytes of a value of the input.
    """
    widest = 128 // itemsize  # what the memory of a multiprocessor holds in a row without conflicts
    k = _split(channels, widest)
    return k, _split(n, 128), 8, 4 if k[1] == 0 else 3


def _split(channels: int, widest: int) -> tuple[int, int]:
    """Divide channels into equal blocks of one or two powers of two, as wide as can be."""
    for first in (size for size in (128, 64, 32, 16) if size <= widest):
        for second in (0, first // 2):
            if channels % (first + second) == 0 and first + second >= 16:
                return first, second
    return 16, 0


def _area(height: int, width: int, side: tuple[int, int]) -> int:
    """Pixels of the rectangles that cover a frame."""
    rows, columns = (-(-size // step) * step for size, step in zip((height, width), side, strict=True))
    return rows * columns
