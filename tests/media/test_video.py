"""The files are re-read with PyAV; their structure is parsed by hand."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.packet import Packet
from av.video.stream import VideoStream

from dummyforcing.errors import UserError
from dummyforcing.media.frames import Frames
from dummyforcing.media.h264 import Encoder
from dummyforcing.media.video import VideoWriter, write_mp4


def frames_of(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth, moving, coloured pattern that compression hardly harms."""
    n, y, x = np.ogrid[:count, :height, :width]
    wave = np.sin((x + 3 * n) / 11) + np.cos((y - 2 * n) / 13)
    red, green, blue = (127 + 55 * wave, 127 - 55 * wave, 60 + 40 * wave)
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)


def read(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def write_then_raise(path: Path, frames: np.ndarray, error: BaseException) -> None:
    with VideoWriter(path) as writer:
        writer.write(frames)
        raise error


def boxes(path: Path) -> list[str]:
    """Names of the top-level boxes of an mp4, in order."""
    data, at, names = path.read_bytes(), 0, []
    while at < len(data):
        size, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8].decode("ascii")
        assert size >= 8, "only plain 32-bit boxes are expected"
        names.append(name)
        at += size
    assert at == len(data)
    return names


def noise(count: int) -> np.ndarray:
    """Frames that compression cannot shrink: 30 of them make about 2 MB."""
    return np.random.default_rng(0).integers(0, 256, (count, 128, 128, 3), np.uint8)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    frames = frames_of(21)
    write_mp4(tmp_path / "a.mp4", frames, fps=16)
    again = read(tmp_path / "a.mp4")
    assert again.shape == frames.shape
    assert np.abs(again.astype(float) - frames).mean() < 5  # one frame off would be 10


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 40)])
def test_colours_survive(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    frames = np.broadcast_to(np.array(colour, np.uint8), (3, 32, 32, 3))
    write_mp4(tmp_path / "a.mp4", frames)
    assert np.abs(read(tmp_path / "a.mp4").astype(int) - frames).max() <= 4


def test_chroma_lies_beside_the_left_of_two_pixels(tmp_path: Path) -> None:
    """As every player takes it of H.264."""
    across, gray = np.sin(np.arange(64) / 5), np.full((48, 64), 128.0)
    frame = np.stack([gray + 60 * across, gray - 60 * across * 0.2126 / 0.7152, gray], -1).astype(np.uint8)
    write_mp4(tmp_path / "a.mp4", [frame] * 2)
    with av.open(str(tmp_path / "a.mp4")) as container:
        planes = next(container.decode(video=0)).to_ndarray()  # (H + H / 2, W)
    red = planes[60:].reshape(24, 32)[12].astype(float)
    assert np.abs(planes[:48].astype(float) - (16 + 219 * 128 / 255)).max() <= 3  # luma is flat
    at = {shift: 60 * np.sin((2 * np.arange(32) + shift) / 5) for shift in (-0.5, 0, 0.5)}
    errors = {shift: np.abs(red - 128 - wave * 224 / 255 / 1.5748)[2:-2].mean() for shift, wave in at.items()}
    assert min(errors, key=errors.__getitem__) == 0
    assert errors[0] < 1.5


def test_browsers_can_play_it(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", frames_of(9), fps=16)
    names = boxes(tmp_path / "a.mp4")
    assert names[0] == "ftyp"
    assert names.index("moov") < names.index("mdat")
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt, stream.average_rate) == ("h264", "yuv420p", Fraction(16))
        assert (context.colorspace, context.color_primaries, context.color_trc) == (1, 1, 1)
        assert stream.frames == 9
        assert stream.duration is not None
        assert stream.time_base is not None
        assert float(stream.duration * stream.time_base) == pytest.approx(9 / 16)


def test_chunks_give_the_same_file_as_the_whole(tmp_path: Path) -> None:
    frames = frames_of(21)
    write_mp4(tmp_path / "whole.mp4", frames)
    write_mp4(tmp_path / "pieces.mp4", iter([frames[:1], frames[1:9], frames[9], frames[10:]]))
    assert (tmp_path / "whole.mp4").read_bytes() == (tmp_path / "pieces.mp4").read_bytes()


@pytest.mark.parametrize("side", [64, 160])
def test_the_file_depends_on_the_frames_alone(tmp_path: Path, side: int) -> None:
    """Not on what the memory held before: glibc fills it with another byte in each run."""
    np.save(tmp_path / "frames.npy", frames_of(21, side, side))
    script = (
        "import sys, numpy as np\n"
        "from dummyforcing.media.video import write_mp4\n"
        "write_mp4(sys.argv[2], np.load(sys.argv[1]))\n"
    )
    files = []
    for byte in ("0", "1", "128"):
        path = tmp_path / f"{byte}.mp4"
        run = [sys.executable, "-c", script, str(tmp_path / "frames.npy"), str(path)]
        subprocess.run(run, check=True, env={**os.environ, "MALLOC_PERTURB_": byte})
        files.append(path.read_bytes())
    assert files[0] == files[1] == files[2]


def test_it_appears_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"older")
    with VideoWriter(path) as writer:
        writer.write(frames_of(5))
        assert path.read_bytes() == b"older"
    assert len(read(path)) == 5
    assert os.listdir(tmp_path) == ["a.mp4"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_ctrl_c_keeps_a_playable_part(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with pytest.raises(KeyboardInterrupt):
        write_then_raise(path, frames_of(7), KeyboardInterrupt())
    assert len(read(path)) == 7
    assert boxes(path).index("moov") < boxes(path).index("mdat")
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_ctrl_c_keeps_the_older_file_and_the_part_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_mp4(path, frames_of(9))
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        write_then_raise(path, frames_of(7), KeyboardInterrupt())
    assert path.read_bytes() == before
    assert len(read(tmp_path / "a.part.mp4")) == 7
    assert sorted(os.listdir(tmp_path)) == ["a.mp4", "a.part.mp4"]


def test_a_whole_video_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    def frames() -> Iterator[np.ndarray]:
        yield frames_of(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_mp4(tmp_path / "a.mp4", frames())
    assert os.listdir(tmp_path) == []


def test_ctrl_c_before_the_first_frame_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "a.mp4"):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_ctrl_c_inside_of_a_frame_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = Encoder.encode

    def interrupted(encoder: Encoder, pixels: Frames, number: int) -> "list[Packet[VideoStream]]":
        if number == 7:
            raise KeyboardInterrupt
        return encode(encoder, pixels, number)

    monkeypatch.setattr(Encoder, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_mp4(tmp_path / "a.mp4", frames_of(9))
    assert os.listdir(tmp_path) == []


def test_a_real_ctrl_c(tmp_path: Path) -> None:
    script = (
        "import sys, numpy as np\n"
        "from dummyforcing.media.video import VideoWriter\n"
        "with VideoWriter(sys.argv[1]) as writer:\n"
        "    while True:\n"
        "        writer.write(np.zeros((4, 32, 32, 3), np.uint8))\n"
        "        print(writer.frames, flush=True)\n"
    )
    path = tmp_path / "a.mp4"
    process = subprocess.Popen(
        [sys.executable, "-c", script, path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(2)
    process.communicate(timeout=60)
    assert process.returncode != 0
    if path.exists():  # nothing is fine, too, if the signal came inside of a frame
        assert len(read(path)) >= 4
    assert os.listdir(tmp_path) in ([], ["a.mp4"])


def test_an_error_leaves_nothing_and_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"older")
    with pytest.raises(ZeroDivisionError):
        write_then_raise(path, frames_of(3), ZeroDivisionError())
    assert os.listdir(tmp_path) == ["a.mp4"]
    assert path.read_bytes() == b"older"


def test_an_os_error_of_the_caller_is_not_mistaken_for_ours(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_then_raise(tmp_path / "a.mp4", frames_of(3), FileNotFoundError("another file"))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("limit", [1000, 100_000])
def test_a_full_disk_leaves_nothing(tmp_path: Path, limit: int) -> None:
    """The file size limit of the process stands for the disk's; the operating system really refuses."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*a\.mp4"):
            write_mp4(tmp_path / "a.mp4", noise(30))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_mp4(tmp_path / "a.mp4", frames_of(3))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing/a.mp4", "does not exist"),
        ("folder.mp4", "it is a folder"),
        ("a.gif", r"ends in \.mp4"),
        ("a", r"ends in \.mp4"),
    ],
)
def test_hopeless_targets_fail_before_the_work(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(UserError, match=message), VideoWriter(tmp_path / name):
        pytest.fail("the block must not begin")
    assert os.listdir(tmp_path) == ["folder.mp4"]


def test_a_folder_without_permission_fails_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object) -> None:  # chmod does not stop root
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "touch", denied)
    with pytest.raises(UserError, match="Permission denied"), VideoWriter(tmp_path / "a.mp4"):
        pytest.fail("the block must not begin")


def test_no_frames_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no pixel frames"):
        write_mp4(tmp_path / "a.mp4", [])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("sizes", [[(33, 32)], [(32, 32), (48, 32)]])
def test_odd_or_changing_sizes_are_refused(tmp_path: Path, sizes: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match=r"sides|in a video of"):
        write_mp4(tmp_path / "a.mp4", [frames_of(2, *size) for size in sizes])
    assert os.listdir(tmp_path) == []
