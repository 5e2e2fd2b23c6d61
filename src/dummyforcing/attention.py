"""Attention of the current chunk to what its heads may see: the only place where a kernel is chosen."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dummyforcing.cache import Segment

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`kernel(q, k, v) -> out` without a mask; `q (B, L, H, D)`, `k` and `v (B, S, H, D)`."""


def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention written out, in float64."""
    q, k, v64 = (t.double().transpose(1, 2) for t in (q, k, v))
    weights = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)
    return (weights @ v64).transpose(1, 2).to(v.dtype)


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's fused attention."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


BACKENDS: dict[str, Kernel] = {"reference": reference, "sdpa": sdpa}


def attend(q: Tensor, segments: Sequence[Segment], backend: str = "sdpa") -> Tensor:
    """Let every head attend to its segment.

    Args:
        q: Queries of the current chunk, RoPE applied, `(B, L, H, D)`.
        segments: From the cache; together they hold every head of every sample once.
        backend: A name of `BACKENDS`.

    Returns:
        `(B, L, H, D)`, in the dtype of `q`.
    """
    kernel = BACKENDS[backend]
    if segments[0].is_whole:
        return kernel(q, segments[0].k, segments[0].v)
    out = torch.empty_like(q)
    for segment in segments:
        segment.scatter(out, kernel(segment.select(q), segment.k, segment.v))
    return out
