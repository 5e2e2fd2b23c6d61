"""A contact sheet of a video's scenes, made while the video is."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from dummyforcing.media.frames import Frames
from dummyforcing.media.montage import save_contact_sheet, side_by_side

WIDEST = 256
"""Pixels; wider frames are scaled down."""
AROUND = 4
"""Frames that show a change of the prompt: half a second before, just before, at it, half a second after."""


class SceneSheet:
    """One row per prompt of a video; only the frames that are shown are kept.

    Each row is captioned with its prompt and each frame with its time. The first row is spread evenly over
    its scene. The others begin with four frames around the change of the prompt.
    """

    def __init__(self, scenes: Sequence[tuple[int, str]], frames: int, fps: int, columns: int = 8) -> None:
        """Choose the frames.

        Args:
            scenes: The first pixel frame of every prompt, and the prompt; the first begins at 0.
            frames: Pixel frames of the video.
            fps: Pixel frames per second.
            columns: Frames per row, `AROUND` and more; scenes that are too short for that have fewer.
        """
        self._fps, self._columns = fps, columns
        self._labels = [f"from {start / fps:.1f} s: {prompt}" for start, prompt in scenes]
        starts = [start for start, _ in scenes]
        self._rows = [_spread(*scene, fps, columns) for scene in pairwise([*starts, frames])]
        self._wanted = {number for row in self._rows for number in row}
        self._kept: dict[int, Frames] = {}
        self._seen = 0

    def add(self, frames: Frames) -> None:
        """Take the next pixel frames of the video, `(n, H, W, 3)`."""
        for number, pixels in enumerate(frames, start=self._seen):
            if number in self._wanted:
                image = Image.fromarray(pixels)
                image.thumbnail((WIDEST, image.height))
                time = f"{number / self._fps:.1f} s"
                self._kept[number] = side_by_side([np.asarray(image)[None]], [time])[0]
        self._seen += len(frames)

    def save(self, path: str | Path) -> None:
        """Write a PNG, once all frames are there.

        Raises:
            BadFile: If the file cannot be written; nothing is left then.
        """
        rows = [np.stack([self._kept[number] for number in row]) for row in self._rows]
        save_contact_sheet(path, rows, self._columns, self._labels)


def _spread(start: int, end: int, fps: int, columns: int) -> list[int]:
    """The frames to show of a scene, from `start` to before `end`."""
    if not start:
        chosen = np.linspace(start, end - 1, columns)
    else:
        around = [start - fps // 2, start - 1, start, start + fps // 2]
        chosen = np.concatenate([around, np.linspace(start + fps, end - 1, columns - AROUND)])
    return sorted({int(number) for number in chosen.round().clip(0, end - 1)})
