"""The fused path against the plain one: every pass of every kind of rollout."""

import pytest
import torch

from dummyforcing.errors import UserError
from dummyforcing.kernels import ops
from dummyforcing.kernels.constants import FP8
from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.method.policy import parse_policy
from dummyforcing.runtime.cuda_graphs import GraphRunner
from dummyforcing.runtime.fused import FusedWan
from dummyforcing.sampling.block import BlockSampler
from dummyforcing.sampling.samplers import SAMPLERS
from tests.oracles import SCHEDULE, SHAPE, random_plan, small_model, small_prompt

POLICIES = ["dense", "window:1,2", "keyframes:1,2,2", "dummy", "anchored", "long:12", "official"]


def rollout(model, policy="dummy", *, loop="block", batch=1, frames=18, change=None, **options):
    """All latents of a rollout; `change` is the chunk before which the prompt changes."""
    sampler = SAMPLERS[loop](
        model,
        small_prompt(model, batch),
        parse_policy(policy),
        SCHEDULE,
        (batch, *SHAPE),
        seeds=range(batch),
        frames=frames,
        **options,
    )
    chunks = []
    for number in range(frames // 3):
        if number == change:
            sampler.set_prompt(small_prompt(model, batch, seed=7))
        chunks.append(sampler.next_chunk())
    return torch.cat(chunks, 1), sampler


@pytest.fixture
def passes(monkeypatch):
    """How many passes went through the fused blocks, and how many were left to the model."""
    counts = {"fused": 0, "plain": 0}
    run = GraphRunner.run

    def counted(self, *args, **options):
        hidden = run(self, *args, **options)
        counts["plain" if hidden is None else "fused"] += 1
        return hidden

    monkeypatch.setattr(GraphRunner, "run", counted)
    return counts


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("batch", [1, 2])
def test_fused_rollouts_equal_plain_ones(policy, batch, passes):
    model = small_model(layers=3, heads=5)
    plain, sampler = rollout(model, policy, batch=batch)
    fused, other = rollout(model, policy, batch=batch, fused=FusedWan(model))
    torch.testing.assert_close(fused, plain, atol=1e-4, rtol=0)
    assert [p.roles for p in other.plans] == [p.roles for p in sampler.plans]
    same = len({p.contexts for p in sampler.plans}) == 1
    assert passes["fused"] >= (20 if same else 6)


@pytest.mark.parametrize("seed", range(6))
def test_any_plan(seed, passes):
    model = small_model(layers=3, heads=5)
    plan = random_plan(3, 5, seed)
    plain, _ = rollout(model, plan=plan)
    fused, _ = rollout(model, plan=plan, fused=FusedWan(model))
    torch.testing.assert_close(fused, plain, atol=1e-4, rtol=0)
    assert passes == {"fused": 30, "plain": 0}


@pytest.mark.parametrize(
    ("loop", "policy", "options"),
    [
        ("block", "dummy", {"change": 4, "recache_frames": 6}),
        ("block", "window:3,3", {"change": 3, "recache_frames": 6, "global_sink": False}),
        ("block", "window:1,2", {"change": 4, "recache_frames": 3}),
        ("block", "window:1,6", {"local_attention_size": 12}),
        ("block", "dense", {"skips": (False, True, False, True, False)}),
        ("rolling", "window:3,3", {"local_attention_size": 24, "frames": 24}),
        ("rolling", "dense", {}),
        ("recompute", "dummy", {"context_frames": 3}),
    ],
)
def test_every_loop(loop, policy, options, passes):
    model = small_model(layers=3, heads=5)
    plain, _ = rollout(model, policy, loop=loop, **options)
    fused, _ = rollout(model, policy, loop=loop, fused=FusedWan(model), **options)
    torch.testing.assert_close(fused, plain, atol=1e-4, rtol=0)
    assert passes["fused"] > 0


def test_heads_may_move_to_other_buffers_in_the_same_memory(monkeypatch):
    """A plan's new buffers can lie where old ones lay, so that addresses alone tell nothing."""
    model = small_model(layers=3, heads=5)
    table = {"short": HeadContext(0, 3), "long": HeadContext(0, None)}
    before, after = (
        Plan((roles,) * 3, table, "test")
        for roles in (("short", "long", "short", "long", "long"), ("long", "short", "long", "long", "short"))
    )
    videos = []
    monkeypatch.setattr(torch.Tensor, "data_ptr", lambda tensor: 0)
    for fused in (None, FusedWan(model)):
        begun, sampler = rollout(model, plan=before, frames=3, fused=fused)
        sampler.total_frames = None
        orders = [[list(group.heads) for group in sampler.cache.layers[0].groups]]
        sampler.cache.apply([after])
        orders.append([list(group.heads) for group in sampler.cache.layers[0].groups])
        assert orders == [[[0, 2], [1, 3, 4]], [[0, 2, 3], [1, 4]]]  # as many groups, other heads
        videos.append(torch.cat([begun, sampler.next_chunk(), sampler.next_chunk()], 1))
    torch.testing.assert_close(videos[1], videos[0], atol=1e-4, rtol=0)


def test_rollouts_share_a_fused_model():
    model = small_model(layers=3, heads=5)
    fused = FusedWan(model)
    alone = [rollout(model, p, fused=fused)[0] for p in ("dummy", "dense")]
    samplers = [
        BlockSampler(
            model, small_prompt(model), parse_policy(p), SCHEDULE, (1, *SHAPE), seeds=[0], fused=fused
        )
        for p in ("dummy", "dense")
    ]
    chunks = [[sampler.next_chunk() for sampler in samplers] for _ in range(6)]
    for number, expected in enumerate(alone):
        assert torch.equal(torch.cat([pair[number] for pair in chunks], 1), expected)


def test_arranging_weights_leaves_the_model_as_it_was():
    model = small_model()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    fused = FusedWan(model)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    q = model.get_parameter("blocks.0.self_attn.q.weight")
    assert q.data_ptr() == fused.blocks[0].qkv.weight.data_ptr()  # one copy serves both


def test_half_precision_stays_near():
    model = small_model(layers=3, heads=4, head_dim=16)
    exact, _ = rollout(model, plan=random_plan(3, 4, 1), frames=6)
    half = model.to(torch.bfloat16)
    error = [
        (rollout(half, plan=random_plan(3, 4, 1), frames=6, fused=fused)[0] - exact).norm() / exact.norm()
        for fused in (None, FusedWan(half))
    ]
    assert error[1] < 0.05
    assert error[1] < 1.3 * error[0]  # no worse than the plain path's own rounding


@pytest.mark.parametrize(("mode", "limit"), [("linear", 0.15), ("all", 0.25)])
def test_float8_stays_near(mode, limit):
    model = small_model(layers=3, heads=4, head_dim=16)
    plan = random_plan(3, 4, 1, [HeadContext(0, 1), HeadContext(1, 0), HeadContext(0, 3)])
    exact, _ = rollout(model, plan=plan, frames=3)
    fused = FusedWan(model, fp8=mode)
    coarse, sampler = rollout(model, plan=plan, frames=3, fused=fused)
    assert 1e-3 < (coarse - exact).norm() / exact.norm() < limit
    assert sampler.cache.layers[0].groups[0].k.dtype == (FP8 if mode == "all" else torch.float32)


@pytest.mark.parametrize("mode", ["linear", "all"])
def test_blocks_can_stay_out_of_float8(mode):
    model = small_model(layers=3, heads=4, head_dim=16)
    plan = random_plan(3, 4, 1)
    exact, _ = rollout(model, plan=plan, frames=6)
    errors = []
    for keep in ((), (1,), (0, 1, 2)):
        coarse, _ = rollout(model, plan=plan, frames=6, fused=FusedWan(model, mode, keep))
        errors.append((coarse - exact).norm() / exact.norm())
    assert errors[0] > errors[2]
    assert (errors[2] < 1e-5) == (mode == "linear")  # attention has no exception


def test_float8_modes_have_names():
    with pytest.raises(UserError, match="none, linear, all"):
        FusedWan(small_model(), fp8="everything")  # type: ignore[arg-type]


def test_rows_are_scaled_by_their_largest_value():
    x = torch.randn(5, 32) * torch.tensor([1e-6, 1.0, 50.0, 1e4, 0.0])[:, None]
    rows = ops.quantize_rows(x)
    assert rows.values.float().abs().amax(1)[:4].tolist() == [448.0] * 4
    torch.testing.assert_close(
        rows.values.float() * rows.scale, x, rtol=0.07, atol=0.002 * x.abs().max().item()
    )
    assert not rows.values[4].float().any()
