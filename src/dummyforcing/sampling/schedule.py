"""Noise levels and the two formulas of few-step sampling, as pure functions.

Sigmas come from a table of 1000 float32 entries, as in the public code. So timestep 0 has the last entry's
sigma (0.005 at shift 5), not 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TABLE_SIZE = 1000

COMMIT_TIMESTEP = 0.0
"""What the network is told in the commit pass."""


@dataclass(frozen=True)
class Schedule:
    """The denoising steps of a chunk, from noise to x0."""

    timesteps: tuple[float, ...]
    """What the network is told, in [0, 1000]."""
    sigmas: tuple[float, ...]
    """The noise level that the formulas use, in [0, 1]."""


def sigma_table(shift: float) -> Tensor:
    """Make the noise levels of flow matching with a shift, highest first, `(1000,)` float32.

    The timestep of an entry is 1000 times its sigma.
    """
    raw = torch.linspace(1.0, 0.0, TABLE_SIZE + 1)[:-1]
    return shift * raw / (1 + (shift - 1) * raw)


def make_schedule(steps: Sequence[float], shift: float, warp: bool = True) -> Schedule:
    """Turn a list of step numbers, as in the models' configurations, into noise levels.

    Args:
        steps: Falling numbers in [0, 1000]; whole numbers with `warp`.
        shift: Flow shift of the model.
        warp: Whether the numbers count entries of the table (n means the entry 1000 - n), or are timesteps.

    Returns:
        The timesteps, each with the sigma of the nearest table entry.
    """
    sigmas = sigma_table(shift)
    table = sigmas * TABLE_SIZE
    timesteps = torch.tensor(steps, dtype=torch.float32)
    if warp:
        timesteps = torch.cat([table, torch.zeros(1)])[TABLE_SIZE - timesteps.long()]
    nearest = (table[None] - timesteps[:, None]).abs().argmin(1)
    return Schedule(tuple(timesteps.tolist()), tuple(sigmas[nearest].tolist()))


def x0_from_velocity(x: Tensor, velocity: Tensor, sigma: float | Tensor) -> Tensor:
    """Estimate the clean latents: x - sigma * velocity, in float64, returned in the dtype of `x`.

    `sigma` may be a float64 tensor that broadcasts, such as one level per frame, `(F, 1, 1, 1)`.
    """
    return (x.double() - sigma * velocity.double()).to(x.dtype)


def renoise(x0: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """Mix clean latents with fresh noise for the next step, in float32."""
    return (1 - sigma) * x0.float() + sigma * noise.float()
