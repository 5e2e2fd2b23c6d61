"""Where operations run as Triton kernels, and where as what they compute, in torch."""

from functools import cache
from importlib.util import find_spec

from torch import Tensor


def runs_in_triton(x: Tensor) -> bool:
    """Whether an operation on a tensor runs as a Triton kernel, which has no gradient."""
    return x.is_cuda and not x.requires_grad and has_triton()


@cache
def has_triton() -> bool:
    """Whether Triton is installed: torch brings it along on Linux, not everywhere."""
    return find_spec("triton") is not None
