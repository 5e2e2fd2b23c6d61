"""The parts of a loaded model."""

from dataclasses import dataclass

import torch

from dummyforcing.models.text_encoder import TextEncoder
from dummyforcing.models.wan import CausalWan
from dummyforcing.presets.preset import Preset
from dummyforcing.runtime.fused import FusedWan
from dummyforcing.vae.codec import VideoDecoder


@dataclass(frozen=True)
class Parts:
    """A loaded model, as rollouts need it; it holds no state of any of them."""

    preset: Preset
    model: CausalWan
    text: TextEncoder
    vae: VideoDecoder
    fused: FusedWan | None

    @property
    def device(self) -> torch.device:
        """Device of the transformer."""
        return self.model.patch_embedding.weight.device
