"""The parts of a loaded model."""

from dataclasses import dataclass

import torch

from dummyforcing.errors import BadRequest
from dummyforcing.models.text_encoder import TextEncoder
from dummyforcing.models.wan import CausalWan
from dummyforcing.pipeline.team import Team
from dummyforcing.presets.preset import Preset
from dummyforcing.runtime.fused import FusedWan
from dummyforcing.runtime.ranks import Ranks
from dummyforcing.vae.codec import VideoDecoder


@dataclass(frozen=True)
class Parts:
    """A loaded model, as rollouts need it; it holds no state of any of them."""

    preset: Preset
    model: CausalWan
    encoder: TextEncoder | None
    """None: prompts come as embeddings."""
    vae: VideoDecoder
    fused: FusedWan | None
    ranks: Ranks | None = None
    """The GPUs that share the model's work, each with its parts; None: there is one."""
    team: Team | None = None
    """What tells the others what to do; None: nobody has to be told."""
    key: int = 0
    """What the others know the model by."""

    @property
    def text(self) -> TextEncoder:
        """The text encoder.

        Raises:
            BadRequest: If there is none.
        """
        if self.encoder is None:
            raise BadRequest(
                "The model was put together without a text encoder",
                "give prompt_embeds, or its text_encoder and tokenizer",
                "prompt",
            )
        return self.encoder

    @property
    def device(self) -> torch.device:
        """Device of the transformer."""
        return self.model.patch_embedding.weight.device
