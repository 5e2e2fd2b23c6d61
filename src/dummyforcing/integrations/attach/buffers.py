"""The dense KV buffers of public pipelines, which nobody reads while something is attached: not allocated."""

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor

METHOD = "_initialize_kv_cache"
"""What the pipelines call the method that allocates them; it takes the device."""


def without_memory(initialise: Callable[..., Any], owner: object) -> Callable[..., Any]:
    """Make a method that lays out the same buffers without memory.

    They are laid out on the meta device, which has no memory, and come as buffers for no tokens.

    Args:
        initialise: The pipeline's own method.
        owner: The pipeline.
    """

    def lay_out(*args: Any, **kwargs: Any) -> Any:
        call = signature(initialise).bind(*args, **kwargs)
        device = call.arguments["device"]
        call.arguments["device"] = torch.device("meta")
        result = initialise(*call.args, **call.kwargs)
        for caches in (*vars(owner).values(), result):
            for cache in caches if is_kv_cache(caches) else ():
                for name, value in cache.items():
                    if isinstance(value, Tensor):
                        shape = (len(value), 0, *value.shape[2:]) if name in ("k", "v") else value.shape
                        cache[name] = torch.zeros(shape, dtype=value.dtype, device=device)
        return result

    return lay_out


def is_kv_cache(value: object) -> bool:
    """Whether an attribute is a list of self-attention caches, one per layer."""
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(one, dict) and {"k", "v"} <= one.keys() and "is_init" not in one for one in value)


def forget(owner: object) -> None:
    """Have a pipeline allocate its buffers again before it uses any."""
    for name, value in list(vars(owner).items()):
        if is_kv_cache(value):
            setattr(owner, name, None)
