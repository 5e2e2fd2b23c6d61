"""Removal on the dense path: what is asked again is what a sampler would have answered."""

import dataclasses
import json

import pytest
import torch

from dummyforcing.method.criteria import Role
from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.method.policy import parse_policy
from dummyforcing.method.programming import assign_roles
from dummyforcing.pipeline.pipeline import load
from dummyforcing.pipeline.request import make_request
from dummyforcing.sampling.block import BlockSampler
from dummyforcing.sampling.schedule import make_schedule
from research.studies import dense_path, removal
from research.studies.damage import damage_jobs, read_damage
from research.studies.dense_path import DensePath
from tests.conftest import write_model
from tests.oracles import SCHEDULE, SHAPE, random_plan, small_model, small_prompt, small_text

ONE_STEP = make_schedule([1000], shift=5.0)
PROMPT = "a red ball bounces on a green floor"
NOTHING, ALL = HeadContext(0, 0), HeadContext(0, None)


def start(model, policy, schedule=SCHEDULE, seed=3):
    policy = parse_policy(policy) if isinstance(policy, str) else policy
    return BlockSampler(model, small_prompt(model), policy, schedule, (1, *SHAPE), seeds=[seed])


def open_path(model, schedule=SCHEDULE, seed=3):
    return DensePath(model, small_text(model), schedule, SHAPE, seed=seed)


def seen_under(plan, past):
    """The mask of a plan, `(1, layers, heads, past)`, frame by frame."""
    rows = [
        [[f < c.sink or c.recent is None or f >= past - c.recent for f in range(past)] for c in row]
        for row in plan.contexts
    ]
    return torch.tensor([rows])


def test_the_dense_path_is_that_of_a_sampler():
    model = small_model()
    sampler = start(model, "dense")
    chunks = [sampler.next_chunk() for _ in range(3)]
    for call in open_path(model).calls(3):
        assert call.past == () or call.past[0][0].shape[1] == call.chunk * 3 * 6
        if call.step == 3:
            torch.testing.assert_close(call.x0, chunks[call.chunk], atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("source", "changes"),
    [
        ("denoise", {}),
        ("commit", {"score_pass": "commit"}),
        ("denoise, last frame as current", {"last_frames": 1}),
    ],
)
def test_scores_are_those_of_a_sampler(source, changes):
    model, path = small_model(layers=3, heads=4), open_path(small_model(layers=3, heads=4))
    sampler = start(model, dataclasses.replace(parse_policy("dummy"), rows=None, **changes))
    sampler.next_chunk()
    sampler.next_chunk()
    list(path.calls(2))
    torch.testing.assert_close(path.scores()[source], torch.tensor(sampler.plan.scores), atol=1e-5, rtol=0)


def test_scores_of_all_steps_are_the_mean_of_the_steps():
    path = open_path(small_model())
    list(path.calls(2))
    scores = path.scores()
    mean = torch.stack([scores[f"step {step}"] for step in range(4)]).mean(0)
    torch.testing.assert_close(scores["denoise"], mean)
    assert not torch.allclose(scores["step 0"], scores["step 3"], atol=1e-3)


def test_nothing_removed_nothing_changed():
    path = open_path(small_model())
    for call in path.calls(3):
        if call.chunk:
            seen = torch.ones(2, 2, 3, call.chunk * 3, dtype=torch.bool)
            torch.testing.assert_close(path.again(call, seen), call.x0.expand(2, -1, -1, -1, -1))
            assert removal.damages(path, call, [[]], 0).item() < 1e-10


@pytest.mark.parametrize("seed", range(4))
def test_a_call_asked_again_is_that_of_a_sampler_with_the_plan(seed):
    """One step per chunk: then the chunk is the answer to one call."""
    model = small_model()
    contexts = [NOTHING] if seed == 0 else [NOTHING, ALL, HeadContext(0, 1), HeadContext(1, 0)]
    plan = random_plan(2, 3, seed, contexts)
    sampler = start(model, "dense", ONE_STEP)
    for _ in range(2):
        sampler.next_chunk()
    sampler.cache.apply([plan])
    expected = sampler.next_chunk()
    path = open_path(model, ONE_STEP)
    call = list(path.calls(3))[-1]
    torch.testing.assert_close(path.again(call, seen_under(plan, 6)), expected, atol=2e-6, rtol=0)
    assert not torch.allclose(call.x0, expected, atol=1e-3), "the plan must matter"


@pytest.mark.parametrize("kept", [0, 1])
def test_damage_is_the_squared_change_over_the_variance(kept):
    model = small_model()
    table = {"less": HeadContext(0, kept), "all": ALL}
    plan = Plan(roles=(("all", "all", "less"), ("less", "all", "all")), table=table, policy="test")
    sampler = start(model, "dense", ONE_STEP)
    for _ in range(2):
        sampler.next_chunk()
    sampler.cache.apply([plan])
    answer = sampler.next_chunk()
    path = open_path(model, ONE_STEP)
    call = list(path.calls(3))[-1]
    many = [[0]] * 9 + [[3, 2]]  # more than are asked together
    damage = removal.damages(path, call, many, kept)
    expected = (answer - call.x0).square().mean() / call.x0.var(correction=0)
    assert damage[-1].item() == pytest.approx(expected.item(), rel=1e-3)
    torch.testing.assert_close(damage[:9], damage[:1].expand(9))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "random"
    write_model(folder, size=(32, 32))
    return load(folder, device="cpu")


WEIGHTS = [(7 * head) % 12 + 1.0 for head in range(12)]
"""A damage per head: 1 to 12 in some order."""


@pytest.fixture
def additive(monkeypatch):
    """Damages that add up: then every answer is known."""

    def damages(path, call, removed, kept):
        return torch.tensor([sum(WEIGHTS[h] for h in heads) / (1 + kept) for heads in removed]).double()

    monkeypatch.setattr(removal, "damages", damages)


@pytest.mark.usefixtures("additive")
def test_curves_of_known_damages(pipeline):
    elsewhere = list(range(12))
    found = removal.measure_removal(PROMPT, 0, (2,), (25, 50, 100), elsewhere, pipeline)
    damage = found["damage"]
    assert damage["measured"]["none"] == [1 + 2 + 3, sum(range(1, 7)), 78]
    assert damage["measured"]["last"] == [3, 21 / 2, 39]
    assert damage["measured elsewhere"]["none"] == [sum(WEIGHTS[:3]), sum(WEIGHTS[:6]), 78]
    assert {tuple(order["none"][2:]) for order in damage.values()} == {(78,)}
    assert set(found["cheapest"]) == {"step 0", "step 1"}
    assert all(len(heads) == 3 for heads in found["cheapest"].values())
    assert 0 <= found["above"] <= 1


@pytest.mark.usefixtures("additive")
def test_search_finds_the_known_optimum(pipeline):
    found = removal.search_subsets(PROMPT, 5, 2, 3, 4, list(range(12)), pipeline)
    assert len(found["sets"]) == 3
    for one in found["sets"]:
        weights = sorted(WEIGHTS[head] for head in one["heads"])
        assert one["least"] == weights[0] + weights[1]
        assert one["largest"] == weights[2] + weights[3]
        assert one["mean"] == pytest.approx(sum(weights) / 2)
        assert one["choices"]["measured"] == {"damage": one["least"], "better": 0}
        chosen = sorted(one["heads"])[:2]
        assert one["choices"]["measured elsewhere"]["damage"] == sum(WEIGHTS[head] for head in chosen)
    assert len({tuple(one["heads"]) for one in found["sets"]}) > 1


@pytest.fixture(scope="module")
def damage(pipeline):
    """Of two videos, in the chunk in which heads are scored, by every row."""
    policy = dataclasses.replace(parse_policy("dummy"), rows=None)
    jobs = damage_jobs([PROMPT, "a blue cube"], policy, (1,))
    return read_damage(json.loads(json.dumps([job.work(pipeline) for job in jobs])))


def test_damage_of_a_head_is_that_of_a_set_of_one(pipeline, damage):
    path = dense_path.open_path(pipeline, PROMPT, 0)
    calls = [call for call in path.calls(2) if call.chunk == 1]
    every = [[head] for head in range(12)]
    expected = torch.stack([removal.damages(path, call, every, 0) for call in calls]).mean(0)
    video = damage.videos[0]
    torch.testing.assert_close(video.damages[0].flatten(), expected, rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(video.scores, path.scores()["denoise"], rtol=0, atol=1e-5)


def test_damage_alone_makes_a_plan(pipeline, damage):
    assert damage.damage.shape == (3, 4)
    assert damage.damage.min() > 0
    policy = make_request(pipeline.files, PROMPT, policy="dummy").policy
    plans = removal.fixed_plans(damage, policy)
    mean = [float(x) for x in sum(video.damages[0].flatten() for video in damage.videos)]
    ranking = sorted(range(12), key=mean.__getitem__)
    assert removal.measured_ranking(damage) == ranking
    flat = [role for row in plans["measured plan"].roles for role in row]
    assert sorted(i for i, role in enumerate(flat) if role == Role.DUMMY) == sorted(ranking[:6])
    sorted_roles = [role for row in assign_roles(damage.scores, 0) for role in row]
    assert all(role in (Role.DUMMY, by_mass) for role, by_mass in zip(flat, sorted_roles, strict=True))
    assert plans["mass plan"].roles == assign_roles(damage.scores, 6)


def test_summary_of_constructed_damages():
    def record(prompt, scale, cheapest):
        orders = {
            "dhp, denoise": 1.0,
            "current": 3.0,
            "current and last": 9.0,
            "random 0": 1.0,
            "random 1": 3.0,
        }
        damage = {
            name: {"none": [scale * x, 2 * scale * x], "last": [scale, scale]} for name, x in orders.items()
        }
        return {
            "prompt": prompt,
            "percents": [50, 100],
            "damage": damage,
            "above": scale / 10,
            "cheapest": cheapest,
        }

    results = [
        record("a", 1.0, {"step 0": [0, 1], "step 1": [1, 2]}),
        record("a", 3.0, {"step 0": [0, 1], "step 1": [1, 2]}),
        record("b", 4.0, {"step 0": [1, 3], "step 1": [1, 3]}),
    ]
    found = removal.summarise_removal(results)
    dhp = found["orders"]["dhp, denoise"]["none"]["damage"]
    assert [e["mean"] for e in dhp] == [3.0, 6.0]  # prompt a: 2, prompt b: 4
    assert dhp[0]["n"] == 2
    for name, factor in (("random", 2.0), ("current", 3.0), ("current and last", 9.0)):
        estimate = found["orders"][name]["none"]["factor"][0]
        assert [estimate["mean"], *estimate["interval"]] == pytest.approx([factor] * 3)
    assert found["core"]["all"] == 0.5  # head 1 of two
    assert found["core"]["steps of a video"] == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert found["core"]["videos at a step"] == 0.5


def test_summary_of_constructed_searches():
    def record(prompt, *damages):
        sets = [
            {"heads": [1, 2], "least": 1.0, "mean": 3.0, "largest": 9.0,
             "choices": {"dhp": {"damage": d, "better": (d - 1) / 8}}}
            for d in damages
        ]  # fmt: skip
        return {"prompt": prompt, "sets": sets}

    found = removal.summarise_search([record("a", 1.0, 3.0), record("b", 2.0)])
    dhp = found["criteria"]["dhp"]
    assert found["sets"] == 3
    assert dhp["reached"]["mean"] == 0.5
    assert dhp["optimum"]["mean"] == 0.25
    assert dhp["better"]["mean"] == pytest.approx((0.25 / 2 + 0.125) / 2)


def test_orders_hold_every_head_once():
    scores = {name: torch.rand(8, 12, 3) for name in ("denoise", "commit", "denoise, last frame as current")}
    found = removal.orders(scores, torch.rand(96), list(range(96)), seed=0)
    assert all(sorted(order) == list(range(96)) for order in found.values())
    assert len({tuple(order) for order in found.values()}) == len(found)
