"""The rendered world that the bundled model is trained and judged on.

Bright objects (a colour, a shape, a material, a motion) in front of dark, textured, panning scenery. A
`Scene` is pure data (`evaluation/world/scene.py`); here scenes are drawn by lot, `render.py` draws them, and
`wording.py` says them in the words that people use.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from dummyforcing.evaluation.world.scene import (
    COLORS,
    FLOORS,
    MATERIALS,
    MOTIONS,
    SHADES,
    SHAPES,
    SIZES,
    SKIES,
    Scene,
    Thing,
    allowed,
)

T = TypeVar("T")

TRIP = 1.5
"""Seconds that an object takes to slide out of the picture, or in again."""
GRAVITY = 3.6
"""Of everything that falls or bounces, per second squared."""

PAIR_MOTIONS = ("bounce", "up", "down", "spin", "grow", "shrink", "still", "pulse", "fall")
"""Motions that keep an object in its part of the picture, for scenes with several objects."""
ROW_MOTIONS = ("swing", "spin", "still", "pulse")
"""Motions of one object above another."""
RADII = {
    1: {"": (0.28, 0.35), "small": (0.18, 0.21), "large": (0.42, 0.46)},
    2: {"": (0.26, 0.32), "small": (0.17, 0.20), "large": (0.36, 0.39)},
    3: {"": (0.21, 0.26), "small": (0.15, 0.17), "large": (0.28, 0.30)},
}
"""Of objects of each size, by how many share the picture; a latent pixel is 0.1 wide."""


def held_out_kinds(count: int = 96) -> list[tuple[str, str, str]]:
    """The (color, shape, motion) combinations that are never trained on, spread evenly over the motions."""
    rng = np.random.default_rng(2601_20499)
    decks = []
    for motion in MOTIONS:
        deck = [(c, s, motion) for c in COLORS for s in SHAPES if allowed(s, motion)]
        rng.shuffle(deck)
        decks.append(deck)
    return list(itertools.islice((deck[i] for i in itertools.count() for deck in decks), count))


_HELD_OUT = frozenset(held_out_kinds())


def pick(options: Sequence[T], rng: np.random.Generator) -> T:
    """One of some options."""
    return options[int(rng.integers(len(options)))]


def article(noun: str) -> str:
    """A noun with "a" or "an"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


_POINTING = {"left": -math.pi / 2, "up": 0.0, "down": math.pi, "fall": math.pi, "bounce": 0.0}
_COLORS, _FLOORS, _SKIES, _MOTIONS = tuple(COLORS), tuple(FLOORS), tuple(SKIES), tuple(MOTIONS)


def make_thing(
    kind: tuple[str, str, str],
    rng: np.random.Generator,
    side: float = 0.0,
    shade: str = "",
    material: str = "plain",
    size: str = "",
    height: float | None = None,
    crowd: int = 1,
) -> Thing:
    """Draw the free numbers of an object.

    Args:
        kind: Color, shape and motion.
        rng: Of the numbers.
        side: Where its part of a scene with several objects has its centre.
        shade: See `Thing`.
        material: See `Thing`.
        size: See `Thing`.
        height: The same for objects above each other; None: any.
        crowd: How many objects share the picture.
    """
    color, shape, motion = kind
    u = rng.uniform
    alone = crowd == 1 and side == 0.0
    thing = Thing(
        color,
        shape,
        motion,
        x=u(-0.35, 0.35) if alone else side + u(-0.06, 0.06),
        y=u(-0.25, 0.25) if height is None else height + u(-0.04, 0.04),
        radius=u(*RADII[1 if alone else max(crowd, 2)][size]),
        angle=u(-0.15, 0.15),
        amplitude=u(0.42, 0.55),
        period=2.8,
        phase=u(0.0, 1.0),
        sign=-1.0 if rng.random() < 0.5 else 1.0,
        shade=shade,
        material=material,
        size=size,
    )
    if shape == "crescent":
        thing = replace(thing, angle=thing.angle + math.pi / 2)
    elif shape == "arrow":  # it points where it goes, so that there is nothing to choose
        thing = replace(thing, angle=thing.angle + _POINTING.get(motion, math.pi / 2))
    # Periods are fixed and gravity is one number, so that what a motion does next follows from what was seen.
    bigger = (1.35 if alone else 1.2) if not size else 1.1
    match motion:
        case "bounce":
            return replace(thing, amplitude=GRAVITY / 8 * (period := u(1.0, 1.4)) ** 2, period=period)
        case "left" | "right":
            return replace(thing, y=u(-0.4, 0.4), amplitude=u(0.5, 0.65), period=4.0)
        case "up" | "down":
            return replace(thing, amplitude=u(0.5, 0.62), period=4.0)
        case "circle":
            return replace(thing, x=u(-0.15, 0.15), y=u(-0.15, 0.1), amplitude=u(0.36, 0.46))
        case "spin":
            # Slow: from one latent frame to the next a star turns by less than a third of its symmetry. It
            # begins upright and turns clockwise: where any angle is right, few steps make the mean, a disc.
            larger = thing.radius * (1.15 if alone else 1.0)
            return replace(thing, radius=larger, period=4.5, phase=0.0, sign=1.0)
        case "grow" | "shrink":
            return replace(thing, radius=thing.radius * bigger, period=4.0)
        case "behind":
            return replace(thing, radius=min(thing.radius, 0.27), amplitude=0.7, period=5.6)
        case "return":
            return replace(thing, x=-thing.sign * u(0.0, 0.3), amplitude=1.65, period=4.6)
        case "swing":
            wide = alone or height is not None
            return replace(thing, x=u(-0.15, 0.15), amplitude=u(0.42, 0.5)) if wide else thing
        case "pulse":
            return replace(thing, radius=thing.radius * bigger, period=2.0)
        case "fall":
            return replace(thing, amplitude=u(0.55, 0.65), phase=u(0.1, 0.7))
    return thing


def make_scene(
    things: tuple[Thing, ...],
    prompt: str,
    rng: np.random.Generator,
    floor: str | None = None,
    sky: str | None = None,
    pan: float | None = None,
) -> Scene:
    """Put things into random scenery; what the prompt names is given, and what it leaves open is None."""
    tint = np.asarray(FLOORS[pick(_FLOORS, rng)]) * rng.uniform(0.5, 0.8) + rng.uniform(0.02, 0.07)
    if sky is None:
        sky = pick(_SKIES, rng) if rng.random() < 0.4 else ""
    if sky:
        tint = np.asarray(SKIES[sky]) + rng.uniform(-0.01, 0.02)
    waves = tuple(
        (float(rng.uniform(-1, 1) * 7), float(rng.uniform(-1, 1) * 7), float(rng.uniform(0, 2 * math.pi)))
        for _ in range(3)
    )
    if pan is None:
        pan = float(rng.uniform(-0.3, 0.3)) if rng.random() < 0.75 else 0.0
    return Scene(
        things,
        floor or pick(_FLOORS, rng),
        prompt,
        floor_y=float(rng.uniform(0.35, 0.55)),
        wall=tuple(float(c) for c in tint),  # type: ignore[arg-type]
        pan=pan,
        sky=sky,
        waves=waves,
    )


def prompt_scene(
    kind: tuple[str, str, str], rng: np.random.Generator, floor: str | None = None, preposition: str = "on"
) -> Scene:
    """A scene with one object, and the prompt that says everything about it."""
    color, shape, motion = kind
    ground = f" {preposition} {article(floor)} floor" if floor else ""
    prompt = f"{article(f'{color} {shape}')} {MOTIONS[motion]}{ground}"
    return make_scene((make_thing(kind, rng),), prompt, rng, floor)


def random_kind(
    rng: np.random.Generator, motions: Sequence[str] = _MOTIONS, not_colors: Sequence[str] = ()
) -> tuple[str, str, str]:
    """A combination that is not held out."""
    while True:
        drawn = (pick(_COLORS, rng), pick(SHAPES, rng), pick(motions, rng))
        if allowed(*drawn[1:]) and drawn not in _HELD_OUT and drawn[0] not in not_colors:
            return drawn


def looks(color: str, rng: np.random.Generator) -> dict[str, str]:
    """Shade, material and size, each of them mostly the usual one."""
    shade = pick(SHADES, rng) if color != "white" and rng.random() < 0.15 else ""
    if (color, shade) == ("pink", "light"):
        shade = ""  # nearly white
    material = pick(MATERIALS[1:], rng) if rng.random() < 0.2 else "plain"
    if shade == "dark" and material in ("striped", "dotted"):
        material = "plain"  # too dark to be told from the scenery
    return {"shade": shade, "material": material, "size": pick(SIZES, rng) if rng.random() < 0.15 else ""}
