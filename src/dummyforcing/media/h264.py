"""RGB frames to H.264 packets that browsers play: yuv420p, tagged BT.709."""

from collections.abc import Mapping
from fractions import Fraction

import av
import numpy as np
from av.container import OutputContainer
from av.filter import Graph
from av.packet import Packet
from av.video.reformatter import ColorRange
from av.video.stream import VideoStream

from dummyforcing.media.frames import Frames

BT709 = 1  # of ITU-T H.273: primaries, transfer and matrix have the same number


class Encoder:
    """A video stream of a container, and the conversion of its frames."""

    def __init__(
        self, container: OutputContainer, width: int, height: int, fps: int, options: Mapping[str, str]
    ) -> None:
        """Add a stream to a container.

        Args:
            container: Takes H.264.
            width: In pixels, even.
            height: Likewise.
            fps: Frames per second.
            options: Of x264.

        Raises:
            ValueError: If a side is odd.
        """
        if width % 2 or height % 2:
            raise ValueError(f"H.264 needs even sides, not {width}x{height}")
        self.width, self.height, self.fps = width, height, fps
        # x264's macroblock tree reads memory that nobody set when frames are as small as ours: now and then
        # the same frames gave another file, sometimes a third larger.
        self._stream = container.add_stream("libx264", rate=fps, options={**options, "mbtree": "0"})
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        context = self._stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = ColorRange.MPEG
        # A player takes it that chroma is where the left one of two pixels is: H.264 says so unless told.
        to_yuv = "out_color_matrix=bt709:out_range=tv:out_chroma_loc=left"
        self._converter = Graph()
        self._converter.link_nodes(
            self._converter.add(
                "buffer", f"video_size={width}x{height}:pix_fmt=rgb24:time_base=1/{fps}:range=pc"
            ),
            self._converter.add("scale", f"flags=bicubic+accurate_rnd+full_chroma_inp:{to_yuv}"),
            self._converter.add("format", "pix_fmts=yuv420p"),
            self._converter.add("buffersink"),
        ).configure()

    def encode(self, pixels: Frames, number: int) -> "list[Packet[VideoStream]]":
        """Encode the frame of a number, `(H, W, 3)` uint8; an encoder may hold some back."""
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame.pts, frame.time_base = number, Fraction(1, self.fps)
        self._converter.vpush(frame)
        return self._stream.encode(self._converter.vpull())

    def rest(self) -> "list[Packet[VideoStream]]":
        """What the encoder still holds."""
        return self._stream.encode(None)
