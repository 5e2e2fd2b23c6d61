"""The prompt of a rollout as the network sees it, and how it changes."""

from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from dummyforcing.models.wan import CausalWan, TextKV


@dataclass(frozen=True)
class PromptState:
    """The prompt, and those that it fades into."""

    embeds: Tensor
    """Of the present prompt, `(B, text_len, text_dim)`."""
    coming: tuple[Tensor, ...]
    """Of the next chunks, likewise."""


class PromptTrack:
    """The present prompt of a batch, and those of the next chunks."""

    def __init__(self, model: CausalWan, embeds: Tensor, batch: int) -> None:
        """Begin with a prompt.

        Args:
            model: Makes keys and values of it.
            embeds: Text encoder output, zero in padded rows, `(B, text_len, text_dim)`.
            batch: How many samples there are.

        Raises:
            ValueError: If the prompts are not for this batch.
        """
        self._model, self._batch = model, batch
        self._coming: tuple[Tensor, ...] = ()
        self._use(embeds)

    @property
    def embeds(self) -> Tensor:
        """Embeddings of the present prompt, `(B, text_len, text_dim)`, on the model's device."""
        return self._embeds

    @property
    def text(self) -> TextKV:
        """The present prompt's keys and values for cross-attention."""
        return self._text

    def change(self, embeds: Tensor, chunks: int = 1) -> None:
        """Change the prompt, from the next chunk on.

        Args:
            embeds: As at the start.
            chunks: Over how many chunks the old prompt fades into the new one, in equal steps from the old
                one itself; 1: the next chunk has the new one.

        Raises:
            ValueError: If the prompts are not for this batch.
        """
        old, new = self._embeds, self._checked(embeds)
        shares = torch.linspace(0, 1, chunks).tolist() if chunks > 1 else [1.0]
        self._coming = tuple(torch.lerp(old, new, share) for share in shares)

    def advance(self) -> bool:
        """Take the next chunk's prompt; tells whether it is another one."""
        if not self._coming:
            return False
        self._use(self._coming[0])
        self._coming = self._coming[1:]
        return True

    def state(self) -> PromptState:
        """The prompt, and those that it fades into."""
        return PromptState(self._embeds, self._coming)

    def load_state(self, state: PromptState) -> None:
        """Go on from what `state` gave."""
        self._use(state.embeds)
        self._coming = tuple(embeds.to(self._embeds.device) for embeds in state.coming)

    def copy(self) -> "PromptTrack":
        """Another one that goes on from here."""
        return copy(self)

    def _use(self, embeds: Tensor) -> None:
        self._embeds = self._checked(embeds)
        weight = self._model.patch_embedding.weight
        with torch.inference_mode():
            self._text = self._model.embed_text(self._embeds.to(weight.dtype))

    def _checked(self, embeds: Tensor) -> Tensor:
        if len(embeds) != self._batch:
            raise ValueError(f"text for {len(embeds)} samples, latents for {self._batch}")
        return embeds.to(self._model.patch_embedding.weight.device)
