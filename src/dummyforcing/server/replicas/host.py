"""The model and the videos that it makes, where the model is.

Everything here touches the model's memory, and runs in one thread, one call at a time.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dummyforcing.media.frames import Frames
from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from dummyforcing.pipeline.request import Request
from dummyforcing.server.replicas.track import Held, Made, Place, Snapshot, Track


@dataclass(frozen=True)
class Work:
    """What a chunk took of a replica."""

    seconds: float
    """Of the device."""
    memory: int
    """Bytes of the GPU in use right after it; 0 on a CPU."""


class ModelHost:
    """A loaded model, and the tracks that it makes, by numbers that others choose."""

    def __init__(self, pipeline: DummyForcingPipeline) -> None:
        """Take a loaded model."""
        self.pipeline = pipeline
        self._tracks: dict[int, Track] = {}

    def begin(self, number: int, request: Request, most_held: int) -> Place:
        """Begin a video.

        Args:
            number: What it is called from now on.
            request: What it shall be.
            most_held: Chunks that one can go back to, the newest ones.

        Raises:
            NotEnoughMemory: If the memory does not suffice.
        """
        return self._add(number, Track(self.pipeline.rollout(request), most_held))

    def resume(self, number: int, request: Request, most_held: int, snapshot: Snapshot) -> Place:
        """Go on from a snapshot, as if nothing had been between.

        Args:
            number: See `begin`.
            request: What was asked for at the video's beginning.
            most_held: See `begin`.
            snapshot: Of another replica of the model.

        Raises:
            UserError: If this model cannot.
        """
        with tempfile.TemporaryDirectory(prefix="dummyforcing-") as folder:
            path = Path(folder) / "snapshot"
            snapshot.data.tofile(path)
            rollout = self.pipeline.resume(path, request.policy)
        return self._add(number, Track.resumed(rollout, most_held, snapshot))

    def make(self, number: int) -> tuple[Made, Frames, Work]:
        """Make the next chunk of a track, with its frames, and what it took.

        Raises:
            NotFinite: If it cannot be shown.
        """
        start = time.perf_counter()
        made, frames = self._tracks[number].make()
        device = self.pipeline.device
        memory = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        return made, frames, Work(time.perf_counter() - start, memory)

    def set_prompt(self, numbers: Sequence[int], prompt: str, fade: int, at: int, shown: int) -> list[Place]:
        """Show something else from a chunk on, in several tracks from the same one.

        Args:
            numbers: The tracks.
            prompt: What.
            fade: Chunks over which the old prompt fades into it.
            at: The chunk; an earlier one, if the first of them is not so far.
            shown: So many chunks of it were made before, perhaps not all of them here.

        Returns:
            For each, where it is, and from which chunk on it shows that (`prompt_from`).

        Raises:
            BadRequest: If a video has no such chunk.
        """
        tracks = [self._tracks[number] for number in numbers]
        at = min(at, max(tracks[0].index, shown))
        for track in tracks:
            track.set_prompt(prompt, fade, at)
        return [track.place for track in tracks]

    def rewind(self, number: int, chunk: int) -> Place:
        """Give up what comes after a chunk of a track.

        Raises:
            BadRequest: If it is not held.
        """
        self._tracks[number].rewind(chunk)
        return self._tracks[number].place

    def fork(self, number: int, parent: int, chunk: int, prompt: str | None, fade: int) -> Place:
        """Begin another track that goes on after a chunk of one.

        Args:
            number: Of the new one.
            parent: The one that it branches off.
            chunk: The last one that they have in common.
            prompt: What it shows; None: the same.
            fade: See `set_prompt`.

        Raises:
            BadRequest: If the chunk is not held.
        """
        other = self._tracks[parent].fork(chunk)
        if prompt is not None:
            other.set_prompt(prompt, fade, other.index)
        return self._add(number, other)

    def close(self, numbers: Sequence[int]) -> None:
        """Give the memory of tracks back; those that there are not any more are left out."""
        for number in numbers:
            if number in self._tracks:
                self._tracks.pop(number).close()

    def newest(self, number: int) -> tuple[int, Held, torch.device] | None:
        """The newest chunk that is held of a track, the state after it, and where; None: there is none."""
        newest = self._tracks[number].newest if number in self._tracks else None
        return None if newest is None else (*newest, self.pipeline.device)

    def _add(self, number: int, track: Track) -> Place:
        self._tracks[number] = track
        return track.place


def snapshot_of(chunk: int, held: Held, device: torch.device) -> Snapshot:
    """Write down the state after a chunk; in any thread, since nothing changes what is held.

    A GPU goes on with other chunks meanwhile: the state is copied in a stream of its own.

    Raises:
        UserError: If it cannot be.
    """
    is_gpu = device.type == "cuda"
    if is_gpu:
        torch.cuda.synchronize(device)  # what is held may have been asked for only
    beside = torch.cuda.Stream(device) if is_gpu else None  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory(prefix="dummyforcing-") as folder, torch.cuda.stream(beside):
        path = Path(folder) / "snapshot"
        held.rollout.save(path)
        data = np.fromfile(path, np.uint8)
    return Snapshot(chunk + 1, held.frames, held.asked, data)
