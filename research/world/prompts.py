"""The benchmark: held-out one-object prompts, and two-object prompts that are reported apart.

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
