"""The rendered world that the bundled model is trained and judged on.

Bright objects (a colour, a shape, a motion) in front of dark, textured, panning scenery. A `Scene` is pure
data and knows its prompt; `render` draws a batch of scenes on any device. Objects are always brighter than
everything else, so that a detector can find them exactly.

Coordinates: the picture spans [-1, 1] in both axes, y points down; time is in seconds at 16 pixel frames/s.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

FPS = 16

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.95, 0.14, 0.12),
    "orange": (1.0, 0.52, 0.05),
    "yellow": (1.0, 0.92, 0.15),
    "green": (0.15, 0.88, 0.22),
    "cyan": (0.15, 0.90, 0.95),
    "blue": (0.15, 0.35, 1.0),
    "purple": (0.68, 0.22, 0.98),
    "white": (0.97, 0.97, 0.97),
}
SHAPES = ("ball", "square", "triangle", "star", "ring", "cross")
MOTIONS: dict[str, str] = {
    "bounce": "bounces",
    "left": "slides to the left",
    "right": "slides to the right",
    "up": "floats up",
    "down": "floats down",
    "swing": "swings from side to side",
    "circle": "moves in a circle",
    "spin": "spins",
    "grow": "grows",
    "shrink": "shrinks",
    "behind": "passes behind a pillar",
    "return": "leaves and comes back",
    "still": "stays still",
}
PAIR_MOTIONS = ("bounce", "up", "down", "spin", "grow", "shrink", "still")
"""Motions that keep an object in its half of the picture, for scenes with two objects."""
FLOORS: dict[str, tuple[float, float, float]] = {
    "green": (0.10, 0.34, 0.14),
    "blue": (0.10, 0.18, 0.42),
    "gray": (0.30, 0.30, 0.31),
    "brown": (0.36, 0.22, 0.10),
    "purple": (0.28, 0.12, 0.38),
    "red": (0.40, 0.10, 0.10),
}
_SPINNING = ("square", "triangle", "star", "cross")  # a turning ball or ring looks still
_PILLAR = (0.44, 0.42, 0.40)


@dataclass(frozen=True)
class Thing:
    """One object: what it is, what it does, and the numbers of its motion."""

    color: str
    shape: str
    motion: str
    x: float = 0.0
    y: float = 0.0
    radius: float = 0.25
    angle: float = 0.0
    amplitude: float = 0.5
    period: float = 2.5
    phase: float = 0.0
    sign: float = 1.0

    @property
    def kind(self) -> tuple[str, str, str]:
        """What the prompt says of it: color, shape, motion."""
        return self.color, self.shape, self.motion


@dataclass(frozen=True)
class Scene:
    """A clip's content. The first thing is drawn last, hence in front."""

    things: tuple[Thing, ...]
    floor: str
    prompt: str
    floor_y: float = 0.45
    wall: tuple[float, float, float] = (0.2, 0.2, 0.25)
    pan: float = 0.0
    waves: tuple[tuple[float, ...], ...] = ((3.0, 1.0, 0.0), (1.0, 4.0, 1.0), (5.0, 3.0, 2.0))


def allowed(shape: str, motion: str) -> bool:
    """Whether the motion of that shape can be seen at all."""
    return motion != "spin" or shape in _SPINNING


def held_out_kinds(count: int = 64) -> list[tuple[str, str, str]]:
    """The (color, shape, motion) combinations that are never trained on, spread evenly over the motions."""
    rng = np.random.default_rng(2601_20499)
    decks = []
    for motion in MOTIONS:
        deck = [(c, s, motion) for c in COLORS for s in SHAPES if allowed(s, motion)]
        rng.shuffle(deck)
        decks.append(deck)
    return list(itertools.islice((deck[i] for i in itertools.count() for deck in decks), count))


_HELD_OUT = frozenset(held_out_kinds())


def _article(color: str, shape: str) -> str:
    noun = f"{color} {shape}".strip()
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def make_thing(kind: tuple[str, str, str], rng: np.random.Generator, side: float = 0.0) -> Thing:
    """Draw the free numbers of an object; `side` is where its half of a two-object scene has its centre."""
    color, shape, motion = kind
    u = rng.uniform
    alone = side == 0.0
    thing = Thing(
        color,
        shape,
        motion,
        x=u(-0.35, 0.35) if alone else side + u(-0.06, 0.06),
        y=u(-0.25, 0.25),
        radius=u(0.24, 0.32) if alone else u(0.22, 0.28),
        angle=u(-0.15, 0.15),
        amplitude=u(0.42, 0.55),
        period=2.8,
        phase=u(0.0, 1.0),
        sign=float(rng.choice((-1.0, 1.0))),
    )
    # Periods are fixed and gravity is one number, so that what a motion does next follows from what was seen.
    match motion:
        case "bounce":
            return replace(thing, amplitude=0.45 * (period := u(1.0, 1.4)) ** 2, period=period)
        case "left" | "right":
            return replace(thing, y=u(-0.4, 0.4), amplitude=u(0.5, 0.65), period=4.0)
        case "up" | "down":
            return replace(thing, amplitude=u(0.5, 0.62), period=4.0)
        case "circle":
            return replace(thing, x=u(-0.15, 0.15), y=u(-0.15, 0.1), amplitude=u(0.36, 0.46))
        case "spin":
            return replace(thing, radius=thing.radius + 0.06, period=3.0)
        case "grow" | "shrink":
            return replace(thing, radius=u(0.42, 0.48) if alone else u(0.36, 0.4), period=4.0)
        case "behind":
            return replace(thing, radius=u(0.22, 0.27), amplitude=0.7, period=5.6)
        case "return":
            return replace(thing, x=-thing.sign * u(0.0, 0.3), amplitude=1.65, period=4.6)
        case "swing":
            return replace(thing, x=u(-0.15, 0.15))
    return thing


def make_scene(
    things: tuple[Thing, ...], prompt: str, rng: np.random.Generator, floor: str | None = None
) -> Scene:
    """Put things into random scenery; the floor's color is random unless the prompt names it."""
    wall = np.asarray(FLOORS[rng.choice(list(FLOORS))]) * rng.uniform(0.5, 0.8) + rng.uniform(0.02, 0.1)
    waves = tuple(
        (float(rng.uniform(-1, 1) * 7), float(rng.uniform(-1, 1) * 7), float(rng.uniform(0, 2 * math.pi)))
        for _ in range(3)
    )
    return Scene(
        things,
        floor or str(rng.choice(list(FLOORS))),
        prompt,
        floor_y=float(rng.uniform(0.35, 0.55)),
        wall=tuple(float(c) for c in wall),  # type: ignore[arg-type]
        pan=float(rng.uniform(-0.3, 0.3)) if rng.random() < 0.75 else 0.0,
        waves=waves,
    )


def prompt_scene(
    kind: tuple[str, str, str], rng: np.random.Generator, floor: str | None = None, preposition: str = "on"
) -> Scene:
    """A scene with one object, and the prompt that says everything about it."""
    color, shape, motion = kind
    ground = f" {preposition} {_article(floor, 'floor')}" if floor else ""
    prompt = f"{_article(color, shape)} {MOTIONS[motion]}{ground}"
    return make_scene((make_thing(kind, rng),), prompt, rng, floor)


def random_scene(rng: np.random.Generator) -> Scene:
    """A training scene: one object (70%), two side by side (20%), or one passing another (10%).

    Some prompts leave out the color, the motion or the floor, so that the model also knows shorter ones. The
    held-out combinations never occur.
    """

    def kind(motions: Sequence[str], not_color: str = "") -> tuple[str, str, str]:
        while True:
            drawn = (str(rng.choice(list(COLORS))), str(rng.choice(SHAPES)), str(rng.choice(motions)))
            if allowed(*drawn[1:]) and drawn not in _HELD_OUT and drawn[0] != not_color:
                return drawn

    case = rng.random()
    if case < 0.7:
        color, shape, motion = kind(tuple(MOTIONS))
        floor = str(rng.choice(list(FLOORS))) if rng.random() < 0.4 else None
        scene = prompt_scene((color, shape, motion), rng, floor, str(rng.choice(("on", "over"))))
        short = rng.random()
        if short < 0.05:
            scene = replace(
                scene, prompt=scene.prompt.replace(_article(color, shape), _article("", shape), 1)
            )
        elif short < 0.10:
            scene = replace(scene, prompt=scene.prompt.replace(f" {MOTIONS[motion]}", "", 1))
        return scene
    if case < 0.9:
        first = kind(PAIR_MOTIONS)
        second = kind(PAIR_MOTIONS, first[0])
        side = float(rng.choice((-0.5, 0.5)))
        things = (make_thing(first, rng, side), make_thing(second, rng, -side))
        said = [f"{_article(c, s)} {MOTIONS[m]}" for c, s, m in (first, second)]
        return make_scene(things, " and ".join(said), rng)
    mover = kind(("behind",))
    other = kind(("still",), mover[0])
    moving = replace(make_thing(mover, rng), motion="across")
    standing = replace(make_thing(other, rng), x=float(rng.uniform(-0.1, 0.1)), radius=0.34)
    front = rng.random() < 0.5
    verb = "passes in front of" if front else "passes behind"
    prompt = f"{_article(*mover[:2])} {verb} {_article(*other[:2])}"
    return make_scene((moving, standing) if front else (standing, moving), prompt, rng)


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
    angle = angle + torch.where(doing("spin"), sign * turn, torch.zeros_like(turn))
    radius = torch.where(doing("grow"), radius * (0.42 + 0.58 * ease), radius + torch.zeros_like(turn))
    radius = torch.where(doing("shrink"), radius * (1 - 0.58 * ease), radius)
    return {"x": x, "y": y, "radius": radius, "angle": angle}


def shape_distance(shape: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to the outline of a unit-radius shape (negative inside), up to a factor near 1.

    Args:
        shape: Index into `SHAPES`, broadcastable.
        x: Coordinates in units of the radius, in the shape's own frame.
        y: Likewise, pointing down.
    """
    length = (x * x + y * y).sqrt()
    ax, ay = x.abs(), y.abs()
    square = torch.maximum(ax, ay) - 0.80
    triangle = torch.maximum(0.866 * ax - 0.5 * y - 0.52, y - 0.55)
    sector = torch.atan2(x, -y).remainder(2 * math.pi / 5) - math.pi / 5
    star = _star_distance(length, sector)
    ring = (length - 0.74).abs() - 0.24
    arm, bar = torch.maximum(ax, ay) - 0.95, torch.minimum(ax, ay) - 0.33
    cross = torch.maximum(arm, bar)
    out = length - 0.95
    for index, distance in enumerate((square, triangle, star, ring, cross), start=1):
        out = torch.where(shape == index, distance, out)
    return out


def _star_distance(length: Tensor, sector: Tensor) -> Tensor:
    """Distance to the edge of a five-pointed star; `sector` is the angle from the nearest valley."""
    # The edge runs from the valley (radius 0.45, angle 0) to the tip (radius 1.05, angle pi/5).
    tip_x, tip_y = 1.05 * math.cos(math.pi / 5), 1.05 * math.sin(math.pi / 5)
    dx, dy = tip_x - 0.45, tip_y
    norm = math.hypot(dx, dy)
    px, py = length * sector.cos(), length * sector.sin().abs()
    return ((px - 0.45) * dy - py * dx) / norm


def _paint(
    grid: Tensor, waves: Tensor, shift: Tensor, floor_y: Tensor, wall: Tensor, floor: Tensor, pillar: Tensor,
    x: Tensor, y: Tensor, radius: Tensor, angle: Tensor, shape: Tensor, color: Tensor,
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
    light = torch.where(below > 0.5, 1 + 0.16 * tiles[:, None], 1 + 0.13 * texture[:, None])  # type: ignore[index]
    picture = (wall[:, :, None, None] * (1 - below) + floor[:, :, None, None] * below) * light
    post = (0.5 - (gx.abs() - 0.2) / edge).clamp(0, 1) * pillar[:, None, None] + 0 * gy
    post_color = torch.tensor(_PILLAR, device=grid.device)[None, :, None, None] * (1 - 5 * gx * gx)
    for index in reversed(range(x.shape[1])):
        cx, cy, r, a = (v[:, index, None, None] for v in (x, y, radius, angle))
        dx, dy = (gx - cx) / r, (gy - cy) / r
        cos, sin = a.cos(), a.sin()
        distance = shape_distance(shape[:, index, None, None], dx * cos + dy * sin, dy * cos - dx * sin)
        cover = (0.5 - distance * r / (1.5 * edge)).clamp(0, 1)[:, None]
        shade = (0.93 - 0.09 * dx - 0.11 * dy).clamp(0.78, 1.06)[:, None]
        picture = picture * (1 - cover) + color[:, index, :, None, None] * shade * cover
    picture = picture * (1 - post[:, None]) + post_color * post[:, None]
    return picture.clamp(0, 1)


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
    return draw(prepare(scenes, frames, device, start), size).unflatten(0, (len(scenes), frames))


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

    palette = torch.tensor(list(COLORS.values()), device=device)
    colors = per_thing({name: i for i, name in enumerate(COLORS)}, "color")
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
        "color": palette[colors],
    }


def draw(numbers: dict[str, Tensor], size: int = 192) -> Tensor:
    """Draw pictures from `prepare`'s numbers, `(N, 3, size, size)` float32 in [0, 1]."""
    device = numbers["x"].device
    grid = (torch.arange(size, device=device) + 0.5) * (2 / size) - 1
    return _paint(grid, **numbers)
