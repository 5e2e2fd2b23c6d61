"""Several videos in one picture: side by side, and as contact sheets."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dummyforcing.files.writing import replacing
from dummyforcing.media.frames import Frames

CAPTION_HEIGHT = 20


def side_by_side(videos: Sequence[Frames], labels: Sequence[str] | None = None, gap: int = 4) -> Frames:
    """Put equally long videos (or chunks of them) of the same height next to each other.

    Args:
        videos: Each `(n, H, W, 3)`, from left to right.
        labels: One caption above each.
        gap: Width of the white bars between them, even for H.264.

    Returns:
        `(n, H, sum of W and gaps, 3)`; 20 pixels higher with labels.
    """
    videos = _captioned(videos, labels)
    bar = np.full((*videos[0].shape[:2], gap, 3), 255, np.uint8)
    return np.concatenate([piece for video in videos for piece in (bar, video)][1:], axis=2)


def contact_sheet(
    videos: Sequence[Frames], columns: int = 8, labels: Sequence[str] | None = None
) -> NDArray[np.uint8]:
    """Show videos as rows of evenly spaced frames.

    Args:
        videos: Each `(n, H, W, 3)`, of one size; one row each.
        columns: Frames per row; a shorter video leaves its row white.
        labels: One caption above each row.

    Returns:
        An image, `(rows * H, columns * W, 3)`; each row is 20 pixels higher with labels.
    """
    rows = []
    for video in videos:
        picked = video[np.linspace(0, len(video) - 1, min(columns, len(video))).round().astype(int)]
        blank = np.full((columns - len(picked), *video.shape[1:]), 255, np.uint8)
        rows.append(np.concatenate([*picked, *blank], axis=1)[None])
    sheet: NDArray[np.uint8] = np.concatenate([row[0] for row in _captioned(rows, labels)])
    return sheet


def save_contact_sheet(
    path: str | Path, videos: Sequence[Frames], columns: int = 8, labels: Sequence[str] | None = None
) -> None:
    """Write `contact_sheet(videos, columns, labels)` as a PNG.

    Raises:
        UserError: If the file cannot be written; nothing is left then.
    """
    image = Image.fromarray(contact_sheet(videos, columns, labels))
    with replacing(Path(path)) as part:
        image.save(part, "PNG")


def _captioned(videos: Sequence[Frames], labels: Sequence[str] | None) -> Sequence[Frames]:
    """Put a caption bar above every frame of each video; without labels, none."""
    if labels is None:
        return videos
    captioned = []
    for video, label in zip(videos, labels, strict=True):
        bar = Image.new("RGB", (video.shape[2], CAPTION_HEIGHT), "white")
        ImageDraw.Draw(bar).text((4, 2), label, "black", font=ImageFont.load_default(size=13))
        bars = np.repeat(np.asarray(bar)[None], len(video), axis=0)
        captioned.append(np.concatenate([bars, video], axis=1))
    return captioned
