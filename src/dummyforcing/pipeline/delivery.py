"""Hands out the pixel frames of a rollout, with what they took and how the video fares."""

import time
from collections import deque
from copy import copy, deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dummyforcing.media.monitor import Monitor, MonitorState
from dummyforcing.method.plan import Plan
from dummyforcing.pipeline.finite import FiniteCheck
from dummyforcing.pipeline.outputs import Chunk, Timings
from dummyforcing.presets.preset import Preset
from dummyforcing.runtime.streams import Decoding, Event


@dataclass(frozen=True, eq=False)
class Asked:
    """A chunk that the device was asked for."""

    began: Event
    ready: Event
    """Its latents are there."""
    ended: Event
    """Its commit pass is over."""
    plans: tuple[Plan, ...]
    cache_bytes: int
    chunk: int = 0
    """Its number, from 0."""


@dataclass(frozen=True)
class Piece:
    """Pixel frames of a chunk, all or some, that are being made and were not handed out yet."""

    decoding: Decoding
    asked: Asked
    """The chunk that they are of."""
    is_first: bool
    """Whether they are the first ones of it."""
    is_last: bool
    """Whether they are the last ones of it."""


@dataclass(frozen=True)
class PieceState:
    """Pixel frames that were made and not handed out yet."""

    frames: Tensor
    """uint8, `(B, n, H, W, 3)`."""
    plans: tuple[Plan, ...]
    cache_bytes: int
    is_first: bool
    is_last: bool


@dataclass(frozen=True)
class DeliveryState:
    """Pieces that were not handed out yet, and the monitors of the videos."""

    pieces: tuple[PieceState, ...]
    monitors: tuple[MonitorState, ...]


class Delivery:
    """The pieces of a rollout that wait to be handed out, and its clock."""

    def __init__(
        self, preset: Preset, batch: int, device: torch.device, start: float, check: FiniteCheck
    ) -> None:
        """Begin with nothing.

        Args:
            preset: Of the model.
            batch: How many videos there are.
            device: Where the transformer computes.
            start: When the video was asked for, by `time.perf_counter`.
            check: Refuses chunks that are not finite.
        """
        self._check = check
        self._monitors = [Monitor(preset.fps, preset.chunk_pixel_frames) for _ in range(batch)]
        self._is_gpu = device.type == "cuda"
        self._pieces: deque[Piece] = deque()
        self._before: Asked | None = None  # handed out while its commit pass may still go on
        self.timings = Timings()
        """Up to the newest chunk that was handed out."""
        self._start, self._begin = start, time.perf_counter()
        self.is_whole = True
        """Whether the newest chunk that was begun to be handed out is out as a whole."""

    def __len__(self) -> int:
        """Number of pieces that wait."""
        return len(self._pieces)

    def put(self, asked: Asked, decodings: list[Decoding]) -> None:
        """Take the pieces of a chunk, in order."""
        last = len(decodings) - 1
        for number, decoding in enumerate(decodings):
            self._pieces.append(Piece(decoding, asked, number == 0, number == last))

    def take(self) -> Chunk:
        """Wait for the next pixel frames, and tell what they took.

        Raises:
            NotFinite: If their chunk has NaN or infinite numbers.
        """
        frames, timings = self._wait(self._pieces[0]), self.timings
        piece = self._pieces.popleft()
        asked, decoding = piece.asked, piece.decoding
        now, diffusion = time.perf_counter(), timings.diffusion
        self.is_whole = piece.is_last
        if piece.is_first:
            diffusion += asked.ready.since(asked.began)
            diffusion += self._before.ended.since(self._before.ready) if self._before else 0
        if piece.is_last:
            self._before = asked if self._pieces else None
            if self._before is None:
                asked.ended.wait()
                diffusion += asked.ended.since(asked.ready)
        decode = timings.decode + decoding.ended.since(decoding.began)
        self.timings = Timings(
            pixel_frames=timings.pixel_frames + frames.shape[0] * frames.shape[1],
            first_frame=timings.first_frame or now - self._start,
            diffusion=diffusion,
            decode=decode,
            wall=now - self._begin if self._is_gpu else diffusion + decode,
        )
        measures = tuple(monitor.see(video) for monitor, video in zip(self._monitors, frames, strict=True))
        return Chunk(frames, self.timings, asked.plans, asked.cache_bytes, measures)

    def state(self) -> DeliveryState:
        """Give the state; waits for the pieces that are being made.

        Raises:
            NotFinite: If one of them has NaN or infinite numbers.
        """
        pieces = (
            PieceState(
                torch.from_numpy(self._wait(piece)),
                piece.asked.plans,
                piece.asked.cache_bytes,
                piece.is_first,
                piece.is_last,
            )
            for piece in self._pieces
        )
        return DeliveryState(tuple(pieces), tuple(monitor.state() for monitor in self._monitors))

    def load_state(self, state: DeliveryState) -> None:
        """Go on from what `state` gave; the clock starts again."""
        now, is_finite = Event(torch.device("cpu")), torch.ones(2, dtype=torch.bool)
        self._pieces = deque(
            Piece(
                Decoding(piece.frames, is_finite, now, now),
                Asked(now, now, now, piece.plans, piece.cache_bytes),
                piece.is_first,
                piece.is_last,
            )
            for piece in state.pieces
        )
        for monitor, seen in zip(self._monitors, state.monitors, strict=True):
            monitor.load_state(seen)
        self._start = self._begin = time.perf_counter()

    def _wait(self, piece: Piece) -> NDArray[np.uint8]:
        """Wait for the pixel frames of a piece, and refuse them if they were made of NaN."""
        frames = piece.decoding.wait()
        self._check.require(piece.asked.chunk, piece.decoding.is_finite.tolist())
        return frames

    def copy(self) -> "Delivery":
        """Another one that goes on from here."""
        other = copy(self)
        other._pieces, other._monitors = copy(self._pieces), deepcopy(self._monitors)
        return other
