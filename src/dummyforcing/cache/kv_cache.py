"""The KV cache: static frame slots for every head, written in place.

A head with context (sink, recent) owns `sink` pinned slots and a ring of `recent + chunk` slots; a slot is
one frame of keys and values. The current frames are written straight into their slots, where every denoising
step overwrites them and the commit pass leaves them. What a head may see is then always a prefix of its
buffer: keys carry their positions, so attention does not care about their order. Nothing is concatenated,
moved or allocated once the rings are full. (Where passes differ in length, the prefix has gaps, and what is
visible is gathered.)

Heads of a layer with equally many visible frames share one buffer and one attention call, a `Segment`. So
dummy heads (0, 1) and sink heads (1, 0) are packed without any code for it.

With a `reach`, no key is further than that many frames from the newest one: pinned frames move along with the
video, which means to turn their keys on, and recent frames that would share their positions are hidden.
"""

import weakref
from collections.abc import Sequence
from copy import copy
from dataclasses import replace

import torch
from torch import Tensor

from dummyforcing.cache.head_group import Buffer, BufferState, Segment
from dummyforcing.cache.ring import Slots
from dummyforcing.errors import UserError
from dummyforcing.method.plan import HeadContext, Plan


class LayerCache:
    """The cache of one layer."""

    def __init__(
        self, cache: "KVCache", rows: Sequence[tuple[Slots, ...]], buffers: Sequence[Buffer]
    ) -> None:
        self._cache, self.rows, self.buffers = cache, rows, buffers

    @classmethod
    def empty(cls, cache: "KVCache", rows: Sequence[tuple[Slots, ...]], end: int) -> "LayerCache":
        """Make room for what heads with these slots see, one row per sample.

        Args:
            cache: What the layer belongs to.
            rows: The slots of every sample's heads.
            end: One more than the newest frame of the next pass.
        """
        buffers: list[Buffer] = []
        for row in dict.fromkeys(rows):
            samples = [sample for sample, other in enumerate(rows) if other == row]
            # Heads of equal size that see equally many frames in the next pass do so in all later ones.
            groups: dict[tuple[int | None, int], list[int]] = {}
            for head, slots in enumerate(row):
                count = len(slots.visible(cache.frames, end))
                groups.setdefault((slots.context.total, count), []).append(head)
            buffers += [Buffer(cache, samples, row, heads) for heads in groups.values()]
        return cls(cache, rows, buffers)

    @classmethod
    def from_state(cls, cache: "KVCache", states: Sequence[BufferState]) -> "LayerCache":
        """Make a layer that holds what the buffers of another one did."""
        found = {
            (sample, head): slots
            for state in states
            for sample in state.samples
            for head, slots in zip(state.heads, state.slots, strict=True)
        }
        heads = range(len(found) // cache.batch)
        rows = [tuple(found[sample, head] for head in heads) for sample in range(cache.batch)]
        buffers = []
        for state in states:
            buffer = Buffer(cache, state.samples, rows[state.samples[0]], state.heads)
            buffer.load_state(state)
            buffers.append(buffer)
        return cls(cache, rows, buffers)

    def write(self, k: Tensor, v: Tensor, pinned: bool = True) -> list[Segment]:
        """Put the current frames' keys and values in place; later writes before `commit` overwrite them.

        Args:
            k: Keys, RoPE applied, `(B, tokens, H, D)`; any number of whole frames. Of a pass that is longer
                than a head's ring, the head gets the newest frames.
            v: Values, likewise.
            pinned: Whether pinned frames stay visible beyond the cache's reach.

        Returns:
            What to attend to; every head of every sample is in exactly one segment.
        """
        return [buffer.write(k, v, pinned) for buffer in self.buffers]

    def prepare(self, current: int, pinned: bool = True) -> list[Segment]:
        """What `write` returns for a pass over `current` frames, for somebody who puts them in place himself.

        Where they go is in the `targets` of the buffers. Where what is visible must be gathered (not
        `is_plain`), only `write` knows it.
        """
        return [buffer.prepare(current, pinned) for buffer in self.buffers]

    def restart(self, start: int, end: int) -> bool:
        """Forget all but the pinned frames where they are, before a pass over frames `start` to `end`.

        Returns:
            Whether it could be done; not if heads that share a buffer would see unequally many frames.
        """
        rows = [tuple(replace(slots, start=start) for slots in row) for row in self.rows]
        for buffer in self.buffers:
            row = rows[buffer.samples[0]]
            if len({len(row[head].visible(start, end)) for head in buffer.heads}) > 1:
                return False
        for buffer in self.buffers:
            buffer.restart(start)
        self.rows = rows
        return True

    def rebuilt(self, rows: Sequence[tuple[Slots, ...]], end: int) -> "LayerCache":
        """This layer's cache with other slots, one row per sample, and what these still hold of the past.

        Args:
            rows: The slots of every sample's heads.
            end: One more than the newest frame of the next pass.
        """
        past = self._cache.frames
        layer = LayerCache.empty(self._cache, rows, end)
        old_buffers = [buffer.unmoved() for buffer in self.buffers]
        for new in layer.buffers:
            for column, (head, slots) in enumerate(zip(new.heads, new.slots, strict=True)):
                frames = slots.held(past)
                to = [slots.slot(frame) for frame in frames]
                for row, sample in enumerate(new.samples):
                    old = next(b for b in old_buffers if sample in b.samples and head in b.heads)
                    at = (old.samples.index(sample), old.heads.index(head))
                    source = [old.slots[at[1]].slot(frame) for frame in frames]
                    for target, origin in ((new.k, old.k), (new.v, old.v)):
                        self._frames(target, row, column)[to] = self._frames(origin, *at)[source]
        return layer

    def _frames(self, buffer: Tensor, row: int, column: int) -> Tensor:
        """One head's slots, `(slots, tokens, D)`."""
        return buffer[row, :, column].view(-1, self._cache.tokens_per_frame, buffer.shape[-1])


class KVCache:
    """Keys and values of the committed frames and of the current chunk, for every layer."""

    def __init__(
        self,
        plans: Sequence[Plan],
        *,
        head_dim: int,
        tokens_per_frame: int,
        chunk_frames: int,
        reach: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        frames: int | None = None,
    ) -> None:
        """Make an empty cache.

        Args:
            plans: One per sample; samples with equal plans share their buffers.
            head_dim: Channels of one head, `D`.
            tokens_per_frame: Tokens of one latent frame.
            chunk_frames: Most current frames of a denoising pass, commonly the latent frames of a chunk.
            reach: How far attention reaches, in frames, the current ones included: pinned frames move along,
                to stay as near. None: without end.
            dtype: Of keys and values.
            device: Where they live.
            frames: How many frames to make room for in heads that see the whole past; beyond that they grow
                by one chunk at a time.

        Raises:
            UserError: If a head pins more frames than the reach has room for.
        """
        self.head_dim, self.tokens_per_frame, self.chunk_frames = head_dim, tokens_per_frame, chunk_frames
        self.reach, self.dtype, self.device = reach, dtype, device
        self.batch = len(plans)
        self.frames_reserved = frames or 0
        self.frames = 0
        """Committed latent frames."""
        self.layout = 0
        """Another number whenever heads move to other buffers."""
        # Layers refer back weakly: a cache that nobody needs any more frees its memory at once, not when the
        # garbage collector finds the cycle.
        back: KVCache = weakref.proxy(self)
        self._layers = [LayerCache.empty(back, rows, chunk_frames) for rows in self._slots(plans)]

    def __getitem__(self, layer: int) -> LayerCache:
        return self._layers[layer]

    def __len__(self) -> int:
        return len(self._layers)

    def commit(self, frames: int | None = None) -> None:
        """Make the first `frames` current frames part of the past; None: a whole chunk."""
        self.frames += self.chunk_frames if frames is None else frames

    def apply(self, plans: Sequence[Plan]) -> None:
        """Change what the heads see from now on, keeping of the past what they still need.

        Args:
            plans: One per sample.

        Raises:
            UserError: If a head pins more frames than the reach has room for.
            ValueError: If a plan needs first frames that the cache no longer has.
        """
        for number, rows in enumerate(self._slots(plans)):
            old = self._layers[number].rows
            new = [
                tuple(slots.convert(wanted, self.frames) for slots, wanted in zip(*pair, strict=True))
                for pair in zip(old, rows, strict=True)
            ]
            self._rebuild(number, new, self.frames + self.chunk_frames)

    def rewind(self, frames: int) -> None:
        """Forget all but the pinned frames; the next pass writes the last `frames` frames again, at once."""
        self._begin_rings(self.frames - frames, self.frames)

    def jump(self, frame: int) -> None:
        """Forget all but the pinned frames, which are there; the next pass writes a chunk from `frame` on.

        So frames are left out that nobody needs: once the first ones are written again after `reset`, the
        newest ones follow at their own positions.
        """
        self._begin_rings(frame, frame + self.chunk_frames)

    def reset(self) -> None:
        """Forget all frames: the next one is frame 0."""
        self.frames = 0
        for number, layer in enumerate(self._layers):
            rows = [tuple(replace(slots, start=0) for slots in row) for row in layer.rows]
            if rows != layer.rows:
                self._rebuild(number, rows, self.chunk_frames)

    def state(self) -> list[list[BufferState]]:
        """What the buffers of every layer hold; shares memory with them."""
        return [[buffer.state() for buffer in layer.buffers] for layer in self._layers]

    def load_state(self, frames: int, layers: Sequence[Sequence[BufferState]]) -> None:
        """Hold what a cache of the same sizes held when `frames` frames were committed; copies it."""
        self.frames = frames
        self.layout += 1
        for number, states in enumerate(layers):
            self._layers[number] = LayerCache.from_state(weakref.proxy(self), states)

    def copy(self) -> "KVCache":
        """Another cache that holds the same."""
        other = copy(self)
        other._layers = list(self._layers)
        other.load_state(self.frames, self.state())
        return other

    def _begin_rings(self, frame: int, end: int) -> None:
        """Begin all rings anew at `frame`, for a pass up to frame `end`.

        Buffers stay where they are if they can: then nothing is copied, and CUDA graphs of passes stay valid.
        """
        self.frames = frame
        for number, layer in enumerate(self._layers):
            if not layer.restart(frame, end):
                rows = [tuple(replace(slots, start=frame) for slots in row) for row in layer.rows]
                self._rebuild(number, rows, end)

    def _rebuild(self, number: int, rows: Sequence[tuple[Slots, ...]], end: int) -> None:
        self.layout += 1
        # One layer at a time: the old and the new buffers of all layers never exist together.
        self._layers[number] = self._layers[number].rebuilt(rows, end)

    def _slots(self, plans: Sequence[Plan]) -> list[list[tuple[Slots, ...]]]:
        """The slots that plans ask for: of every layer, sample and head."""
        return [
            [tuple(self._slots_of(context) for context in row) for row in rows]
            for rows in zip(*(plan.contexts for plan in plans), strict=True)
        ]

    def _slots_of(self, context: HeadContext) -> Slots:
        if self.reach is not None:
            room = self.reach - self.chunk_frames
            if context.sink > room:
                raise UserError(
                    f"A head of this model cannot keep {context.sink} first frames: of the {self.reach} that "
                    f"attention reaches, {self.chunk_frames} are current, so take {room} at most."
                )
            if context.recent is None:
                context = HeadContext(context.sink, self.reach)
        return Slots(context, self.chunk_frames, self.reach)

    @property
    def slots(self) -> int:
        """How many frames the largest buffer has room for."""
        most = max(buffer.k.shape[1] for layer in self._layers for buffer in layer.buffers)
        return most // self.tokens_per_frame

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.nbytes for layer in self._layers for buffer in layer.buffers)
