"""Clips as a player shows them: which frame is on the screen at each instant.

Every frame of a clip has a level of its own. Which one is right follows from the times that were written.
"""

import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pytest
from av.filter import Graph
from av.stream import Disposition
from av.video.frame import PictureType
from av.video.stream import VideoStream
from PIL import Image

from dummyforcing.errors import UserError
from dummyforcing.media import clips
from dummyforcing.media.clips import Clip, read_mp4, read_video
from dummyforcing.media.display import Display
from dummyforcing.media.video import write_mp4
from tests.footage import numbered, numbers, write_clip

SIZE = (64, 96)
FPS = 16
H264: dict[str, Any] = {"codec": "libx264", "pixels": "yuv420p", "qp": "4", "bf": "0"}
B_FRAMES: dict[str, Any] = {**H264, "bf": "3", "x264-params": "b-adapt=0"}

EVEN = [62 * i for i in range(16)]
LATE = [1400 + 62 * i for i in range(16)]
VARIABLE = [500 + t for t in (0, 40, 200, 210, 220, 600, 700, 1050, 1080, 1110, 1140, 1400)]
REPEATED = [0, 62, 62, 62, 240, 250, 300, 300, 420, 480, 540, 600]
TWICE_AS_FAST = [33 * i for i in range(30)]


def shown(times: Sequence[float], count: int, fps: int = FPS) -> list[int]:
    """The frame on the screen at each instant: the last one that has come; 1/16 frame forgives rounding."""
    instants = [(k + 1 / 16) * 1000 / fps for k in range(count)]
    return [max(i for i, time in enumerate(times) if time - times[0] <= t) for t in instants]


def seen(path: Path, count: int, fps: int = FPS) -> list[int]:
    return numbers(read_video(path, count, SIZE, fps))


@pytest.mark.parametrize(
    "times", [EVEN, LATE, VARIABLE, TWICE_AS_FAST], ids=["even", "late", "variable", "twice as fast"]
)
@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("a.mkv", {}),
        ("a.mp4", H264),
        ("b.mkv", B_FRAMES),
        ("b.mp4", B_FRAMES),
        ("b.mov", B_FRAMES),
        ("b.ts", B_FRAMES),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_the_frame_that_is_shown_at_each_instant(
    tmp_path: Path, times: list[int], name: str, how: dict[str, Any]
) -> None:
    path = write_clip(tmp_path / name, numbered(len(times)), times, **how)
    assert seen(path, 13) == shown(times, 13)


def test_of_repeated_times_the_last_frame_is_seen(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", numbered(len(REPEATED)), REPEATED)
    assert seen(path, 10) == shown(REPEATED, 10)
    assert 1 not in seen(path, 10)


@pytest.mark.parametrize("how", [{"codec": "mpeg4", "b": "4M", "pixels": "yuv420p"}, H264, B_FRAMES])
@pytest.mark.parametrize("name", ["a.avi", "a.mkv"])
def test_files_that_know_no_order_of_frames(tmp_path: Path, name: str, how: dict[str, Any]) -> None:
    """AVI gives times in the order of decoding, so B-frames have wrong ones."""
    path = write_clip(tmp_path / name, numbered(20), range(20), time_base=Fraction(1, FPS), **how)
    with av.open(str(path)) as container:
        kinds = {frame.pict_type for frame in container.decode(video=0)}
    assert (PictureType.B in kinds) == (how == B_FRAMES)
    assert seen(path, 19) == list(range(19))
    assert seen(path, 9, 8) == list(range(0, 18, 2))


def test_frames_left_out_of_an_avi_are_waited_for(tmp_path: Path) -> None:
    times = [0, 1, 2, 5, 6, 7, 11, 12, 13, 14]
    how: dict[str, Any] = {"codec": "mpeg4", "pixels": "yuv420p"}
    path = write_clip(tmp_path / "a.avi", numbered(10), times, time_base=Fraction(1, FPS), **how)
    assert seen(path, 14) == [0, 1, 2, 2, 2, 3, 4, 5, 5, 5, 5, 6, 7, 8]


@pytest.mark.parametrize("how", [H264, B_FRAMES])
def test_a_bare_stream_has_no_times(tmp_path: Path, how: dict[str, Any]) -> None:
    path = write_clip(tmp_path / "a.h264", numbered(16), range(16), time_base=Fraction(1, FPS), **how)
    assert seen(path, 15) == list(range(15))


class Retimed(Clip):
    """A clip whose frames have other times, or none."""

    times: Sequence[int | None] = ()
    decoded: Sequence[int | None] = ()

    def frames(self) -> Iterator[av.VideoFrame]:
        decoded = self.decoded or [None] * len(self.times)
        for frame, time, dts in zip(super().frames(), self.times, decoded, strict=True):
            frame.pts, frame.dts = time, dts
            yield frame


@pytest.mark.parametrize(
    ("times", "right"),
    [
        ([0, None, None, 186, 248, None, 372, 434, None, 558], [62 * i for i in range(10)]),
        ([None] * 10, [62.5 * i for i in range(10)]),
        ([None, 62, 124, 186, 248, 310, 372, 434, 496, 558], [62 * i for i in range(10)]),
        ([0, 62, 124, 20, 248, 310, 372, 434, 496, 558], [62 * i for i in range(10)]),  # one is wrong
        ([-900, -838, -776, -500, -400, -300, -200, -100, 0, 50], None),  # all before 0
        ([0] * 5 + [400, 500, 600, 700, 800], None),
    ],
)
def test_times_that_miss_or_err(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: list[int | None], right: list[float] | None
) -> None:
    path = write_clip(tmp_path / "a.mkv", numbered(10), [62 * i for i in range(10)])
    monkeypatch.setattr(Retimed, "times", times)
    monkeypatch.setattr(clips, "Clip", Retimed)
    assert seen(path, 9) == shown(cast(list[int], times) if right is None else right, 9)


@pytest.mark.parametrize("first", [None, 0])
def test_times_of_decoding_stand_in_where_there_are_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int | None
) -> None:
    """Not where there are: they may be of another clock."""
    path = write_clip(tmp_path / "a.mkv", numbered(10), [62 * i for i in range(10)])
    decoded = [500 + t for t in (0, 100, 200, 210, 220, 300, 480, 500, 520, 600)]
    monkeypatch.setattr(Retimed, "times", [first, *[None] * 9])
    monkeypatch.setattr(Retimed, "decoded", decoded)
    monkeypatch.setattr(clips, "Clip", Retimed)
    assert seen(path, 9) == shown(decoded if first is None else [62 * i for i in range(10)], 9)


@pytest.mark.parametrize("second", [0, 3_600_000])
def test_a_clock_that_jumps_is_none_of_the_picture(tmp_path: Path, second: int) -> None:
    """Broadcasts that were put together: the clock of the second part goes back, or an hour on."""
    frames, steps = numbered(40), [0, 40, 200, 210, 220, 600, 700, 1050, 1080, 1110, 1140, 1400]
    one = write_clip(tmp_path / "1.ts", frames[:20], [1_000_000 + 62 * i for i in range(20)], **H264)
    two = write_clip(tmp_path / "2.ts", frames[20:32], [second + t for t in steps], **H264)
    both = tmp_path / "both.ts"
    both.write_bytes(one.read_bytes() + two.read_bytes())
    with Clip(both) as clip:
        ends = [end for _, end in clip.shown(FPS)]
    assert [round(float((end - ends[19]) * 1000)) for end in ends[19:31]] == steps
    assert ends[19] - ends[18] <= Fraction(1, 10)
    assert seen(both, 36)[:19] == list(range(19))


def test_a_picture_that_waits_is_no_jump(tmp_path: Path) -> None:
    """Of what stands still, a recorder of screens writes no frames."""
    times = [0, 100, 15_000, 15_100]
    path = write_clip(tmp_path / "a.mkv", numbered(4), times)
    assert seen(path, 31, 2) == shown(times, 31, 2)


@pytest.mark.parametrize("seed", range(6))
def test_like_the_rate_filter_of_ffmpeg(tmp_path: Path, seed: int) -> None:
    """Its `round=up` shows a frame from the first instant at or after its time."""
    draw = np.random.default_rng(seed)
    fps = int(draw.choice([8, 16, 24, 30]))
    steps = draw.choice([0, 7, 15, 33, 40, 62, 200], 39)
    times = int(draw.integers(0, 5000)) + np.concatenate([[0], np.cumsum(steps)])
    # Nothing is said of times just after an instant: those are taken for rounded ones.
    times = np.unique(times[((times - times[0]) * fps / 1000) % 1 < 0.93])
    late = ((times - times[0]) * fps / 1000) % 1
    times = times[(late == 0) | (late > 0.07)]
    path = write_clip(tmp_path / "a.mkv", numbered(len(times)), times.tolist())

    graph, expected = Graph(), []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        nodes = [graph.add_buffer(template=stream), graph.add("setpts", "PTS-STARTPTS")]
        nodes += [graph.add("fps", f"fps={fps}:round=up"), graph.add("buffersink")]
        graph.link_nodes(*nodes).configure()
        for frame in [*container.decode(stream), None]:
            graph.vpush(frame)
            while True:
                try:
                    expected.append(graph.vpull().to_ndarray(format="rgb24"))
                except (av.BlockingIOError, av.EOFError):
                    break
    count = int((times[-1] - times[0]) * fps / 1000)
    assert count > 5
    assert seen(path, count, fps) == numbers(np.stack(expected))[:count]


def cut(path: Path, start: Fraction, length: Fraction) -> None:
    """Change the edit list of an mp4 so that it begins at `start` seconds and lasts `length`."""
    with av.open(str(path)) as container:
        time_base = container.streams.video[0].time_base
    assert time_base is not None
    data = bytearray(path.read_bytes())
    at = data.index(b"elst")
    version, count, _, begin = struct.unpack_from(">B3xIIi", data, at + 4)
    assert (version, count) == (0, 1)
    struct.pack_into(">Ii", data, at + 12, int(length * 1000), begin + int(start * time_base.denominator))
    path.write_bytes(data)


@pytest.mark.parametrize("how", [H264, B_FRAMES])
@pytest.mark.parametrize("first", [3, 10])
def test_an_edit_list_says_where_a_clip_begins(tmp_path: Path, how: dict[str, Any], first: int) -> None:
    """A telephone that cuts a clip keeps all frames and writes an edit list; frame 3 is amid a group."""
    path = write_clip(tmp_path / "a.mp4", numbered(32), range(32), time_base=Fraction(1, FPS), **how)
    cut(path, Fraction(first, FPS), Fraction(1))
    assert seen(path, 16) == list(range(first, first + 16))
    with pytest.raises(UserError, match=r"too short, it lasts 1\.00 s"):
        read_video(path, 17, SIZE)


@pytest.mark.parametrize(("source", "wanted"), [(16, 16), (32, 16), (30, 16), (8, 16), (24, 16)])
def test_a_video_is_read_at_another_rate(source: int, wanted: int, tmp_path: Path) -> None:
    """Each frame of the source has a brightness of its own: which ones are taken can be told."""
    levels = np.arange(0, 240, 10)
    frames = np.broadcast_to(levels[:, None, None, None], (len(levels), 32, 48, 3)).astype(np.uint8)
    write_mp4(tmp_path / "a.mp4", frames, fps=source)
    count = int((len(levels) - 1) * wanted / source)
    read_back = read_video(tmp_path / "a.mp4", count, (32, 48), wanted)
    at_each = [int(i / wanted * source + 1e-6) for i in range(count)]  # the frame on screen at each instant
    found = np.abs(read_back.mean((1, 2, 3))[:, None] - levels).argmin(1)
    assert found.tolist() == at_each


def test_the_last_frame_lasts_as_long_as_it_says(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", numbered(9), [125 * i for i in range(9)], fps=8)
    assert seen(path, 18) == [i // 2 for i in range(18)]
    with pytest.raises(UserError, match=r"too short, it lasts 1\.1\d s; give 1\.19 s or more"):
        read_video(path, 19, SIZE)


def test_the_last_frame_may_last_long(tmp_path: Path) -> None:
    frames = [av.VideoFrame.from_ndarray(image, format="rgb24") for image in numbered(4)]
    frames[-1].duration = 1000

    def set_up(stream: VideoStream) -> None:
        stream.codec_context.flags |= 0x100  # hand durations on

    path = write_clip(tmp_path / "a.mp4", frames, [0, 62, 124, 186], setup=set_up, **H264)
    assert seen(path, 18) == [0, 1, 2, *[3] * 15]
    with pytest.raises(UserError, match=r"too short, it lasts 1\.19 s"):
        read_video(path, 20, SIZE)


def test_a_cover_is_no_clip(tmp_path: Path) -> None:
    def song(path: Path, *, video: bool) -> None:
        with av.open(str(path), "w") as container:
            cover = container.add_stream("png", rate=1)
            cover.width, cover.height, cover.pix_fmt = 48, 32, "rgb24"
            cover.disposition = Disposition.attached_pic
            sound = container.add_stream("aac", rate=16000, layout="mono")
            moving = container.add_stream("libx264", rate=FPS, options={"qp": "4"}) if video else None
            if moving:
                moving.width, moving.height, moving.pix_fmt = 48, 32, "yuv420p"
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 250, np.uint8), format="rgb24")
            container.mux(cover.encode(frame))
            tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            tone.sample_rate = 16000
            container.mux(sound.encode(tone))
            for number, pixels in enumerate(numbered(20)):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, FPS)
                container.mux(moving.encode(frame) if moving else [])
            streams: list[av.VideoStream | av.AudioStream] = [cover, sound, *([moving] if moving else [])]
            for stream in streams:
                container.mux(stream.encode(None))

    song(tmp_path / "song.mp4", video=False)
    with pytest.raises(UserError, match=r"song\.mp4 has no video in it; give"):
        read_video(tmp_path / "song.mp4", 1, SIZE)
    song(tmp_path / "both.mp4", video=True)
    assert seen(tmp_path / "both.mp4", 9) == list(range(9))


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("no video")
    whole = write_clip(tmp_path / "whole.mp4", numbered(20), [*EVEN, 1000, 1062, 1124, 1186], **H264)
    (tmp_path / "half.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])  # its index is lost
    for name, why in (
        ("a.mp4", "Invalid data found when processing input"),
        ("half.mp4", "Invalid data found when processing input"),
        ("missing.mp4", "No such file or directory"),
        ("", "Is a directory"),
    ):
        with pytest.raises(UserError, match=rf"{name} cannot be read as a video \({why}\); give an mp4"):
            read_video(tmp_path / name, 9, SIZE)
    write_mp4(tmp_path / "short.mp4", numbered(5), fps=16)
    with pytest.raises(UserError, match=r"is too short, it lasts 0\.31 s; give 0\.56 s or more\.$"):
        read_video(tmp_path / "short.mp4", 9, SIZE)


def test_a_codec_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", numbered(9), EVEN[:9], codec="libvpx-vp9", pixels="yuv420p")
    path.write_bytes(path.read_bytes().replace(b"V_VP9", b"V_XYZ"))
    with pytest.raises(UserError, match=r"a\.mkv is in a codec that FFmpeg does not know; give it in H\.264"):
        read_video(path, 1, SIZE)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi", "a.webm"])
def test_damaged_clips_are_read_or_refused(tmp_path: Path, name: str) -> None:
    """Never a traceback."""
    how: dict[str, Any] = {"codec": "libvpx-vp9", "pixels": "yuv420p"} if name == "a.webm" else H264
    times: dict[str, Any] = {"times": range(20), "time_base": Fraction(1, FPS)}
    path = write_clip(tmp_path / name, numbered(20), **times, **how)
    whole, draw, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(40):
        data = bytearray(whole)
        for at in draw.integers(0, len(data), draw.integers(1, 12)):
            data[at] = draw.integers(256)
        path.write_bytes(data[: draw.integers(20, len(data))] if draw.random() < 0.3 else data)
        try:
            assert read_video(path, 9, (16, 24)).shape == (9, 16, 24, 3)
        except UserError:
            refused += 1
    assert refused > 0


def test_a_file_that_breaks_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "whole.ts", numbered(32), range(32), time_base=Fraction(1, FPS), **H264)
    part = tmp_path / "part.ts"
    part.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert seen(part, 9) == list(range(9))
    with pytest.raises(UserError, match="too short"):
        read_video(part, 31, SIZE)


def test_frames_that_are_too_large_are_never_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = write_clip(tmp_path / "small.ts", numbered(9), EVEN[:9], **H264)
    large = write_clip(tmp_path / "large.ts", numbered(9, 96, 128), [t + 558 for t in EVEN[:9]], **H264)
    (tmp_path / "grows.ts").write_bytes(small.read_bytes() + large.read_bytes())
    assert seen(tmp_path / "grows.ts", 13) == [*range(9), *range(4)]
    monkeypatch.setattr(clips, "MAX_PIXELS", 9000)
    assert seen(small, 8) == list(range(8))
    decoded: list[Clip] = []

    def noting(clip: Clip) -> Iterator[av.VideoFrame]:
        decoded.append(clip)
        return iter(())

    monkeypatch.setattr(Clip, "frames", noting)
    with pytest.raises(UserError, match=r"The frames of .*large\.ts are too large, 128x96 pixels"):
        read_video(large, 1, SIZE)
    assert not decoded
    monkeypatch.undo()
    monkeypatch.setattr(clips, "MAX_PIXELS", 9000)
    with pytest.raises(UserError, match=r"cannot be read as a video"):
        read_video(tmp_path / "grows.ts", 13, SIZE)


def test_a_small_file_of_huge_frames_takes_no_memory(tmp_path: Path) -> None:
    """100 KB that would be 100 MB; opening a file decodes a frame, unless it is told not to."""
    frame = av.VideoFrame(12_000, 8_000, "gray")
    frame.planes[0].update(bytes(frame.planes[0].buffer_size))
    path = write_clip(tmp_path / "a.mov", [frame], [0], codec="png", pixels="gray")
    script = (
        "import resource, sys\n"
        "from dummyforcing.media.clips import read_video\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "try: read_video(sys.argv[1], 1, (32, 48))\n"
        "except ValueError as error: print(error)\n"
        "print(peak() - before)\n"
    )
    run = subprocess.run([sys.executable, "-c", script, path], check=True, capture_output=True, text=True)
    said, kilobytes = run.stdout.splitlines()
    assert "are too large, or damaged; give a clip of 67 megapixels at most" in said
    assert int(kilobytes) < 50_000


def test_frames_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[av.VideoFrame] = []
    picture = Display.picture

    def noting(display: Display, frame: av.VideoFrame) -> Image.Image:
        made.append(frame)
        return picture(display, frame)

    monkeypatch.setattr(Display, "picture", noting)
    path = write_clip(tmp_path / "a.mkv", numbered(12), [250 * i for i in range(12)])
    assert len(read_video(path, 16, SIZE)) == 16
    assert len(made) == 4


def test_all_frames_of_a_video(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", numbered(12), VARIABLE, **B_FRAMES)
    assert numbers(read_mp4(path)) == list(range(12))
    large = write_clip(tmp_path / "b.ts", numbered(3, 96, 128), EVEN[:3], **H264)
    small = write_clip(tmp_path / "c.ts", numbered(3), EVEN[:3], **H264)
    (tmp_path / "d.ts").write_bytes(large.read_bytes() + small.read_bytes())
    with pytest.raises(UserError, match="its frames are of several sizes"):
        read_mp4(tmp_path / "d.ts")
    with pytest.raises(UserError, match="cannot be read as a video"):
        read_mp4(tmp_path / "missing.mp4")


def test_times_grow(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.avi", numbered(20), range(20), time_base=Fraction(1, FPS), **B_FRAMES)
    with Clip(path) as clip:
        ends = [end for _, end in clip.shown(FPS)]
    assert ends == [Fraction(i + 1, FPS) for i in range(20)]
