"""Images as input: what a viewer shows of a file of any kind, as one frame.

frame = read_image("photo.jpg", size=(480, 832))
"""

import logging
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from dummyforcing.errors import BadFile, PictureWarning, UserError
from dummyforcing.media.clips import Clip
from dummyforcing.media.frames import Frames, covering, opaque

logger = logging.getLogger(__name__)

EXIF_ORIENTATION, TIFF_BITS, TIFF_MEANING, WHITE_IS_ZERO = 274, 258, 262, 0
"""Numbers of tags, and the value of `TIFF_MEANING` for negatives."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What to do for each EXIF orientation."""

ANIMATED = {"GIF": "frames", "PNG": "frames", "WEBP": "frames", "AVIF": "frames", "TIFF": "pages"}
"""What formats have several of. In others they are not to be shown, such as the gain map of an HDR photo."""


def read_image(path: str | Path, size: tuple[int, int]) -> Frames:
    """Read an image, scaled to cover a size and cut to it in the middle.

    It is what a viewer shows: turned as its EXIF data says, in sRGB if it has a colour profile (HDR is mapped
    to that, gain maps are left out), white where it is transparent, the first one of an animation. Pixels of
    16 bits have their white at the largest number, floating point ones at 1. Large JPEGs are decoded at a
    fraction of their size; what remains larger than Pillow's limit (`PIL.Image.MAX_IMAGE_PIXELS`) is refused.

    Args:
        path: Any format that Pillow reads.
        size: Height and width in pixels.

    Returns:
        One frame, `(1, H, W, 3)`.

    Raises:
        UserError: If there is no image that can be read.

    Warns:
        PictureWarning: If it has further frames or pages, or is HDR.
    """
    try:
        with _open(path, size) as image:
            if image.format in ANIMATED and getattr(image, "is_animated", False):
                what = ANIMATED[image.format]
                warnings.warn(f"{path} has several {what}, the first is taken.", PictureWarning, stacklevel=2)
            picture = _stated(path, image) or _picture(path, image)
            return covering(picture, size)[None]
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadFile(f"{path} is too large an image", "give a smaller one") from error
    except Exception as error:  # what Pillow's decoders raise for damaged files is of any kind
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = "of an unknown kind" if isinstance(error, UnidentifiedImageError) else reason
        raise BadFile(
            f"{path} cannot be read as an image ({reason})", "give a PNG, JPEG or WebP file"
        ) from error


def _open(path: str | Path, size: tuple[int, int]) -> ImageFile:
    """Open an image that is not too large; a JPEG may be, if it is decoded smaller."""
    side = 2 * max(size)  # the rest is Lanczos's
    try:
        image = Image.open(path)
    except Image.DecompressionBombError as error:
        try:
            image = JpegImageFile(path)
        except SyntaxError:
            raise error from None
        if "progressive" in image.info:  # all its coefficients would be kept
            image.close()
            raise
        side = max(size)
    if isinstance(image, JpegImageFile):
        image.draft(None, (side, side))  # at least so large
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > 2 * limit:
        image.close()
        raise Image.DecompressionBombError
    return image


def _stated(path: str | Path, image: ImageFile) -> Image.Image | None:
    """The picture as FFmpeg reads it, if its colours are stated in a way that Pillow does not know (CICP)."""
    if image.format == "PNG":
        stated = b"cICP" in Path(path).read_bytes().partition(b"IDAT")[0]
    else:
        stated = image.format == "AVIF" and "icc_profile" not in image.info
    if not stated:
        return None
    try:
        with Clip(path) as clip:
            frame = next(clip.frames())
            if clip.is_plain(frame):
                return None
            picture = clip.picture(frame)
    except (UserError, StopIteration):  # FFmpeg knows fewer kinds of these files
        return None
    if sorted(picture.size) != sorted(image.size) or image.has_transparency_data:  # a tile, or no alpha
        raise BadFile(f"{path} has HDR or wide colours, and tiles or transparent parts", "give it in sRGB")
    return picture


def _picture(path: str | Path, image: ImageFile) -> Image.Image:
    """The picture in sRGB, upright, opaque."""
    key = _key(image)
    image.load()  # TIFF files are upright from here on
    if key is not None:
        image.info["transparency"] = key
    profile = image.info.get("icc_profile")
    color, alpha = _parts(path, image)
    picture = _in_srgb(path, color, profile)
    if not profile and "srgb" not in image.info and "gamma" in image.info:
        picture = _with_gamma(picture, image.info["gamma"])
    if alpha is not None:
        picture.putalpha(alpha)
        picture = opaque(picture)
    turn = UPRIGHT.get(image.getexif().get(EXIF_ORIENTATION, 1))
    return picture if turn is None else picture.transpose(turn)


def _key(image: ImageFile) -> object:
    """The transparent colour of a PNG as its pixels have it, where Pillow scales these alone."""
    key, raw = image.info.get("transparency"), image.tile[0][3] if image.format == "PNG" else None
    if raw == "RGB;16B" and isinstance(key, tuple):
        return tuple(value >> 8 for value in key)
    if raw in ("L;2", "L;4") and isinstance(key, int):
        return key * (255 // (2 ** int(raw[2:]) - 1))
    return None


def _parts(path: str | Path, image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The colours of a loaded image, in mode L, RGB, CMYK or LAB, and its alpha."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep(path, image)
    if image.has_transparency_data:
        gray = image.mode in ("1", "L", "LA", "La")
        image = image.convert("LA" if gray else "RGBA")
        return image.convert("L" if gray else "RGB"), image.getchannel("A")
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image, None
    return image.convert("L" if image.mode == "1" else "RGB"), None


def _deep(path: str | Path, image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The same for one channel of more than 8 bits."""
    values, tags = np.asarray(image), dict(getattr(image, "tag_v2", {}))
    if image.mode == "F":
        white = 1
    elif image.mode.startswith("I;16"):
        white = 2 ** tags.get(TIFF_BITS, (16,))[0] - 1
    elif image.format in ("PNG", "PPM"):
        white = 2**16 - 1
    else:
        raise BadFile(f"{path} has whole numbers of 32 bits as pixels", "give it with 8 or 16 bits")
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= white):  # not a number is neither
        raise BadFile(
            f"{path} has pixels from {low:g} to {high:g}", f"give it with black at 0 and white at {white}"
        )
    shares = values.astype(np.float32) / white
    shares = 1 - shares if tags.get(TIFF_MEANING) == WHITE_IS_ZERO else shares
    gray = Image.fromarray((shares * 255).round().astype(np.uint8))
    key = image.info.get("transparency")
    return gray, None if key is None else Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))


def _in_srgb(path: str | Path, color: Image.Image, profile: bytes | None) -> Image.Image:
    """The colours as RGB, by their profile if it is of use."""
    try:
        if color.mode == "LAB":
            source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        elif profile:
            source = ImageCms.ImageCmsProfile(BytesIO(profile))
        else:
            return color.convert("RGB")
        if color.mode == "L":  # exact for dark gray, too
            levels = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
            table = np.asarray(_transformed(levels, source, ImageCms.Flags.NOOPTIMIZE))[0]
            return color.convert("RGB").point(table.T.ravel().tolist())
        return _transformed(color, source, ImageCms.Flags.HIGHRESPRECALC)
    except (ImageCms.PyCMSError, OSError) as error:  # damaged, or of other colours: viewers leave it out, too
        logger.info("the colour profile of %s is of no use: %s", path, error)
        return color.convert("RGB")


def _transformed(color: Image.Image, source: ImageCms.ImageCmsProfile, flags: ImageCms.Flags) -> Image.Image:
    """The colours of a profile as sRGB; white is white, and other colours are what they were beside it."""
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    target = ImageCms.createProfile("sRGB")
    picture = ImageCms.profileToProfile(color, source, target, intent, "RGB", flags=flags)
    assert picture is not None
    return picture


def _with_gamma(picture: Image.Image, gamma: float) -> Image.Image:
    """Brighten or darken a picture of another gamma than sRGB, whose is 1 / 2.2."""
    if gamma <= 0:
        return picture
    curve = (np.linspace(0, 1, 256) ** (1 / (2.2 * gamma)) * 255).round().astype(int)
    return picture.point([*curve] * 3)
