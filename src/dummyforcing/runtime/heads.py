"""Self-attention of a layer in the fused path: where its heads go, and the attention calls that follow.

Queries, keys and values come from one matrix product and are written straight to where attention reads them.
On several GPUs they go to the GPUs that have the heads first, in one exchange, and what these attend to comes
back in another one.
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
from dummyforcing.cache.kv_cache import KVCache, LayerCache
from dummyforcing.kernels.ops import Place, Targets, place_heads
from dummyforcing.kernels.transfers import send
from dummyforcing.runtime.ranks import Ranks, TokenSplit

Column = tuple[Part, ...]
"""One of the heads side by side in which a GPU attends: a head, or parts of some below each other."""

Rows = tuple[int, int]
"""The first of some tokens, and one more than the last."""


def head_of(column: Column, rank: int) -> int | None:
    """The head whose queries of a GPU's tokens stand in a column; None: nothing does."""
    return next((part.head for part in column if part.first <= rank < part.end), None)


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

    def __init__(self, layer: LayerCache, grid: Grid, scratch: Scratch, slots: Tensor) -> None:
        """Lay out what stays the same until the cache moves.

        Args:
            layer: Its cache.
            grid: The tokens of its passes.
            scratch: Memory for queries and what they attend to.
            slots: See `Targets`; filled before each pass.
        """
        size = grid.batch, grid.frames * grid.tokens, len(layer.own), scratch.width
        q, attended = (scratch.take(name, torch.Size(size).numel()).view(size) for name in ("q", "attended"))
        orders = [layer.order(0, sample) for sample in range(grid.batch)]
        self.heads = [sorted(order) for order in orders]
        """Of each sample, in the order of `slots`."""
        self._q, self._attended, self._tokens = q, attended, grid.tokens
        cached = [cache_places(layer, sample) for sample in range(grid.batch)]
        places = [
            [Place(q[sample, :, order.index(head)], *cached[sample][head]) for head in sorted(order)]
            for sample, order in enumerate(orders)
        ]
        self._targets = Targets(places, send(Targets.table_of(places), q.device), slots)
        columns = [[(Part(head, 0, 1),) for head in order] for order in orders]
        self._calls = list(plan_calls(layer, columns, grid))
        self.order, self._sorted = common_order(orders, q.device)
        """The order of the heads in what comes back."""
        self.shows_all = True
        """Whether a watch can be shown all queries."""
        self._places = places_of(orders, self.heads, q.device)

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


class ExchangedHeads:
    """The heads of a layer on several GPUs, each of which has the tokens of a part of every latent frame."""

    def __init__(
        self, layer: LayerCache, grid: Grid, ranks: Ranks, scratch: Scratch, heads: int, slots: Tensor
    ) -> None:
        """Lay out what stays the same until the cache moves.

        Args:
            layer: Its cache.
            grid: The tokens of its passes.
            ranks: The GPUs.
            scratch: Memory for what is exchanged.
            heads: How many the layer has.
            slots: See `Targets`, of the heads that this GPU keeps; filled before each pass.
        """
        me, width, batch, device = ranks.rank, scratch.width, grid.batch, scratch.device
        self._grid, self._ranks = grid, ranks
        samples = range(batch)
        orders = [[layer.order(rank, sample) for sample in samples] for rank in range(ranks.size)]
        self.heads = orders[me]
        """Of each sample, those that are kept here, in the order of `slots`."""
        columns = [
            [arrange_columns(layer.deal.parts[rank], orders[rank][sample], ranks.size) for sample in samples]
            for rank in range(ranks.size)
        ]
        counts = [len(columns[rank][0]) for rank in range(ranks.size)]
        kept = [len(orders[rank][0]) for rank in range(ranks.size)]
        self._count, self._kept = counts[me], kept[me]
        lengths = [slice(*grid.rows(rank, rank + 1)) for rank in range(ranks.size)]
        sizes = [rows.stop - rows.start for rows in lengths]
        # To each GPU go the queries that it attends with, and the keys and values that it keeps.
        widths = [count + 2 * keep for count, keep in zip(counts, kept, strict=True)]
        self._out_sizes = [batch * sizes[me] * wide * width for wide in widths]
        self._in_sizes = [batch * size * widths[me] * width for size in sizes]
        self._outgoing = scratch.take("outgoing", sum(self._out_sizes))
        self._incoming = scratch.take("incoming", sum(self._in_sizes))
        blocks = [
            block.view(batch, sizes[me], wide, width)
            for block, wide in zip(torch.split(self._outgoing, self._out_sizes), widths, strict=True)
        ]
        places: list[list[Place]] = []
        self._copies: list[tuple[Tensor, Tensor]] = []
        for sample in samples:
            row = []
            for head in range(heads):
                pairs = []
                for keeper in layer.deal.keepers(head):
                    block, at = blocks[keeper][sample], orders[keeper][sample].index(head)
                    first, second = counts[keeper] + at, counts[keeper] + kept[keeper] + at
                    pairs.append((block[:, first], block[:, second]))
                for pair in pairs[1:]:
                    self._copies += zip(pair, pairs[0], strict=True)
                attends, column = _column_of(columns, sample, head, me)
                row.append(Place(blocks[attends][sample][:, column], *pairs[0]))
            places.append(row)
        as_they_come = torch.arange(grid.frames, dtype=torch.int32).expand(batch, heads, -1).contiguous()
        self._sent = Targets(places, send(Targets.table_of(places), device), send(as_they_come, device))
        self._own_tokens = sizes[me] // grid.frames
        # What comes stands GPU after GPU; keys and values go on to the cache.
        self._received = self._incoming.view(-1, widths[me], width)
        cached = [cache_places(layer, sample) for sample in samples]
        mine = [[Place(None, *cached[sample][head]) for head in orders[me][sample]] for sample in samples]
        self._cached = Targets(mine, send(Targets.table_of(mine), device), slots)
        length = grid.frames * grid.tokens
        alone = batch == 1  # else samples stand between the tokens of two GPUs
        received = self._received[None, :, : self._count]
        size = batch, length, self._count, width
        self._q = received if alone else scratch.take("q", torch.Size(size).numel()).view(size)
        self._attended = scratch.take("attended", torch.Size(size).numel()).view(size)
        self._calls = list(plan_calls(layer, columns[me], grid))
        self._pieces = [
            (rows, block.view(batch, -1, widths[me], width)[:, :, : self._count])
            for rows, block in zip(lengths, torch.split(self._incoming, self._in_sizes), strict=True)
        ]
        # What was attended to goes back the same way.
        self._given_sizes = [batch * size * self._count * width for size in sizes]
        self._given = self._attended.flatten() if alone else scratch.take("given", sum(self._given_sizes))
        self._taken_sizes = [batch * sizes[me] * count * width for count in counts]
        self._taken = scratch.take("taken", sum(self._taken_sizes))
        backs = [
            block.view(batch, sizes[me], count, width)
            for block, count in zip(torch.split(self._taken, self._taken_sizes), counts, strict=True)
        ]
        self._parts = [
            back[:, :, run]
            for theirs, back in zip(columns, backs, strict=True)
            for run in _runs([head_of(column, me) is not None for column in theirs[0]])
        ]
        orders_back = [
            [here for theirs in columns for c in theirs[sample] if (here := head_of(c, me)) is not None]
            for sample in samples
        ]
        self.order, self._sorted = common_order(orders_back, device)
        """The order of the heads in what comes back."""
        self.shows_all = all((part.first, part.end) == (0, ranks.size) for part in layer.deal.parts[me])
        """Whether a watch can be shown all queries: not of heads that are cut."""
        self._places = places_of(orders[me], [layer.own] * batch, device) if self.shows_all else None

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
        """Attend from this GPU's tokens to what their heads see; see `LocalHeads.attend`."""
        place_heads(heads, self._sent, tokens=self._own_tokens, gains=gains, rope=rope, eps=eps)
        for copied, origin in self._copies:
            copied.copy_(origin)
        self._ranks.all_to_all(self._incoming, self._outgoing, self._in_sizes, self._out_sizes)
        first, second = self._count, self._count + self._kept
        k, v = self._received[:, first:second], self._received[:, second:]
        place_heads((k, k, v), self._cached, tokens=self._grid.tokens, part=self._grid.part)
        if len(self._q) > 1:
            for rows, piece in self._pieces:
                self._q[:, rows] = piece
        if watch is not None:
            shown = in_order(self._q, self._places)
            frames = [
                shown[:, rows].view(len(shown), self._grid.frames, -1, *shown.shape[2:])
                for rows, _ in self._pieces
            ]
            watch(torch.cat(frames, 2).flatten(1, 2))
        if kv_only:
            return None
        run_calls(self._calls, self._q, groups, self._attended, backend)
        if len(self._q) > 1:
            for (rows, _), given in zip(
                self._pieces, torch.split(self._given, self._given_sizes), strict=True
            ):
                piece = self._attended[:, rows]
                given.view(piece.shape).copy_(piece)
        self._ranks.all_to_all(self._taken, self._given, self._taken_sizes, self._given_sizes)
        return in_order(torch.cat(self._parts, 2), self._sorted)


SelfAttention = LocalHeads | ExchangedHeads


class HeadLayout:
    """The self-attention of all layers in passes of one length, laid out again whenever the cache moves."""

    def __init__(self, cache: KVCache, frames: int, heads: int, split: TokenSplit | None = None) -> None:
        """Lay out nothing yet.

        Args:
            cache: What is attended to.
            frames: Latent frames of a pass.
            heads: Of a layer.
            split: Of the tokens over several GPUs; None: there is one.
        """
        self._cache, self._heads, self._split = cache, heads, split
        sizes = cache.sizes
        part = split.part if split else sizes.tokens_per_frame
        self._grid = Grid(sizes.batch, frames, sizes.tokens_per_frame, part)
        self._key: object = None
        self._slots: Tensor
        """Of the current frames in all layers, flat."""
        self._written: HeadGroup | None
        """What the first heads see in the pass that the slots are of: another one in every other pass."""
        self.attentions: list[SelfAttention] = []
        """Of each layer."""

    def prepare(self, key: object, groups: Sequence[Sequence[HeadGroup]]) -> bool:
        """Get ready for a pass.

        Args:
            key: From `place_of`.
            groups: What each layer's heads see, none of it gathered.

        Returns:
            Whether all was laid out again.
        """
        moved = key != self._key
        if moved:
            self._key = key
            self._lay_out()
        if self._written is not groups[0][0]:
            self._written = groups[0][0]
            self._slots.copy_(send(self._present_slots(), self._slots.device))
        return moved

    def _lay_out(self) -> None:
        cache, grid = self._cache, self._grid
        device = cache.layers[0].groups[0].k.device
        rows = [grid.batch * len(layer.own) * grid.frames for layer in cache.layers]
        self._slots, self._written = torch.empty(sum(rows), dtype=torch.int32, device=device), None
        scratch = Scratch(cache.sizes.head_dim, cache.sizes.dtype, device)
        self.attentions = []
        for layer, flat in zip(cache.layers, torch.split(self._slots, rows), strict=True):
            slots = flat.view(grid.batch, -1, grid.frames)
            self.attentions.append(
                LocalHeads(layer, grid, scratch, slots)
                if self._split is None
                else ExchangedHeads(layer, grid, self._split.ranks, scratch, self._heads, slots)
            )

    def _present_slots(self) -> Tensor:
        """The slot of each current frame, of all layers, samples and heads, flat."""
        found: list[int] = []
        for layer, attention in zip(self._cache.layers, self.attentions, strict=True):
            of = {
                (sample, head): slots
                for group in layer.groups
                for sample in group.samples
                for head, slots in zip(group.heads, group.targets, strict=True)
            }
            for sample, heads in enumerate(attention.heads):
                for head in heads:
                    found += of[sample, head]
        return torch.tensor(found, dtype=torch.int32)


def place_of(cache: KVCache) -> object:
    """Where a cache's heads are: equal as long as they have not moved."""
    groups = [group for layer in cache.layers for group in layer.groups]
    return cache.layout, [(group.k.data_ptr(), group.v.data_ptr(), group.k.shape[1]) for group in groups]


def cache_places(layer: LayerCache, sample: int) -> dict[int, tuple[Tensor, Tensor]]:
    """Where keys and values of a sample's heads are in the cache, `(tokens, D)` each."""
    return {
        head: (group.k[row, :, column], group.v[row, :, column])
        for group in layer.groups
        if sample in group.samples
        for row in (group.samples.index(sample),)
        for column, head in enumerate(group.heads)
    }


def arrange_columns(parts: Sequence[Part], order: Sequence[int], ranks: int) -> list[Column]:
    """Put the heads of a GPU side by side: whole ones in order, then cut ones, which may share a column."""
    cut = [part for part in parts if (part.first, part.end) != (0, ranks)]
    whole = {part.head for part in parts} - {part.head for part in cut}
    columns: list[Column] = [(Part(head, 0, ranks),) for head in order if head in whole]
    below: list[list[Part]] = []
    for part in sorted(cut, key=lambda one: (one.first, one.head)):
        fitting = next((column for column in below if column[-1].end <= part.first), None)
        if fitting is None:
            below.append([part])
        else:
            fitting.append(part)
    return columns + [tuple(column) for column in below]


def plan_calls(layer: LayerCache, columns: Sequence[Sequence[Column]], grid: Grid) -> Iterator[CallPlan]:
    """Plan the attention calls of a layer's groups, as few as stand side by side.

    Args:
        layer: Its cache.
        columns: Where heads stand, of every sample.
        grid: The tokens.
    """
    for number, group in enumerate(layer.groups):
        for members in _consecutive(group.samples):
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


def common_order(orders: Sequence[Sequence[int]], device: torch.device) -> tuple[list[int], Tensor | None]:
    """The order of heads that all samples have in common.

    Returns:
        It, and where each sample's heads stand if they must be sorted for it; see `places_of`.
    """
    if all(order == orders[0] for order in orders):
        return list(orders[0]), None
    wanted = sorted(orders[0])
    return wanted, places_of(orders, [wanted] * len(orders), device)


def places_of(
    orders: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]], device: torch.device
) -> Tensor | None:
    """Where each sample's heads stand if another order is wanted, `(B, H)` int64; None: they are in order."""
    if all(list(a) == list(b) for a, b in zip(orders, wanted, strict=True)):
        return None
    places = [[order.index(head) for head in row] for order, row in zip(orders, wanted, strict=True)]
    return send(torch.tensor(places), device)


def in_order(attended: Tensor, places: Tensor | None) -> Tensor:
    """Take heads `(B, L, H, D)` from their places; see `places_of`."""
    if places is None:
        return attended
    # Float8 has no gather.
    plain = attended.view(torch.uint8) if attended.element_size() == 1 else attended
    chosen = plain.gather(2, places[:, None, :, None].expand(plain.shape))
    return chosen.view(attended.dtype)


def _column_of(
    columns: Sequence[Sequence[Sequence[Column]]], sample: int, head: int, me: int
) -> tuple[int, int]:
    """The GPU and the column in which a head of this GPU's tokens stands."""
    return next(
        (rank, number)
        for rank, samples in enumerate(columns)
        for number, column in enumerate(samples[sample])
        if head_of(column, me) == head
    )


def _consecutive(numbers: Sequence[int]) -> list[slice]:
    """The places of runs in which each number is one more than the one before."""
    cuts = [0, *(i for i in range(1, len(numbers)) if numbers[i] != numbers[i - 1] + 1), len(numbers)]
    return [slice(*pair) for pair in pairwise(cuts)]


def _runs(wanted: Sequence[bool]) -> list[slice]:
    """The places of runs of what is wanted."""
    places = [place for place, is_wanted in enumerate(wanted) if is_wanted]
    return [slice(places[run.start], places[run.stop - 1] + 1) for run in _consecutive(places)]
