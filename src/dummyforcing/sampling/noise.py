"""Noise: one generator per sample, so that a seed gives the same video on every device and in every batch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

NoiseSource = Callable[[tuple[int, ...]], Tensor]
"""`noise(shape) -> Tensor`: standard normal, float32; `shape` is `(B, F, C, h, w)`."""


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
        """The states of the generators, one row each, uint8."""
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
