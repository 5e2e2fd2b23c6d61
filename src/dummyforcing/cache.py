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
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dummyforcing.errors import UserError
from dummyforcing.plan import HeadContext, Plan
from dummyforcing.rope import apply_rope, rope_table
from dummyforcing.slots import Slots, runs


@dataclass(frozen=True)
class Segment:
    """What some heads of some samples attend to in one attention call."""

    samples: Tensor | None
    """Which samples, `(B',)` int64; None: all."""
    heads: Tensor | None
    """Which heads, `(H',)` int64; None: all, in order."""
    k: Tensor
    """Keys, `(B', S, H', D)`: the visible past and the current chunk."""
    v: Tensor
    """Values, likewise."""
    frames: tuple[tuple[int, ...], ...]
    """The frame, counted from the start of the cache, in each slot of `S`, for each of the `H'` heads."""

    @property
    def is_whole(self) -> bool:
        """Whether this is the only segment, with the heads in order."""
        return self.samples is None and self.heads is None

    def select(self, x: Tensor) -> Tensor:
        """Take this segment's part of `x (B, L, H, D)`."""
        if self.samples is not None:
            x = x.index_select(0, self.samples)
        return x if self.heads is None else x.index_select(2, self.heads)

    def scatter(self, out: Tensor, part: Tensor) -> None:
        """Write `part (B', L, H', D)` to its place in `out (B, L, H, D)`."""
        if self.samples is not None and self.heads is not None:
            out[self.samples[:, None], :, self.heads] = part.transpose(1, 2)
        elif self.samples is not None:
            out.index_copy_(0, self.samples, part)
        elif self.heads is not None:
            out.index_copy_(2, self.heads, part)
        else:
            out.copy_(part)


@dataclass(frozen=True)
class BufferState:
    """What one buffer holds of the past, and where."""

    samples: list[int]
    heads: list[int]
    slots: list[Slots]
    """Of each of `heads`."""
    shifts: list[int]
    """How far the pinned keys are turned, of each group of heads with the same slots."""
    k: Tensor
    """Keys up to the last slot in use, `(B', S, H', D)`."""
    v: Tensor
    """Values, likewise."""
    pinned_k: Tensor
    """The pinned keys as they came, if they are to move."""


class _Buffer:
    """Keys and values of the heads that form one segment."""

    def __init__(
        self, cache: "KVCache", samples: list[int], slots: Sequence[Slots], heads: list[int]
    ) -> None:
        self.cache, self.samples = cache, samples
        # Heads with the same slots are neighbours, so that one copy serves all of them.
        first = {s: i for i, s in reversed(list(enumerate(slots)))}
        self.heads = sorted(heads, key=lambda head: first[slots[head]])
        self.slots = [slots[head] for head in self.heads]
        self._groups = [(s, self.slots.index(s), self.slots.count(s)) for s in dict.fromkeys(self.slots)]
        total = self.slots[0].context.total
        self.bounded = total is not None
        if total is None:
            count = max(cache.frames_reserved, len(self.slots[0].held(cache.frames)))
        else:
            count = total + cache.chunk_frames
        self.k, self.v = self._empty(count), self._empty(count)
        # Pinned keys as they came, if they are to move: turned from here every time, errors don't add up.
        pinned = max(s.context.sink for s in self.slots) if cache.reach is not None else 0
        self.pinned_k = self._empty(pinned)
        self._shifts = [0] * len(self._groups)
        everyone, every_head = len(samples) == cache.batch, self.heads == list(range(len(slots)))
        self._samples = None if everyone else torch.tensor(samples, device=cache.device)
        self._heads = None if every_head else torch.tensor(self.heads, device=cache.device)
        self._pass: tuple[int, int, bool] | None = None
        self.targets: list[tuple[int, ...]] = []
        """The slot of each current frame, -1 where it has none, for each of `heads`."""

    @property
    def nbytes(self) -> int:
        return self.k.nbytes + self.v.nbytes + self.pinned_k.nbytes

    def state(self) -> "BufferState":
        """What another buffer needs to go on from here; shares memory."""
        past = self.cache.frames
        used = 1 + max((s.slot(f) for s, _, _ in self._groups for f in s.held(past)), default=-1)
        k, v = (buffer[:, : used * self.cache.tokens_per_frame] for buffer in (self.k, self.v))
        return BufferState(self.samples, self.heads, self.slots, self._shifts, k, v, self.pinned_k)

    def load_state(self, state: "BufferState") -> None:
        """Take over what a buffer with the same samples, heads and slots held."""
        self.k[:, : state.k.shape[1]] = state.k
        self.v[:, : state.v.shape[1]] = state.v
        self.pinned_k.copy_(state.pinned_k)
        self._shifts = list(state.shifts)

    @property
    def is_plain(self) -> bool:
        """Whether all samples share this buffer, and what is visible in the current pass is its prefix."""
        return self._samples is None and not self._gathers

    @property
    def is_full(self) -> bool:
        """Whether later passes like the current one see as many frames, in the same memory."""
        return self.bounded and self.segment.k.shape[1] == self.k.shape[1]

    def prepare(self, current: int, pinned: bool) -> Segment:
        now = (self.cache.frames, current, pinned)
        if self._pass != now:
            self._turn(*now)
            self._pass = now
        return self.segment

    def write(self, k: Tensor, v: Tensor, pinned: bool) -> Segment:
        self.prepare(k.shape[1] // self.cache.tokens_per_frame, pinned)
        for buffer, new in ((self.k, self.segment.select(k)), (self.v, self.segment.select(v))):
            for lo, hi, source, target in self._writes:
                buffer[:, target, lo:hi] = new[:, source, lo:hi]
        if not self._gathers:
            return self.segment
        k, v = (
            torch.cat([buffer[:, :, lo:hi].index_select(1, tokens) for lo, hi, tokens in self._gathers], 2)
            for buffer in (self.k, self.v)
        )
        return replace(self.segment, k=k, v=v)

    def _turn(self, past: int, current: int, pinned: bool) -> None:
        """Get ready for a pass over `current` frames from `past` on."""
        size, end = self.cache.tokens_per_frame, past + current
        visible = [slots.visible(past, end, pinned) for slots, _, _ in self._groups]
        count = len(visible[0])
        if not self.bounded and count * size > self.k.shape[1]:
            self.k, self.v = (_grown(t, count * size) for t in (self.k, self.v))
        self.move_pinned([slots.shift(past, end) if pinned else 0 for slots, _, _ in self._groups])
        self._writes: list[tuple[int, int, slice, slice]] = []
        self.targets = []
        shown: list[tuple[int, ...]] = []
        places: list[tuple[int, int, list[int]]] = []
        for (slots, lo, heads), frames in zip(self._groups, visible, strict=True):
            new = [(frame, slots.slot(frame)) for frame in frames if frame >= past]
            self.targets += [tuple(dict(new).get(frame, -1) for frame in range(past, end))] * heads
            for frame, slot, length in runs(new):
                source = slice((frame - past) * size, (frame - past + length) * size)
                target = slice(slot * size, (slot + length) * size)
                self._writes.append((lo, lo + heads, source, target))
            frames = sorted(frames, key=slots.slot)
            shown += [tuple(frames)] * heads
            places.append((lo, lo + heads, [slots.slot(frame) for frame in frames]))
        k, v = (buffer[:, : count * size] for buffer in (self.k, self.v))
        self.segment = Segment(self._samples, self._heads, k, v, tuple(shown))
        is_prefix = all(slots == list(range(count)) for _, _, slots in places)
        self._gathers = [] if is_prefix else [(lo, hi, self._tokens(slots)) for lo, hi, slots in places]

    def move_pinned(self, shifts: Sequence[int]) -> None:
        """Turn the pinned keys of each group of heads to stand so many frames after their own."""
        for i, ((slots, lo, heads), shift) in enumerate(zip(self._groups, shifts, strict=True)):
            if shift == self._shifts[i] or not slots.context.sink:
                continue
            span, columns = slice(slots.context.sink * self.cache.tokens_per_frame), slice(lo, lo + heads)
            if self._shifts[i] == 0:
                self.pinned_k[:, span, columns] = self.k[:, span, columns]
            turn = rope_table(torch.tensor([shift]), 1, 1, self.cache.head_dim, self.cache.device)
            self.k[:, span, columns] = apply_rope(self.pinned_k[:, span, columns], *turn)
            self._shifts[i] = shift

    def unmoved(self) -> "_Buffer":
        """This buffer with the pinned keys where they were made."""
        self.move_pinned([0] * len(self._groups))
        return self

    def _empty(self, frames: int) -> Tensor:
        shape = len(self.samples), frames * self.cache.tokens_per_frame, len(self.heads), self.cache.head_dim
        return torch.empty(shape, dtype=self.cache.dtype, device=self.cache.device)

    def _tokens(self, slots: list[int]) -> Tensor:
        """The tokens of some slots."""
        within = torch.arange(self.cache.tokens_per_frame)
        tokens = torch.tensor(slots)[:, None] * self.cache.tokens_per_frame + within
        return tokens.flatten().to(self.cache.device)


class LayerCache:
    """The cache of one layer."""

    def __init__(
        self, cache: "KVCache", rows: Sequence[tuple[Slots, ...]], buffers: Sequence[_Buffer]
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
        buffers: list[_Buffer] = []
        for row in dict.fromkeys(rows):
            samples = [sample for sample, other in enumerate(rows) if other == row]
            # Heads of equal size that see equally many frames in the next pass do so in all later ones.
            groups: dict[tuple[int | None, int], list[int]] = {}
            for head, slots in enumerate(row):
                count = len(slots.visible(cache.frames, end))
                groups.setdefault((slots.context.total, count), []).append(head)
            buffers += [_Buffer(cache, samples, row, heads) for heads in groups.values()]
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
            buffer = _Buffer(cache, state.samples, rows[state.samples[0]], state.heads)
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
        end = self.frames
        self.frames -= frames
        for number, layer in enumerate(self._layers):
            rows = [tuple(replace(slots, start=self.frames) for slots in row) for row in layer.rows]
            self._rebuild(number, rows, end)

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


def _grown(buffer: Tensor, tokens: int) -> Tensor:
    larger = buffer.new_empty(buffer.shape[0], tokens, *buffer.shape[2:])
    larger[:, : buffer.shape[1]] = buffer
    return larger
