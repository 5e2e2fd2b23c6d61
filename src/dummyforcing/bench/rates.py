"""Peak rates of a device, measured: large matrix products of random numbers."""

from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from dummyforcing.runtime.streams import Event, seconds_between

SIDES = {"cuda": 8192, "cpu": 1024}
WARM_UP, RUNS = 5, 20


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a square matrix product in `dtype`.

    Args:
        device: Whose rate it is.
        dtype: `torch.float8_e4m3fn` is multiplied with one scale per row and per column, as layers are.

    Returns:
        The rate of the median run; random data, since the GPU's clock depends on it.
    """
    side = SIDES[device.type]
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(side, side, device=device, generator=generator).to(dtype) for _ in range(2))
    work = _scaled(a, b) if dtype == torch.float8_e4m3fn else lambda: a @ b.t()
    for _ in range(WARM_UP):
        work()
    marks = [Event(device)]
    for _ in range(RUNS):
        work()
        marks.append(Event(device))
    seconds: float = median(seconds_between(marks))
    return 2 * side**3 / seconds


def _scaled(a: Tensor, b: Tensor) -> Callable[[], Tensor]:
    ones = torch.ones(len(a), 1, device=a.device)

    def work() -> Tensor:
        product: Tensor = torch._scaled_mm(
            a, b.t(), ones, ones.t(), out_dtype=torch.bfloat16, use_fast_accum=True
        )
        return product

    return work
