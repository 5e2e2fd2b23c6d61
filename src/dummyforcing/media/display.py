"""How a decoded frame of FFmpeg looks on a screen: its colours, its light, its direction.

image = Display(stream).picture(frame)  # RGB with BT.709's primaries and transfer, upright
"""

import math
import struct
import warnings
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, cast

import av
import numpy as np
from av.buffer import Buffer
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.reformatter import ColorTrc
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image

from dummyforcing.errors import BadFile, PictureWarning
from dummyforcing.media.frames import opaque
from dummyforcing.media.light import HDR, WIDE, to_bt709

# Numbers of ITU-T H.273, those that FFmpeg uses. A matrix makes Y'CbCr from R'G'B'.
UNSPECIFIED, RESERVED = 2, 3
BT2020 = 9
BT709_MATRIX, BT601_MATRIX = 1, 6

TURNS = {
    (1, 0, 0, 1): None,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,  # Pillow counts counterclockwise
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}
"""What to do for a display matrix: x' = a x + c y, y' = b x + d y, y downwards, given (a, b, c, d)."""


class Display:
    """Makes pictures of the frames of one stream; says once what they are not shown with."""

    def __init__(self, path: object, stream: VideoStream) -> None:
        """Take a stream.

        Args:
            path: Of its file, for messages.
            stream: The stream, open for decoding.
        """
        self._path, self._stream = path, stream
        self._graphs: dict[tuple[str, str], Graph] = {}
        self._said: set[str] = set()

    def picture(self, frame: VideoFrame) -> Image.Image:
        """An RGB picture of a frame, upright, transparent parts on the background.

        Raises:
            UserError: If it has colours, or a direction, that cannot be shown.
        """
        turn = self._turn(frame)
        if frame.interlaced_frame:
            self._say("is interlaced: where it moves, its frames have combs; deinterlace it first")
        image = self._colors(frame)
        image = opaque(image) if image.mode == "RGBA" else image
        return image if turn is None else image.transpose(turn)

    def aspect(self, frame: VideoFrame) -> Fraction:
        """Width of a pixel of the picture divided by its height."""
        aspect = self._stream.sample_aspect_ratio or self._stream.codec_context.sample_aspect_ratio
        aspect = Fraction(aspect or 1) if aspect and aspect > 0 else Fraction(1)
        sideways = self._turn(frame) in SIDEWAYS
        return 1 / aspect if sideways else aspect

    @staticmethod
    def is_plain(frame: VideoFrame) -> bool:
        """Whether a frame has the primaries and the light of usual screens."""
        return frame.color_trc not in HDR and frame.color_primaries not in WIDE

    def _turn(self, frame: VideoFrame) -> Image.Transpose | None:
        side_data = cast(Mapping[str, Buffer], frame.side_data)
        if "DISPLAYMATRIX" not in side_data:
            return None
        a, b, _, c, d, *_ = struct.unpack("9i", bytes(side_data["DISPLAYMATRIX"]))
        scale = math.hypot(a, b), math.hypot(c, d)
        if not all(scale):  # written by programs that left it empty
            return None
        unit = a / scale[0], b / scale[0], c / scale[1], d / scale[1]
        turn = tuple(round(value) for value in unit)
        if turn not in TURNS or max(abs(value - axis) for value, axis in zip(unit, turn, strict=True)) > 0.02:
            degrees = -math.degrees(math.atan2(b, a))
            raise BadFile(
                f"{self._path} is to be shown turned by {degrees:.0f} degrees", "give an upright clip"
            )
        return TURNS[turn]

    def _colors(self, frame: VideoFrame) -> Image.Image:
        """RGB, or RGBA, as BT.709 has it."""
        palette = frame.format.has_palette
        alpha = palette or any(part.is_alpha for part in frame.format.components)
        if frame.colorspace in (UNSPECIFIED, RESERVED) and not (palette or frame.format.is_rgb):
            # What players assume, and libraries don't: small videos are like DVDs, large ones like HD.
            large = frame.width >= 1280 or frame.height > 576
            frame.colorspace = BT709_MATRIX if large else BT601_MATRIX
        light, primaries = frame.color_trc, frame.color_primaries
        if light in HDR:
            self._say(f"is HDR ({HDR[ColorTrc(light)]}): what is brighter than paper becomes white")
            primaries = BT2020 if primaries in (0, UNSPECIFIED, RESERVED) else primaries
        if light not in HDR and primaries not in WIDE:
            return Image.fromarray(self._converted(frame, "rgba" if alpha else "rgb24"))
        deep = self._converted(frame, "rgba64le" if alpha else "rgb48le")
        signal = deep[..., :3].astype(np.float32) / np.float32(65535)
        image = Image.fromarray(to_bt709(signal, light, primaries))
        if alpha:
            image.putalpha(Image.fromarray((deep[..., 3] >> 8).astype(np.uint8)))
        return image

    def _converted(self, frame: VideoFrame, pixels: str) -> NDArray[Any]:
        """The frame in other pixels, with its transfer and primaries as they are."""
        described = (
            f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}"
            f":time_base=1/1000:colorspace={frame.colorspace}:range={frame.color_range}"
        )
        sited = "left"  # of no codec does PyAV tell where its chroma is
        if self._stream.codec_context.name in ("mjpeg", "mpeg1video"):
            sited = "center"
        elif frame.colorspace == BT2020:
            sited = "topleft"
        kept = frame.color_trc, frame.color_primaries
        frame.color_trc = frame.color_primaries = UNSPECIFIED  # the filter refuses what it does not know
        try:
            if (described, pixels) not in self._graphs:
                self._graphs[described, pixels] = _graph(described, pixels, sited)
            graph = self._graphs[described, pixels]
            graph.vpush(frame)
            return graph.vpull().to_ndarray()
        except (av.FFmpegError, OSError) as error:
            raise BadFile(
                f"{self._path} has colours that FFmpeg cannot show ({frame.format.name}, matrix "
                f"{frame.colorspace} of ITU-T H.273)",
                "give a clip in BT.709",
            ) from error
        finally:
            frame.color_trc, frame.color_primaries = kept

    def _say(self, what: str) -> None:
        if what not in self._said:
            self._said.add(what)
            warnings.warn(f"{self._path} {what}.", PictureWarning, stacklevel=4)


SIDEWAYS = {turn for (a, *_), turn in TURNS.items() if not a}


def _graph(described: str, pixels: str, sited: str) -> Graph:
    """A graph of filters that gives frames as described other pixels."""
    graph = Graph()
    # Exactly rounded, and chroma interpolated in place of repeated.
    flags = "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
    nodes = [
        graph.add("buffer", described),
        graph.add("scale", f"flags={flags}:in_chroma_loc={sited}"),
        graph.add("format", f"pix_fmts={pixels}"),
        graph.add("buffersink"),
    ]
    graph.link_nodes(*nodes).configure()
    return graph
