"""CausVid of the public code: no window, its own noise levels, chunks that are given."""

import pytest
import torch

from dummyforcing.method.policy import dense
from dummyforcing.sampling.schedule import make_schedule, sigma_table
from tests.parity.goldenfile import assert_near, cases, files_of, read
from tests.parity.rollout import NotingSampler, block_draws, in_order, run, schedule_tensors


def schedule_of(golden, name):
    """The variant's noise levels; the public code wants a final 0 in its lists and drops it."""
    variant = golden.meta["variants"][name]
    *steps, last = variant["denoising_step_list"]
    assert last == 0
    return make_schedule(steps, golden.meta["timestep_shift"], variant["warp_denoising_step"])


@pytest.mark.parametrize(("path", "name"), cases("causvid"))
def test_rollout(path, name):
    golden = read(path)
    given, schedule = golden.meta["variants"][name]["given_chunks"], schedule_of(golden, name)
    noise = in_order(block_draws(golden, len(schedule.sigmas), f"{name}/renoise", given))
    sampler = NotingSampler(golden, dense(), schedule=schedule, noise=noise)
    stored = golden.under(name)
    start = stored.pop("given_latents", torch.empty(1, 0, *golden.latent_shape[1:]))
    assert start.shape[1] == given * sampler.chunk_frames
    if given:
        sampler.extend(start)
    noted = run(sampler, golden.chunks(name) - given)
    noted["latents"] = torch.cat([start, noted["latents"]], 1)
    noted |= {f"schedule/{key}": value for key, value in schedule_tensors(schedule).items()}
    for key, expected in stored.items():
        if not key.startswith("renoise/"):
            assert_near(noted[key], expected, f"{name}/{key}", 0 if "schedule" in key else 2e-5)


@pytest.mark.parametrize("path", files_of("causvid"))
def test_every_tensor_of_the_file_is_used(path):
    golden = read(path)
    prefixes = ("model.", "schedule/", *(f"{name}/" for name in golden.meta["variants"]))
    assert {n for n in golden.tensors if not n.startswith(prefixes)} == {"noise", "prompt_embeds"}
    table, stored = sigma_table(golden.meta["timestep_shift"]), golden.under("schedule")
    assert torch.equal(stored.pop("table_sigmas"), table)
    assert torch.equal(stored.pop("table_timesteps"), 1000 * table)
    assert not stored
