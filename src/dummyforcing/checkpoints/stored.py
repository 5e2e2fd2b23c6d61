"""A tensor that is still in its file, or in a loaded module."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from dummyforcing.errors import BadRequest


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is still in its file, or in a loaded module."""

    shape: tuple[int, ...]
    dtype: str
    """`float32` and so on."""
    read: Callable[[], Tensor]
    """Maps it into memory, on the CPU, or gives the module's own, wherever it is; not to be written to."""
    place: str = ""
    """Its name there and the file, for error messages; empty: it is in none."""


def tensors_of(module: nn.Module) -> dict[str, StoredTensor]:
    """List the parameters of a loaded module by name; reading one copies nothing.

    Raises:
        BadRequest: If one is no floating-point number, as those of quantised modules, or not loaded yet.
    """
    stored = {}
    for name, weight in module.named_parameters():
        if weight.is_meta:
            raise BadRequest(f"{name} is on the meta device, without values", "load the weights first")
        if not weight.is_floating_point():
            raise BadRequest(
                f"{name} is of {str(weight.dtype).removeprefix('torch.')}: the model is quantised",
                "give one in bfloat16 or float32",
            )
        kind = str(weight.dtype).removeprefix("torch.")
        stored[name] = StoredTensor(tuple(weight.shape), kind, weight.detach, name)
    return stored
