"""`generate --compare`: its figures are of the videos, not of what else the machine does."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from dummyforcing.cli import main
from dummyforcing.errors import NotEnoughMemory
from dummyforcing.models.wan import CausalWan
from dummyforcing.pipeline.pipeline import DummyForcingPipeline, load
from dummyforcing.pipeline.request import make_request

PROMPT = "a red ball bounces on a green floor"


@pytest.fixture
def compare(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command and give what it prints."""

    def run(*options: str) -> str:
        args = ["generate", PROMPT, "-o", str(tmp_path / "a.mp4"), "--model", str(model_folder), "--compare"]
        assert main([*args, *options]) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def slower(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A machine whose clock tells one second for a pass over the network, from some pass on three."""
    time, passes = 0.0, 0
    transform = CausalWan.transform

    def from_pass(number: int) -> None:
        def timed(*args: Any, **options: Any) -> Tensor:
            nonlocal time, passes
            passes += 1
            time += 1 if passes <= number else 3
            return transform(*args, **options)

        monkeypatch.setattr(CausalWan, "transform", timed)
        monkeypatch.setattr("dummyforcing.runtime.streams.time.perf_counter", lambda: time)

    return from_pass


@pytest.mark.parametrize("begin", [3, 13, 21])
def test_a_busy_machine_does_not_decide(
    compare: Callable[..., str], slower: Callable[[int], None], begin: int
) -> None:
    """Equal work; two videos of seven chunks of three passes. Something else begins on the way."""
    slower(begin)
    printed = compare("--policy", "dense", "--frames", "81")
    found = re.search(r"speed-up (\d\.\d\d)x without VAE", printed)
    assert found
    assert float(found[1]) == pytest.approx(1, abs=0.16)  # one of seven chunks, at most


@pytest.mark.parametrize(("frames", "is_too_short"), [("9", True), ("21", True), ("33", False)])
def test_a_video_too_short_to_be_classified_says_so(
    compare: Callable[..., str], model_folder: Path, frames: str, is_too_short: bool
) -> None:
    printed = compare("--frames", frames)
    assert ("speed-up" in printed) != is_too_short
    assert "PSNR inf" not in printed
    if is_too_short:
        assert (
            f"{frames} pixel frames are too few to compare: until its heads are classified, policy dummy is "
            "dense; take 33 or more.\n"
        ) in printed
    pipeline = load(model_folder, device="cpu")
    mine, theirs = (
        pipeline.generate(PROMPT, num_frames=int(frames), policy=name) for name in ("dummy", "dense")
    )
    assert np.array_equal(mine.frames, theirs.frames) == is_too_short


def test_a_given_plan_is_never_too_short(compare: Callable[..., str], tmp_path: Path) -> None:
    plan = str(tmp_path / "plan.json")
    compare("--frames", "33", "--save-plan", plan)
    assert "speed-up" in compare("--frames", "21", "--plan", plan)


def test_turns_make_the_videos_that_single_runs_make(model_folder: Path) -> None:
    pipeline = load(model_folder, device="cpu")
    requests = [make_request(pipeline.files, PROMPT, num_frames=33, policy=p) for p in ("dummy", "dense")]
    turns = list(pipeline.in_turns(requests))
    for number, request in enumerate(requests):
        alone = list(pipeline.run(request))
        assert len(turns) == len(alone)
        for pieces, piece in zip(turns, alone, strict=True):
            assert np.array_equal(pieces[number].frames, piece.frames)


def test_turns_need_memory_for_both(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = load(model_folder, device="cpu")
    requests = [make_request(pipeline.files, PROMPT, num_frames=477, policy="dense")] * 2
    free = next(_enough(pipeline, requests[:1], monkeypatch))
    with pytest.raises(NotEnoughMemory, match="the videos made in turns with it"):
        pipeline.in_turns(
            [requests[0], make_request(pipeline.files, PROMPT, num_frames=477, policy="native")]
        )
    assert free < next(_enough(pipeline, [*requests[:1], make_request(pipeline.files, PROMPT)], monkeypatch))


def _enough(
    pipeline: DummyForcingPipeline, requests: list[Any], monkeypatch: pytest.MonkeyPatch
) -> Iterator[float]:
    """The least memory, in steps of 10 MB, that videos made in turns fit into."""
    for free in np.arange(0, 10e9, 1e7):
        monkeypatch.setattr("dummyforcing.pipeline.memory.available_memory", lambda _, free=free: float(free))
        try:
            pipeline.in_turns(requests)
        except NotEnoughMemory:
            continue
        yield float(free)
