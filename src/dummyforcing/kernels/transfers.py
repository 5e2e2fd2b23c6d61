"""Copies between the main memory and a device that wait for nothing.

torch's own `.to(device)` and `torch.tensor(..., device=...)` wait for all work that the GPU was given before,
which stands idle then until the next work comes.
"""

from functools import lru_cache

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


class Parcel:
    """Small tensors that go to a device in one copy: each copy by itself takes longer than what is copied."""

    PAGE = 1 << 18
    """Bytes that are made room for at once."""
    ALIGNED = 16
    """Bytes at multiples of which tensors begin."""

    def __init__(self, device: torch.device) -> None:
        """Begin with nothing.

        Args:
            device: Where they go.
        """
        self._device = device
        self._host, self._there, self._used = torch.empty(0), torch.empty(0), 0

    def add(self, tensor: Tensor) -> Tensor:
        """Take a tensor of the main memory along.

        Returns:
            What it is on the device, to be read by work that is asked for after `send`.
        """
        if self._device.type != "cuda":
            return tensor
        if self._used + tensor.nbytes > len(self._host):
            self.send()
            size = max(self.PAGE, tensor.nbytes)
            self._host = torch.empty(size, dtype=torch.uint8, pin_memory=True)
            self._there, self._used = torch.empty(size, dtype=torch.uint8, device=self._device), 0
        place = slice(self._used, self._used + tensor.nbytes)
        self._used += -(-tensor.nbytes // self.ALIGNED) * self.ALIGNED
        self._host[place].view(tensor.dtype).view(tensor.shape).copy_(tensor)
        return self._there[place].view(tensor.dtype).view(tensor.shape)

    def send(self) -> None:
        """Send what was added, in the device's order of work."""
        self._there[: self._used].copy_(self._host[: self._used], non_blocking=True)
        self._host, self._there, self._used = torch.empty(0), torch.empty(0), 0


@lru_cache(maxsize=4096)
def indices(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """Whole numbers as an index on a device, sent but once, int64."""
    return send(torch.tensor(numbers), device)
