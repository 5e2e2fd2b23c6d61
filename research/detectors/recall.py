"""What a video remembers: an object that leaves the picture, stays away, and comes back.

    story = recall_stories(seconds=20, enters=False)[0]  # who leaves when, and the prompts that tell it
    recall = judge_recall(frames, story)                 # is it the same object that comes back?

The prompts name the object at the beginning only; later they say that it leaves and that it comes back. So
its color, shape and size at the end are known from the past alone.
"""

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dummyforcing.evaluation.world.detect import Found, detect
from dummyforcing.evaluation.world.identity import MAX_GROWTH
from dummyforcing.evaluation.world.scene import COLORS, FPS, SHAPES, Scene
from dummyforcing.presets.preset import PIXEL_FRAMES_PER_FRAME
from research.world.world import TRIP, make_thing, prompt_scene

CHUNK = 3
"""Latent frames."""
AFTER = 5
"""Chunks from the return to the end: two to slide in, three to be looked at."""
LEAVES, COMES_BACK = "leaves", "comes back"
"""The prompts without a name."""
_LOOKED_AT = 12  # pixel frames before the object leaves, and at the end
_SEED = 20499


@dataclass(frozen=True)
class RecallStory:
    """An object that leaves and comes back."""

    scene: Scene
    prompts: tuple[tuple[int, str], ...]
    """The chunk from which each prompt holds, the first one 0."""
    leaves: int
    """The chunk in which it begins to slide out."""
    returns: int
    """The chunk in which it begins to slide in again."""
    enters: bool
    """Whether it is outside at first and slides in."""

    @property
    def chunks(self) -> int:
        """Length of the video."""
        return self.returns + AFTER

    @property
    def switches(self) -> list[tuple[float, str]]:
        """The later prompts, as `VideoOptions.switches` has them."""
        return [(chunk_seconds(chunk), prompt) for chunk, prompt in self.prompts[1:]]


@dataclass(frozen=True)
class Recall:
    """What a video kept of the object; all but `valid` are about videos that are valid."""

    valid: bool
    """Whether an object was there, and went out of sight for half of the absence at least."""
    back: bool = False
    """Whether any object is there at the end."""
    color: bool = False
    """Whether it has the color that it had before it left."""
    shape: bool = False
    size: bool = False
    """Whether its area is the same within a factor of 1.5."""

    @property
    def same(self) -> bool:
        """Whether it is the same object in all three."""
        return self.color and self.shape and self.size


def chunk_pixels(chunk: int) -> int:
    """The first pixel frame of a chunk."""
    return max(0, 1 + PIXEL_FRAMES_PER_FRAME * (CHUNK * chunk - 1))


def chunk_seconds(chunk: int) -> float:
    """When a chunk begins."""
    return chunk_pixels(chunk) / FPS


def absence_chunks(seconds: float) -> int:
    """Chunks from leaving to returning for an object that is out of sight for about so long."""
    return round((seconds + TRIP) * FPS / (CHUNK * PIXEL_FRAMES_PER_FRAME))


def make_recall_story(
    kind: tuple[str, str],
    rng: np.random.Generator,
    leaves: int,
    returns: int,
    enters: bool,
    floor: str | None,
) -> RecallStory:
    """Draw where the object stands, how large it is, and the scenery.

    Args:
        kind: Color and shape.
        rng: Of all that is free.
        leaves: The chunk in which it begins to slide out; with `enters` at least 4.
        returns: The chunk in which it begins to slide in again.
        enters: Whether it is outside at first and slides in, so that the first frame tells nothing of it.
        floor: Color of the floor, said in the first prompt; None: any, unsaid.
    """
    scene = prompt_scene((*kind, "still"), rng, floor)
    away = [(chunk_seconds(leaves), chunk_seconds(returns))]
    if enters:
        away.insert(0, (-TRIP, 0.25))
    thing = replace(make_thing((*kind, "still"), rng), radius=float(rng.uniform(0.2, 0.34)), away=tuple(away))
    first = scene.prompt.replace("stays still", COMES_BACK) if enters else scene.prompt
    prompts = ((0, first), (leaves, LEAVES), (returns, COMES_BACK))
    return RecallStory(replace(scene, things=(thing,), prompt=first), prompts, leaves, returns, enters)


def recall_stories(seconds: float, enters: bool, count: int = 48) -> list[RecallStory]:
    """The stories that models are judged with: every color and shape once, then again elsewhere.

    Args:
        seconds: How long the object is out of sight, 1 at least.
        enters: See `make_recall_story`.
        count: How many.
    """
    rng = np.random.default_rng([_SEED, round(10 * seconds), enters])
    kinds = list(itertools.product(COLORS, SHAPES))
    rng.shuffle(kinds)
    return [
        make_recall_story(kinds[i % len(kinds)], rng, 4, 4 + absence_chunks(seconds), enters, None)
        for i in range(count)
    ]


def judge_recall(frames: NDArray[np.uint8], story: RecallStory) -> Recall:
    """Compare the object at the end with the one that left.

    Args:
        frames: The video, `(T, H, W, 3)` uint8, square pictures.
        story: What it should show.
    """
    leaves, returns = chunk_pixels(story.leaves), chunk_pixels(story.returns)
    before = _main(frames[leaves - _LOOKED_AT : leaves])
    trip = round(TRIP * FPS)
    absence = _main(frames[leaves + trip : returns : PIXEL_FRAMES_PER_FRAME])
    if before is None or (absence is not None and absence.track.visible.mean() > 0.5):
        return Recall(valid=False)
    after = _main(frames[-_LOOKED_AT:])
    if after is None:
        return Recall(valid=True)
    areas = [float(np.median(found.track.area[found.track.visible])) for found in (before, after)]
    return Recall(
        valid=True,
        back=True,
        color=before.color == after.color,
        shape=before.shape is not None and before.shape == after.shape,
        size=abs(math.log(areas[1] / areas[0])) < MAX_GROWTH,
    )


def _main(frames: NDArray[np.uint8]) -> Found | None:
    """The largest object, if there is any in half of the frames."""
    objects = detect(frames).objects
    return objects[0] if objects and objects[0].track.visible.mean() >= 0.5 else None
