"""Checkouts of public repositories, to be run as they are: what tests and measurements put around them.

Their transformers get random weights, their text encoder and VAE are stand-ins, and packages that their
modules import without need are made of nothing where they are missing.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import diffusers.configuration_utils  # this and the next ones before the stubs, which they take for real
import diffusers.models.modeling_utils  # noqa: F401
import torch
import transformers  # noqa: F401
from torch import Tensor, nn

NOT_NEEDED = {
    "accelerate", "antlr4", "clip", "cv2", "dashscope", "decord", "dominate", "dotenv", "easydict", "einops",
    "flash_attn", "ftfy", "gradio", "imageio", "imageio_ffmpeg", "lmdb", "moviepy", "msgpack", "nvtx",
    "omegaconf", "open_clip", "peft", "pycocotools", "sentencepiece", "skimage", "skvideo", "torchao",
    "torchvision", "wandb", "xfuser",
}  # fmt: skip
"""Packages that their modules import, where they are not there."""

Kernel = Callable[..., Tensor]
"""`kernel(q, k, v) -> out`, all `(B, L, H, D)`; may be given more, which stands for the defaults."""


class Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds packages that are not there, and makes them of nothing."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Find one of `NOT_NEEDED`."""
        known = name.partition(".")[0] in NOT_NEEDED
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec: Any) -> Any:
        """Make it."""
        module = MagicMock(name=spec.name)
        module.__spec__, module.__path__, module.__name__ = spec, [], spec.name
        return module

    def exec_module(self, module: Any) -> None:
        """Nothing is in it."""


class TextEncoder(nn.Module):
    """Embeds a prompt by its letters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)
        """Where the embeddings go, and in which dtype."""

    def forward(self, text_prompts: Sequence[str]) -> dict[str, Tensor]:
        """Embed prompts, `(B, 512, width)`."""
        made = [torch.Generator().manual_seed(sum(map(ord, text))) for text in text_prompts]
        embeds = torch.stack([torch.randn(512, self.width, generator=one) for one in made])
        return {"prompt_embeds": embeds.to(self.place)}


class ShownLatents(nn.Module):
    """Stands for a VAE: shows the latents."""

    def decode_to_pixel(self, latents: Tensor, use_cache: bool = False) -> Tensor:
        """Nothing is decoded."""
        return latents

    decode_to_pixel_chunk = decode_to_pixel


def put_on_path(path: str) -> None:
    """Let the modules of a checkout be imported; one checkout a process, they call their packages alike."""
    sys.path.insert(0, path)
    sys.meta_path.append(Stubs())


def transformer(
    package: str, kernel: Kernel, tokens: int, *, infinite: bool = False, base: str = "", **sizes: Any
) -> Any:
    """The transformer of the checkout that is on the path, with weights that are not set.

    Args:
        package: Of its modules, such as `wan.modules`.
        kernel: What computes attention, in place of kernels that want a package or compute in bfloat16.
        tokens: Of a latent frame; their attention is made for 1560.
        infinite: LongLive's other one.
        base: Package of the modules that are not causal; empty: the same.
        **sizes: Of the model.
    """
    causal = importlib.import_module(f"{package}.causal_model{'_infinity' if infinite else ''}")
    for module in (causal, importlib.import_module(f"{base or package}.model")):
        for name in ("attention", "flash_attention"):
            if hasattr(module, name):
                setattr(module, name, kernel)
    model = causal.CausalWanModel(**sizes)
    for block in model.blocks:
        for name, value in vars(block.self_attn).items():
            if isinstance(value, int) and not isinstance(value, bool) and value > 0 and value % 1560 == 0:
                setattr(block.self_attn, name, value // 1560 * tokens)
    return model.eval().requires_grad_(False)


def pipeline(
    model: Any,
    steps: Sequence[float],
    chunk: int,
    tokens: int,
    *,
    module: str = "causal_inference",
    kind: str = "CausalInferencePipeline",
    settings: Mapping[str, Any] = MappingProxyType({}),
    **model_kwargs: Any,
) -> Any:
    """A pipeline of the checkout that is on the path around a transformer, for a shift of 5.

    Args:
        model: From `transformer`.
        steps: Noise levels, as in its configurations.
        chunk: Latent frames of a chunk.
        tokens: Of a latent frame.
        module: Of its package `pipeline`.
        kind: Class in it.
        settings: Of its configurations, more than those that all have.
        **model_kwargs: As in its configurations.
    """
    scheduler = importlib.import_module("utils.scheduler")
    wrapper = importlib.import_module("utils.wan_wrapper").WanDiffusionWrapper
    generator = wrapper.__new__(wrapper)
    nn.Module.__init__(generator)
    generator.model, generator.uniform_timestep, generator.seq_len = model, False, 21 * tokens
    generator.scheduler = scheduler.FlowMatchScheduler(shift=5.0, sigma_min=0.0, extra_one_step=True)
    generator.scheduler.set_timesteps(1000, training=True)
    generator.post_init()
    args = SimpleNamespace(
        denoising_step_list=list(steps),
        warp_denoising_step=True,
        num_frame_per_block=chunk,
        independent_first_frame=False,
        context_noise=0,
        global_sink=True,
        model_kwargs=SimpleNamespace(**model_kwargs),
        **settings,
    )
    weight = model.patch_embedding.weight
    text = TextEncoder(model.text_embedding[0].in_features).to(weight.device, weight.dtype)
    made = getattr(importlib.import_module(f"pipeline.{module}"), kind)
    pipe = made(args, weight.device, generator=generator, text_encoder=text, vae=ShownLatents())
    pipe.num_transformer_blocks, pipe.frame_seq_length = len(model.blocks), tokens
    return pipe
