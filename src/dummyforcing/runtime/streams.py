"""Work beside the denoising: on a GPU in a stream of its own, elsewhere in turn."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Mark:
    """A moment in the work of a device: when it has done all that was asked of it in the current stream."""

    def __init__(self, device: torch.device) -> None:
        """Set the mark behind the work that was asked for so far."""
        self._time = time.perf_counter()
        self.event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self.event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self.event.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        """Wait until the device is there."""
        if self.event is not None:
            self.event.synchronize()

    def since(self, earlier: "Mark") -> float:
        """Seconds from an earlier mark on the same device to this one; both have been reached."""
        if self.event is None or earlier.event is None:
            return self._time - earlier._time
        milliseconds: float = earlier.event.elapsed_time(self.event)
        return milliseconds / 1e3


def seconds_between(marks: Sequence[Mark]) -> list[float]:
    """The seconds from each mark to the next; waits for the last one."""
    marks[-1].wait()
    return [later.since(earlier) for earlier, later in pairwise(marks)]


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the main memory to a device without waiting for the work before it."""
    host = tensor.pin_memory() if device.type == "cuda" and not tensor.is_cuda else tensor
    return host.to(device, non_blocking=True)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all videos: memory that torch has set aside for a stream serves no other one."""
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]


class Lane:
    """Where the VAE of one video works."""

    def __init__(self, device: torch.device, beside: bool = True) -> None:
        """Open a lane.

        Args:
            device: Where the work is done.
            beside: Whether to work in a stream beside the caller's, if the device has them, whose work goes
                before that of others; else the work is done in turn with the caller's own.
        """
        self.device = device
        self.stream: torch.cuda.Stream | None = None
        if beside and device.type == "cuda":
            self.stream = _stream(device)

    def take(self, tensor: Tensor, ready: Mark) -> None:
        """Let this lane have a tensor of the current stream; work here waits until it is ready."""
        if self.stream is not None and ready.event is not None:
            self.stream.wait_event(ready.event)
            tensor.record_stream(self.stream)

    @contextmanager
    def work(self) -> Iterator[None]:
        """Ask for work in this lane."""
        with nullcontext() if self.stream is None else torch.cuda.stream(self.stream):
            yield

    def give(self, tensor: Tensor) -> Tensor:
        """Let the current stream have a tensor that was made in this lane; it waits for all work here."""
        if self.stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self.stream)
            tensor.record_stream(current)
        return tensor


@dataclass(frozen=True)
class Decoding:
    """Pixel frames that are being made."""

    frames: Tensor
    """`(B, n, H, W, 3)` uint8 in the main memory; not to be read before `ended`."""
    began: Mark
    ended: Mark

    @classmethod
    def of(cls, pixels: Tensor, began: Mark) -> "Decoding":
        """Bring pixel frames to the main memory without waiting for them."""
        frames = pixels = pixels.contiguous()
        if pixels.is_cuda:
            frames = torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True)
            frames.copy_(pixels, non_blocking=True)
        return cls(frames, began, Mark(pixels.device))

    def wait(self) -> NDArray[np.uint8]:
        """The pixel frames, once they are there."""
        self.ended.wait()
        frames: NDArray[np.uint8] = self.frames.numpy()
        return frames.copy() if self.frames.is_pinned() else frames  # pinned memory is scarce
