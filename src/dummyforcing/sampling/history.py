"""Clean latents of a rollout that may be needed again: the newest ones, and the first."""

from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class HistoryState:
    """The latents that are kept."""

    first: Tensor
    """Of the first frames, `(B, F, C, h, w)`."""
    newest: Tensor
    """Of the newest frames, likewise."""


class LatentHistory:
    """Keeps as many first and newest latents of a rollout as may be needed again."""

    def __init__(self, empty: Tensor, first_frames: int, newest_frames: int) -> None:
        """Begin with nothing.

        Args:
            empty: Latents of no frames, `(B, 0, C, h, w)`, on the model's device.
            first_frames: Of the first frames, whole chunks until these are covered.
            newest_frames: So many of the newest frames.
        """
        self._first_frames, self._newest_frames = first_frames, newest_frames
        self.first, self.newest = empty, empty

    def add(self, x0: Tensor) -> None:
        """Take the latents of the next frames, `(B, F, C, h, w)`."""
        if self.first.shape[1] < self._first_frames:
            self.first = torch.cat([self.first, x0], 1)
        if self._newest_frames:
            self.newest = torch.cat([self.newest, x0], 1)[:, -self._newest_frames :]

    def begin_with(self, latents: Tensor) -> None:
        """These frames count as the first ones from now on, as far as first ones were kept."""
        self.first = latents[:, : self.first.shape[1]]

    def state(self) -> HistoryState:
        """The latents that are kept."""
        return HistoryState(self.first, self.newest)

    def load_state(self, state: HistoryState) -> None:
        """Go on from what `state` gave."""
        self.first, self.newest = state.first.to(self.first.device), state.newest.to(self.newest.device)

    def copy(self) -> "LatentHistory":
        """Another one that goes on from here."""
        return copy(self)
