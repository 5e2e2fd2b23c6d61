"""The parts of a loaded model, and what they were never taught."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dummyforcing.errors import TrainedLengthWarning, UnknownWordsWarning
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


def about_length(parts: Parts, frames: int | None) -> str | None:
    """What is to be said of a video longer than those that the model was trained for, in latent frames."""
    preset = parts.preset
    longest = None if preset.overlap_frames else preset.max_frames
    if longest is None or (frames is not None and frames <= longest):
        return None
    return (
        f"Model '{preset.name}' was trained for videos of {preset.pixel_frames(longest)} "
        "pixel frames; a longer one may drift or freeze."
    )


def about_words(parts: Parts, prompts: Sequence[str]) -> str | None:
    """What is to be said of words that the model was never taught."""
    words = dict.fromkeys(word for prompt in prompts if prompt for word in parts.text.unknown_words(prompt))
    if not words:
        return None
    return (
        f"Model '{parts.preset.name}' does not know the word{'s' * (len(words) > 1)} "
        f"{', '.join(words)}; it knows {', '.join(parts.text.known_words())}."
    )


def warn_of_length(parts: Parts, frames: int | None) -> None:
    """Warn of a video longer than those that the model was trained for, in latent frames."""
    if said := about_length(parts, frames):
        warnings.warn(said, TrainedLengthWarning, stacklevel=3)


def warn_of_words(parts: Parts, prompts: Sequence[str]) -> None:
    """Warn of words that the model was never taught."""
    if said := about_words(parts, prompts):
        warnings.warn(said, UnknownWordsWarning, stacklevel=3)
