"""Latents of a rollout to pixel frames in the main memory, beside the denoising where a GPU can."""

from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from dummyforcing.files.finite import all_finite
from dummyforcing.runtime.streams import Decoding, Event, SideStream
from dummyforcing.vae.codec import StreamState, VideoDecoder


@dataclass(frozen=True)
class FrameDecoderState:
    """Progress of the decoding of a rollout."""

    stream: StreamState
    before: tuple[Tensor, ...]
    """Pixel frames that come with those of the next latents."""
    last: Tensor | None
    """The newest pixel frames, as many as a context reaches back."""
    waiting: Tensor | None
    """Latents that are not decoded yet."""


class FrameDecoder:
    """Decodes a rollout, and encodes a pixel frame of it where a sampler's context begins with one.

    Apart from `Rollout`, so that no sampler refers back to what holds it: its memory is freed at once.
    """

    def __init__(self, vae: VideoDecoder, tiles: int | None, context: int) -> None:
        """Begin a video.

        Args:
            vae: Decodes.
            tiles: In how many tiles of rows; None: as few as fit.
            context: How many of the newest pixel frames may be needed again.
        """
        self._vae, self._tiles, self._context = vae, tiles, context
        self._stream = vae.stream(tiles)
        self._side = SideStream(vae.device, beside=not vae.moves)
        self._before: tuple[Tensor, ...] = ()
        self._last: Tensor | None = None
        self._waiting: Tensor | None = None

    @property
    def overlaps(self) -> bool:
        """Whether decoding goes on while the caller asks for something else."""
        return self._side.stream is not None

    def put(self, latents: Tensor, ready: Event) -> None:
        """Take the next latents, which are there at an event; their pixel frames can wait."""
        self._side.take(latents, ready)
        self._waiting = latents

    def begin(self, left_out: int = 0) -> list[Decoding]:
        """Begin to decode what is waiting, and to bring it to the main memory.

        The first frame of a video comes by itself.

        Args:
            left_out: How many of the last pixel frames stay behind.
        """
        assert self._waiting is not None
        alone = 1 if self._stream.frames == 0 else 0
        pieces = [piece for piece in self._waiting.tensor_split([alone], 1) if piece.shape[1]]
        decodings = []
        with self._side.work():
            for number, latents in enumerate(pieces, start=1):
                began = Event(self._vae.device)
                pixels = self._decode(latents)
                count = pixels.shape[1] - (left_out if number == len(pieces) else 0)
                is_finite = self._stream.is_finite
                assert is_finite is not None
                flags = torch.stack([all_finite(latents).to(is_finite.device), is_finite])
                decodings.append(Decoding.of(pixels[:, :count], flags, began))
        self._waiting = None
        return decodings

    def begin_again(self, latents: Tensor) -> None:
        """Begin a new video with these latents; their pixel frames come with those of the next ones."""
        self._stream = self._vae.stream(self._tiles)
        self._side.take(latents, Event(latents.device))
        with self._side.work():
            self._before = (self._stream.decode(latents),)

    def first_latent(self) -> Tensor:
        """The oldest pixel frame of the context as an image's latent, `(B, 1, C, h, w)`."""
        with self._side.work():
            if self._waiting is not None:
                self._decode(self._waiting)
                self._waiting = None
            assert self._last is not None
            latent: Tensor = self._vae.encode(self._last[:, :1])
        return self._side.give(latent)

    def state(self) -> FrameDecoderState:
        """Give the state; it shares memory with this decoder."""
        with self._side.work():
            stream = self._stream.state()
        return FrameDecoderState(stream, self._before, self._last, self._waiting)

    def load_state(self, state: FrameDecoderState, height: int) -> None:
        """Go on from what `state` gave; copies it.

        Args:
            state: Of a decoder that was made alike.
            height: Rows of latents.
        """
        device = self._vae.device
        with self._side.work():
            self._stream = self._vae.stream(self._tiles)
            self._stream.load_state(state.stream, height)
            self._before = tuple(pixels.to(device) for pixels in state.before)
            self._last = None if state.last is None else state.last.to(device)
            self._waiting = None if state.waiting is None else state.waiting.to(device)

    def copy(self, height: int) -> "FrameDecoder":
        """Another one that goes on from here; `height` as for `load_state`."""
        other = copy(self)
        other.load_state(self.state(), height)
        return other

    def _decode(self, latents: Tensor) -> Tensor:
        pixels = torch.cat([*self._before, self._stream.decode(latents)], 1)
        self._before = ()
        if self._context:
            known = pixels if self._last is None else torch.cat([self._last, pixels], 1)
            self._last = known[:, -self._context :]
        return pixels
