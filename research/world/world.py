"""The rendered world that the bundled model is trained and judged on.

Bright objects (a colour, a shape, a motion) in front of dark, textured, panning scenery. A `Scene` is pure
data and knows its prompt (`evaluation/world/scene.py`); here scenes are drawn by lot, `render.py` draws them.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dummyforcing.evaluation.world.scene import COLORS, FLOORS, MOTIONS, SHAPES, Scene, Thing, allowed

TRIP = 1.5
"""Seconds that an object takes to slide out of the picture, or in again."""

PAIR_MOTIONS = ("bounce", "up", "down", "spin", "grow", "shrink", "still")
"""Motions that keep an object in its half of the picture, for scenes with two objects."""


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
