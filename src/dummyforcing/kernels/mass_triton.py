"""The function of `kernels/mass.py` in Triton. To be imported where there is a GPU."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, TOKENS = 64, 128
"""Queries of a program, and keys that it looks at together."""


@triton.jit(do_not_specialize=["rows", "tokens", "slots"])
def log_mass_kernel(
    q,
    k,
    out,
    rows,
    tokens,  # of a slot
    slots,
    scale,
    q_sample,  # from a sample to the next
    q_row,
    q_head,
    k_sample,
    k_token,
    k_head,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    HALVES: tl.constexpr,  # whether to multiply in float16, which holds float8 exactly
):
    """Each program has ROWS queries of a head, and one slot: logits come and go in registers."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    slot = tl.program_id(1)
    sample = (tl.program_id(2) // HEADS).to(tl.int64)
    head = tl.program_id(2) % HEADS
    column = tl.arange(0, WIDTH)
    is_row, is_column = row < rows, column < D
    q += sample * q_sample + head * q_head
    queries = tl.load(
        q + row[:, None] * q_row + column[None, :], is_row[:, None] & is_column[None, :], other=0.0
    )
    k += sample * k_sample + head * k_head + slot.to(tl.int64) * tokens * k_token
    if HALVES:
        queries = queries.to(tl.float16)
    high = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for first in range(0, tokens, TOKENS):
        token = first + tl.arange(0, TOKENS)
        is_token = token < tokens
        keys = tl.load(
            k + token[None, :] * k_token + column[:, None],
            is_token[None, :] & is_column[:, None],
            other=0.0,
        )
        if HALVES:
            keys = keys.to(tl.float16)
        logits = tl.dot(queries, keys, input_precision="ieee") * scale
        logits = tl.where(is_token[None, :], logits, float("-inf"))
        higher = tl.maximum(high, tl.max(logits, 1))
        total = total * tl.exp2(high - higher) + tl.sum(tl.exp2(logits - higher[:, None]), 1)
        high = higher
    place = (tl.program_id(2).to(tl.int64) * rows + row) * slots + slot
    tl.store(out + place, (high + tl.log2(total)) * 0.6931471805599453, is_row)


def log_mass(q: Tensor, k: Tensor, slots: int) -> Tensor:
    """See `kernels.mass.log_mass`."""
    batch, rows, heads, width = q.shape
    tokens = k.shape[1] // slots
    if q.dtype != k.dtype:
        q = q.to(k.dtype)
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    out = torch.empty(batch, heads, rows, slots, device=q.device)
    with torch.cuda.device_of(q):
        log_mass_kernel[(triton.cdiv(rows, ROWS), slots, batch * heads)](
            q,
            k,
            out,
            rows,
            tokens,
            slots,
            width**-0.5 * math.log2(math.e),
            *q.stride()[:3],
            *k.stride()[:3],
            HEADS=heads,
            D=width,
            WIDTH=max(16, triton.next_power_of_2(width)),
            ROWS=ROWS,
            TOKENS=TOKENS if q.element_size() < 4 else TOKENS // 4,
            HALVES=q.element_size() == 1,
        )
    return out
