"""Floating-point operations that a chunk needs, counted from shapes and the plan; two per multiply-add."""

from dataclasses import dataclass

from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.models.wan import ModelConfig


@dataclass(frozen=True)
class Flops:
    """Operations by what they are for."""

    linear: float = 0
    """Linear maps, of patches and the output head too."""
    self_attention: float = 0
    cross_attention: float = 0

    @property
    def total(self) -> float:
        """Sum of all of them."""
        return self.linear + self.self_attention + self.cross_attention

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(
            self.linear + other.linear,
            self.self_attention + other.self_attention,
            self.cross_attention + other.cross_attention,
        )

    def __mul__(self, times: int) -> "Flops":
        return Flops(self.linear * times, self.self_attention * times, self.cross_attention * times)


@dataclass(frozen=True)
class Work:
    """Counts the operations of a chunk."""

    config: ModelConfig
    tokens_per_frame: int
    chunk_frames: int
    local_attention_size: int | None = None
    """See `KVCache`."""

    def visible(self, context: HeadContext, past: int) -> int:
        """The frames that a head sees, the current ones included, after `past` frames."""
        limits = [
            past,
            context.total,
            None if self.local_attention_size is None else self.local_attention_size - self.chunk_frames,
        ]
        return self.chunk_frames + min(limit for limit in limits if limit is not None)

    def forward(self, plan: Plan, past: int) -> Flops:
        """Operations of a denoising pass over one chunk after `past` frames."""
        config = self.config
        tokens, blocks, dim = self.chunk_frames * self.tokens_per_frame, config.num_layers, config.dim
        patch = config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
        # Of self-attention q, k, v, o; of cross-attention q, o: the prompt's k and v are there already.
        per_token = (
            blocks * (6 * dim**2 + 2 * dim * config.ffn_dim) + self._patches + dim * patch * config.out_dim
        )
        frames = sum(self.visible(context, past) for row in plan.contexts for context in row)
        return Flops(
            linear=2 * tokens * per_token,
            self_attention=4 * tokens * frames * self.tokens_per_frame * config.head_dim,
            cross_attention=4 * tokens * blocks * config.text_len * dim,
        )

    def commit(self, plan: Plan, past: int) -> Flops:
        """Operations of the commit pass, which ends with the last block's keys and values."""
        config = self.config
        tokens, blocks, dim = self.chunk_frames * self.tokens_per_frame, config.num_layers - 1, config.dim
        per_token = blocks * (6 * dim**2 + 2 * dim * config.ffn_dim) + 2 * dim**2 + self._patches
        frames = sum(self.visible(context, past) for row in plan.contexts[:-1] for context in row)
        return Flops(
            linear=2 * tokens * per_token,
            self_attention=4 * tokens * frames * self.tokens_per_frame * config.head_dim,
            cross_attention=4 * tokens * blocks * config.text_len * dim,
        )

    def chunk(self, plan: Plan, past: int, steps: int) -> Flops:
        """Of `steps` denoising passes that run, and the commit pass."""
        return self.forward(plan, past) * steps + self.commit(plan, past)

    @property
    def _patches(self) -> int:
        """Multiply-adds per token of the patch embedding."""
        config = self.config
        return config.dim * config.in_dim * config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
