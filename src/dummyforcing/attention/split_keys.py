"""Keys split into parts that are attended to side by side, and merged: exact.

A few heads with a long past would keep a few processors of a GPU busy while all others wait.

Source: Flash-Decoding (https://pytorch.org/blog/flash-decoding).
"""

from functools import cache

from torch import Tensor

from dummyforcing.attention.backends import PartKernel
from dummyforcing.kernels.ops import merge_parts

ROWS = 128
"""Queries that one processor of a GPU takes at a time."""
LEAST_KEYS = 4096
"""No part has fewer keys: what is gained by more of them goes into merging."""


@cache
def choose_parts(length: int, shapes: tuple[tuple[int, int], ...], processors: int) -> list[int]:
    """Tell into how many parts to cut the keys of groups of heads that attend side by side on a GPU.

    No part should take longer than half of the time that all the work takes if it is spread evenly, so that
    the parts find their gaps. Only few heads with many keys exceed that.

    Args:
        length: Queries.
        shapes: Keys and heads of each group.
        processors: Of the GPU.

    Returns:
        A number for each group that divides its keys evenly; 1: they stay whole.
    """
    tiles = -(-length // ROWS)
    even = sum(keys * heads for keys, heads in shapes) * tiles / processors
    found = []
    for keys, _ in shapes:
        choice = [n for n in range(1, max(1, keys // LEAST_KEYS) + 1) if keys % n == 0]
        found.append(next((n for n in choice if n >= 2 * keys / even), choice[-1]))
    return found


def attend_parts(q: Tensor, k: Tensor, v: Tensor, out: Tensor, kernel: PartKernel, parts: int) -> None:
    """Attend to parts of the keys side by side, as samples of a batch, and merge the results: exact.

    Args:
        q: `(1, L, H, D)`.
        k: `(1, S, H, D)`.
        v: Likewise.
        out: Receives the result, like `q`.
        kernel: Attends to a part.
        parts: Divides `S`.

    Source: Flash-Decoding (https://pytorch.org/blog/flash-decoding).
    """
    keys, values = (t[0].view(parts, -1, *t.shape[2:]) for t in (k, v))
    merge_parts(*kernel(q.repeat(parts, 1, 1, 1), keys, values), out[0])
