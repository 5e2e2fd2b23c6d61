"""Clips as input: of files of any kind, the frames that a player would show at each instant.

frames = read_video("clip.mov", count=9, size=(480, 832), fps=16)
"""

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from heapq import heappop, heappush
from pathlib import Path
from types import TracebackType
from typing import cast

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from dummyforcing.errors import BadFile, UserError
from dummyforcing.media.display import Display
from dummyforcing.media.frames import Frames, covering

MAX_PIXELS = 8192 * 8192
"""Of a frame; decoders keep up to 17 of them."""

REORDERED = 16
"""Frames that may come between one and the next to be shown, in any codec."""

JUMP = 10
"""Seconds by which only a clock jumps, and no picture waits (FFmpeg's `dts_delta_threshold`)."""

SPARE = 10
"""Seconds that are read before the last ones: the length of a file is only about what its frames last."""

CLOCK_MAY_JUMP = 0x200
"""Flag of the container formats of broadcasts (FFmpeg's `AVFMT_TS_DISCONT`)."""

WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Decoders that see the transparency in these codecs; FFmpeg's own do not."""


class Clip:
    """A video file that is open for reading once, from its first frame on.

    Where an edit list begins within a frame, FFmpeg begins with the next one.
    """

    def __init__(self, path: str | Path) -> None:
        """Open it.

        Raises:
            UserError: If there is no video in it, or its frames are too large to be decoded.
        """
        self.path = path
        with _explaining(path):
            # It decodes a frame or two to learn of the streams.
            self._container: InputContainer = av.open(str(path), options={"max_pixels": str(MAX_PIXELS)})
        try:
            self._prepare()
        except BaseException:
            self._container.close()
            raise

    def _prepare(self) -> None:
        stream = self._container.streams.best("video")
        if not isinstance(stream, VideoStream) or Disposition.attached_pic in stream.disposition:  # a cover
            raise BadFile(f"{self.path} has no video in it", "give an mp4, WebM or MOV file")
        if stream.codec_context is None:  # then nothing else is known
            raise BadFile(f"{self.path} is in a codec that FFmpeg does not know", "give it in H.264 or VP9")
        if not 0 < stream.width * stream.height <= MAX_PIXELS:  # 0, where the size is known only by decoding
            size = f"{stream.width}x{stream.height} pixels" if stream.width else "or damaged"
            raise BadFile(
                f"The frames of {self.path} are too large, {size}",
                f"give a clip of {MAX_PIXELS // 10**6} megapixels at most",
            )
        self._stream = stream
        self._decoder: VideoCodecContext = stream.codec_context
        tags = {name.lower(): value for name, value in stream.metadata.items()}
        name = WITH_ALPHA.get(self._decoder.name)
        if tags.get("alpha_mode") == "1" and name in av.codecs_available:
            self._decoder = cast(VideoCodecContext, av.CodecContext.create(name, "r"))
        self._decoder.options = {"max_pixels": str(MAX_PIXELS)}  # later frames may be larger
        self._display = Display(self.path, stream)

    def __enter__(self) -> "Clip":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.close()

    def skip_to_last(self, seconds: float) -> None:
        """Begin so many seconds before the end, or earlier; at the start, where the end is not known."""
        length, start = self._container.duration, self._container.start_time or 0
        before_end = round((seconds + SPARE) * av.time_base)
        if length is not None and length > before_end:
            with suppress(av.FFmpegError):
                self._container.seek(start + length - before_end)

    def frames(self) -> Iterator[VideoFrame]:
        """All frames from there on, in the order in which they are shown."""
        with _explaining(self.path):
            for packet in self._container.demux(self._stream):
                yield from self._decoder.decode(packet)

    def shown(self, fps: int) -> Iterator[tuple[VideoFrame, Fraction]]:
        """All frames, each with the time in seconds until which it is shown, counted from the first one.

        Args:
            fps: Frames per second where nothing in the file says how many.
        """
        start = begin = length = Fraction(0)
        shown = None
        for following, lasts, frame in self._in_order(fps):
            if shown is None:
                start = following
            else:
                yield shown, following - start
            shown, begin, length = frame, following, lasts
        if shown is not None:
            yield shown, begin + length - start

    def _in_order(self, fps: int) -> Iterator[tuple[Fraction, Fraction, VideoFrame]]:
        """All frames with their times, which grow, and lengths.

        A decoder gives frames in the order in which they are shown, so the nth of them belongs to the nth of
        the times. That mends files which have times in the order of decoding, as AVI.
        """
        times: list[Fraction] = []
        waiting: deque[tuple[Fraction, VideoFrame]] = deque()
        ahead = REORDERED if self._decoder.has_b_frames else 0
        for time, length, frame in self._stamped(fps):
            heappush(times, time)
            waiting.append((length, frame))
            if len(waiting) > ahead:
                yield heappop(times), *waiting.popleft()
        while waiting:
            yield heappop(times), *waiting.popleft()

    def _stamped(self, fps: int) -> Iterator[tuple[Fraction, Fraction, VideoFrame]]:
        """All frames with the times that the file gives, or that follow, on a clock that does not jump."""
        usual = 1 / (self._stream.guessed_rate or self._stream.average_rate or Fraction(fps))
        may_jump = self._container.format.flags & CLOCK_MAY_JUMP
        has_times = False
        shift = previous = due = Fraction(0)
        for number, frame in enumerate(self.frames()):
            base = frame.time_base or Fraction(1)
            length = frame.duration * base or usual
            has_times = has_times or frame.pts is not None
            stamp = frame.pts if has_times else frame.dts
            time = due if stamp is None else stamp * base + shift
            if number:
                restarts = previous - time > REORDERED * usual
                if restarts or (may_jump and time - due > JUMP):
                    shift += due - time
                    time = due
                elif time < previous and not self._decoder.has_b_frames:
                    time = due
            previous, due = time, time + length
            yield time, length, frame

    def picture(self, frame: VideoFrame) -> Image.Image:
        """A frame as a screen shows it: RGB, upright, nothing transparent; its pixels may not be square."""
        return self._display.picture(frame)

    def is_plain(self, frame: VideoFrame) -> bool:
        """Whether a frame has the primaries and the light of usual screens."""
        return self._display.is_plain(frame)

    def covering(self, frame: VideoFrame, size: tuple[int, int]) -> Frames:
        """A frame, scaled to cover a size and cut to that in the middle, `(H, W, 3)`."""
        return covering(self._display.picture(frame), size, self._display.aspect(frame))


def read_video(
    path: str | Path, count: int, size: tuple[int, int], fps: int = 16, *, from_end: bool = False
) -> Frames:
    """Read the first or the last frames of a video at another frame rate, each scaled and cut like an image.

    They are what a player shows: upright, with square pixels, in the colours of BT.709 (HDR is mapped to
    that), white where they are transparent.

    Args:
        path: Any format that FFmpeg reads.
        count: How many frames.
        size: Height and width in pixels.
        fps: Frames per second to read; the frame shown at each instant is taken, the first one at 0.
        from_end: Read the last frames instead: the last of all is shown until the video ends.

    Returns:
        `(count, H, W, 3)`.

    Raises:
        UserError: If there is no video that can be read, or it is too short.

    Warns:
        PictureWarning: If it is interlaced or HDR.
    """
    with Clip(path) as clip:
        if not from_end:
            return _picked(clip, clip.shown(fps), count, size, fps)
        clip.skip_to_last(count / fps)
        with suppress(BadFile):
            return _picked(clip, _last(clip.shown(fps), count, fps), count, size, fps)
    with Clip(path) as clip:  # it could not be entered there
        return _picked(clip, _last(clip.shown(fps), count, fps), count, size, fps)


def read_before_last(path: str | Path, count: int, size: tuple[int, int], fps: int = 16) -> Iterator[Frames]:
    """Read what comes before the last frames of a video, which `read_video` gives with `from_end`.

    Args:
        path: As for `read_video`.
        count: How many frames are the last ones.
        size: Height and width in pixels.
        fps: Frames per second to read; the instants go on into those of the last frames.

    Yields:
        One frame after the other, `(H, W, 3)`; none, if there are no more than `count`.

    Raises:
        UserError: If there is no video that can be read.
    """
    with Clip(path) as clip:
        end = max((end for _, end in clip.shown(fps)), default=Fraction(0))
    begin = max(end - Fraction(count, fps), Fraction(0))
    before = int(begin * fps + Fraction(1, 16))  # a 16th forgives rounded time stamps
    with Clip(path) as clip:
        read = 0
        for frame, end in clip.shown(fps):
            pixels = None
            while read < before and begin - Fraction(16 * (before - read) - 1, 16 * fps) < end:
                pixels = clip.covering(frame, size) if pixels is None else pixels
                yield pixels
                read += 1


def _picked(
    clip: Clip, shown: Iterable[tuple[VideoFrame, Fraction]], count: int, size: tuple[int, int], fps: int
) -> Frames:
    """The frames that are shown at regular instants, `(count, H, W, 3)`."""
    picked: list[Frames] = []
    end = Fraction(0)
    for frame, end in shown:
        pixels = None
        # A frame is shown until the next one begins; a 16th forgives rounded time stamps.
        while len(picked) < count and Fraction(16 * len(picked) + 1, 16 * fps) < end:
            pixels = clip.covering(frame, size) if pixels is None else pixels
            picked.append(pixels)
        if len(picked) == count:
            return np.stack(picked)
    raise BadFile(
        f"{clip.path} is too short, it lasts {float(end):.2f} s", f"give {count / fps:.2f} s or more"
    )


def _last(
    shown: Iterator[tuple[VideoFrame, Fraction]], count: int, fps: int
) -> list[tuple[VideoFrame, Fraction]]:
    """The frames that are shown in the last `count` instants, with times from the first of these on.

    If there are fewer, all of them with their own times.
    """
    last: deque[tuple[VideoFrame, Fraction]] = deque()
    begin = Fraction(0)
    for frame, end in shown:
        last.append((frame, end))
        begin = end - Fraction(count, fps)
        while last[0][1] <= begin:
            last.popleft()
    begin = max(begin, Fraction(0))
    return [(frame, end - begin) for frame, end in last]


def read_mp4(path: str | Path) -> Frames:
    """Read all frames of a video, whenever they are shown.

    Returns:
        uint8 RGB, `(n, H, W, 3)`.

    Raises:
        UserError: If it cannot be read.
    """
    with Clip(path) as clip:
        frames = [np.asarray(clip.picture(frame)) for frame in clip.frames()]
    if len({frame.shape for frame in frames}) != 1:
        problem = "its frames are of several sizes" if frames else "it has no frames"
        raise BadFile(f"{path} cannot be read as a video ({problem})", "delete it or give another")
    return np.stack(frames)


@contextmanager
def _explaining(path: str | Path) -> Iterator[None]:
    """Turn what FFmpeg says of the file into a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        problem = f"{path} cannot be read as a video ({reason})"
        raise BadFile(problem, "give an mp4, WebM or MOV file") from error
