"""Compare outlines with the world's shapes, whatever their position, size and rotation.

An outline is sampled on a patch of P x P points around its centroid, in units of its equivalent radius (that
of the disc with the same area), and compared by its overlap (IoU) with templates drawn by `shape_distance`.
"""

import functools
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dummyforcing.evaluation.world.motion import Floats
from dummyforcing.evaluation.world.scene import SHAPES

FOLDS = {
    "triangle": 3, "square": 4, "cross": 4, "star": 5, "heart": 1, "diamond": 2, "crescent": 1, "arrow": 1,
}  # fmt: skip
"""Rotational symmetry of the shapes; a turn of a ball or a ring cannot be seen."""
_REACH = 1.75  # half a patch, in equivalent radii; a star's tips are at 1.58
_POINTS = ((np.arange(40) + 0.5) * (2 * _REACH / 40) - _REACH).astype(np.float32)


def shape_distance(shape: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to the outline of a unit-radius shape (negative inside), up to a factor near 1.

    Args:
        shape: Index into `SHAPES`, broadcastable.
        x: Coordinates in units of the radius, in the shape's own frame.
        y: Likewise, pointing down.
    """
    length = (x * x + y * y).sqrt()
    ax, ay = x.abs(), y.abs()
    sector = torch.atan2(x, -y).remainder(2 * math.pi / 5) - math.pi / 5
    arm, bar = torch.maximum(ax, ay) - 0.95, torch.minimum(ax, ay) - 0.33
    lobes = ((ax - 0.42) ** 2 + (y + 0.33) ** 2).sqrt() - 0.58
    bite = 0.78 - (x * x + (y + 0.48) ** 2).sqrt()
    tip = torch.maximum(0.707 * (ax - y) - 0.66, y)
    shaft = torch.maximum(ax - 0.30, (y - 0.45).abs() - 0.50)
    distances = {
        "ball": length - 0.95,
        "square": torch.maximum(ax, ay) - 0.80,
        "triangle": torch.maximum(0.866 * ax - 0.5 * y - 0.52, y - 0.55),
        "star": _star_distance(length, sector),
        "ring": (length - 0.74).abs() - 0.24,
        "cross": torch.maximum(arm, bar),
        "heart": torch.minimum(lobes, 0.707 * (ax + (y - 0.09).abs()) - 0.59),
        "diamond": 0.85 * ax + 0.527 * ay - 0.527,
        "crescent": torch.maximum(length - 0.98, bite),
        "arrow": torch.minimum(tip, shaft),
    }
    out = distances["ball"]
    for index, name in enumerate(SHAPES[1:], start=1):
        out = torch.where(shape == index, distances[name], out)
    return out


def _star_distance(length: Tensor, sector: Tensor) -> Tensor:
    """Distance to the edge of a five-pointed star; `sector` is the angle from the nearest valley."""
    # The edge runs from the valley (radius 0.45, angle 0) to the tip (radius 1.05, angle pi/5).
    tip_x, tip_y = 1.05 * math.cos(math.pi / 5), 1.05 * math.sin(math.pi / 5)
    dx, dy = tip_x - 0.45, tip_y
    norm = math.hypot(dx, dy)
    px, py = length * sector.cos(), length * sector.sin().abs()
    return ((px - 0.45) * dy - py * dx) / norm


def normalise(light: Floats, x: Floats, y: Floats, area: Floats) -> Floats:
    """Sample outlines free of position and size.

    Args:
        light: `(T, G, G)` brightness; above 1 is inside. Sampled between its pixels, for a finer edge.
        x: Centroid, `(T,)`, in [-1, 1].
        y: Likewise.
        area: Area, `(T,)`, in units in which the picture has 4.

    Returns:
        `(T, P * P)`, 1 inside and 0 outside.
    """
    radius = np.sqrt(area / np.float32(math.pi))
    gx = (x[:, None] + radius[:, None] * _POINTS)[:, None, :]
    gy = (y[:, None] + radius[:, None] * _POINTS)[:, :, None]
    grid = torch.from_numpy(np.stack(np.broadcast_arrays(gx, gy), -1))
    patch = F.grid_sample(torch.from_numpy(light)[:, None], grid, align_corners=False)
    return (patch[:, 0].flatten(1).numpy() > 1).astype(np.float32)


def overlaps(patches: Floats) -> Floats:
    """IoU of outlines `(T, P * P)` with each of `SHAPES` at its best rotation, `(T, S)`."""
    inside = patches.sum(1)[:, None]
    best = []
    for template in _templates():
        common = patches @ template.T  # (T, turns)
        best.append((common / np.maximum(inside + template.sum(1) - common, 1)).max(1))
    return np.stack(best, 1).astype(np.float32)


def turning(patches: Floats, shape: str) -> Floats:
    """Angle of outlines `(T, P * P)` of one of `FOLDS`, `(T,)` radians, unwrapped.

    It is that of the turned template that overlaps most. The phase of the outline's own symmetry would be
    quicker to find, but a heart's is nearly nothing.
    """
    template = _templates()[SHAPES.index(shape)]
    common = patches @ template.T  # (T, turns)
    overlap = common / np.maximum(patches.sum(1)[:, None] + template.sum(1) - common, 1)
    once = 2 * math.pi / FOLDS[shape]
    angle: Floats = np.unwrap(overlap.argmax(1) * (once / len(template)), period=once).astype(np.float32)
    return angle


@functools.cache
def _templates(steps: int = 96) -> tuple[Floats, ...]:
    """For each of `SHAPES` its outline at all rotations that look different, `(turns, P * P)`."""
    step = 3 / 400
    fine = (torch.arange(400) + 0.5) * step - 1.5
    fy, fx = torch.meshgrid(fine, fine, indexing="ij")
    points = torch.from_numpy(_POINTS)
    py, px = torch.meshgrid(points, points, indexing="ij")
    templates = []
    for index, name in enumerate(SHAPES):
        shape = torch.tensor(index)
        inside = shape_distance(shape, fx, fy) < 0
        radius = math.sqrt(float(inside.sum()) / math.pi) * step
        middle = float(fy[inside].mean())  # all shapes are symmetric about the vertical axis
        folds = FOLDS.get(name, steps)
        turns = max(1, steps // folds)
        angle = torch.arange(turns)[:, None, None] * (2 * math.pi / folds / turns)
        cos, sin = angle.cos(), angle.sin()
        u, v = px * cos + py * sin, py * cos - px * sin
        rotated = shape_distance(shape, u * radius, v * radius + middle) < 0
        templates.append(rotated.flatten(1).float().numpy())
    return tuple(templates)
