"""Videos under policies of the user's own: as under built-in ones that do the same, saved and resumed."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from dummyforcing.errors import BadRequest
from dummyforcing.method.criteria import CRITERIA
from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.method.policy import Policy, anchored, dummy
from dummyforcing.method.programming import assign_roles
from dummyforcing.pipeline.pipeline import DummyForcingPipeline, load
from dummyforcing.sampling.guard import Guard

PROMPT = "a red ball bounces"
EXTREMES = {"all": HeadContext(0, None), "none": HeadContext(0, 0)}
NAMES = {"dummy": "idle", "sink": "anchor", "neighbor": "follower"}


class Same:
    """What a built-in policy does, under other names."""

    def __init__(self, built_in: Policy) -> None:
        assert built_in.roles is not None
        self.roles = {NAMES[role]: context for role, context in built_in.roles.items()}

    def assign(self, scores: Tensor) -> Sequence[Sequence[str]]:
        rows = assign_roles(scores, scores.shape[0] * scores.shape[1] // 2)
        return [[NAMES[role] for role in row] for row in rows]


class Other:
    """Roles of other names that see something else."""

    roles = EXTREMES

    def assign(self, scores: Tensor) -> Sequence[Sequence[str]]:
        return [["all", *["none"] * (scores.shape[1] - 1)]] * len(scores)


@pytest.fixture(scope="module")
def pipe(model_folder: Path) -> DummyForcingPipeline:
    return load(model_folder, device="cpu")


@pytest.mark.parametrize("built_in", [dummy(3), anchored(3)], ids=lambda policy: policy.name)
def test_the_same_policy_of_ones_own_gives_the_same_video(
    pipe: DummyForcingPipeline, built_in: Policy
) -> None:
    expected = pipe.generate(PROMPT, num_frames=57, policy=built_in.name)
    video = pipe.generate(PROMPT, num_frames=57, policy=Same(built_in))
    assert np.array_equal(video.frames, expected.frames)
    assert video.plan.contexts == expected.plan.contexts
    assert set(video.plan.counts) == set(NAMES.values())
    assert video.plan.policy == "Same"
    by_plan = pipe.generate(PROMPT, num_frames=57, plan=video.plan)
    assert np.array_equal(by_plan.frames, pipe.generate(PROMPT, num_frames=57, plan=expected.plan).frames)


def test_the_same_criterion_of_ones_own_gives_the_same_video(pipe: DummyForcingPipeline) -> None:
    own = replace(dummy(3), criterion=lambda mass, count, seed: CRITERIA["current"](mass, count, seed))
    expected = pipe.generate(PROMPT, num_frames=45, policy=replace(dummy(3), criterion="current"))
    assert np.array_equal(pipe.generate(PROMPT, num_frames=45, policy=own).frames, expected.frames)


def test_each_video_of_a_batch_has_its_plan(pipe: DummyForcingPipeline) -> None:
    batch = pipe.generate([PROMPT, "a blue cube spins"], num_frames=33, policy=Same(dummy(3)))
    alone = pipe.generate("a blue cube spins", num_frames=33, seed=1, policy=Same(dummy(3)))
    assert batch[1].plan.roles == alone.plan.roles


@pytest.mark.parametrize("chunks", [0, 1, 2, 4])
def test_saved_and_resumed_it_goes_on_bit_by_bit(
    pipe: DummyForcingPipeline, tmp_path: Path, chunks: int
) -> None:
    own = Same(dummy(3))
    run = pipe.start(PROMPT, num_frames=57, policy=own)
    for _ in range(chunks):
        run.next_chunk()
    run.save(tmp_path / "run")
    expected = np.concatenate([chunk.frames for chunk in run], axis=1)
    resumed = list(pipe.resume(tmp_path / "run", policy=own))
    assert np.array_equal(np.concatenate([chunk.frames for chunk in resumed], axis=1), expected)
    assert set(resumed[-1].plans[0].counts) == set(NAMES.values())
    if chunks > 1:  # the heads are classified: their code is not needed any more
        alone = list(pipe.resume(tmp_path / "run"))
        assert np.array_equal(np.concatenate([chunk.frames for chunk in alone], axis=1), expected)
        again = pipe.resume(tmp_path / "run")
        again.save(tmp_path / "again")
        assert pipe.resume(tmp_path / "again").request.policy.name == "Same"
    else:
        with pytest.raises(BadRequest, match="policy 'Same', whose code was not saved; give it again as pol"):
            pipe.resume(tmp_path / "run")


def test_a_guard_needs_the_code(pipe: DummyForcingPipeline, tmp_path: Path) -> None:
    own = replace(dummy(3), criterion=lambda mass, count, seed: CRITERIA["dhp"](mass, count, seed))
    guard = Guard(every=1, tolerance=0.0)
    run = pipe.start(PROMPT, num_frames=81, policy=own, guard=guard)
    expected = list(pipe.stream(PROMPT, num_frames=81, policy=dummy(3), guard=guard))
    for _ in range(3):
        run.next_chunk()
    run.save(tmp_path / "run")
    with pytest.raises(BadRequest, match="whose code was not saved"):
        pipe.resume(tmp_path / "run")
    rest = np.concatenate([chunk.frames for chunk in pipe.resume(tmp_path / "run", policy=own)], axis=1)
    whole = np.concatenate([chunk.frames for chunk in expected], axis=1)
    assert np.array_equal(rest, whole[:, -rest.shape[1] :])


def test_another_policy_is_refused_when_resuming(pipe: DummyForcingPipeline, tmp_path: Path) -> None:
    run = pipe.start(PROMPT, num_frames=57, policy=Same(dummy(3)))
    run.save(tmp_path / "run")
    with pytest.raises(BadRequest, match="saved with another policy than this 'Other'"):
        pipe.resume(tmp_path / "run", policy=Other())
    with pytest.raises(BadRequest, match="saved with other code than this 'Same'"):
        pipe.resume(tmp_path / "run", policy=Same(anchored(3)))
    with pytest.raises(BadRequest, match="saved with another policy than this 'dense'"):
        pipe.resume(tmp_path / "run", policy="dense")


def test_forks_have_their_policy(pipe: DummyForcingPipeline) -> None:
    run = pipe.start(PROMPT, num_frames=45, policy=Same(dummy(3)))
    other = run.fork()
    frames = [np.concatenate([chunk.frames for chunk in one], axis=1) for one in (run, other)]
    assert np.array_equal(frames[0], frames[1])


def test_a_saved_plan_of_own_roles_is_read(pipe: DummyForcingPipeline, tmp_path: Path) -> None:
    video = pipe.generate(PROMPT, num_frames=33, policy=Other)
    assert video.plan.counts == {"all": 3, "none": 9}
    video.plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == video.plan
    by_file = pipe.generate(PROMPT, num_frames=33, plan=tmp_path / "plan.json")
    assert np.array_equal(by_file.frames, pipe.generate(PROMPT, num_frames=33, plan=video.plan).frames)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": 7}, r"policy=7 is no value for it; give str \| Policy \| OwnPolicy"),
        (
            {"policy": Same(dummy(3)), "dummy_fraction": 0.5},
            "no effect when policy 'Same' assigns roles itself",
        ),
        (
            {"policy": Same(dummy(3)), "budget": "window:12"},
            "A budget has no effect when the policy is 'Same'",
        ),
        ({"policy": Same(dummy(3)), "guard": 0.01}, "A guard watches dummy heads, and there are none"),
        ({"policy": "mine.py:Same"}, "There is no policy 'mine.py:Same'"),
        ({"policy": "os:getcwd"}, "There is no policy 'os:getcwd'"),
    ],
)
def test_what_does_not_go_together(pipe: DummyForcingPipeline, options: Any, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        pipe.generate(PROMPT, num_frames=33, **options)


def test_what_fails_in_the_middle_is_a_sentence(pipe: DummyForcingPipeline) -> None:
    class Ghost(Other):
        def assign(self, scores: Tensor) -> Sequence[Sequence[str]]:
            return [["ghost"] * scores.shape[1]] * len(scores)

    with pytest.raises(BadRequest, match="Policy 'Ghost' gave a head role 'ghost'"):
        pipe.generate(PROMPT, num_frames=33, policy=Ghost())
