"""The files of a video that a job makes: the mp4, a thumbnail, and a sheet of its scenes."""

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dummyforcing.files.writing import explaining, replacing
from dummyforcing.media.frames import Frames
from dummyforcing.media.sheet import SceneSheet
from dummyforcing.media.video import VideoWriter
from dummyforcing.server.storage.store import Store

THUMBNAIL = 512
"""Pixels of the longer side at most."""


class Film:
    """A video that is being written; lives in the writer's thread."""

    def __init__(
        self, store: Store, id: str, scenes: Sequence[tuple[int, str]], frames: int, fps: int
    ) -> None:
        """Describe it; nothing is touched before `begin`.

        Args:
            store: Where its files are.
            id: Of the video.
            scenes: The pixel frame that each prompt begins with, and the prompt.
            frames: Pixel frames of the whole video.
            fps: At which it is to be shown.
        """
        self._path = store.video_file(id)
        self._writer = VideoWriter(self._path, fps)
        self._sheet = SceneSheet(scenes, frames, fps)
        self._sheet_path, self._thumbnail_path = (
            store.video_file(id, "sheet.png"),
            store.video_file(id, "thumbnail.webp"),
        )
        self._middle, self._thumbnail = frames // 2, None
        self._is_open = False

    _thumbnail: NDArray[np.uint8] | None

    def begin(self) -> None:
        """Open the file, under a temporary name.

        Raises:
            BadFile: If it cannot be written.
        """
        with explaining(self._path):
            self._writer.__enter__()
        self._is_open = True

    def write(self, frames: Frames) -> None:
        """Append frames, `(n, H, W, 3)`.

        Raises:
            BadFile: If they cannot be written.
        """
        place = self._middle - self._writer.frames
        if 0 <= place < len(frames):
            self._thumbnail = frames[place]
        self._writer.write(frames)
        self._sheet.add(frames)

    def finish(self) -> None:
        """Complete the files.

        Raises:
            BadFile: If they cannot be written; the mp4 may be there, and is removed with the job.
        """
        self._is_open = False
        self._writer.__exit__(None, None, None)
        self._sheet.save(self._sheet_path)
        assert self._thumbnail is not None
        image = Image.fromarray(self._thumbnail)
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        with replacing(self._thumbnail_path) as part:
            image.save(part, "WEBP", quality=85)
        with explaining(self._path), self._path.open("rb") as file:
            os.fsync(file.fileno())  # the database will say that it is there

    def abandon(self) -> None:
        """Leave nothing of a video that is not finished."""
        if self._is_open:
            self._is_open = False
            error = InterruptedError()
            self._writer.__exit__(type(error), error, None)
