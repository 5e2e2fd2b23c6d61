"""One video: its rollout, and the chunks that one can go back to.

Everything here touches the model's memory, and runs in the model's thread.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dummyforcing.errors import BadRequest
from dummyforcing.media.frames import Frames
from dummyforcing.media.monitor import Measures
from dummyforcing.method.plan import Plan
from dummyforcing.pipeline.rollout import Rollout


@dataclass(frozen=True)
class Made:
    """A chunk of a track."""

    index: int
    """Its number, from 0."""
    first_frame: int
    """Number of its first pixel frame."""
    frames: int
    """How many it has."""
    prompt: str
    """What it shows."""
    plan: Plan
    cache_bytes: int
    latent_frames: int
    """Of the video so far."""
    measures: Measures
    held: tuple[int, ...]
    is_last: bool


@dataclass(frozen=True)
class Place:
    """Where a track is, between two chunks."""

    index: int
    """The chunk that comes next."""
    frames: int
    """Pixel frames before it."""
    asked: int
    """The chunk that the device is asked for next: what changes shows from there on."""
    is_done: bool
    """Whether the video has its length."""
    prompt: str
    """What it shows, or is about to."""
    prompt_from: int
    """The chunk from which on it does."""


@dataclass(frozen=True)
class Snapshot:
    """The state of a track between two chunks, to go on from in another process."""

    index: int
    """The chunk that comes next."""
    frames: int
    """Pixel frames before it."""
    asked: int
    """Prompts from this chunk on are not in it."""
    data: NDArray[np.uint8] = field(repr=False)
    """The file of the rollout: see `Rollout.save`."""


@dataclass(frozen=True)
class Held:
    """The state of a video right after a chunk."""

    rollout: Rollout
    frames: int
    """Pixel frames up to there."""

    @property
    def asked(self) -> int:
        """The chunk that the device is asked for next."""
        return self.rollout.frames // self.rollout.request.chunk_frames


class Track:
    """A video that is watched, steered, branched and taken back."""

    def __init__(self, rollout: Rollout, most_held: int, index: int = 0, frames: int = 0) -> None:
        """Begin, or go on with, a video.

        Args:
            rollout: Makes it; of one prompt.
            most_held: Chunks that one can go back to, the newest ones.
            index: The chunk that comes next.
            frames: Pixel frames before it.
        """
        self.rollout, self.index, self.frames = rollout, index, frames
        self._most_held = most_held
        self._held: dict[int, Held] = {}
        self._prompts: list[tuple[int, str]] = [(index, rollout.prompts[0])]
        self._coming: list[tuple[int, str, int]] = []  # from which chunk on, what, how long the fade

    @classmethod
    def resumed(cls, rollout: Rollout, most_held: int, snapshot: Snapshot) -> "Track":
        """Go on from a snapshot, which one can go back to.

        Args:
            rollout: That was taken up from it.
            most_held: See `Track`.
            snapshot: It.
        """
        track = cls(rollout, most_held, snapshot.index, snapshot.frames)
        track._hold(snapshot.index - 1)
        return track

    @property
    def held(self) -> tuple[int, ...]:
        """The chunks that one can go back to, or branch off."""
        return tuple(self._held)

    @property
    def newest(self) -> tuple[int, Held] | None:
        """The newest of them, with the state after it."""
        return next(reversed(self._held.items()), None)

    @property
    def place(self) -> Place:
        """Where it is."""
        start, prompt = self._prompts[-1]
        return Place(self.index, self.frames, self._asked, self.rollout.is_done, prompt, start)

    def close(self) -> None:
        """Give the memory back; nothing can be made any more."""
        self._held.clear()
        del self.rollout

    def make(self) -> tuple[Made, Frames]:
        """Make the next chunk, with its frames: uint8 RGB, `(n, H, W, 3)`.

        Raises:
            NotFinite: If it cannot be shown.
        """
        while self._coming and self._asked >= self._coming[0][0]:
            _, prompt, fade = self._coming.pop(0)
            self.rollout.set_prompt(prompt, fade=fade)
        chunk = self.rollout.next_chunk()
        index, first = self.index, self.frames
        self.index, self.frames = index + 1, first + chunk.frames.shape[1]
        self._hold(index)
        made = Made(
            index,
            first,
            chunk.frames.shape[1],
            next(prompt for start, prompt in reversed(self._prompts) if start <= index),
            chunk.plans[0],
            chunk.cache_bytes,
            (index + 1) * self._chunk_frames,
            chunk.measures[0],
            self.held,
            self.rollout.is_done,
        )
        return made, chunk.frames[0]

    def set_prompt(self, prompt: str, fade: int, at: int) -> int:
        """Show something else from a chunk on; if that was made already, it is made again.

        Args:
            prompt: What.
            fade: Chunks over which the old prompt fades into it.
            at: The chunk; a later one is taken where nothing before it is held any more.

        Returns:
            The first chunk that shows it.

        Raises:
            BadRequest: If the video has no such chunk.
        """
        if self._asked > at:
            before = [index for index, held in self._held.items() if index < at and held.asked <= at]
            if before:
                self.rewind(max(before))
        at, chunks = max(at, self._asked), self.rollout.request.chunks
        if chunks is not None and at >= chunks:
            raise BadRequest("The video has its length", "go back in it, or start another one", "prompt")
        self._prompts = [*(one for one in self._prompts if one[0] < at), (at, prompt)]
        self._coming = [*(one for one in self._coming if one[0] < at), (at, prompt, fade)]
        return at

    def rewind(self, chunk: int) -> None:
        """Give up what comes after a chunk.

        Raises:
            BadRequest: If it is not held.
        """
        held = self._require(chunk)
        self.rollout, self.index, self.frames = held.rollout.fork(), chunk + 1, held.frames
        self._held = {index: held for index, held in self._held.items() if index <= chunk}
        self._prompts = [self._prompts[0], *(one for one in self._prompts[1:] if one[0] < self._asked)]
        self._coming = []

    def fork(self, chunk: int) -> "Track":
        """Another video that goes on after a chunk of this one.

        Raises:
            BadRequest: If it is not held.
        """
        held = self._require(chunk)
        other = Track(held.rollout.fork(), self._most_held, chunk + 1, held.frames)
        if other.rollout.is_done:
            raise BadRequest("The video has its length", "branch off an earlier chunk", "chunk")
        other._held = {index: one for index, one in self._held.items() if index <= chunk}
        other._prompts = [*(one for one in self._prompts if one[0] <= chunk), *other._prompts]
        return other

    @property
    def _chunk_frames(self) -> int:
        return self.rollout.request.chunk_frames

    @property
    def _asked(self) -> int:
        """The chunk that the device is asked for next; on a GPU one further than `index`."""
        return Held(self.rollout, self.frames).asked

    def _hold(self, index: int) -> None:
        if not self._most_held:
            return
        self._held[index] = Held(self.rollout.fork(), self.frames)
        for old in list(self._held)[: -self._most_held]:
            del self._held[old]

    def _require(self, chunk: int) -> Held:
        if chunk not in self._held:
            held = f"{min(self._held)} to {max(self._held)}" if self._held else "none"
            raise BadRequest(f"Chunk {chunk} is not held any more", f"the chunks held are {held}", "chunk")
        return self._held[chunk]
