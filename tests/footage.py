"""Clips that tests make: every frame has a gray level of its own, which tells its number."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream

MS = Fraction(1, 1000)
STEP = 6
"""Between the gray levels of a frame and the next."""


def numbered(count: int, height: int = 64, width: int = 96) -> np.ndarray:
    """RGB frames whose level is their number; x264 makes no B-frames of smaller ones."""
    levels = 10 + STEP * np.arange(count)
    assert levels[-1] < 250
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).astype(np.uint8)


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers of frames that were read."""
    found = (frames.reshape(len(frames), -1).mean(1) - 10) / STEP
    assert np.abs(found - found.round()).max() < 0.4
    whole: list[int] = found.round().astype(int).tolist()
    return whole


def write_clip(
    path: Path,
    frames: Sequence[np.ndarray] | np.ndarray | Sequence[av.VideoFrame],
    times: Sequence[int],
    *,
    codec: str = "ffv1",
    pixels: str = "bgr0",
    time_base: Fraction = MS,
    fps: int = 16,
    setup: Callable[[VideoStream], None] | None = None,
    **options: str,
) -> Path:
    """Write a clip.

    Args:
        path: Its ending says the container.
        frames: RGB pixels, or frames as they are to be encoded.
        times: When each comes, in units of the time base.
        codec: The encoder.
        pixels: Its pixel format.
        time_base: Of the times.
        fps: Frames per second that the container is told.
        setup: Called with the stream before anything is encoded.
        **options: Of the encoder.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        assert isinstance(stream, VideoStream)
        first = frames[0]
        stream.height, stream.width = (
            (first.height, first.width) if isinstance(first, av.VideoFrame) else first.shape[:2]
        )
        stream.pix_fmt, stream.codec_context.time_base = pixels, time_base
        if setup:
            setup(stream)
        for image, time in zip(frames, times, strict=True):
            frame = image
            if not isinstance(image, av.VideoFrame):
                kind = "rgba" if image.shape[2] == 4 else "rgb24"
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format=kind)
            frame.pts, frame.time_base = time, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
