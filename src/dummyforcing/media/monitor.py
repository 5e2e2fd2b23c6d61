"""Monitors a video while it grows: whether it drifts, repeats itself or stands still.

    monitor = Monitor(fps=16, chunk=12)
    for frames in stream:                # uint8 (n, H, W, 3), any number at a time
        measures = monitor.see(frames)

Every measure is of the pixel frames so far, however they came in. They are read on a grid of pixels and kept
as thumbnails, a few hundred bytes a chunk, so that a video may last for hours.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dummyforcing.presets.preset import PIXEL_FRAMES_PER_FRAME

LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)
"""Weights of R, G, B in brightness (ITU-R BT.709)."""
GRID = 80
"""Rows and columns of pixels that are read of a frame, at least: every second, third, ... of a larger one."""
CELLS = 8
"""Rows and columns of a thumbnail."""
STILL = 0.5
"""Gray levels of 255: what changes less from chunk to chunk, on thumbnails, stands still."""


@dataclass(frozen=True)
class Measures:
    """Measures of a video up to its newest chunk."""

    drift: float
    """How far the newest chunk is from the first second in its look, gray levels of 255: of the mean of red,
    green and blue, the contrast (standard deviation of brightness) and the saturation (mean of the largest
    less the smallest channel), the one that moved most. Objects that come or go count, and new prompts."""
    repetition: float
    """How closely the newest chunk repeats an earlier one: 1 is a perfect loop, 0 a picture that moves on, or
    stands. With D(lag) the mean absolute difference of the thumbnails of the newest chunk's latent frames and
    those `lag` before them: 1 less the smallest D of two chunks ago or earlier over the largest D of the two
    chunks before. Motion that is periodic by nature scores high, too."""
    motion: float
    """Mean absolute change from one pixel frame to the next in the newest chunk, gray levels of 255; of
    thumbnails, so that grain counts little. 0 is a frozen video."""


@dataclass(frozen=True)
class MonitorState:
    """Everything that a monitor keeps of what it has seen."""

    seen: int
    rows: int
    first: Tensor
    looks: tuple[Tensor, ...]
    motions: tuple[float, ...]
    frame: tuple[Tensor, ...]
    last: Tensor | None
    past: Tensor


class Monitor:
    """Measures one video, piece by piece."""

    def __init__(self, fps: float, chunk: int) -> None:
        """Begin with nothing seen.

        Args:
            fps: Pixel frames per second.
            chunk: Pixel frames of a chunk, a multiple of 4.
        """
        self._second, self._chunk = round(fps), chunk
        self._seen = 0
        self._first = np.zeros(5)  # sum of the looks of the first second
        self._looks: deque[NDArray[np.float64]] = deque(maxlen=chunk)
        self._motions: deque[float] = deque(maxlen=chunk)
        self._frame: list[NDArray[np.float32]] = []  # thumbnails of a latent frame that is not whole yet
        self._last: NDArray[np.float32] | None = None
        self._past = np.empty((64, CELLS * CELLS * 3), np.uint8)  # one row for each latent frame; grows
        self._rows = 0

    def see(self, frames: NDArray[np.uint8]) -> Measures:
        """Take the next pixel frames.

        Args:
            frames: RGB, `(n, H, W, 3)`, n >= 1.

        Returns:
            The measures of the video up to the last of them.
        """
        rows, columns = (max(1, side // GRID) for side in frames.shape[1:3])
        small = np.moveaxis(frames[:, ::rows, ::columns], 3, 0).astype(np.float32)
        for look, thumbnail in zip(_looks(small), _thumbnails(small), strict=True):
            if self._seen < self._second:
                self._first += look
            self._seen += 1
            self._looks.append(look)
            if self._last is not None:
                self._motions.append(float(np.abs(thumbnail - self._last).mean()))
            self._last = thumbnail
            self._frame.append(thumbnail)
            # The first latent frame of a video is one pixel frame, each other one is four.
            if self._seen % PIXEL_FRAMES_PER_FRAME == 1:
                self._keep(np.mean(self._frame, 0))
                self._frame = []
        start = self._first / min(self._seen, self._second)
        return Measures(
            drift=float(np.abs(np.mean(self._looks, 0) - start).max()),
            repetition=self._repetition(),
            motion=float(np.mean(self._motions)) if self._motions else 0.0,
        )

    def state(self) -> MonitorState:
        """Give the state; it shares memory with this monitor."""
        past = self._past[: self._rows]
        last = None if self._last is None else torch.from_numpy(self._last)
        first, looks, frame = torch.from_numpy(self._first), self._looks, self._frame
        return MonitorState(
            self._seen,
            self._rows,
            first,
            tuple(map(torch.from_numpy, looks)),
            tuple(self._motions),
            tuple(map(torch.from_numpy, frame)),
            last,
            torch.from_numpy(past),
        )

    def load_state(self, state: MonitorState) -> None:
        """Go on from what `state` gave; copies it."""
        self._seen, self._rows, self._first = state.seen, state.rows, state.first.numpy().copy()
        self._looks = deque((look.numpy() for look in state.looks), maxlen=self._chunk)
        self._motions = deque(state.motions, maxlen=self._chunk)
        self._frame = [thumbnail.numpy() for thumbnail in state.frame]
        self._last = None if state.last is None else state.last.numpy()
        self._past = np.concatenate([state.past.numpy(), np.empty((64, CELLS * CELLS * 3), np.uint8)])

    def _keep(self, thumbnail: NDArray[np.float32]) -> None:
        if self._rows == len(self._past):
            self._past = np.concatenate([self._past, np.empty_like(self._past)])
        self._past[self._rows] = np.rint(thumbnail).ravel()
        self._rows += 1

    def _repetition(self) -> float:
        size = self._chunk // PIXEL_FRAMES_PER_FRAME
        past, lags = self._past[: self._rows], self._rows - size
        if lags < 2 * size:
            return 0.0
        apart = np.zeros(lags)  # at place m: how far the newest chunk's frames are from those from m on
        for i, row in enumerate(past[-size:]):
            differences = np.maximum(past, row) - np.minimum(past, row)  # of uint8: no overflow
            apart += differences[i : i + lags].mean(1) / size
        by_lag = apart[::-1]
        change = by_lag[: 2 * size].max()
        if change < STILL:
            return 0.0
        return float(max(0.0, 1 - by_lag[2 * size - 1 :].min() / change))


def _looks(colors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Means of red, green and blue, saturation and contrast of frames `(3, n, H, W)`: `(n, 5)`."""
    red, green, blue = colors
    luma = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    saturation = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    means = [plane.mean((1, 2), dtype=np.float64) for plane in (red, green, blue, saturation)]
    return np.column_stack([*means, luma.std((1, 2), dtype=np.float64)])


def _thumbnails(colors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean colors of frames `(3, n, H, W)` in the cells of a grid: `(n, 3, CELLS, CELLS)`."""
    rows, columns = (np.arange(CELLS) * side // CELLS for side in colors.shape[2:])
    heights, widths = (
        np.maximum(np.diff([*edges, side]), 1)
        for edges, side in zip((rows, columns), colors.shape[2:], strict=True)
    )
    sums = np.add.reduceat(np.add.reduceat(colors, rows, 2), columns, 3)
    cells: NDArray[np.float32] = (sums / np.outer(heights, widths)).astype(np.float32)
    # In order: numpy sums as memory goes, and what is restored from a file has no other order.
    return np.ascontiguousarray(np.moveaxis(cells, 0, 1))
