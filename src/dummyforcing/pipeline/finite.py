"""Checks that the numbers of every chunk are finite, asked on its device and answered when it has come to it.

A video with NaN in it is black, and one with infinite numbers white or black. So it ends with an error that
names the chunk. On a GPU the question is put into its queue behind the chunk, and the answer read where
frames come to the main memory anyway: nothing is waited for.
"""

from collections import deque
from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor

from dummyforcing.errors import NotFinite
from dummyforcing.files.finite import all_finite
from dummyforcing.kernels.transfers import to_host
from dummyforcing.runtime.streams import Event

MAKERS = ("transformer", "VAE")
"""What makes the latents, and the pixels of them."""


class FiniteCheck:
    """Refuses chunks of one video, or of a batch, that are not finite."""

    def __init__(self, chunk_frames: int, dtype: torch.dtype, fp8: str) -> None:
        """Know what to say.

        Args:
            chunk_frames: Latent frames of a chunk.
            dtype: What the transformer computes in.
            fp8: A mode of `LoadOptions.fp8`.
        """
        self._chunk_frames = chunk_frames
        if fp8 != "none":
            self._remedy = 'load the model with fp8="none"'
        elif dtype != torch.float32:
            self._remedy = 'load the model with torch_dtype="float32"'
        else:  # the weights were looked at when they were loaded
            self._remedy = (
                "look at what it was made with, such as prompt_embeds, or a LoRA that is too strong"
            )
        self._asked: deque[tuple[int, Tensor, Event]] = deque()

    def require(self, chunk: int, is_finite: Sequence[bool]) -> None:
        """Refuse a chunk that is not finite.

        Args:
            chunk: Its number, from 0.
            is_finite: Whether its latents are, and its pixels, as far as it was decoded.

        Raises:
            NotFinite: If it is not; names it.
        """
        for maker, is_so in zip(MAKERS, is_finite, strict=False):
            if not is_so:
                first = chunk * self._chunk_frames
                frames = f"latent frames {first} to {first + self._chunk_frames - 1}"
                if self._chunk_frames == 1:
                    frames = f"latent frame {first}"
                raise NotFinite(
                    f"Chunk {chunk} of the video ({frames}) cannot be shown: "
                    f"the {maker} made NaN or infinite numbers",
                    self._remedy,
                )

    def ask(self, chunk: int, latents: Tensor) -> None:
        """Have latents looked at that nobody decodes, and refuse earlier ones whose answer is there.

        Raises:
            NotFinite: If they are not finite; names the chunk.
        """
        answer = to_host(all_finite(latents))
        self._asked.append((chunk, answer, Event(latents.device)))
        while self._asked and self._asked[0][2].has_happened:
            self._answer()

    def wait(self) -> None:
        """Wait for all answers.

        Raises:
            NotFinite: If latents are not finite; names the chunk.
        """
        while self._asked:
            self._asked[0][2].wait()
            self._answer()

    def copy(self) -> "FiniteCheck":
        """Another one that goes on from here."""
        other = copy(self)
        other._asked = copy(self._asked)
        return other

    def _answer(self) -> None:
        chunk, answer, _ = self._asked[0]
        self.require(chunk, [bool(answer)])  # refused again whenever it is asked again
        self._asked.popleft()
