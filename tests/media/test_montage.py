"""Several videos in one picture: the frames are where they should be."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dummyforcing.errors import UserError
from dummyforcing.media.montage import contact_sheet, save_contact_sheet, side_by_side


def frames_of(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Frames that all differ."""
    levels = np.arange(count * height * width * 3).reshape(count, height, width, 3)
    return (levels * 7 // 5 % 251).astype(np.uint8)


def test_side_by_side() -> None:
    left, right = frames_of(3), 255 - frames_of(3)
    both = side_by_side([left, right], gap=4)
    assert both.shape == (3, 48, 64 + 4 + 64, 3)
    assert np.array_equal(both[:, :, :64], left)
    assert np.array_equal(both[:, :, -64:], right)
    labelled = side_by_side([left, right], labels=["dense", "dummy"])
    assert np.array_equal(labelled[:, 20:], both)
    assert labelled[:, :20].min() < 128 < labelled[:, :20].max()


def test_contact_sheet(tmp_path: Path) -> None:
    long, short = frames_of(81), frames_of(2)
    sheet = contact_sheet([long, short], columns=5)
    assert sheet.shape == (2 * 48, 5 * 64, 3)
    for column, frame in enumerate((0, 20, 40, 60, 80)):
        assert np.array_equal(sheet[:48, column * 64 : (column + 1) * 64], long[frame])
    assert np.array_equal(sheet[48:, 64:128], short[1])
    assert (sheet[48:, 128:] == 255).all()

    save_contact_sheet(tmp_path / "a.png", [long, short], columns=5, labels=["dense", "dummy"])
    saved = np.asarray(Image.open(tmp_path / "a.png"))
    assert saved.shape == (2 * (48 + 20), 5 * 64, 3)
    assert np.array_equal(saved[20:68], sheet[:48])
    assert os.listdir(tmp_path) == ["a.png"]


def test_contact_sheet_in_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        save_contact_sheet(tmp_path / "missing" / "a.png", [frames_of(2)])
