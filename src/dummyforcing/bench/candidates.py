"""The pipelines that are measured: real weights, or random ones of the same shapes without any file."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from dummyforcing.checkpoints.components import quiet
from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.models.text_encoder import PromptTokens, TextEncoder
from dummyforcing.models.wan import CausalWan, ModelConfig
from dummyforcing.pipeline.follower import make_together
from dummyforcing.pipeline.options import LoadOptions
from dummyforcing.pipeline.parts import Parts
from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from dummyforcing.pipeline.team import Team
from dummyforcing.runtime.fused import Fp8, arrange
from dummyforcing.runtime.ranks import Ranks
from dummyforcing.vae.codec import VideoDecoder

PROMPT = "a red ball bounces on a green floor"
SEED = 0


@dataclass(frozen=True)
class Candidate:
    """A pipeline, and what its weights take of the GPU."""

    pipeline: DummyForcingPipeline
    weight_bytes: int
    """Transformer as it is computed with, and VAE; 0 on a CPU."""


class EncodedPrompt(TextEncoder):
    """Gives one prompt's embeddings for every prompt: the prompt is encoded already."""

    def __init__(self, embeddings: Tensor) -> None:
        self.embeddings, self.text_len = embeddings, embeddings.shape[1]
        self.tokenizer = None

    def encode(self, prompts: str | Sequence[str]) -> Tensor:
        """The same for all, `(B, text_len, text_dim)`."""
        return self.embeddings.expand(1 if isinstance(prompts, str) else len(prompts), -1, -1)

    @property
    def reader(self) -> PromptTokens:
        """Itself: there is no tokenizer."""
        return self

    def unknown_words(self, prompt: str) -> list[str]:
        """None: nothing is read."""
        return []

    def known_words(self) -> list[str]:
        """None that it was taught: nothing is read."""
        return []

    def without_effect(self, prompt: str) -> str:
        """Nothing: no text is read."""
        return ""


def build_candidates(
    files: ModelFiles, fp8: Sequence[Fp8], device: torch.device, dtype: torch.dtype, random: bool
) -> dict[Fp8, Candidate]:
    """Make a pipeline for every FP8 mode; they share model and VAE.

    Args:
        files: Of the model.
        fp8: The modes.
        device: Where to compute.
        dtype: What to compute in.
        random: Whether to make the weights up.

    Returns:
        The pipelines by mode; they know all words and encode no prompt.

    Raises:
        UserError: If files are missing or damaged, or there is no FP8 here.
    """
    before = _allocated(device)
    if random:
        embeddings = _normal((1, files.config.text_len, files.config.text_dim), device, dtype, SEED + 1)
        vae = VideoDecoder(random_vae(device, files.vae_dtype(dtype)))
        base = DummyForcingPipeline.from_parts(
            files, random_model(files.config, device, dtype), EncodedPrompt(embeddings), vae
        )
    else:
        loaded = DummyForcingPipeline.from_files(files, LoadOptions(device=device, torch_dtype=dtype))
        base = DummyForcingPipeline.from_parts(
            files, loaded.model, EncodedPrompt(loaded.text.encode(PROMPT)), loaded.vae
        )
        del loaded  # and with it the text encoder
    if device.type == "cuda":
        torch.cuda.empty_cache()
    shared = _allocated(device) - before
    candidates = {}
    for mode in fp8:
        before = _allocated(device)
        pipeline = _with_fp8(base, mode)
        candidates[mode] = Candidate(pipeline, shared + _allocated(device) - before)
    return candidates


def build_on_several(
    files: ModelFiles, fp8: Sequence[Fp8], team: Team, device: torch.device, dtype: torch.dtype
) -> dict[Fp8, Candidate]:
    """Make a pipeline of random weights on several GPUs for every FP8 mode, each with a model of its own.

    Args:
        files: Of the model.
        fp8: The modes.
        team: The processes of the other GPUs.
        device: Of this one.
        dtype: What to compute in.

    Raises:
        UserError: If there is no FP8 here, or a process fails.
    """
    candidates = {}
    for mode in fp8:
        before = _allocated(device)
        parts = make_together(team, partial(random_parts, files, mode, device.type, dtype))
        candidates[mode] = Candidate(
            DummyForcingPipeline.from_loaded(files, parts), _allocated(device) - before
        )
    return candidates


def random_parts(files: ModelFiles, fp8: Fp8, kind: str, dtype: torch.dtype, ranks: Ranks) -> Parts:
    """A model of random weights on the GPU of this process, one of several."""
    device = torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)
    embeddings = _normal((1, files.config.text_len, files.config.text_dim), device, dtype, SEED + 1)
    vae = VideoDecoder(random_vae(device, files.vae_dtype(dtype)))
    vae.ranks = ranks
    model = random_model(files.config, device, dtype)
    return Parts(files.preset, model, EncodedPrompt(embeddings), vae, arrange(model, fp8), ranks)


def _with_fp8(base: DummyForcingPipeline, mode: Fp8) -> DummyForcingPipeline:
    """The same pipeline in another precision of its linear maps and attention."""
    return DummyForcingPipeline.from_parts(
        base.files, base.model, base.text, base.vae, arrange(base.model, mode)
    )


def random_model(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> CausalWan:
    """A transformer of normal weights of variance 1 / fan-in, made where it runs."""
    with torch.device("meta"):
        model = CausalWan(config)
    model = model.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    for number, (name, weight) in enumerate(model.named_parameters()):
        if "norm" in name and name.endswith("weight"):
            weight.fill_(1)
        elif name.endswith("bias"):
            weight.zero_()
        else:
            fan_in = config.dim if name.endswith("modulation") else weight[0].numel()
            weight.copy_(_normal(weight.shape, device, dtype, SEED + number) * fan_in**-0.5)
    return model


def random_vae(device: torch.device, dtype: torch.dtype) -> AutoencoderKLWan:
    """The VAE of all Wan 2.1 models with the weights that its layers begin with."""
    with torch.random.fork_rng(), torch.device(device), quiet():
        torch.manual_seed(SEED)
        return AutoencoderKLWan().to(dtype).eval().requires_grad_(False)


def _normal(shape: Sequence[int], device: torch.device, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(*shape, device=device, dtype=dtype, generator=generator)


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
