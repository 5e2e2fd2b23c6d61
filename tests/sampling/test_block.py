"""The block loop: what holds for any policy, and the methods' own promises."""

import dataclasses
import gc
import weakref

import pytest
import torch
from torch import Tensor

from dummyforcing.errors import UserError
from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.method.policy import dense, dummy, official, parse_policy, window
from dummyforcing.sampling.block import BlockSampler
from dummyforcing.sampling.noise import seeded_noise
from dummyforcing.sampling.recompute import RecomputeSampler
from dummyforcing.sampling.samplers import SAMPLERS
from dummyforcing.sampling.schedule import renoise, x0_from_velocity
from tests.oracles import (
    SCHEDULE,
    SHAPE,
    random_plan,
    small_model,
    small_prompt,
    small_text,
    softmax_attention,
)

POLICIES = ["dense", "window:1,2", "dummy", "anchored", "long:12", "official", "official:2,1"]


def start(model, policy="dummy", seeds=(0,), prompt=None, schedule=SCHEDULE, **options):
    policy = parse_policy(policy) if isinstance(policy, str) else policy
    batch = options.pop("batch", None) or len(seeds)
    prompt = small_prompt(model, batch) if prompt is None else prompt
    return BlockSampler(model, prompt, policy, schedule, (batch, *SHAPE), seeds=seeds, **options)


def video(model, *args, frames=15, **options):
    return torch.cat(list(start(model, *args, frames=frames, **options)), 1)


def test_dense_rollout_equals_whole_passes_without_a_cache():
    """Every denoising call again as one masked pass over all frames, each with its own timestep."""
    model = small_model()
    text = small_text(model)
    draw = seeded_noise([3])
    done = torch.empty(1, 0, *SHAPE)
    for _ in range(3):
        x = draw((1, 3, *SHAPE))
        for step, (timestep, sigma) in enumerate(zip(SCHEDULE.timesteps, SCHEDULE.sigmas, strict=True)):
            frames = done.shape[1] + 3
            timesteps = torch.tensor([[0.0] * done.shape[1] + [timestep] * 3])
            group = (torch.arange(frames) // 3).repeat_interleave(SHAPE[1] * SHAPE[2] // 4)
            mask = group[:, None] >= group[None]
            velocity = model(
                torch.cat([done, x], 1),
                model.embed_time(timesteps),
                text,
                torch.arange(frames),
                lambda layer, q, k, v, mask=mask: softmax_attention(q, k, v, mask),
            )[:, -3:]
            x = x0_from_velocity(x, velocity, sigma)
            if step < 3:
                x = renoise(x, draw((1, 3, *SHAPE)), SCHEDULE.sigmas[step + 1])
        done = torch.cat([done, x], 1)
    torch.testing.assert_close(video(model, "dense", [3], frames=9), done, atol=2e-5, rtol=0)


@pytest.mark.parametrize("policy", POLICIES)
def test_same_seed_same_video(policy):
    model = small_model()
    one = video(model, policy, [5])
    assert torch.equal(one, video(model, policy, [5]))
    assert not torch.allclose(one, video(model, policy, [6]))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_batch_equals_its_samples(policy):
    model = small_model(layers=3, heads=4)
    prompt = small_prompt(model, 3)
    batched = start(model, policy, [1, 2, 3], prompt, frames=15)
    together = torch.cat(list(batched), 1)
    for i, seed in enumerate((1, 2, 3)):
        single = start(model, policy, [seed], prompt[i : i + 1], frames=15)
        alone = torch.cat(list(single), 1)
        assert batched.plans[i].roles == single.plan.roles
        torch.testing.assert_close(together[i : i + 1], alone, atol=2e-5, rtol=0)
    if policy == "dummy":
        assert len({plan.roles for plan in batched.plans}) > 1, "the test needs samples with different plans"


@pytest.mark.parametrize("policy", POLICIES)
def test_interleaved_rollouts_do_not_meet(policy):
    model = small_model()
    prompts = small_prompt(model, seed=1), small_prompt(model, seed=2)
    expected = [video(model, policy, [seed], prompt) for seed, prompt in enumerate(prompts)]
    samplers = [start(model, policy, [seed], prompt) for seed, prompt in enumerate(prompts)]
    chunks: list[list[Tensor]] = [[], []]
    for _ in range(5):
        for sampler, parts in zip(samplers, chunks, strict=True):
            parts.append(sampler.next_chunk())
    for parts, whole in zip(chunks, expected, strict=True):
        assert torch.equal(torch.cat(parts, 1), whole)


def test_any_number_of_chunks_and_constant_memory():
    model = small_model()
    for policy in ("window:1,2", "dummy", "official"):
        sampler = start(model, policy)
        sizes = []
        for _ in range(12):
            sampler.next_chunk()
            sizes.append(sampler.cache.nbytes)
        assert sampler.frames == 36
        assert len(set(sizes[2:])) == 1
    dense_sampler = start(model, "dense", frames=36)
    assert dense_sampler.cache.nbytes > 3 * sizes[-1]


def test_iteration_ends_with_the_video():
    sampler = start(small_model(), "dense", frames=6)
    assert [chunk.shape for chunk in sampler] == [(1, 3, *SHAPE)] * 2
    assert list(sampler) == []


def test_arguments_that_do_not_fit():
    model = small_model()
    with pytest.raises(UserError, match="chunks of 3"):
        start(model, frames=7)
    with pytest.raises(ValueError, match="text for 2 samples"):
        start(model, prompt=small_prompt(model, 2))
    with pytest.raises(ValueError, match="5 calls"):
        start(model, skips=[False] * 4)
    with pytest.raises(ValueError, match="2 seeds for 1 samples"):
        start(model, seeds=[1, 2], batch=1).next_chunk()


def test_heads_are_classified_once_and_the_cache_shrinks():
    model = small_model(heads=4)
    sampler = start(model, "dummy", frames=18)
    assert sampler.plan.roles == (("uniform",) * 4,) * 2
    sizes = []
    for _ in range(4):
        sampler.next_chunk()
        sizes.append((sampler.plan, sampler.cache.nbytes))
    assert sizes[0][0].scores is None
    assert sizes[0][1] == start(model, "dense", frames=6).cache.nbytes, "room for what comes before the plan"
    plan = sizes[1][0]
    assert plan.counts["dummy"] == 4
    assert plan.chunk == 1
    assert all(later == (plan, sizes[1][1]) for later in sizes[2:])
    assert sizes[1][1] < sizes[0][1]
    scores = torch.tensor(plan.scores)
    torch.testing.assert_close(scores.sum(-1), torch.ones(2, 4))


def test_scores_are_those_of_the_pass_that_the_policy_names():
    """Scores from recorded queries and keys, by an explicit softmax over the whole past."""
    model = small_model(heads=4)
    recorded = []

    def record(call, layer, q, groups):
        (group,) = groups
        at = [group.frames[0].index(frame) for frame in range(3 * call.chunk, 3 * call.chunk + 3)]
        tokens = group.k.unflatten(1, (len(group.frames[0]), -1))
        recorded.append((call.chunk, call.step is None, layer, q, tokens[:, at].flatten(1, 2)))

    for score_pass in ("denoise", "commit"):
        recorded.clear()
        policy = dataclasses.replace(dummy(), score_pass=score_pass, rows=None)
        sampler = start(model, policy, frames=6, observer=record)
        list(sampler)
        expected = torch.zeros(2, 4, 3)
        for layer in range(2):
            (past,) = (k for chunk, commit, at, _, k in recorded if (chunk, commit, at) == (0, True, layer))
            calls = [
                (q, k)
                for chunk, commit, at, q, k in recorded
                if (chunk, commit, at) == (1, score_pass == "commit", layer)
            ]
            assert len(calls) == (1 if score_pass == "commit" else 4)
            for q, k in calls:
                keys = torch.cat([past, k], 1)
                weights = torch.einsum("blhd,bshd->hls", q, keys).div(8**0.5).softmax(-1).mean(1)
                tokens = past.shape[1] // 3
                parts = weights[:, :tokens], weights[:, tokens : 3 * tokens], weights[:, 3 * tokens :]
                expected[layer] += torch.stack([part.sum(1) for part in parts], -1) / len(calls)
        torch.testing.assert_close(torch.tensor(sampler.plan.scores), expected, atol=1e-5, rtol=0)


def test_official_and_dummy_part_where_they_should():
    """They make the same first two chunks, score different passes there, and differ from then on."""
    model = small_model(layers=3, heads=4)
    ours, theirs = (start(model, dataclasses.replace(policy, rows=None)) for policy in (dummy(), official()))
    for _ in range(2):
        torch.testing.assert_close(ours.next_chunk(), theirs.next_chunk(), atol=2e-5, rtol=0)
    scores = [torch.tensor(sampler.plan.scores) for sampler in (ours, theirs)]
    assert (scores[0] - scores[1]).abs().max() > 1e-2
    assert ours.plan.roles != theirs.plan.roles
    assert (ours.next_chunk() - theirs.next_chunk()).abs().max() > 1e-3


def test_a_given_plan_is_small_from_the_first_chunk(tmp_path):
    model = small_model(heads=4)
    found = start(model, "dummy", frames=15)
    list(found)
    found.plan.save(tmp_path / "plan.json")
    sampler = start(model, "dummy", plan=Plan.load(tmp_path / "plan.json"), frames=15)
    assert sampler.cache.nbytes == found.cache.nbytes
    first = sampler.cache.nbytes
    chunks = torch.cat(list(sampler), 1)
    assert sampler.cache.nbytes == first
    assert sampler.plan == found.plan
    assert torch.equal(chunks, video(model, "dense", plan=found.plan))


def test_plan_of_another_model_is_refused():
    found = start(small_model(), "dummy", frames=6)
    list(found)
    with pytest.raises(UserError, match="make a plan with this model"):
        start(small_model(seed=1), plan=found.plan)
    with pytest.raises(UserError, match="2 layers with 3 heads"):
        start(small_model(heads=4), plan=found.plan)
    start(small_model().to(torch.bfloat16), plan=found.plan)


def test_a_plan_that_keeps_everything_is_dense():
    model = small_model()
    everything = random_plan(2, 3, 0, [HeadContext(0, None), HeadContext(2, None), HeadContext(4, 30)])
    torch.testing.assert_close(video(model, dense()), video(model, plan=everything), atol=2e-5, rtol=0)
    torch.testing.assert_close(video(model, dense()), video(model, window(0, 12)), atol=2e-5, rtol=0)
    assert (video(model, dense()) - video(model, window(0, 6))).abs().max() > 1e-3


def test_chunks_of_other_lengths():
    model = small_model()
    for chunk in (1, 2, 4):
        sampler = start(model, "dummy", chunk_frames=chunk, frames=4 * chunk)
        assert torch.cat(list(sampler), 1).shape == (1, 4 * chunk, *SHAPE)


def test_noise_source_is_asked_in_order():
    shapes = []

    def noise(shape):
        shapes.append(shape)
        return torch.randn(shape, generator=torch.Generator().manual_seed(len(shapes)))

    start(small_model(), "dense", noise, batch=2, frames=6)
    assert shapes == []
    list(start(small_model(), "dense", noise, batch=2, frames=6))
    assert shapes == [(2, 3, *SHAPE)] * 8


def test_skipped_calls_reuse_the_last_residual():
    model = small_model()
    runs = []
    model.blocks[0].register_forward_hook(lambda *_: runs.append(1))
    plain = video(model, "dummy", frames=6)
    assert len(runs) == 10
    assert torch.equal(video(model, "dummy", frames=6, skips=[False] * 5), plain)
    runs.clear()
    skipping = video(model, "dummy", frames=6, skips=[False, True, False, True, False])
    assert len(runs) == 6
    assert (skipping - plain).abs().max() > 1e-3

    draw, text = seeded_noise([0]), small_text(model)
    rope = model.rope(torch.arange(3), *SHAPE[1:])
    x = draw((1, 3, *SHAPE))
    residual = None
    with torch.inference_mode():
        for step, skip in enumerate([False, True, False, True]):
            tokens, time = model.patchify(x), model.embed_time(torch.tensor([[SCHEDULE.timesteps[step]]]))
            if not skip:  # all frames so far are the chunk's own, and every head sees them
                attended = model.transform(
                    tokens, time, text, rope, lambda layer, q, k, v: softmax_attention(q, k, v)
                )
                residual = attended - tokens
            assert residual is not None
            velocity = model.unpatchify(tokens + residual, time, *SHAPE[1:])
            x = x0_from_velocity(x, velocity, SCHEDULE.sigmas[step])
            if step < 3:
                x = renoise(x, draw((1, 3, *SHAPE)), SCHEDULE.sigmas[step + 1])
    torch.testing.assert_close(skipping[:, :3], x, atol=2e-5, rtol=0)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_half_precision_models_keep_latents_in_float32(policy, backend):
    model = small_model()
    exact = video(model, policy, frames=9)
    model.to(torch.bfloat16)
    sampler = start(model, policy, frames=9, backend=backend)
    out = torch.cat(list(sampler), 1)
    assert out.dtype == torch.float32
    assert out.isfinite().all()
    assert sampler.cache.layers[0].groups[0].k.dtype == torch.bfloat16
    if policy == "dense":
        assert (out[:, :3] - exact[:, :3]).abs().mean() < 0.2 * exact.std()


def test_backends_agree():
    model = small_model()
    one, other = (video(model, "dummy", backend=backend) for backend in ("sdpa", "reference"))
    torch.testing.assert_close(one, other, atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", SAMPLERS.values(), ids=SAMPLERS)
def test_memory_is_freed_with_the_sampler(kind) -> None:
    """Without the garbage collector, which does not know how much memory of a GPU hangs on a cycle."""
    model = small_model()
    recompute = {"context_frames": 3, "first_latent": lambda: torch.zeros(1, 1, *SHAPE)}
    options = recompute if kind is RecomputeSampler else {}
    sampler = kind(model, small_prompt(model), dummy(), SCHEDULE, (1, *SHAPE), frames=12, **options)
    gc.collect()
    gc.disable()
    try:
        for _ in range(4):
            sampler.next_chunk()
        parts = sampler, sampler.passes, sampler.cache, sampler.cache.layers[0].groups[0].k
        held = [weakref.ref(part) for part in parts]
        del sampler, parts
        assert [ref() for ref in held] == [None] * 4
    finally:
        gc.enable()
