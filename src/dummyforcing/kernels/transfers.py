"""Copies between the main memory and a device that wait for nothing.

torch's own `.to(device)` and `torch.tensor(..., device=...)` wait for all work that the GPU was given before,
which stands idle then until the next work comes.
"""

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device | None) -> Tensor:
    """Copy a tensor to a device, in the device's order of work; None: it stays where it is."""
    if device is None:
        return tensor
    host = tensor.pin_memory() if device.type == "cuda" and not tensor.is_cuda else tensor
    return host.to(device, non_blocking=True)


def to_host(tensor: Tensor) -> Tensor:
    """Copy a tensor to the main memory; it is there when an event after this has happened."""
    if not tensor.is_cuda:
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
