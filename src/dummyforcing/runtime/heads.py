"""Self-attention of a layer in the fused path: where its heads go, and the attention calls that follow.

Queries, keys and values come from one matrix product and are written straight to where attention reads them.
Here is that on one GPU, and what it shares with several (`exchanged_heads.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from dummyforcing.attention.attend import attend_side_by_side
from dummyforcing.cache.deal import Part
from dummyforcing.cache.head_group import HeadGroup
from dummyforcing.cache.layer_cache import LayerCache
from dummyforcing.kernels.ops import OneHead, Place, Targets, place_heads
from dummyforcing.kernels.transfers import Parcel

Column = tuple[Part, ...]
"""One of the heads side by side in which a GPU attends: a head, or parts of some below each other."""

Rows = tuple[int, int]
"""The first of some tokens, and one more than the last."""


class CallPlan(NamedTuple):
    """An attention call of a layer, as places in its tensors."""

    group: int
    """The head group that it attends to."""
    members: slice
    """Samples of the group."""
    heads: slice
    """Heads of the group."""
    samples: slice
    rows: slice
    """Queries."""
    columns: slice
    """Where its heads stand."""


@dataclass(frozen=True)
class Grid:
    """The tokens of a pass."""

    batch: int
    frames: int
    tokens: int
    """Of one latent frame."""
    part: int
    """Of one latent frame on each GPU; the last one may have fewer."""

    def rows(self, first: int, end: int) -> Rows:
        """The tokens of some GPUs, of all frames, where all stand GPU after GPU."""
        most = self.frames * self.tokens
        return min(first * self.frames * self.part, most), min(end * self.frames * self.part, most)


class Scratch:
    """Memory that all layers use, one after the other."""

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device) -> None:
        """Begin with nothing.

        Args:
            width: Channels of a head.
            dtype: Of heads.
            device: Where they live.
        """
        self.width, self.dtype, self.device = width, dtype, device
        self._tensors: dict[str, Tensor] = {}

    def take(self, name: str, size: int) -> Tensor:
        """So many elements; the same memory for the same name, unless more are needed than ever before."""
        known = self._tensors.get(name)
        if known is None or known.numel() < size:
            known = self._tensors[name] = torch.empty(size, dtype=self.dtype, device=self.device)
        return known[:size]


Watch = Callable[[Tensor], None]
"""`watch(q)`: is shown the queries of the heads that are kept here, `(B, L, H, D)`, before they attend."""


class LocalHeads:
    """All heads of a layer on one GPU."""

    def __init__(
        self, layer: LayerCache, grid: Grid, scratch: Scratch, slots: Tensor, parcel: Parcel
    ) -> None:
        """Lay out what stays the same until the cache moves.

        Args:
            layer: Its cache.
            grid: The tokens of its passes.
            scratch: Memory for queries and what they attend to.
            slots: See `Targets`; filled before each pass.
            parcel: Takes tables to the device.
        """
        size = grid.batch, grid.frames * grid.tokens, len(layer.own), scratch.width
        q, attended = (scratch.take(name, torch.Size(size).numel()).view(size) for name in ("q", "attended"))
        orders = [layer.order(0, sample) for sample in range(grid.batch)]
        self.heads = [sorted(order) for order in orders]
        """Of each sample, in the order of `slots`."""
        self._q, self._attended, self._tokens = q, attended, grid.tokens
        cached = [cache_places(layer, sample) for sample in range(grid.batch)]
        places = [
            [Place(OneHead(rows, order.index(head)), *cached[sample][head]) for head in sorted(order)]
            for sample, (order, rows) in enumerate(zip(orders, q, strict=True))
        ]
        self._targets = Targets(places, parcel.add(Targets.table_of(places)), slots)
        columns = [[(Part(head, 0, 1),) for head in order] for order in orders]
        self._calls = list(plan_calls(layer, columns, grid))
        self.order, self._sorted = common_order(orders, parcel)
        """The order of the heads in what comes back."""
        self.shows_all = True
        """Whether a watch can be shown all queries."""
        self._places = places_of(orders, self.heads, parcel)

    def attend(
        self,
        heads: tuple[Tensor, Tensor, Tensor],
        gains: tuple[Tensor, Tensor] | None,
        rope: tuple[Tensor, Tensor],
        eps: float,
        groups: Sequence[HeadGroup],
        backend: str,
        kv_only: bool,
        watch: Watch | None = None,
    ) -> Tensor | None:
        """Attend from the current tokens to what their heads see.

        Args:
            heads: Queries, keys and values, `(B * L, H, D)` each; rows of all three lie equally far apart.
            gains: Of the normalisation of queries and keys; None: they are normalised.
            rope: Cosines and sines of the tokens.
            eps: Of the normalisation.
            groups: What is seen in this pass.
            backend: Of attention.
            kv_only: Put keys and values in place, no more.
            watch: Looks on, if any.

        Returns:
            `(B, L, H, D)`, heads in the order of `order`; None with `kv_only`.
        """
        place_heads(heads, self._targets, tokens=self._tokens, gains=gains, rope=rope, eps=eps)
        if watch is not None:
            watch(in_order(self._q, self._places))
        if kv_only:
            return None
        run_calls(self._calls, self._q, groups, self._attended, backend)
        return in_order(self._attended, self._sorted)

    def in_order_of_model(self, attended: Tensor) -> Tensor:
        """Sort the heads of what `attend` gave, if they are not."""
        return in_order(attended, self._places) if self._sorted is None else attended


def cache_places(layer: LayerCache, sample: int) -> dict[int, tuple[OneHead, OneHead]]:
    """Where keys and values of a sample's heads are in the cache."""
    return {
        head: (OneHead(k, number), OneHead(v, number))
        for group in layer.groups
        if sample in group.samples
        for k, v in [tuple(buffer[group.samples.index(sample)] for buffer in (group.k, group.v))]
        for number, head in enumerate(group.heads)
    }


def plan_calls(layer: LayerCache, columns: Sequence[Sequence[Column]], grid: Grid) -> Iterator[CallPlan]:
    """Plan the attention calls of a layer's groups, as few as stand side by side.

    Args:
        layer: Its cache.
        columns: Where heads stand, of every sample.
        grid: The tokens.
    """
    for number, group in enumerate(layer.groups):
        for members in consecutive(group.samples):
            samples = slice(group.samples[members.start], group.samples[members.stop - 1] + 1)
            found = sorted(
                (grid.rows(part.first, part.end), group.heads.index(part.head), column)
                for column, stack in enumerate(columns[samples.start])
                for part in stack
                if part.head in group.heads
            )
            calls: list[tuple[Rows, int, int, int]] = []  # queries, first head, first column, how many
            for rows, head, column in found:
                last = calls[-1] if calls else None
                if last and last == (rows, head - last[3], column - last[3], last[3]):
                    calls[-1] = (*last[:3], last[3] + 1)
                else:
                    calls.append((rows, head, column, 1))
            for rows, head, column, count in calls:
                heads, at = slice(head, head + count), slice(column, column + count)
                yield CallPlan(number, members, heads, samples, slice(*rows), at)


def run_calls(
    calls: Sequence[CallPlan], q: Tensor, groups: Sequence[HeadGroup], out: Tensor, backend: str
) -> None:
    """Attend to what groups show, `q (B, L, H, D)`, into `out`, likewise."""
    tensors = []
    for group, members, heads, samples, rows, columns in calls:
        k, v = (t[members, :, heads] for t in (groups[group].k, groups[group].v))
        tensors.append((q[samples, rows, columns], k, v, out[samples, rows, columns]))
    attend_side_by_side(tensors, backend)


def common_order(orders: Sequence[Sequence[int]], parcel: Parcel) -> tuple[list[int], Tensor | None]:
    """The order of heads that all samples have in common.

    Returns:
        It, and where each sample's heads stand if they must be sorted for it; see `places_of`.
    """
    if all(order == orders[0] for order in orders):
        return list(orders[0]), None
    wanted = sorted(orders[0])
    return wanted, places_of(orders, [wanted] * len(orders), parcel)


def places_of(
    orders: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]], parcel: Parcel
) -> Tensor | None:
    """Where each sample's heads stand if another order is wanted, `(B, H)` int64; None: they are in order."""
    if all(list(a) == list(b) for a, b in zip(orders, wanted, strict=True)):
        return None
    places = [[order.index(head) for head in row] for order, row in zip(orders, wanted, strict=True)]
    return parcel.add(torch.tensor(places))


def in_order(attended: Tensor, places: Tensor | None) -> Tensor:
    """Take heads `(B, L, H, D)` from their places; see `places_of`."""
    if places is None:
        return attended
    # Float8 has no gather.
    plain = attended.view(torch.uint8) if attended.element_size() == 1 else attended
    chosen = plain.gather(2, places[:, None, :, None].expand(plain.shape))
    return chosen.view(attended.dtype)


def consecutive(numbers: Sequence[int]) -> list[slice]:
    """The places of runs in which each number is one more than the one before."""
    cuts = [0, *(i for i in range(1, len(numbers)) if numbers[i] != numbers[i - 1] + 1), len(numbers)]
    return [slice(*pair) for pair in pairwise(cuts)]
