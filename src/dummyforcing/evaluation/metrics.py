"""Measures of one video that need no network: flicker, seams between chunks, sharpness, motion, drift, loops.

    flicker = temporal_flicker(changes(frames))  # frames: uint8 (T, H, W, 3)

All of them read uint8 RGB pixel frames `(T, H, W, 3)`, work frame by frame in little memory, and give what a
person can check by hand. A measure that a video cannot have (no seam, too short) is None, never 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dummyforcing.media.monitor import LUMA
from dummyforcing.presets.preset import PIXEL_FRAMES_PER_FRAME

Frames = NDArray[np.uint8]
Curve = NDArray[np.float64]

NOISE_FLOOR = 8
"""Gray levels of 255: a smaller change of a pixel is noise of the VAE or the file, not motion."""
_THUMBNAIL = 16


def require_video(frames: Frames) -> None:
    """Refuse what is not a video.

    Raises:
        ValueError: If `frames` is not uint8 `(T, H, W, 3)` with T >= 1 and H, W >= 3.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or min(frames.shape[:3]) < 1:
        raise ValueError(f"frames must be uint8 (T, H, W, 3), not {frames.dtype} {frames.shape}")
    if min(frames.shape[1:3]) < 3:
        raise ValueError(f"frames must have sides of 3 pixels or more, not {frames.shape}")


def luma(frame: Frames) -> NDArray[np.float32]:
    """Brightness of the pixels of one frame, `(H, W)` in 0..255."""
    weighted: NDArray[np.float32] = frame @ LUMA
    return weighted


def _over_channels(choose: np.ufunc, frame: Frames) -> Frames:
    """The largest or smallest channel of each pixel; far quicker than numpy's reduction of the last axis."""
    chosen: Frames = choose(choose(frame[..., 0], frame[..., 1]), frame[..., 2])
    return chosen


# --- change between neighboring frames ------------------------------------------------------------------


def changes(frames: Frames) -> Curve:
    """Measure how much each frame differs from the one before it.

    Returns:
        Mean absolute difference over pixels and channels, `(T - 1,)`, as a share of the full range: 0 to 1.
    """
    return np.array([np.abs(a.astype(np.int16) - b).mean() / 255 for a, b in pairwise(frames)], np.float64)


def temporal_flicker(change: Curve) -> float | None:
    """VBench's raw score of temporal flickering: `1 - mean(change)`; 1 is a standing picture.

    VBench writes it as (255 - MAE) / 255, and takes it on videos without motion, for motion lowers it, too.

    Args:
        change: From `changes`.

    Source: VBench (arXiv:2311.17982), section on temporal flickering.
    """
    return float(1 - change.mean()) if len(change) else None


def seams(pixel_frames: int, chunk_frames: int) -> list[int]:
    """The first pixel frame of every chunk but the first.

    n latent frames decode to 1 + 4(n - 1) pixel frames, and chunk c begins after c * `chunk_frames` of them.
    """
    chunk = PIXEL_FRAMES_PER_FRAME * chunk_frames
    return list(range(chunk + 1 - PIXEL_FRAMES_PER_FRAME, pixel_frames, chunk))


@dataclass(frozen=True)
class SeamChange:
    """Change across the seams of chunks beyond that inside of chunks."""

    excess: float
    """Mean change across seams less that at like places in the chunks beside them; gray levels of 255."""
    ratio: float | None
    """The one divided by the other; 1 is no seam. None if nothing changes inside of the chunks."""


def seam_change(change: Curve, chunk_frames: int) -> SeamChange | None:
    """Compare the change across seams with the change inside of the chunks beside them.

    A VAE makes small jumps of its own between latent frames. So what a seam is compared with are the other
    borders between latent frames in the chunk before and the chunk after. A chunk of a single latent frame
    has none: there it is compared with all changes inside of both chunks.

    Args:
        change: From `changes`.
        chunk_frames: Latent frames per chunk.

    Returns:
        The comparison, or None if there is no seam with something to compare.
    """
    chunk = PIXEL_FRAMES_PER_FRAME * chunk_frames
    step = PIXEL_FRAMES_PER_FRAME if chunk_frames > 1 else 1
    across, inside = [], []
    for seam in seams(len(change) + 1, chunk_frames):
        # Change i leads to frame i + 1. The first chunk is shorter: its first frame has no change before it.
        beside = [i for i in range(seam - 1 - chunk + step, seam - 1 + chunk, step) if i != seam - 1]
        beside = [i for i in beside if 0 <= i < len(change)]
        if beside:
            across.append(change[seam - 1])
            inside.append(change[beside].mean())
    if not across:
        return None
    here, there = float(np.mean(across)), float(np.mean(inside))
    return SeamChange(255 * (here - there), here / there if there else None)


def dynamic_degree(frames: Frames, floor: int = NOISE_FLOOR) -> float | None:
    """Share of the pixels that move: that differ from the frame before in some channel by more than a floor.

    It needs no optical flow; a camera that pans over a texture counts as motion, as it does in VBench.

    Args:
        frames: The video.
        floor: Gray levels of 255 that do not count.

    Returns:
        Mean over all pairs of neighboring frames, 0 to 1; None for a single frame.
    """
    if len(frames) < 2:
        return None
    moving = 0
    for before, now in pairwise(frames):
        difference = np.maximum(before, now) - np.minimum(before, now)  # of uint8: no overflow
        moving += int(np.count_nonzero(_over_channels(np.maximum, difference) > floor))
    return moving / ((len(frames) - 1) * frames[0, ..., 0].size)


# --- statistics of frames and their drift ---------------------------------------------------------------


def frame_statistics(frames: Frames) -> dict[str, Curve]:
    """Measure the look of single frames, each curve `(T,)`.

    Returns:
        `brightness`: mean luma, 0 to 1. `contrast`: standard deviation of luma, 0 to 0.5. `saturation`: mean
        of the largest less the smallest channel, 0 to 1. `sharpness`: variance of the Laplacian of luma (in
        gray levels, four neighbors, without the border); higher is sharper, blur lowers it.

    Source of the sharpness: Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy" (ICPR 2000).
    """
    rows = []
    for frame in frames:
        y = luma(frame)
        inner = y[1:-1, 1:-1]
        laplacian = y[:-2, 1:-1] + y[2:, 1:-1] + y[1:-1, :-2] + y[1:-1, 2:] - 4 * inner
        colorful = _over_channels(np.maximum, frame) - _over_channels(np.minimum, frame)
        rows.append(
            (
                y.mean(dtype=np.float64) / 255,
                y.std(dtype=np.float64) / 255,
                colorful.mean() / 255,
                laplacian.var(dtype=np.float64),
            )
        )
    names = ("brightness", "contrast", "saturation", "sharpness")
    return dict(zip(names, np.array(rows, np.float64).T, strict=True))


def slope(curve: Curve, fps: float) -> float | None:
    """Rise of the straight line through a curve (least squares), in units of the curve per second.

    Args:
        curve: One value per pixel frame, `(T,)`.
        fps: Pixel frames per second.

    Returns:
        The slope; None for a single frame.
    """
    if len(curve) < 2:
        return None
    seconds = np.arange(len(curve)) / fps
    seconds -= seconds.mean()
    return float(seconds @ (curve - curve.mean()) / (seconds @ seconds))


def drifts(statistics: Mapping[str, Curve], fps: float) -> dict[str, float | None]:
    """Measure how fast a video changes its look, per second, with sign.

    Args:
        statistics: From `frame_statistics`.
        fps: Pixel frames per second.

    Returns:
        The slopes of brightness, contrast and saturation, in shares of the full range per second; that of
        sharpness, which has no natural range, as a share of its own mean per second.
    """
    found = {name: slope(curve, fps) for name, curve in statistics.items()}
    mean = float(statistics["sharpness"].mean())
    if found["sharpness"] is not None:
        found["sharpness"] = found["sharpness"] / mean if mean else 0.0
    return found


# --- loops ----------------------------------------------------------------------------------------------


def repetition(frames: Frames, fps: float) -> float | None:
    """Measure how much a video repeats itself: 1 is a perfect loop, 0 a picture that only moves on.

    With D(lag) the mean absolute difference of all frames that are `lag` apart, measured on thumbnails of
    brightness: the deepest fall of D after it has risen, as a share of its largest value. Lags go up to one
    second less than the video. Motion that is periodic by nature scores high, too: compare like with like.

    Args:
        frames: The video.
        fps: Pixel frames per second.

    Returns:
        0 to 1; None for videos of less than three seconds and for standing pictures.
    """
    second = round(fps)
    if len(frames) < 3 * second:
        return None
    small = np.stack([_thumbnail(luma(frame)) for frame in frames])
    lags = range(1, len(frames) - second + 1)
    apart = np.array([np.abs(small[lag:] - small[:-lag]).mean() for lag in lags])
    if apart.max() < 0.5:  # gray levels
        return None
    return float((np.maximum.accumulate(apart) - apart).max() / apart.max())


def _thumbnail(y: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean brightness in the cells of a grid, as fine as the picture allows."""
    height, width = (min(_THUMBNAIL, side) for side in y.shape)
    rows = np.linspace(0, y.shape[0], height, endpoint=False).astype(int)
    columns = np.linspace(0, y.shape[1], width, endpoint=False).astype(int)
    sums = np.add.reduceat(np.add.reduceat(y, rows, 0), columns, 1)
    areas = np.outer(np.diff([*rows, y.shape[0]]), np.diff([*columns, y.shape[1]]))
    cells: NDArray[np.float32] = (sums / areas).astype(np.float32)
    return cells
