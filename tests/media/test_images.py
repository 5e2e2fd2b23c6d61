"""Images as a viewer shows them: colours computed from the definitions of each format."""

import io
import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import pytest
from PIL import Image
from PIL.MpoImagePlugin import MpoImageFile

from dummyforcing.errors import PictureWarning, UserError
from dummyforcing.media.images import read_image
from tests.footage import write_clip

RAMP = np.tile(np.arange(256, dtype=np.uint8), (64, 1))
EIGHT = (64, 256)


@pytest.fixture(autouse=True)
def nothing_is_said() -> None:
    """Unless a test says so."""
    warnings.simplefilter("error")


def seen(path: Path, size: tuple[int, int] = EIGHT) -> np.ndarray:
    """The image, as numbers that can be subtracted."""
    pixels: np.ndarray = read_image(path, size)[0].astype(int)
    return pixels


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(path: Path, rows: np.ndarray, depth: int, color: int, *chunks: tuple[bytes, bytes]) -> Path:
    """Write a PNG by its specification.

    Args:
        path: Where to.
        rows: Samples `(H, W, n)`.
        depth: Bits of each.
        color: Type: 0 gray, 2 RGB, 3 palette, 4 gray and alpha, 6 RGBA.
        *chunks: Between the header and the pixels.
    """
    height, width = rows.shape[:2]
    lines = b""
    for row in rows.reshape(height, -1):
        if depth == 16:
            data = row.astype(">u2").tobytes()
        else:
            bits = np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - depth :]
            data = np.packbits(bits.reshape(-1)).tobytes()
        lines += b"\0" + data
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    body = b"".join(chunk(*each) for each in chunks)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + body
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )
    return path


def test_an_image_covers_the_size_and_is_cut_in_the_middle(tmp_path: Path) -> None:
    picture = np.zeros((100, 300, 3), np.uint8)
    picture[:, 100:200] = (255, 0, 0)  # only the middle third stays
    Image.fromarray(picture).save(tmp_path / "a.png")
    read_back = read_image(tmp_path / "a.png", (50, 50))
    assert read_back.shape == (1, 50, 50, 3)
    assert np.abs(read_back[0, :, 4:-4].astype(int) - (255, 0, 0)).max() <= 1


# Depth.


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jp2", "a.pgm"])
@pytest.mark.parametrize("depth", [8, 16])
def test_gray_of_8_and_16_bits(tmp_path: Path, name: str, depth: int) -> None:
    values = RAMP if depth == 8 else RAMP.astype(np.uint16) * 257
    image = Image.fromarray(values)
    if name == "a.pgm" and depth == 16:
        (tmp_path / name).write_bytes(b"P5 256 64 65535\n" + values.astype(">u2").tobytes())
    else:
        image.save(tmp_path / name)
    assert np.abs(seen(tmp_path / name) - RAMP[..., None]).max() <= 1


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_gray_of_few_bits(tmp_path: Path, depth: int) -> None:
    values = RAMP[..., None].astype(int) >> (8 - depth)
    path = png(tmp_path / "a.png", values, depth, 0)
    assert np.abs(seen(path) - values * 255 // (2**depth - 1)).max() <= 1


@pytest.mark.parametrize("color", [2, 4, 6])
def test_colors_of_16_bits(tmp_path: Path, color: int) -> None:
    rgb = np.stack([RAMP, RAMP[:, ::-1], RAMP // 2], -1).astype(int)
    parts = [RAMP[..., None].astype(int)] if color == 4 else [rgb]
    parts += [np.full((64, 256, 1), 255)] if color != 2 else []
    path = png(tmp_path / "a.png", np.concatenate(parts, -1) * 257, 16, color)
    assert np.abs(seen(path) - (RAMP[..., None] if color == 4 else rgb)).max() <= 1


def tiff(
    path: Path, values: np.ndarray, bits: int, kind: int, meaning: int, order: Literal["<", ">"] = "<"
) -> Path:
    """Write a gray TIFF by its specification; `meaning` 0 is white at 0."""
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    if bits == 12:
        pairs = values.reshape(-1, 2).astype(int)
        packed = [pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255]
        data = np.stack(packed, 1).astype(np.uint8).tobytes()
    height, width = values.shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, meaning), (273, 8), (277, 1)]
    tags += [(278, height), (279, len(data)), (339, kind)]
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8 + len(data))
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    path.write_bytes(head + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4))
    return path


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("bits", "kind", "meaning"), [(16, 1, 1), (16, 1, 0), (12, 1, 1), (32, 3, 1), (32, 3, 0), (8, 1, 0)]
)
def test_gray_tiffs(tmp_path: Path, order: Literal["<", ">"], bits: int, kind: int, meaning: int) -> None:
    """Of 12 bits, white is 4095; in negatives, it is 0."""
    if (order, bits, meaning) in {(">", 16, 0), (">", 12, 1)}:  # Pillow does not read these
        with pytest.raises(UserError, match=r"as an image \(of an unknown kind\)"):
            seen(tiff(tmp_path / "a.tif", RAMP.astype(np.uint16), bits, kind, meaning, order))
        return
    shares = RAMP / 255 if meaning else 1 - RAMP / 255
    values = {8: np.uint8, 12: np.uint16, 16: np.uint16}.get(bits)
    stored = (shares * (2**bits - 1)).round().astype(values) if values else shares.astype(np.float32)
    assert (
        np.abs(seen(tiff(tmp_path / "a.tif", stored, bits, kind, meaning, order)) - RAMP[..., None]).max()
        <= 1
    )


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (
            RAMP.astype(np.float32) / 100,
            r"has pixels from 0 to 2\.55; give it with black at 0 and white at 1",
        ),
        (RAMP.astype(np.float32) / 255 - 0.5, r"has pixels from -0\.5 to 0\.5"),
        (np.where(RAMP == 7, np.nan, 0.5).astype(np.float32), "has pixels from nan to nan"),
        (np.where(RAMP == 7, np.inf, 0.5).astype(np.float32), r"has pixels from 0\.5 to inf"),
        (RAMP.astype(np.int32) * 1000, "has whole numbers of 32 bits as pixels; give it with 8 or 16"),
    ],
)
def test_numbers_without_a_white_are_refused(tmp_path: Path, values: np.ndarray, why: str) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=rf"a\.tif {why}"):
        seen(tmp_path / "a.tif")


# Transparency.

HIDDEN = (10, 200, 30)


def on_white(color: Sequence[int], alpha: float) -> np.ndarray:
    return np.array(color) * alpha / 255 + 255 - alpha


@pytest.mark.parametrize("alpha", [0, 100, 255])
@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif", "a.tga", "a.avif", "a.jp2"])
def test_transparent_parts_lie_on_white(tmp_path: Path, name: str, alpha: int) -> None:
    Image.new("RGBA", (64, 64), (*HIDDEN, alpha)).save(tmp_path / name, lossless=True)
    assert np.abs(seen(tmp_path / name, (32, 32)) - on_white(HIDDEN, alpha)).max() <= 3


@pytest.mark.parametrize("alpha", [0, 100, 255])
@pytest.mark.parametrize("depth", [8, 16])
def test_gray_with_alpha(tmp_path: Path, depth: int, alpha: int) -> None:
    values = np.broadcast_to([80, alpha], (8, 8, 2)) * (1 if depth == 8 else 257)
    assert (
        np.abs(seen(png(tmp_path / "a.png", values, depth, 4), (8, 8)) - on_white([80] * 3, alpha)).max() <= 1
    )


def test_a_palette_with_alpha(tmp_path: Path) -> None:
    palette = bytes([0, 0, 0, *HIDDEN, 50, 60, 70, 250, 0, 0])
    values = np.repeat(np.arange(4), 8)[None, :, None].repeat(8, 0)
    path = png(tmp_path / "a.png", values, 2, 3, (b"PLTE", palette), (b"tRNS", bytes([255, 0, 100])))
    right = [(0, 0, 0), (255, 255, 255), on_white((50, 60, 70), 100), (250, 0, 0)]
    assert np.abs(seen(path, (8, 32))[4, 4::8] - right).max() <= 1


@pytest.mark.parametrize("name", ["a.gif", "a.png"])
def test_a_transparent_colour_of_a_palette(tmp_path: Path, name: str) -> None:
    image = Image.new("P", (32, 32), 1)
    image.putpalette([0, 0, 0, *HIDDEN, 250, 0, 0])
    image.paste(2, (16, 0, 32, 32))
    image.save(tmp_path / name, transparency=1)
    assert np.abs(seen(tmp_path / name, (32, 32))[16, [4, 28]] - [(255, 255, 255), (250, 0, 0)]).max() <= 1


@pytest.mark.parametrize(("depth", "color"), [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2)])
def test_a_transparent_colour_of_a_png(tmp_path: Path, depth: int, color: int) -> None:
    """The key is in the units of the file's samples."""
    top, channels = 2**depth - 1, 3 if color else 1
    other, key = 0, {1: 1, 16: 0x54F1}.get(depth, top // 3)
    row = np.repeat([other, key], 8)[None, :, None].repeat(8, 0).repeat(channels, 2)
    path = png(tmp_path / "a.png", row, depth, color, (b"tRNS", struct.pack(">H", key) * channels))
    picture = seen(path, (8, 16))
    assert np.abs(picture[4, 12] - 255).max() <= 1
    assert np.abs(picture[4, 4]).max() <= 1


# Profiles, made by hand after ICC.1:2001: colours have the light of D50 there.

SRGB_TO_XYZ = np.array([[0.4360, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]])
P3_TO_XYZ = np.array([[0.5151, 0.2920, 0.1571], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]])
D50 = (0.9642, 1.0, 0.8249)


def number(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def profile(space: bytes, kind: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile."""
    tags = {b"wtpt": b"XYZ \0\0\0\0" + b"".join(map(number, D50)), **tags}
    tags[b"desc"] = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(79)
    tags[b"cprt"] = b"text\0\0\0\0none\0"
    table, data, at = b"", b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        table += struct.pack(">4sII", name, at + len(data), len(value))
        data += value
    size = at + len(data)
    header = struct.pack(">I4sI4s4s4s", size, b"none", 0x02400000, kind, space, connection)
    header += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + b"".join(map(number, D50))
    return header + bytes(128 - len(header)) + struct.pack(">I", len(tags)) + table + data


def rgb_profile(to_xyz: np.ndarray, gamma: float) -> bytes:
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    tags = {
        name: b"XYZ \0\0\0\0" + b"".join(map(number, to_xyz[:, i]))
        for i, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))
    }
    return profile(b"RGB ", b"mntr", b"XYZ ", {**tags, b"rTRC": curve, b"gTRC": curve, b"bTRC": curve})


def gray_profile(gamma: float) -> bytes:
    return profile(
        b"GRAY", b"mntr", b"XYZ ", {b"kTRC": b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))}
    )


def srgb(light: np.ndarray) -> np.ndarray:
    light = np.clip(light, 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


COLORS = np.array([(128, 128, 128), (255, 255, 255), (190, 100, 80), (100, 130, 100), (110, 90, 160)])


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif", "a.avif"])
@pytest.mark.parametrize("alpha", [None, 255, 100])
def test_a_profile_of_wide_colours(tmp_path: Path, name: str, alpha: int | None) -> None:
    if alpha is not None and name == "a.jpg":
        alpha = None
    right = srgb((COLORS / 255) ** 2.2 @ (np.linalg.inv(SRGB_TO_XYZ) @ P3_TO_XYZ).T)
    assert np.abs(right - COLORS).max() > 10
    image = Image.fromarray(COLORS.astype(np.uint8)[None].repeat(16, 0).repeat(16, 1))
    if alpha is not None:
        image.putalpha(alpha)
    options = {"subsampling": "4:4:4", "quality": 100} if name in ("a.jpg", "a.avif") else {"lossless": True}
    image.save(tmp_path / name, icc_profile=rgb_profile(P3_TO_XYZ, 2.2), **options)
    found = seen(tmp_path / name, (16, 80))[8, 8::16]
    expected = right if alpha is None else np.stack([on_white(color, alpha) for color in right])
    assert np.abs(found - expected).max() <= 3


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_a_profile_of_gray(tmp_path: Path, mode: str) -> None:
    """Whose gamma is 1: the numbers are light."""
    values = Image.fromarray(RAMP if mode != "I;16" else RAMP.astype(np.uint16) * 257)
    image = values.convert("LA") if mode == "LA" else values
    image.save(tmp_path / "a.png", icc_profile=gray_profile(1.0))
    assert np.abs(seen(tmp_path / "a.png") - srgb(RAMP / 255)[..., None]).max() <= 2


def lab(color: Sequence[float]) -> np.ndarray:
    """sRGB of a colour of CIELAB."""
    lightness, a, b = color
    y = (lightness + 16) / 116
    roots = np.array([y + a / 500, y, y - b / 200])
    xyz = np.where(roots > 6 / 29, roots**3, 3 * (6 / 29) ** 2 * (roots - 4 / 29)) * D50
    return srgb(np.linalg.inv(SRGB_TO_XYZ) @ xyz)


INKS = {
    (0, 0, 0, 0): (100, 0, 0),
    (1, 0, 0, 0): (50, -20, -20),
    (0, 1, 0, 0): (50, 40, 10),
    (0, 0, 0, 1): (30, 5, 5),
}


def cmyk_profile() -> bytes:
    """Its inks are others than Pillow thinks: cyan is a dull blue, black is brown."""
    identity = bytes(range(256))
    table = b""
    for inks in np.ndindex(2, 2, 2, 2):
        lightness, a, b = INKS.get(inks, (40, 0, 0))
        table += bytes([round(lightness * 2.55), a + 128, b + 128])
    matrix = b"".join(number(value) for value in np.eye(3).ravel())
    data = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + identity * 4 + table + identity * 3
    return profile(b"CMYK", b"prtr", b"Lab ", {b"A2B0": data})


@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
@pytest.mark.parametrize("inks", INKS)
def test_cmyk_with_a_profile(tmp_path: Path, name: str, inks: tuple[int, int, int, int]) -> None:
    image = Image.new("CMYK", (32, 32), tuple(255 * ink for ink in inks))
    image.save(tmp_path / name, icc_profile=cmyk_profile(), quality=100) if name == "a.jpg" else image.save(
        tmp_path / name, icc_profile=cmyk_profile()
    )
    right = lab(INKS[inks])
    assert np.abs(seen(tmp_path / name, (32, 32))[16, 16] - right).max() <= 4
    naive = np.array(image.convert("RGB").getpixel((0, 0)))
    assert inks == (0, 0, 0, 0) or np.abs(naive - right).max() > 20


def test_cmyk_without_a_profile(tmp_path: Path) -> None:
    Image.new("CMYK", (32, 32), (255, 0, 0, 0)).save(tmp_path / "a.jpg", quality=100)
    assert np.abs(seen(tmp_path / "a.jpg", (32, 32))[16, 16] - (0, 255, 255)).max() <= 3


def test_a_picture_in_lab(tmp_path: Path) -> None:
    colors = [(50, 0, 0), (60, 30, -20), (70, -30, 30)]
    stored = np.array([(round(l * 2.55), a % 256, b % 256) for l, a, b in colors], np.uint8)  # noqa: E741
    Image.fromarray(stored[None].repeat(16, 0).repeat(16, 1), "LAB").save(tmp_path / "a.tif")
    found = seen(tmp_path / "a.tif", (16, 48))[8, 8::16]
    assert np.abs(found - [lab(color) for color in colors]).max() <= 4


@pytest.mark.parametrize("bad", [b"nonsense", cmyk_profile(), rgb_profile(P3_TO_XYZ, 2.2)[:200]])
def test_a_profile_of_no_use_is_left_out(tmp_path: Path, bad: bytes) -> None:
    """Damaged, or of other colours than the image: as browsers do."""
    picture = COLORS.astype(np.uint8)[None].repeat(16, 0).repeat(16, 1)
    Image.fromarray(picture).save(tmp_path / "a.png", icc_profile=bad)
    assert np.abs(seen(tmp_path / "a.png", (16, 80)) - picture).max() == 0


@pytest.mark.parametrize("gamma", [1.0, 1 / 1.8, 1 / 2.2])
def test_the_gamma_of_a_png(tmp_path: Path, gamma: float) -> None:
    path = png(tmp_path / "a.png", RAMP[..., None], 8, 0, (b"gAMA", struct.pack(">I", round(gamma * 1e5))))
    light = (RAMP / 255.0) ** (1 / gamma)
    assert np.abs(seen(path) - 255 * light[..., None] ** (1 / 2.2)).max() <= 1
    told = png(
        tmp_path / "b.png", RAMP[..., None], 8, 0, (b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 10**5))
    )
    assert np.abs(seen(told) - RAMP[..., None]).max() == 0


# HDR.


def test_a_png_in_pq(tmp_path: Path) -> None:
    """Paper white is at 58 % of the signal, 100 cd/m² at 51 %: ITU-R BT.2408."""
    values = np.repeat([0, 0.5081, 0.5807, 0.75], 16)[None, :, None].repeat(16, 0).repeat(3, 2) * 65535
    path = png(tmp_path / "a.png", values.round(), 16, 2, (b"cICP", bytes([9, 16, 0, 1])))
    with pytest.warns(PictureWarning, match=r"a\.png is HDR \(PQ\)"):
        found = seen(path, (16, 64))[8, 8::16]
    assert np.abs(found - [[0], [255 * (100 / 203) ** (1 / 2.4)], [255], [255]]).max() <= 2
    plain = png(tmp_path / "b.png", values.round(), 16, 2, (b"cICP", bytes([1, 13, 0, 1])))
    assert np.abs(seen(plain, (16, 64))[8, 8::16] - values[8, 8::16] / 257).max() <= 1


def test_an_avif_in_pq(tmp_path: Path) -> None:
    frame = av.VideoFrame(64, 64, "yuv420p10le")
    for plane, level in zip(frame.planes, (64 + round(0.5081 * 876), 512, 512), strict=True):
        plane.update(np.full(plane.buffer_size // 2, level, "<u2").tobytes())

    def set_up(stream: av.VideoStream) -> None:
        context = stream.codec_context
        context.colorspace, context.color_range, context.color_trc, context.color_primaries = 9, 1, 16, 9

    path = write_clip(
        tmp_path / "a.avif", [frame], [0], codec="libsvtav1", pixels="yuv420p10le", setup=set_up
    )
    with pytest.warns(PictureWarning, match=r"a\.avif is HDR \(PQ\)"):
        found = seen(path, (64, 64))[32, 32]
    assert np.abs(found - 255 * (100 / 203) ** (1 / 2.4)).max() <= 2


def test_a_gain_map_is_left_out(tmp_path: Path) -> None:
    """Of a photo for HDR screens the first picture is the one for usual screens; the second is no picture."""
    base, gain = Image.new("RGB", (64, 64), (120, 80, 40)), Image.new("RGB", (64, 64), (255, 0, 255))
    base.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[gain], quality=95)
    with Image.open(tmp_path / "a.jpg") as image:
        assert isinstance(image, MpoImageFile)
        assert image.n_frames == 2
    assert np.abs(seen(tmp_path / "a.jpg", (64, 64)) - (120, 80, 40)).max() <= 3


# Direction, and further pictures.

CORNERS = np.array([[(200, 0, 0), (0, 200, 0)], [(0, 0, 200), (200, 200, 0)]], np.uint8)
R, G, B, Y = CORNERS.reshape(4, 3).tolist()


@pytest.mark.parametrize(
    ("orientation", "right"),
    [  # where the first row and the first column of the file are to be seen
        (1, [[R, G], [B, Y]]),  # top, left
        (2, [[G, R], [Y, B]]),  # top, right
        (3, [[Y, B], [G, R]]),  # bottom, right
        (4, [[B, Y], [R, G]]),  # bottom, left
        (5, [[R, B], [G, Y]]),  # left, top
        (6, [[B, R], [Y, G]]),  # right, top
        (7, [[Y, G], [B, R]]),  # right, bottom
        (8, [[G, Y], [R, B]]),  # left, bottom
        (9, [[R, G], [B, Y]]),  # there is none
    ],
)
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
def test_all_orientations(tmp_path: Path, name: str, orientation: int, right: list) -> None:
    image = Image.fromarray(CORNERS.repeat(64, 0).repeat(96, 1))
    exif = Image.Exif()
    exif[274] = orientation
    image.save(tmp_path / name, exif=exif, **({"quality": 95} if name == "a.jpg" else {"lossless": True}))
    size = (128, 192) if orientation < 5 or orientation == 9 else (192, 128)
    picture = seen(tmp_path / name, size)
    at = [[picture[y, x] for x in (20, -20)] for y in (20, -20)]
    assert np.abs(np.array(at) - right).max() <= 4


def test_broken_exif_data_does_no_harm(tmp_path: Path) -> None:
    image = Image.fromarray(CORNERS.repeat(64, 0).repeat(96, 1))
    image.save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03", quality=95)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.abs(seen(tmp_path / "a.jpg", (128, 192))[20, 20] - R).max() <= 4


@pytest.mark.parametrize(
    ("name", "what"), [("a.gif", "frames"), ("a.png", "frames"), ("a.webp", "frames"), ("a.tif", "pages")]
)
def test_the_first_frame_of_an_animation(tmp_path: Path, name: str, what: str) -> None:
    first, *others = [Image.new("RGB", (32, 32), color) for color in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    options: dict[str, Any] = {} if name == "a.tif" else {"duration": 100, "lossless": True}
    first.save(tmp_path / name, save_all=True, append_images=others, **options)
    with pytest.warns(PictureWarning, match=rf"a{name[1:]} has several {what}, the first is taken\."):
        picture = read_image(tmp_path / name, (32, 32))
    assert np.abs(picture - [250, 0, 0]).max() <= 2


# Size.


def test_a_large_jpeg_is_read_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more pixels than Pillow allows are ever decoded."""
    wave = np.add.outer(np.sin(np.arange(1200) / 90), np.cos(np.arange(1600) / 70))
    image = Image.fromarray((127 + 60 * wave).astype(np.uint8)).convert("RGB")
    image.save(tmp_path / "a.jpg", quality=95)
    image.save(tmp_path / "p.jpg", quality=95, progressive=True)
    image.save(tmp_path / "a.png")
    right = seen(tmp_path / "a.png", (60, 80))
    decoded: list[tuple[int, int]] = []
    load = Image.Image.load

    def noting(image: Image.Image) -> object:
        decoded.append(image.size)
        return load(image)

    monkeypatch.setattr(Image.Image, "load", noting)
    assert np.abs(seen(tmp_path / "a.jpg", (60, 80)) - right).max() <= 4
    assert max(decoded) == (400, 300)
    assert np.abs(seen(tmp_path / "p.jpg", (60, 80)) - right).max() <= 4

    decoded.clear()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200 * 150)
    assert np.abs(seen(tmp_path / "a.jpg", (60, 80)) - right).max() <= 4
    assert max(decoded) == (200, 150)
    decoded.clear()
    for name, size in (("a.png", 60), ("p.jpg", 60), ("a.jpg", 600)):
        with pytest.raises(UserError, match=rf"{name} is too large an image; give a smaller one"):
            seen(tmp_path / name, (size, size))
    assert not decoded


def test_an_image_beyond_memory_is_refused(tmp_path: Path) -> None:
    """30 KB that would be 8 GB."""
    header = struct.pack(">IIBBBBB", 60_000, 50_000, 8, 2, 0, 0, 0)
    path = tmp_path / "a.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", bytes(30_000)) + chunk(b"IEND", b"")
    )
    with pytest.raises(UserError, match="too large an image"):
        seen(path)


# Files that are none.


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    for name, why in (
        ("a.png", "of an unknown kind"),
        ("missing.png", "No such file or directory"),
        ("", "Is a directory"),
    ):
        with pytest.raises(
            UserError, match=rf"{name} cannot be read as an image \({why}\); give a PNG, JPEG"
        ):
            seen(tmp_path / name)


@pytest.mark.parametrize(
    "name", ["a.png", "a.jpg", "a.gif", "a.webp", "a.tif", "a.bmp", "a.avif", "a.jp2", "a.tga"]
)
def test_damaged_images_are_read_or_refused(tmp_path: Path, name: str) -> None:
    """Never a traceback."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    exif = Image.Exif()
    exif[274] = 6
    extra = {"exif": exif} if name in ("a.png", "a.jpg", "a.webp", "a.tif", "a.avif") else {}
    file = io.BytesIO()
    Image.fromarray(noise).save(
        file, {"a.jpg": "JPEG", "a.tif": "TIFF", "a.jp2": "JPEG2000"}.get(name, name[2:]), **extra
    )
    whole = file.getvalue()
    draw = np.random.default_rng(1)
    refused = 0
    for _ in range(60):
        data = bytearray(whole)
        for at in draw.integers(0, min(len(data), 400), 3):
            data[at] = draw.integers(256)
        data = data[: draw.integers(20, len(data))] if draw.random() < 0.3 else data
        (tmp_path / name).write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert read_image(tmp_path / name, (16, 16)).shape == (1, 16, 16, 3)
            except UserError:
                refused += 1
    assert refused > 0
