"""What one layer keeps: its head groups, and how heads move when plans, GPUs or samples do."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from dummyforcing.cache.deal import Deal, deal_heads
from dummyforcing.cache.head_group import CacheSizes, GroupCache, GroupState
from dummyforcing.cache.ring import Slots, runs, turn_of


class Ranks(Protocol):
    """GPUs that make one video together, each with a cache of some heads; see `runtime/ranks.py`."""

    @property
    def rank(self) -> int:
        """The number of this one."""

    @property
    def size(self) -> int:
        """How many there are."""

    def collect(self, value: Any) -> list[Any] | None:
        """What all GPUs have, on rank 0; None on the others."""

    def exchange(self, outgoing: Sequence[Tensor], incoming: Sequence[int]) -> list[Tensor]:
        """Give every GPU one tensor, and take one from each.

        Args:
            outgoing: For each GPU, all of one dtype.
            incoming: How many elements come from each.

        Returns:
            What each sent, flat.
        """


class HeldGroup(NamedTuple):
    """Heads that form a group, wherever they are kept."""

    samples: tuple[int, ...]
    heads: tuple[int, ...]


class LayerCache:
    """The head groups of one layer: of several GPUs, those of the heads that this one keeps."""

    def __init__(
        self,
        sizes: CacheSizes,
        rows: Sequence[tuple[Slots, ...]],
        deal: Deal,
        own: Sequence[int],
        held: Sequence[HeldGroup],
        groups: Sequence[GroupCache],
    ) -> None:
        self._sizes, self.rows, self.groups = sizes, rows, groups
        self.deal = deal
        """Where which heads are kept."""
        self.own = own
        """The heads that are kept here, in order."""
        self.held = held
        """The head groups, wherever their heads are kept."""

    @classmethod
    def empty(
        cls, sizes: CacheSizes, rows: Sequence[tuple[Slots, ...]], deal: Deal, rank: int, past: int, end: int
    ) -> "LayerCache":
        """Make room for what heads with these slots see, one row per sample.

        Args:
            sizes: Of the cache.
            rows: The slots of every sample's heads.
            deal: Where which heads are kept.
            rank: The number of this GPU.
            past: How many frames are committed.
            end: One more than the newest frame of the next pass.
        """
        held: list[HeldGroup] = []
        for row in dict.fromkeys(rows):
            samples = tuple(sample for sample, other in enumerate(rows) if other == row)
            # Heads of equal size that see equally many frames in the next pass do so in all later ones.
            equal: dict[tuple[int | None, int], list[int]] = {}
            for head, slots in enumerate(row):
                seen = len(turn_of(slots, past, end, pinned=True).frames)
                equal.setdefault((slots.context.total, seen), []).append(head)
            # Heads with the same slots are neighbours, so that one copy serves all of them.
            first = {s: i for i, s in reversed(list(enumerate(row)))}
            held += [
                HeldGroup(samples, tuple(sorted(heads, key=lambda head: first[row[head]])))
                for heads in equal.values()
            ]
        own = deal.heads(rank)
        groups = []
        for group in held:
            if heads := [head for head in group.heads if head in own]:
                groups.append(GroupCache(sizes, group.samples, rows[group.samples[0]], heads, own, past))
        return cls(sizes, rows, deal, own, held, groups)

    @classmethod
    def from_state(cls, sizes: CacheSizes, states: Sequence[GroupState], ranks: Ranks | None) -> "LayerCache":
        """Make a layer that holds what the groups of another one did, as far as this GPU keeps them."""
        found = {
            (sample, head): slots
            for state in states
            for sample in state.samples
            for head, slots in zip(state.heads, state.slots, strict=True)
        }
        heads = range(1 + max(head for _, head in found))
        rows = [tuple(found[sample, head] for head in heads) for sample in range(sizes.batch)]
        rank, deal = (ranks.rank if ranks else 0), deal_rows(rows, sizes, ranks)
        own = deal.heads(rank)
        held = [HeldGroup(state.samples, state.heads) for state in states]
        groups = [
            GroupCache.from_state(sizes, rows[state.samples[0]], mine, own)
            for state in states
            if (mine := state.only(own)).heads
        ]
        return cls(sizes, rows, deal, own, held, groups)

    def copied(self, past: int) -> "LayerCache":
        """Another one that holds the same, of which `past` frames are committed."""
        groups = [
            GroupCache.from_state(self._sizes, self.rows[group.samples[0]], group.state(past), self.own)
            for group in self.groups
        ]
        return LayerCache(self._sizes, self.rows, self.deal, self.own, self.held, groups)

    def order(self, rank: int, sample: int) -> list[int]:
        """The heads of a sample that a GPU keeps, group by group."""
        own = self.deal.heads(rank)
        return [head for group in self.held if sample in group.samples for head in group.heads if head in own]

    def restart(self, start: int, end: int) -> bool:
        """Forget all but the pinned frames where they are, before a pass over frames `start` to `end`.

        Returns:
            Whether it could be done; not if heads that share a group would see unequally many frames, or key
            frames are not past any more.
        """
        rows = [tuple(slots.begin(start) for slots in row) for row in self.rows]
        for group in self.held:
            row = rows[group.samples[0]]
            lost = any(
                len(row[head].keys) < len(self.rows[group.samples[0]][head].keys) for head in group.heads
            )
            if lost or len({len(row[head].visible(start, end)) for head in group.heads}) > 1:
                return False
        for cache in self.groups:
            cache.restart(start)
        self.rows = rows
        return True

    def keep(self, after: Mapping[Slots, Slots]) -> None:
        """Keep frames that become key frames; see `GroupCache.keep`."""
        for group in self.groups:
            group.keep(after)
        self.rows = [tuple(after.get(slots, slots) for slots in row) for row in self.rows]

    def rebuilt(
        self, rows: Sequence[tuple[Slots, ...]], ranks: Ranks | None, past: int, end: int
    ) -> "LayerCache":
        """This layer's cache with other slots, one row per sample, and what these still hold of the past.

        Args:
            rows: The slots of every sample's heads.
            ranks: The GPUs, of which each gets the heads that it is dealt with these slots.
            past: How many frames are committed.
            end: One more than the newest frame of the next pass.
        """
        rank, deal = (ranks.rank if ranks else 0), deal_rows(rows, self._sizes, ranks)
        layer = LayerCache.empty(self._sizes, rows, deal, rank, past, end)
        old_groups = [group.unmoved() for group in self.groups]
        brought = self._bring(old_groups, layer, ranks, past) if ranks else {}
        for new in layer.groups:
            for column, (head, slots) in enumerate(zip(new.heads, new.slots, strict=True)):
                frames = slots.held(past)
                for row, sample in enumerate(new.samples):
                    target = [self._frames(buffer, row, column) for buffer in (new.k, new.v)]
                    if (sample, head) in brought:
                        places = [(number, slots.slot(frame)) for number, frame in enumerate(frames)]
                        origin = brought[sample, head]
                    else:
                        old, *at = _find(old_groups, sample, head)
                        places = [(old.slots[at[1]].slot(frame), slots.slot(frame)) for frame in frames]
                        origin = [self._frames(buffer, *at) for buffer in (old.k, old.v)]
                    for into, out_of in zip(target, origin, strict=True):
                        for source, to, length in runs(places):  # slices: a list of slots waits for a GPU
                            into[to : to + length] = out_of[source : source + length]
        return layer

    def _bring(
        self, old_groups: Sequence[GroupCache], layer: "LayerCache", ranks: Ranks, past: int
    ) -> dict[tuple[int, int], list[Tensor]]:
        """Exchange what GPUs get of heads that others kept: keys and values, `(frames, tokens, D)` each."""
        moves = [
            (sample, head, self.deal.keepers(head)[0], to, layer.rows[sample][head].held(past))
            for to in range(ranks.size)
            for head in layer.deal.heads(to)
            if head not in self.deal.heads(to)
            for sample in range(self._sizes.batch)
        ]
        if not moves:
            return {}
        empty = torch.empty(0, dtype=self._sizes.dtype, device=self._sizes.device)
        outgoing: list[list[Tensor]] = [[empty] for _ in range(ranks.size)]
        sizes = [0] * ranks.size
        shape = self._sizes.tokens_per_frame, self._sizes.head_dim
        for sample, head, keeper, to, frames in moves:
            if keeper == ranks.rank:
                old, *at = _find(old_groups, sample, head)
                places = [old.slots[at[1]].slot(frame) for frame in frames]
                for buffer in (old.k, old.v):
                    kept = self._frames(buffer, *at)
                    outgoing[to] += [kept[place].flatten() for place in places]
            if to == ranks.rank:
                sizes[keeper] += 2 * len(frames) * shape[0] * shape[1]
        incoming = ranks.exchange([torch.cat(parts) for parts in outgoing], sizes)
        brought, begun = {}, [0] * ranks.size
        for sample, head, keeper, to, frames in moves:
            if to == ranks.rank:
                count = 2 * len(frames) * shape[0] * shape[1]
                pair = incoming[keeper][begun[keeper] :][:count].view(2, len(frames), *shape)
                brought[sample, head] = list(pair)
                begun[keeper] += count
        return brought

    def _frames(self, buffer: Tensor, row: int, column: int) -> Tensor:
        """One head's slots, `(slots, tokens, D)`."""
        return buffer[row, :, column].view(-1, self._sizes.tokens_per_frame, buffer.shape[-1])


def _find(groups: Sequence[GroupCache], sample: int, head: int) -> tuple[GroupCache, int, int]:
    """The group of a sample's head, and its row and column there."""
    group = next(g for g in groups if sample in g.samples and head in g.heads)
    return group, group.samples.index(sample), group.heads.index(head)


def deal_rows(rows: Sequence[tuple[Slots, ...]], sizes: CacheSizes, ranks: Ranks | None) -> Deal:
    """Deal the heads of a layer by what they see once their rings are full, in all samples together."""
    if ranks is None:
        return Deal.whole([range(len(rows[0]))])
    costs = (
        sizes.chunk_frames * len(rows)
        + sum(max(sizes.reserved_frames, 1) if s.context.total is None else s.context.total for s in column)
        for column in zip(*rows, strict=True)
    )
    return deal_heads(tuple(costs), ranks.size)
