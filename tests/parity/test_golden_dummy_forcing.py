"""Dummy Forcing of the public code, met by the policy `official`: scores, assignments, outputs, TeaCache."""

import dataclasses

import pytest
import torch

from dummyforcing.method.policy import dummy, official
from dummyforcing.runtime.fused import FusedWan
from dummyforcing.sampling.schedule import COMMIT_TIMESTEP
from dummyforcing.sampling.teacache import skip_table
from tests.parity.goldenfile import ROLES, TOLERANCE, assert_near, cases, files_of, read
from tests.parity.rollout import NotingSampler, run


def skips_of(golden, variant):
    if not variant["teacache_enabled"]:
        return None
    model, timesteps = golden.model, [*golden.schedule.timesteps, COMMIT_TIMESTEP]
    embeddings = [model.embed_time(torch.tensor([[timestep]])) for timestep in timesteps]
    return skip_table(embeddings, timesteps, variant["teacache_threshold"], variant["coefficients"])


def policy_of(golden, name):
    variant = golden.meta["variants"][name]
    assert variant["denoise_start"] == 0
    policy = official(variant["ar_start"], variant["local_context_length"], golden.meta["frames_per_chunk"])
    rows = golden.under(name).get("rows")
    if rows is None:
        return dataclasses.replace(policy, num_dummy=variant["num_dummy"], rows=None), None
    frame_tokens = golden.meta["config"]["frame_tokens"]
    assert rows.shape[1] == int(policy.rows * frame_tokens * golden.meta["frames_per_chunk"])
    return dataclasses.replace(policy, num_dummy=variant["num_dummy"]), rows


@pytest.mark.parametrize(("path", "name"), cases("dummy_forcing"))
def test_rollout(path, name):
    golden = read(path)
    variant, stored, chunks = golden.meta["variants"][name], golden.under(name), golden.chunks(name)
    policy, rows = policy_of(golden, name)
    skips = skips_of(golden, variant)
    sampler = NotingSampler(golden, policy, rows, skips=skips)
    noted = run(sampler, chunks)
    assert sampler.plan.chunk == variant["ar_start"]
    noted["frame_attn_score"] = torch.tensor(sampler.plan.scores)
    if rows is not None:
        noted["rows"] = rows
    if skips is not None:
        noted["skipped"] = torch.tensor([skips] * chunks)
    assignment = [[ROLES.index(role) for role in row] for row in sampler.plan.roles]
    assert assignment == variant["assignment"]
    noted["head_assignment"] = torch.tensor(assignment)
    assert {"latents", "frame_attn_score", "head_assignment"} <= set(stored)
    for key, expected in stored.items():
        assert_near(noted[key], expected, f"{name}/{key}", 0 if expected.dtype == torch.int64 else TOLERANCE)


@pytest.mark.parametrize(("path", "name"), cases("dummy_forcing"))
def test_the_fused_path_meets_the_same(path, name):
    """All but the outputs of single modules, which it does not have."""
    golden = read(path)
    variant, stored = golden.meta["variants"][name], golden.under(name)
    policy, rows = policy_of(golden, name)
    fused = FusedWan(golden.model)
    sampler = NotingSampler(golden, policy, rows, skips=skips_of(golden, variant), fused=fused)
    noted = run(sampler, golden.chunks(name))
    compared = [key for key in stored if key == "latents" or key.endswith(("/flow", "/x0"))]
    assert "latents" in compared
    for key in compared:
        assert_near(noted[key], stored[key], f"{name}/{key}", TOLERANCE)


def variant_for_comparison(path):
    """A variant that the default policy can be held against: scored at the same chunk, same context."""
    default = dummy()
    for name, variant in read(path).meta["variants"].items():
        same = variant["ar_start"] == default.classify_at_chunk and variant["local_context_length"] == 1
        if same and not variant["teacache_enabled"] and "rows" not in read(path).under(name):
            return name
    return None


@pytest.mark.parametrize("path", files_of("dummy_forcing"))
def test_default_policy_differs_where_it_is_meant_to(path):
    """Until the classification both policies make the same chunks; then `dummy` scores another pass."""
    name = variant_for_comparison(path)
    if name is None:
        pytest.skip("no variant with the settings of the default policy")
    golden = read(path)
    variant, stored = golden.meta["variants"][name], golden.under(name)
    frames = golden.meta["frames_per_chunk"]
    policy = dataclasses.replace(dummy(frames), num_dummy=variant["num_dummy"], rows=None)
    sampler = NotingSampler(golden, policy)
    latents = run(sampler, golden.chunks(name))["latents"]
    shared = frames * (variant["ar_start"] + 1)
    assert_near(latents[:, :shared], stored["latents"][:, :shared], "chunks before the plan")
    difference = (torch.tensor(sampler.plan.scores) - stored["frame_attn_score"]).abs().max().item()
    assert difference > 10 * TOLERANCE


@pytest.mark.parametrize("path", files_of("dummy_forcing"))
def test_every_tensor_of_the_file_is_used(path):
    golden = read(path)
    prefixes = ("model.", "renoise/", "schedule/", *(f"{name}/" for name in golden.meta["variants"]))
    assert {n for n in golden.tensors if not n.startswith(prefixes)} == {"noise", "prompt_embeds"}
    for key, values in {"timesteps": golden.schedule.timesteps, "sigmas": golden.schedule.sigmas}.items():
        assert torch.equal(torch.tensor(values), golden[f"schedule/denoising_{key}"])
