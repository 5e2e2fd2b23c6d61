"""Sets of videos: measures of the rendered world, intervals, paired differences, prompts."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from dummyforcing.evaluation.bootstrap import bootstrap, paired
from dummyforcing.evaluation.fidelity import Fidelity
from dummyforcing.evaluation.suite import aggregate, differences, measure
from dummyforcing.evaluation.world.detect import detect
from dummyforcing.evaluation.world.identity import same_on_return
from dummyforcing.evaluation.world.measures import measure_scene
from dummyforcing.evaluation.world.outline import shape_distance
from dummyforcing.evaluation.world.scene import COLORS, SHAPES
from research.world.prompts import MAX_SCENES, benchmark_scenes, return_scenes, two_object_scenes
from research.world.world import held_out_kinds
from tests.evaluation.test_detect import as_frames, film, scene_of
from tests.pictures import blur

RETURN = scene_of("red", "star", "return", x=0.2, sign=-1.0)
BEHIND = scene_of("green", "triangle", "behind", phase=0.0)


# --- measures of the rendered world ---------------------------------------------------------------------


def test_a_right_video():
    found = measure_scene(as_frames(film(RETURN)), RETURN)
    assert (found.color, found.shape, found.motion, found.count, found.consistency) == (True,) * 5
    assert found.reasons == ()
    alone = asdict(measure(as_frames(film(RETURN))))
    assert not {"color", "shape", "motion", "count", "consistency", "speed", "reasons"} & alone.keys()
    assert {name: getattr(found, name) for name in alone} == alone


def test_speed_of_the_object():
    """From left to right: 1 of the 2 units that the picture is wide, in 4 s."""
    right = scene_of("cyan", "ball", "right", y=0.1, radius=0.3, amplitude=0.5)
    assert measure_scene(as_frames(film(right, frames=65)), right).speed == pytest.approx(0.125, rel=0.03)
    still = scene_of("cyan", "ball", "still")
    speed = measure_scene(as_frames(film(still)), still).speed
    assert speed is not None
    assert speed < 0.005


def second_half(numbers):
    """The frames after the absence in the middle of 81."""
    return torch.arange(len(numbers["x"])) > 36


def blue(numbers, share):
    numbers["color"][second_half(numbers)] = torch.tensor(COLORS["blue"])


def square(numbers, share):
    """Of the star's area: only the outline differs."""
    ticks = torch.linspace(-1.5, 1.5, 601)
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    star, box = (shape_distance(torch.tensor(SHAPES.index(s)), x, y).lt(0).sum() for s in ("star", "square"))
    numbers["shape"][second_half(numbers)] = SHAPES.index("square")
    numbers["radius"][second_half(numbers)] *= (star / box).sqrt()


def small(numbers, share):
    numbers["radius"][second_half(numbers)] *= 0.75


def larger_by_a_tenth(numbers, share):
    numbers["radius"][second_half(numbers)] *= 1.05


@pytest.mark.parametrize(
    ("change", "same"),
    [(None, True), (larger_by_a_tenth, True), (blue, False), (square, False), (small, False)],
)
@pytest.mark.parametrize("worsen", [False, True])
def test_the_same_after_an_absence(change, same, worsen):
    pictures = film(RETURN, change=change)
    found = measure_scene(as_frames(blur(pictures, 0.75) if worsen else pictures), RETURN)
    assert found.consistency is same


@pytest.mark.parametrize(("change", "same"), [(None, True), (blue, False)])
def test_the_same_behind_a_pillar(change, same):
    found = measure_scene(as_frames(film(BEHIND, change=change)), BEHIND)
    assert found.consistency is same


def test_the_second_return_counts_too():
    def late(numbers, share):
        numbers["color"][110:] = torch.tensor(COLORS["blue"])

    assert same_on_return(detect(as_frames(film(RETURN, frames=165)))) is True
    assert same_on_return(detect(as_frames(film(RETURN, frames=165, change=late)))) is False


def test_no_absence_to_judge():
    def never_back(numbers, share):
        numbers["x"][30:] = 9

    assert same_on_return(detect(as_frames(film(RETURN, change=never_back)))) is None
    assert same_on_return(detect(as_frames(film(scene_of("red", "star", "still"))))) is None


def test_count():
    still = scene_of("red", "ball", "still", x=-0.5, radius=0.3)
    other = replace(still.things[0], x=0.5, shape="square")
    twins = replace(still, things=(still.things[0], other))
    assert detect(as_frames(blur(film(twins), 0.75))).count == 2
    assert measure_scene(as_frames(film(twins)), still).count is False
    stranger = replace(still, things=(still.things[0], replace(other, color="blue")))
    assert measure_scene(as_frames(film(stranger)), still).count is False
    assert measure_scene(as_frames(film(stranger)), stranger).count is True


def test_an_object_that_a_pillar_cuts_in_two_is_one():
    def waits_there(numbers, share):
        middle = int(numbers["x"][:, 0].abs().argmin())
        numbers["x"][middle : middle + 20] = 0

    wide = scene_of("green", "ball", "behind", phase=0.0, radius=0.36)
    assert detect(as_frames(film(wide, change=waits_there))).count == 1


# --- intervals ------------------------------------------------------------------------------------------


def test_bootstrap_covers_the_truth():
    """Of 300 samples of a known distribution, the 95% intervals hold its mean in about 95%."""
    rng = np.random.default_rng(5)
    samples = rng.exponential(2.0, (300, 80))
    estimates = [bootstrap(sample, n=500, seed=i) for i, sample in enumerate(samples)]
    assert 0.90 <= np.mean([e.low <= 2.0 <= e.high for e in estimates]) <= 0.98
    # The width is that of the normal approximation, 2 * 1.96 * s / sqrt(n).
    widths = np.array([e.high - e.low for e in estimates])
    assert widths == pytest.approx(2 * 1.96 * samples.std(1) / 80**0.5, rel=0.2)


def test_bootstrap_is_deterministic_and_takes_other_statistics():
    values = list(np.random.default_rng(6).standard_normal(40))
    assert bootstrap(values) == bootstrap(values)
    assert bootstrap(values, seed=1) != bootstrap(values)
    median = bootstrap(values, np.median)
    assert median.value == np.median(values)
    assert median.low < median.value < median.high
    assert bootstrap(values, level=0.5).high < bootstrap(values).high
    assert bootstrap([3.0]).as_json() == {"mean": 3.0, "interval": [3.0, 3.0], "n": 1}
    with pytest.raises(ValueError, match="one or more"):
        bootstrap([])


def test_pairs_cancel_what_they_share():
    rng = np.random.default_rng(7)
    shared = 10 * rng.standard_normal(60)
    gain = paired(shared + 0.5 + 0.1 * rng.standard_normal(60), shared)
    assert 0.4 < gain.low < 0.5 < gain.high < 0.6
    with pytest.raises(ValueError, match="paired"):
        paired([1.0], [1.0, 2.0])


def test_aggregate():
    frames = as_frames(film(RETURN, frames=33))
    row = measure_scene(frames, RETURN)
    rows = [
        replace(row, sharpness=1.0, color=True, consistency=None),
        replace(row, sharpness=3.0, color=True, consistency=False),
        replace(row, sharpness=5.0, color=False, consistency=None),
    ]
    found = aggregate(rows)
    assert found["sharpness"] == bootstrap([1, 3, 5]).as_json()
    assert found["color"]["mean"] == pytest.approx(2 / 3)
    assert found["color"]["interval"] == pytest.approx([0.2077, 0.9385], abs=1e-3)  # Wilson
    assert found["consistency"]["n"] == 1
    assert "repetition" not in found  # too short in all of them
    assert json.loads(json.dumps(found)) == found
    grouped = aggregate(rows, groups=["a", "a", "b"])
    assert grouped["sharpness"] == bootstrap([2, 5]).as_json()
    assert (grouped["color"]["mean"], grouped["color"]["n"]) == (0.5, 2)
    assert aggregate([]) == {}
    with pytest.raises(ValueError, match="zip"):
        aggregate(rows, groups=["a"])


def test_differences():
    row = measure_scene(as_frames(film(RETURN, frames=33)), RETURN)
    mine = [replace(row, sharpness=s, consistency=c) for s, c in ((5.0, True), (6.0, True), (9.0, None))]
    theirs = [replace(row, sharpness=s, consistency=c) for s, c in ((4.0, False), (4.0, None), (6.0, True))]
    found = differences(mine, theirs)
    assert found["sharpness"] == bootstrap([1, 2, 3]).as_json()
    assert (found["consistency"]["mean"], found["consistency"]["n"]) == (1, 1)
    assert found["color"] == {"mean": 0, "interval": [0, 0], "n": 3}
    fidelity = [Fidelity(30.0, 0.9), Fidelity(40.0, 1.0)]
    assert aggregate(fidelity)["psnr"]["mean"] == 35
    with pytest.raises(ValueError, match="paired"):
        differences(mine, theirs[:2])


# --- prompts --------------------------------------------------------------------------------------------


def test_more_prompts_of_the_same_held_out_kinds():
    scenes = benchmark_scenes(200)
    assert scenes[:96] == benchmark_scenes()
    assert benchmark_scenes(130) == scenes[:130]
    assert [scene.things[0].kind for scene in scenes] == [held_out_kinds()[i % 96] for i in range(200)]
    assert len({scene.prompt for scene in benchmark_scenes(MAX_SCENES)}) == MAX_SCENES
    assert len({scene.things[0].x for scene in scenes}) == 200
    with pytest.raises(ValueError, match="1248"):
        benchmark_scenes(MAX_SCENES + 1)


def test_scenes_that_return():
    scenes = return_scenes(32)
    assert len({scene.prompt for scene in scenes}) == 32
    assert {scene.things[0].kind for scene in scenes} <= set(held_out_kinds())
    for scene in scenes[:3]:
        found = measure_scene(as_frames(film(scene)), scene)
        assert (found.motion, found.consistency, found.count) == (True, True, True)
    with pytest.raises(ValueError, match="78"):
        return_scenes(79)


@pytest.mark.parametrize(
    "scene", [*benchmark_scenes(103)[96:], *two_object_scenes(2)], ids=lambda s: s.prompt
)
def test_measures_of_rendered_truth(scene):
    found = measure_scene(as_frames(film(scene)), scene)
    assert (found.color, found.shape, found.motion, found.count) == (True,) * 4
    assert found.consistency in (True, None)
