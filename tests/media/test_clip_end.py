"""The last frames of clips: those that a reading of the whole clip ends with."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from av.video.frame import VideoFrame

from dummyforcing.errors import UserError
from dummyforcing.media.clips import Clip, read_before_last, read_video
from tests.footage import numbered, numbers, write_clip

SIZE = (64, 96)
FPS = 16
H264: dict[str, Any] = {"codec": "libx264", "pixels": "yuv420p", "qp": "4", "bf": "0"}
B_FRAMES: dict[str, Any] = {**H264, "bf": "3", "x264-params": "b-adapt=0"}
EVEN = [62 * i for i in range(24)]
VARIABLE = [500 + t for t in (0, 40, 200, 210, 220, 600, 700, 1050, 1080, 1110, 1140, 1400, 1500, 1510)]
TWICE_AS_FAST = [33 * i for i in range(36)]


def on_screen_last(path: Path, count: int) -> list[int]:
    """The frame on the screen at each of the last instants; its end is that of the whole clip."""
    with Clip(path) as clip:
        ends = [end for _, end in clip.shown(FPS)]
    first = ends[-1] - Fraction(count, FPS)
    instants = [first + Fraction(k, FPS) + Fraction(1, 16 * FPS) for k in range(count)]
    return [next(i for i, end in enumerate(ends) if instant < end) for instant in instants]


@pytest.mark.parametrize("times", [EVEN, VARIABLE, TWICE_AS_FAST], ids=["even", "variable", "fast"])
@pytest.mark.parametrize(
    ("name", "how"),
    [("a.mkv", {}), ("a.mp4", H264), ("b.mp4", B_FRAMES), ("b.mov", B_FRAMES), ("b.ts", B_FRAMES)],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_the_last_frames(tmp_path: Path, times: Sequence[int], name: str, how: dict[str, Any]) -> None:
    path = write_clip(tmp_path / name, numbered(len(times)), times, **how)
    assert numbers(read_video(path, 9, SIZE, FPS, from_end=True)) == on_screen_last(path, 9)


@pytest.mark.parametrize(
    "times", [EVEN, VARIABLE, TWICE_AS_FAST, EVEN[:5]], ids=["even", "variable", "fast", "5"]
)
@pytest.mark.parametrize(("name", "how"), [("a.mkv", {}), ("b.mp4", B_FRAMES)], ids=["mkv", "mp4"])
def test_what_comes_before_them(tmp_path: Path, times: Sequence[int], name: str, how: dict[str, Any]) -> None:
    """At the instants before those of the last frames, as long as there is something on the screen."""
    path = write_clip(tmp_path / name, numbered(len(times)), times, **how)
    with Clip(path) as clip:
        ends = [end for _, end in clip.shown(FPS)]
    instants = [ends[-1] - Fraction(k, FPS) + Fraction(1, 16 * FPS) for k in range(1, 1000)]
    shown = [next(i for i, end in enumerate(ends) if at < end) for at in instants if at >= 0]
    before = list(read_before_last(path, 9, SIZE, FPS))
    assert [numbers(frame[None])[0] for frame in before] == shown[9:][::-1]
    assert len(before) > 5 or len(times) == 5


def test_at_its_own_rate_they_are_its_last_frames(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", numbered(24), range(24), time_base=Fraction(1, FPS), **H264)
    assert numbers(read_video(path, 9, SIZE, FPS, from_end=True)) == list(range(15, 24))
    assert numbers(read_video(path, 24, SIZE, FPS, from_end=True)) == list(range(24))
    with pytest.raises(UserError, match=r"a\.mp4 is too short, it lasts 1\.50 s; give 1\.56 s or more"):
        read_video(path, 25, SIZE, FPS, from_end=True)


@pytest.mark.parametrize(
    ("name", "how", "whole"),
    [
        ("a.mp4", {**B_FRAMES, "g": "32"}, False),
        ("a.mkv", {**H264, "g": "32"}, False),
        ("a.avi", {**H264, "g": "32"}, False),
        ("a.ts", {**B_FRAMES, "g": "32"}, False),
        ("one_key.mp4", {**H264, "g": "2000", "sc_threshold": "0"}, True),
        ("a.h264", {**H264, "g": "32"}, True),
    ],
)
def test_long_clips_are_entered_near_their_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, how: dict[str, Any], whole: bool
) -> None:
    """Where they can be; what is read is the same."""
    count = 40 * FPS
    levels = np.arange(count) * 7 % 200 + 20
    frames = np.broadcast_to(levels[:, None, None, None], (count, 64, 96, 3)).astype(np.uint8)
    path = write_clip(tmp_path / name, frames, range(count), time_base=Fraction(1, FPS), **how)
    expected = read_video(path, count, SIZE, FPS)[-9:]
    decoded = 0
    frames_of = Clip.frames

    def counted(clip: Clip) -> Iterator[VideoFrame]:
        nonlocal decoded
        for frame in frames_of(clip):
            decoded += 1
            yield frame

    monkeypatch.setattr(Clip, "frames", counted)
    np.testing.assert_array_equal(read_video(path, 9, SIZE, FPS, from_end=True), expected)
    assert decoded >= count if whole else 9 <= decoded < count / 2
