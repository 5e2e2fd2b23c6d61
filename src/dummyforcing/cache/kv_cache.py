"""The KV cache: static frame slots for every head, written in place.

    groups = cache.write(layer, k, v)      # the current frames; what every head sees
    cache.commit()                         # they are past from now on
    cache.apply([plan])                    # heads see what the plan gives them

A head with context (sink, recent) owns `sink` pinned slots and a ring of `recent + chunk` slots; a slot is
one frame of keys and values. The current frames are written straight into their slots, where every denoising
step overwrites them and the commit pass leaves them. What a head may see is then always a prefix of its
slots: keys carry their positions, so attention does not care about their order. Nothing is concatenated,
moved or allocated once the rings are full. (Where passes differ in length, the prefix has gaps, and what is
visible is gathered.)

Heads of a layer with equally many visible frames form a head group: they share their memory and one attention
call. So dummy heads (0, 1) and sink heads (1, 0) are packed without any code for it.

With a local attention size, no key is further than that many frames from the newest one: pinned frames move
along with the video, which means to turn their keys on, and recent frames that would share their positions
are hidden.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dummyforcing.cache.head_group import CacheSizes, GroupCache, GroupState, HeadGroup
from dummyforcing.cache.ring import Slots, runs
from dummyforcing.errors import BadRequest
from dummyforcing.method.plan import HeadContext, Plan


@dataclass(frozen=True)
class CacheState:
    """The past in a cache."""

    frames: int
    """Committed latent frames."""
    layers: tuple[tuple[GroupState, ...], ...]


class LayerCache:
    """The head groups of one layer."""

    def __init__(
        self, sizes: CacheSizes, rows: Sequence[tuple[Slots, ...]], groups: Sequence[GroupCache]
    ) -> None:
        self._sizes, self.rows, self.groups = sizes, rows, groups

    @classmethod
    def empty(cls, sizes: CacheSizes, rows: Sequence[tuple[Slots, ...]], past: int, end: int) -> "LayerCache":
        """Make room for what heads with these slots see, one row per sample.

        Args:
            sizes: Of the cache.
            rows: The slots of every sample's heads.
            past: How many frames are committed.
            end: One more than the newest frame of the next pass.
        """
        groups: list[GroupCache] = []
        for row in dict.fromkeys(rows):
            samples = [sample for sample, other in enumerate(rows) if other == row]
            # Heads of equal size that see equally many frames in the next pass do so in all later ones.
            equal: dict[tuple[int | None, int], list[int]] = {}
            for head, slots in enumerate(row):
                equal.setdefault((slots.context.total, len(slots.visible(past, end))), []).append(head)
            groups += [GroupCache(sizes, samples, row, heads, past) for heads in equal.values()]
        return cls(sizes, rows, groups)

    @classmethod
    def from_state(cls, sizes: CacheSizes, states: Sequence[GroupState]) -> "LayerCache":
        """Make a layer that holds what the groups of another one did."""
        found = {
            (sample, head): slots
            for state in states
            for sample in state.samples
            for head, slots in zip(state.heads, state.slots, strict=True)
        }
        heads = range(len(found) // sizes.batch)
        rows = [tuple(found[sample, head] for head in heads) for sample in range(sizes.batch)]
        return cls(sizes, rows, [GroupCache.from_state(sizes, rows[s.samples[0]], s) for s in states])

    def restart(self, start: int, end: int) -> bool:
        """Forget all but the pinned frames where they are, before a pass over frames `start` to `end`.

        Returns:
            Whether it could be done; not if heads that share a group would see unequally many frames.
        """
        rows = [tuple(replace(slots, start=start) for slots in row) for row in self.rows]
        for group in self.groups:
            row = rows[group.samples[0]]
            if len({len(row[head].visible(start, end)) for head in group.heads}) > 1:
                return False
        for group in self.groups:
            group.restart(start)
        self.rows = rows
        return True

    def rebuilt(self, rows: Sequence[tuple[Slots, ...]], past: int, end: int) -> "LayerCache":
        """This layer's cache with other slots, one row per sample, and what these still hold of the past.

        Args:
            rows: The slots of every sample's heads.
            past: How many frames are committed.
            end: One more than the newest frame of the next pass.
        """
        layer = LayerCache.empty(self._sizes, rows, past, end)
        old_groups = [group.unmoved() for group in self.groups]
        for new in layer.groups:
            for column, (head, slots) in enumerate(zip(new.heads, new.slots, strict=True)):
                frames = slots.held(past)
                for row, sample in enumerate(new.samples):
                    old = next(g for g in old_groups if sample in g.samples and head in g.heads)
                    at = (old.samples.index(sample), old.heads.index(head))
                    places = [(old.slots[at[1]].slot(frame), slots.slot(frame)) for frame in frames]
                    for target, origin in ((new.k, old.k), (new.v, old.v)):
                        into, out_of = self._frames(target, row, column), self._frames(origin, *at)
                        for source, to, length in runs(places):  # slices: a list of slots waits for a GPU
                            into[to : to + length] = out_of[source : source + length]
        return layer

    def _frames(self, buffer: Tensor, row: int, column: int) -> Tensor:
        """One head's slots, `(slots, tokens, D)`."""
        return buffer[row, :, column].view(-1, self._sizes.tokens_per_frame, buffer.shape[-1])


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

        Raises:
            BadRequest: If a head pins more frames than the local attention has room for.
        """
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
        self.layout = 0
        """Another number whenever heads move to other memory."""
        self.layers = [LayerCache.empty(self.sizes, rows, 0, chunk_frames) for rows in self._slots(plans)]

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

    def commit(self, frames: int | None = None) -> None:
        """Make the first `frames` current frames part of the past; None: a whole chunk."""
        self.frames += self.sizes.chunk_frames if frames is None else frames

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
                tuple(slots.convert(wanted, self.frames) for slots, wanted in zip(*pair, strict=True))
                for pair in zip(old, rows, strict=True)
            ]
            self._rebuild(number, new, self.frames + self.sizes.chunk_frames)

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
        for number, layer in enumerate(self.layers):
            rows = [tuple(replace(slots, start=0) for slots in row) for row in layer.rows]
            if rows != layer.rows:
                self._rebuild(number, rows, self.sizes.chunk_frames)

    def state(self) -> CacheState:
        """Give the state; it shares memory with this cache."""
        layers = (tuple(group.state(self.frames) for group in layer.groups) for layer in self.layers)
        return CacheState(self.frames, tuple(layers))

    def load_state(self, state: CacheState) -> None:
        """Hold what a cache of the same sizes held; copies it."""
        self.frames = state.frames
        self.layout += 1
        for number, states in enumerate(state.layers):
            self.layers[number] = LayerCache.from_state(self.sizes, states)

    def copy(self) -> "KVCache":
        """Another cache that holds the same."""
        other = copy(self)
        other.layers = list(self.layers)
        other.load_state(self.state())
        return other

    def _begin_rings(self, frame: int, end: int) -> None:
        """Begin all rings again at `frame`, for a pass up to frame `end`.

        Head groups stay where they are if they can: then nothing is copied, and CUDA graphs stay valid.
        """
        self.frames = frame
        for number, layer in enumerate(self.layers):
            if not layer.restart(frame, end):
                rows = [tuple(replace(slots, start=frame) for slots in row) for row in layer.rows]
                self._rebuild(number, rows, end)

    def _rebuild(self, number: int, rows: Sequence[tuple[Slots, ...]], end: int) -> None:
        self.layout += 1
        # One layer at a time: the old and the new memory of all layers never exist together.
        self.layers[number] = self.layers[number].rebuilt(rows, self.frames, end)

    def _slots(self, plans: Sequence[Plan]) -> list[list[tuple[Slots, ...]]]:
        """The slots that plans ask for: of every layer, sample and head."""
        return [
            [tuple(self._slots_of(context) for context in row) for row in rows]
            for rows in zip(*(plan.contexts for plan in plans), strict=True)
        ]

    def _slots_of(self, context: HeadContext) -> Slots:
        size, chunk = self.sizes.local_attention_size, self.sizes.chunk_frames
        if size is not None:
            room = size - chunk
            if context.sink > room:
                raise BadRequest(
                    f"A head of this model cannot keep {context.sink} first frames: of the {size} that "
                    f"attention spans, {chunk} are current",
                    f"take {room} at most",
                )
            if context.recent is None:
                context = HeadContext(context.sink, size)
        return Slots(context, chunk, size)

    @property
    def slots(self) -> int:
        """Frames that the largest head group has room for."""
        most = max(group.k.shape[1] for layer in self.layers for group in layer.groups)
        return most // self.sizes.tokens_per_frame

    @property
    def nbytes(self) -> int:
        """Bytes of all head groups."""
        return sum(group.nbytes for layer in self.layers for group in layer.groups)
