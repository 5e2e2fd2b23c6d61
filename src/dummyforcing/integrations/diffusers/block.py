"""The blocks of Dummy Forcing for diffusers' modular pipelines: a video, chunk by chunk.

    pipe = ModularPipeline.from_pretrained(FOLDER, trust_remote_code=True)
    pipe.update_components(**components, preset="self-forcing")
    videos = pipe(prompt="a red fox runs through snow", num_frames=81, output="videos")

Encode the prompt, then for each chunk denoise and decode, then join the frames. The components are those of
diffusers and transformers. Blocks hold nothing of a video: what is in the making lives in the loop's state.
"""

import ast
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.modular_pipelines import (
    LoopSequentialPipelineBlocks,
    ModularPipelineBlocks,
    PipelineState,
    SequentialPipelineBlocks,
)
from diffusers.modular_pipelines.modular_pipeline import BlockState
from diffusers.modular_pipelines.modular_pipeline_utils import (
    ComponentSpec,
    ConfigSpec,
    InputParam,
    OutputParam,
)
from transformers import AutoTokenizer, UMT5EncoderModel

from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.errors import BadRequest
from dummyforcing.files.records import nearest
from dummyforcing.models.text_encoder import TextEncoder, require_text_parts
from dummyforcing.pipeline.option import Documented, documented, one_option
from dummyforcing.pipeline.options import CallOptions, VideoOptions
from dummyforcing.pipeline.outputs import as_output
from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from dummyforcing.pipeline.request import check_prompts
from dummyforcing.vae.codec import VideoDecoder

TRANSFORMER = ComponentSpec("transformer", WanTransformer3DModel, subfolder="transformer")
VAE = ComponentSpec("vae", AutoencoderKLWan, subfolder="vae")
TEXT_ENCODER = ComponentSpec("text_encoder", UMT5EncoderModel, subfolder="text_encoder")
TOKENIZER = ComponentSpec("tokenizer", AutoTokenizer, subfolder="tokenizer")
PRESET = ConfigSpec(
    "preset",
    default="self-forcing",
    description="How the transformer was trained: a bundled or public model, a folder or a preset file.",
)

Outcome = tuple[Any, PipelineState]
"""The components and the state."""

KINDS = ("np", "pt", "pil")
"""Of frames; latents have an output of their own."""

OPTIONS = [one for one in documented(VideoOptions) if one.name != "prompt_embeds"]


class EncodePrompt(ModularPipelineBlocks):
    """Makes embeddings of one prompt, or of several for a batch."""

    model_name = "dummy-forcing"

    @property
    def description(self) -> str:
        """What it does."""
        return "Encode prompts as the transformer was trained with them."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        """The text encoder, and the transformer, which says how many tokens it reads."""
        return [TEXT_ENCODER, TOKENIZER, TRANSFORMER]

    @property
    def expected_configs(self) -> list[ConfigSpec]:
        """The preset."""
        return [PRESET]

    @property
    def inputs(self) -> list[InputParam]:
        """The prompts."""
        text = "What the video shows; a list makes a batch."
        return [InputParam("prompt", required=True, type_hint=str | list[str], description=text)]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """Their embeddings."""
        text = "(B, text_len, text_dim), zero in padded rows."
        return [OutputParam("prompt_embeds", type_hint=torch.Tensor, description=text)]

    @torch.no_grad()
    def __call__(self, components: Any, state: PipelineState) -> Outcome:
        """Encode.

        Raises:
            UserError: If there is no text encoder, no tokenizer or no prompt.
        """
        require_text_parts(components.text_encoder, components.tokenizer)
        block = self.get_block_state(state)
        config = ModelFiles.open(components.config.preset, transformer=components.transformer).config
        text = TextEncoder(components.text_encoder.eval(), components.tokenizer, config.text_len)
        block.prompt_embeds = text.encode(check_prompts(block.prompt))
        self.set_block_state(state, block)
        return components, state


class DenoiseChunk(ModularPipelineBlocks):
    """Denoises the next chunk, and makes it past: a step of `MakeChunks`."""

    model_name = "dummy-forcing"

    @property
    def description(self) -> str:
        """What it does."""
        return (
            "Denoise the next chunk of `rollout` and commit it to the KV cache; its latents are `chunk`, "
            "(B, F, C, h, w) float32."
        )

    def __call__(self, components: Any, block: BlockState) -> tuple[Any, BlockState]:
        """Denoise."""
        block.chunk = block.rollout.next_latents()
        return components, block


class DecodeChunk(ModularPipelineBlocks):
    """Decodes the latents of the newest chunk: a step of `MakeChunks`."""

    model_name = "dummy-forcing"

    @property
    def description(self) -> str:
        """What it does."""
        return "Decode `chunk`, going on from the chunk before."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        """The VAE."""
        return [VAE]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """Pixel frames."""
        text = "Pixel frames of every chunk, (B, n, H, W, 3) uint8."
        return [OutputParam("frames", type_hint=list[torch.Tensor], description=text)]

    def __call__(self, components: Any, block: BlockState) -> tuple[Any, BlockState]:
        """Decode."""
        if block["frames"] is None:
            block.frames, block.decoder = [], VideoDecoder(components.vae).stream()
        block.frames.append(block.decoder.decode(block.chunk).cpu())
        return components, block


class MakeChunks(LoopSequentialPipelineBlocks):
    """Begins a video, and runs its blocks for every chunk of it.

    Blocks of its own or of others find in their state the `rollout`, which can be steered with
    `rollout.set_prompt(...)`, and behind `DenoiseChunk` the newest latents, `chunk`.
    """

    model_name = "dummy-forcing"
    block_classes: ClassVar = [DenoiseChunk, DecodeChunk]
    block_names: ClassVar = ["denoise", "decode"]

    @property
    def description(self) -> str:
        """What it does."""
        return "Make a video chunk by chunk; each attention head sees only the past frames that it uses."

    @property
    def loop_expected_components(self) -> list[ComponentSpec]:
        """What a rollout is made of."""
        return [TRANSFORMER, VAE]

    @property
    def loop_expected_configs(self) -> list[ConfigSpec]:
        """The preset."""
        return [PRESET]

    @property
    def loop_inputs(self) -> list[InputParam]:
        """The embeddings, and all options of a video; what is not given is as the model has it."""
        text = "(B, text_len, text_dim), zero in padded rows."
        embeds = InputParam("prompt_embeds", required=True, type_hint=torch.Tensor, description=text)
        return [embeds, *(_input(one) for one in OPTIONS)]

    @property
    def loop_intermediate_outputs(self) -> list[OutputParam]:
        """What is known of the whole video in the end."""
        latents = "Of all chunks, as diffusers has them: (B, C, F, h, w) float32."
        plans = "What the heads of each video saw at the end."
        return [
            OutputParam("latents", type_hint=torch.Tensor, description=latents),
            OutputParam("plans", type_hint=tuple, description=plans),
        ]

    @torch.no_grad()
    def __call__(self, components: Any, state: PipelineState) -> Outcome:
        """Make all chunks.

        Raises:
            UserError: If anything that was asked for cannot be done.
        """
        block = self.get_block_state(state)
        pipe = DummyForcingPipeline(
            components.transformer,
            components.vae,
            getattr(components, "text_encoder", None),  # for prompts that change on the way
            getattr(components, "tokenizer", None),
            components.config.preset,
        )
        asked = {one.name: block[one.name] for one in OPTIONS if block[one.name] is not None}
        block.rollout = pipe.start(prompt_embeds=block.prompt_embeds, **asked)
        _require_one_part(pipe, block.rollout.request.length)
        chunks = []
        while not block.rollout.is_done:
            components, block = self.loop_step(components, block)
            chunks.append(block.chunk)
        block.rollout.require_finite()
        block.latents = torch.cat(chunks, 1).transpose(1, 2)
        block.plans = block.rollout.sampler.plans
        self.set_block_state(state, block)
        return components, state


def _input(one: Documented) -> InputParam:
    """An option as diffusers tells of it."""
    return InputParam(one.name, type_hint=ast.unparse(one.annotation), description=one.text)


def _require_one_part(pipe: DummyForcingPipeline, frames: int) -> None:
    """Refuse videos whose parts are decoded with frames of the part before."""
    preset = pipe.files.preset
    if preset.overlap_frames and preset.max_frames and frames > preset.max_frames:
        raise BadRequest(
            f"Model '{preset.name}' makes a video of {frames} latent frames in parts that overlap",
            f"take {preset.pixel_frames(preset.max_frames)} pixel frames at most, or DummyForcingPipeline",
            "num_frames",
        )


class JoinFrames(ModularPipelineBlocks):
    """Joins the pixel frames of all chunks to videos."""

    model_name = "dummy-forcing"

    @property
    def description(self) -> str:
        """What it does."""
        return "Join pixel frames to videos."

    @property
    def inputs(self) -> list[InputParam]:
        """Pixel frames, and how they are wanted."""
        kind = one_option(CallOptions, "output_type")
        return [
            InputParam("frames", required=True, type_hint=list[torch.Tensor]),
            InputParam(
                "output_type", default=kind.default, type_hint=str, description=f"{', '.join(KINDS)}."
            ),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """The videos."""
        return [OutputParam("videos", description="As `output_type` says, one for each prompt.")]

    def __call__(self, components: Any, state: PipelineState) -> Outcome:
        """Join.

        Raises:
            BadRequest: If there is no such kind of frames.
        """
        block = self.get_block_state(state)
        if block.output_type not in KINDS:
            raise BadRequest(
                f"There is no output_type {block.output_type!r} here", nearest(block.output_type, KINDS)
            )
        block.videos = as_output(torch.cat(block.frames, 1).numpy(), block.output_type)
        self.set_block_state(state, block)
        return components, state


class DummyForcingBlocks(SequentialPipelineBlocks):
    """Text to video: what `DummyForcingPipeline` makes of the same prompt, seed and options."""

    model_name = "dummy-forcing"
    block_classes: ClassVar = [EncodePrompt, MakeChunks, JoinFrames]
    block_names: ClassVar = ["text", "chunks", "video"]
    _requirements: ClassVar = {"dummyforcing": ">=0.2.0.dev0"}

    @property
    def description(self) -> str:
        """What it does."""
        return "Autoregressive text to video whose attention heads keep only the past that they use."
