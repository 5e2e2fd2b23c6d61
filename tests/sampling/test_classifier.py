"""Probes change nothing; heads that are classified again see what they must, and nothing else."""

import dataclasses
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from dummyforcing.errors import UserError
from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.method.policy import dummy, long, parse_policy
from dummyforcing.runtime.fused import FusedWan
from dummyforcing.sampling.block import BlockSampler
from dummyforcing.sampling.guard import Guard, dummy_share, recalled_context
from dummyforcing.sampling.samplers import SAMPLERS
from tests.oracles import SCHEDULE, SHAPE, checked, small_model, small_prompt

WIDE, NARROW = Guard(every=2, tolerance=1), Guard(every=1, tolerance=0)
"""Nothing leaves the one. Whatever moves at all leaves the other: the plan of chunk 1 is probed in chunks 2
and 3, heads are classified again in 4, probed in 5 and 6, and so on."""

BUDGET = dataclasses.replace(long(12), budget=Fraction(4))
POLICIES = ["dummy", "anchored", BUDGET, "dummy:9", "official", "official:2,1"]


def start(model, policy="dummy", batch=1, **options):
    policy = parse_policy(policy) if isinstance(policy, str) else policy
    prompt = options.pop("prompt", small_prompt(model, batch))
    defaults: dict[str, Any] = {"seeds": range(batch), "frames": 24}
    return BlockSampler(model, prompt, policy, SCHEDULE, (batch, *SHAPE), **defaults | options)


def video(sampler):
    return torch.cat(list(sampler), 1)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("batch", [1, 2])
def test_a_probe_does_not_change_the_video(policy, batch):
    model = small_model(layers=3, heads=4)
    plain, guarded = start(model, policy, batch), start(model, policy, batch, guard=WIDE)
    assert torch.equal(video(guarded), video(plain))
    assert guarded.plans == plain.plans
    assert len(guarded.heads.probe) == batch
    assert all(0 < share < 1 for share in guarded.heads.probe)


def test_chunks_are_scored_where_the_guard_says():
    model = small_model(heads=4)
    found = start(model, frames=6)
    list(found)
    for plan, due in ((None, [1, 4, 7]), (found.plan, [3, 6])):
        sampler = start(model, plan=plan, guard=Guard(every=3, tolerance=1), frames=27)
        scored = []
        for number in range(9):
            scored += [number] if sampler.scores_next else []
            sampler.next_chunk()
        assert scored == due
        assert sampler.plan.chunk == 1


def test_what_a_probe_measures():
    """From the queries and keys of the chunk, by an explicit softmax over what each dummy head sees."""
    model, seen = small_model(heads=4), []

    def observe(call, layer, q, groups):
        if call.chunk == 2 and call.step is not None:
            for group in groups:
                heads = group.heads
                chosen = q[:, :, heads]
                weights = torch.einsum("blhd,bshd->hls", chosen, group.k).div(8**0.5).softmax(-1).mean(1)
                slots = weights.unflatten(1, (len(group.frames[0]), -1)).sum(-1)
                for head, frames, mass in zip(heads, group.frames, slots, strict=True):
                    share = sum(m.item() for f, m in zip(frames, mass, strict=True) if f >= 6)
                    seen.append((sampler.plan.roles[layer][head], share))

    policy = dataclasses.replace(dummy(), rows=None)
    sampler = start(model, policy, guard=Guard(every=1, tolerance=1), frames=9, observer=observe)
    list(sampler)
    shares = [share for role, share in seen if role == "dummy"]
    assert len(shares) == 4 * 4
    assert sampler.heads.probe == (pytest.approx(sum(shares) / len(shares), abs=1e-5),)


def test_without_dummy_heads_nothing_moves():
    assert dummy_share(torch.rand(2, 3, 3), Plan.uniform(2, 3, HeadContext(0, 1))) == 0


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch": 2},
        {"local_attention_size": 9},
        {"recache_frames": 6},
        {"recache_frames": 3, "global_sink": False},
        {"recache_frames": 7, "global_sink": False},
    ],
    ids=str,
)
def test_every_attention_is_that_of_the_oracle(policy, options):
    """Through plans, recalled pasts and a new prompt that comes with one of them and between two."""
    if policy == "dummy:9" and "local_attention_size" in options:
        policy = "dummy:6"
    model = small_model(layers=2, heads=4)
    sampler = checked(start(model, policy, guard=NARROW, frames=33, **options))
    chunks = []
    for number in range(11):
        if number in (4, 6):
            sampler.set_prompt(small_prompt(model, sampler.latent_shape[0], seed=number))
        sampler.next_chunk()
        chunks.append(sampler.plan.chunk)
    first = sampler.heads.policy.classify_at_chunk
    assert chunks == [*[None] * first, *[first] * 3, *[first + 3] * 3, *[first + 6] * 3, first + 9][:11]


def test_what_heads_see_while_they_are_classified_again():
    """The first frame, six newest ones and the chunk; scores by an explicit softmax, keys bit by bit."""
    model, recorded = small_model(heads=4), []
    keys: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def observe(call, layer, q, groups):
        if call.chunk == 4 and call.step is not None:
            (group,) = groups
            assert {tuple(sorted(frames)) for frames in group.frames} == {(0, *range(6, 15))}
            weights = torch.einsum("blhd,bshd->hls", q, group.k).div(8**0.5).softmax(-1).mean(1)
            slots = weights.unflatten(1, (10, -1)).sum(-1)
            regions = [[0] if f == 0 else [1] if f < 12 else [2] for f in group.frames[0]]
            masses = [sum(slots[:, i] for i, r in enumerate(regions) if r == [n]) for n in range(3)]
            recorded.append((layer, torch.stack(masses, -1)))
        if call.chunk == 4 or (call.chunk == 0 and call.step is None):
            (group,) = groups
            at = group.frames[0].index(0)
            tokens = group.k.shape[1] // len(group.frames[0])
            span = slice(at * tokens, (at + 1) * tokens)
            keys.setdefault(layer, []).append((group.k[:, span].clone(), group.v[:, span].clone()))

    policy = dataclasses.replace(dummy(), rows=None)
    sampler = start(model, policy, guard=NARROW, frames=15, observer=observe)
    list(sampler)
    for layer in range(2):
        mean = torch.stack([mass for at, mass in recorded if at == layer]).mean(0)
        torch.testing.assert_close(torch.tensor(sampler.plan.scores[layer]), mean, atol=1e-5, rtol=0)
        once, *later = keys[layer]
        assert later
        assert all(torch.equal(*pair) for pairs in later for pair in zip(once, pairs, strict=True))


def test_the_past_of_a_new_plan_has_other_keys_only_where_it_must():
    """The newest frames are written again with a shorter past than the first time."""
    model = small_model(heads=4)
    again, once = (video(start(model, guard=guard)) for guard in (NARROW, None))
    assert torch.equal(again[:, :12], once[:, :12])
    assert (again[:, 12:15] - once[:, 12:15]).abs().max() > 1e-3


@pytest.mark.parametrize("policy", ["dummy", "anchored", BUDGET, "official"])
def test_a_batch_equals_its_samples(policy):
    model = small_model(layers=3, heads=4)
    prompt = small_prompt(model, 3)
    batched = start(model, policy, 3, prompt=prompt, seeds=[1, 2, 3], guard=NARROW)
    together = video(batched)
    for i, seed in enumerate((1, 2, 3)):
        single = start(model, policy, prompt=prompt[i : i + 1], seeds=[seed], guard=NARROW)
        torch.testing.assert_close(together[i : i + 1], video(single), atol=2e-5, rtol=0)
        assert batched.plans[i].roles == single.plan.roles
        assert batched.plans[i].chunk == 7
    if policy == "dummy":
        assert len({plan.roles for plan in batched.plans}) > 1, "the test needs samples with different plans"


@pytest.mark.parametrize("batch", [1, 2])
def test_the_fused_path_gives_what_the_plain_one_gives(batch):
    model = small_model(layers=3, heads=4)
    plain, fused = (start(model, "dummy", batch, guard=NARROW, fused=f) for f in (None, FusedWan(model)))
    torch.testing.assert_close(video(fused), video(plain), atol=2e-5, rtol=0)
    assert [plan.roles for plan in fused.plans] == [plan.roles for plan in plain.plans]
    assert fused.plan.chunk == 7


def test_a_given_plan_is_probed_and_replaced():
    model = small_model(heads=4)
    found = start(model, frames=6)
    list(found)
    sampler = start(model, plan=found.plan, guard=NARROW, frames=12)
    plans = []
    for _ in range(4):
        sampler.next_chunk()
        plans.append(sampler.plan)
    assert plans[:3] == [found.plan] * 3
    assert plans[3].chunk == 3
    assert plans[3].policy == "dummy"


def test_memory_is_that_of_the_plan():
    model = small_model(heads=4)
    sampler = start(model, guard=NARROW, frames=None)
    for _ in range(14):
        sampler.next_chunk()
    assert sampler.cache.nbytes == start(model, plan=sampler.plan).cache.nbytes
    assert sampler.history.newest.shape[1] == 6
    assert sampler.history.first.shape[1] == 3


def test_the_recalled_past():
    for policy, chunk, expected in (
        ("dummy", 3, HeadContext(1, 6)),
        ("dummy:7", 3, HeadContext(1, 9)),
        ("dummy", 1, HeadContext(1, 3)),
        ("official:2,1", 3, HeadContext(3, 6)),
    ):
        assert recalled_context(parse_policy(policy), chunk) == expected
    assert long(60).budget == 9
    assert recalled_context(long(60), 3) == HeadContext(1, 9)


def test_what_cannot_be_guarded():
    model, roles = small_model(heads=4), dummy().roles
    assert roles is not None
    for policy, plan, message in (
        ("dense", None, "take policy dummy, or no guard"),
        ("window:1,2", None, "take policy dummy, or no guard"),
        (dataclasses.replace(dummy(), dummy_fraction=0), None, "and there are none"),
        (dataclasses.replace(dummy(), num_dummy=0), None, "and there are none"),
        ("dummy", Plan.uniform(2, 4, HeadContext(0, 1)), "and there are none"),
        (
            dataclasses.replace(dummy(), roles={role: HeadContext(1, None) for role in roles}),
            None,
            "would lose it",
        ),
    ):
        with pytest.raises(UserError, match=message):
            start(model, policy, plan=plan, guard=Guard())
    with pytest.raises(UserError, match="take 1 or more"):
        Guard(every=0)
    for tolerance in (-0.1, 1.5, float("nan")):
        with pytest.raises(UserError, match="take 0 to 1"):
            Guard(tolerance=tolerance)
    for loop, options in (("rolling", {}), ("recompute", {"context_frames": 3})):
        with pytest.raises(TypeError, match="unexpected keyword argument 'guard'"):
            SAMPLERS[loop](
                model, small_prompt(model), dummy(), SCHEDULE, (1, *SHAPE), guard=Guard(), **options
            )
