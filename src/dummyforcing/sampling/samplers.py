"""The loops over chunks, by the names that presets use."""

from collections.abc import Callable, Mapping

from dummyforcing.sampling.block import BlockSampler
from dummyforcing.sampling.recompute import RecomputeSampler
from dummyforcing.sampling.rolling import RollingSampler
from dummyforcing.sampling.sampler import Sampler

SAMPLERS: Mapping[str, Callable[..., Sampler]] = {
    "block": BlockSampler,
    "rolling": RollingSampler,
    "recompute": RecomputeSampler,
}
