"""Pixel frames to files and back: H.264 mp4 that browsers play, contact sheets, images and clips as input.

with VideoWriter("ball.mp4", fps=16) as writer:
    for frames in chunks:  # uint8 (n, H, W, 3)
        writer.write(frames)
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from dummyforcing.errors import BadFile
from dummyforcing.files.writing import explaining, replacing, temporary

Frames = NDArray[np.uint8]
"""RGB pixel frames, `(n, H, W, 3)`."""

BT709 = 1  # of ITU-T H.273: primaries, transfer and matrix have the same number
CAPTION_HEIGHT = 20


class VideoWriter:
    """An mp4 that is written frame by frame: H.264, yuv420p, tagged BT.709, index before the data.

    The file has a temporary name in its folder until it is complete. If the block ends with Ctrl-C, the
    frames so far become a playable file under the final name (none, if there are no frames yet) and the
    `KeyboardInterrupt` goes on. If it ends with another error, nothing is left and an older file stays.
    """

    def __init__(self, path: str | Path, fps: int = 16) -> None:
        """Describe the file; nothing is touched before the block begins.

        Args:
            path: The final name; must end in `.mp4`.
            fps: Pixel frames per second.

        Raises:
            BadFile: If the name does not end in `.mp4`.
        """
        self.path, self.fps = Path(path), fps
        if self.path.suffix.lower() != ".mp4":
            raise BadFile(f"cannot write {path}: videos are mp4 files", "give a name that ends in .mp4")
        self.frames = 0
        """Pixel frames written so far."""
        self._between_frames = True
        self._stream: VideoStream | None = None

    def __enter__(self) -> "VideoWriter":
        self._part = temporary(self.path)
        self._container: OutputContainer = av.open(
            str(self._part), "w", format="mp4", options={"movflags": "+faststart"}
        )
        return self

    def write(self, frames: Frames) -> None:
        """Append frames.

        Args:
            frames: uint8 RGB, `(n, H, W, 3)` or one frame `(H, W, 3)`; H and W even, the same in every call.

        Raises:
            BadFile: If the file cannot be written, for example because the disk is full.
            ValueError: If the frames are not of that kind.
        """
        for pixels in frames if frames.ndim == 4 else frames[None]:
            height, width = pixels.shape[:2]
            self._between_frames = False
            stream = self._stream = self._stream or self._open(width, height)
            if (stream.width, stream.height) != (width, height):
                raise ValueError(f"frame of {width}x{height} in a video of {stream.width}x{stream.height}")
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24").reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            frame.pts = self.frames
            self._mux(stream, frame)
            self.frames += 1
            self._between_frames = True

    def _mux(self, stream: VideoStream, frame: av.VideoFrame | None) -> None:
        """Encode one frame, or with None what the encoder still holds, into the file."""
        with explaining(self.path):
            self._container.mux(stream.encode(frame))

    def _open(self, width: int, height: int) -> VideoStream:
        if width % 2 or height % 2:
            raise ValueError(f"H.264 needs even sides, not {width}x{height}")
        # x264's macroblock tree reads memory that nobody set when frames are as small as ours: now and then
        # the same frames gave another file, sometimes a third larger.
        options = {"crf": "18", "mbtree": "0"}
        stream = self._container.add_stream("libx264", rate=self.fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = ColorRange.MPEG
        return stream

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # An interrupt inside of a frame may have lost a packet on which later ones depend: keep nothing then.
        interrupted = isinstance(error, KeyboardInterrupt) and self._between_frames
        try:
            if self._stream and (error is None or interrupted):
                self._mux(self._stream, None)
                with explaining(self.path):
                    self._container.close()
                    self._part.replace(self.path)
            elif error is None:
                raise BadFile(f"cannot write {self.path}, there are no pixel frames", "write some first")
        finally:
            with suppress(av.FFmpegError):  # closing writes, too: on a full disk it fails like the rest
                self._container.close()
            self._part.unlink(missing_ok=True)


def write_mp4(path: str | Path, frames: Iterable[Frames], fps: int = 16) -> None:
    """Write a whole video.

    Args:
        path: Must end in `.mp4`.
        frames: uint8 RGB frames `(H, W, 3)`, or pieces `(n, H, W, 3)`, as they come; an array `(n, H, W, 3)`
            is fine.
        fps: Pixel frames per second.

    Raises:
        BadFile: If there are no frames or the file cannot be written; nothing is left then.
    """
    with VideoWriter(path, fps) as writer:
        for piece in frames:
            writer.write(piece)


def read_image(path: str | Path, size: tuple[int, int]) -> Frames:
    """Read an image, scaled to cover a size and cut to it in the middle.

    Args:
        path: Any format that Pillow reads; turned as its EXIF data says.
        size: Height and width in pixels.

    Returns:
        One frame, `(1, H, W, 3)`.

    Raises:
        BadFile: If there is no image that can be read.
    """
    try:
        with Image.open(path) as image:
            return _fitted(ImageOps.exif_transpose(image), size)[None]
    except (UnidentifiedImageError, OSError) as error:
        raise BadFile(f"{path} cannot be read as an image", "give a PNG, JPEG or WebP file") from error


def read_video(path: str | Path, count: int, size: tuple[int, int], fps: int = 16) -> Frames:
    """Read the first frames of a video at another frame rate, each scaled and cut like an image.

    Args:
        path: Any format that FFmpeg reads.
        count: How many frames.
        size: Height and width in pixels.
        fps: Frames per second to read; the frame shown at each instant is taken.

    Returns:
        `(count, H, W, 3)`.

    Raises:
        BadFile: If there is no video that can be read, or it is too short.
    """
    picked: list[Frames] = []
    end = 0.0
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                begin = frame.time or 0.0
                end = begin + float(1 / (container.streams.video[0].average_rate or fps))
                # A frame is shown until the next one begins; a 16th forgives rounded time stamps.
                while len(picked) < count and len(picked) / fps + 1 / (16 * fps) < end:
                    picked.append(_fitted(Image.fromarray(frame.to_ndarray(format="rgb24")), size))
                if len(picked) == count:
                    return np.stack(picked)
    except (av.FFmpegError, OSError, IndexError) as error:
        raise BadFile(f"{path} cannot be read as a video", "give an mp4, WebM or MOV file") from error
    raise BadFile(f"{path} is too short, it lasts {end:.2f} s", f"give {count / fps:.2f} s or more")


def _fitted(image: Image.Image, size: tuple[int, int]) -> Frames:
    """Scale to cover `size` (height, width), cut in the middle."""
    fitted = ImageOps.fit(image.convert("RGB"), size[::-1], Image.Resampling.LANCZOS)
    return np.asarray(fitted)


def read_mp4(path: str | Path) -> Frames:
    """Read a whole video.

    Returns:
        uint8 RGB, `(n, H, W, 3)`.

    Raises:
        BadFile: If it cannot be read.
    """
    try:
        with av.open(str(path)) as container:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        raise BadFile(f"{path} cannot be read as a video ({error})", "delete it or give another") from error


def side_by_side(videos: Sequence[Frames], labels: Sequence[str] | None = None, gap: int = 4) -> Frames:
    """Put equally long videos (or chunks of them) of the same height next to each other.

    Args:
        videos: Each `(n, H, W, 3)`, from left to right.
        labels: One caption above each.
        gap: Width of the white bars between them, even for H.264.

    Returns:
        `(n, H, sum of W and gaps, 3)`; 20 pixels higher with labels.
    """
    videos = _captioned(videos, labels)
    bar = np.full((*videos[0].shape[:2], gap, 3), 255, np.uint8)
    return np.concatenate([piece for video in videos for piece in (bar, video)][1:], axis=2)


def contact_sheet(
    videos: Sequence[Frames], columns: int = 8, labels: Sequence[str] | None = None
) -> NDArray[np.uint8]:
    """Show videos as rows of evenly spaced frames.

    Args:
        videos: Each `(n, H, W, 3)`, of one size; one row each.
        columns: Frames per row; a shorter video leaves its row white.
        labels: One caption above each row.

    Returns:
        An image, `(rows * H, columns * W, 3)`; each row is 20 pixels higher with labels.
    """
    rows = []
    for video in videos:
        picked = video[np.linspace(0, len(video) - 1, min(columns, len(video))).round().astype(int)]
        blank = np.full((columns - len(picked), *video.shape[1:]), 255, np.uint8)
        rows.append(np.concatenate([*picked, *blank], axis=1)[None])
    sheet: NDArray[np.uint8] = np.concatenate([row[0] for row in _captioned(rows, labels)])
    return sheet


def save_contact_sheet(
    path: str | Path, videos: Sequence[Frames], columns: int = 8, labels: Sequence[str] | None = None
) -> None:
    """Write `contact_sheet(videos, columns, labels)` as a PNG.

    Raises:
        BadFile: If the file cannot be written; nothing is left then.
    """
    image = Image.fromarray(contact_sheet(videos, columns, labels))
    with replacing(Path(path)) as part:
        image.save(part, "PNG")


def _captioned(videos: Sequence[Frames], labels: Sequence[str] | None) -> Sequence[Frames]:
    """Put a caption bar above every frame of each video; without labels, none."""
    if labels is None:
        return videos
    captioned = []
    for video, label in zip(videos, labels, strict=True):
        bar = Image.new("RGB", (video.shape[2], CAPTION_HEIGHT), "white")
        ImageDraw.Draw(bar).text((4, 2), label, "black", font=ImageFont.load_default(size=13))
        bars = np.repeat(np.asarray(bar)[None], len(video), axis=0)
        captioned.append(np.concatenate([bars, video], axis=1))
    return captioned
