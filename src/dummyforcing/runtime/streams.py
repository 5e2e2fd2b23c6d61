"""CUDA streams and events for work beside the denoising; on other devices the same work runs in turn."""

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

from dummyforcing.kernels.transfers import to_host


class Event:
    """A CUDA event with its time: when the current stream has done all that it was given so far.

    On other devices, which work at once, it is the time of the clock.
    """

    def __init__(self, device: torch.device) -> None:
        """Record the event in the current stream."""
        self._time = time.perf_counter()
        self.event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self.event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self.event.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        """Wait until it has happened."""
        if self.event is not None:
            self.event.synchronize()

    @property
    def has_happened(self) -> bool:
        """Whether it has happened by now; waits for nothing."""
        return self.event is None or bool(self.event.query())  # type: ignore[no-untyped-call]

    def since(self, earlier: "Event") -> float:
        """Seconds from an earlier event on the same device to this one; both have happened."""
        if self.event is None or earlier.event is None:
            return self._time - earlier._time
        milliseconds: float = earlier.event.elapsed_time(self.event)
        return milliseconds / 1e3


def seconds_between(events: Sequence[Event]) -> list[float]:
    """The seconds from each event to the next; waits for the last one."""
    events[-1].wait()
    return [later.since(earlier) for earlier, later in pairwise(events)]


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all videos: memory that torch has set aside for a stream serves no other one."""
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]


class SideStream:
    """The CUDA stream in which the VAE of one video works, beside the denoising."""

    def __init__(self, device: torch.device, beside: bool = True) -> None:
        """Take the device's stream for decoding, if it has any.

        Args:
            device: Where the work is done.
            beside: Whether to work in a stream beside the caller's, if the device has them, whose work goes
                before that of others; else the work is done in turn with the caller's own.
        """
        self.device = device
        self.stream: torch.cuda.Stream | None = None
        if beside and device.type == "cuda":
            self.stream = _stream(device)

    def take(self, tensor: Tensor, ready: Event) -> None:
        """Hand a tensor of the current stream over; work in this one waits until it is ready."""
        if self.stream is not None and ready.event is not None:
            self.stream.wait_event(ready.event)
            tensor.record_stream(self.stream)

    @contextmanager
    def work(self) -> Iterator[None]:
        """Run work in this stream."""
        with nullcontext() if self.stream is None else torch.cuda.stream(self.stream):
            yield

    def give(self, tensor: Tensor) -> Tensor:
        """Hand a tensor that was made in this stream to the current one, which waits for all work here."""
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
    is_finite: Tensor
    """Whether the latents were finite, and the pixels: two booleans in the main memory, likewise."""
    began: Event
    ended: Event

    @classmethod
    def of(cls, pixels: Tensor, is_finite: Tensor, began: Event) -> "Decoding":
        """Bring pixel frames to the main memory without waiting for them."""
        frames, flags = to_host(pixels.contiguous()), to_host(is_finite)
        return cls(frames, flags, began, Event(pixels.device))

    def wait(self) -> NDArray[np.uint8]:
        """The pixel frames, once they are there."""
        self.ended.wait()
        frames: NDArray[np.uint8] = self.frames.numpy()
        return frames.copy() if self.frames.is_pinned() else frames  # pinned memory is scarce
