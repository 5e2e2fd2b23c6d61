"""What is known of a loaded model without touching it: enough to check what is asked of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.models.text_encoder import PromptTokens
from dummyforcing.pipeline.options import VideoOptions, choose
from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from dummyforcing.pipeline.request import Request, check_request
from dummyforcing.presets.preset import Preset
from dummyforcing.vae.memory import available_memory


@dataclass(frozen=True)
class Facts:
    """A loaded model, described; it may be in another process."""

    files: ModelFiles
    text: PromptTokens
    """What it reads."""
    device: torch.device
    dtype: torch.dtype
    cache_dtype: torch.dtype
    """Of keys and values."""
    offload: bool
    """Whether the VAE's weights come to the device only to decode."""
    memory: float
    """Bytes of the device for videos."""

    @classmethod
    def of(cls, pipeline: DummyForcingPipeline) -> "Facts":
        """Describe a loaded model.

        Raises:
            BadRequest: If it has no text encoder.
        """
        return cls(
            pipeline.files,
            pipeline.text.reader,
            pipeline.device,
            pipeline.dtype,
            pipeline.cache_dtype,
            pipeline.vae.moves,
            0.9 * available_memory(pipeline.device),
        )

    @property
    def preset(self) -> Preset:
        """Of the model."""
        return self.files.preset

    @property
    def chunk_seconds(self) -> float:
        """Seconds that a chunk is shown for."""
        return self.preset.chunk_pixel_frames / self.preset.fps

    def request(self, prompt: str, options: Mapping[str, Any]) -> Request:
        """Check what is asked of the model.

        Args:
            prompt: What the video shows.
            options: See `VideoOptions`.

        Raises:
            UserError: If it cannot be done.
        """
        chosen = choose(VideoOptions, options, dict(self.preset.options))
        return check_request(self.files, prompt, chosen, self.cache_dtype)
