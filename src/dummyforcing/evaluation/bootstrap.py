"""Confidence intervals by resampling, deterministic for a seed.

```python
estimate = bootstrap([0.91, 0.88, 0.95])
gain = paired(with_policy, dense)  # the same prompts and seeds in the same order
```
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

Values = Sequence[float] | NDArray[np.float64]
Statistic = Callable[..., NDArray[np.float64]]
"""A function like `numpy.mean`: `statistic(samples, axis=1)` gives one value per row."""


class EstimateJson(TypedDict):
    """The form that an estimate has in result files."""

    mean: float
    interval: list[float]
    n: int


@dataclass(frozen=True)
class Estimate:
    """A statistic with its confidence interval."""

    value: float
    low: float
    high: float
    count: int
    """Values that it rests on."""

    def as_json(self) -> EstimateJson:
        """The form that it has in result files."""
        return {"mean": self.value, "interval": [self.low, self.high], "n": self.count}


def bootstrap(
    values: Values, statistic: Statistic = np.mean, n: int = 2000, seed: int = 0, level: float = 0.95
) -> Estimate:
    """Estimate a statistic, with the percentile interval of `n` resamples.

    Args:
        values: Independent values, one per prompt; average several samples of one prompt first.
        statistic: Of every resample.
        n: Resamples.
        seed: Of the resampling.
        level: Share of the resampled statistics inside of the interval.

    Raises:
        ValueError: If there are no values.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13.
    """
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"values must be one row of one or more numbers, not of shape {array.shape}")
    picked = np.random.default_rng(seed).integers(0, len(array), (n, len(array)))
    resampled = statistic(array[picked], axis=1)
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(statistic(array[None], axis=1)[0]), float(low), float(high), len(array))


def paired(
    values: Values, reference: Values, statistic: Statistic = np.mean, n: int = 2000, seed: int = 0
) -> Estimate:
    """Estimate what was gained over a reference, pair by pair: the bootstrap of the differences.

    Pairs share prompt and noise, so what varies from prompt to prompt cancels.

    Raises:
        ValueError: If the two have not the same length, or no values.
    """
    if len(values) != len(reference):
        raise ValueError(f"{len(values)} values cannot be paired with {len(reference)}")
    differences = np.asarray(values, np.float64) - np.asarray(reference, np.float64)
    return bootstrap(differences, statistic, n, seed)


def wilson(right: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a proportion, 95% by default."""
    if count == 0:
        return 0.0, 1.0
    p = right / count
    middle = p + z * z / (2 * count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)
