"""The transformer of the bundled model under training, and its passes over whole clips."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention

from dummyforcing.kernels.rope import rope_table
from dummyforcing.models.wan import Attention, Block, CausalWan, ModelConfig
from research.training.data import TEXT_LEN
from research.training.run import CHUNK, TOKENS, Run, load_sharded, save_sharded
from research.training.text import TEXT_DIM

SHIFT = 3.0
MODEL = ModelConfig(
    dim=384,
    ffn_dim=704,  # with this and the text encoder's size all assets are below 40 MB
    num_heads=12,
    num_layers=8,
    text_len=TEXT_LEN,
    text_dim=TEXT_DIM,
    freq_dim=256,
)


class Networks:
    """The transformer under training, compiled block by block."""

    def __init__(self, run: Run) -> None:
        self.run = run
        if (run.folder / "transformer").exists():
            self.model = load_model(run.folder / "transformer")
        else:
            self.model = CausalWan(MODEL if not run.small else replace(MODEL, num_layers=2))
            self.init_weights()
        torch.manual_seed(1234 + run.rank)
        self.model.to(run.device)
        self.compile(self.model)
        if dist.is_initialized():
            for p in self.model.parameters():
                dist.broadcast(p.data, 0)

    def compile(self, model: CausalWan) -> None:
        """One compiled block serves all layers: while training, attention does not ask for the layer."""
        if self.run.device.type == "cuda":
            for block in blocks_of(model):
                block.layer = 0
                block.compile(dynamic=False)

    def init_weights(self) -> None:
        """Small normal weights, small gates, a zero output: every block starts near the identity."""
        torch.manual_seed(0)
        for module in self.model.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.model.get_parameter("time_projection.1.weight"))
        nn.init.zeros_(self.model.head.head.weight)
        for block in blocks_of(self.model):
            nn.init.zeros_(block.modulation)
            nn.init.zeros_(block.cross_attn.o.weight)
            with torch.no_grad():
                block.modulation[:, [2, 5]] = 0.2
        nn.init.zeros_(self.model.head.modulation)

    def matrices(self) -> set[int]:
        """The parameters that Muon handles."""
        return {id(p) for p in self.model.blocks.parameters() if p.ndim == 2}

    def save(self, folder: str = "transformer") -> None:
        """Write it to a folder of the run."""
        if self.run.rank == 0:
            config = {"_class_name": "CausalWan", **self.model.config.__dict__}
            save_sharded(self.run.folder / folder, self.model.state_dict(), config)


def load_model(folder: Path) -> CausalWan:
    """A transformer that `Networks.save` wrote."""
    config = json.loads((folder / "config.json").read_text())
    fields = {name: value for name, value in config.items() if not name.startswith("_")}
    model = CausalWan(ModelConfig(**fields | {"patch_size": tuple(fields["patch_size"])}))
    model.load_state_dict(load_sharded(folder))
    return model


def blocks_of(model: CausalWan) -> list[Block]:
    """The blocks of a model; its list tells only that they are modules."""
    return cast(list[Block], [*model.blocks])


def noised(x0: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Latents `(B, F, C, h, w)` at noise levels `sigma (B, F)`."""
    s = sigma[:, :, None, None, None]
    return (1 - s) * x0 + s * noise


def draw_sigma(batch: int, chunks: int, device: torch.device) -> Tensor:
    """A noise level per chunk, `(B, F)`: uniform, then shifted towards more noise."""
    u = torch.rand(batch, chunks, device=device)
    return (SHIFT * u / (1 + (SHIFT - 1) * u)).repeat_interleave(CHUNK, 1)


def everything(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Bidirectional attention."""
    q, k, v = (t.transpose(1, 2).to(v.dtype) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def velocity(
    model: CausalWan, x: Tensor, sigma: Tensor, text: Tensor, attention: Attention = everything
) -> Tensor:
    """The network's velocity for latents that start at frame 0."""
    return predict(model, x, 1000 * sigma, text, tuple(range(x.shape[1])), attention)


def predict(
    model: CausalWan,
    x: Tensor,
    timesteps: Tensor,
    text: Tensor,
    frames: tuple[int, ...],
    attention: Attention,
) -> Tensor:
    """`CausalWan.forward` with a RoPE table that is computed once per set of frames."""
    height, width = x.shape[-2:]
    time = model.embed_time(timesteps)
    rope = rope_of(model.config.head_dim, frames, height, width, x.device)
    tokens = model.transform(model.patchify(x).float(), time, model.embed_text(text), rope, attention)
    return model.unpatchify(tokens, time, height, width).float()


@cache
def rope_of(
    head_dim: int, frames: tuple[int, ...], height: int, width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The RoPE table of some frames."""
    return rope_table(torch.tensor(frames), height // 2, width // 2, head_dim, device)


@torch.no_grad()
def follow_guided(
    model: CausalWan,
    x: Tensor,
    begin: float,
    end: float,
    text: Tensor,
    empty: Tensor,
    steps: int,
    scale: float = 2.5,
) -> Tensor:
    """Follow the guided probability-flow ODE of latents `(B, F, C, h, w)` by Euler steps.

    Args:
        model: Predicts velocities.
        x: Latents at noise level `begin`.
        begin: Noise level.
        end: Lower noise level; steps are equal before the shift towards more noise.
        text: Prompt embeddings, `(B, L, D)`.
        empty: That of no prompt, `(1, L, D)`.
        steps: How many.
        scale: Of guidance.
    """
    both = torch.cat([text, empty.expand_as(text)])
    first, last = (sigma / (SHIFT - (SHIFT - 1) * sigma) for sigma in (begin, end))
    even = [first + (last - first) * i / steps for i in range(steps + 1)]
    levels = [SHIFT * u / (1 + (SHIFT - 1) * u) for u in even]
    for now, later in pairwise(levels):
        sigma = torch.full((2 * len(x), x.shape[1]), now, device=x.device)
        with_text, without = velocity(model, x.repeat(2, 1, 1, 1, 1), sigma, both).chunk(2)
        x = x + (later - now) * (without + scale * (with_text - without))
    return x


def masked_attention(visible: Callable[..., Tensor], size: int, device: torch.device) -> Attention:
    """Attention of `size` tokens with a mask, `visible(b, h, q, k)` as in flex attention."""
    if device.type == "cuda":
        mask = create_block_mask(visible, None, None, size, size, device="cuda")

        def flex(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = (t.transpose(1, 2).to(v.dtype) for t in (q, k, v))
            return compiled_flex()(q, k, v, block_mask=mask).transpose(1, 2)

        return flex
    dense = create_mask(visible, None, None, size, size, device="cpu")

    def masked(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=dense).transpose(1, 2)

    return masked


@cache
def compiled_flex() -> Callable[..., Tensor]:
    """One compiled kernel for all passes."""
    return torch.compile(flex_attention)


class TeacherForcing:
    """Denoise all chunks of a clip in one pass, each given the clean frames before it.

    The sequence is [clean frames | noisy frames]. A clean chunk sees the clean chunks up to itself, as in the
    commit pass; a noisy chunk sees the clean chunks before it and itself, as a denoising step does.
    """

    def __init__(self, frames: int, device: torch.device, frame_tokens: int = TOKENS) -> None:
        self.frames = frames
        tokens, chunk = frames * frame_tokens, CHUNK * frame_tokens

        def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            q_noisy, k_noisy = q >= tokens, k >= tokens
            q_chunk, k_chunk = (q % tokens) // chunk, (k % tokens) // chunk
            own = (q_chunk == k_chunk) & (q_noisy == k_noisy)
            return own | (~k_noisy & (k_chunk < q_chunk))

        self.attention = masked_attention(visible, 2 * tokens, device)

    def __call__(self, model: CausalWan, past: Tensor, x: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
        """Velocity of the noisy frames `x (B, F, C, h, w)` at `sigma (B, F)` given the frames `past`."""
        timesteps = 1000 * torch.cat([torch.zeros_like(sigma), sigma], 1)
        frames = (*range(self.frames), *range(self.frames))
        both = torch.cat([past, x], 1)
        return predict(model, both, timesteps, text, frames, self.attention)[:, self.frames :]
