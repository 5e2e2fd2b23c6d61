"""The work between the matrix products of a transformer block, in a few operations.

Here is what they compute, in torch; on CUDA they run as one Triton kernel each (`ops_triton.py`). They
compute in float32 whatever they read and write.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dummyforcing.kernels.constants import FP8, FP8_MAX, TINIEST
from dummyforcing.kernels.rope import apply_rope


class Rows(NamedTuple):
    """A matrix in float8 with one scale per row; it stands for `values * scale`."""

    values: Tensor
    """`(M, K)` float8_e4m3fn."""
    scale: Tensor
    """`(M, 1)` float32."""


@dataclass(frozen=True)
class Targets:
    """Destinations of a layer's heads: queries side by side by group, keys and values in the cache."""

    buffers: Sequence[tuple[Tensor, Tensor]]
    """Keys and values of each group, `(B, S, H', D)`."""
    heads: Tensor
    """The head at each place when they stand side by side, `(H,)` int64."""
    table: Tensor
    """Of each head: address of its keys and of its values, stride of a token and of a sample in elements, and
    its place; `(H, 5)` int64."""
    slots: Tensor
    """The slot of each current frame in each head's buffer, -1 where it has none; `(H, F)` int32."""


def quantize_rows(x: Tensor, gelu: bool = False) -> Rows:
    """Divide every row by its largest magnitude over 448, after GELU (tanh) if wanted.

    Args:
        x: `(M, K)`, contiguous.
        gelu: Whether to apply GELU first.
    """
    if x.is_cuda:
        from dummyforcing.kernels import ops_triton

        return Rows(*ops_triton.quantize_rows(x, gelu))
    wide = F.gelu(x.float(), approximate="tanh") if gelu else x.float()
    scale = wide.abs().amax(1, keepdim=True).clamp(min=TINIEST) / FP8_MAX
    return Rows((wide / scale).to(FP8), scale)


def residual_norm(
    x: Tensor,
    delta: Tensor | None = None,
    gate: Tensor | None = None,
    norm: tuple[Tensor, Tensor] | None = None,
    *,
    tokens: int,
    eps: float,
    fp8: bool = False,
) -> Tensor | Rows | None:
    """Add to the residual stream, `x += gate * delta`, and normalise: `layer_norm(x) * scale + shift`.

    Args:
        x: `(M, dim)`, contiguous; changed in place.
        delta: Likewise; None: nothing is added.
        gate: Per frame, `(F or 1, dim)` float32; None: 1.
        norm: Scale and shift, likewise `(F or 1, dim)`; None: nothing is normalised.
        tokens: Of one frame; row `i` of `x` belongs to frame `i // tokens % F`.
        eps: Of the normalisation.
        fp8: Whether to quantise the result by rows.

    Returns:
        What was normalised, `(M, dim)`, in the dtype of `x` or as `Rows`; None without `norm`.
    """
    if x.is_cuda:
        from dummyforcing.kernels import ops_triton

        y, row_scale = ops_triton.residual_norm(x, delta, gate, norm, tokens, eps, fp8)
        return y if row_scale is None or y is None else Rows(y, row_scale)
    if delta is not None:
        wide = delta.float() if gate is None else _times(delta.float(), gate, tokens)
        x.copy_(x.float() + wide)
    if norm is None:
        return None
    scale, shift = norm
    y = F.layer_norm(x.float(), x.shape[-1:], eps=eps)
    y = _times(y, scale, tokens) + _times(torch.ones_like(y), shift, tokens)
    return quantize_rows(y) if fp8 else y.to(x.dtype)


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """RMS normalisation of every row, in place: `x / rms(x) * gain`.

    Args:
        x: `(M, dim)`, contiguous.
        gain: `(dim,)`.
        eps: Added to the mean square.
    """
    if x.is_cuda:
        from dummyforcing.kernels import ops_triton

        return ops_triton.rms_norm(x, gain, eps)
    return x.copy_(F.rms_norm(x.float(), x.shape[-1:], gain.float(), eps))


def place_heads(
    qkv: Tensor,
    gains: tuple[Tensor, Tensor],
    rope: tuple[Tensor, Tensor],
    targets: Targets,
    q: Tensor,
    eps: float,
) -> None:
    """RMS-normalise queries and keys, turn them by RoPE, and put every head where attention reads it.

    Args:
        qkv: Queries, keys and values of the current frames, `(B * L, 3 * H * D)`, contiguous.
        gains: Of the normalisation of queries and of keys, each `(H * D,)`.
        rope: Cosines and sines, each `(L, D / 2)` float32.
        targets: Where they go.
        q: Receives the queries, `(B, L, H, D)`, heads grouped by group.
        eps: Of the normalisation.
    """
    if qkv.is_cuda:
        from dummyforcing.kernels import ops_triton

        ops_triton.place_heads(qkv, gains, rope, targets.table, targets.slots, q, eps)
        return
    tokens = q.shape[1] // targets.slots.shape[1]
    *parts, v = qkv.float().chunk(3, dim=-1)
    turned_q, turned_k = (
        apply_rope(F.rms_norm(part, part.shape[-1:], gain.float(), eps).view(q.shape), *rope)
        for part, gain in zip(parts, gains, strict=True)
    )
    v = v.reshape(q.shape)
    q.copy_(turned_q[:, :, targets.heads])
    first = 0
    for buffers in targets.buffers:
        for column in range(buffers[0].shape[2]):
            head = int(targets.heads[first + column])
            for frame, slot in enumerate(targets.slots[head].tolist()):
                if slot >= 0:
                    source = slice(frame * tokens, (frame + 1) * tokens)
                    target = slice(slot * tokens, (slot + 1) * tokens)
                    for buffer, new in zip(buffers, (turned_k, v), strict=True):
                        buffer[:, target, column] = new[:, source, head].to(buffer.dtype)
        first += buffers[0].shape[2]


def merge_parts(parts: Tensor, lse: Tensor, out: Tensor) -> None:
    """Merge attention to parts of the keys into attention to all of them.

    Args:
        parts: Attention to each part, `(n, L, H, D)`, contiguous.
        lse: Logarithm of the summed exponentials of each part, `(n, H, L)` float32, contiguous.
        out: Receives the result, `(L, H, D)`; contiguous channels.
    """
    if parts.is_cuda:
        from dummyforcing.kernels import ops_triton

        ops_triton.merge_parts(parts, lse, out)
        return
    weights = torch.softmax(lse, dim=0).transpose(1, 2)[..., None]
    out.copy_((parts.float() * weights).sum(0))


def _times(x: Tensor, factor: Tensor, tokens: int) -> Tensor:
    """Multiply each frame's rows of `x (M, dim)` with that frame's `factor (F or 1, dim)`."""
    return (
        x.view(-1, len(factor), tokens if len(factor) > 1 else len(x), x.shape[-1]) * factor[:, None]
    ).view(x.shape)
