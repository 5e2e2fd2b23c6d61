"""Schedules of the public code, exactly."""

import pytest
import torch

from dummyforcing.sampling.schedule import make_schedule, sigma_table
from tests.parity.goldenfile import cases, read


def arguments(entry):
    """What upstream's rule makes of an entry's step list before the scheduler sees it."""
    steps, rule = entry["steps"], entry["rule"]
    if rule == "krea_session":
        steps = torch.linspace(1000 * steps["strength"], 0, steps["steps"]).long().tolist()
    if rule.startswith("drop_last_"):
        assert steps[-1] == 0
        steps, rule = steps[:-1], rule.removeprefix("drop_last_")
    return steps, {"warp": True, "no_warp": False, "krea_session": True}[rule]


@pytest.mark.parametrize(("path", "name"), cases("schedules", "entries"))
def test_schedule(path, name):
    golden = read(path)
    entry, stored = golden.meta["entries"][name], golden.under(name)
    steps, warp = arguments(entry)
    schedule = make_schedule(steps, entry["shift"], warp)
    table = sigma_table(entry["shift"])
    expected = {
        "denoising_timesteps": torch.tensor(schedule.timesteps, dtype=torch.float64),
        "denoising_sigmas": torch.tensor(schedule.sigmas, dtype=torch.float64),
        "table_sigmas": table.double(),
        "table_timesteps": (1000 * table).double(),
        "table_index": torch.tensor([table.tolist().index(sigma) for sigma in schedule.sigmas]),
    }
    assert set(stored) <= set(expected)
    for key, value in stored.items():
        assert torch.equal(value, expected[key]), key
    assert make_schedule([0], entry["shift"]).sigmas == (entry["sigma_at_timestep_0"],)
