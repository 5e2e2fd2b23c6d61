"""The KV cache: static frame slots for every head, written in place.

A head with context (sink, recent) owns `sink` pinned slots and a ring of `recent + chunk` slots; a slot is
one frame of keys and values. The current chunk is written straight into its slots, where every denoising step
overwrites it and the commit pass leaves it. What a head may see is then always a prefix of its buffer: keys
carry absolute positions, so attention does not care about their order. Nothing is concatenated, moved or
allocated once the rings are full.

Heads of a layer with equally many visible frames share one buffer and one attention call, a `Segment`. So
dummy heads (0, 1) and sink heads (1, 0) are packed without any code for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dummyforcing.plan import HeadContext, Plan


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
    """The absolute frame in each slot of `S`, for each of the `H'` heads."""

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
class Slots:
    """Where one head keeps its frames: pinned first frames, then a ring."""

    context: HeadContext
    start: int = 0
    """Earlier frames never reached the ring: they were gone when the plan was applied."""

    @property
    def _ring_start(self) -> int:
        return max(self.context.sink, self.start)

    def recent(self, past: int) -> range:
        """Visible frames in the ring when `past` frames are committed."""
        oldest = 0 if self.context.recent is None else past - self.context.recent
        return range(max(self._ring_start, oldest), past)

    def visible(self, past: int) -> list[int]:
        """All visible past frames when `past` frames are committed."""
        return [*range(min(self.context.sink, past)), *self.recent(past)]

    def slot(self, frame: int, chunk: int) -> int:
        """The slot of a frame that is visible or current, with `chunk` frames per chunk."""
        if frame < self.context.sink:
            return frame
        place = frame - self._ring_start
        if self.context.recent is not None:
            place %= self.context.recent + chunk
        return self.context.sink + place

    def convert(self, context: HeadContext, past: int) -> "Slots":
        """The slots of the same head under another context.

        The ring takes over what the ring held. A pinned frame can become a pinned frame only: it is no
        recent frame any more, as in the public code.

        Raises:
            ValueError: If a frame to pin is no longer there.
        """
        recent = self.recent(past)
        if not set(range(min(context.sink, past))) <= {*self.visible(past)}:
            raise ValueError(f"the first {context.sink} frames are no longer in a cache of {self.context}")
        return Slots(context, recent.start if recent else past)


class _Buffer:
    """Keys and values of the heads that form one segment."""

    def __init__(
        self, cache: "KVCache", samples: list[int], slots: Sequence[Slots], heads: list[int], past: int
    ) -> None:
        self.cache, self.samples = cache, samples
        # Heads with the same slots are neighbours, so that one copy writes all of them.
        first = {s: i for i, s in reversed(list(enumerate(slots)))}
        self.heads = sorted(heads, key=lambda head: first[slots[head]])
        self.slots = [slots[head] for head in self.heads]
        total = self.slots[0].context.total
        self.bounded = total is not None
        count = cache.frames_reserved if total is None else total + cache.chunk_frames
        shape = (len(samples), count * cache.tokens_per_frame, len(self.heads), cache.head_dim)
        self.k, self.v = (torch.empty(shape, dtype=cache.dtype, device=cache.device) for _ in "kv")
        everyone, every_head = len(samples) == cache.batch, self.heads == list(range(len(slots)))
        self._samples = None if everyone else torch.tensor(samples, device=cache.device)
        self._heads = None if every_head else torch.tensor(self.heads, device=cache.device)
        self.turn(past)

    def turn(self, past: int) -> None:
        """Get ready for the chunk that starts at frame `past`."""
        self.past = past
        chunk, tokens = self.cache.chunk_frames, self.cache.tokens_per_frame
        visible = len(self.slots[0].visible(past)) + chunk
        if not self.bounded and visible * tokens > self.k.shape[1]:
            self.k, self.v = (_grown(t, visible * tokens) for t in (self.k, self.v))
        frames: dict[Slots, tuple[int, ...]] = {}
        self._runs: list[tuple[int, int, slice, slice]] = []
        for lo, slots in enumerate(self.slots):
            if slots in frames:
                continue
            hi = lo + self.slots.count(slots)
            shown = [*slots.visible(past), *range(past, past + chunk)]
            frames[slots] = tuple(sorted(shown, key=lambda frame: slots.slot(frame, chunk)))
            for begin, end, slot in _runs([slots.slot(past + i, chunk) for i in range(chunk)]):
                target = slice(slot * tokens, (slot + end - begin) * tokens)
                self._runs.append((lo, hi, slice(begin * tokens, end * tokens), target))
        k, v = self.k[:, : visible * tokens], self.v[:, : visible * tokens]
        self.segment = Segment(self._samples, self._heads, k, v, tuple(frames[s] for s in self.slots))

    def write(self, k: Tensor, v: Tensor) -> Segment:
        # Not at once in `commit`: after the last chunk, or before a plan is applied, it would grow in vain.
        if self.past != self.cache.frames:
            self.turn(self.cache.frames)
        for buffer, new in ((self.k, self.segment.select(k)), (self.v, self.segment.select(v))):
            for lo, hi, source, target in self._runs:
                buffer[:, target, lo:hi] = new[:, source, lo:hi]
        return self.segment


class LayerCache:
    """The cache of one layer."""

    def __init__(self, cache: "KVCache", rows: Sequence[tuple[Slots, ...]], past: int = 0) -> None:
        self._cache, self.rows = cache, rows
        self.buffers: list[_Buffer] = []
        for row in dict.fromkeys(rows):
            samples = [sample for sample, other in enumerate(rows) if other == row]
            groups: dict[tuple[int | None, int], list[int]] = {}
            for head, slots in enumerate(row):
                groups.setdefault((slots.context.total, len(slots.visible(past))), []).append(head)
            self.buffers += [_Buffer(cache, samples, row, heads, past) for heads in groups.values()]

    def write(self, k: Tensor, v: Tensor) -> list[Segment]:
        """Put the current chunk's keys and values in place; later writes before `commit` overwrite them.

        Args:
            k: Keys, RoPE applied, `(B, chunk tokens, H, D)`.
            v: Values, likewise.

        Returns:
            What to attend to; every head of every sample is in exactly one segment.
        """
        return [buffer.write(k, v) for buffer in self.buffers]

    def convert(self, contexts: Sequence[tuple[HeadContext, ...]], past: int) -> "LayerCache":
        """This layer's cache with other contexts, one row of contexts per sample."""
        rows = [
            tuple(slots.convert(context, past) for slots, context in zip(*pair, strict=True))
            for pair in zip(self.rows, contexts, strict=True)
        ]
        layer = LayerCache(self._cache, rows, past)
        chunk = self._cache.chunk_frames
        for new in layer.buffers:
            for column, (head, slots) in enumerate(zip(new.heads, new.slots, strict=True)):
                frames = slots.visible(past)
                to = [slots.slot(frame, chunk) for frame in frames]
                for row, sample in enumerate(new.samples):
                    old = next(b for b in self.buffers if sample in b.samples and head in b.heads)
                    at = (old.samples.index(sample), old.heads.index(head))
                    source = [old.slots[at[1]].slot(frame, chunk) for frame in frames]
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
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        frames: int | None = None,
    ) -> None:
        """Make an empty cache.

        Args:
            plans: One per sample; samples with equal plans share their buffers.
            head_dim: Channels of one head, `D`.
            tokens_per_frame: Tokens of one latent frame.
            chunk_frames: Latent frames per chunk.
            dtype: Of keys and values.
            device: Where they live.
            frames: How many frames to make room for in heads that see the whole past; beyond that they grow
                by one chunk at a time.
        """
        self.head_dim, self.tokens_per_frame, self.chunk_frames = head_dim, tokens_per_frame, chunk_frames
        self.dtype, self.device = dtype, device
        self.batch = len(plans)
        self.frames_reserved = frames or 0
        self.frames = 0
        """Committed latent frames."""
        self._layers = [
            LayerCache(self, [tuple(Slots(context) for context in row) for row in rows])
            for rows in zip(*(plan.contexts for plan in plans), strict=True)
        ]

    def __getitem__(self, layer: int) -> LayerCache:
        return self._layers[layer]

    def commit(self) -> None:
        """Make the current chunk part of the past."""
        self.frames += self.chunk_frames

    def apply(self, plans: Sequence[Plan]) -> None:
        """Change what the heads see from now on, keeping of the past what they still need.

        Args:
            plans: One per sample.

        Raises:
            ValueError: If a plan needs first frames that the cache no longer has.
        """
        for number, rows in enumerate(zip(*(plan.contexts for plan in plans), strict=True)):
            # One layer at a time: the old and the new buffers of all layers never exist together.
            self._layers[number] = self._layers[number].convert(rows, self.frames)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(b.k.nbytes + b.v.nbytes for layer in self._layers for b in layer.buffers)


def _grown(buffer: Tensor, tokens: int) -> Tensor:
    larger = buffer.new_empty(buffer.shape[0], tokens, *buffer.shape[2:])
    larger[:, : buffer.shape[1]] = buffer
    return larger


def _runs(slots: list[int]) -> list[tuple[int, int, int]]:
    """Split consecutive frames into runs of consecutive slots: `(first frame, end frame, first slot)`."""
    starts = [i for i in range(len(slots)) if i == 0 or slots[i] != slots[i - 1] + 1]
    return [(a, b, slots[a]) for a, b in zip(starts, [*starts[1:], len(slots)], strict=True)]
