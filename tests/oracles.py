"""Small models, random plans, and slow but obvious versions of what the library does fast."""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from dummyforcing.cache.kv_cache import KVCache
from dummyforcing.kernels.rope import apply_rope, rope_table
from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.method.scoring import HeadScorer
from dummyforcing.models.wan import Attention, CausalWan, ModelConfig, TextKV
from dummyforcing.sampling.passes import Call, Passes
from dummyforcing.sampling.sampler import Sampler
from dummyforcing.sampling.schedule import make_schedule

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


def small_prompt(model: CausalWan, batch: int = 1, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    return torch.randn(batch, config.text_len, config.text_dim, generator=generator)


def small_text(model: CausalWan, batch: int = 1, seed: int = 1) -> TextKV:
    return model.embed_text(small_prompt(model, batch, seed).to(model.patch_embedding.weight.dtype))


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

    def __init__(self, context: HeadContext, chunk: int, looks: "dict[int, Tensor]") -> None:
        self.context, self.chunk, self.looks = context, chunk, looks
        self.pinned: list[int] = []
        self.keys: list[int] = []
        self.ring: list[int] = []

    @property
    def visible(self) -> set[int]:
        return {*self.pinned, *self.keys, *self.ring}

    def commit(self, frames: Sequence[int]) -> None:
        for frame in frames:
            (self.pinned if frame < self.context.sink else self.ring).append(frame)
        self._trim(frames[-1] - self.chunk - (self.context.recent or 0) if frames else 0)

    def convert(self, context: HeadContext) -> None:
        held = self.pinned + self.keys + self.ring
        self.pinned = [frame for frame in held if frame < context.sink]
        self.ring = [frame for frame in self.ring if frame >= context.sink]
        keys, self.keys, self.context = sorted(self.keys), [], context
        for frame in keys:
            if frame >= context.sink and context.keys:
                self._offer(frame)
        self._trim(-1)

    def rewind(self, past: int) -> None:
        self.ring = []
        self.keys = [frame for frame in self.keys if frame < past]
        self.pinned = [frame for frame in self.pinned if frame < past]

    def _trim(self, oldest: int) -> None:
        """Those that leave the ring may become key frames, if they are newer than `oldest`."""
        if self.context.recent is None:
            return
        cut = len(self.ring) - min(len(self.ring), self.context.recent)
        for frame in self.ring[:cut] if self.context.keys else ():
            if frame > oldest:
                self._offer(frame)
        self.ring = self.ring[cut:]

    def _offer(self, frame: int) -> None:
        self.keys.append(frame)
        if len(self.keys) <= self.context.keys:
            return
        pairs = itertools.combinations(sorted(self.pinned + self.keys), 2)
        apart = {
            (float((self.looks[a] - self.looks[b]).double().norm()), b): b for a, b in pairs if b in self.keys
        }
        self.keys.remove(apart[min(apart)])


class KeepEverything:
    """A cache that keeps all keys as they are before RoPE, and for each head a list of the frames it sees."""

    def __init__(
        self,
        plans: Sequence[Plan],
        tokens: int,
        chunk: int,
        local_attention_size: int | None = None,
        grid: tuple[int, int] | None = None,
    ) -> None:
        self.tokens, self.chunk, self.local_attention_size, self.past = tokens, chunk, local_attention_size, 0
        self.grid = grid or (1, tokens)
        self.looks: list[dict[int, Tensor]] = [{} for _ in plans]
        """What frames look like, of each sample."""
        self.memory = [
            [[HeadMemory(context, chunk, looks) for context in row] for row in plan.contexts]
            for plan, looks in zip(plans, self.looks, strict=True)
        ]
        self.k: dict[int, Tensor] = {}
        self.v: dict[int, Tensor] = {}

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, pinned: bool = True) -> Tensor:
        """Attention of queries and keys without RoPE, over whatever each head sees, wherever it stands."""
        last = self.past * self.tokens
        self.k[layer] = torch.cat([self.k[layer][:, :last], k], 1) if layer in self.k else k
        self.v[layer] = torch.cat([self.v[layer][:, :last], v], 1) if layer in self.v else v
        end = self.k[layer].shape[1] // self.tokens
        moved = max(0, end - self.local_attention_size) if self.local_attention_size else 0
        # Every frame twice: where it was made, and moved on.
        positions = torch.cat([torch.arange(end), torch.arange(end) + moved])
        masks = [
            [self._sees(head, end, moved, pinned) for head in sample]
            for sample in (sample[layer] for sample in self.memory)
        ]
        mask = torch.tensor(masks).repeat_interleave(self.tokens, -1)
        keys = self.rotated(self.k[layer].repeat(1, 2, 1, 1), positions)
        queries = self.rotated(q, torch.arange(self.past, end))
        return softmax_attention(queries, keys, self.v[layer].repeat(1, 2, 1, 1), mask[:, :, None])

    def rotated(self, x: Tensor, frames: Tensor) -> Tensor:
        """`x` with RoPE."""
        return apply_rope(x, *rope_table(frames, *self.grid, x.shape[-1]))

    def _sees(self, head: HeadMemory, end: int, moved: int, pinned: bool) -> list[bool]:
        sink, recent = head.context.sink, head.context.recent
        if self.past < sink:
            moved = 0
        here, there = [False] * end, [False] * end
        for frame in {*head.visible, *range(self.past, end)}:
            if frame < sink and pinned:
                (there if moved else here)[frame] = True
            elif frame < sink:
                here[frame] = frame >= moved
            elif frame in head.keys:
                here[frame] = True
            else:
                fits = recent is None or frame >= end - recent - self.chunk
                here[frame] = fits and frame >= moved + (sink if pinned else 0)
        return here + there

    def commit(self, frames: int, latents: Tensor | None = None) -> None:
        """`latents (B, frames, ...)`: what the frames look like."""
        new = range(self.past, self.past + frames)
        if latents is not None:
            for looks, sample in zip(self.looks, latents, strict=True):
                looks.update(zip(new, sample, strict=True))
        self.past += frames
        for head in self._heads():
            head.commit(new)

    def apply(self, plans: Sequence[Plan]) -> None:
        for sample, plan in zip(self.memory, plans, strict=True):
            for row, contexts in zip(sample, plan.contexts, strict=True):
                for head, context in zip(row, contexts, strict=True):
                    head.convert(context)

    def rewind(self, frames: int) -> None:
        self.past -= frames
        for head in self._heads():
            head.rewind(self.past)

    def jump(self, frame: int) -> None:
        """Frames that are left out hold what nobody may see."""
        for store in (self.k, self.v):
            for layer, old in store.items():
                junk = torch.full_like(old[:, :1], 1e3).expand(-1, frame * self.tokens, -1, -1)
                kept = old[:, : min(self.past, frame) * self.tokens]
                store[layer] = torch.cat([kept, junk[:, kept.shape[1] :]], 1)
        self.rewind(self.past - frame)

    def reset(self) -> None:
        self.rewind(self.past)

    def _heads(self) -> list[HeadMemory]:
        return [head for sample in self.memory for row in sample for head in row]


class WatchedPasses(Passes):
    """Passes that show every self-attention and its result, that of a commit pass's last block included."""

    watch: "Watch"

    def attention(self, call: Call, scorer: HeadScorer | None, pinned: bool, kv_only: bool) -> Attention:
        answer = super().attention(call, scorer, pinned, kv_only=False)

        def attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = answer(layer, q, k, v)
            start = self.origin + self.cache.frames
            positions = torch.arange(start, start + q.shape[1] // self.cache.sizes.tokens_per_frame)
            angles = self.model.rope(positions, *SHAPE[1:])
            self.watch(Seen(call, layer, q, k, v, angles, pinned, out))
            return out

        return attention


@dataclass(frozen=True)
class Seen:
    """One self-attention of a rollout."""

    call: Call
    layer: int
    q: Tensor
    k: Tensor
    v: Tensor
    angles: tuple[Tensor, Tensor]
    """Cosines and sines of the RoPE of `q` and `k`."""
    pinned: bool
    out: Tensor


Watch = Callable[[Seen], None]


def watched(sampler: Sampler, watch: Watch) -> None:
    """Show every self-attention of a sampler."""
    passes = sampler.passes
    assert type(passes) is Passes
    passes.__class__ = WatchedPasses
    assert isinstance(passes, WatchedPasses)
    passes.watch = watch


class CheckedCache(KVCache):
    """A sampler's cache with an oracle that goes along."""

    oracle: KeepEverything

    def commit(self, frames: int | None = None, latents: Tensor | None = None) -> None:
        super().commit(frames, latents)
        end = self.frames * self.sizes.tokens_per_frame
        assert len(self.oracle.k) == len(self.layers), "nothing was compared with the oracle"
        assert all(k.shape[1] >= end for k in self.oracle.k.values())
        self.oracle.commit(self.sizes.chunk_frames if frames is None else frames, latents)

    def apply(self, plans: Sequence[Plan]) -> None:
        super().apply(plans)
        self.oracle.apply(plans)

    def rewind(self, frames: int) -> None:
        super().rewind(frames)
        self.oracle.rewind(frames)

    def jump(self, frame: int) -> None:
        super().jump(frame)
        self.oracle.jump(frame)

    def reset(self) -> None:
        super().reset()
        self.oracle.reset()


Checked = TypeVar("Checked", bound=Sampler)


def checked(sampler: Checked) -> Checked:
    """Let every attention of a sampler be compared with the oracle's, without the drift of two rollouts."""
    cache, sizes = sampler.cache, sampler.cache.sizes
    height, width = SHAPE[1] // 2, SHAPE[2] // 2
    assert type(cache) is KVCache
    assert sizes.tokens_per_frame == height * width
    cache.__class__ = CheckedCache
    assert isinstance(cache, CheckedCache)
    oracle = KeepEverything(
        sampler.plans, height * width, sizes.chunk_frames, sizes.local_attention_size, (height, width)
    )
    cache.oracle = oracle

    def compare(seen: Seen) -> None:
        cos, sin = seen.angles
        plain_q, plain_k = (apply_rope(x, cos, -sin) for x in (seen.q, seen.k))
        expected = oracle.attend(seen.layer, plain_q, plain_k, seen.v, seen.pinned)
        torch.testing.assert_close(seen.out, expected, atol=2e-5, rtol=0)

    watched(sampler, compare)
    return sampler


def most_allocated(function: Callable[[], object]) -> float:
    """Bytes that torch allocates on the CPU at most, at a time, while a function runs."""
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    events: Any = profile.profiler
    changes = sorted(
        (e.start_ns(), e.nbytes()) for e in events.kineto_results.events() if e.name() == "[memory]"
    )
    return float(torch.tensor([change for _, change in changes]).cumsum(0).max())
