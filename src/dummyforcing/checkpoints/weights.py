"""Weights into modules: exact names, exact shapes, or an error that says which tensors differ.

A module is built on the meta device and each parameter replaced by a tensor of the file, cast on the way, so
nothing is initialised in vain and the memory never holds more than the model itself.
"""

import math
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from dummyforcing.checkpoints.names import kind_of, wrong_kind
from dummyforcing.checkpoints.stored import StoredTensor
from dummyforcing.checkpoints.tensor_files import open_tensors
from dummyforcing.errors import BadFile
from dummyforcing.files.finite import all_finite, faults

Module = TypeVar("Module", bound=nn.Module)

ALIGNMENT = 64
"""Bytes; tensors that torch makes begin at multiples of it."""


def check_names(tensors: Mapping[str, StoredTensor], module: nn.Module, place: object) -> None:
    """Require exactly the parameters of `module`, each in its shape.

    Raises:
        BadFile: If they are of another kind, or there is a difference; counts all, names the first few and
            the nearest missing.
    """
    expected = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    kind, wanted = kind_of(tensors), kind_of(expected)
    if kind != wanted and (kind is not None or expected.keys().isdisjoint(tensors)):
        raise wrong_kind(place, kind, str(wanted))
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]

    def with_nearest(name: str) -> str:
        close = get_close_matches(name, missing, 1)
        return f"{name}, near {close[0]}" if close else name

    differences = {
        "missing": missing,
        "unexpected": [*map(with_nearest, unexpected[:3]), *unexpected[3:]],
        "wrong in shape": [
            f"{name} {list(tensors[name].shape)} instead of {list(shape)}"
            for name, shape in expected.items()
            if name in tensors and tensors[name].shape != shape
        ],
    }
    found = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in differences.items()
        if names
    ]
    if found:
        raise BadFile(f"The weights in {place} do not fit the model: {'; '.join(found)}", "give another file")


def fill(
    module: Module, tensors: Mapping[str, StoredTensor], device: torch.device | str, dtype: torch.dtype
) -> Module:
    """Put the weights into a module that is on the meta device, one after the other.

    Args:
        module: From `open_transformer` and its like.
        tensors: Exactly its parameters.
        device: Where they go.
        dtype: What they are converted to.

    Returns:
        The module, frozen and in evaluation mode.

    Raises:
        BadFile: If a weight is NaN or infinite, or is once it is converted; names the tensor.
    """
    weights: dict[str, Tensor] = {}
    finite: list[Tensor] = []
    for name, tensor in tensors.items():
        weights[name] = _aligned(tensor.read().to(device, dtype))
        finite.append(all_finite(weights[name]))
    # All are asked for at once: a GPU is waited for once.
    is_finite: list[bool] = torch.stack(finite).tolist() if finite else []
    for (name, tensor), is_so in zip(tensors.items(), is_finite, strict=True):
        if not is_so:
            raise not_finite(name, tensor, weights[name])
    # Not strict: a parameter with two names needs one tensor. The names were checked at opening.
    module.load_state_dict(weights, assign=True, strict=False)
    return module.eval().requires_grad_(False)


def require_finite(name: str, tensor: StoredTensor, weight: Tensor) -> Tensor:
    """Give back a weight that was read, and converted perhaps.

    Raises:
        BadFile: If it holds NaN or infinite numbers; names the tensor.
    """
    if not all_finite(weight):
        raise not_finite(name, tensor, weight)
    return weight


def not_finite(name: str, tensor: StoredTensor, weight: Tensor) -> BadFile:
    """The error for a weight that holds NaN or infinite numbers.

    Args:
        name: Of the parameter.
        tensor: What it was read from.
        weight: As it was read, and converted perhaps.
    """
    place = tensor.place or name
    if all_finite(tensor.read()):
        kind = str(weight.dtype).removeprefix("torch.")
        return BadFile(
            f"Tensor {place} is too large for {kind}: {faults(weight)} once it is converted",
            'take torch_dtype="float32"',
        )
    return BadFile(
        f"Tensor {place} is damaged: {faults(weight)}", "download the file again, or take another one"
    )


def _aligned(weight: Tensor) -> Tensor:
    """The weight where torch would have put it: matrix products round by alignment, files have their own.

    So the same weights make the same video bit by bit, whichever file they come from.
    """
    return weight.clone() if weight.data_ptr() % ALIGNMENT else weight


def count_stored(path: Path) -> int:
    """Parameters in a file or folder."""
    return sum(math.prod(tensor.shape) for tensor in open_tensors(path).values())
