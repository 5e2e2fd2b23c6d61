"""The benchmark: 64 held-out one-object prompts, and 16 two-object prompts that are reported apart.

Both are fixed by a seed, so that a figure means the same thing wherever it is measured.
"""

import numpy as np

from dummyforcing.eval.world import (
    COLORS,
    FLOORS,
    PAIR_MOTIONS,
    SHAPES,
    Scene,
    allowed,
    held_out_kinds,
    make_scene,
    make_thing,
    prompt_scene,
)

_SEED = 20499


def benchmark_scenes() -> list[Scene]:
    """The 64 held-out scenes, each with its prompt; every second prompt names the floor."""
    rng = np.random.default_rng(_SEED)
    scenes = []
    for index, kind in enumerate(held_out_kinds(64)):
        floor = str(rng.choice(list(FLOORS))) if index % 2 else None
        scenes.append(prompt_scene(kind, rng, floor))
    return scenes


def two_object_scenes(count: int = 16) -> list[Scene]:
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
        left, right = (make_thing(kind, rng, side) for kind, side in zip(kinds, (-0.5, 0.5), strict=True))
        said = [prompt_scene(kind, rng).prompt for kind in kinds]
        scenes.append(make_scene((left, right), " and ".join(said), rng))
    return scenes
