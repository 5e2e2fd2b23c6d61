"""Slots of one head: which frames it keeps, where, and which of them it sees in a pass."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from dummyforcing.method.plan import HeadContext


@dataclass(frozen=True)
class Slots:
    """The slots of one head: pinned first frames, then a ring, then key frames."""

    context: HeadContext
    chunk: int
    """Slots for current frames, beside the past that the context asks for."""
    local_attention_size: int | None = None
    """All that is visible lies within so many frames, the current ones included; None: no such limit."""
    start: int = 0
    """Earlier frames never reached the ring: they were gone, or left out, when it began."""
    keys: tuple[int, ...] = ()
    """The key frames, slot after slot; see `key_frames.py`."""
    sample: int = 0
    """Whose key frames these are; 0 where the context asks for none."""

    @property
    def _ring_start(self) -> int:
        return max(self.context.sink, self.start)

    def recent(self, past: int) -> range:
        """Past frames in the ring when `past` frames are committed."""
        oldest = 0 if self.context.recent is None else past - self.context.recent
        return range(max(self._ring_start, oldest), past)

    def held(self, past: int) -> list[int]:
        """List the past frames that are kept when `past` frames are committed."""
        return [*range(min(self.context.sink, past)), *sorted(self.keys), *self.recent(past)]

    def shift(self, past: int, end: int) -> int:
        """Count the frames by which the pinned ones move on for a pass over frames `past` to `end`."""
        if self.local_attention_size is None or past < self.context.sink:
            return 0
        return max(0, end - self.local_attention_size)

    def visible(self, past: int, end: int, pinned: bool = True) -> list[int]:
        """The frames that are seen in a pass over frames `past` to `end`, the current ones included.

        Of a pass that is longer than the ring, the newest frames count.

        Args:
            past: How many frames are committed.
            end: One more than the newest current frame.
            pinned: Whether pinned frames stay visible beyond the local attention size; else they leave it
                like all others.
        """
        sink, recent = self.context.sink, self.context.recent
        gone = self.shift(past, end)
        oldest = gone + sink if pinned else gone
        if recent is not None:
            oldest = max(oldest, end - recent - self.chunk)
        first = 0 if pinned else gone
        frames = (*self.held(past), *range(past, end))
        return [f for f in frames if f in self.keys or f >= (first if f < sink else oldest)]

    def slot(self, frame: int) -> int:
        """The slot of a frame that is kept or current."""
        if frame < self.context.sink:
            return frame
        if frame in self.keys:
            assert self.context.recent is not None
            return self.context.sink + self.context.recent + self.chunk + self.keys.index(frame)
        place = frame - self._ring_start
        if self.context.recent is not None:
            place %= self.context.recent + self.chunk
        return self.context.sink + place

    def convert(self, slots: "Slots", past: int) -> "Slots":
        """Make the slots that take over when `past` frames are committed and a plan asks for `slots`.

        The ring takes over what the ring held. A pinned frame can become a pinned frame only: it is no
        recent frame any more, as in the public code. There are no key frames yet.

        Raises:
            ValueError: If a frame to pin is no longer there.
        """
        recent, sink = self.recent(past), slots.context.sink
        if not set(range(min(sink, past))) <= {*self.held(past)}:
            raise ValueError(f"the first {sink} frames are no longer in a cache of {self.context}")
        return replace(slots, start=recent.start if recent else past)

    def begin(self, frame: int) -> "Slots":
        """The slots whose ring begins again at `frame`; what is pinned and earlier key frames stay."""
        return replace(self, start=frame, keys=tuple(key for key in self.keys if key < frame))

    def leaving(self, before: int, past: int) -> range:
        """The frames that are no recent ones any more once `past` frames are committed, after `before`."""
        oldest = self.recent(past).start
        return range(max(self.recent(before).start, past - self.chunk - (self.context.recent or 0)), oldest)


class Turn(NamedTuple):
    """What a head sees in a pass, and where it keeps that."""

    frames: tuple[int, ...]
    """The visible frames, in the order of their slots."""
    slots: tuple[int, ...]
    """Their slots."""
    targets: tuple[int, ...]
    """The slot of each current frame, -1 where it has none."""
    writes: tuple[tuple[int, int, int], ...]
    """The current frames that are kept: `(first frame, first slot, length)` each."""
    shift: int
    """See `Slots.shift`."""


@lru_cache(maxsize=4096)
def turn_of(slots: Slots, past: int, end: int, pinned: bool) -> Turn:
    """What a head with these slots sees in a pass over frames `past` to `end`: the same in all layers."""
    visible = sorted(slots.visible(past, end, pinned), key=slots.slot)
    kept = {frame: slots.slot(frame) for frame in sorted(visible) if frame >= past}
    return Turn(
        tuple(visible),
        tuple(slots.slot(frame) for frame in visible),
        tuple(kept.get(frame, -1) for frame in range(past, end)),
        tuple(runs(list(kept.items()))),
        slots.shift(past, end) if pinned else 0,
    )


def runs(places: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Join `(frame, slot)` pairs that follow each other in both: `(first frame, first slot, length)`."""
    runs: list[tuple[int, int, int]] = []
    for frame, slot in places:
        if runs and (frame, slot) == (runs[-1][0] + runs[-1][2], runs[-1][1] + runs[-1][2]):
            runs[-1] = (*runs[-1][:2], runs[-1][2] + 1)
        else:
            runs.append((frame, slot, 1))
    return runs
