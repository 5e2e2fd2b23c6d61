"""The causal Wan transformer: one implementation for the bundled model, Wan 1.3B and Wan 14B.

The model is stateless and does not know what a cache is. Wherever it needs self-attention it calls the
`attention` function that it was handed, with the layer's number and the current chunk's rotated queries, keys
and values. A session answers from its KV cache, training answers with a masked attention over a whole clip, a
test answers with an oracle.

Parameter names are those of the original Wan 2.1 checkpoints.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dummyforcing.errors import BadRequest
from dummyforcing.kernels.rope import apply_rope, rope_table

Attention = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""`attention(layer, q, k, v) -> out`: RoPE is applied, all tensors are `(B, L, H, D)`."""

TextKV = list[tuple[Tensor, Tensor]]
"""Cross-attention keys and values of one prompt, per block, each `(B, text_len, H, D)`."""


LARGEST = 10**6
"""No size of a transformer is larger."""


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a causal Wan transformer; the field names are those of Wan's `config.json`."""

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    text_len: int = 512
    text_dim: int = 4096
    freq_dim: int = 256
    in_dim: int = 16
    out_dim: int = 16
    patch_size: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6

    def __post_init__(self) -> None:
        sizes: tuple[int, ...] = (
            self.dim,
            self.ffn_dim,
            self.num_heads,
            self.num_layers,
            self.text_len,
            self.text_dim,
        )
        sizes = (*sizes, self.freq_dim, self.in_dim, self.out_dim, *self.patch_size)
        if min(sizes) < 1 or max(sizes) > LARGEST:
            raise BadRequest(
                f"A transformer has a size that is not from 1 to {LARGEST:,}", "give sizes in that range"
            )
        if self.dim % (2 * self.num_heads):
            raise BadRequest(
                f"{self.num_heads} heads cannot share {self.dim} channels in pairs",
                f"give a multiple of {2 * self.num_heads} channels",
            )
        if not 0 < self.eps < 1:
            raise BadRequest(f"A transformer cannot have eps {self.eps:g}", "take more than 0, such as 1e-6")

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.dim // self.num_heads


@dataclass(frozen=True)
class TimeEmbedding:
    """Embedding of the noise level of each frame; it depends on the timesteps alone.

    Both tensors broadcast: with `B` or `F` equal to 1 the same timestep serves every sample or frame.
    """

    head: Tensor
    """Modulates the output head, `(B, F, dim)`."""
    blocks: Tensor
    """Modulates every block, `(B, F, 6, dim)`: shift, scale, gate of self-attention, then of the FFN."""


class RMSNorm(nn.Module):
    """RMS normalisation with float32 statistics; the weight multiplies in the activation dtype, as in Wan."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        normed = F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype)
        return normed * self.weight


class AttentionProjections(nn.Module):
    """Query, key, value and output projections with QK-normalisation over all heads together."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.q = nn.Linear(config.dim, config.dim)
        self.k = nn.Linear(config.dim, config.dim)
        self.v = nn.Linear(config.dim, config.dim)
        self.o = nn.Linear(config.dim, config.dim)
        self.norm_q = RMSNorm(config.dim, config.eps)
        self.norm_k = RMSNorm(config.dim, config.eps)

    def query(self, x: Tensor) -> Tensor:
        """Normalised queries of `x`, `(B, L, dim)` -> `(B, L, H, D)`."""
        return self._split(self.norm_q(self.q(x)))

    def key_value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised keys, and values, of `x`, each `(B, L, H, D)`."""
        return self._split(self.norm_k(self.k(x))), self._split(self.v(x))

    def output(self, attended: Tensor) -> Tensor:
        """Mix the heads, `(B, L, H, D)` -> `(B, L, dim)`."""
        return self.o(attended.flatten(-2))  # type: ignore[no-any-return]

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.heads, -1)


class Block(nn.Module):
    """One transformer block: self-attention, cross-attention to the prompt, FFN.

    norm1 and norm2 have no parameters; Wan calls the affine norm before cross-attention norm3.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.eps = layer, config.eps
        self.self_attn = AttentionProjections(config)
        self.norm3 = nn.LayerNorm(config.dim, eps=config.eps)
        self.cross_attn = AttentionProjections(config)
        self.ffn = nn.Sequential(
            nn.Linear(config.dim, config.ffn_dim),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.ffn_dim, config.dim),
        )
        self.modulation = nn.Parameter(torch.randn(1, 6, config.dim) / config.dim**0.5)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        text: tuple[Tensor, Tensor],
        rope: tuple[Tensor, Tensor],
        attention: Attention,
        kv_only: bool = False,
    ) -> Tensor:
        """Update the residual stream.

        Args:
            x: Tokens, `(B, L, dim)`, frame after frame.
            time: Per-frame modulation, `(B, F, 6, dim)`.
            text: This block's cross-attention keys and values.
            rope: Cosines and sines of the tokens.
            attention: Answers the self-attention.
            kv_only: Return after the self-attention call; nothing later is needed.

        Returns:
            The new residual stream, `(B, L, dim)`.
        """
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = (self.modulation + time).unsqueeze(3).unbind(2)
        frames = time.shape[1]

        y = modulate(x, shift_a, scale_a, self.eps)
        q = apply_rope(self.self_attn.query(y), *rope)
        k, v = self.self_attn.key_value(y)
        attended = attention(self.layer, q, apply_rope(k, *rope), v)
        if kv_only:
            return x
        x = x + gated(self.self_attn.output(attended), gate_a, frames)
        x = x + self.cross_attn.output(self.attend_text(self.cross_attn.query(self.norm3(x)), text))
        return x + gated(self.ffn(modulate(x, shift_f, scale_f, self.eps)), gate_f, frames)

    def attend_text(self, q: Tensor, text: tuple[Tensor, Tensor]) -> Tensor:
        """Let queries `(B, L, H, D)` attend to the prompt."""
        q, k, v = (t.transpose(1, 2) for t in (q, *text))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


class Head(nn.Module):
    """The output head: modulated norm and a linear map to one patch per token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.eps = config.eps
        patch = config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
        self.head = nn.Linear(config.dim, patch * config.out_dim)
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Tokens `(B, L, dim)` with per-frame embedding `(B, F, dim)` to patches `(B, L, 4 * out_dim)`."""
        shift, scale = (self.modulation[:, None] + time[:, :, None]).unsqueeze(3).unbind(2)
        return self.head(modulate(x, shift, scale, self.eps))  # type: ignore[no-any-return]


class CausalWan(nn.Module):
    """Wan 2.1 text-to-video transformer for chunk-by-chunk generation."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.patch_embedding = nn.Conv3d(
            config.in_dim, dim, kernel_size=config.patch_size, stride=config.patch_size
        )
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.head = Head(config)

    def embed_time(self, timesteps: Tensor) -> TimeEmbedding:
        """Embed per-frame timesteps.

        Args:
            timesteps: `(B, F)`, in [0, 1000], float32 or float64.

        Returns:
            The embedding, in the model's dtype.
        """
        half = self.config.freq_dim // 2
        rates = 10_000.0 ** (-torch.arange(half, dtype=torch.float64, device=timesteps.device) / half)
        angles = timesteps.to(torch.float64)[..., None] * rates
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        head = self.time_embedding(waves.to(self.patch_embedding.weight.dtype))
        return TimeEmbedding(head, self.time_projection(head).unflatten(-1, (6, -1)))

    def embed_text(self, prompt_embeds: Tensor) -> TextKV:
        """Cross-attention keys and values of a prompt, for all blocks.

        Args:
            prompt_embeds: Text encoder output, zero in padded rows, `(B, text_len, text_dim)`. The padded
                rows are attended to: Wan masks nothing here.

        Returns:
            One pair per block.
        """
        text = self.text_embedding(prompt_embeds)
        return [block.cross_attn.key_value(text) for block in self.blocks]  # type: ignore[operator, union-attr]

    def patchify(self, latents: Tensor) -> Tensor:
        """Latents `(B, F, C, h, w)` to tokens `(B, F * h/2 * w/2, dim)`."""
        return self.patch_embedding(latents.transpose(1, 2)).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]

    def transform(
        self,
        tokens: Tensor,
        time: TimeEmbedding,
        text: TextKV,
        rope: tuple[Tensor, Tensor],
        attention: Attention,
        kv_only: bool = False,
    ) -> Tensor:
        """Run all blocks.

        Args:
            tokens: From `patchify`, `(B, L, dim)`.
            time: From `embed_time`, for the same frames.
            text: From `embed_text`.
            rope: From `rope_table`, for the same tokens.
            attention: Answers every self-attention.
            kv_only: Only the calls of `attention` matter (the commit pass): stop at the last one.

        Returns:
            The residual stream after the last block, `(B, L, dim)`; meaningless with `kv_only`.
        """
        last = len(self.blocks) - 1
        for layer, block in enumerate(self.blocks):
            tokens = block(tokens, time.blocks, text[layer], rope, attention, kv_only and layer == last)
        return tokens

    def unpatchify(self, tokens: Tensor, time: TimeEmbedding, height: int, width: int) -> Tensor:
        """Tokens `(B, L, dim)` to a velocity `(B, F, C, height, width)` through the output head."""
        patches = self.head(tokens, time.head)
        _, ph, pw = self.config.patch_size
        grid = patches.unflatten(-1, (ph, pw, -1)).unflatten(1, (-1, height // ph, width // pw))
        return grid.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)  # type: ignore[no-any-return]

    def rope(self, frames: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """RoPE cosines and sines of latent frames `frames`, `(F,)`, of `height` x `width` latents."""
        _, ph, pw = self.config.patch_size
        device = self.patch_embedding.weight.device
        return rope_table(frames, height // ph, width // pw, self.config.head_dim, device)

    def forward(
        self, latents: Tensor, time: TimeEmbedding, text: TextKV, frames: Tensor, attention: Attention
    ) -> Tensor:
        """Predict the velocity (noise - x0) of some latent frames.

        Args:
            latents: Noisy latents, `(B, F, C, h, w)`, in the model's dtype.
            time: From `embed_time`.
            text: From `embed_text`.
            frames: Absolute latent frame numbers, `(F,)`.
            attention: Answers every self-attention.

        Returns:
            The velocity, same shape as `latents`.
        """
        height, width = latents.shape[-2:]
        rope = self.rope(frames, height, width)
        tokens = self.transform(self.patchify(latents), time, text, rope, attention)
        return self.unpatchify(tokens, time, height, width)


def fingerprint(model: CausalWan) -> str:
    """Name a model by its sizes and a few of its weights, so that a head plan is not used with another one.

    Only the signs of the weights count: they are the same in float32, bfloat16 and float16.

    Args:
        model: Any device, any dtype.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256(json.dumps(asdict(model.config)).encode())
    signs = [
        torch.signbit(weight.detach()[:: max(1, len(weight) // 16)]).flatten()
        for name, weight in model.named_parameters()
        if name.endswith(("self_attn.q.weight", "self_attn.k.weight"))
    ]
    digest.update(torch.cat(signs).cpu().numpy().tobytes())  # at once: a GPU is waited for
    return digest.hexdigest()[:16]


def modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """LayerNorm, then per-frame scale and shift; `x (B, L, dim)`, the others `(B, F, 1, dim)`."""
    y = F.layer_norm(x, x.shape[-1:], eps=eps)
    return (per_frame(y, shift.shape[1]) * (1 + scale) + shift).flatten(1, 2)


def gated(x: Tensor, gate: Tensor, frames: int) -> Tensor:
    """Scale each frame's tokens; `x (B, L, dim)`, `gate (B, F, 1, dim)`."""
    return (per_frame(x, frames) * gate).flatten(1, 2)


def per_frame(x: Tensor, frames: int) -> Tensor:
    """View tokens `(B, L, dim)` as `(B, frames, L / frames, dim)`."""
    return x.reshape(x.shape[0], frames, -1, x.shape[-1])
