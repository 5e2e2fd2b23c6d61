"""Self-attention of a layer on several GPUs: heads go to the GPUs that have them, and come back.

Each GPU has the tokens of a part of every latent frame. In one exchange their heads go to the GPUs that have
these heads, and what they attend to comes back in another one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dummyforcing.cache.deal import Part
from dummyforcing.cache.head_group import HeadGroup
from dummyforcing.cache.layer_cache import LayerCache
from dummyforcing.kernels.ops import OneHead, Place, Targets, place_heads
from dummyforcing.kernels.transfers import Parcel
from dummyforcing.runtime.heads import (
    Column,
    Grid,
    Scratch,
    Watch,
    cache_places,
    common_order,
    consecutive,
    in_order,
    places_of,
    plan_calls,
    run_calls,
)
from dummyforcing.runtime.ranks import Ranks


class ExchangedHeads:
    """The heads of a layer on several GPUs, each of which has the tokens of a part of every latent frame."""

    def __init__(
        self,
        layer: LayerCache,
        grid: Grid,
        ranks: Ranks,
        scratch: Scratch,
        heads: int,
        slots: Tensor,
        parcel: Parcel,
    ) -> None:
        """Lay out what stays the same until the cache moves.

        Args:
            layer: Its cache.
            grid: The tokens of its passes.
            ranks: The GPUs.
            scratch: Memory for what is exchanged.
            heads: How many the layer has.
            slots: See `Targets`, of the heads that this GPU keeps; filled before each pass.
            parcel: Takes tables to the device.
        """
        me, width, batch = ranks.rank, scratch.width, grid.batch
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
            block.view(batch, sizes[me], wide, width).unbind()
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
                    pairs.append((OneHead(block, first), OneHead(block, second)))
                for pair in pairs[1:]:
                    self._copies += [(to.rows, of.rows) for to, of in zip(pair, pairs[0], strict=True)]
                attends, column = _column_of(columns, sample, head, me)
                row.append(Place(OneHead(blocks[attends][sample], column), *pairs[0]))
            places.append(row)
        as_they_come = torch.arange(grid.frames, dtype=torch.int32).expand(batch, heads, -1).contiguous()
        self._sent = Targets(places, parcel.add(Targets.table_of(places)), parcel.add(as_they_come))
        self._own_tokens = sizes[me] // grid.frames
        # What comes stands GPU after GPU; keys and values go on to the cache.
        self._received = self._incoming.view(-1, widths[me], width)
        cached = [cache_places(layer, sample) for sample in samples]
        mine = [[Place(None, *cached[sample][head]) for head in orders[me][sample]] for sample in samples]
        self._cached = Targets(mine, parcel.add(Targets.table_of(mine)), slots)
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
        self.order, self._sorted = common_order(orders_back, parcel)
        """The order of the heads in what comes back."""
        self.shows_all = all((part.first, part.end) == (0, ranks.size) for part in layer.deal.parts[me])
        """Whether a watch can be shown all queries: not of heads that are cut."""
        self._places = places_of(orders[me], [layer.own] * batch, parcel) if self.shows_all else None

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


def head_of(column: Column, rank: int) -> int | None:
    """The head whose queries of a GPU's tokens stand in a column; None: nothing does."""
    return next((part.head for part in column if part.first <= rank < part.end), None)


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


def _runs(wanted: Sequence[bool]) -> list[slice]:
    """The places of runs of what is wanted."""
    places = [place for place, is_wanted in enumerate(wanted) if is_wanted]
    return [slice(places[run.start], places[run.stop - 1] + 1) for run in consecutive(places)]
