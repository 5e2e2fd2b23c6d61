"""Find the bright objects of a video: their pixels, colors, places and sizes.

Bright pixels take the nearest palette color; the largest connected piece of a color in every frame is an
object. Everything is measured on a grid of G x G pixels that spans [-1, 1] in both axes, y pointing down.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from dummyforcing.evaluation.world.motion import Bools, Floats
from dummyforcing.evaluation.world.scene import COLORS

Labels = NDArray[np.int8]  # index into `COLORS` of every pixel, -1 where nothing is bright

_GRID = 96
_BRIGHT = 0.49  # between the brightest scenery (0.38, rarely 0.45) and the darkest object (0.52) ...
_DIM = 0.46
_BRIGHT_SHARE = 0.68  # ... and in a darker video no more than this share of its brightest pixels
_MIN_AREA = 0.004  # in units in which the picture has 4; the world's smallest object has 0.03 ...
_MAX_AREA = 1.2  # ... and its largest 0.7
_MIN_APART = 0.04  # share of the frames in which two objects are seen apart


@dataclass(frozen=True)
class Piece:
    """One object in T pixel frames.

    Attributes:
        color: The palette color that it has in most frames.
        color_at: The palette color (index into `COLORS`) of most of its pixels in every frame, `(T,)`; -1
            where nothing is visible.
        color_share: Share of its frames in which it has its main color.
        light: `(T, G, G)` brightness in units of the threshold: above 1 inside, below around it, 0 elsewhere.
        x: Centroid of what is visible, `(T,)`; the last known one while nothing is.
        y: Likewise.
        area: Visible area, `(T,)`, in units in which the picture has 4.
        apart: Area of the same colors that is not connected to it, `(T,)`: another object of that color.
        visible: Whether there is anything to see, `(T,)`.
        whole: Whether nothing cuts the outline: no border, no pillar, no other object, `(T,)`.
    """

    color: str
    color_at: Labels
    color_share: float
    light: Floats
    x: Floats
    y: Floats
    area: Floats
    apart: Floats
    visible: Bools
    whole: Bools


def find_pieces(frames: NDArray[np.uint8]) -> tuple[list[Piece], bool]:
    """Find the objects of a video `(T, H, W, 3)`, and whether a pillar stands in the middle."""
    pictures = _shrink(frames)
    value = pictures.max(1)
    level = float(np.clip(_BRIGHT_SHARE * np.quantile(value[::4], 0.995), _DIM, _BRIGHT))
    bright = value > level
    colors = _solid_colors(_label(pictures, bright, range(len(COLORS))))
    # Edges mix with the scenery and may look like other colors: they belong to the objects that are there.
    labels = _label(pictures, bright, colors)
    blobs = _separate(labels, colors)
    pillar = _has_pillar(pictures)
    pieces = []
    for i, blob in enumerate(blobs):
        color, color_at, share = _main_color(labels, blob)
        pieces.append(
            Piece(
                color,
                color_at,
                share,
                light=(_box(blob.mask, 3) > 0) * value / np.float32(level),
                x=_hold(blob.x, blob.visible),
                y=_hold(blob.y, blob.visible),
                area=blob.area,
                apart=blob.apart,
                visible=blob.visible,
                whole=_uncut(blob, blobs[:i] + blobs[i + 1 :], pillar),
            )
        )
    return pieces, pillar


# --- pixels ---------------------------------------------------------------------------------------------


def _shrink(frames: NDArray[np.uint8]) -> Floats:
    """Bring frames to `(T, 3, G, G)` in [0, 1]."""
    pictures = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255
    mode = "area" if frames.shape[1] >= _GRID else "bilinear"
    # Contiguous: torch keeps the channels innermost, where numpy's reductions over pixels are slow.
    small: Floats = F.interpolate(pictures, (_GRID, _GRID), mode=mode).contiguous().numpy()
    return small


def _chroma(colors: Floats) -> Floats:
    """Hue as a direction and saturation as a length, `(N, 3)` -> `(N, 2)`."""
    r, g, b = colors.T
    hue = np.arctan2(math.sqrt(3) * (g - b), 2 * r - g - b)
    saturation = 1 - colors.min(1) / np.maximum(colors.max(1), 1e-6)
    return np.stack([saturation * np.cos(hue), saturation * np.sin(hue)], 1).astype(np.float32)


def _label(pictures: Floats, bright: Bools, colors: Sequence[int]) -> Labels:
    """The nearest of some colors (indices into `COLORS`) for bright pixels, -1 elsewhere; `(T, G, G)`."""
    labels = np.full(bright.shape, -1, np.int8)
    if not colors:
        return labels
    palette = _chroma(np.asarray(list(COLORS.values()), np.float32)[list(colors)])
    # Equal saturation, so that hue alone tells the colors apart; white stays at the origin.
    length = np.hypot(*palette.T)[:, None]
    palette = np.where(length > 0.3, 0.8 * palette / np.maximum(length, 1e-6), 0)
    chroma = _chroma(pictures.transpose(0, 2, 3, 1)[bright])
    distance = np.stack([((chroma - color) ** 2).sum(1) for color in palette])
    labels[bright] = np.asarray(colors, np.int8)[distance.argmin(0)]
    return labels


def _solid_colors(labels: Labels) -> list[int]:
    """Colors with a solid interior, not only a thin line where an edge mixes with the scenery."""
    counts = np.bincount(labels[labels >= 0], minlength=len(COLORS))
    likely = np.flatnonzero(counts > 0.03 * counts.sum()).tolist()
    core = {color: float((_box(labels == color, 3) > 0.85).mean()) for color in likely}
    return [color for color, share in core.items() if share > max(0.04 * sum(core.values()), 5e-4)]


def _box(mask: Bools, side: int) -> Floats:
    """Share of set pixels in the window around every pixel."""
    share: Floats = F.avg_pool2d(torch.from_numpy(mask.astype(np.float32)), side, 1, side // 2).numpy()
    return share


def _largest_piece(mask: Bools) -> Bools:
    """The largest connected piece in every frame of `(T, G, G)`."""
    rest = mask.copy()
    best = np.zeros_like(mask)
    for _ in range(3):  # the most solid pieces first
        density = (_box(rest, 7) * rest).reshape(len(mask), -1)
        seed = np.zeros_like(density, dtype=bool)
        seed[np.arange(len(mask)), density.argmax(1)] = density.max(1) > 0
        piece = _flood(seed.reshape(mask.shape), rest)
        larger = piece.sum((1, 2)) > best.sum((1, 2))
        best[larger] = piece[larger]
        rest &= ~piece
        if not rest.any():
            break
    return best


def _flood(seed: Bools, mask: Bools) -> Bools:
    """All set pixels that are connected to the seeds."""
    piece, size = seed & mask, -1
    while (grown := int(piece.sum())) != size:
        size = grown
        for _ in range(4):
            piece[:, 1:] |= piece[:, :-1]
            piece[:, :-1] |= piece[:, 1:]
            piece[:, :, 1:] |= piece[:, :, :-1]
            piece[:, :, :-1] |= piece[:, :, 1:]
            piece &= mask
    return piece


def _has_pillar(pictures: Floats) -> bool:
    """Whether a gray post stands in the middle, from top to bottom."""
    still = np.median(pictures[:: max(1, len(pictures) // 16)], axis=0)  # (3, G, G)

    def column(left: float, right: float) -> Floats:
        mean: Floats = still[:, :, round(_GRID * left) : round(_GRID * right)].mean(2)
        return mean

    post, sides = column(0.44, 0.56), (column(0.30, 0.38), column(0.62, 0.70))
    gray = (post.max(0) - post.min(0) < 0.15) & (np.abs(post.mean(0) - 0.355) < 0.12)
    stands_out = np.minimum(*(np.abs(post - side).max(0) for side in sides)) > 0.05
    return bool((gray & stands_out).mean() > 0.5)


# --- objects --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Blob:
    """Pixels of one object `(T, G, G)`; their centroid and area, and the area left out, each `(T,)`."""

    mask: Bools
    x: Floats
    y: Floats
    area: Floats
    apart: Floats

    @classmethod
    def of(cls, mask: Bools) -> "_Blob":
        """Measure the largest connected piece of a mask."""
        total = mask.sum((1, 2))
        mask = _largest_piece(mask)
        ticks = ((np.arange(_GRID) + 0.5) * (2 / _GRID) - 1).astype(np.float32)
        pixels = mask.sum((1, 2)).astype(np.float32)
        x, y = (mask.sum(axis).astype(np.float32) @ ticks / np.maximum(pixels, 1) for axis in (1, 2))
        pixel = np.float32(4 / _GRID**2)
        return cls(mask, x, y, pixels * pixel, (total - pixels).astype(np.float32) * pixel)

    @property
    def visible(self) -> Bools:
        return self.area > _MIN_AREA


def _separate(labels: Labels, colors: Sequence[int]) -> list[_Blob]:
    """One blob per object: two colors are two objects if they are seen apart at the same time.

    Otherwise one object has both, side by side or one after the other.
    """
    blobs: list[_Blob] = []
    for color in sorted(colors, key=lambda c: -int((labels == c).sum())):
        blob = _Blob.of(labels == color)
        for i, known in enumerate(blobs):
            touching = ((_box(known.mask, 3) > 0) & blob.mask).any((1, 2))
            if (known.visible & blob.visible & ~touching).mean() < _MIN_APART:
                blobs[i] = _Blob.of(known.mask | (labels == color))
                break
        else:
            blobs.append(blob)
    return blobs


def _main_color(labels: Labels, blob: _Blob) -> tuple[str, Labels, float]:
    """The color that a blob has in most frames, that of every frame, and the share of the first in them."""
    inside = np.where(blob.mask, labels, -1)
    counts = np.stack([(inside == color).sum((1, 2)) for color in range(len(COLORS))])
    color_at = np.where(blob.visible, counts.argmax(0), -1).astype(np.int8)
    votes = np.bincount(color_at[blob.visible], minlength=len(COLORS))
    return list(COLORS)[int(votes.argmax())], color_at, float(votes.max() / max(1, votes.sum()))


def _uncut(blob: _Blob, others: Sequence[_Blob], pillar: bool) -> Bools:
    """In which frames the outline of a blob is whole, `(T,)`."""
    mask, visible = blob.mask, blob.visible
    if not visible.any():
        return visible
    whole = visible & ~mask[:, [0, -1]].any((1, 2)) & ~mask[:, :, [0, -1]].any((1, 2))
    if pillar:
        at_pillar = mask[:, :, round(_GRID * 0.39) : round(_GRID * 0.61)].any((1, 2))
        whole &= ~at_pillar | (blob.area > 0.9 * np.quantile(blob.area[visible], 0.75))
    for other in others:
        reach = 1.3 * (np.sqrt(blob.area / math.pi) + np.sqrt(other.area / math.pi))
        whole &= (np.hypot(blob.x - other.x, blob.y - other.y) > reach) | ~other.visible
    if whole.sum() < 0.15 * visible.sum():  # never free: take the frames that show the most
        whole = visible & (blob.area > 0.8 * np.quantile(blob.area[visible], 0.9))
    return whole & (blob.area < _MAX_AREA)


def _hold(values: Floats, known: Bools) -> Floats:
    """Carry the last known value on, and the first one back."""
    if not known.any():
        return values
    last = np.maximum.accumulate(np.where(known, np.arange(len(values)), -1))
    return values[np.where(last < 0, known.argmax(), last)]
