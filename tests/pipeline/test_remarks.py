"""What is said of requests that can be done, but perhaps not as they are meant."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dummyforcing.cli import main
from dummyforcing.errors import BadRequest, RequestWarning, TrainedSizeWarning
from dummyforcing.media.clips import read_mp4
from dummyforcing.media.video import write_mp4
from dummyforcing.pipeline.pipeline import DummyForcingPipeline, load
from dummyforcing.pipeline.request import make_request
from tests.conftest import link_model

PROMPT = "a red ball"


@pytest.fixture(scope="module")
def pipeline(model_folder: Path) -> DummyForcingPipeline:
    return load(model_folder)


def said(pipeline: DummyForcingPipeline, prompt: str = PROMPT, **options: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RequestWarning)
        pipeline.warn_of(make_request(pipeline.files, prompt, **options))
    return [str(one.message) for one in caught if issubclass(one.category, RequestWarning)]


def test_nothing_is_said_of_what_is_as_it_should_be(pipeline: DummyForcingPipeline) -> None:
    assert said(pipeline, num_frames=21) == []


@pytest.mark.parametrize(
    ("size", "is_far"), [((32, 48), False), ((64, 96), False), ((64, 112), True), ((16, 16), True)]
)
def test_sizes_far_from_what_a_model_was_trained_for(
    pipeline: DummyForcingPipeline, size: tuple[int, int], is_far: bool
) -> None:
    """Four times as many pixels are not, and more are."""
    assert pipeline.files.preset.size == (32, 48)
    found = said(pipeline, num_frames=9, size=size)
    assert bool(found) == is_far
    if is_far:
        height, width = size
        assert f"was trained with 48x32 pixels; {width}x{height} are far" in found[0]
        with pytest.warns(TrainedSizeWarning):
            pipeline.generate(PROMPT, num_frames=9, size=size)


def test_the_end_of_a_long_prompt(pipeline: DummyForcingPipeline) -> None:
    length = pipeline.text.text_len
    words = ["a", "red", "ball"] * length
    fits, beyond = " ".join(words[: length - 1]), " ".join(words[: length + 1])
    assert said(pipeline, fits, num_frames=9) == []
    (found,) = said(pipeline, beyond, num_frames=9)
    cut = " ".join(words[length - 1 : length + 1])
    assert f"longer than the {length} tokens" in found
    assert f"no effect: '{cut}'" in found
    rollout = pipeline.start(PROMPT, num_frames=None)
    with pytest.warns(RequestWarning, match="has no effect"):
        rollout.set_prompt(beyond)


def test_a_plan_wins_over_a_policy_without_roles(pipeline: DummyForcingPipeline, tmp_path: Path) -> None:
    plan = pipeline.find_plan(make_request(pipeline.files, PROMPT))
    (found,) = said(pipeline, num_frames=9, plan=plan, policy="dense")
    assert "The head plan says what the heads see; policy 'dense' has no say" in found
    assert said(pipeline, num_frames=9, plan=plan) == []
    with pytest.warns(RequestWarning, match="has no say"):
        assert pipeline.generate(PROMPT, num_frames=21, plan=plan, policy="dense").plan == plan


def test_a_change_of_the_prompt_that_forgets_is_said(model_folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_frames": 33, "switches": [(1.0, "a blue cube")]}
    for recache, policy, sink, forgets in (
        (6, "dense", False, True),
        (6, "dense", True, False),
        (0, "dense", False, False),
        (6, "window:1,3", False, False),
        (6, "window:1,6", False, True),
        (6, "dummy", False, False),
    ):
        pipeline = load(link_model(model_folder, tmp_path, recache_frames=recache, global_sink=sink))
        found = [one for one in said(pipeline, policy=policy, **options) if "no head sees" in one]
        assert bool(found) == forgets, (recache, policy, sink)
    assert not [one for one in said(pipeline, policy="dense", num_frames=33) if "no head sees" in one]


def test_a_fade_longer_than_the_video_is_refused(pipeline: DummyForcingPipeline) -> None:
    options: dict[str, Any] = {"num_frames": 33, "switches": [(1.0, "a blue cube")]}
    assert make_request(pipeline.files, PROMPT, fade=3, **options).fade == 3
    with pytest.raises(BadRequest, match="A fade of 4 chunks is longer than the video; take 3 or less"):
        make_request(pipeline.files, PROMPT, fade=4, **options)


def test_the_clip_comes_before_what_goes_on_from_it(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """31 frames of a clip, of which the last 9 are the first of the new video."""
    model = link_model(model_folder, tmp_path, start="clip")
    levels = np.arange(31, dtype=np.uint8)[:, None, None, None] * 8
    write_mp4(tmp_path / "a.mp4", np.broadcast_to(levels, (31, 32, 48, 3)), 16)
    args = ["generate", PROMPT, "--model", str(model), "--size", "48x32", "--frames", "21", "--seed", "3"]
    args += ["--video", str(tmp_path / "a.mp4")]
    assert main([*args, "-o", str(tmp_path / "new.mp4")]) == 0
    assert main([*args, "-o", str(tmp_path / "all.mp4"), "--with-clip"]) == 0
    assert "all.mp4: 43 frames" in capsys.readouterr().out
    new, whole = read_mp4(tmp_path / "new.mp4"), read_mp4(tmp_path / "all.mp4")
    np.testing.assert_allclose(whole[:22].reshape(22, -1).mean(1) / 8, range(22), atol=0.4)
    assert np.abs(whole[22:].astype(int) - new).mean() < 3  # both are compressed
    for wrong in (["--video-from", "start"], ["--video", ""]):
        assert main([*args, *wrong, "-o", str(tmp_path / "no.mp4"), "--with-clip"]) == 2
    assert not (tmp_path / "no.mp4").exists()


def test_a_video_goes_on_from_the_end_of_a_clip(model_folder: Path, tmp_path: Path) -> None:
    files = load(link_model(model_folder, tmp_path, start="clip")).files
    levels = np.arange(20, dtype=np.uint8)[:, None, None, None] * 12
    write_mp4(tmp_path / "a.mp4", np.broadcast_to(levels, (20, 32, 48, 3)), 16)
    cases: list[tuple[dict[str, Any], range]] = [({}, range(11, 20)), ({"video_from": "start"}, range(9))]
    for where, expected in cases:
        start = make_request(files, PROMPT, video=tmp_path / "a.mp4", size=(32, 48), **where).start
        assert start is not None
        found = start.reshape(9, -1).mean(1) / 12
        np.testing.assert_allclose(found, list(expected), atol=0.4)
