"""Self-Forcing of the public code: every velocity, x0, clean pass and probe."""

import pytest
import torch

from dummyforcing.method.policy import dense, window
from dummyforcing.sampling.schedule import sigma_table
from tests.parity.goldenfile import TOLERANCE, assert_near, cases, files_of, read
from tests.parity.rollout import NotingSampler, run


def policy_of(variant, chunk_frames):
    """The public code's window counts the sink and the current chunk."""
    size, sink = variant["local_attn_size"], variant["sink_size"]
    return dense() if size == -1 else window(sink, size - sink - chunk_frames)


def sampler_of(golden, name, **options):
    meta = golden.meta
    return NotingSampler(golden, policy_of(meta["variants"][name], meta["frames_per_chunk"]), **options)


@pytest.mark.parametrize("known_length", [True, False])
@pytest.mark.parametrize(("path", "name"), cases("self_forcing"))
def test_rollout(path, name, known_length):
    golden = read(path)
    stored = golden.under(name)
    frames = stored["latents"].shape[1] if known_length else None
    noted = run(sampler_of(golden, name, frames=frames), golden.chunks(name))
    for key, expected in stored.items():
        assert_near(noted[key], expected, f"{name}/{key}")


@pytest.mark.parametrize("path", files_of("self_forcing"))
def test_probes(path):
    golden = read(path)
    sampler = sampler_of(golden, "default")
    run(sampler, golden.chunks("default"))
    stored = golden.under("probe")
    assert stored
    for key, expected in stored.items():
        call, module = key.split("/")
        value = sampler.probes[int(call.removeprefix("call"))][module]
        if module == "head":
            value = value.reshape(expected.shape)
        assert_near(value, expected, key)


@pytest.mark.parametrize("path", files_of("self_forcing"))
def test_schedule(path):
    golden = read(path)
    table = sigma_table(golden.meta["timestep_shift"])
    computed = {
        "denoising_timesteps": torch.tensor(golden.schedule.timesteps),
        "denoising_sigmas": torch.tensor(golden.schedule.sigmas),
        "table_sigmas": table,
        "table_timesteps": 1000 * table,
    }
    for key, expected in golden.under("schedule").items():
        assert torch.equal(computed[key], expected), key


@pytest.mark.parametrize("path", files_of("self_forcing"))
def test_every_tensor_of_the_file_is_used(path):
    golden = read(path)
    variants = tuple(f"{name}/" for name in golden.meta["variants"])
    prefixes = ("model.", "renoise/", "schedule/", "probe/", *variants)
    assert {n for n in golden.tensors if not n.startswith(prefixes)} == {"noise", "prompt_embeds"}


@pytest.mark.parametrize("path", files_of("self_forcing"))
def test_a_wrong_weight_would_be_noticed(path):
    """The comparison itself: 2 % of noise on one weight exceeds the tolerance many times over."""
    golden = read(path)
    name = f"model.blocks.{golden.meta['config']['num_layers'] - 1}.self_attn.v.weight"
    kept = golden.tensors[name]
    noise = torch.randn(kept.shape, generator=torch.Generator().manual_seed(0))
    try:
        golden.tensors[name] = kept + 0.02 * kept.abs().mean() * noise
        noted = run(sampler_of(golden, "default"), golden.chunks("default"))
    finally:
        golden.tensors[name] = kept
    worst = max(
        (noted[key] - expected).abs().max().item() for key, expected in golden.under("default").items()
    )
    assert worst > 5 * TOLERANCE
