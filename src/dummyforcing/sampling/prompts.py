"""The prompt of a session: how it changes, and what of the past is written again then."""

import torch
from torch import Tensor

from dummyforcing.models.wan import CausalWan, TextKV
from dummyforcing.sampling.snapshot import Resumable


class Prompted(Resumable):
    """What of a session has to do with its prompt."""

    model: CausalWan
    latent_shape: tuple[int, int, int, int]
    frames: int
    _dtype: torch.dtype
    _text: TextKV
    _origin: int
    _tail: Tensor
    _recache_frames: int
    _global_sink: bool

    def set_prompt(self, prompt_embeds: Tensor, *, chunks: int = 1) -> None:
        """Change the prompt, from the next chunk on.

        Args:
            prompt_embeds: As at the start.
            chunks: Over how many chunks the old prompt fades into the new one, in equal steps from the old
                one itself; 1: the next chunk has the new one.

        Raises:
            ValueError: If `prompt_embeds` are not for this batch.
        """
        old, new = self.prompt_embeds, self._checked(prompt_embeds)
        shares = torch.linspace(0, 1, chunks).tolist() if chunks > 1 else [1.0]
        self._prompts = [torch.lerp(old, new, share) for share in shares]

    def _advance_prompt(self) -> None:
        """Take the next prompt, if there is one."""
        if self._prompts:
            self._use_prompt(self._prompts.pop(0))
            if self._recache_frames and self.frames:
                self._recache()

    def _use_prompt(self, prompt_embeds: Tensor) -> None:
        self.prompt_embeds = self._checked(prompt_embeds)
        with torch.inference_mode():
            self._text = self.model.embed_text(self.prompt_embeds.to(self._dtype))

    def _checked(self, prompt_embeds: Tensor) -> Tensor:
        if len(prompt_embeds) != self.latent_shape[0]:
            raise ValueError(f"text for {len(prompt_embeds)} samples, latents for {self.latent_shape[0]}")
        return prompt_embeds.to(self._device)

    def _recache(self) -> None:
        """Write the newest frames again under the new prompt, in one pass, visible to each other."""
        # No head has a place for more frames than slots.
        latents = self._tail[:, -min(self._recache_frames, self.cache.slots) :]
        frames = latents.shape[1]
        if self._global_sink:
            self.cache.rewind(frames)
        else:
            self._origin += self.cache.frames - frames
            self.cache.reset()
            self._beginning = latents[:, : self._beginning.shape[1]]
        self._commit(latents)

    def _commit(self, x0: Tensor) -> None:
        raise NotImplementedError
