"""Whether numbers are finite: neither NaN (not a number) nor infinite.

    if not all_finite(weight): ...

One such number in the weights, in a latent or in a score spreads over the whole video, which comes out black.
"""

import math

import torch
from torch import Tensor


def all_finite(tensor: Tensor) -> Tensor:
    """Tell whether all numbers of a tensor are finite; waits for no device.

    The least and the greatest number tell it in one pass and without another tensor; `isfinite` takes thirty
    times as long on a CPU.

    Args:
        tensor: Any shape and dtype.

    Returns:
        A boolean without dimensions, on the tensor's device.
    """
    if tensor.dtype.itemsize == 1:  # float8 has no order in torch
        tensor = tensor.to(torch.bfloat16)
    if not tensor.is_floating_point() or not tensor.numel():
        return torch.ones((), dtype=torch.bool, device=tensor.device)
    least, greatest = torch.aminmax(tensor)
    # NaN is in no order with anything. Three small kernels on a GPU; isfinite would be four, twice.
    return (least > -math.inf) & (greatest < math.inf)


def faults(tensor: Tensor) -> str:
    """Count the numbers that are not finite, in words: `1 of 4,096 numbers is NaN`."""
    numbers = tensor.detach().float()
    nan, infinite = int(numbers.isnan().sum()), int(numbers.isinf().sum())
    kind = " or ".join(name for name, count in (("NaN", nan), ("infinite", infinite)) if count)
    count, total = nan + infinite, numbers.numel()
    return f"{count:,} of {total:,} number{'s' * (total != 1)} {'is' if count == 1 else 'are'} {kind}"
