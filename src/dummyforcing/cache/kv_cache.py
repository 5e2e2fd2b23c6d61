"""The KV cache: static frame slots for every head, written in place.

    groups = cache.write(layer, k, v)      # the current frames; what every head sees
    cache.commit()                         # they are past from now on
    cache.apply([plan])                    # heads see what the plan gives them

A head with context (sink, recent) owns `sink` pinned slots and a ring of `recent + chunk` slots; a slot is
one frame of keys and values. The current frames are written straight into their slots, where every denoising
step overwrites them and the commit pass leaves them. What a head may see is then always a prefix of its
slots: keys carry their positions, so attention does not care about their order. Nothing is concatenated or
allocated once the rings are full, and nothing is moved but key frames, which are copied to slots behind the
ring when they leave it. (Where passes differ in length, the prefix has gaps, and what is visible
is gathered.)

Heads of a layer with equally many visible frames form a head group: they share their memory and one attention
call. So dummy heads (0, 1) and sink heads (1, 0) are packed without any code for it.

With a local attention size, no key is further than that many frames from the newest one: pinned frames move
along with the video, which means to turn their keys on, and recent frames that would share their positions
are hidden.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from dummyforcing.cache.deal import Deal, deal_heads
from dummyforcing.cache.head_group import CacheSizes, GroupCache, GroupState, HeadGroup, joined
from dummyforcing.cache.key_frames import FrameLooks, with_key
from dummyforcing.cache.ring import Slots, runs, turn_of
from dummyforcing.errors import BadRequest
from dummyforcing.method.plan import HeadContext, Plan


@dataclass(frozen=True)
class CacheState:
    """The past in a cache."""

    frames: int
    """Committed latent frames."""
    layers: tuple[tuple[GroupState, ...], ...]
    looks: tuple[tuple[int, Tensor], ...] = ()
    """Of frames that are, or may become, key frames."""


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


class KVCache:
    """Keys and values of the committed frames and of the current chunk, for every layer."""

    def __init__(
        self,
        plans: Sequence[Plan],
        *,
        head_dim: int,
        tokens_per_frame: int,
        chunk_frames: int,
        local_attention_size: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        frames: int | None = None,
        ranks: Ranks | None = None,
        has_keys: bool = False,
    ) -> None:
        """Make an empty cache.

        Args:
            plans: One per sample; samples with equal plans share their head groups.
            head_dim: Channels of one head, `D`.
            tokens_per_frame: Tokens of one latent frame.
            chunk_frames: Most current frames of a denoising pass, commonly the latent frames of a chunk.
            local_attention_size: How many frames attention spans, the current ones included: pinned frames
                move along, to stay as near. None: without end.
            dtype: Of keys and values.
            device: Where they live.
            frames: How many frames to make room for in heads that see the whole past; beyond that they grow
                by one chunk at a time.
            ranks: GPUs that share out the heads, this one among them; None: there is one, which has all.
            has_keys: Whether heads may get key frames; then every `commit` must show its latents.

        Raises:
            BadRequest: If a head pins more frames than the local attention has room for.
        """
        self._ranks = ranks
        self.sizes = CacheSizes(
            len(plans),
            head_dim,
            tokens_per_frame,
            chunk_frames,
            local_attention_size,
            dtype,
            device,
            frames or 0,
        )
        self.frames = 0
        """Committed latent frames."""
        self._looks = FrameLooks() if has_keys else None
        self.layout = 0
        """Another number whenever heads move to other memory."""
        rank = ranks.rank if ranks else 0
        self.layers = [
            LayerCache.empty(self.sizes, rows, deal_rows(rows, self.sizes, ranks), rank, 0, chunk_frames)
            for rows in self._slots(plans)
        ]

    def write(self, layer: int, k: Tensor, v: Tensor, pinned: bool = True) -> list[HeadGroup]:
        """Put the current frames' keys and values in place; later writes before `commit` overwrite them.

        Args:
            layer: Whose keys and values these are.
            k: Keys, RoPE applied, `(B, tokens, H, D)`; any number of whole frames. Of a pass that is longer
                than a head's ring, the head gets the newest frames.
            v: Values, likewise.
            pinned: Whether pinned frames stay visible beyond the local attention size.

        Returns:
            What to attend to; every head of every sample is in exactly one group.
        """
        return [group.write(self.frames, k, v, pinned) for group in self.layers[layer].groups]

    def prepare(self, layer: int, current: int, pinned: bool = True) -> list[HeadGroup]:
        """Get ready for a pass over `current` frames whose keys and values the caller writes.

        Where they go is in the `targets` of the groups. Where what is visible must be gathered (not
        `is_plain`), only `write` knows it.
        """
        return [group.prepare(self.frames, current, pinned) for group in self.layers[layer].groups]

    def commit(self, frames: int | None = None, latents: Tensor | None = None) -> None:
        """Make current frames part of the past.

        Args:
            frames: So many, the first ones; None: a whole chunk.
            latents: Theirs, clean, `(B, frames, C, h, w)`, by which key frames are chosen.
        """
        before = self.frames
        self.frames += self.sizes.chunk_frames if frames is None else frames
        if self._looks is not None:
            assert latents is not None
            self._looks.add(before, latents)
            slots = {slots for layer in self.layers for row in layer.rows for slots in row}
            after = {one: self._with_keys(one, one.leaving(before, self.frames)) for one in slots}
            if any(one != new for one, new in after.items()):
                for layer in self.layers:
                    layer.keep(after)
            self._forget_looks()

    def apply(self, plans: Sequence[Plan]) -> None:
        """Change what the heads see from now on, keeping of the past what they still need.

        Args:
            plans: One per sample.

        Raises:
            BadRequest: If a head pins more frames than the local attention has room for.
            ValueError: If a plan needs first frames that the cache no longer has.
        """
        for number, rows in enumerate(self._slots(plans)):
            old = self.layers[number].rows
            new = [
                tuple(self._converted(slots, wanted) for slots, wanted in zip(*pair, strict=True))
                for pair in zip(old, rows, strict=True)
            ]
            self._rebuild(number, new, self.frames + self.sizes.chunk_frames)
        self._forget_looks()

    def rewind(self, frames: int) -> None:
        """Forget all but the pinned frames; the next pass writes the last `frames` frames again, at once."""
        self._begin_rings(self.frames - frames, self.frames)

    def jump(self, frame: int) -> None:
        """Forget all but the pinned frames, which are there; the next pass writes a chunk from `frame` on.

        So frames are left out that nobody needs: once the first ones are written again after `reset`, the
        newest ones follow at their own positions.
        """
        self._begin_rings(frame, frame + self.sizes.chunk_frames)

    def reset(self) -> None:
        """Forget all frames: the next one is frame 0."""
        self.frames = 0
        self._looks = self._looks and FrameLooks()
        for number, layer in enumerate(self.layers):
            rows = [tuple(slots.begin(0) for slots in row) for row in layer.rows]
            if rows != layer.rows:
                self._rebuild(number, rows, self.sizes.chunk_frames)

    def state(self) -> CacheState:
        """Give the state; it shares memory with this cache. Of several GPUs, rank 0 gets that of all."""
        layers = [[group.state(self.frames) for group in layer.groups] for layer in self.layers]
        if self._ranks is not None:
            everywhere = self._ranks.collect([[one.on_host() for one in states] for states in layers])
            for number, layer in enumerate(self.layers if everywhere else []):
                parts = [one for states in everywhere or [] for one in states[number]]
                layers[number] = [joined(parts, group.samples, group.heads) for group in layer.held]
        looks = self._looks.state() if self._looks is not None else ()
        return CacheState(self.frames, tuple(map(tuple, layers)), looks)

    def load_state(self, state: CacheState) -> None:
        """Hold what a cache of the same sizes held, of several GPUs what all of them held; copies it."""
        self.frames = state.frames
        self._looks = self._looks and FrameLooks.from_state(state.looks)
        self.layout += 1
        for number, states in enumerate(state.layers):
            self.layers[number] = LayerCache.from_state(self.sizes, states, self._ranks)

    def copy(self) -> "KVCache":
        """Another cache that holds the same."""
        other = copy(self)
        other.layers = [layer.copied(self.frames) for layer in self.layers]
        other._looks = copy(self._looks)  # what it holds is replaced, never changed
        return other

    def _begin_rings(self, frame: int, end: int) -> None:
        """Begin all rings again at `frame`, for a pass up to frame `end`.

        Head groups stay where they are if they can: then nothing is copied, and CUDA graphs stay valid.
        """
        self.frames = frame
        for number, layer in enumerate(self.layers):
            if not layer.restart(frame, end):
                rows = [tuple(slots.begin(frame) for slots in row) for row in layer.rows]
                self._rebuild(number, rows, end)

    def _rebuild(self, number: int, rows: Sequence[tuple[Slots, ...]], end: int) -> None:
        self.layout += 1
        # One layer at a time: the old and the new memory of all layers never exist together.
        self.layers[number] = self.layers[number].rebuilt(rows, self._ranks, self.frames, end)

    def _slots(self, plans: Sequence[Plan]) -> list[list[tuple[Slots, ...]]]:
        """The slots that plans ask for: of every layer, sample and head."""
        return [
            [tuple(self._slots_of(context, sample) for context in row) for sample, row in enumerate(rows)]
            for rows in zip(*(plan.contexts for plan in plans), strict=True)
        ]

    def _slots_of(self, context: HeadContext, sample: int) -> Slots:
        size, chunk = self.sizes.local_attention_size, self.sizes.chunk_frames
        if size is not None:
            room = size - chunk
            if context.sink > room:
                raise BadRequest(
                    f"A head of this model cannot keep {context.sink} first frames: of the {size} that "
                    f"attention spans, {chunk} are current",
                    f"take {room} at most",
                )
            if context.keys:
                raise BadRequest(
                    f"A head of this model cannot keep key frames: attention spans {size} frames",
                    "take a policy without them",
                    "policy",
                )
            if context.recent is None:
                context = HeadContext(context.sink, size)
        return Slots(context, chunk, size, sample=sample if context.keys else 0)

    def _converted(self, slots: Slots, wanted: Slots) -> Slots:
        """The slots that take over from others; frames that these still hold may become key frames."""
        new = slots.convert(wanted, self.frames)
        oldest = new.recent(self.frames).start
        held = [*sorted(slots.keys), *slots.recent(self.frames)]
        return self._with_keys(new, [frame for frame in held if new.context.sink <= frame < oldest])

    def _with_keys(self, slots: Slots, frames: Iterable[int]) -> Slots:
        """The slots with those key frames that are chosen once some frames are no recent ones any more."""
        sink, most, keys = slots.context.sink, slots.context.keys, slots.keys
        if not most or self._looks is None:
            return slots
        for frame in frames:
            keys = with_key(keys, frame, most, range(sink), self._looks.of(slots.sample))
        return replace(slots, keys=keys)

    def _forget_looks(self) -> None:
        """Forget what frames look like that cannot become, or stop being, key frames any more."""
        if self._looks is not None:
            rows = (row for layer in self.layers for row in layer.rows)
            self._looks.keep({frame for row in rows for slots in row for frame in slots.held(self.frames)})

    def room(self, frames: int) -> int:
        """How many of so many frames the head with most slots has room for."""
        slots = {slots for layer in self.layers for row in layer.rows for slots in row}
        totals = [s.context.total for s in slots]
        return min(frames, max(frames if t is None else t + self.sizes.chunk_frames for t in totals))

    @property
    def nbytes(self) -> int:
        """Bytes of all head groups, as far as they are kept here."""
        return sum(group.nbytes for layer in self.layers for group in layer.groups)
