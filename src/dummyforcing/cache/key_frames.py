"""Key frames: of the frames that leave the recent ones, those are kept that are least like each other.

    looks = FrameLooks()
    looks.add(past, latents)                           # of committed frames
    keys = with_key(keys, frame, 4, first, looks.of(0))   # the 4 key frames once `frame` is no recent one

Every head sees the same key frames, so it costs as much as a window of as many frames, and what left the
picture long ago can come back as it was. They are chosen on the host, from latents that it has by then:
nothing waits for the device. Of large frames they are the means of some areas: to compare whole ones
takes a processor tens of milliseconds at 1080p.
"""

from collections.abc import Callable, Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dummyforcing.kernels.transfers import to_host

Looks = Callable[[int], Tensor]
"""`looks(frame)`: what a frame of one sample looks like, `(n,)` on the CPU."""

MOST = 32
"""Rows, and columns, of latents that are compared."""


class FrameLooks:
    """What committed frames look like: their latents, at most `MOST` by `MOST`, in the main memory."""

    def __init__(self) -> None:
        """Begin with no frames."""
        self._frames: dict[int, tuple[Tensor, torch.cuda.Event | None]] = {}

    def add(self, first: int, latents: Tensor) -> None:
        """Note frames from `first` on: clean latents `(B, F, C, h, w)`."""
        height, width = (min(size, MOST) for size in latents.shape[-2:])
        small = F.adaptive_avg_pool2d(latents.flatten(0, 1), (height, width))
        there, event = to_host(torch.unflatten(small, 0, latents.shape[:2]).flatten(2)), None
        if latents.is_cuda:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        new = {first + number: (there[:, number], event) for number in range(there.shape[1])}
        self._frames = {**self._frames, **new}

    def of(self, sample: int) -> Looks:
        """The looks of one sample's frames."""

        def looks(frame: int) -> Tensor:
            there, event = self._frames[frame]
            if event is not None:
                event.synchronize()
            return there[sample]

        return looks

    def keep(self, frames: Collection[int]) -> None:
        """Forget all other frames."""
        self._frames = {frame: found for frame, found in self._frames.items() if frame in frames}

    def state(self) -> tuple[tuple[int, Tensor], ...]:
        """The frames and their looks, `(B, n)` each."""
        for _, event in self._frames.values():
            if event is not None:
                event.synchronize()
        return tuple((frame, there) for frame, (there, _) in self._frames.items())

    @classmethod
    def from_state(cls, state: Sequence[tuple[int, Tensor]]) -> "FrameLooks":
        """What `state` gave."""
        looks = cls()
        looks._frames = {frame: (there.cpu().clone(), None) for frame, there in state}
        return looks


def with_key(
    keys: tuple[int, ...], frame: int, most: int, pinned: Sequence[int], looks: Looks
) -> tuple[int, ...]:
    """The key frames when one more frame could be one: of the closest pair the newer one goes.

    Args:
        keys: Those so far, slot after slot.
        frame: It is newer than all of them.
        most: How many there are at most, 1 or more.
        pinned: First frames that are kept anyway: what looks like them need not be.
        looks: Of all these frames.

    Returns:
        The same, or with `frame` in place of one of them or behind them.
    """
    if len(keys) < most:
        return (*keys, frame)
    frames = [*pinned, *sorted(keys), frame]
    x = torch.stack([looks(one) for one in frames]).double()
    apart = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    apart.masked_fill_(torch.ones_like(apart, dtype=torch.bool).triu(), torch.inf)  # each pair once
    apart[: len(pinned)] = torch.inf  # both pinned
    gone = frames[int(apart.argmin()) // len(frames)]
    return tuple(frame if key == gone else key for key in keys)
