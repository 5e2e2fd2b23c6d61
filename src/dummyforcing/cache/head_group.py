"""The keys and values of the heads that share one attention call, in static slots."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dummyforcing.cache.ring import Slots, runs
from dummyforcing.kernels.rope import apply_rope, rope_table

if TYPE_CHECKING:
    from dummyforcing.cache.kv_cache import KVCache


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


class Buffer:
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
        """Bytes of all tensors."""
        return self.k.nbytes + self.v.nbytes + self.pinned_k.nbytes

    def state(self) -> BufferState:
        """What another buffer needs to go on from here; shares memory."""
        past = self.cache.frames
        used = 1 + max((s.slot(f) for s, _, _ in self._groups for f in s.held(past)), default=-1)
        k, v = (buffer[:, : used * self.cache.tokens_per_frame] for buffer in (self.k, self.v))
        return BufferState(self.samples, self.heads, self.slots, self._shifts, k, v, self.pinned_k)

    def load_state(self, state: BufferState) -> None:
        """Take over what a buffer with the same samples, heads and slots held."""
        self.k[:, : state.k.shape[1]] = state.k
        self.v[:, : state.v.shape[1]] = state.v
        self.pinned_k.copy_(state.pinned_k)
        self._shifts = list(state.shifts)

    def restart(self, start: int) -> None:
        """Forget what the rings held: the next frame to reach them is `start`. Memory stays where it is."""
        self.slots = [replace(slots, start=start) for slots in self.slots]
        self._groups = [(replace(slots, start=start), lo, heads) for slots, lo, heads in self._groups]
        self._pass = None

    @property
    def is_plain(self) -> bool:
        """Whether all samples share this buffer, and what is visible in the current pass is its prefix."""
        return self._samples is None and not self._gathers

    @property
    def is_full(self) -> bool:
        """Whether later passes like the current one see as many frames, in the same memory."""
        return self.bounded and self.segment.k.shape[1] == self.k.shape[1]

    def prepare(self, current: int, pinned: bool) -> Segment:
        """What `write` returns for a pass over `current` frames, see `LayerCache.prepare`."""
        now = (self.cache.frames, current, pinned)
        if self._pass != now:
            self._turn(*now)
            self._pass = now
        return self.segment

    def write(self, k: Tensor, v: Tensor, pinned: bool) -> Segment:
        """Put the current frames in place, see `LayerCache.write`."""
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

    def unmoved(self) -> "Buffer":
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


def _grown(buffer: Tensor, tokens: int) -> Tensor:
    larger = buffer.new_empty(buffer.shape[0], tokens, *buffer.shape[2:])
    larger[:, : buffer.shape[1]] = buffer
    return larger
