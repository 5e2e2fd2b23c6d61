"""Judge a video of the rendered world: which object is seen, and what does it do?

The world draws objects brighter than everything else, so they are found without learning anything: bright
pixels -> nearest palette color -> largest connected piece in every frame -> its outline against templates
(shape) and its track against rules (motion).

Coordinates are the world's: the picture spans [-1, 1] in both axes, y points down.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from dummyforcing.eval.motion import Bools, Floats, Track, motion_scores, spread
from dummyforcing.eval.outline import FOLDS, normalise, overlaps, turning
from dummyforcing.eval.world import COLORS, SHAPES, Scene, Thing

_GRID = 96  # pixels per side on which everything is measured
_BRIGHT = 0.62  # between the brightest scenery (0.5, rarely 0.6) and the darkest object (0.69) ...
_BRIGHT_SHARE = 0.68  # ... and in a darker video no more than this share of its brightest pixels
_MIN_AREA = 0.004  # in units in which the picture has 4; the world's smallest object has 0.03
_MIN_SHARE = 0.9  # of the frames in which the main object has the right color

# A jittery outline costs thin shapes more overlap than compact ones. Clean outlines reach 0.92 and more.
_MIN_OVERLAP = {"ball": 0.85, "square": 0.85, "triangle": 0.78, "star": 0.74, "ring": 0.62, "cross": 0.76}


@dataclass(frozen=True)
class Found:
    """One object of a video.

    Attributes:
        color: Its palette color.
        shape: Its shape, or None if the outline is like none of them.
        motion: A key of `MOTIONS`, or None if it does none of them.
        track: Where it is.
        color_share: Share of the frames with any object in which this one is the largest.
        shape_scores: Mean overlap (IoU) of the outline with each shape at its best rotation.
        motion_scores: How well each motion's rules are met, 0 to 1; 0.5 is the threshold.
    """

    color: str
    shape: str | None
    motion: str | None
    track: Track
    color_share: float
    shape_scores: Mapping[str, float]
    motion_scores: Mapping[str, float]

    @property
    def shape_margin(self) -> float:
        """Overlap with the best shape less that with the second best."""
        return _margin(self.shape_scores)

    @property
    def motion_margin(self) -> float:
        """Score of the best motion less that of the second best."""
        return _margin(self.motion_scores)


@dataclass(frozen=True)
class Detection:
    """The objects of a video, one per color, the one with the most visible area first."""

    objects: tuple[Found, ...]

    def of_color(self, color: str) -> Found | None:
        """The object of that color."""
        return next((found for found in self.objects if found.color == color), None)


@dataclass(frozen=True)
class Verdict:
    """Whether a video shows what its scene says; with two objects, whether both are right."""

    color: bool
    shape: bool
    motion: bool
    reasons: tuple[str, ...] = ()
    """One line for each thing that is wrong."""


def detect(frames: NDArray[np.uint8]) -> Detection:
    """Find the objects of a video.

    Args:
        frames: `(T, H, W, 3)` uint8, square pictures.
    """
    if frames.ndim != 4 or frames.shape[1] != frames.shape[2] or frames.shape[3] != 3:
        raise ValueError(f"frames must be (T, H, W, 3) with H = W, not {frames.shape}")
    pictures = _shrink(frames)
    value = pictures.max(1)
    level = float(np.clip(_BRIGHT_SHARE * np.quantile(value[::4], 0.995), 0.52, _BRIGHT))
    bright = value > level
    colors = _solid_colors(_label(pictures, bright, range(len(COLORS))))
    if not colors:
        return Detection(())
    # Edges mix with the scenery and may look like other colors: they belong to the objects that are there.
    labels = _label(pictures, bright, colors)
    pieces = [_Piece.of(_largest_piece(labels == color)) for color in colors]
    pillar = _has_pillar(pictures)
    largest = np.argmax([piece.area for piece in pieces], axis=0)
    seen = np.max([piece.area for piece in pieces], axis=0) > _MIN_AREA
    found = []
    for i, (color, piece) in enumerate(zip(colors, pieces, strict=True)):
        whole = _whole(piece, [other for other in pieces if other is not piece], pillar)
        share = float((largest[seen] == i).mean()) if seen.any() else 0.0
        found.append(_describe(list(COLORS)[color], piece, whole, value, level, pillar, share))
    return Detection(tuple(sorted(found, key=lambda f: -float(f.track.area.sum()))))


def judge(frames: NDArray[np.uint8], scene: Scene) -> Verdict:
    """Compare a video with the scene that its prompt describes.

    With one object the largest one of the video counts, whatever its color; with two, things are matched by
    color.

    Args:
        frames: `(T, H, W, 3)` uint8, square pictures.
        scene: What the video should show.
    """
    detection = detect(frames)
    if not detection.objects:
        return Verdict(False, False, False, ("no object is seen",))
    alone = len(scene.things) == 1
    color = shape = motion = True
    reasons: list[str] = []
    for thing in scene.things:
        found = detection.objects[0] if alone else detection.of_color(thing.color)
        if found is None:
            reasons.append(f"color: no {thing.color} object")
            color = shape = motion = False
            continue
        if found.color != thing.color:
            reasons.append(f"color: {found.color}, not {thing.color}")
            color = False
        elif alone and found.color_share < _MIN_SHARE:
            reasons.append(f"color: {thing.color} in only {found.color_share:.0%} of the frames")
            color = False
        if found.shape != thing.shape:
            reasons.append(f"shape: {found.shape or 'unclear'}, not {thing.shape}")
            shape = False
        if not _does(found, thing):
            reasons.append(f"motion: {found.motion or _unclear(found)}, not {thing.motion}")
            motion = False
    return Verdict(color, shape, motion, tuple(reasons))


def summary(verdicts: Sequence[Verdict]) -> dict[str, object]:
    """Counts, percentages and Wilson 95% intervals (in percent) of right verdicts, ready for JSON."""
    count = len(verdicts)
    right = {
        "color": sum(v.color for v in verdicts),
        "shape": sum(v.shape for v in verdicts),
        "color_and_shape": sum(v.color and v.shape for v in verdicts),
        "motion": sum(v.motion for v in verdicts),
    }
    return {"count": count} | {
        name: {
            "right": n,
            "percent": round(100 * n / count, 1) if count else None,
            "interval": [round(100 * end, 1) for end in wilson(n, count)],
        }
        for name, n in right.items()
    }


def wilson(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a proportion, 95% by default."""
    if count == 0:
        return 0.0, 1.0
    p = right / count
    middle = p + z * z / (2 * count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def _does(found: Found, thing: Thing) -> bool:
    if thing.motion == "across":  # passes another object; no motion of its own
        track = found.track
        return spread(track.x[track.visible]) > 0.5 and spread(track.y[track.visible]) < 0.3
    # Short clips may show two motions equally well: leaving the picture is a slide or half of a return.
    score = found.motion_scores[thing.motion]
    return score >= 0.5 and score == max(found.motion_scores.values())


def _unclear(found: Found) -> str:
    unseen = 1 - float(found.track.visible.mean())
    return f"unclear (out of sight in {unseen:.0%} of the frames)" if unseen > 0.05 else "unclear"


def _margin(scores: Mapping[str, float]) -> float:
    second, best = sorted(scores.values())[-2:]
    return best - second


# --- pixels ---------------------------------------------------------------------------------------------


def _shrink(frames: NDArray[np.uint8]) -> Floats:
    """Bring frames to `(T, 3, G, G)` in [0, 1]."""
    pictures = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255
    mode = "area" if frames.shape[1] >= _GRID else "bilinear"
    small: Floats = F.interpolate(pictures, (_GRID, _GRID), mode=mode).numpy()
    return small


def _chroma(colors: Floats) -> Floats:
    """Hue as a direction and saturation as a length, `(N, 3)` -> `(N, 2)`."""
    r, g, b = colors.T
    hue = np.arctan2(math.sqrt(3) * (g - b), 2 * r - g - b)
    saturation = 1 - colors.min(1) / np.maximum(colors.max(1), 1e-6)
    return np.stack([saturation * np.cos(hue), saturation * np.sin(hue)], 1).astype(np.float32)


def _label(pictures: Floats, bright: Bools, colors: Sequence[int]) -> NDArray[np.int8]:
    """The nearest of some colors (indices into `COLORS`) for bright pixels, -1 elsewhere; `(T, G, G)`."""
    palette = _chroma(np.asarray(list(COLORS.values()), np.float32)[list(colors)])
    # Equal saturation, so that hue alone tells the colors apart; white stays at the origin.
    length = np.hypot(*palette.T)[:, None]
    palette = np.where(length > 0.3, 0.8 * palette / np.maximum(length, 1e-6), 0)
    chroma = _chroma(pictures.transpose(0, 2, 3, 1)[bright])
    distance = np.stack([((chroma - color) ** 2).sum(1) for color in palette])
    labels = np.full(bright.shape, -1, np.int8)
    labels[bright] = np.asarray(colors, np.int8)[distance.argmin(0)]
    return labels


def _solid_colors(labels: NDArray[np.int8]) -> list[int]:
    """Colors with a solid interior, not only a thin line where an edge mixes with the scenery."""
    counts = np.bincount(labels[labels >= 0], minlength=len(COLORS))
    likely = np.flatnonzero(counts > 0.05 * counts.sum()).tolist()
    core = {color: float((_box(labels == color, 3) > 0.85).mean()) for color in likely}
    return [color for color, share in core.items() if share > max(0.1 * sum(core.values()), 5e-4)]


def _box(mask: Bools, side: int) -> Floats:
    """Share of set pixels in the window around every pixel."""
    pooled = F.avg_pool2d(torch.from_numpy(mask.astype(np.float32)), side, 1, side // 2)
    share: Floats = pooled.numpy()
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
    gray = (post.max(0) - post.min(0) < 0.12) & (np.abs(post.mean(0) - 0.41) < 0.12)
    stands_out = np.minimum(*(np.abs(post - side).max(0) for side in sides)) > 0.06
    return bool((gray & stands_out).mean() > 0.6)


# --- one object -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Piece:
    """Pixels of one object `(T, G, G)` with their centroid, area and equivalent radius, each `(T,)`."""

    mask: Bools
    x: Floats
    y: Floats
    area: Floats
    radius: Floats

    @classmethod
    def of(cls, mask: Bools) -> "_Piece":
        ticks = ((np.arange(_GRID) + 0.5) * (2 / _GRID) - 1).astype(np.float32)
        pixels = mask.sum((1, 2)).astype(np.float32)
        x, y = (mask.sum(axis).astype(np.float32) @ ticks / np.maximum(pixels, 1) for axis in (1, 2))
        area = pixels * np.float32(4 / _GRID**2)
        return cls(mask, x, y, area, np.sqrt(area / np.float32(math.pi)))


def _whole(piece: _Piece, others: Sequence[_Piece], pillar: bool) -> Bools:
    """In which frames nothing cuts the outline of a piece, `(T,)`."""
    mask, visible = piece.mask, piece.area > _MIN_AREA
    if not visible.any():
        return visible
    whole = visible & ~mask[:, [0, -1]].any((1, 2)) & ~mask[:, :, [0, -1]].any((1, 2))
    if pillar:
        at_pillar = mask[:, :, round(_GRID * 0.39) : round(_GRID * 0.61)].any((1, 2))
        whole &= ~at_pillar | (piece.area > 0.9 * np.quantile(piece.area[visible], 0.75))
    for other in others:
        apart = np.hypot(piece.x - other.x, piece.y - other.y) > 1.3 * (piece.radius + other.radius)
        whole &= apart | (other.area < _MIN_AREA)
    if whole.sum() < 0.15 * visible.sum():  # never free: take the frames that show the most
        return visible & (piece.area > 0.8 * np.quantile(piece.area[visible], 0.9))
    return whole


def _describe(
    color: str, piece: _Piece, whole: Bools, value: Floats, level: float, pillar: bool, share: float
) -> Found:
    visible = piece.area > _MIN_AREA
    shape, scores = None, dict.fromkeys(SHAPES, 0.0)
    angle = np.zeros(len(whole), np.float32)
    if whole.any():
        near = (_box(piece.mask, 3) > 0) * value
        outlines = normalise(near[whole], level, piece.x[whole], piece.y[whole], piece.radius[whole])
        overlap = overlaps(outlines)
        scores = dict(zip(SHAPES, overlap.mean(0).tolist(), strict=True))
        best = max(scores, key=scores.__getitem__)
        votes = float((overlap.argmax(1) == SHAPES.index(best)).mean())
        if scores[best] > _MIN_OVERLAP[best] and votes > 0.6:
            shape = best
        if shape in FOLDS:
            turned = turning(outlines, FOLDS[shape])
            angle = np.interp(np.arange(len(whole)), np.flatnonzero(whole), turned).astype(np.float32)
    track = Track(_hold(piece.x, visible), _hold(piece.y, visible), piece.area, angle, visible, whole)
    motions = motion_scores(track, pillar)
    motion = max(motions, key=motions.__getitem__)
    return Found(color, shape, motion if motions[motion] >= 0.5 else None, track, share, scores, motions)


def _hold(values: Floats, known: Bools) -> Floats:
    """Carry the last known value on, and the first one back."""
    if not known.any():
        return values
    last = np.maximum.accumulate(np.where(known, np.arange(len(values)), -1))
    return values[np.where(last < 0, known.argmax(), last)]
