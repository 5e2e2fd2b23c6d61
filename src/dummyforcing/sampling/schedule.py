"""Noise levels and the two formulas of few-step sampling, as pure functions.

Sigmas come from a table of 1000 float32 entries, as in the public code. So timestep 0 has the last entry's
sigma (0.005 at shift 5), not 0.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TABLE_SIZE = 1000

COMMIT_TIMESTEP = 0.0
"""What the network is told in the commit pass."""

NoiseSource = Callable[[tuple[int, ...]], Tensor]
"""`noise(shape) -> Tensor`: standard normal, float32; `shape` is `(B, F, C, h, w)`."""


@dataclass(frozen=True)
class Schedule:
    """The denoising steps of a chunk, from noise to x0."""

    timesteps: tuple[float, ...]
    """What the network is told, in [0, 1000]."""
    sigmas: tuple[float, ...]
    """The noise level that the formulas use, in [0, 1]."""


def sigma_table(shift: float) -> Tensor:
    """All noise levels of flow matching with a shift, highest first, `(1000,)` float32.

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


class SeededNoise:
    """Noise for each sample from a generator of its own; see `seeded_noise`."""

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self._generators = generators

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        """Draw noise; `shape` begins with the number of samples."""
        if shape[0] != len(self._generators):
            raise ValueError(f"{len(self._generators)} seeds for {shape[0]} samples")
        return torch.stack([torch.randn(shape[1:], generator=generator) for generator in self._generators])

    def state(self) -> Tensor:
        """How far the generators are, one row each, uint8."""
        return torch.stack([generator.get_state() for generator in self._generators])

    @classmethod
    def from_state(cls, state: Tensor) -> "SeededNoise":
        """Go on from what `state` gave."""
        generators = [torch.Generator() for _ in state]
        for generator, row in zip(generators, state, strict=True):
            generator.set_state(row.clone())  # it reads the memory from its beginning
        return cls(generators)


def seeded_noise(seeds: Sequence[int]) -> SeededNoise:
    """Draw noise for each sample from a generator of its own.

    The generators live on the CPU, so that a seed gives the same video on every device and in every batch.

    Args:
        seeds: One per sample.

    Returns:
        The source; its shapes must begin with the number of seeds.
    """
    return SeededNoise([torch.Generator().manual_seed(seed) for seed in seeds])
