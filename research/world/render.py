"""How the rendered world looks: a batch of scenes drawn on any device.

Objects are always brighter than everything else, so that a detector can find them exactly. Coordinates are
those of `world.py`.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dummyforcing.evaluation.world.outline import shape_distance
from dummyforcing.evaluation.world.scene import COLORS, FLOORS, FPS, MATERIALS, SHAPES, Scene, Thing
from research.world.world import GRAVITY, TRIP

_PILLAR = (0.38, 0.365, 0.35)
_OUTSIDE = 1.65  # how far from its place nothing of an object is seen


def _trajectories(scenes: Sequence[Scene], t: Tensor) -> dict[str, Tensor]:
    """Where every object is at times `t (T,)`: x, y, radius, angle, each `(B, O, T)`; and who is there."""
    count = max(len(scene.things) for scene in scenes)
    absent = Thing("red", "ball", "still", x=9.0)
    rows = [[*scene.things, *[absent] * (count - len(scene.things))] for scene in scenes]

    def column(name: str) -> Tensor:
        values = [[getattr(thing, name) for thing in row] for row in rows]
        return torch.tensor(values, dtype=torch.float32, device=t.device)[..., None]

    motions = [[thing.motion for thing in row] for row in rows]

    def doing(*names: str) -> Tensor:
        return torch.tensor([[m in names for m in row] for row in motions], device=t.device)[..., None]

    x, y, radius, angle = column("x"), column("y"), column("radius"), column("angle")
    amplitude, period, phase, sign = (column(n) for n in ("amplitude", "period", "phase", "sign"))
    ground = torch.tensor([scene.floor_y for scene in scenes], device=t.device)[:, None, None] + 0.25
    turn = 2 * math.pi * (t / period + phase)
    ease = (t / period).clamp(max=1.0)  # straight moves stop at their end
    zigzag = 1 - 4 * ((t / period + phase).remainder(1.0) - 0.5).abs()  # -1 .. 1 .. -1
    outing = 1 - (2 * (t / period).remainder(1.0) - 1).abs()  # 0 .. 1 .. 0
    hop = (t / period + phase).remainder(1.0)
    drop = 0.5 * GRAVITY * (t - phase).clamp(min=0) ** 2

    x = x + torch.zeros_like(turn)
    y = y + torch.zeros_like(turn)
    x = torch.where(doing("left"), amplitude * (1 - 2 * ease), x)
    x = torch.where(doing("right"), amplitude * (2 * ease - 1), x)
    x = torch.where(doing("swing"), x + amplitude * turn.sin(), x)
    x = torch.where(doing("behind", "across"), amplitude * zigzag, x)
    x = torch.where(doing("return"), x + sign * amplitude * outing, x)
    x = torch.where(doing("circle"), x + amplitude * turn.cos(), x)
    y = torch.where(doing("circle"), y + sign * amplitude * turn.sin(), y)
    y = torch.where(doing("up"), amplitude * (1 - 2 * ease), y)
    y = torch.where(doing("down"), amplitude * (2 * ease - 1), y)
    y = torch.where(doing("bounce"), ground - radius - amplitude * 4 * hop * (1 - hop), y)
    y = torch.where(doing("fall"), torch.minimum(drop - amplitude, ground - radius), y)
    angle = angle + torch.where(doing("spin"), sign * turn, torch.zeros_like(turn))
    radius = torch.where(doing("grow"), radius * (0.42 + 0.58 * ease), radius + torch.zeros_like(turn))
    radius = torch.where(doing("shrink"), radius * (1 - 0.58 * ease), radius)
    radius = torch.where(doing("pulse"), radius * (0.78 + 0.22 * turn.sin()), radius)
    x = x + sign * _OUTSIDE * torch.stack([torch.stack([_away(o, t) for o in row]) for row in rows])
    return {"x": x, "y": y, "radius": radius, "angle": angle}


def _away(thing: Thing, t: Tensor) -> Tensor:
    """How far outside an object is at times `t (T,)`, from 0 (at its place) to 1."""
    gone = torch.zeros_like(t)
    for leaves, returns in thing.away:
        gone = gone + ((t - leaves) / TRIP).clamp(0, 1) - ((t - returns) / TRIP).clamp(0, 1)
    return gone


def _paint(
    grid: Tensor, waves: Tensor, shift: Tensor, floor_y: Tensor, wall: Tensor, floor: Tensor, pillar: Tensor,
    x: Tensor, y: Tensor, radius: Tensor, angle: Tensor, shape: Tensor, color: Tensor, material: Tensor,
    stars: Tensor,
) -> Tensor:  # fmt: skip
    """Draw `(N, 3, size, size)` pictures; per-picture inputs lead with `N`, per-object ones with `(N, O)`."""
    size = grid.shape[0]
    edge = 1.2 / size
    gx, gy = grid[None, None, :], grid[None, :, None]
    sx = gx + shift[:, None, None]
    texture = sum(
        torch.sin(w[:, 0, None, None] * sx + w[:, 1, None, None] * gy + w[:, 2, None, None])
        for w in waves.unbind(1)
    )
    tiles = torch.sin(9.0 * sx / (0.6 + gy.clamp(min=0))) * torch.sin(14.0 * gy)
    below = ((gy - floor_y[:, None, None]) / edge + 0.5).clamp(0, 1)[:, None]
    light = torch.where(below > 0.5, 1 + 0.10 * tiles[:, None], 1 + 0.05 * texture[:, None])  # type: ignore[index]
    picture = (wall[:, :, None, None] * (1 - below) + floor[:, :, None, None] * below) * light
    twinkle = (torch.sin(19.0 * sx + 3.0 * gy) * torch.sin(23.0 * gy - 2.0 * sx) - 0.93).clamp(min=0) * 5
    picture = picture + (twinkle * stars[:, None, None])[:, None] * (1 - below)
    post = (0.5 - (gx.abs() - 0.2) / edge).clamp(0, 1) * pillar[:, None, None] + 0 * gy
    post_color = torch.tensor(_PILLAR, device=grid.device)[None, :, None, None] * (1 - 5 * gx * gx)
    for index in reversed(range(x.shape[1])):
        cx, cy, r, a = (v[:, index, None, None] for v in (x, y, radius, angle))
        dx, dy = (gx - cx) / r, (gy - cy) / r
        cos, sin = a.cos(), a.sin()
        u, v = dx * cos + dy * sin, dy * cos - dx * sin
        distance = shape_distance(shape[:, index, None, None], u, v)
        cover = (0.5 - distance * r / (1.5 * edge)).clamp(0, 1)[:, None]
        shade = (0.95 - 0.06 * dx - 0.08 * dy).clamp(0.84, 1.06)[:, None]
        paint = _painted(color[:, index, :, None, None] * shade, material[:, index], u, v, dx, dy, edge / r)
        picture = picture * (1 - cover) + paint * cover
    picture = picture * (1 - post[:, None]) + post_color * post[:, None]
    return picture.clamp(0, 1)


def _painted(
    color: Tensor, material: Tensor, u: Tensor, v: Tensor, dx: Tensor, dy: Tensor, edge: Tensor
) -> Tensor:
    """Colors `(N, 3, size, size)` with stripes, dots (both turn with the object) or a highlight."""
    of = {name: (material == i)[:, None, None] for i, name in enumerate(MATERIALS)}
    stripe = (0.5 - (((v / 0.56).remainder(1.0) - 0.5).abs() - 0.25) * 0.56 / edge).clamp(0, 1)
    cell_u, cell_v = ((w / 0.52).remainder(1.0) - 0.5 for w in (u + 0.26, v + 0.26))
    dot = (0.5 - ((cell_u**2 + cell_v**2).sqrt() * 0.52 - 0.15) / edge).clamp(0, 1)
    dark = torch.where(of["striped"], stripe, torch.where(of["dotted"], dot, torch.zeros_like(dot)))
    gleam = torch.exp(-((dx + 0.28) ** 2 + (dy + 0.30) ** 2) / 0.05) * of["shiny"]
    color = color * (1 - 0.32 * dark[:, None])
    return color + (1 - color) * 0.8 * gleam[:, None]


def render(
    scenes: Sequence[Scene],
    frames: int = 81,
    size: int = 192,
    device: torch.device | str = "cpu",
    start: int = 0,
) -> Tensor:
    """Draw scenes.

    Args:
        scenes: What to draw; all at once, so mind the memory: a clip of 81 frames of 192x192 is 36 MB.
        frames: Pixel frames per clip.
        size: Height and width in pixels.
        device: Where to draw.
        start: Number of the first pixel frame.

    Returns:
        `(B, frames, 3, size, size)` float32 in [0, 1].
    """
    return draw(prepare(scenes, frames, device, start), size).view(len(scenes), frames, 3, size, size)


def prepare(
    scenes: Sequence[Scene], frames: int, device: torch.device | str = "cpu", start: int = 0
) -> dict[str, Tensor]:
    """The numbers that `draw` needs: one row per picture, `B * frames` rows."""
    t = torch.arange(start, start + frames, device=device) / FPS
    tracks = _trajectories(scenes, t)
    count = tracks["x"].shape[1]

    def per_clip(values: Sequence[object]) -> Tensor:
        return torch.tensor(values, device=device).repeat_interleave(frames, 0)

    def per_thing(index_of: dict[str, int], name: str) -> Tensor:
        rows = [[index_of[getattr(thing, name)] for thing in scene.things] for scene in scenes]
        return per_clip([row + [0] * (count - len(row)) for row in rows])

    pan = torch.tensor([scene.pan for scene in scenes], device=device)
    return {
        "waves": per_clip([scene.waves for scene in scenes]),
        "shift": (pan[:, None] * t).flatten(),
        "floor_y": per_clip([scene.floor_y for scene in scenes]),
        "wall": per_clip([scene.wall for scene in scenes]),
        "floor": per_clip([FLOORS[scene.floor] for scene in scenes]),
        "pillar": per_clip([float(any(t.motion == "behind" for t in scene.things)) for scene in scenes]),
        **{name: track.transpose(1, 2).flatten(0, 1) for name, track in tracks.items()},
        "shape": per_thing({name: i for i, name in enumerate(SHAPES)}, "shape"),
        "color": per_clip(
            [
                [shaded(thing) for thing in scene.things] + [(0.0, 0.0, 0.0)] * (count - len(scene.things))
                for scene in scenes
            ]
        ),
        "material": per_thing({name: i for i, name in enumerate(MATERIALS)}, "material"),
        "stars": per_clip([0.3 if scene.sky == "night" else 0.0 for scene in scenes]),
    }


def shaded(thing: Thing) -> tuple[float, ...]:
    """The color of a thing, lighter or darker where it is said."""
    color = COLORS[thing.color]
    match thing.shade:
        case "light":
            return tuple(0.4 + 0.6 * c for c in color)
        case "dark":
            return tuple(0.7 * c for c in color)
    return color


def draw(numbers: dict[str, Tensor], size: int = 192) -> Tensor:
    """Draw pictures from `prepare`'s numbers, `(N, 3, size, size)` float32 in [0, 1]."""
    device = numbers["x"].device
    grid = (torch.arange(size, device=device) + 0.5) * (2 / size) - 1
    return _paint(grid, **numbers)
