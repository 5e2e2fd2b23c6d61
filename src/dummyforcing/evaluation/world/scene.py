"""What a prompt of the rendered world says: colors, shapes and motions, and scenes as data.

    scene = read_prompt("a red ball bounces on a green floor")  # None: it is of something else

The bundled models show bright objects (a color, a shape, a motion) in front of dark scenery. Coordinates: the
picture spans [-1, 1] in both axes, y points down; time is in seconds at 16 pixel frames/s.
"""

import re
from dataclasses import dataclass

FPS = 16

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.95, 0.12, 0.10),
    "orange": (1.0, 0.50, 0.05),
    "yellow": (1.0, 0.92, 0.12),
    "lime": (0.62, 0.95, 0.10),
    "green": (0.12, 0.88, 0.20),
    "turquoise": (0.12, 0.92, 0.72),
    "cyan": (0.10, 0.78, 1.0),
    "blue": (0.15, 0.33, 1.0),
    "purple": (0.62, 0.20, 0.98),
    "magenta": (0.95, 0.18, 0.90),
    "pink": (1.0, 0.32, 0.62),
    "white": (0.97, 0.97, 0.97),
}
SHADES = ("light", "dark")
"""What may come before a color; white has neither."""
SHAPES = (
    "ball", "square", "triangle", "star", "ring", "cross", "heart", "diamond", "crescent", "arrow",
)  # fmt: skip
MATERIALS = ("plain", "striped", "dotted", "shiny")
SIZES = ("small", "large")
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
    "pulse": "pulses",
    "fall": "falls to the ground",
}
FLOORS: dict[str, tuple[float, float, float]] = {
    "green": (0.09, 0.30, 0.12),
    "blue": (0.09, 0.16, 0.36),
    "gray": (0.27, 0.27, 0.28),
    "brown": (0.32, 0.20, 0.09),
    "purple": (0.25, 0.11, 0.34),
    "red": (0.35, 0.09, 0.09),
}
SKIES: dict[str, tuple[float, float, float]] = {
    "day": (0.20, 0.29, 0.37),
    "night": (0.02, 0.03, 0.08),
    "sunset": (0.34, 0.17, 0.13),
}
SPINNING = ("square", "triangle", "star", "cross", "heart", "diamond", "crescent", "arrow")
"""A turning ball or ring looks still."""


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
    away: tuple[tuple[float, float], ...] = ()
    """When it begins to slide out of the picture and when to slide in again, in seconds; each takes 1.5 s."""
    shade: str = ""
    """One of `SHADES`, or neither."""
    material: str = "plain"
    size: str = ""
    """One of `SIZES`, or neither."""

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
    """Of the camera to the right, per second."""
    sky: str = ""
    """One of `SKIES`, or a wall of any color."""
    waves: tuple[tuple[float, ...], ...] = ((3.0, 1.0, 0.0), (1.0, 4.0, 1.0), (5.0, 3.0, 2.0))


def allowed(shape: str, motion: str) -> bool:
    """Whether the motion of that shape can be seen at all."""
    return motion != "spin" or shape in SPINNING


_THING = rf"an? (?P<color>{'|'.join(COLORS)}) (?P<shape>{'|'.join(SHAPES)})"
_SAYS = re.compile(rf"{_THING} (?P<motion>{'|'.join(MOTIONS.values())})")
_PASSES = re.compile(rf"{_THING} passes (?P<where>in front of|behind) {_THING.replace('(?P<', '(?P<other_')}")
_GROUND = re.compile(rf"(?P<rest>.*) (?:on|over) an? (?P<floor>{'|'.join(FLOORS)}) floor")


def read_prompt(prompt: str) -> Scene | None:
    """What a prompt says, if it says color, shape and motion of one or two objects in the world's words.

    Returns:
        The scene, without the numbers that a prompt leaves open; None: it says something else, or what nobody
        could see.
    """
    text, floor = " ".join(re.sub(r"[^\w\s]", "", prompt.lower()).split()), "gray"
    if ground := _GROUND.fullmatch(text):
        text, floor = ground["rest"], ground["floor"]
    if passes := _PASSES.fullmatch(text):
        moving = Thing(passes["color"], passes["shape"], "across")
        standing = Thing(passes["other_color"], passes["other_shape"], "still")
        is_front = passes["where"] == "in front of"
        return Scene((moving, standing) if is_front else (standing, moving), floor, prompt)
    motion_of = {words: motion for motion, words in MOTIONS.items()}
    parts = re.split(r" and (?=an? )", text)
    found = [_SAYS.fullmatch(part) for part in parts]
    things = tuple(Thing(one["color"], one["shape"], motion_of[one["motion"]]) for one in found if one)
    if len(things) != len(parts) or len(things) > 2 or len({thing.color for thing in things}) != len(things):
        return None
    return Scene(things, floor, prompt) if all(allowed(one.shape, one.motion) for one in things) else None
