"""How frames look: computed from the definitions of ITU-T H.273 and BT.2100, not from what was seen."""

import struct
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.stream import VideoStream

from dummyforcing.errors import PictureWarning, UserError
from dummyforcing.media.clips import Clip, read_mp4, read_video
from dummyforcing.media.light import to_bt709
from tests.footage import numbered, write_clip

LUMA = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}
"""Kr and Kb of each matrix."""
TV, PC = 1, 2
GRAYS = [(128, 128, 128), (255, 255, 255), (0, 0, 0)]
COLORS = [*GRAYS, (210, 60, 40), (40, 160, 70), (50, 60, 190), (200, 190, 60)]


@pytest.fixture(autouse=True)
def nothing_is_said() -> None:
    """Unless a test says so."""
    warnings.simplefilter("error", PictureWarning)


def planar(planes: np.ndarray, pixels: str) -> av.VideoFrame:
    """A frame of the given planes."""
    frame = av.VideoFrame(planes.shape[2], planes.shape[1], pixels)
    for plane, values in zip(frame.planes, planes.astype("<u2" if "10" in pixels else np.uint8), strict=True):
        rows = np.zeros((plane.height, plane.line_size // values.itemsize), values.dtype)
        rows[:, : values.shape[1]] = values
        plane.update(rows.tobytes())
    return frame


def stripes(colors: np.ndarray, height: int = 32, each: int = 16) -> np.ndarray:
    """A picture of one stripe per color."""
    return np.repeat(np.repeat(np.asarray(colors)[None], height, 0), each, 1)


def coded(colors: np.ndarray, matrix: int, full: bool, bits: int = 8) -> np.ndarray:
    """Planes Y', Cb, Cr of R'G'B' in 0..1."""
    red, green, blue = np.moveaxis(np.asarray(colors, float), -1, 0)
    kr, kb = LUMA[matrix]
    y = kr * red + (1 - kr - kb) * green + kb * blue
    cb, cr = (blue - y) / (2 * (1 - kb)), (red - y) / (2 * (1 - kr))
    scale, top = 2 ** (bits - 8), 2**bits - 1
    if full:
        planes = [y * top, cb * top + 128 * scale, cr * top + 128 * scale]
    else:
        planes = [(16 + 219 * y) * scale, (128 + 224 * cb) * scale, (128 + 224 * cr) * scale]
    return np.stack(planes).round().clip(0, top)


def tagged(
    matrix: int = 2, range_: int = 0, light: int = 2, primaries: int = 2
) -> Callable[[VideoStream], None]:
    """What a stream says of its colours."""

    def set_up(stream: VideoStream) -> None:
        context = stream.codec_context
        context.colorspace, context.color_range = matrix, range_
        context.color_trc, context.color_primaries = light, primaries

    return set_up


def first(path: Path) -> np.ndarray:
    """The first frame as it is shown, as numbers that can be subtracted."""
    with Clip(path) as clip:
        return np.asarray(clip.picture(next(clip.frames()))).astype(int)


def stripes_of(picture: np.ndarray, each: int = 16) -> np.ndarray:
    return picture[16, each // 2 :: each]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", LUMA)
@pytest.mark.parametrize("how", ["h264", "ffv1", "10 bits"])
def test_matrix_and_range(tmp_path: Path, matrix: int, full: bool, how: str) -> None:
    pixels, bits = ("yuv444p10le", 10) if how == "10 bits" else ("yuv444p", 8)
    frame = planar(coded(stripes(np.array(COLORS) / 255), matrix, full, bits), pixels)
    frame.colorspace, frame.color_range = matrix, PC if full else TV
    codec: dict[str, Any] = {"codec": "ffv1"} if how == "ffv1" else {"codec": "libx264", "qp": "0"}
    setup = tagged(matrix, PC if full else TV)
    path = write_clip(tmp_path / "a.mkv", [frame] * 3, range(3), pixels=pixels, setup=setup, **codec)
    assert np.abs(stripes_of(first(path)) - COLORS).max() <= 2


@pytest.mark.parametrize(
    ("height", "width", "matrix"), [(480, 112, 6), (576, 112, 6), (720, 112, 1), (32, 1280, 1)]
)
def test_colors_that_nothing_is_said_of(tmp_path: Path, height: int, width: int, matrix: int) -> None:
    """As players assume: BT.601 of a size of DVDs, BT.709 above, both in TV range."""
    picture = np.resize(stripes(np.array(COLORS) / 255, height), (height, width, 3))
    picture[:, :112] = stripes(np.array(COLORS) / 255, height)
    frame = planar(coded(picture, matrix, full=False), "yuv444p")
    path = write_clip(
        tmp_path / "a.mp4", [frame] * 2, range(2), codec="libx264", pixels="yuv444p", qp="0", fps=16
    )
    assert np.abs(stripes_of(first(path)[:, :112]) - COLORS).max() <= 2


@pytest.mark.parametrize(
    ("codec", "matrix", "range_", "right", "down"),
    [
        ("libx264", 1, TV, 0, 0.5),
        ("libx265", 9, TV, 0, 0),
        ("libx264", 9, TV, 0, 0),
        ("mjpeg", 6, PC, 0.5, 0.5),
    ],
)
@pytest.mark.parametrize("across", [False, True])
def test_chroma_lies_where_the_codec_has_it(
    tmp_path: Path, codec: str, matrix: int, range_: int, right: float, down: float, across: bool
) -> None:
    """Beside the left one of two pixels in H.264, amid four in JPEG, at the first of four in BT.2020."""
    frame = av.VideoFrame(128, 128, "yuv420p")
    frame.colorspace, frame.color_range = matrix, range_
    at = 2 * np.arange(64) + (right if across else down)
    wave = np.broadcast_to(128 + 50 * np.sin(at / 8), (64, 64))
    wave = (wave if across else wave.T).round().astype(np.uint8)
    shown: tuple[Any, ...] = (128, 128, wave)
    for plane, values in zip(frame.planes, shown, strict=True):
        rows = np.full((plane.height, plane.line_size), 128, np.uint8)
        rows[:, : plane.width] = values
        plane.update(rows.tobytes())
    exact: dict[str, Any] = {
        "libx264": {"qp": "0"},
        "libx265": {"x265-params": "lossless=1:bframes=0:frame-threads=1:pools=none:log-level=none"},
    }
    path = write_clip(
        tmp_path / "a.mkv",
        [frame] * 2,
        range(2),
        codec=codec,
        pixels="yuv420p",
        setup=tagged(matrix, range_, 1, 1),
        **exact.get(codec, {"qscale": "1"}),
    )
    red = first(path)[..., 0]
    found = (red if across else red.T)[64]
    scale, zero = (255 / 224, 255 / 219 * 112) if range_ == TV else (1, 128)
    wanted = zero + 2 * (1 - LUMA[matrix][0]) * scale * 50 * np.sin(np.arange(128) / 8)
    shifts = {shift: np.abs(found[8:-8] - np.roll(wanted, shift)[8:-8]).mean() for shift in (-1, 0, 1)}
    assert shifts[0] <= 2
    assert abs(shifts[1] - shifts[-1]) < 1.5


def test_motion_jpeg_is_of_full_range(tmp_path: Path) -> None:
    frame = planar(coded(stripes(np.array(COLORS) / 255), 6, full=True), "yuv444p")
    frame.color_range = PC
    path = write_clip(
        tmp_path / "a.avi",
        [frame] * 2,
        range(2),
        codec="mjpeg",
        pixels="yuv444p",
        time_base=Fraction(1, 16),
        qscale="2",
        setup=tagged(range_=PC),
    )
    assert np.abs(stripes_of(first(path)) - COLORS).max() <= 6


def test_colors_that_ffmpeg_cannot_show_are_refused(tmp_path: Path) -> None:
    frame = planar(coded(stripes(np.array(COLORS) / 255), 1, full=False), "yuv444p")
    path = write_clip(
        tmp_path / "a.mkv", [frame] * 2, range(2), codec="libx264", pixels="yuv444p", setup=tagged(14, TV)
    )
    with pytest.raises(UserError, match=r"a\.mkv has colours that FFmpeg cannot show \(yuv444p, matrix 14"):
        first(path)


# Light: BT.1886's display has gamma 2.4; diffuse white is at 203 cd/m² (BT.2408).


def pq(light: np.ndarray) -> np.ndarray:
    """The PQ signal of light in cd/m²."""
    power = (light / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg(light: np.ndarray) -> np.ndarray:
    """The HLG signal of the light of a display of 1000 cd/m², for gray."""
    scene = (light / 1000) ** (1 / 1.2)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-9)) + c)


@pytest.mark.parametrize(("name", "number", "signal"), [("PQ", 16, pq), ("HLG", 18, hlg)])
def test_hdr_is_mapped_and_said(tmp_path: Path, name: str, number: int, signal: Callable) -> None:
    light = np.array([0, 2, 10, 30, 80, 150, 203, 400, 900])
    grays = np.repeat(signal(light)[:, None], 3, 1)
    frame = planar(coded(stripes(grays), 9, full=False, bits=10), "yuv444p10le")
    path = write_clip(
        tmp_path / "a.mkv",
        [frame] * 2,
        range(2),
        codec="libx264",
        pixels="yuv444p10le",
        qp="0",
        setup=tagged(9, TV, number, 9),
    )
    with pytest.warns(PictureWarning, match=rf"a\.mkv is HDR \({name}\): what is brighter") as said:
        picture = stripes_of(read_mp4(path)[0].astype(int))
    assert len(said) == 1  # not for every frame
    assert np.ptp(picture, axis=1).max() <= 2  # gray stays gray
    right = 255 * (light.clip(0, 203) / 203) ** (1 / 2.4)
    assert np.abs(picture[:, 0] - right).max() <= 2


def test_hdr_is_of_bt2020_where_nothing_is_said(tmp_path: Path) -> None:
    frame = planar(
        coded(stripes(pq(np.array([(150, 80, 60), (60, 110, 70)]))), 9, full=False, bits=10), "yuv444p10le"
    )
    how: dict[str, Any] = {"codec": "libx264", "pixels": "yuv444p10le", "qp": "0"}
    pictures = []
    for primaries in (2, 9):
        frame.color_primaries = primaries
        path = write_clip(
            tmp_path / f"{primaries}.mkv", [frame] * 2, range(2), setup=tagged(9, TV, 16, primaries), **how
        )
        with pytest.warns(PictureWarning, match="HDR"):
            pictures.append(first(path))
    assert (pictures[0] == pictures[1]).all()


@pytest.mark.parametrize(
    ("number", "signal", "right"),
    [(16, 0.5081, 100), (16, 0.5807, 203), (16, 0.38, 26), (18, 0.75, 203), (18, 0.38, 26)],
)
def test_signals_of_the_report_on_hdr(number: int, signal: float, right: float) -> None:
    """The light in cd/m² of some signals, as ITU-R BT.2408 has it: white, and gray of 18 %."""
    shown = to_bt709(np.full((1, 1, 3), signal, np.float32), number, 9)
    assert np.abs(shown - 255 * (right / 203) ** (1 / 2.4)).max() <= 2


TO_709 = {
    9: [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],
    12: [[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]],
}
"""From linear light of BT.2020 and of Display P3."""


@pytest.mark.parametrize("primaries", TO_709)
def test_wide_colors_are_mapped(tmp_path: Path, primaries: int) -> None:
    colors = np.array([(128, 128, 128), (190, 100, 80), (100, 130, 100), (200, 180, 150), (110, 90, 160)])
    right = 255 * ((colors / 255) ** 2.4 @ np.array(TO_709[primaries]).T) ** (1 / 2.4)
    frame = planar(coded(stripes(colors / 255), 9, full=False, bits=10), "yuv444p10le")
    frame.color_primaries = primaries
    path = write_clip(
        tmp_path / "a.mkv",
        [frame] * 2,
        range(2),
        codec="libx264",
        pixels="yuv444p10le",
        qp="0",
        setup=tagged(9, TV, 1, primaries),
    )
    found = stripes_of(first(path))
    assert np.abs(found - right).max() <= 2
    assert np.abs(colors - right).max() > 10


# Direction: the corners tell it.

CORNERS = np.array([[(200, 0, 0), (0, 200, 0)], [(0, 0, 200), (200, 200, 0)]], np.uint8)
PICTURE = np.repeat(np.repeat(CORNERS, 32, 0), 48, 1)
RED, GREEN, BLUE, YELLOW = CORNERS.reshape(4, 3).astype(int)


def corners(picture: np.ndarray) -> list[list[str]]:
    names = {"red": RED, "green": GREEN, "blue": BLUE, "yellow": YELLOW}
    at = [[picture[y, x] for x in (8, -9)] for y in (8, -9)]
    return [[min(names, key=lambda n: np.abs(c - names[n]).sum()) for c in row] for row in at]


DIRECTIONS = [
    ((1, 0, 0, 1), [["red", "green"], ["blue", "yellow"]]),
    ((-1, 0, 0, 1), [["green", "red"], ["yellow", "blue"]]),
    ((1, 0, 0, -1), [["blue", "yellow"], ["red", "green"]]),
    ((-1, 0, 0, -1), [["yellow", "blue"], ["green", "red"]]),
    ((0, 1, 1, 0), [["red", "blue"], ["green", "yellow"]]),
    ((0, 1, -1, 0), [["blue", "red"], ["yellow", "green"]]),  # a quarter clockwise
    ((0, -1, 1, 0), [["green", "yellow"], ["red", "blue"]]),
    ((0, -1, -1, 0), [["yellow", "green"], ["blue", "red"]]),
]
TURNED = [(m, right) for m, right in DIRECTIONS if m[0] * m[3] - m[1] * m[2] == 1]


@pytest.mark.parametrize(
    ("name", "matrix", "right"),
    [
        *[("a.mp4", *way) for way in DIRECTIONS],
        *[("a.mov", *way) for way in DIRECTIONS],
        *[("a.mkv", *way) for way in TURNED],  # Matroska cannot mirror
    ],
)
def test_all_directions(tmp_path: Path, name: str, matrix: tuple[int, ...], right: list[list[str]]) -> None:
    """A point (x, y) is shown at (a x + c y, b x + d y), y downwards: ISO/IEC 14496-12."""
    a, b, c, d = (value << 16 for value in matrix)
    path = write_clip(
        tmp_path / name,
        [PICTURE] * 2,
        range(2),
        codec="libx264",
        pixels="yuv444p",
        setup=lambda stream: stream.set_display_matrix((a, b, 0, c, d, 0, 0, 0, 1 << 30)),
    )
    picture = first(path)
    assert picture.shape[:2] == ((64, 96) if matrix[0] else (96, 64))
    assert corners(picture) == right
    assert corners(read_mp4(path)[0].astype(int)) == right


def with_matrix(path: Path, *values: int) -> Path:
    """Write a display matrix into the header of an mp4, whatever it is."""
    data = bytearray(path.read_bytes())
    struct.pack_into(">9i", data, data.index(b"tkhd") + 44, *values)
    path.write_bytes(data)
    return path


def plain(path: Path) -> Path:
    return write_clip(
        path, [PICTURE] * 20, range(20), codec="libx264", pixels="yuv444p", time_base=Fraction(1, 16)
    )


def test_other_matrices(tmp_path: Path) -> None:
    one = 1 << 16
    empty = with_matrix(plain(tmp_path / "empty.mp4"), *[0] * 9)
    assert corners(first(empty))[0] == ["red", "green"]
    moved = with_matrix(plain(tmp_path / "moved.mp4"), 0, 2 * one, 0, -2 * one, 0, 0, 64 * one, 0, 1 << 30)
    assert corners(first(moved))[0] == ["blue", "red"]
    tilted = with_matrix(plain(tmp_path / "tilted.mp4"), 56756, 32768, 0, -32768, 56756, 0, 0, 0, 1 << 30)
    with pytest.raises(UserError, match=r"tilted\.mp4 is to be shown turned by -30 degrees; give an upright"):
        first(tilted)


@pytest.mark.parametrize(
    ("name", "turned"),
    [("a.mp4", False), ("a.mp4", True), ("a.mkv", False), ("a.mkv", True), ("a.ts", False)],
)
@pytest.mark.parametrize("aspect", [Fraction(2), Fraction(1, 2), Fraction(16, 11)])
def test_pixels_that_are_not_square(tmp_path: Path, name: str, aspect: Fraction, turned: bool) -> None:
    """A circle stays one; a turned one's pixels are as tall as they were wide."""
    y, x = np.ogrid[-1:1:128j, -1:1:128j]
    stored = 128, 128
    shape = (128, 128 * float(aspect))  # as shown
    radius = 0.6 * min(shape) / 2
    inside = (y * shape[0] / 2) ** 2 + (x * shape[1] / 2) ** 2 < radius**2
    pixels = np.where(inside[..., None], 230, 20).astype(np.uint8).repeat(3, 2)
    assert pixels.shape[:2] == stored

    def set_up(stream: VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = aspect
        if turned:
            stream.set_display_rotation(90)

    path = write_clip(
        tmp_path / name,
        [pixels] * 20,
        range(20),
        codec="libx264",
        pixels="yuv444p",
        time_base=Fraction(1, 16),
        setup=set_up,
    )
    frame = read_video(path, 9, (96, 96))[0, ..., 0] > 128
    rows, columns = np.flatnonzero(frame.any(1)), np.flatnonzero(frame.any(0))
    wide, high = np.ptp(columns) + 1, np.ptp(rows) + 1
    assert abs(wide - high) <= 2
    assert abs(wide - 0.6 * 96) <= 2
    assert abs(columns.mean() - 47.5) <= 1
    assert abs(rows.mean() - 47.5) <= 1


def test_interlaced_clips_are_said_so(tmp_path: Path) -> None:
    def set_up(stream: VideoStream) -> None:
        stream.codec_context.flags |= 0x40000 | 0x20000000  # interlaced DCT and motion estimation

    how: dict[str, Any] = {
        "codec": "mpeg2video",
        "pixels": "yuv420p",
        "time_base": Fraction(1, 25),
        "fps": 25,
    }
    path = write_clip(tmp_path / "a.ts", numbered(20, 64, 96), range(20), setup=set_up, **how)
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).interlaced_frame
    with pytest.warns(PictureWarning, match=r"a\.ts is interlaced: where it moves, its frames") as said:
        read_video(path, 9, (32, 48))
    assert len(said) == 1


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "options"),
    [
        ("a.webm", "libvpx-vp9", "yuva420p", {}),
        ("b.webm", "libvpx", "yuva420p", {"auto-alt-ref": "0"}),
        ("a.mov", "prores_ks", "yuva444p10le", {}),
        ("b.mov", "png", "rgba", {}),
        ("a.mkv", "ffv1", "bgra", {}),
        ("a.apng", "apng", "rgba", {}),
    ],
)
def test_transparent_clips_lie_on_white(
    tmp_path: Path, name: str, codec: str, pixels: str, options: dict[str, Any]
) -> None:
    """The hidden colour below is not seen."""
    picture = np.full((32, 48, 4), (200, 30, 40, 255), np.uint8)
    picture[:, 16:32, 3] = 128
    picture[:, 32:, 3] = 0
    frames = [av.VideoFrame.from_ndarray(picture, format="rgba") for _ in range(3)]
    frames = frames if pixels == "rgba" else [frame.reformat(format=pixels) for frame in frames]
    path = write_clip(tmp_path / name, frames, [0, 62, 124], codec=codec, pixels=pixels, **options)
    seen = first(path)[16, [6, 24, 42]]
    assert np.abs(seen - [(200, 30, 40), (227, 142, 147), (255, 255, 255)]).max() <= 8
