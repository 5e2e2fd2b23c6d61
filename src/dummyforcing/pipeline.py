"""From a prompt to pixel frames.

    pipeline = load("tiny")
    video = pipeline.generate("a red ball bounces on a green floor")
    video.save("ball.mp4")

`stream` gives the chunks of the same video as they are finished.
"""

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack, overload

import numpy as np
import torch
from numpy.typing import NDArray

from dummyforcing.checkpoints import load_transformer
from dummyforcing.errors import UnknownWordsWarning, UserError
from dummyforcing.memory import require_memory
from dummyforcing.model import CausalWan
from dummyforcing.plan import Plan
from dummyforcing.request import ModelFolder, Options, Request, choose_device, choose_dtype
from dummyforcing.sampling import make_schedule
from dummyforcing.session import Session
from dummyforcing.text import TextEncoder
from dummyforcing.vae import VideoDecoder
from dummyforcing.video import write_mp4


@dataclass(frozen=True)
class Timings:
    """What a video, or a batch of them, took since its start."""

    pixel_frames: int = 0
    """Of all videos of the batch."""
    first_frame: float = 0.0
    """Seconds until the first pixel frames were there, encoding of the prompt included."""
    diffusion: float = 0.0
    """Seconds in the transformer."""
    decode: float = 0.0
    """Seconds in the VAE."""

    @property
    def fps(self) -> float:
        """Pixel frames per second of diffusion and decoding."""
        return self.pixel_frames / (self.diffusion + self.decode)

    @property
    def fps_without_vae(self) -> float:
        """Pixel frames per second of diffusion alone."""
        return self.pixel_frames / self.diffusion


@dataclass(frozen=True)
class Chunk:
    """One finished chunk of a video, or of each video of a batch."""

    frames: NDArray[np.uint8]
    """Pixel frames, RGB, `(B, n, H, W, 3)`."""
    timings: Timings
    """From the start of the video to the end of this chunk."""
    plans: tuple[Plan, ...]
    """What the heads see in the next chunk, one plan per video."""
    cache_bytes: int
    """Size of the KV cache of the whole batch."""


@dataclass(frozen=True)
class Video:
    """A finished video."""

    frames: NDArray[np.uint8]
    """Pixel frames, RGB, `(F, H, W, 3)`."""
    fps: int
    """Pixel frames per second at which it is to be shown."""
    timings: Timings
    """Of the batch that the video was made in."""
    plan: Plan
    """What the heads saw at the end."""
    cache_bytes: int
    """Size of the batch's KV cache at the end."""

    def save(self, path: str | Path) -> None:
        """Write an mp4.

        Raises:
            UserError: If the file cannot be written.
        """
        write_mp4(path, self.frames, self.fps)


class Pipeline:
    """A loaded model; it holds no state of any video, so several streams may run side by side."""

    def __init__(self, folder: ModelFolder, model: CausalWan, text: TextEncoder, vae: VideoDecoder) -> None:
        self.folder, self.model, self.text, self.vae = folder, model, text, vae
        weight = model.patch_embedding.weight
        self.device, self.dtype = weight.device, weight.dtype
        schedule = folder.preset.schedule
        self.schedule = make_schedule(schedule.steps, schedule.shift, schedule.warp)

    @overload
    def generate(self, prompt: str, **options: Unpack[Options]) -> Video: ...

    @overload
    def generate(self, prompt: list[str], **options: Unpack[Options]) -> list[Video]: ...

    def generate(self, prompt: str | list[str], **options: Unpack[Options]) -> Video | list[Video]:
        """Make a video, or one for each prompt of a list.

        Args:
            prompt: What the video shows. In a batch, sample i is what its prompt gives alone with `seed + i`.
            **options: See `Options`.

        Returns:
            The finished video or videos.

        Raises:
            UserError: If anything that was asked for cannot be done.
        """
        chunks = list(self.stream(prompt, **options))
        last, fps = chunks[-1], self.folder.preset.fps
        videos = [
            Video(frames, fps, last.timings, plan, last.cache_bytes)
            for frames, plan in zip(
                np.concatenate([c.frames for c in chunks], axis=1), last.plans, strict=True
            )
        ]
        return videos[0] if isinstance(prompt, str) else videos

    def stream(self, prompt: str | list[str], **options: Unpack[Options]) -> Iterator[Chunk]:
        """Make the same video as `generate`, chunk by chunk.

        Everything is checked before the first chunk is asked for.

        Raises:
            UserError: If anything that was asked for cannot be done.
        """
        return self.run(self.folder.request(prompt, **options))

    def run(self, request: Request) -> Iterator[Chunk]:
        """Make what a request of this pipeline's `folder` describes, chunk by chunk.

        Raises:
            UserError: If the memory does not suffice.
        """
        self._prepare(request)
        return self._chunks(request)

    def find_plan(self, request: Request) -> Plan:
        """Make as many chunks of the first video as its policy needs to classify the heads, without decoding.

        Raises:
            UserError: If the policy classifies nothing.
        """
        if request.policy.roles is None:
            raise UserError(f"Policy '{request.policy.name}' does not classify heads; take 'dummy'.")
        self._prepare(request)
        session = self._session(request)
        for _ in range(request.policy.classify_at_chunk + 1):
            session.next_chunk()
        return session.plan

    def _prepare(self, request: Request) -> None:
        """Refuse what does not fit into memory, and warn of words that mean nothing to the model."""
        require_memory(replace(self.folder.estimate(request, self.dtype), weights=0), self.device)
        words = dict.fromkeys(word for prompt in request.prompts for word in self.text.unknown_words(prompt))
        if words:
            warnings.warn(
                f"Model '{self.folder.preset.name}' does not know the word{'s' * (len(words) > 1)} "
                f"{', '.join(words)}; it knows {', '.join(self.text.known_words())}.",
                UnknownWordsWarning,
                stacklevel=3,
            )

    def _session(self, request: Request) -> Session:
        batch, (height, width) = len(request.prompts), request.size
        return Session(
            self.model,
            self.text.encode(request.prompts),
            request.policy,
            self.schedule,
            (batch, self.model.config.in_dim, height // self.vae.stride, width // self.vae.stride),
            chunk_frames=self.folder.preset.chunk_frames,
            seeds=range(request.seed, request.seed + batch),
            plan=request.plan,
            frames=request.frames,
        )

    def _chunks(self, request: Request) -> Iterator[Chunk]:
        start = time.perf_counter()
        session, decoder = self._session(request), self.vae.stream()
        timings = Timings()
        for _ in range(request.chunks):
            began = time.perf_counter()
            latents = session.next_chunk()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            denoised = time.perf_counter()
            frames = decoder.decode(latents).cpu().numpy()
            done = time.perf_counter()
            timings = Timings(
                pixel_frames=timings.pixel_frames + frames.shape[0] * frames.shape[1],
                first_frame=timings.first_frame or done - start,
                diffusion=timings.diffusion + denoised - began,
                decode=timings.decode + done - denoised,
            )
            yield Chunk(frames, timings, tuple(session.plans), session.cache.nbytes)


def load(
    name_or_path: str | Path = "tiny",
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
) -> Pipeline:
    """Load a model.

    Args:
        name_or_path: Name of a bundled model, or a folder in its layout: `text_encoder/`, `tokenizer/`,
            `vae/`, `transformer/` and `preset.json`.
        device: `auto` (a GPU if there is one), `cpu`, `cuda` or a torch device.
        dtype: `float32`, `bfloat16` or the torch dtype; bfloat16 on a GPU and float32 elsewhere by default.

    Returns:
        The pipeline.

    Raises:
        UserError: If there is no such model, device or dtype, or if files are missing or damaged.
    """
    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    folder = ModelFolder.open(name_or_path)
    model = load_transformer(folder.path / "transformer", device, dtype)
    text = TextEncoder.from_folder(folder.path, model.config.text_len, device, dtype)
    return Pipeline(folder, model, text, VideoDecoder.from_folder(folder.path / "vae", device, dtype))
