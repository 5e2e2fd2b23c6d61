"""Plans by damage against plans by attention: their cost, their errors, and the summary."""

import dataclasses
from pathlib import Path

import pytest
import torch

from dummyforcing.analysis.head_damage import HeadDamage, MeasuredVideo, Settings
from dummyforcing.method.head_lists import HeadLists
from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.method.policy import parse_policy
from dummyforcing.pipeline.pipeline import load
from dummyforcing.pipeline.request import make_request
from dummyforcing.presets.preset import ScheduleArgs
from dummyforcing.sampling.block import BlockSampler
from research.benchmarks import head_lists
from research.benchmarks.calibrated_plans import chunk_errors, fixed_plans, judge, summarise
from research.studies.study import past_frames

PROMPT = "a red ball bounces"


def damage(seed: int) -> HeadDamage:
    generator = torch.Generator().manual_seed(seed)
    schedule = ScheduleArgs((1000.0, 500.0), 5.0)
    settings = Settings("random", "", schedule, "dense", (32, 48), "float32", (4,), 1, 0, "all", 0)
    scores = torch.rand(3, 4, 3, generator=generator).softmax(-1)
    found = torch.rand(3, 4, generator=generator, dtype=torch.float64)
    return HeadDamage(settings, (MeasuredVideo(PROMPT, 0, (found,), scores),))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("policy", ["dummy", "anchored"])
def test_equal_cost_is_the_fewest_more_dummy_heads(seed: int, policy: str) -> None:
    chosen = parse_policy(policy)
    plans = fixed_plans(damage(seed), chosen, 18)
    one, equal = plans["one for all"], plans["calibrated, equal cost"]
    assert plans["calibrated"].num_dummy == one.num_dummy == 6
    assert past_frames(equal, 18) <= past_frames(one, 18)
    if equal.num_dummy > 6:
        fewer = damage(seed).plan(dataclasses.replace(chosen, num_dummy=equal.num_dummy - 1))
        assert past_frames(fewer, 18) > past_frames(one, 18)


def test_errors_of_plans(model_folder: Path) -> None:
    pipeline = load(model_folder, device="cpu")
    request = make_request(pipeline.files, PROMPT, num_frames=45, policy="dense")
    samplers = [pipeline.rollout(request).sampler for _ in range(2)]
    for sampler in samplers:
        sampler.next_chunk()
        sampler.next_chunk()
    assert isinstance(samplers[0], BlockSampler)
    plans = {"all": HeadContext(0, None), "less": HeadContext(0, 1), "nothing": HeadContext(0, 0)}
    errors = chunk_errors(samplers[0], {name: Plan.uniform(3, 4, context) for name, context in plans.items()})
    assert errors["all"] < 1e-10
    assert 1e-6 < errors["less"] < errors["nothing"]
    samplers[1].next_chunk()
    assert torch.equal(samplers[0].next_chunk(), samplers[1].next_chunk())


def test_judging_a_video(model_folder: Path) -> None:
    pipeline = load(model_folder, device="cpu")
    policy = make_request(pipeline.files, PROMPT, policy="dummy").policy
    rows = judge(pipeline, PROMPT, 0, {"dummy": fixed_plans(damage(0), policy, 18)})
    assert [row["plan"] for row in rows] == [
        "classified",
        "one for all",
        "calibrated",
        "calibrated, equal cost",
    ]
    assert all(row["error"] > 0 for row in rows)
    assert len({row["error"] for row in rows}) > 1


def test_summary() -> None:
    def row(prompt: str, plan: str, error: float) -> dict[str, object]:
        return {
            "prompt": prompt,
            "policy": "dummy",
            "plan": plan,
            "error": error,
            "past_frames": 2.0,
            "dummies": 6,
        }

    rows = [row(p, "classified", e) for p, e in (("a", 1.0), ("b", 4.0))]
    rows += [row(p, "calibrated", e) for p, e in (("a", 0.5), ("b", 2.0))]
    first, second = summarise(rows)
    assert first["factor"]["mean"] == 1
    assert [second["factor"]["mean"], *second["factor"]["interval"]] == pytest.approx([0.5] * 3)
    assert second["error"]["mean"] == 1.25


def test_head_lists_in_common() -> None:
    named = [
        (name, HeadLists(static, {"sha256": name}))
        for name, static in (
            ("a", ((True, True, False, False), (True, False, False, False))),
            ("b", ((True, False, False, False), (False, False, False, False))),
            ("c", ((True,),)),
        )
    ]
    found = head_lists.summarise(named)
    assert found["lists"]["a"]["share"] == 3 / 8
    assert found["lists"]["a"]["per_layer"] == [1, 2]
    (pair,) = found["pairs"]
    assert (pair["both"], pair["common"], pair["jaccard"]) == (1, 0.5, 1 / 3)
    assert pair["common_if_drawn"] == pytest.approx(3 * 1 / 8 / 2)
