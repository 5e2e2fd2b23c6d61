"""The prompt of a rollout as the network sees it, and how it changes."""

from copy import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dummyforcing.models.wan import CausalWan, TextKV


@dataclass(frozen=True)
class Fade:
    """A change of the prompt over some chunks."""

    old: Tensor
    """Embeddings of the prompt that it starts from, `(B, text_len, text_dim)`."""
    new: Tensor
    """Of the one that it ends with, likewise."""
    chunks: int
    """How many chunks it takes."""
    done: int = 0
    """How many of them have taken their step."""


@dataclass(frozen=True)
class PromptState:
    """The present prompt, and the fade that is under way."""

    embeds: Tensor
    """Of the present prompt, `(B, text_len, text_dim)`."""
    fade: Fade | None


class PromptTrack:
    """The present prompt of a batch, and the one that it fades into."""

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
        self._fade: Fade | None = None
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
            chunks: In how many equal steps, one a chunk, the old prompt fades into the new one; 1: the next
                chunk has the new one.

        Raises:
            ValueError: If the prompts are not for this batch.
        """
        self._fade = Fade(self._embeds, self._checked(embeds), chunks)

    def advance(self) -> bool:
        """Take the next chunk's prompt; tells whether it is another one."""
        fade = self._fade
        if fade is None:
            return False
        done = fade.done + 1
        self._use(torch.lerp(fade.old, fade.new, done / fade.chunks))
        self._fade = replace(fade, done=done) if done < fade.chunks else None
        return True

    def state(self) -> PromptState:
        """Give the state."""
        return PromptState(self._embeds, self._fade)

    def load_state(self, state: PromptState) -> None:
        """Go on from what `state` gave."""
        self._use(state.embeds)
        self._fade = state.fade and replace(
            state.fade, old=self._checked(state.fade.old), new=self._checked(state.fade.new)
        )

    def copy(self) -> "PromptTrack":
        """Another one that goes on from here."""
        return copy(self)

    def standing(self) -> "PromptTrack":
        """Another one that stays at the present prompt."""
        other = copy(self)
        other._fade = None
        return other

    def _use(self, embeds: Tensor) -> None:
        self._embeds = self._checked(embeds)
        weight = self._model.patch_embedding.weight
        with torch.inference_mode():
            self._text = self._model.embed_text(self._embeds.to(weight.dtype))

    def _checked(self, embeds: Tensor) -> Tensor:
        if len(embeds) != self._batch:
            raise ValueError(f"text for {len(embeds)} samples, latents for {self._batch}")
        return embeds.to(self._model.patch_embedding.weight.device)
