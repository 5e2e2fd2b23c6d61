"""The rendered world: exact detectors find what is drawn, and sentences say what is in their scenes."""

import re
from collections import Counter
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest

from dummyforcing.evaluation.world.detect import Verdict, judge
from dummyforcing.evaluation.world.scene import (
    COLORS,
    MATERIALS,
    MOTIONS,
    SHADES,
    SHAPES,
    SIZES,
    SKIES,
    SPINNING,
    Scene,
    Thing,
    allowed,
)
from research.detectors.recall import COMES_BACK, LEAVES
from research.world.prompts import FREE, benchmark_scenes, free_scenes, two_object_scenes
from research.world.render import render
from research.world.wording import SLOTS, Teller, Told, mistype
from research.world.words import COLOR_WORDS, ERRANDS, MOTION_WORDS, SHAPE_WORDS, conjugate
from research.world.world import held_out_kinds, make_scene, make_thing

RIGHT = Verdict(True, True, True)
FIGURES = ("color", "shade", "shape", "size", "material", "motion")


def verdict_of(scene: Scene) -> Verdict:
    frames = (render([scene], 81, 96)[0] * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return judge(frames, scene)


def one_of_everything() -> list[Scene]:
    """Every color, shape, shade, material, size, motion and sky, in few scenes."""
    rng = np.random.default_rng(3)
    scenes = []
    for i, motion in enumerate(chain(MOTIONS, MOTIONS)):
        color, shape = list(COLORS)[i % 12], SHAPES[i % 10] if motion != "spin" else SPINNING[i % 8]
        shade = ("", *SHADES)[i % 3] if color not in ("white", "pink") else ""
        material = MATERIALS[i % 4] if shade != "dark" else "shiny"
        size = ("", *SIZES)[i // 3 % 3] if motion not in ("grow", "shrink", "pulse") else ""
        thing = make_thing((color, shape, motion), rng, shade=shade, material=material, size=size)
        scenes.append(make_scene((thing,), motion, rng, None, list(SKIES)[i % 3]))
    return scenes


def test_one_of_everything_is_everything() -> None:
    things = [scene.things[0] for scene in one_of_everything()]
    for name, values in zip(FIGURES, (COLORS, SHADES, SHAPES, SIZES, MATERIALS, MOTIONS), strict=True):
        assert set(values) <= {getattr(thing, name) for thing in things}, name
    assert all(allowed(thing.shape, thing.motion) for thing in things)


@pytest.mark.slow
@pytest.mark.parametrize("scene", one_of_everything(), ids=lambda scene: str(scene.things[0].kind))
def test_all_that_can_be_drawn_is_found(scene: Scene) -> None:
    assert verdict_of(scene) == RIGHT


@pytest.mark.slow
def test_the_benchmark_can_be_passed() -> None:
    wrong = {
        scene.prompt: found.reasons
        for scene in [*benchmark_scenes()[::3], *two_object_scenes()[::4], *free_scenes()[:6]]
        if (found := verdict_of(scene)) != RIGHT
    }
    assert wrong == {}


def test_a_spinning_heart_is_followed() -> None:
    """Its outline has next to no phase of its own; the angle is that of the template that fits."""
    scene = make_scene((Thing("red", "heart", "spin", radius=0.3, period=4.5),), "", np.random.default_rng(0))
    assert verdict_of(scene) == RIGHT
    still = replace(scene, things=(Thing("red", "heart", "still", radius=0.3, angle=1.0),))
    assert verdict_of(still) == RIGHT


# --- wording ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told() -> list[Told]:
    teller = Teller(np.random.default_rng(0))
    return [teller.tell() for _ in range(3000)]


def said_by(slots: tuple[int, ...]) -> dict[str, str]:
    return {name: SLOTS[name][slot - 1] for name, slot in zip(SLOTS, slots, strict=True) if slot}


def test_slots_are_what_the_scene_shows(told: list[Told]) -> None:
    for one in told:
        said, scene = said_by(one.slots), one.scene
        for number in range(1, 4):
            of = {name: said[f"{name} {number}"] for name in FIGURES if f"{name} {number}" in said}
            fitting = [t for t in scene.things if all(getattr(t, name) == of[name] for name in of)]
            assert fitting, (scene.prompt, of)
            for thing in fitting[:1] if of else []:  # and what is special is said
                assert thing.shade == of.get("shade", "")
                assert thing.size == of.get("size", "")
        count = sum(f"shape {number}" in said for number in range(1, 4))
        assert count == len(scene.things), scene.prompt
        assert said.get("floor", scene.floor) == scene.floor
        assert said.get("sky", scene.sky) == scene.sky
        if "camera" in said:
            assert (scene.pan > 0) == (said["camera"] == "right")


def test_relations_are_where_things_are(told: list[Told]) -> None:
    seen: Counter[str | None] = Counter()
    for one in told:
        relation = said_by(one.slots).get("relation")
        seen[relation] += 1
        if relation is None:
            continue
        first, second = one.scene.things
        match relation:
            case "left":
                assert first.x < second.x - 0.5
            case "right":
                assert first.x > second.x + 0.5
            case "above":
                assert first.y < second.y - 0.5
            case "below":
                assert first.y > second.y + 0.5
            case "front":  # the first thing is drawn last
                assert (first.motion, second.motion) == ("across", "still")
            case "behind":
                assert (first.motion, second.motion) == ("still", "across")
            case "chases":
                assert first.motion == second.motion == "circle"
    assert len(seen) == 8


def test_prompts_show_the_words_of_their_slots(told: list[Told]) -> None:
    """For whoever reads them as a person does: by the tables of words."""
    for one in told:
        text, said = one.scene.prompt, said_by(one.slots)
        for number in range(1, 4):
            if shape := said.get(f"shape {number}"):
                assert any(re.search(rf"\b{word}(s|es)?\b", text) for word in SHAPE_WORDS[shape]), text


def test_no_words_mean_two_things() -> None:
    for table in (COLOR_WORDS, SHAPE_WORDS, MOTION_WORDS | ERRANDS):
        words = [word for values in table.values() for word in set(values)]
        assert len(words) == len(set(words))
    assert set(SHAPE_WORDS) == set(SHAPES)
    assert set(COLOR_WORDS) == set(COLORS)
    assert set(MOTION_WORDS) == set(MOTIONS)


def test_held_out_kinds_are_never_told(told: list[Told]) -> None:
    kinds = {thing.kind for one in told for thing in one.scene.things}
    assert not kinds & set(held_out_kinds())
    assert {motion for _, _, motion in kinds} == {*MOTIONS, "across"}


def test_errands_are_the_prompts_of_the_stories() -> None:
    said = {conjugate(verb, "third"): does for does, verbs in ERRANDS.items() for verb in verbs}
    assert (said[LEAVES], said[COMES_BACK]) == ("leave", "come")
    teller = Teller(np.random.default_rng(0))
    for _ in range(100):
        prompt, slots = teller.errand()
        assert said_by(slots)["motion 1"] in ERRANDS, prompt


def test_a_slip_is_in_one_word() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        before = ["a", "purple", "crescent", "moon", "rotates", "on", "the", "ground"]
        after = mistype(" ".join(before), rng).split(" ")
        wrong = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
        assert len(wrong) <= 1
        assert all(abs(len(a) - len(b)) <= 1 and a[0] == b[0] for a, b in wrong)


def test_free_sentences_show_what_they_say() -> None:
    scenes = free_scenes()
    assert [scene.prompt for scene in scenes] == [prompt for prompt, _ in FREE]
    assert len({scene.prompt for scene in scenes}) == 24
    for scene in scenes:
        assert all(allowed(thing.shape, thing.motion) for thing in scene.things)
