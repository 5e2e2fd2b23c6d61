"""Stories of objects that leave and come back: what they show, and that their judge sees what is wrong."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.evaluation.world.scene import COLORS, SHAPES, Thing
from dummyforcing.pipeline.pipeline import load
from dummyforcing.pipeline.request import make_request
from dummyforcing.presets.catalog import find_preset
from research.detectors.recall import (
    CHUNK,
    Recall,
    RecallStory,
    absence_chunks,
    chunk_pixels,
    chunk_seconds,
    judge_recall,
    recall_stories,
)
from research.world.render import render

Frames = NDArray[np.uint8]


def truth(story: RecallStory, **changes: object) -> Frames:
    """The story as it should be, or with an object that is changed."""
    thing = replace(story.scene.things[0], **changes)  # type: ignore[arg-type]
    scene = replace(story.scene, things=(thing,))
    pixels = render([scene], chunk_pixels(story.chunks), 160)[0] * 255
    frames: Frames = pixels.byte().permute(0, 2, 3, 1).numpy()
    return frames


@pytest.mark.slow
@pytest.mark.parametrize("enters", [False, True])
def test_the_truth_is_right(enters: bool) -> None:
    stories = recall_stories(5, enters, 120)
    assert {story.scene.things[0].kind[:2] for story in stories} == {(c, s) for c in COLORS for s in SHAPES}
    for story in stories[:6]:
        assert judge_recall(truth(story), story) == Recall(True, True, True, True, True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"color": True}, Recall(True, True, False, True, True)),
        ({"shape": True}, Recall(True, True, True, False, True)),
        ({"radius": True}, Recall(True, True, True, True, False)),
        ({"away": ((0.0, 99.0),)}, Recall(True, False, False, False, False)),
    ],
    ids=["color", "shape", "size", "absent"],
)
def test_another_object_comes_back(changes: dict[str, object], expected: Recall) -> None:
    story = recall_stories(5, False, 1)[0]
    thing = story.scene.things[0]
    other: dict[str, object] = {
        "color": "white" if thing.color != "white" else "red",
        "shape": "cross" if thing.shape != "cross" else "ball",
        "radius": 0.34 if thing.radius < 0.26 else 0.2,
    }
    changes = {name: other[name] if value is True else value for name, value in changes.items()}
    returns = chunk_pixels(story.returns)
    frames = np.concatenate([truth(story)[:returns], truth(story, **changes)[returns:]])
    found = judge_recall(frames, story)
    if "shape" in changes:  # another shape has another area
        found = replace(found, size=True)
    assert found == expected


def test_what_never_left_says_nothing() -> None:
    story = recall_stories(5, False, 1)[0]
    assert not judge_recall(truth(story, away=()), story).valid
    assert not judge_recall(truth(story, away=((0.0, 99.0),)), story).valid


def test_an_object_is_where_its_trips_say() -> None:
    """Out of sight between its trips, and at its place before and after."""
    story = recall_stories(5, True, 1)[0]
    here, home, out = (truth(story, **c) for c in ({}, {"away": ()}, {"away": ((-9.0, 99.0),)}))
    at = [chunk_pixels(chunk) for chunk in (story.leaves, story.returns)]
    changed = (here.astype(int) - out).any((1, 2, 3))
    assert isinstance(changed, np.ndarray)
    assert not changed[:4].any()
    assert changed[at[0] - 8 : at[0] + 8].all()
    assert not changed[at[0] + 24 : at[1]].any()
    assert changed[-24:].all()
    trip = 24
    for start, end in ((4 + trip, at[0]), (at[1] + trip, None)):  # it is at its place
        np.testing.assert_array_equal(here[start:end], home[start:end])


def test_times_are_those_of_chunks() -> None:
    preset, _ = find_preset("tiny")
    assert preset.chunk_frames == CHUNK
    for chunk in (1, 4, 13):
        assert chunk_pixels(chunk) == preset.pixel_frames(chunk * CHUNK)
        assert chunk_seconds(chunk) * preset.fps == chunk_pixels(chunk)
    assert absence_chunks(20) * 0.75 == pytest.approx(21.5, abs=0.4)
    files = ModelFiles.open("tiny")
    for enters in (False, True):
        story = recall_stories(10, enters, 1)[0]
        request = make_request(
            files, story.scene.prompt, num_frames=chunk_pixels(story.chunks), switches=story.switches
        )
        placed = [(switch.frame // CHUNK, switch.prompt) for switch in request.switches]
        assert placed == list(story.prompts[1:])


def test_the_model_knows_the_words() -> None:
    text = load("tiny", device="cpu").text
    for story in recall_stories(5, True, 4):
        assert not any(text.unknown_words(prompt) for _, prompt in story.prompts)


def test_things_stay_without_trips() -> None:
    """And trips that are still to come change nothing."""
    assert Thing("red", "ball", "still").away == ()
    story = recall_stories(5, False, 1)[0]
    np.testing.assert_array_equal(truth(story, away=()), truth(story, away=((98.0, 99.0),)))
