"""LongLive of the public code: window with a sink, and prompts that change."""

import pytest
import torch

from dummyforcing.method.policy import window
from tests.parity.goldenfile import TOLERANCE, assert_near, cases, files_of, read
from tests.parity.rollout import NotingSampler, run, schedule_tensors


def sampler_of(golden, **options):
    meta = golden.meta
    sink, frames = meta["sink_size"], meta["local_attn_size"]
    policy = window(sink, frames - sink - meta["frames_per_chunk"])
    options = {"recache_frames": frames} | options
    return NotingSampler(golden, policy, prompt="prompt_embeds/p0", **options)


def prompts_of(golden, variant):
    """The prompts that take over, by the first chunk that has them."""
    if isinstance(variant, str):
        return {}
    chunk = golden.meta["frames_per_chunk"]
    first, *others = variant["prompts"]
    assert first == "p0"
    starts = [-(-index // chunk) for index in variant["switch_frame_indices"]]
    assert [start * chunk for start in starts] == variant["effective_switch_frames"]
    return {start: golden[f"prompt_embeds/{name}"] for start, name in zip(starts, others, strict=True)}


@pytest.mark.parametrize("known_length", [True, False])
@pytest.mark.parametrize(("path", "name"), cases("longlive"))
def test_rollout(path, name, known_length):
    golden = read(path)
    variant, stored = golden.meta["variants"][name], golden.under(name)
    global_sink = isinstance(variant, str) or variant["global_sink"]
    frames = stored["latents"].shape[1] if known_length else None
    sampler = sampler_of(golden, global_sink=global_sink, frames=frames)
    noted = run(sampler, golden.chunks(name), prompts_of(golden, variant))
    for key, expected in stored.items():
        assert_near(noted[key], expected, f"{name}/{key}")


@pytest.mark.parametrize(("path", "name"), cases("longlive"))
def test_switch_matters(path, name):
    """Without the rewriting of the past the same prompts give another video."""
    golden = read(path)
    variant = golden.meta["variants"][name]
    prompts = prompts_of(golden, variant)
    if not prompts:
        pytest.skip("one prompt")
    sampler = sampler_of(golden, recache_frames=0)
    latents = run(sampler, golden.chunks(name), prompts)["latents"]
    assert (latents - golden[f"{name}/latents"]).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("path", files_of("longlive"))
def test_every_tensor_of_the_file_is_used(path):
    golden = read(path)
    variants = tuple(f"{name}/" for name in golden.meta["variants"])
    prefixes = ("model.", "renoise/", "schedule/", "prompt_embeds/", *variants)
    assert {n for n in golden.tensors if not n.startswith(prefixes)} == {"noise"}
    stored = golden.under("schedule")
    assert all(torch.equal(stored.pop(key), t) for key, t in schedule_tensors(golden.schedule).items())
    assert not stored
    used = {name for v in golden.meta["variants"].values() if not isinstance(v, str) for name in v["prompts"]}
    assert set(golden.under("prompt_embeds")) == used | {"p0"}
