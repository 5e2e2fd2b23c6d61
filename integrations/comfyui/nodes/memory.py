"""The GPU's memory, which ComfyUI's own models share with ours."""

import comfy.model_management as management
import torch

from dummyforcing.pipeline.devices import choose_device


def device() -> torch.device:
    """The device that ComfyUI computes on.

    Raises:
        NoSuchDevice: If it is one that the library does not support.
    """
    return choose_device(management.get_torch_device())


def make_room(size: float) -> None:
    """Let ComfyUI unload models of its own until so many bytes are free on its device."""
    management.free_memory(size, management.get_torch_device())


def give_back() -> None:
    """Hand memory that nothing uses any more back to the GPU."""
    management.soft_empty_cache()
