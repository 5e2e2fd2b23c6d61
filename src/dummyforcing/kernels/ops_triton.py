"""The operations of `ops.py` in Triton: one program per row (token), which stays in registers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dummyforcing.kernels.constants import FP8, FP8_MAX, TINIEST


@triton.jit
def _store_row(y, out, scales, row, columns, inside, width, fp8_max, tiniest, FP8: tl.constexpr):
    """Write a row as it is, or in float8 with its scale."""
    if FP8:
        largest = tl.maximum(tl.max(tl.abs(y)), tiniest)
        tl.store(scales + row, largest / fp8_max)
        y = y * (fp8_max / largest)
    tl.store(out + row * width + columns, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _load_row(x, columns, inside, GELU: tl.constexpr):
    y = tl.load(x + columns, mask=inside, other=0.0).to(tl.float32)
    if GELU:
        y = y * tl.sigmoid(1.5957691216057308 * (y + 0.044715 * y * y * y))
    return y


@triton.jit
def _quantize_rows(
    x, out, scales, width, fp8_max, tiniest, GELU: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr
):
    # Two pieces: one block of a power of two would leave up to half of the threads idle.
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, HEAD)
    rest = HEAD + tl.arange(0, TAIL)
    head = _load_row(x + row * width, columns, columns < width, GELU)
    tail = _load_row(x + row * width, rest, rest < width, GELU)
    largest = tl.maximum(tl.maximum(tl.max(tl.abs(head)), tl.max(tl.abs(tail))), tiniest)
    tl.store(scales + row, largest / fp8_max)
    out += row * width
    tl.store(out + columns, (head * (fp8_max / largest)).to(out.dtype.element_ty), mask=columns < width)
    tl.store(out + rest, (tail * (fp8_max / largest)).to(out.dtype.element_ty), mask=rest < width)


@triton.jit
def _residual_norm(
    x, delta, gate, scale, shift, out, scales,
    tokens, frames, gate_stride, norm_stride, width, eps, fp8_max, tiniest,
    DELTA: tl.constexpr, GATE: tl.constexpr, NORM: tl.constexpr, FP8: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    frame = (row // tokens) % frames
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    value = tl.load(x + row * width + columns, mask=inside, other=0.0)
    if DELTA:
        added = tl.load(delta + row * width + columns, mask=inside, other=0.0).to(tl.float32)
        if GATE:
            added *= tl.load(gate + frame * gate_stride + columns, mask=inside, other=0.0)
        value = (value.to(tl.float32) + added).to(x.dtype.element_ty)
        tl.store(x + row * width + columns, value, mask=inside)
    if NORM:
        wide = value.to(tl.float32)
        mean = tl.sum(wide, 0) / width
        centred = tl.where(inside, wide - mean, 0.0)
        y = centred * tl.rsqrt(tl.sum(centred * centred, 0) / width + eps)
        y *= tl.load(scale + frame * norm_stride + columns, mask=inside, other=0.0).to(tl.float32)
        y += tl.load(shift + frame * norm_stride + columns, mask=inside, other=0.0).to(tl.float32)
        _store_row(y, out, scales, row, columns, inside, width, fp8_max, tiniest, FP8)


@triton.jit
def _rms_norm(x, gain, width, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    value = tl.load(x + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    value *= tl.rsqrt(tl.sum(value * value, 0) / width + eps)
    value *= tl.load(gain + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(x + row * width + columns, value.to(x.dtype.element_ty), mask=inside)


@triton.jit
def _turned(x, cos, sin, HEADS: tl.constexpr, HALF: tl.constexpr):
    """Adjacent channel pairs of `x (HEADS, 2 * HALF)`, rotated."""
    even, odd = tl.split(tl.reshape(x, (HEADS, HALF, 2)))
    return tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (HEADS, 2 * HALF))


@triton.jit
def _apply_rope(
    x, cosines, sines, out, length, heads, sample_stride, token_stride, head_stride,
    HEADS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    sample, token = row // length, row % length
    head = tl.arange(0, HEADS)[:, None]
    channel = tl.arange(0, WIDTH)[None, :]
    inside = (head < heads) & (channel < WIDTH)
    half = tl.arange(0, WIDTH // 2)[None, :]
    cos = tl.load(cosines + token * (WIDTH // 2) + half)
    sin = tl.load(sines + token * (WIDTH // 2) + half)
    source = x + sample * sample_stride + token * token_stride + head * head_stride + channel
    value = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    value = _turned(value, cos, sin, HEADS, WIDTH // 2)
    tl.store(out + (row * heads + head) * WIDTH + channel, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _prepared(
    x, gain, cos, sin, inside, width, eps,
    NORM: tl.constexpr, TURN: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Heads `(HEADS, 2 * HALF)` of one token: RMS-normalised over all of them, and turned."""
    value = tl.load(x, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        value *= tl.rsqrt(tl.sum(value * value) / width + eps)
        value *= tl.load(gain, mask=inside, other=0.0).to(tl.float32)
    if TURN:
        value = _turned(value, cos, sin, HEADS, HALF)
    return value


@triton.jit
def _place_heads(
    queries, keys, values, row_stride, gain_q, gain_k, cosines, sines, table, slots,
    batch, tokens, part, frames, heads, eps,
    DTYPE: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, ALIGNED: tl.constexpr,
    NORM: tl.constexpr, TURN: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    sample, row = tl.program_id(1).to(tl.int64), tl.program_id(0).to(tl.int64)
    piece = row // (frames * part)
    within = row - piece * frames * part
    size = tl.minimum(part, tokens - piece * part)
    frame, token = within // size, piece * part + within % size
    source = (piece * batch * frames * part + sample * frames * size + within) * row_stride
    head = tl.arange(0, HEADS)[:, None]
    channel = tl.arange(0, WIDTH)[None, :]
    there = head < heads
    inside = there & (channel < WIDTH)
    at = head * WIDTH + channel
    half = tl.arange(0, WIDTH // 2)[None, :]
    cos = half
    sin = half
    if TURN:
        cos = tl.load(cosines + row * (WIDTH // 2) + half)
        sin = tl.load(sines + row * (WIDTH // 2) + half)
    # Loaded numbers say nothing of their alignment, on which the width of the stores depends.
    place = table + (sample * heads + head) * 5
    width = heads * WIDTH
    if QUERIES:
        to = tl.load(place, mask=there, other=0).to(tl.pointer_type(DTYPE))
        stride = tl.multiple_of(tl.load(place + 1, mask=there, other=0), (ALIGNED, ALIGNED))
        value = _prepared(
            queries + source + at, gain_q + at, cos, sin, inside, width, eps, NORM, TURN, HEADS, WIDTH // 2
        )
        to = tl.multiple_of(to, (ALIGNED, ALIGNED))
        tl.store(to + row * stride + channel, value.to(DTYPE), mask=inside)
    slot = tl.load(slots + (sample * heads + head) * frames + frame, mask=there, other=-1).to(tl.int64)
    stride = tl.multiple_of(tl.load(place + 4, mask=there, other=0), (ALIGNED, ALIGNED))
    offset = (slot * tokens + token) * stride + channel
    kept = inside & (slot >= 0)
    to = tl.load(place + 2, mask=there, other=0).to(tl.pointer_type(DTYPE))
    value = _prepared(
        keys + source + at, gain_k + at, cos, sin, inside, width, eps, NORM, TURN, HEADS, WIDTH // 2
    )
    to = tl.multiple_of(to, (ALIGNED, ALIGNED))
    tl.store(to + offset, value.to(DTYPE), mask=kept)
    to = tl.load(place + 3, mask=there, other=0).to(tl.pointer_type(DTYPE))
    to = tl.multiple_of(to, (ALIGNED, ALIGNED))
    value = tl.load(values + source + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(to + offset, value.to(DTYPE), mask=kept)


@triton.jit
def _merge_parts(
    parts, lse, out, count, length, heads, token_stride, head_stride,
    PARTS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    part = tl.arange(0, PARTS)
    logs = tl.load(lse + (part * heads + head) * length + token, mask=part < count, other=float("-inf"))
    weights = tl.exp(logs - tl.max(logs))
    weights /= tl.sum(weights)
    channel = tl.arange(0, BLOCK)[None, :]
    inside = (part[:, None] < count) & (channel < WIDTH)
    at = ((part[:, None] * length + token) * heads + head) * WIDTH + channel
    values = tl.load(parts + at, mask=inside, other=0.0).to(tl.float32)
    merged = tl.sum(values * weights[:, None], 0)
    channel = tl.arange(0, BLOCK)
    to = out + token * token_stride + head * head_stride + channel
    tl.store(to, merged.to(out.dtype.element_ty), mask=channel < WIDTH)


_TRITON_DTYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    FP8: tl.float8e4nv,
}


def _warps(block: int) -> int:
    """Warps for a row: the best of some on an H200."""
    return min(8, max(1, block // 512))


def quantize_rows(x: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    """See `ops.quantize_rows`."""
    rows, width = x.shape
    out, scales = torch.empty_like(x, dtype=FP8), torch.empty(rows, 1, device=x.device)
    head = triton.next_power_of_2(width + 1) // 2
    tail = triton.next_power_of_2(max(width - head, 1))
    warps = 8 if head >= 4096 else 4
    _quantize_rows[(rows,)](x, out, scales, width, FP8_MAX, TINIEST, gelu, head, tail, num_warps=warps)
    return out, scales


def residual_norm(
    x: Tensor,
    delta: Tensor | None,
    gate: Tensor | None,
    norm: tuple[Tensor, Tensor] | None,
    tokens: int,
    eps: float,
    fp8: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """See `ops.residual_norm`; returns the result and, in float8, its scales."""
    rows, width = x.shape
    scale, shift = norm or (None, None)
    frames = max(len(t) for t in (gate, scale, x[:1]) if t is not None)
    out = scales = None
    if norm is not None:
        out = torch.empty_like(x, dtype=FP8 if fp8 else x.dtype)
        scales = torch.empty(rows, 1, device=x.device) if fp8 else None
    block = triton.next_power_of_2(width)
    _residual_norm[(rows,)](
        x, delta, gate, scale, shift, out, scales,
        tokens, frames, _frame_stride(gate), _frame_stride(scale), width, eps, FP8_MAX, TINIEST,
        delta is not None, gate is not None, norm is not None, fp8, block,
        num_warps=2 * _warps(block) if fp8 else _warps(block),
    )  # fmt: skip
    return out, scales


def _frame_stride(factor: Tensor | None) -> int:
    return factor.stride(0) if factor is not None and len(factor) > 1 else 0


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """See `ops.rms_norm`."""
    rows, width = x.shape
    block = triton.next_power_of_2(width)
    _rms_norm[(rows,)](x, gain, width, eps, block, num_warps=_warps(block))
    return x


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `rope.apply_rope`."""
    batch, length, heads, width = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    padded = triton.next_power_of_2(heads)
    _apply_rope[(batch * length,)](
        x, cos, sin, out, length, heads, *x.stride()[:3], padded, width, num_warps=_warps(padded * width)
    )  # fmt: skip
    return out


def place_heads(
    heads: tuple[Tensor, Tensor, Tensor],
    targets: tuple[Tensor, Tensor],
    dtype: torch.dtype,
    tokens: int,
    part: int,
    gains: tuple[Tensor, Tensor] | None,
    rope: tuple[Tensor, Tensor] | None,
    eps: float,
    *,
    with_queries: bool,
) -> None:
    """See `ops.place_heads`; targets are its table and slots, and what is there has a dtype."""
    table, slots = targets
    batch, count, frames = slots.shape
    width = heads[0].shape[-1]
    padded, aligned = triton.next_power_of_2(count), 16 if width % 16 == 0 else 1
    # Pointers that the kernel does not read stand for what there is none of.
    _place_heads[(frames * tokens, batch)](
        *heads, heads[0].stride(0), *(gains or targets), *(rope or targets), table, slots,
        batch, tokens, part, frames, count, eps,
        _TRITON_DTYPES[dtype], padded, width, aligned,
        gains is not None, rope is not None, with_queries, num_warps=_warps(padded * width),
    )  # fmt: skip


def merge_parts(parts: Tensor, lse: Tensor, out: Tensor) -> None:
    """See `ops.merge_parts`."""
    count, length, heads, width = parts.shape
    _merge_parts[(length, heads)](
        parts, lse, out, count, length, heads, out.stride(0), out.stride(1),
        triton.next_power_of_2(count), width, triton.next_power_of_2(width), num_warps=1,
    )  # fmt: skip
