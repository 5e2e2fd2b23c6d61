"""Scoring, dynamic head programming, policies and plans."""

import dataclasses
import itertools
import json
from fractions import Fraction

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dummyforcing.cache.kv_cache import KVCache
from dummyforcing.errors import UserError
from dummyforcing.kernels import mass as kernel
from dummyforcing.method.criteria import Role
from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.method.policy import POLICIES, Policy, official, parse_policy
from dummyforcing.method.programming import assign_roles, make_plan
from dummyforcing.method.scoring import HeadScorer, attention_mass, frame_regions, row_sampler
from tests.oracles import random_plan


def random_scores(layers, heads, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(layers, heads, 3, generator=generator).softmax(-1)


# Scoring


@pytest.mark.parametrize("block_elements", [1, 700, 4000, 2**24])
def test_attention_mass_equals_an_explicit_softmax(monkeypatch, block_elements):
    monkeypatch.setitem(kernel.BLOCK_ELEMENTS, "cpu", block_elements)
    torch.manual_seed(0)
    q, k = 4 * torch.randn(2, 7, 3, 8), 4 * torch.randn(2, 200, 3, 8)
    weights = torch.einsum("brhd,bshd->bhrs", q.double(), k.double()).div(8**0.5).softmax(-1).mean(2)
    mass = attention_mass(q, k, 5)
    torch.testing.assert_close(mass, weights.unflatten(-1, (5, 40)).sum(-1).float(), atol=2e-6, rtol=0)
    assert mass.dtype == torch.float32


def test_attention_mass_survives_huge_logits():
    q, k = torch.full((1, 1, 1, 4), 100.0), torch.full((1, 6, 1, 4), -100.0)
    torch.testing.assert_close(attention_mass(q, k, 3), torch.full((1, 1, 3), 1 / 3))
    torch.testing.assert_close(attention_mass(q, -k, 3), torch.full((1, 1, 3), 1 / 3))


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation put out."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.elements = max(self.elements, out.numel())
        return out


def test_scoring_holds_a_block_of_logits_however_many_queries_and_keys(monkeypatch):
    monkeypatch.setitem(kernel.BLOCK_ELEMENTS, "cpu", 4096)
    tokens, width = 40, 4
    for rows, slots in ((100, 4), (400, 16)):
        q, k = torch.randn(1, rows, 2, width), torch.randn(1, slots * tokens, 2, width)
        with LargestTensor() as mode:
            attention_mass(q, k, slots)
        assert mode.elements <= 4096 + 2 * rows * slots
        assert mode.elements < rows * tokens * 2, "the test needs more than a block of logits for one frame"


def test_scoring_turns_a_block_of_keys_at_a_time_into_float32(monkeypatch):
    monkeypatch.setitem(kernel.BLOCK_ELEMENTS, "cpu", 40 * 2)
    k = torch.randn(1, 30 * 40, 2, 64).bfloat16()
    with LargestTensor() as mode:
        attention_mass(torch.randn(1, 1, 2, 64).bfloat16(), k, 30)
    assert mode.elements == k.numel() // 30


def test_regions_follow_the_frames_that_slots_really_hold():
    frames = torch.tensor([[0, 9, 10, 11, 8], [7, 8, 11, 10, 9]])
    assert frame_regions(frames, 3, 1).tolist() == [[0, 2, 2, 2, 1], [0, 1, 2, 2, 2]]
    assert frame_regions(frames, 3, 2).tolist() == [[0, 2, 2, 2, 0], [0, 0, 2, 2, 2]]
    assert frame_regions(torch.tensor([[1, 0, 2]]), 3, 1).tolist() == [[2, 2, 2]]


@pytest.mark.parametrize("same_plan", [True, False])
def test_scorer_sees_through_rings_head_groups_and_samples(same_plan):
    """Scores of a cache whose rings have wrapped equal those of the visible keys in plain frame order."""
    torch.manual_seed(0)
    tokens, chunk, width, total = 2, 3, 4, 5
    contexts = [HeadContext(0, 1), HeadContext(1, 0), HeadContext(0, 4), HeadContext(2, 3)]
    plans = [random_plan(1, total, seed, contexts) for seed in ((0, 0) if same_plan else (0, 1))]
    cache = KVCache(plans, head_dim=width, tokens_per_frame=tokens, chunk_frames=chunk)
    scorer = HeadScorer(2, 1, total, 2, lambda layer, length: torch.tensor([1, 4, 4]))
    past, expected = torch.empty(2, 0, total, width), torch.zeros(2, total, 3)
    for number in range(5):
        k = torch.randn(2, chunk * tokens, total, width)
        q = 3 * torch.randn_like(k)
        groups = cache.write(0, k, k)
        past = torch.cat([past, k], 1)
        if number >= 3:
            scorer.observe(0, q, groups)
            expected += explicit_scores(plans, q[:, [1, 4, 4]], past, tokens, number * chunk)
        cache.commit()
    torch.testing.assert_close(scorer.scores()[:, 0], expected / 2, atol=2e-6, rtol=0)


def explicit_scores(plans, q, keys, tokens, start):
    scores = torch.zeros(len(plans), q.shape[2], 3)
    for sample, plan in enumerate(plans):
        for head, context in enumerate(plan.contexts[0]):
            past = sorted({*range(context.sink), *range(start - context.recent, start)})
            frames = [*past, *range(start, keys.shape[1] // tokens)]
            columns = [frame * tokens + i for frame in frames for i in range(tokens)]
            weights = (q[sample, :, head] @ keys[sample, columns, head].T / 2).softmax(-1).mean(0)
            first, current = 2 * tokens, len(past) * tokens
            if len(past) < 2:
                first = current
            parts = weights[:first], weights[first:current], weights[current:]
            scores[sample, head] = torch.stack([part.sum() for part in parts])
    return scores


def test_rows_are_seeded_and_counted():
    policy = parse_policy("dummy")
    one, same, other = (row_sampler(dataclasses.replace(policy, seed=seed)) for seed in (5, 5, 6))
    rows = [one(layer, 4680) for layer in range(3)]
    assert [r.tolist() for r in rows] == [same(layer, 4680).tolist() for layer in range(3)]
    assert rows[0].tolist() != other(0, 4680).tolist()
    assert rows[0].tolist() != rows[1].tolist()
    assert len(rows[0]) == policy.rows
    assert rows[0].max() < 4680
    assert row_sampler(dataclasses.replace(policy, rows=None))(0, 9).tolist() == list(range(9))


@pytest.mark.parametrize("frame_tokens", [1560, 100, 7])
def test_official_rows_are_a_third_of_the_first_region(frame_tokens):
    for ar_start, first in ((1, 1), (2, 3)):
        rows = row_sampler(official(ar_start))(0, 3 * frame_tokens)
        assert len(rows) == first * frame_tokens // 3


@pytest.mark.parametrize("length", [1, 3, 8])
def test_at_least_one_row_is_drawn(length):
    """As in pictures of one token, of which a share of the rows is none."""
    assert 1 <= len(row_sampler(official())(0, length)) <= length


def test_drawing_rows_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    row_sampler(parse_policy("dummy"))(0, 100)
    assert torch.equal(state, torch.get_rng_state())


# Dynamic head programming


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("layers", "total"), [(1, 6), (3, 3), (5, 2)])
def test_dynamic_head_programming_is_the_exact_optimum(layers, total, seed):
    scores = random_scores(layers, total, seed)
    p = (scores.double() / scores.double().sum((0, 1))).reshape(-1, 3)
    cost = p[:, :2].max(-1).values
    for num_dummy in range(layers * total + 1):
        roles = [role for row in assign_roles(scores, num_dummy) for role in row]
        chosen = [i for i, role in enumerate(roles) if role is Role.DUMMY]
        assert len(chosen) == num_dummy
        best = min(cost[list(c)].sum().item() for c in itertools.combinations(range(len(roles)), num_dummy))
        assert cost[chosen].sum().item() == pytest.approx(best, abs=1e-15)
        for i, role in enumerate(roles):
            if i not in chosen:
                assert role is (Role.NEIGHBOR if p[i, 0] < p[i, 1] else Role.SINK)


def test_ties_go_by_layer_then_head():
    scores = torch.full((2, 3, 3), 0.25)
    assert assign_roles(scores, 4) == ((Role.DUMMY,) * 3, (Role.DUMMY, Role.SINK, Role.SINK))


def test_a_region_that_nobody_looks_at_counts_for_nothing():
    scores = random_scores(2, 3)
    scores[..., 1] = 0
    roles = assign_roles(scores, 2)
    assert {role for row in roles for role in row} == {Role.DUMMY, Role.SINK}


def test_permuting_heads_permutes_the_roles():
    scores = random_scores(3, 6)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    plain, permuted = assign_roles(scores, 9), assign_roles(scores[:, order], 9)
    assert permuted == tuple(tuple(row[i] for i in order) for row in plain)


def test_make_plan_gives_every_role_its_context():
    policy = parse_policy("dummy:6")
    plan = make_plan(policy, random_scores(4, 5), chunk=1, fingerprint="f")
    assert plan.counts == {"dummy": 10, "sink": plan.counts["sink"], "neighbor": 10 - plan.counts["sink"]}
    assert plan.num_dummy == 10
    assert (plan.policy, plan.chunk, plan.score_pass, plan.fingerprint) == ("dummy", 1, "denoise", "f")
    wanted = {"dummy": HeadContext(0, 1), "sink": HeadContext(1, 0), "neighbor": HeadContext(0, 6)}
    for roles, contexts in zip(plan.roles, plan.contexts, strict=True):
        assert [wanted[role] for role in roles] == list(contexts)


# Policies


def test_policies_are_read_from_text():
    assert parse_policy("dense").initial == HeadContext(0, None)
    assert parse_policy("window:3,6").initial == HeadContext(3, 6)
    assert parse_policy("official").initial == HeadContext(1, 3)
    assert parse_policy("official:2,2").initial == HeadContext(1, 6)
    assert parse_policy("official:2,1").classify_at_chunk == 2
    assert parse_policy("official:2,1").first_frames == 3
    roles = parse_policy("dummy").roles
    assert roles is not None
    assert roles[Role.NEIGHBOR] == HeadContext(0, 3)
    assert parse_policy("official:1,1,4").rows == Fraction(1, 12)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "dens",
        "window",
        "window:3",
        "window:a,b",
        "dense:1",
        "dummy:1,2",
        "window:-1,2",
        "official:1,0",
        "official:1,1,0",
    ],
)
def test_bad_policies_get_one_clear_sentence(text):
    with pytest.raises(UserError) as error:
        parse_policy(text)
    if text == "":
        assert all(name in str(error.value) for name in (*POLICIES, "native"))
    elif text == "dens":
        assert "the nearest is 'dense'" in str(error.value)
    assert str(error.value).endswith(".")
    assert "\n" not in str(error.value)


def test_policy_limits():
    policy = parse_policy("dummy")
    assert policy.dummy_heads(96) == 48
    assert dataclasses.replace(policy, num_dummy=7).dummy_heads(96) == 7
    for wrong in ({"dummy_fraction": 1.5}, {"num_dummy": -1}, {"classify_at_chunk": 0}):
        with pytest.raises(UserError):
            dataclasses.replace(policy, **wrong)
    with pytest.raises(UserError, match="96 heads"):
        dataclasses.replace(policy, num_dummy=97).dummy_heads(96)
    with pytest.raises(UserError):
        Policy("wrong", HeadContext(-1, 2))


# Plans


def test_plan_survives_saving(tmp_path):
    policy = dataclasses.replace(parse_policy("official"), seed=3)
    for plan in (
        make_plan(policy, random_scores(4, 5), chunk=2, fingerprint="abc"),
        Plan.uniform(3, 2, HeadContext(0, None)),
        random_plan(2, 3, seed=1),
    ):
        plan.save(tmp_path / "plan.json")
        assert Plan.load(tmp_path / "plan.json") == plan
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]


def test_saved_plan_can_be_read_by_a_person(tmp_path):
    plan = make_plan(parse_policy("dummy"), random_scores(4, 5), chunk=1)
    plan.save(tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text()
    for row in plan.roles:
        assert f'"{" ".join(row)}"' in text
    assert len(text.splitlines()) < 30


def test_plan_of_another_model_is_refused(tmp_path):
    make_plan(parse_policy("dummy"), random_scores(4, 5), 1, "abc").save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json", "abc").fingerprint == "abc"
    with pytest.raises(UserError, match="abc"):
        Plan.load(tmp_path / "plan.json", "xyz")
    with pytest.raises(UserError, match="4 layers with 5 heads"):
        Plan.load(tmp_path / "plan.json").require(5, 4)
    Plan.uniform(4, 5, HeadContext(0, 1)).require(4, 5, "xyz")


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", "null", '{"format": "other"}', "not json", "\x00\x01", '{"format": 1']
)
def test_files_that_are_no_plans(tmp_path, content):
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(UserError, match="is not a head plan"):
        Plan.load(tmp_path / "plan.json")


def test_damaged_plans(tmp_path):
    path = tmp_path / "plan.json"
    make_plan(parse_policy("dummy"), random_scores(2, 3), 1).save(path)
    good = json.loads(path.read_text())
    for key in good.keys() - {"found"}:  # which older files lack
        path.write_text(json.dumps({name: value for name, value in good.items() if name != key}))
        with pytest.raises(UserError, match="is not a head plan"):
            Plan.load(path)
    for key, value in (
        ("roles", ["dummy what sink"]),
        ("roles", ["sink", "sink sink"]),
        ("roles", []),
        ("roles", 3),
    ):
        path.write_text(json.dumps({**good, key: value}))
        with pytest.raises(UserError, match="is not a head plan"):
            Plan.load(path)


def test_plans_that_cannot_be_read_or_written(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        Plan.load(tmp_path / "none.json")
    with pytest.raises(UserError, match=r"cannot write .*none/plan\.json: the folder .* does not exist"):
        Plan.uniform(1, 1, HeadContext(0, 1)).save(tmp_path / "none" / "plan.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*folder\.json: it is a folder"):
        Plan.uniform(1, 1, HeadContext(0, 1)).save(tmp_path / "folder.json")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.json"]
