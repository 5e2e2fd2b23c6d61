"""Chunks of a video as pieces of a fragmented mp4, each of them playable by itself.

    piece = fragment(frames, first=33, fps=16)     # append it to a SourceBuffer: it knows its time
    save_fragments("video.mp4", [piece, ...])      # or join them, without encoding again

Every piece is the initialization segment (`ftyp`, `moov`) and one fragment (`moof`, `mdat`) that begins with
a keyframe, so that a player can begin with any of them, leave some out, or replace one (ISO/IEC 14496-12).
"""

import struct
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import cache
from io import BytesIO
from pathlib import Path

import av
import numpy as np

from dummyforcing.errors import BadFile
from dummyforcing.files.writing import replacing
from dummyforcing.media.frames import Frames
from dummyforcing.media.h264 import Encoder

FLAGS = "empty_moov+default_base_moof+frag_keyframe+skip_trailer"
OPTIONS = {"crf": "20", "preset": "veryfast", "tune": "zerolatency"}


def fragment(frames: Frames, first: int, fps: int) -> bytes:
    """Encode some frames as a piece of a longer video.

    Args:
        frames: uint8 RGB, `(n, H, W, 3)`, n >= 1; H and W even.
        first: Number of the first one in the video, from 0.
        fps: Frames per second.
    """
    target = BytesIO()
    with av.open(target, "w", format="mp4", options={"movflags": FLAGS}) as container:
        # One keyframe, at the beginning: a second one would begin another fragment.
        options = {**OPTIONS, "g": str(len(frames)), "keyint_min": str(len(frames)), "sc_threshold": "0"}
        encoder = Encoder(container, frames.shape[2], frames.shape[1], fps, options)
        for number, pixels in enumerate(frames):
            container.mux(encoder.encode(pixels, number))
        container.mux(encoder.rest())
    return _beginning_at(target.getvalue(), first, fps)


def codec_of(piece: bytes) -> str:
    """The type of a piece for `MediaSource.addSourceBuffer`: `video/mp4; codecs="avc1.64000b"`."""
    start, _ = _find(piece, b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd")
    profile = piece.index(b"avcC", start) + 5
    return f'video/mp4; codecs="avc1.{piece[profile : profile + 3].hex()}"'


@cache
def codec_for(size: tuple[int, int], fps: int) -> str:
    """The type of the pieces of a video that is not begun yet; see `codec_of`.

    Args:
        size: Height and width in pixels.
        fps: Frames per second.
    """
    return codec_of(
        fragment(np.zeros((2, *size, 3), np.uint8), 0, fps)
    )  # one frame alone has another profile


def save_fragments(path: str | Path, pieces: Iterable[bytes], fps: int) -> None:
    """Join pieces into an mp4 that begins at 0, with the index before the data, as they are encoded.

    Args:
        path: Is replaced; appears whole or not at all.
        pieces: In order, one after the other without a gap.
        fps: Frames per second.

    Raises:
        BadFile: If there are none, or the file cannot be written.
    """
    with replacing(Path(path)) as part:
        with av.open(str(part), "w", format="mp4", options={"movflags": "+faststart"}) as target:
            stream, number = None, 0
            for piece in pieces:
                with av.open(BytesIO(piece), "r") as source:
                    if stream is None:
                        stream = target.add_stream_from_template(source.streams.video[0])
                    for packet in source.demux(video=0):
                        if packet.size:  # the last one only says that it is the end
                            packet.pts = packet.dts = number  # none waits for another
                            packet.duration, packet.time_base = 1, Fraction(1, fps)
                            packet.stream = stream
                            target.mux(packet)
                            number += 1
        if stream is None:
            raise BadFile(f"cannot write {path}, there are no frames", "make some first")


def _beginning_at(piece: bytes, first: int, fps: int) -> bytes:
    """Write into a piece when it begins; it was made as if it were the first one."""
    start, _ = _find(piece, b"moov", b"trak", b"mdia", b"mdhd")
    version = piece[start]
    (timescale,) = struct.unpack_from(">I", piece, start + (20 if version else 12))
    data = bytearray(piece)
    start, _ = _find(piece, b"moof", b"traf", b"tfdt")
    assert piece[start] == 1  # a time of 64 bits
    struct.pack_into(">Q", data, start + 4, first * timescale // fps)
    start, _ = _find(piece, b"moof", b"mfhd")
    struct.pack_into(">I", data, start + 4, first + 1)  # a number that grows
    return bytes(data)


def _find(data: bytes, *path: bytes) -> tuple[int, int]:
    """Where the content of a box begins and ends, found along the boxes that it lies in."""
    start, end = 0, len(data)
    for name in path:
        start, end = next((begin, stop) for kind, begin, stop in _boxes(data, start, end) if kind == name)
    return start, end


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The boxes in a part of the data: their kinds, and where their content begins and ends."""
    while start < end:
        size, kind = struct.unpack_from(">I4s", data, start)
        yield kind, start + 8, start + size
        start += size
