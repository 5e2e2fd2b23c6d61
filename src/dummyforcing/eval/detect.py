"""Judge a video of the rendered world: which object is seen, and what does it do?

The world draws objects brighter than everything else, so they are found without learning anything: bright
pixels -> nearest palette color by hue -> largest connected piece per frame -> outline against templates
(shape) and track against rules (motion). All thresholds are ramps, hence every answer has a margin.

Coordinates are the world's: [-1, 1] in both axes, y points down, 16 pixel frames/s.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from dummyforcing.eval.motion import Bools, Floats, Track, motion_scores, spread
from dummyforcing.eval.world import COLORS, SHAPES, Scene, Thing, shape_distance

_GRID = 96  # pixels per side on which everything is measured
_BRIGHT = 0.60  # between the brightest scenery (0.5, rarely 0.6) and the darkest object (0.69)
_MIN_AREA = 0.004  # of the picture's 4 units; the world's smallest object has 0.03
_PATCH = 40  # pixels per side of a normalised outline ...
_REACH = 1.75  # ... which spans this many equivalent radii each way; a star's tips are at 1.58
_FOLDS = {"triangle": 3, "square": 4, "cross": 4, "star": 5}  # a turn of ball or ring is not seen


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
    """The objects of a video, the one with the most visible area first."""

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
    """One line per thing that is wrong."""


def detect(frames: NDArray[np.uint8]) -> Detection:
    """Find the objects of a video.

    Args:
        frames: `(T, H, W, 3)` uint8, square pictures.
    """
    if frames.ndim != 4 or frames.shape[1] != frames.shape[2] or frames.shape[3] != 3:
        raise ValueError(f"frames must be (T, H, W, 3) with H = W, not {frames.shape}")
    pictures = _shrink(frames)
    value = pictures.max(1)
    bright = value > _BRIGHT
    colors = _colors_present(_label(pictures, bright, range(len(COLORS))))
    if not colors:
        return Detection(())
    # Edges mix with the scenery and may look like other colors: they belong to the objects that are there.
    labels = _label(pictures, bright, colors)
    masks = np.stack([_largest_piece(labels == color) for color in colors])  # (O, T, G, G)
    pillar = _has_pillar(pictures)
    areas = masks.sum((2, 3))
    outlines = [_outline(value, mask) for mask in masks]
    seen = areas.max(0) * 4 / _GRID**2 > _MIN_AREA
    found = []
    for i, color in enumerate(colors):
        x, y, area, patch = outlines[i]
        others = [outlines[j][:3] for j in range(len(colors)) if j != i]
        largest = (areas.argmax(0) == i) & seen
        share = float(largest.sum() / max(1, seen.sum()))
        found.append(_describe(list(COLORS)[color], x, y, area, patch, masks[i], others, pillar, share))
    return Detection(tuple(sorted(found, key=lambda f: -float(f.track.area.sum()))))


def judge(frames: NDArray[np.uint8], scene: Scene) -> Verdict:
    """Compare a video with the scene that its prompt describes.

    With one object the largest one of the video counts, whatever its color; with two, things are matched by
    color.

    Args:
        frames: `(T, H, W, 3)` uint8.
        scene: What the video should show.
    """
    detection = detect(frames)
    if not detection.objects:
        return Verdict(False, False, False, ("no object is seen",))
    alone = len(scene.things) == 1
    reasons: list[str] = []
    color = shape = motion = True
    for thing in scene.things:
        found = detection.objects[0] if alone else detection.of_color(thing.color)
        if found is None:
            reasons.append(f"color: no {thing.color} object")
            color = shape = motion = False
            continue
        if found.color != thing.color:
            reasons.append(f"color: {found.color}, not {thing.color}")
            color = False
        elif alone and found.color_share < 0.85:
            reasons.append(f"color: {thing.color} in only {found.color_share:.0%} of the frames")
            color = False
        if found.shape != thing.shape:
            reasons.append(f"shape: {found.shape}, not {thing.shape}")
            shape = False
        if not _does(found, thing):
            reasons.append(f"motion: {found.motion}, not {thing.motion}")
            motion = False
    return Verdict(color, shape, motion, tuple(reasons))


def _does(found: Found, thing: Thing) -> bool:
    if thing.motion == "across":  # passes another object; not in `MOTIONS`
        track = found.track
        return spread(track.x[track.visible]) > 0.5 and spread(track.y[track.visible]) < 0.3
    return found.motion == thing.motion


def summary(verdicts: Sequence[Verdict]) -> dict[str, object]:
    """Counts, percentages and Wilson 95% intervals (percent) of right verdicts, ready for JSON."""
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
    labels = np.full(bright.shape, -1, np.int8)
    distance = ((chroma[:, None] - palette) ** 2).sum(2)
    labels[bright] = np.asarray(colors, np.int8)[distance.argmin(1)]
    return labels


def _box(mask: Bools, side: int) -> Floats:
    """Share of set pixels in the window around every pixel."""
    pooled = F.avg_pool2d(torch.from_numpy(mask[:, None].astype(np.float32)), side, 1, side // 2)
    share: Floats = pooled[:, 0].numpy()
    return share


def _colors_present(labels: NDArray[np.int8]) -> list[int]:
    """Colors with a solid interior, not only an outline where an edge mixes with the scenery."""
    counts = np.bincount(labels[labels >= 0], minlength=len(COLORS))
    likely = np.flatnonzero(counts > 0.05 * counts.sum()).tolist()
    core = {color: float((_box(labels == color, 3) > 0.85).mean()) for color in likely}
    total = sum(core.values())
    return [color for color, share in core.items() if share > max(0.1 * total, 5e-4)]


def _largest_piece(mask: Bools) -> Bools:
    """The largest connected piece in every frame of `(T, G, G)`."""
    rest = mask.copy()
    best = np.zeros_like(mask)
    for _ in range(3):  # pieces are tried from the most solid on
        density = (_box(rest, 7) * rest).reshape(len(mask), -1)
        seed = np.zeros_like(density, dtype=bool)
        seed[np.arange(len(mask)), density.argmax(1)] = density.max(1) > 0
        piece = _flood(seed.reshape(mask.shape), rest)
        larger = piece.sum((1, 2)) > best.sum((1, 2))
        best[larger] = piece[larger]
        rest &= ~piece
    return best


def _flood(seed: Bools, mask: Bools) -> Bools:
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
    still = np.median(pictures[:: max(1, len(pictures) // 16)], axis=0)
    middle = slice(round(_GRID * 0.44), round(_GRID * 0.56))
    post = still[:, :, middle].mean(2)
    sides = [still[:, :, round(_GRID * a) : round(_GRID * b)].mean(2) for a, b in ((0.3, 0.38), (0.62, 0.7))]
    gray = (post.max(0) - post.min(0) < 0.12) & (np.abs(post.mean(0) - 0.41) < 0.12)
    brighter = np.minimum(*(np.abs(post - side).max(0) for side in sides)) > 0.06
    return bool((gray & brighter).mean() > 0.6)


# --- one object -----------------------------------------------------------------------------------------


def _outline(value: Floats, mask: Bools) -> tuple[Floats, Floats, Floats, Floats]:
    """Centroid x, y and area `(T,)` of a mask, and its outline `(T, P*P)` free of position and size."""
    ticks = ((np.arange(_GRID) + 0.5) * (2 / _GRID) - 1).astype(np.float32)
    pixels = mask.sum((1, 2)).astype(np.float32)
    x = (mask.sum(1) @ ticks / np.maximum(pixels, 1)).astype(np.float32)
    y = (mask.sum(2) @ ticks / np.maximum(pixels, 1)).astype(np.float32)
    area = pixels * (4 / _GRID**2)
    radius = np.sqrt(area / math.pi)
    steps = (np.arange(_PATCH) + 0.5) * (2 * _REACH / _PATCH) - _REACH
    gx = x[:, None] + radius[:, None] * steps
    gy = y[:, None] + radius[:, None] * steps
    shape = (len(mask), _PATCH, _PATCH)
    grid = np.stack([np.broadcast_to(gx[:, None], shape), np.broadcast_to(gy[:, :, None], shape)], -1)
    near = (_box(mask, 3) > 0) * value  # one more pixel around, for an edge finer than the grid
    patch = F.grid_sample(
        torch.from_numpy(near.astype(np.float32))[:, None],
        torch.from_numpy(grid.astype(np.float32)),
        align_corners=False,
    )
    return x, y, area, (patch[:, 0].flatten(1).numpy() > _BRIGHT).astype(np.float32)


@functools.cache
def _templates(turns: int = 24) -> tuple[Floats, tuple[str, ...]]:
    """Outlines `(K, P*P)` of all shapes at all rotations, and the shape of each."""
    fine = (torch.arange(400) + 0.5) * (3 / 400) - 1.5
    fy, fx = torch.meshgrid(fine, fine, indexing="ij")
    steps = (torch.arange(_PATCH) + 0.5) * (2 * _REACH / _PATCH) - _REACH
    py, px = torch.meshgrid(steps, steps, indexing="ij")
    rows, names = [], []
    for index, shape in enumerate(SHAPES):
        inside = shape_distance(torch.tensor(index), fx, fy) < 0
        scale = math.sqrt(float(inside.sum()) * (3 / 400) ** 2 / math.pi)
        middle = float(fy[inside].mean())
        for turn in range(turns if shape in _FOLDS else 1):
            a = 2 * math.pi * turn / (turns * _FOLDS.get(shape, 1))
            u, v = px * math.cos(a) + py * math.sin(a), py * math.cos(a) - px * math.sin(a)
            rows.append(shape_distance(torch.tensor(index), u * scale, v * scale + middle).flatten() < 0)
            names.append(shape)
    return torch.stack(rows).float().numpy(), tuple(names)


def _shape_overlaps(patches: Floats) -> Floats:
    """IoU of `(T, P*P)` outlines with each shape at its best rotation, `(T, S)`."""
    templates, names = _templates()
    common = patches @ templates.T
    union = patches.sum(1)[:, None] + templates.sum(1) - common
    overlap = common / np.maximum(union, 1)
    return np.stack([overlap[:, np.array(names) == shape].max(1) for shape in SHAPES], 1)


def _turning(patches: Floats, folds: int) -> Floats:
    """Angle of outlines with that rotational symmetry, `(T,)`, unwrapped."""
    steps = (np.arange(_PATCH) + 0.5) * (2 * _REACH / _PATCH) - _REACH
    gx, gy = np.meshgrid(steps, steps)
    wave = (np.hypot(gx, gy) ** 2 * np.exp(1j * folds * np.arctan2(gy, gx))).ravel()
    angle: Floats = (np.unwrap(np.angle(patches @ wave)) / folds).astype(np.float32)
    return angle


def _describe(
    color: str, x: Floats, y: Floats, area: Floats, patch: Floats, mask: Bools,
    others: list[tuple[Floats, Floats, Floats]], pillar: bool, share: float,
) -> Found:  # fmt: skip
    visible = area > _MIN_AREA
    edge = mask[:, [0, -1]].any((1, 2)) | mask[:, :, [0, -1]].any((1, 2))
    whole = visible & ~edge
    reach = 1.3 * np.sqrt(area / math.pi)
    if pillar:
        middle = slice(round(_GRID * 0.39), round(_GRID * 0.61))
        cut = area < 0.9 * np.quantile(area[visible], 0.75) if visible.any() else ~visible
        whole &= ~(mask[:, :, middle].any((1, 2)) & cut)
    for ox, oy, oarea in others:
        apart = np.hypot(x - ox, y - oy) > reach + 1.3 * np.sqrt(oarea / math.pi)
        whole &= apart | (oarea < _MIN_AREA)
    if whole.sum() < 0.15 * visible.sum():  # never free: take the frames that show most of it
        whole = visible & (area > 0.8 * np.quantile(area[visible], 0.9)) if visible.any() else visible
    scores = dict.fromkeys(SHAPES, 0.0)
    shape = None
    if whole.any():
        overlap = _shape_overlaps(patch[whole])
        scores = dict(zip(SHAPES, overlap.mean(0).tolist(), strict=True))
        best = max(scores, key=scores.__getitem__)
        votes = (overlap.argmax(1) == SHAPES.index(best)).mean()
        if scores[best] > 0.7 and votes > 0.6:
            shape = best
    angle = np.zeros(len(x))
    if shape in _FOLDS and whole.any():
        angle = np.interp(np.arange(len(x)), np.flatnonzero(whole), _turning(patch[whole], _FOLDS[shape]))
    track = Track(_hold(x, visible), _hold(y, visible), area, angle.astype(np.float32), visible, whole)
    motions = motion_scores(track, pillar)
    motion = max(motions, key=motions.__getitem__)
    return Found(color, shape, motion if motions[motion] >= 0.5 else None, track, share, scores, motions)


def _hold(values: Floats, known: Bools) -> Floats:
    """Carry the last known value on."""
    if not known.any():
        return values
    last = np.maximum.accumulate(np.where(known, np.arange(len(values)), -1))
    return values[np.where(last < 0, int(known.argmax()), last)]


def _margin(scores: Mapping[str, float]) -> float:
    second, best = sorted(scores.values())[-2:]
    return best - second
