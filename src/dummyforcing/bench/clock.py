"""Time on the device that computes: CUDA events, which make nobody wait, or the clock of the host."""

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch


class Clock:
    """Takes marks along the work of a device, and tells the seconds between them."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._is_cuda = device, device.type == "cuda"

    def mark(self) -> Any:
        """Note when all work so far is done: a CUDA event, which will know, or the time."""
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        """The seconds from each mark to the next; waits for the last one."""
        if not self._is_cuda:
            return [after - before for before, after in pairwise(marks)]
        torch.cuda.synchronize(self._device)
        return [before.elapsed_time(after) / 1000 for before, after in pairwise(marks)]
