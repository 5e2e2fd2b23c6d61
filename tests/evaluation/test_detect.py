"""The detector on videos whose content is known, right ones and wrong ones."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from dummyforcing.evaluation.bootstrap import wilson
from dummyforcing.evaluation.world.detect import Verdict, detect, judge, summary
from dummyforcing.evaluation.world.motion import Track, motion_scores
from dummyforcing.evaluation.world.scene import COLORS, FPS, MOTIONS
from research.world.prompts import benchmark_scenes, two_object_scenes
from research.world.render import draw, prepare
from research.world.world import held_out_kinds, prompt_scene
from tests.pictures import blur

SIZE = 96
RIGHT = Verdict(True, True, True)


def as_frames(pictures):
    return (pictures.clamp(0, 1).permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()


def film(scene, frames=81, size=SIZE, change=None):
    """Draw a scene after `change(numbers, share)`; share runs from 0 to 1 over the clip, (T, 1)."""
    numbers = prepare([scene], frames)
    if change:
        change(numbers, torch.linspace(0, 1, frames)[:, None])
    return draw(numbers, size)


def scene_of(color, shape, motion, **numbers):
    scene = prompt_scene((color, shape, motion), np.random.default_rng(1))
    return replace(scene, things=(replace(scene.things[0], **numbers),))


def worsen(pictures, sigma=0.75, noise=0.03, seed=0):
    """What a VAE and a diffusion model may do; sigma is in pixels of the small test size."""
    generator = torch.Generator().manual_seed(seed)
    return blur(pictures, sigma) + noise * torch.randn(pictures.shape, generator=generator)


# --- right videos ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("scene", benchmark_scenes()[:13], ids=lambda scene: scene.prompt)
def test_what_is_drawn_is_found(scene):
    pictures = film(scene)
    assert judge(as_frames(pictures), scene) == RIGHT
    assert judge(as_frames(worsen(pictures)), scene) == RIGHT


@pytest.mark.parametrize("scene", two_object_scenes(3), ids=lambda scene: scene.prompt)
def test_two_objects_are_matched_by_color(scene):
    frames = as_frames(worsen(film(scene)))
    assert judge(frames, scene) == RIGHT
    first, second = scene.things
    swapped = replace(
        scene, things=(replace(first, motion=second.motion), replace(second, motion=first.motion))
    )
    verdict = judge(frames, swapped)
    assert verdict.color
    assert verdict.motion == (first.motion == second.motion)


@pytest.mark.parametrize(
    ("motion", "frames", "size"),
    [("grow", 161, 64), ("circle", 33, 64), ("left", 33, 128), ("return", 161, 64), ("bounce", 49, 200)],
)
def test_other_lengths_and_sizes(motion, frames, size):
    scene = scene_of("green", "triangle", motion)
    assert judge(as_frames(film(scene, frames, size)), scene) == RIGHT


def test_dark_pale_spotted_videos():
    scene = scene_of("green", "ring", "swing")
    pictures = film(scene)
    gray = pictures.mean(1, keepdim=True)
    assert judge(as_frames(blur(pictures * 0.85, 0.75)), scene) == RIGHT
    assert judge(as_frames(gray + 0.65 * (pictures - gray)), scene) == RIGHT
    spots = pictures.clone()
    for t, (y, x) in enumerate(np.random.default_rng(0).integers(0, SIZE - 4, (81, 2))):
        spots[t, :, y : y + 4, x : x + 4] = torch.tensor(COLORS["red"])[:, None, None]
    assert judge(as_frames(blur(spots, 0.75)), scene) == RIGHT


def test_detection_tells_the_track():
    scene = scene_of("cyan", "star", "right", y=0.1, radius=0.3, amplitude=0.5)
    (found,) = detect(as_frames(film(scene))).objects
    assert (found.color, found.shape, found.motion) == scene.things[0].kind
    assert found.track.x[0] == pytest.approx(-0.5, abs=0.03)
    assert found.track.x[-1] == pytest.approx(0.5, abs=0.03)
    assert found.track.y == pytest.approx(np.full(81, 0.1), abs=0.03)
    assert found.track.visible.all()
    assert found.color_share == 1
    assert found.shape_margin > 0.15
    assert found.motion_margin > 0.5


# --- wrong videos ---------------------------------------------------------------------------------------


def test_wrong_color_shape_motion():
    scene = scene_of("red", "star", "still")
    verdict = judge(as_frames(film(scene_of("orange", "star", "still"))), scene)
    assert (verdict.color, verdict.shape, verdict.motion) == (False, True, True)
    assert verdict.reasons == ("color: orange, not red",)
    verdict = judge(as_frames(film(scene_of("red", "cross", "still"))), scene)
    assert (verdict.color, verdict.shape, verdict.motion) == (True, False, True)
    verdict = judge(as_frames(film(scene_of("red", "star", "spin"))), scene)
    assert (verdict.color, verdict.shape, verdict.motion) == (True, True, False)
    assert verdict.reasons == ("motion: spin, not still",)


def test_blobs_are_not_shapes():
    scene = scene_of("red", "star", "still", x=0.0, y=0.0)
    pictures = film(scene, change=lambda n, share: n["x"].fill_(9))
    ticks = (torch.arange(SIZE) + 0.5) * 2 / SIZE - 1
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    outline = 0.28 * (1 + 0.12 * (2 * torch.atan2(y, x)).cos() + 0.15 * (3 * torch.atan2(y, x) + 1).sin())
    pictures[:, :, x.hypot(y) < outline] = torch.tensor(COLORS["red"])[:, None]
    for shape in ("star", "ball", "square"):
        wanted = replace(scene, things=(replace(scene.things[0], shape=shape),))
        verdict = judge(as_frames(blur(pictures, 0.75)), wanted)
        assert (verdict.color, verdict.shape, verdict.motion) == (True, False, True)


def fades(numbers, share):
    numbers["color"] = numbers["color"] * (1 - share[..., None]) + 0.25 * share[..., None]


def turns_blue(numbers, share):
    numbers["color"][share[:, 0] > 0.5] = torch.tensor(COLORS["blue"])


def melts(numbers, share):
    numbers["shape"][share > 0.5] = 0


def drifts(numbers, share):
    numbers["x"] += 0.25 * share


def jumps(numbers, share):
    numbers["x"] += 0.6 * (share > 0.5)


def vanishes(numbers, share):
    numbers["x"][50:60] = 9


@pytest.mark.parametrize(
    ("change", "right", "reason"),
    [
        (fades, (True, True, False), "out of sight"),
        (turns_blue, (False, True, True), "color"),
        (melts, (True, False, False), "shape: unclear"),
        (drifts, (True, True, False), "motion"),
        (jumps, (True, True, False), "motion"),
        (vanishes, (True, True, False), "out of sight"),
    ],
)
def test_what_does_not_stay_the_same(change, right, reason):
    scene = scene_of("red", "star", "still", x=-0.2)
    verdict = judge(as_frames(blur(film(scene, change=change), 0.75)), scene)
    assert (verdict.color, verdict.shape, verdict.motion) == right
    assert reason in " ".join(verdict.reasons)


def test_a_second_object_of_the_same_size():
    first, second = two_object_scenes(4)[1].things
    scene = replace(two_object_scenes(4)[1], things=(first,))
    both = replace(scene, things=(first, replace(second, shape="square", motion="still", radius=0.4)))
    assert not judge(as_frames(film(both)), scene).color


def no_pillar(numbers, share):
    numbers["pillar"][:] = 0


def never_back(numbers, share):
    hidden = int((numbers["x"][:, 0] > 0).int().argmax())  # it starts at the left
    numbers["x"][hidden:] = 9


@pytest.mark.parametrize("change", [no_pillar, never_back])
def test_not_behind_a_pillar(change):
    scene = scene_of("red", "triangle", "behind", phase=0.0)
    assert judge(as_frames(film(scene)), scene) == RIGHT
    verdict = judge(as_frames(film(scene, change=change)), scene)
    assert (verdict.color, verdict.shape, verdict.motion) == (True, True, False)


def test_nothing_to_see():
    scene = scene_of("red", "ball", "still")
    empty = as_frames(film(scene, change=lambda n, share: n["x"].fill_(9)))
    assert detect(empty).objects == ()
    assert judge(empty, scene) == Verdict(False, False, False, ("no object is seen",))
    assert not judge(np.full((33, 64, 64, 3), 255, np.uint8), scene).shape


def test_a_single_frame_has_no_motion():
    (found,) = detect(as_frames(film(scene_of("blue", "cross", "still"), frames=1))).objects
    assert (found.color, found.shape, found.motion) == ("blue", "cross", None)


def test_pictures_must_be_square():
    with pytest.raises(ValueError, match="H = W"):
        detect(np.zeros((9, 64, 96, 3), np.uint8))


# --- motion rules alone ---------------------------------------------------------------------------------

T = np.arange(81) / FPS


def motion_of(x=0.0, y=0.0, area=0.25, angle=0.0, pillar=False):
    x, y, area, angle = (np.broadcast_to(v, T.shape).astype(np.float32) for v in (x, y, area, angle))
    visible = area > 0
    whole = visible & (np.abs(x) < 0.75) & (np.abs(y) < 0.75)
    scores = motion_scores(Track(x, y, area, angle, visible, whole), pillar)
    best = max(scores, key=scores.__getitem__)
    return best if scores[best] >= 0.5 else None


def test_bounces_have_contacts():
    hop = (T / 1.2) % 1
    assert motion_of(y=0.5 - 0.6 * 4 * hop * (1 - hop)) == "bounce"
    assert motion_of(y=0.5 - 0.6 * 4 * hop * (1 - hop), x=-0.15 + 0.06 * T) == "bounce"
    assert motion_of(y=0.3 * np.sin(5 * T)) is None  # bobs
    assert motion_of(y=0.6 * (2 * T / 5 - 1) ** 2) is None  # one throw


def test_what_falls_is_quick_and_stays_down():
    drop = np.minimum(1.8 * np.maximum(T - 0.4, 0) ** 2 - 0.6, 0.4)
    assert motion_of(y=drop) == "fall"
    assert motion_of(y=-0.6 + np.minimum(0.25 * T, 1.0)) == "down"
    assert motion_of(y=np.where(T < 0.4, -0.6, 0.4)) is None  # a jump


def test_slides_may_stop_or_leave_but_not_turn_back():
    assert motion_of(x=0.5 - np.minimum(0.4 * T, 1)) == "left"
    assert motion_of(y=-0.5 + np.minimum(0.4 * T, 1)) == "down"
    x = -0.5 + 0.5 * T
    assert motion_of(x=np.minimum(x, 1), area=np.where(x < 1, 0.25, 0)) == "right"
    assert motion_of(x=0.6 * np.sin(0.5 * T)) is None  # goes and comes half back
    assert motion_of(x=np.where(T < 2.5, 0.5, -0.5)) is None  # a jump


def test_circles_close():
    assert motion_of(x=0.4 * np.cos(2.2 * T), y=0.4 * np.sin(2.2 * T)) == "circle"
    assert motion_of(x=0.4 * np.cos(0.6 * T), y=0.4 * np.sin(0.6 * T)) != "circle"
    assert motion_of(x=0.4 * np.sin(2.2 * T), y=0.4 * np.sin(4.4 * T)) is None  # a figure of eight


def test_swings_return_more_than_once():
    assert motion_of(x=0.45 * np.sin(2.2 * T)) == "swing"
    assert motion_of(x=0.45 * np.sin(0.9 * T)) is None


def test_sizes_and_turns_keep_their_direction():
    assert motion_of(area=0.08 + 0.05 * T) == "grow"
    assert motion_of(area=0.35 - 0.05 * T) == "shrink"
    assert motion_of(area=0.25 + 0.1 * np.sin(3.6 * T)) == "pulse"
    assert motion_of(area=0.25 + 0.1 * np.sin(1.2 * T)) is None  # once
    assert motion_of(angle=2 * T) == "spin"
    assert motion_of(angle=0.5 * np.sin(4 * T)) is None


def test_returns_come_back_at_the_same_side():
    x = np.minimum(1.6 - np.abs(1.6 * T / 2.3 - 1.6), 1.0)
    seen = np.where(x < 0.99, 0.25, 0.0)
    assert motion_of(x=x, area=seen) == "return"
    after = T > 2.5
    assert motion_of(x=np.where(after, -x, x), area=seen) is None
    assert motion_of(x=np.where(after, 1.0, x), area=np.where(after, 0, seen)) == "right"


def test_still_is_still():
    shake = 0.01 * np.random.default_rng(0).standard_normal(81)
    assert motion_of(x=shake, area=0.25 + shake) == "still"
    assert motion_of(x=0.04 * T) is None
    odd = shake.copy()
    odd[40] = 0.5  # one odd frame
    assert motion_of(x=odd) == "still"


# --- prompts and figures --------------------------------------------------------------------------------


def test_benchmark_prompts():
    scenes = benchmark_scenes()
    assert [scene.things[0].kind for scene in scenes] == held_out_kinds(96)
    assert len({scene.prompt for scene in scenes}) == 96
    assert sum("floor" in scene.prompt for scene in scenes) == 48
    assert set(Counter(scene.things[0].motion for scene in scenes)) == set(MOTIONS)
    assert benchmark_scenes() == scenes


def test_two_object_prompts():
    scenes = two_object_scenes()
    assert len({scene.prompt for scene in scenes}) == 48
    for scene in scenes:
        first, second = scene.things
        assert first.color != second.color
        assert first.x < 0 < second.x
        assert f"{first.color} {first.shape} {MOTIONS[first.motion]} and a" in scene.prompt


def test_summary():
    verdicts = [RIGHT] * 3 + [Verdict(True, False, True, ("shape: ball, not star",))]
    figures = summary(verdicts)
    assert figures["count"] == 4
    assert figures["color"] == {"right": 4, "percent": 100.0, "interval": [51.0, 100.0]}
    assert figures["color_and_shape"] == {"right": 3, "percent": 75.0, "interval": [30.1, 95.4]}
    assert json.loads(json.dumps(figures)) == figures
    assert summary([])["motion"] == {"right": 0, "percent": None, "interval": [0.0, 100.0]}


def test_wilson_interval():
    assert wilson(58, 64) == pytest.approx((0.8104, 0.9568), abs=1e-3)
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-3)
