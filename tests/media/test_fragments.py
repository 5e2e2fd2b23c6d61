"""Pieces are joined as a player does, and read with PyAV; their boxes are looked at by a walk of its own."""

import struct
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest

from dummyforcing.errors import BadFile
from dummyforcing.media.fragments import codec_of, fragment, save_fragments
from dummyforcing.media.frames import Frames


def moving(count: int, width: int = 64) -> Frames:
    """A bar that moves, so that every frame is another one."""
    frames = np.zeros((count, 48, width, 3), np.uint8)
    for number in range(count):
        frames[number, :, number % width : number % width + 8] = (220, 40, 40)
    return frames


def kinds(data: bytes) -> list[str]:
    found, at = [], 0
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        found.append(kind.decode())
        at += size
    assert at == len(data)
    return found


def decode(data: bytes) -> tuple[list[Fraction], Frames]:
    with av.open(BytesIO(data), "r") as container:
        frames = list(container.decode(video=0))
        times = [Fraction(frame.pts or 0) * (frame.time_base or 1) for frame in frames]
        return times, np.stack([frame.to_ndarray(format="rgb24") for frame in frames])


@pytest.mark.parametrize("fps", [8, 16, 24, 25, 30])
def test_pieces_joined_are_the_video(fps: int) -> None:
    video = moving(33)
    pieces = [fragment(video[a:b], a, fps) for a, b in ((0, 9), (9, 21), (21, 33))]
    init = [piece[: piece.index(b"moof") - 4] for piece in pieces]
    assert init[0] == init[1] == init[2]
    for piece in pieces:
        assert kinds(piece) == ["ftyp", "moov", "moof", "mdat"]
    times, frames = decode(pieces[0] + b"".join(piece[len(init[0]) :] for piece in pieces[1:]))
    assert times == [Fraction(number, fps) for number in range(33)]
    assert np.abs(frames.astype(int) - video).mean() < 3


def test_a_piece_is_playable_by_itself() -> None:
    video = moving(33)
    times, frames = decode(fragment(video[21:], 21, 16))
    assert times[0] == Fraction(21, 16)
    assert np.abs(frames.astype(int) - video[21:]).mean() < 3


def test_a_piece_has_one_keyframe_even_when_the_scene_changes() -> None:
    video = np.zeros((12, 48, 64, 3), np.uint8)
    video[5:] = 255
    piece = fragment(video, 0, 16)
    assert kinds(piece) == ["ftyp", "moov", "moof", "mdat"]
    with av.open(BytesIO(piece), "r") as container:
        keys = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
    assert keys == [True] + [False] * 11


@pytest.mark.parametrize("count", [1, 2, 12])
def test_every_count_of_frames(count: int) -> None:
    assert len(decode(fragment(moving(count), 4, 16))[0]) == count


def test_times_of_a_day_long_video_are_exact() -> None:
    first = 16 * 86_400 + 1
    assert decode(fragment(moving(2), first, 16))[0][0] == Fraction(first, 16)


def test_codec_is_that_of_the_stream() -> None:
    piece = fragment(moving(3), 0, 16)
    kind, _, codec = codec_of(piece).partition("; ")
    assert kind == "video/mp4"
    with av.open(BytesIO(piece), "r") as container:
        extra = container.streams.video[0].codec_context.extradata
    assert extra is not None
    assert codec == f'codecs="avc1.{extra[1:4].hex()}"'


def test_saved_from_the_middle_it_begins_at_zero(tmp_path: Path) -> None:
    video = moving(33)
    pieces = [fragment(video[a:b], a, 16) for a, b in ((9, 21), (21, 33))]
    save_fragments(tmp_path / "a.mp4", pieces, 16)
    data = (tmp_path / "a.mp4").read_bytes()
    assert kinds(data)[:2] == ["ftyp", "moov"]
    times, frames = decode(data)
    assert times == [Fraction(number, 16) for number in range(24)]
    assert np.array_equal(frames, np.concatenate([decode(piece)[1] for piece in pieces]))


def test_nothing_is_written_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="no frames"):
        save_fragments(tmp_path / "a.mp4", [], 16)
    assert list(tmp_path.iterdir()) == []
