"""Schedules, the two formulas, and noise."""

import pytest
import torch

from dummyforcing.sampling.noise import seeded_noise
from dummyforcing.sampling.schedule import make_schedule, renoise, sigma_table, x0_from_velocity


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 8.0])
def test_warped_steps_follow_the_shift(shift):
    steps = [1000, 917, 750, 500, 250, 3]
    schedule = make_schedule(steps, shift)
    expected = [shift * n / 1000 / (1 + (shift - 1) * n / 1000) for n in steps]
    assert schedule.sigmas == pytest.approx(expected, abs=2e-7)
    assert schedule.timesteps == pytest.approx([1000 * sigma for sigma in expected], abs=2e-4)
    assert schedule.timesteps[0] == 1000.0
    assert schedule.sigmas[0] == 1.0


def test_plain_timesteps_get_the_nearest_sigma():
    schedule = make_schedule([1000, 757, 522], 8.0, warp=False)
    assert schedule.timesteps == (1000.0, 757.0, 522.0)
    table = sigma_table(8.0)
    for timestep, sigma in zip(schedule.timesteps, schedule.sigmas, strict=True):
        distance = (table.double() * 1000 - timestep).abs()
        assert abs(sigma * 1000 - timestep) == pytest.approx(distance.min().item(), abs=1e-4)
        assert sigma in table.tolist()


@pytest.mark.parametrize("warp", [True, False])
def test_timestep_0_has_the_last_sigma_of_the_table(warp):
    schedule = make_schedule([1000, 0], 5.0, warp)
    assert schedule.timesteps[1] == 0.0
    assert schedule.sigmas[1] == sigma_table(5.0)[-1].item() == pytest.approx(0.00498008, abs=1e-8)


def test_x0_undoes_renoise():
    x0, noise = torch.randn(2, 1, 3, 4, 2, 2)
    x = renoise(x0, noise, 0.625)
    torch.testing.assert_close(x0_from_velocity(x, noise - x0, 0.625), x0, atol=1e-6, rtol=0)


def test_formulas_keep_float32_whatever_the_network_returns():
    x0, noise = torch.randn(2, 1, 3, 4, 2, 2)
    velocity = (noise - x0).to(torch.bfloat16)
    out = x0_from_velocity(x0, velocity, 0.1)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, (x0.double() - 0.1 * velocity.double()).float())
    assert renoise(x0.to(torch.bfloat16), noise, 0.5).dtype == torch.float32


def test_noise_of_a_sample_depends_on_its_seed_alone():
    shape = (1, 3, 4, 2, 2)
    batch = seeded_noise([7, 8])
    alone = seeded_noise([8])
    state = torch.get_rng_state()
    for _ in range(3):
        both = batch((2, *shape[1:]))
        assert torch.equal(both[1:], alone(shape))
        assert not torch.equal(both[0], both[1])
    assert torch.equal(state, torch.get_rng_state())
