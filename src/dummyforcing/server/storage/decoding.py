"""Reads an uploaded image or clip in a process of its own, whose memory and time are bounded.

    echo '{"source": "upload", ...}' | python -m dummyforcing.server.storage.decoding

What it writes is a file of our own making: a PNG, or a short lossless clip of just the frames that are
needed.
"""

import json
import resource
import sys
import warnings
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

from dummyforcing.errors import BadFile, UserError
from dummyforcing.files.records import build

Kind = Literal["image", "clip"]

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,asf,flv,gif,apng,ivf,mpeg,mpegts,mpegvideo,mxf,nut,ogg,h264,hevc,av1,"
    "obu,yuv4mpegpipe,dv,rm,wtv,png_pipe,webp_pipe"
)
"""Those that FFmpeg may read: none that name other files, as playlists do."""
NAME = "The file"
"""What messages call the upload."""


@dataclass(frozen=True)
class Wanted:
    """What is made of an upload."""

    size: tuple[int, int]
    """Height and width."""
    kind: Kind | None = None
    """What it must be; None: either."""
    count: int = 1
    """Frames of a clip."""
    from_end: bool = False
    """Whether they are its last ones."""
    fps: int = 16
    """At which they are read and written."""


@dataclass(frozen=True)
class Work:
    """What is to be read, and what becomes of it."""

    source: str
    """Path of the upload."""
    max_pixels: int
    """Of the image, or a frame of the clip."""
    max_seconds: float
    """Length of the clip."""
    target: str | None = None
    """Path of the result, without the end of its name; None: only look what it is."""
    wanted: Wanted = Wanted((0, 0))
    """What the result is."""

    @property
    def memory(self) -> int:
        """Bytes that the process may have: decoders keep up to 17 frames, of up to 3 bytes a pixel."""
        height, width = self.wanted.size
        return 2**30 + 64 * self.max_pixels + 8 * self.wanted.count * height * width

    @property
    def seconds(self) -> int:
        """Time that it may take."""
        return 30 + self.wanted.count // 20


@dataclass(frozen=True)
class Outcome:
    """What came of it."""

    kind: Kind | None = None
    path: str | None = None
    """The result."""
    problem: str | None = None
    """Why there is none."""
    remedy: str = ""


def decode(work: Work) -> Outcome:
    """Read an upload.

    Raises:
        BadFile: If it cannot be read, is another kind of file, or too large.
    """
    kind = _kind(work)
    wanted = work.wanted
    if wanted.kind not in (None, kind):
        article = "an image" if wanted.kind == "image" else "a clip"
        raise BadFile(f"{NAME} is no {wanted.kind}", f"give {article}")
    if work.target is None:
        return Outcome(kind)
    target = Path(work.target + (".png" if kind == "image" else ".mkv"))
    if kind == "image":
        from PIL import Image

        from dummyforcing.media.images import read_image

        (pixels,) = read_image(work.source, wanted.size)
        Image.fromarray(pixels).save(target, "PNG")
    else:
        _write_clip(work, target)
    return Outcome(kind, str(target))


def _kind(work: Work) -> Kind:
    """Tell an image from a clip, and refuse what is too large before it is decoded."""
    from PIL import Image, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = None  # ours is looked at instead
    try:
        with Image.open(work.source) as image:
            _require_pixels(work, *image.size)
            image.load()
    except (UserError, MemoryError):
        raise
    except UnidentifiedImageError:
        _look_at_clip(work)
        return "clip"
    except Exception as error:  # what Pillow raises for damaged files is of any kind
        raise BadFile(
            f"{NAME} cannot be read as an image ({error})", "give a PNG, JPEG or WebP file"
        ) from error
    return "image"


def _require_pixels(work: Work, width: int, height: int) -> None:
    if not 0 < width * height <= work.max_pixels:
        raise BadFile(f"{NAME} has {width}x{height} pixels", f"give one of {work.max_pixels} pixels at most")


def _look_at_clip(work: Work) -> None:
    import av
    from av.video.stream import VideoStream

    from dummyforcing.media import clips

    clips.MAX_PIXELS = min(clips.MAX_PIXELS, work.max_pixels)
    options = {"format_whitelist": FORMATS, "max_pixels": str(work.max_pixels)}
    try:
        with av.open(work.source, options=options) as container:
            stream = container.streams.best("video")
            lengths = [Fraction(container.duration or 0, av.time_base)]
            if isinstance(stream, VideoStream):
                lengths.append((stream.duration or 0) * (stream.time_base or Fraction(0)))
                _require_pixels(work, stream.width, stream.height)
    except (av.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise BadFile(
            f"{NAME} is no image, and no video that can be read", "give a PNG, JPEG, mp4 or WebM"
        ) from error
    if max(lengths) > work.max_seconds:
        raise BadFile(
            f"{NAME} lasts {float(max(lengths)):.0f} s", f"give a clip of {work.max_seconds:g} s at most"
        )
    with clips.Clip(work.source) as clip:  # refuses what has no video in it
        if next(clip.frames(), None) is None:
            raise BadFile(f"{NAME} has no frames", "give a clip that is whole")


def _write_clip(work: Work, target: Path) -> None:
    """Write the frames that are needed, without loss."""
    import av

    from dummyforcing.media.clips import read_video

    wanted = work.wanted
    frames = read_video(work.source, wanted.count, wanted.size, wanted.fps, from_end=wanted.from_end)
    with av.open(str(target), "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=wanted.fps)
        stream.height, stream.width, stream.pix_fmt = *wanted.size, "bgr0"
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="bgr0")
            frame.pts, frame.time_base = number, Fraction(1, wanted.fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def main() -> None:
    """Read a `Work` from the input, and write its `Outcome` to the output."""
    work = build(Work, json.loads(sys.stdin.read()), "work")
    resource.setrlimit(resource.RLIMIT_AS, (work.memory, work.memory))
    resource.setrlimit(resource.RLIMIT_CPU, (work.seconds, work.seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    warnings.simplefilter("ignore")
    try:
        outcome = decode(work)
    except UserError as error:
        outcome = Outcome(problem=error.problem.replace(work.source, NAME), remedy=error.remedy)
    except MemoryError:
        outcome = Outcome(problem=f"{NAME} takes too much memory to be read", remedy="give a smaller one")
    sys.stdout.write(json.dumps(asdict(outcome)))


if __name__ == "__main__":
    main()
