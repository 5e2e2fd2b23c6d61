"""From a prompt to pixel frames.

    pipeline = load("tiny")
    video = pipeline.generate("a red ball bounces on a green floor")
    video.save("ball.mp4")

`stream` gives the chunks of the same video as they are finished.
"""

import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack, overload

import numpy as np
import torch
from numpy.typing import NDArray

from dummyforcing.checkpoints.hub import fetch, find_part
from dummyforcing.checkpoints.lora import LoRA
from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.checkpoints.transformer import fill, open_transformer
from dummyforcing.errors import TrainedLengthWarning, UnknownWordsWarning, UserError
from dummyforcing.media.monitor import Measures, Monitor
from dummyforcing.media.video import write_mp4
from dummyforcing.method.plan import Plan
from dummyforcing.models.text_encoder import TextEncoder
from dummyforcing.models.wan import CausalWan
from dummyforcing.pipeline.request import Options, Request, choose_device, choose_dtype
from dummyforcing.pipeline.rollout import Rollout, find_skips
from dummyforcing.presets.preset import PIXEL_FRAMES_PER_FRAME
from dummyforcing.runtime.fused import Fp8, FusedWan, arrange
from dummyforcing.runtime.streams import Decoding, Mark
from dummyforcing.sampling.session import Observer
from dummyforcing.vae.codec import VideoDecoder
from dummyforcing.vae.small_decoder import TinyDecoder


@dataclass(frozen=True)
class Timings:
    """What a video, or a batch of them, took since its start."""

    pixel_frames: int = 0
    """Of all videos of the batch."""
    first_frame: float = 0.0
    """Seconds until the first pixel frames were there, encoding of the prompt included."""
    diffusion: float = 0.0
    """Seconds in the transformer. On a GPU, as its own clock has it, from the beginning to the end of each
    chunk; both this and `decode` are longer while the two share the GPU."""
    decode: float = 0.0
    """Seconds in the VAE and on the way to the main memory, likewise."""
    wall: float = 0.0
    """Seconds from the start of the first chunk until the pixel frames were there. On a CPU, the sum of
    `diffusion` and `decode`. On a GPU by the clock, and with what the caller does between chunks, since the
    GPU goes on meanwhile."""

    @property
    def fps(self) -> float:
        """Pixel frames per second of `wall`, diffusion and decoding together."""
        return self.pixel_frames / self.wall

    @property
    def fps_without_vae(self) -> float:
        """Pixel frames per second of `diffusion`."""
        return self.pixel_frames / self.diffusion


@dataclass(frozen=True)
class Chunk:
    """Some finished frames of a video, or of each video of a batch: a chunk, or a part of the first one."""

    frames: NDArray[np.uint8]
    """Pixel frames, RGB, `(B, n, H, W, 3)`."""
    timings: Timings
    """From the start of the video to the end of this chunk."""
    plans: tuple[Plan, ...]
    """What the heads see in the next chunk, one plan per video."""
    cache_bytes: int
    """Size of the KV cache of the whole batch."""
    measures: tuple[Measures, ...]
    """How each video has fared so far: drift, repetition, motion."""


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

    def __init__(
        self,
        files: ModelFiles,
        model: CausalWan,
        text: TextEncoder,
        vae: VideoDecoder,
        fused: FusedWan | None = None,
    ) -> None:
        self.files, self.model, self.text, self.vae, self.fused = files, model, text, vae, fused
        weight = model.patch_embedding.weight
        self.device, self.dtype = weight.device, weight.dtype

    @classmethod
    def load(
        cls,
        files: ModelFiles,
        device: torch.device,
        dtype: torch.dtype,
        offload: bool = False,
        fp8: Fp8 = "none",
        vae: Path | None = None,
    ) -> "Pipeline":
        """Download what is not here yet, and load the weights.

        Args:
            files: What to load.
            device: Where to compute.
            dtype: What to compute in.
            offload: Whether the text encoder runs in the main memory, and the VAE's weights come from there
                only while it works.
            fp8: What runs in float8; see `FusedWan`.
            vae: File of a small decoder to use instead of the VAE's own, see `TinyDecoder`.

        Raises:
            UserError: If files are missing or damaged, or there is no float8 here.
        """
        loras = [LoRA(fetch(place), scale) for place, scale in files.loras]
        parts = open_transformer(fetch(files.transformer), files.config, files.key, loras)
        base = fetch(files.base)
        encoder, tokenizer, full = (find_part(base, part) for part in ("text_encoder", "tokenizer", "vae"))
        decoder = VideoDecoder.load(full, device, files.vae_dtype(dtype), offload)
        if vae is not None:
            decoder = TinyDecoder.load_before(decoder, vae)
        model = fill(*parts, device, dtype)
        where = torch.device("cpu") if offload else device
        text = TextEncoder.load(encoder, tokenizer, model.config.text_len, where, dtype)
        return cls(files, model, text, decoder, arrange(model, fp8))

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
        last, fps = chunks[-1], self.files.preset.fps
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
        cache_dtype = self.fused.attention_dtype if self.fused else self.dtype
        return self.run(self.files.request(prompt, cache_dtype=cache_dtype, **options))

    def run(self, request: Request) -> Iterator[Chunk]:
        """Make what a request of this pipeline's `files` describes, chunk by chunk.

        Raises:
            UserError: If the memory does not suffice.
        """
        bands = self._require_memory(request)
        self.warn_of(request)
        return self._chunks(request, bands)

    def find_plan(self, request: Request) -> Plan:
        """Make as many chunks of the first video as its policy needs to classify the heads, without decoding.

        Raises:
            UserError: If the policy classifies nothing.
        """
        if request.policy.roles is None:
            raise UserError(f"Policy '{request.policy.name}' does not classify heads; take 'dummy'.")
        self.warn_of(request)
        rollout = self.rollout(request)
        while rollout.session.plan.chunk is None:
            rollout.next_latents()
        return rollout.session.plan

    def skipped_steps(self, request: Request) -> tuple[int, ...]:
        """The denoising steps of a chunk, from 0, that TeaCache leaves out."""
        skips = find_skips(self.files.preset, self.model, request) or ()
        return tuple(step for step, is_skipped in enumerate(skips) if is_skipped)

    def rollout(self, request: Request, observer: Observer | None = None) -> Rollout:
        """Begin the videos of a request of this pipeline's `files`.

        Raises:
            UserError: If the memory does not suffice.
        """
        return self._begin(request, self._require_memory(request), observer)

    def warn_of(self, request: Request) -> None:
        """Warn of what the model was never taught."""
        preset = self.files.preset
        longest = None if preset.overlap_frames else preset.max_frames
        if longest is not None and request.frames > longest:
            warnings.warn(
                f"Model '{preset.name}' was trained for videos of {preset.pixel_frames(longest)} "
                "pixel frames; a longer one may drift or freeze.",
                TrainedLengthWarning,
                stacklevel=3,
            )
        prompts = [*request.prompts, *(switch.prompt for switch in request.switches)]
        words = dict.fromkeys(word for prompt in prompts for word in self.text.unknown_words(prompt))
        if words:
            warnings.warn(
                f"Model '{preset.name}' does not know the word{'s' * (len(words) > 1)} "
                f"{', '.join(words)}; it knows {', '.join(self.text.known_words())}.",
                UnknownWordsWarning,
                stacklevel=3,
            )

    def _require_memory(self, request: Request) -> int:
        """Refuse what does not fit, and say in how many bands to decode what does."""
        offload = self.vae.moves
        return self.files.require_memory(request, self.dtype, self.device, loaded=True, offload=offload)

    def _begin(self, request: Request, bands: int, observer: Observer | None = None) -> Rollout:
        preset = self.files.preset
        return Rollout(preset, self.model, self.text, self.vae, request, observer, self.fused, bands)

    def _chunks(self, request: Request, bands: int) -> Iterator[Chunk]:
        """Make chunks; on a GPU, ask for the next one before the pixel frames of this one are waited for."""
        start = time.perf_counter()
        rollout, preset = self._begin(request, bands), self.files.preset
        monitors = [
            Monitor(preset.fps, PIXEL_FRAMES_PER_FRAME * preset.chunk_frames) for _ in request.prompts
        ]
        begin, timings = time.perf_counter(), Timings()
        asked: deque[tuple[_Asked, Decoding]] = deque()
        before: _Asked | None = None  # delivered while its commit pass may still go on
        for left in reversed(range(request.chunks)):
            newest = _Asked(rollout, self.device)
            asked.extend((newest, decoding) for decoding in newest.decodings)
            while len(asked) > (1 if left and rollout.overlaps else 0):
                chunk, decoding = asked.popleft()
                frames = decoding.wait()
                now, diffusion = time.perf_counter(), timings.diffusion
                if decoding is chunk.decodings[0]:
                    diffusion += chunk.ready.since(chunk.began)
                    diffusion += before.ended.since(before.ready) if before else 0
                if decoding is chunk.decodings[-1]:
                    before = chunk if asked else None
                    if before is None:
                        chunk.ended.wait()
                        diffusion += chunk.ended.since(chunk.ready)
                decode = timings.decode + decoding.ended.since(decoding.began)
                timings = Timings(
                    pixel_frames=timings.pixel_frames + frames.shape[0] * frames.shape[1],
                    first_frame=timings.first_frame or now - start,
                    diffusion=diffusion,
                    decode=decode,
                    wall=now - begin if self.device.type == "cuda" else diffusion + decode,
                )
                measures = tuple(monitor.see(video) for monitor, video in zip(monitors, frames, strict=True))
                yield Chunk(frames, timings, chunk.plans, chunk.cache_bytes, measures)


class _Asked:
    """A chunk that the device was asked for, and its pixel frames."""

    def __init__(self, rollout: Rollout, device: torch.device) -> None:
        self.began = Mark(device)
        self.decodings = rollout.next_frames()
        self.ready, self.ended = rollout.ready, Mark(device)
        self.plans, self.cache_bytes = tuple(rollout.session.plans), rollout.session.cache.nbytes


def load(
    name_or_path: str | Path = "tiny",
    *,
    weights: str | Path | None = None,
    base: str | Path | None = None,
    lora: str | Sequence[str] = (),
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    offload: bool = False,
    fp8: Fp8 = "none",
    vae: str | Path | None = None,
) -> Pipeline:
    """Load a model.

    Args:
        name_or_path: A bundled or public model, a folder in the bundled one's layout (`transformer/`,
            `text_encoder/`, `tokenizer/`, `vae/` and `preset.json`), or a preset file, TOML or JSON.
        weights: The transformer's file or folder, or `OWNER/NAME:FILE` on the Hub, instead of the
            model's own and its LoRA.
        base: Folder or Hub repository with text encoder, tokenizer and VAE, instead of the model's own.
        lora: LoRA files to merge into the transformer, each as FILE or FILE:SCALE.
        device: `auto` (a GPU if there is one), `cpu`, `cuda` or a torch device.
        dtype: `float32`, `bfloat16` or the torch dtype; bfloat16 on a GPU and float32 elsewhere by default.
        offload: Whether to spare the GPU's memory: the text encoder runs in the main memory, and the VAE's
            weights come from there only while it works.
        fp8: What runs in float8, for speed at some error: `none`, `linear` (the linear layers) or `all`
            (attention, too). A CPU emulates it, slowly.
        vae: A small decoder for models with the latents of Wan 2.1, faster than the VAE's own
            and with less detail: the file `taew2_1.pth` of TAEHV.

    Returns:
        The pipeline.

    Raises:
        UserError: If there is no such model, device or dtype, or files are missing, damaged or out of reach.
    """
    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    files = ModelFiles.open(name_or_path, weights=weights, base=base, lora=lora)
    return Pipeline.load(files, device, dtype, offload, fp8, None if vae is None else Path(vae))
