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


class OneHead(NamedTuple):
    """One of some heads that stand side by side. A number, not a view: those of all heads take too long."""

    heads: Tensor
    """`(tokens, H, D)`, with contiguous channels."""
    number: int
    """Which of them."""

    @property
    def rows(self) -> Tensor:
        """Its tokens, `(tokens, D)`."""
        return self.heads[:, self.number]

    @property
    def address(self) -> int:
        """Where it begins."""
        return self.heads.data_ptr() + self.number * self.heads.stride(1) * self.heads.element_size()


class Place(NamedTuple):
    """Destination of one head of one sample."""

    q: OneHead | None
    """Of queries, in the order in which they come; None: they stay."""
    k: OneHead
    """Of keys, slot after slot."""
    v: OneHead
    """Of values, likewise."""


@dataclass(frozen=True)
class Targets:
    """Destinations of a layer's heads."""

    places: Sequence[Sequence[Place]]
    """Of every sample and head."""
    table: Tensor
    """The same as addresses and strides of a token in elements: address and stride of queries, address of
    keys, address of values, stride of both, `(B, H, 5)` int64."""
    slots: Tensor
    """The slot of each current frame, -1 where it has none, `(B, H, F)` int32."""

    @staticmethod
    def table_of(places: Sequence[Sequence[Place]]) -> Tensor:
        """The table of places, in the main memory."""
        return torch.tensor([[_row(place) for place in sample] for sample in places])


def _row(place: Place) -> tuple[int, ...]:
    q, k, v = place
    queries = (0, 0) if q is None else (q.address, q.heads.stride(0))
    return (*queries, k.address, v.address, k.heads.stride(0))


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
    heads: tuple[Tensor, Tensor, Tensor],
    targets: Targets,
    *,
    tokens: int,
    gains: tuple[Tensor, Tensor] | None = None,
    rope: tuple[Tensor, Tensor] | None = None,
    eps: float = 0.0,
    part: int | None = None,
) -> None:
    """RMS-normalise queries and keys, turn them by RoPE, and put every head where attention reads it.

    Args:
        heads: Queries, keys and values of the current frames, each `(B * L, H, D)` with contiguous channels
            and heads; rows of all three lie equally far apart.
        targets: Where they go.
        tokens: Of one frame.
        gains: Of the normalisation of queries and of keys over all heads, each `(H * D,)`; None: they are
            normalised.
        rope: Cosines and sines, each `(L, D / 2)` float32; None: they are turned.
        eps: Of the normalisation.
        part: How many tokens of each frame come together, those of all samples and frames, before the next
            ones; the last part may be smaller. None: all.
    """
    part = part or tokens
    if heads[0].is_cuda:
        from dummyforcing.kernels import ops_triton

        place = targets.places[0][0]
        ops_triton.place_heads(
            heads,
            (targets.table, targets.slots),
            place.k.heads.dtype,
            tokens,
            part,
            gains,
            rope,
            eps,
            with_queries=place.q is not None,
        )
        return
    batch, _, frames = targets.slots.shape
    q, k, v = (head.float() for head in heads)
    if gains is not None:
        q, k = (
            F.rms_norm(x.flatten(1), (x[0].numel(),), gain.float(), eps).view(x.shape)
            for x, gain in zip((q, k), gains, strict=True)
        )
    if rope is not None:
        q, k = (apply_rope(x.view(batch, -1, *x.shape[1:]), *rope).flatten(0, 1) for x in (q, k))
    row = 0
    for first in range(0, tokens, part):
        size = min(part, tokens - first)
        for sample in range(batch):
            for frame in range(frames):
                here = slice(first * frames + frame * size, first * frames + (frame + 1) * size)
                for head, place in enumerate(targets.places[sample]):
                    if place.q is not None:
                        place.q.rows[here] = q[row : row + size, head].to(place.q.heads.dtype)
                    slot = int(targets.slots[sample, head, frame])
                    if slot >= 0:
                        there = slice(slot * tokens + first, slot * tokens + first + size)
                        place.k.rows[there] = k[row : row + size, head].to(place.k.heads.dtype)
                        place.v.rows[there] = v[row : row + size, head].to(place.v.heads.dtype)
                row += size


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
