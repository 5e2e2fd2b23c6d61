"""RGB pixel frames, and how a picture of any shape becomes one of a given size."""

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Frames = NDArray[np.uint8]
"""RGB pixel frames, `(n, H, W, 3)`."""

BACKGROUND = "white"
"""Colour behind the transparent parts of images and clips, the one that viewers and browsers have there."""


def opaque(image: Image.Image) -> Image.Image:
    """Lay a picture with transparent parts on the background; what is hidden below them is not seen."""
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image).convert("RGB")


def covering(image: Image.Image, size: tuple[int, int], aspect: Fraction = Fraction(1)) -> Frames:
    """Scale an RGB picture to cover a size and cut it to that in the middle.

    Args:
        image: The picture.
        size: Height and width in pixels.
        aspect: Width of a pixel of the picture divided by its height.

    Returns:
        One frame, `(H, W, 3)`.
    """
    wanted = size[1] / size[0] / float(aspect)
    width, height = min(image.width, image.height * wanted), min(image.height, image.width / wanted)
    left, top = (image.width - width) / 2, (image.height - height) / 2
    box = (left, top, left + width, top + height)
    return np.asarray(image.resize(size[::-1], Image.Resampling.LANCZOS, box))
