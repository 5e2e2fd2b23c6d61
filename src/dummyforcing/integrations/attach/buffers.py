"""The dense KV buffers of public pipelines, which nobody reads while something is attached: not allocated."""

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from dummyforcing.errors import BadRequest

METHOD = "_initialize_kv_cache"
"""What the pipelines call the method that allocates them; it takes the device."""


class WithoutMemory:
    """A pipeline's method that lays out its buffers, without memory.

    They are laid out on the meta device, which has no memory, and come as buffers for no tokens.
    """

    def __init__(
        self, initialise: Callable[..., Any], owner: object, is_attached: Callable[[], bool]
    ) -> None:
        """Take the place of a method.

        Args:
            initialise: The pipeline's own one.
            owner: The pipeline.
            is_attached: Tells whether its transformer is still the one that was attached to.
        """
        self._initialise, self._owner, self._is_attached = initialise, owner, is_attached

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Lay them out.

        Raises:
            BadRequest: If the pipeline has another transformer by now, which needs buffers.
        """
        if not self._is_attached():
            raise BadRequest(
                "The pipeline has another transformer than the one that was attached to",
                "detach() before it is changed, and attach again",
            )
        call = signature(self._initialise).bind(*args, **kwargs)
        device = call.arguments["device"]
        call.arguments["device"] = torch.device("meta")
        result = self._initialise(*call.args, **call.kwargs)
        for caches in (*vars(self._owner).values(), result):
            for cache in caches if is_kv_cache(caches) else ():
                for name, value in cache.items():
                    if isinstance(value, Tensor):
                        shape = (len(value), 0, *value.shape[2:]) if name in ("k", "v") else value.shape
                        cache[name] = torch.zeros(shape, dtype=value.dtype, device=device)
        return result


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
