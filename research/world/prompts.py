"""The benchmark: held-out prompts of one object, and reported apart: of two objects, and free sentences.

All are fixed by a seed, so that a figure means the same thing wherever it is measured.
"""

import numpy as np

from dummyforcing.evaluation.world.scene import COLORS, FLOORS, SHAPES, Scene, allowed
from research.world.world import PAIR_MOTIONS, held_out_kinds, make_scene, make_thing, prompt_scene

_SEED = 20499
_KINDS = 96
_GROUNDS = [(None, "on"), *((floor, word) for word in ("on", "over") for floor in FLOORS)]
"""What a prompt may say of the floor: nothing, or its color with a preposition."""
MAX_SCENES = _KINDS * len(_GROUNDS)


def benchmark_scenes(count: int = _KINDS) -> list[Scene]:
    """Held-out scenes, each with a prompt of its own; the first 96 are the same for any count.

    There are 96 held-out kinds (color, shape, motion), one for each of the first 96 scenes, of which every
    second prompt names the floor. Further scenes go through the same kinds again with what the prompts have
    not said of the floor before, and with other places, sizes and scenery: more videos, not more kinds.

    Args:
        count: At most `MAX_SCENES`.

    Raises:
        ValueError: If there are not so many prompts.
    """
    if count > MAX_SCENES:
        raise ValueError(f"there are {MAX_SCENES} held-out prompts, not {count}")
    rng = np.random.default_rng(_SEED)
    scenes = []
    unsaid = [list(_GROUNDS) for _ in range(_KINDS)]
    for index in range(count):
        kind = index % _KINDS
        if index < _KINDS:
            ground = (str(rng.choice(list(FLOORS))) if index % 2 else None, "on")
        else:
            ground = unsaid[kind][int(rng.integers(len(unsaid[kind])))]
        unsaid[kind].remove(ground)
        scenes.append(prompt_scene(held_out_kinds(_KINDS)[kind], rng, *ground))
    return scenes


def return_scenes(count: int = 32) -> list[Scene]:
    """Held-out scenes whose object leaves the picture and comes back: a test of what the cache remembers.

    An object is out of sight about once in 4.6 s: 81 pixel frames show one absence, 165 two, 309 four.

    Args:
        count: At most 13 for each of the held-out kinds that do so.

    Raises:
        ValueError: If there are not so many prompts.
    """
    scenes = [scene for scene in benchmark_scenes(MAX_SCENES) if scene.things[0].motion == "return"]
    if count > len(scenes):
        raise ValueError(f"there are {len(scenes)} held-out prompts with a return, not {count}")
    return scenes[:count]


def two_object_scenes(count: int = 48) -> list[Scene]:
    """Scenes of two objects of different colors side by side, each with its prompt."""
    rng = np.random.default_rng(_SEED + 1)
    scenes = []
    for _ in range(count):
        colors = rng.choice(list(COLORS), 2, replace=False)
        kinds = []
        for color in colors:
            motion = str(rng.choice(PAIR_MOTIONS))
            shape = str(rng.choice([s for s in SHAPES if allowed(s, motion)]))
            kinds.append((str(color), shape, motion))
        left, right = (
            make_thing(kind, rng, side, crowd=2) for kind, side in zip(kinds, (-0.5, 0.5), strict=True)
        )
        said = [prompt_scene(kind, rng).prompt for kind in kinds]
        scenes.append(make_scene((left, right), " and ".join(said), rng))
    return scenes


FREE: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("A crimson sphere hops.", ("red ball bounce",)),
    ("a purple heart", ("purple heart still",)),
    ("Please show me a big golden star that slowly turns around", ("yellow star spin",)),
    ("A little navy disc is drifting from left to right across the screen", ("blue ball right",)),
    ("an emerald hart beats at night", ("green heart pulse",)),
    ("grey ground, a glossy pink donut swings like a pendulum", ("pink ring swing",)),
    ("There's a teal cube which gets smaller and smaller", ("turquoise square shrink",)),
    ("lemon yellow moon rising over a purple floor", ("yellow crescent up",)),
    ("A fuchsia pyramid drops to the floor", ("magenta triangle fall",)),
    ("the white plus sign revolves", ("white cross spin",)),
    ("a spotted orange baloon goes up into the sky", ("orange ball up",)),
    ("One azure kite flies in circles above a brown floor at dusk", ("cyan diamond circle",)),
    ("a lime green arrow moves left", ("lime arrow left",)),
    ("A scarlet circle hides behind a column", ("red ball behind",)),
    ("violet starfish, it jumps up and down all the time", ("purple star bounce",)),
    ("A striped rose block leaves the picture and then returns", ("pink square return",)),
    ("At sunset an amber love heart swells", ("orange heart grow",)),
    ("A tiny snow white diamond rests on a red floor", ("white diamond still",)),
    ("a chartreuse hoop sinks", ("lime ring down",)),
    ("two sapphire balls bounce", ("blue ball bounce", "blue ball bounce")),
    ("A ruby heart throbs next to an emerald square that spins", ("red heart pulse", "green square spin")),
    ("a yelow star twirls while a blue ball hops", ("yellow star spin", "blue ball bounce")),
    ("a cyan triangle expands to the left of a white ring", ("cyan triangle grow", "white ring still")),
    (
        "An orange cross falls down, and a violet crescent floats up",
        ("orange cross fall", "purple crescent up"),
    ),
)
"""Sentences as people write them, with slips and words that no training sentence has, and what they show."""


def free_scenes() -> list[Scene]:
    """The free sentences with what they should show; the scenery is any, also where they name it."""
    rng = np.random.default_rng(_SEED + 2)
    scenes = []
    for prompt, said in FREE:
        sides = (0.0,) if len(said) == 1 else (-0.5, 0.5)
        things = tuple(
            make_thing((color, shape, motion), rng, side, crowd=len(said))
            for side, (color, shape, motion) in zip(sides, (words.split() for words in said), strict=True)
        )
        scenes.append(make_scene(things, prompt, rng))
    return scenes
