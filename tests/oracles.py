"""Small models, random plans, and slow but obvious versions of what the library does fast."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from dummyforcing.model import CausalWan, ModelConfig, TextKV
from dummyforcing.plan import HeadContext, Plan
from dummyforcing.sampling import make_schedule

SCHEDULE = make_schedule([1000, 750, 500, 250], shift=5.0)
SHAPE = (4, 4, 6)
"""Latent channels, height and width; six tokens a frame."""


def small_model(layers: int = 2, heads: int = 3, head_dim: int = 8, seed: int = 0) -> CausalWan:
    """A model with random weights that are large enough for every part to matter."""
    torch.manual_seed(seed)
    config = ModelConfig(
        dim=heads * head_dim,
        ffn_dim=32,
        num_heads=heads,
        num_layers=layers,
        text_len=5,
        text_dim=12,
        freq_dim=16,
        in_dim=SHAPE[0],
        out_dim=SHAPE[0],
    )
    model = CausalWan(config).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            weight.mul_(torch.rand_like(weight) + 1)
        else:
            weight.add_(0.3 * torch.randn_like(weight) * (weight.std() if weight.numel() > 1 else 1))
    return model


def small_text(model: CausalWan, batch: int = 1, seed: int = 1) -> TextKV:
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    prompt = torch.randn(batch, config.text_len, config.text_dim, generator=generator)
    return model.embed_text(prompt.to(model.patch_embedding.weight.dtype))


def random_plan(layers: int, heads: int, seed: int, contexts: Sequence[HeadContext] | None = None) -> Plan:
    """Every head gets one of `contexts`, or any short context."""
    rng = random.Random(seed)
    pool = contexts or [
        HeadContext(rng.randrange(3), rng.choice([0, 1, 2, 3, 4, 7, None])) for _ in range(rng.randint(1, 4))
    ]
    table = {f"role{i}": context for i, context in enumerate(pool)}
    roles = tuple(tuple(rng.choice(sorted(table)) for _ in range(heads)) for _ in range(layers))
    return Plan(roles=roles, table=table, policy="random")


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention written out in float64; `mask` is True where a query sees a key, `(..., L, S)`."""
    logits = torch.einsum("blhd,bshd->bhls", q.double(), k.double()) / q.shape[-1] ** 0.5
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    return torch.einsum("bhls,bshd->blhd", logits.softmax(-1), v.double()).to(q.dtype)


class HeadMemory:
    """Which past frames one head sees, kept as plain lists."""

    def __init__(self, context: HeadContext) -> None:
        self.context, self.pinned, self.ring = context, [], []

    @property
    def visible(self) -> set[int]:
        return {*self.pinned, *self.ring}

    def commit(self, frames: Sequence[int]) -> None:
        for frame in frames:
            (self.pinned if frame < self.context.sink else self.ring).append(frame)
        self._trim()

    def convert(self, context: HeadContext) -> None:
        held = self.pinned + self.ring
        self.pinned = [frame for frame in held if frame < context.sink]
        self.ring = [frame for frame in self.ring if frame >= context.sink]
        self.context = context
        self._trim()

    def _trim(self) -> None:
        if self.context.recent is not None:
            self.ring = self.ring[len(self.ring) - min(len(self.ring), self.context.recent) :]
