"""The public API: a loaded model, and the videos that it makes.

    pipe = DummyForcingPipeline.from_pretrained("tiny")
    out = pipe("a red ball bounces on a green floor")         # out.frames, out.plans, out.timings
    for chunk in pipe.stream("a red ball bounces"): ...       # pixel frames as they are finished
    run = pipe.start("a red ball bounces", num_frames=None)   # steer it, fork it, save it: see `Rollout`

`load` and `generate` are conveniences with the same options: `load("tiny").generate("...").save("a.mp4")`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from dummyforcing.checkpoints.convert import save_model
from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.errors import BadRequest
from dummyforcing.method.plan import Plan
from dummyforcing.models.text_encoder import TextEncoder
from dummyforcing.models.wan import CausalWan
from dummyforcing.pipeline.assembly import find_skips
from dummyforcing.pipeline.choices import choose_policy
from dummyforcing.pipeline.devices import choose_device, choose_dtype
from dummyforcing.pipeline.follower import load_together
from dummyforcing.pipeline.loading import load_parts, take_parts
from dummyforcing.pipeline.memory import require_memory
from dummyforcing.pipeline.option import shorten
from dummyforcing.pipeline.options import CallOptions, LoadOptions, VideoOptions, choose, with_options
from dummyforcing.pipeline.outputs import Chunk, Video, VideoOutput, as_output, join
from dummyforcing.pipeline.parts import Parts
from dummyforcing.pipeline.remarks import remarks, warn
from dummyforcing.pipeline.request import Request, check_request
from dummyforcing.pipeline.rollout import Rollout
from dummyforcing.pipeline.saved import read_rollout, require_code, with_policy
from dummyforcing.runtime.fused import Fp8, FusedWan, arrange
from dummyforcing.sampling.passes import Observer
from dummyforcing.vae.codec import VideoDecoder

Prompt = str | Sequence[str] | None


class DummyForcingPipeline:
    """A loaded model; it holds no state of any video, so several rollouts may run side by side.

    On a CPU they may do so in several threads. On a GPU one thread makes the chunks of all of them, as CUDA
    graphs share memory. A single rollout belongs to one thread at a time anywhere.
    """

    def __init__(
        self,
        transformer: WanTransformer3DModel | CausalWan,
        vae: AutoencoderKLWan,
        text_encoder: UMT5EncoderModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        preset: str | Path = "self-forcing",
        fp8: Fp8 = "none",
    ) -> None:
        """Put loaded components together; `from_pretrained` loads them.

        Each stays where it is, in its dtype; the VAE and the text encoder go into evaluation mode. The
        transformer's weights are shared, but for the few that diffusers keeps in another dtype than the rest,
        on a GPU those that are laid side by side for speed (queries', keys' and values'), and on a CPU those
        that are not aligned.

        Args:
            transformer: Diffusers', or that of another pipeline's `components`.
            vae: In whatever dtype it shall run.
            text_encoder: None: a video is asked for by its `prompt_embeds`.
            tokenizer: Of the text encoder.
            preset: How the transformer was trained: the name of a bundled or public model, a folder or a
                preset file.
            fp8: See `LoadOptions`.

        Raises:
            UserError: If there is no such preset, or components do not suit each other.
        """
        kinds: dict[str, Any] = {"transformer": (WanTransformer3DModel, CausalWan), "vae": AutoencoderKLWan}
        for name, part in (("transformer", transformer), ("vae", vae)):
            if not isinstance(part, kinds[name]):
                raise BadRequest(
                    f"{name}={shorten(part)} is no loaded {name} of Wan",
                    "give one, or take from_pretrained() for what is to be loaded",
                    name,
                )
        files = ModelFiles.open(preset, transformer=transformer)
        self._set(files, take_parts(files, transformer, vae, text_encoder, tokenizer, fp8))

    @classmethod
    def from_parts(
        cls,
        files: ModelFiles,
        model: CausalWan,
        text: TextEncoder | None,
        vae: VideoDecoder,
        fused: FusedWan | None = None,
    ) -> "DummyForcingPipeline":
        """Put parts together as they are inside.

        Args:
            files: Preset and sizes of the model.
            model: The transformer.
            text: The text encoder with its tokenizer; None: prompts come as embeddings.
            vae: Decodes and encodes.
            fused: The transformer arranged for speed; None: it runs as it is.
        """
        return cls.from_loaded(files, Parts(files.preset, model, text, vae, fused))

    @classmethod
    def from_loaded(cls, files: ModelFiles, parts: Parts) -> "DummyForcingPipeline":
        """Make the pipeline of a loaded model.

        Args:
            files: Preset and sizes of the model.
            parts: Of the model.
        """
        pipeline = cls.__new__(cls)
        pipeline._set(files, parts)
        return pipeline

    def _set(self, files: ModelFiles, parts: Parts) -> None:
        self.files = replace(files, decoder=parts.vae.sizes)  # that of a VAE that was handed in, too
        self.parts = parts
        """The parts of the model as rollouts need them."""

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path = "tiny", **options: Any) -> "DummyForcingPipeline":
        """Download what is not here yet, and load a model.

        Args:
            name_or_path: A bundled or public model, a folder in the bundled one's layout (`transformer/`,
                `text_encoder/`, `tokenizer/`, `vae/` and `preset.json`), or a preset file, TOML or JSON.
            **options: See `LoadOptions`.

        Raises:
            UserError: If there is no such model, device or dtype, or files are missing, damaged or not to be
                had.
        """
        chosen = choose(LoadOptions, options)
        files = ModelFiles.open(
            name_or_path,
            weights=chosen.weights,
            base=chosen.base,
            lora=chosen.lora,
            transformer=chosen.transformer,
        )
        return cls.from_files(files, chosen)

    @classmethod
    def from_files(cls, files: ModelFiles, options: LoadOptions) -> "DummyForcingPipeline":
        """Load a model whose files are found already.

        Raises:
            UserError: If files are missing or damaged, or there is no such device, dtype or float8 here.
        """
        parts = load_together(files, options) if options.gpus > 1 else load_parts(files, options)
        return cls.from_loaded(files, parts)

    @property
    def model(self) -> CausalWan:
        """The transformer."""
        return self.parts.model

    @property
    def encoder(self) -> TextEncoder | None:
        """The text encoder with its tokenizer; None: prompts come as embeddings."""
        return self.parts.encoder

    @property
    def vae(self) -> VideoDecoder:
        """Decodes and encodes."""
        return self.parts.vae

    @property
    def fused(self) -> FusedWan | None:
        """The transformer arranged for speed; None: it runs as it is."""
        return self.parts.fused

    @property
    def device(self) -> torch.device:
        """Device of the transformer."""
        return self.parts.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the transformer."""
        return self.model.patch_embedding.weight.dtype

    @property
    def cache_dtype(self) -> torch.dtype:
        """Dtype of keys and values."""
        return self.fused.attention_dtype if self.fused else self.dtype

    def __repr__(self) -> str:
        precision = str(self.dtype).removeprefix("torch.")
        return f"DummyForcingPipeline({self.files.preset.name}, on {self.device}, {precision})"

    @property
    def components(self) -> dict[str, Any]:
        """The parts of the model, by diffusers' names; what there is none of is None."""
        return {
            "transformer": self.model,
            "text_encoder": self.encoder and self.encoder.model,
            "tokenizer": self.encoder and self.encoder.tokenizer,
            "vae": self.vae.vae,
        }

    @property
    def option_defaults(self) -> dict[str, Any]:
        """Defaults of options that differ with this model."""
        return dict(self.files.preset.options)

    @property
    def text(self) -> TextEncoder:
        """The text encoder with its tokenizer.

        Raises:
            BadRequest: If the pipeline was put together without one.
        """
        return self.parts.text

    def to(
        self,
        device: str | torch.device | torch.dtype | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> "DummyForcingPipeline":
        """Move the model to another device, or compute in another precision; no rollout may be in progress.

        Returns:
            This pipeline.

        Raises:
            NoSuchDevice: If there is no such device, or it has not the float8 that was asked for.
            BadRequest: If there is no such dtype, or the model is on several GPUs.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        where = self.device if device is None else choose_device(device)
        precision = self.dtype if dtype is None else choose_dtype(dtype, where)
        if (where, precision) == (self.device, self.dtype):
            return self
        if self.parts.team is not None:
            raise BadRequest("A model on several GPUs stays there", "load it where it shall be", "device")
        fp8 = self.fused.fp8 if self.fused else "none"
        self.parts = replace(self.parts, fused=None)
        self.model.to(where, precision)
        if self.encoder is not None:
            self.encoder.model.to("cpu" if self.vae.offload else where, precision)
        vae = self.vae.at(where, self.files.vae_dtype(precision))
        self.parts = replace(self.parts, vae=vae, fused=arrange(self.model, fp8))
        return self

    def close(self) -> None:
        """End the processes of a model on several GPUs, which cannot be used any more; else do nothing."""
        if self.parts.team is not None:
            self.parts.team.end()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model as a folder of safetensors, whole or not at all; `from_pretrained` reads it.

        So do diffusers and transformers, part by part: the folder is laid out as a pipeline of diffusers is,
        and the transformer has diffusers' names and config there.

        Args:
            folder: A new folder.

        Raises:
            BadFile: If it exists or cannot be written.
            BadRequest: If there is no text encoder to write.
        """
        save_model(self.files.preset, self.model, self.text, self.vae.vae, Path(folder))

    @with_options(CallOptions)
    def __call__(self, prompt: Prompt, options: CallOptions) -> VideoOutput:
        """Make a video, or one for each prompt of a list.

        Args:
            prompt: What the video shows. In a batch, sample i is what its prompt gives alone with
                `seed + i`, up to rounding.
            options: See `CallOptions`.

        Returns:
            The finished videos.

        Raises:
            UserError: If anything that was asked for cannot be done.
        """
        rollout = self._begin(self._finite(prompt, options))
        fps, report = self.files.preset.fps, options.callback_on_chunk_end
        with tqdm(
            total=rollout.request.length, unit="latent", disable=None if options.progress else True
        ) as bar:
            if options.output_type == "latent":
                latents = []
                while not rollout.is_done:
                    latents.append(rollout.next_latents())
                    bar.update(latents[-1].shape[1])
                    if report:
                        report(rollout, len(latents) - 1, latents[-1])
                rollout.require_finite()
                plans, cache = rollout.sampler.plans, rollout.sampler.cache.nbytes
                return VideoOutput(torch.cat(latents, 1), fps, plans, rollout.timings, cache)
            pieces: list[Chunk] = []
            for piece in rollout:
                pieces.append(piece)
                bar.update(rollout.frames - bar.n)
                if report:
                    report(rollout, len(pieces) - 1, piece)
        video = join(pieces)
        frames = as_output(video.frames, options.output_type)
        return VideoOutput(frames, fps, video.plans, video.timings, video.cache_bytes)

    @overload
    def generate(self, prompt: str, **options: Any) -> Video: ...

    @overload
    def generate(self, prompt: Sequence[str], **options: Any) -> list[Video]: ...

    @overload
    def generate(self, prompt: None = None, **options: Any) -> Video | list[Video]: ...

    def generate(self, prompt: Prompt = None, **options: Any) -> Video | list[Video]:
        """Make a video as pixel frames in 8 bits, or one for each prompt of a list.

        Args:
            prompt: What the video shows. In a batch, sample i is what its prompt gives alone with
                `seed + i`, up to rounding.
            **options: See `VideoOptions`.

        Returns:
            The finished video or videos.

        Raises:
            UserError: If anything that was asked for cannot be done.
        """
        chosen = choose(VideoOptions, options, self.option_defaults)
        chunks = list(self._begin(self._finite(prompt, chosen)))
        last, fps = chunks[-1], self.files.preset.fps
        videos = [
            Video(frames, fps, last.timings, plan, last.cache_bytes)
            for frames, plan in zip(
                np.concatenate([chunk.frames for chunk in chunks], axis=1), last.plans, strict=True
            )
        ]
        is_batch = len(videos) > 1 or (isinstance(prompt, Sequence) and not isinstance(prompt, str))
        return videos if is_batch else videos[0]

    @with_options(VideoOptions)
    def stream(self, prompt: Prompt, options: VideoOptions) -> Iterator[Chunk]:
        """Make the same video as `generate`, and hand out its pixel frames as they are finished.

        Everything is checked before the first chunk is asked for.

        Raises:
            UserError: If anything that was asked for cannot be done.
        """
        return self.run(self.request(prompt, options))

    @with_options(VideoOptions)
    def start(self, prompt: Prompt, options: VideoOptions) -> Rollout:
        """Begin a video that can be steered, forked and saved; it iterates over its chunks.

        Raises:
            UserError: If anything that was asked for cannot be done.
        """
        return self._begin(self.request(prompt, options))

    def resume(self, path: str | Path, policy: object = None) -> Rollout:
        """Take up a rollout that was saved: it goes on bit by bit as it would have.

        Args:
            path: From `Rollout.save`, of this model.
            policy: The same as at the start, if it is code of your own that heads are still to be classified
                by: code is not saved.

        Raises:
            BadFile: If the file is damaged or of another version, or was made with another model.
            BadRequest: If the policy is another one, or is needed and not given.
            NotEnoughMemory: If the memory does not suffice.
        """
        state = read_rollout(Path(path), self.parts)
        if policy is not None:
            state = with_policy(state, choose_policy(self.files.preset, policy, state.request.frames))
        require_code(state)
        return Rollout.from_state(state, self.parts, self._require_memory(state.request))

    # --- requests: what the command line and studies work with -------------------------------------------

    def request(self, prompt: Prompt, options: VideoOptions) -> Request:
        """Check what is asked of this model.

        Raises:
            UserError: If anything of it cannot be done.
        """
        return check_request(self.files, prompt, options, self.cache_dtype)

    def run(self, request: Request) -> Iterator[Chunk]:
        """Make what a request describes, chunk by chunk.

        Raises:
            NotEnoughMemory: If the memory does not suffice.
        """
        tiles = self._require_memory(request)
        self.warn_of(request)
        return self._chunks(request, tiles)

    def in_turns(self, requests: Sequence[Request]) -> Iterator[tuple[Chunk, ...]]:
        """Make videos of equal length, in turns: all meet the same state of the machine.

        Their timings can be compared. Diffusion and decoding count one after the other, also on a GPU, which
        would do them side by side for a video by itself.

        Raises:
            NotEnoughMemory: If the memory does not suffice for all of them.
        """
        streams = []
        for request in requests:
            tiles = self._require_memory(request, [other for other in requests if other is not request])
            streams.append(self._chunks(request, tiles))
        self.warn_of(requests[0])
        return (tuple(map(_by_itself, pieces)) for pieces in zip(*streams, strict=True))

    def rollout(self, request: Request, observer: Observer | None = None) -> Rollout:
        """Begin the videos of a request, without warnings.

        Raises:
            NotEnoughMemory: If the memory does not suffice.
        """
        return Rollout(self.parts, request, self._require_memory(request), observer)

    def find_plan(self, request: Request) -> Plan:
        """Make as many chunks of the first video as its policy needs to classify the heads, without decoding.

        Raises:
            BadRequest: If the policy classifies nothing.
        """
        if request.policy.roles is None:
            raise BadRequest(
                f"Policy '{request.policy.name}' does not classify heads", "take 'dummy'", "policy"
            )
        self.warn_of(request)
        rollout = self.rollout(request)
        while rollout.sampler.plan.chunk is None:
            rollout.next_latents()
        rollout.require_finite()
        return rollout.sampler.plan

    def skipped_steps(self, request: Request) -> tuple[int, ...]:
        """The denoising steps of a chunk, from 0, that TeaCache leaves out."""
        skips = find_skips(self.files.preset, self.model, request) or ()
        return tuple(step for step, is_skipped in enumerate(skips) if is_skipped)

    def warn_of(self, request: Request) -> None:
        """Warn of what can be done, but perhaps not as it is meant."""
        warn(remarks(self.parts, request))

    def _begin(self, request: Request) -> Rollout:
        rollout = self.rollout(request)
        self.warn_of(request)
        return rollout

    def _chunks(self, request: Request, tiles: int) -> Iterator[Chunk]:
        yield from Rollout(self.parts, request, tiles)

    def _finite(self, prompt: Prompt, options: VideoOptions) -> Request:
        if options.num_frames is None and options.seconds is None:
            raise BadRequest(
                "A video without end is never finished", "take start() or stream() for it", "num_frames"
            )
        return self.request(prompt, options)

    def _require_memory(self, request: Request, beside: Sequence[Request] = ()) -> int:
        """Refuse what does not fit, and say in how many tiles to decode what does."""
        ranks = self.parts.ranks
        return require_memory(
            self.files,
            request,
            self.dtype,
            self.device,
            beside=beside,
            loaded=True,
            offload=self.vae.moves,
            gpus=ranks.size if ranks else 1,
        )


def _by_itself(piece: Chunk) -> Chunk:
    """Pixel frames with a clock that stands still while other videos are worked on."""
    timings = piece.timings
    return replace(piece, timings=replace(timings, wall=timings.diffusion + timings.decode))


def load(name_or_path: str | Path = "tiny", **options: Any) -> DummyForcingPipeline:
    """Load a model: `DummyForcingPipeline.from_pretrained`."""
    return DummyForcingPipeline.from_pretrained(name_or_path, **options)
