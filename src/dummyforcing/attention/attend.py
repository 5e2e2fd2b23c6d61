"""Attention of the current chunk to what its heads may see: the only place where a kernel is chosen."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from dummyforcing.attention.backends import BACKENDS, PART_KERNELS, default_backend
from dummyforcing.attention.split_keys import attend_parts, choose_parts
from dummyforcing.cache.head_group import HeadGroup


def attend(q: Tensor, groups: Sequence[HeadGroup], backend: str | None = None) -> Tensor:
    """Let every head attend to what its group sees.

    Args:
        q: Queries of the current chunk, RoPE applied, `(B, L, H, D)`.
        groups: From the cache; together they hold every head of every sample once.
        backend: A name of `BACKENDS`; None: the fastest that is there.

    Returns:
        `(B, L, H, D)`, in the dtype of `q`.
    """
    kernel = BACKENDS[backend or default_backend(q.device, q.dtype, q.shape[-1])]
    if groups[0].is_whole:
        return kernel(q, *_as(q, groups[0]))
    out = torch.empty_like(q)
    for group in groups:
        group.scatter(out, kernel(group.select(q), *_as(q, group)))
    return out


def _as(q: Tensor, group: HeadGroup) -> tuple[Tensor, Tensor]:
    """Keys and values in the dtype of the queries: a float8 cache serves wider ones, too."""
    return group.k.to(q.dtype), group.v.to(q.dtype)


AttentionCall = tuple[Tensor, Tensor, Tensor, Tensor]
"""Queries `(B, L, H, D)`, keys and values `(B, S, H, D)`, and what receives the result, like the queries."""


def attend_side_by_side(calls: Sequence[AttentionCall], backend: str) -> None:
    """Run attention calls that don't wait for each other: nothing is copied.

    Args:
        calls: At least one.
        backend: A name of `BACKENDS`.
    """
    calls = sorted(calls, key=lambda call: -call[1].shape[1])  # the longest first: what is short fills gaps
    device = calls[0][0].device
    if device.type != "cuda":
        for call in calls:
            BACKENDS[backend](*call)
        return
    parts = [1] * len(calls)
    if backend in PART_KERNELS and all(len(q) == 1 for q, *_ in calls):
        shapes = tuple((k.shape[1], k.shape[2]) for _, k, _, _ in calls)
        parts = choose_parts(calls[0][0].shape[1], shapes, _processors(device))
    # Side by side: a few heads alone leave most of the GPU idle.
    main = torch.cuda.current_stream(device)
    streams = [main, *(_side_stream(device, number) for number in range(len(calls) - 1))][::-1]
    for stream, call, count in zip(streams, calls, parts, strict=True):
        if stream != main:
            stream.wait_stream(main)
        with torch.cuda.stream(stream):
            if count > 1:
                attend_parts(*call, PART_KERNELS[backend], count)
            else:
                BACKENDS[backend](*call)
    for stream in streams[:-1]:
        main.wait_stream(stream)


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def _side_stream(device: torch.device, number: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
