"""Sheets of scenes: which frames they show, and that they keep no others."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dummyforcing.media.montage import CAPTION_HEIGHT
from dummyforcing.media.sheet import SceneSheet

HEIGHT, WIDTH, FPS = 40, 64, 16
SCENES = [(0, "a red ball"), (33, "a blue cube"), (69, "a red cube")]


def numbered(start: int, stop: int, width: int = WIDTH) -> np.ndarray:
    """Frames that are as bright as their number."""
    levels = np.arange(start, stop, dtype=np.uint8)[:, None, None, None]
    return np.broadcast_to(levels, (stop - start, HEIGHT * width // WIDTH, width, 3))


def shown(path: Path, rows: int, columns: int) -> list[list[int]]:
    """The numbers of the frames of a sheet; 255 is blank. Every row and every frame has a caption."""
    picture = np.asarray(Image.open(path))
    size = HEIGHT + 2 * CAPTION_HEIGHT
    assert picture.shape == (rows * size, columns * WIDTH, 3)
    cells = picture.reshape(rows, size, columns, WIDTH, 3)
    captions = cells[:, : 2 * CAPTION_HEIGHT].reshape(rows, 2, CAPTION_HEIGHT, columns, WIDTH, 3)
    pixels = cells[:, 2 * CAPTION_HEIGHT :]
    assert (captions[:, 0].min((1, 2, 3, 4)) < 128).all()  # the prompt
    times = captions[:, 1].min((1, 3, 4)) < 128
    assert (pixels.min((1, 3, 4)) == pixels.max((1, 3, 4))).all()
    numbers = pixels[:, 0, :, 0, 0]
    assert np.array_equal(times, numbers != 255)
    rows_of_numbers: list[list[int]] = numbers.tolist()
    return rows_of_numbers


@pytest.mark.parametrize("pieces", [[93], [1, 8, 12, 12, 60]])
def test_a_row_per_prompt_begins_with_its_change(tmp_path: Path, pieces: list[int]) -> None:
    sheet = SceneSheet(SCENES, 93, FPS, columns=8)
    start = 0
    for count in pieces:
        sheet.add(numbered(start, start + count))
        start += count
    sheet.save(tmp_path / "a.png")
    rows = shown(tmp_path / "a.png", 3, 8)
    assert rows[0] == [0, 5, 9, 14, 18, 23, 27, 32]
    assert rows[1][:4] == [25, 32, 33, 41]
    assert rows[2][:4] == [61, 68, 69, 77]
    assert [row[-1] for row in rows] == [32, 68, 92]
    assert all(row == sorted(row) for row in rows)
    assert len(sheet._kept) <= 3 * 8


def test_short_scenes_have_fewer_frames(tmp_path: Path) -> None:
    sheet = SceneSheet([(0, "a"), (3, "b")], 5, FPS, columns=8)
    sheet.add(numbered(0, 5))
    sheet.save(tmp_path / "a.png")
    assert shown(tmp_path / "a.png", 2, 8) == [[0, 1, 2, *[255] * 5], [0, 2, 3, 4, *[255] * 4]]


def test_large_frames_are_scaled_down(tmp_path: Path) -> None:
    sheet = SceneSheet([(0, "a")], 9, FPS, columns=3)
    sheet.add(numbered(0, 9, width=832))
    sheet.save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").size == (3 * 256, 160 + 2 * CAPTION_HEIGHT)
