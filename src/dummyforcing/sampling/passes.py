"""Passes over the network: the current frames go through all blocks and attend to the past in the cache.

time, tokens = passes.time([timestep], frames), passes.tokens(x)
hidden = passes.transform(tokens, time, text, call)     # a denoising step
velocity = passes.velocity(hidden, time)
passes.commit(x0, text, call)                           # clean frames become past
"""

import logging
from collections.abc import Callable, Collection, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from dummyforcing.attention.attend import attend
from dummyforcing.cache.head_group import HeadGroup
from dummyforcing.cache.kv_cache import CacheState, KVCache
from dummyforcing.kernels.transfers import send
from dummyforcing.method.scoring import HeadScorer
from dummyforcing.models.wan import Attention, CausalWan, TextKV, TimeEmbedding
from dummyforcing.runtime.cuda_graphs import GraphRunner
from dummyforcing.runtime.fused import FusedWan
from dummyforcing.runtime.ranks import Ranks, TokenSplit
from dummyforcing.sampling.schedule import COMMIT_TIMESTEP

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Call:
    """The purpose of one pass over the network."""

    chunk: int
    """The chunk that it works on; of several, the oldest."""
    step: int | None
    """The denoising step of that chunk; None: a commit pass."""


Observer = Callable[[Call, int, Tensor, Sequence[HeadGroup]], None]
"""`observer(call, layer, q, groups)`: sees every self-attention, after the current frames' keys and values
are in the cache; `q (B, L, H, D)` are the queries with RoPE applied."""


@dataclass(frozen=True)
class PassesState:
    """The state that passes leave behind."""

    cache: CacheState
    origin: int
    """The position of the cache's frame 0."""


class Passes:
    """Runs the network over the current frames of one rollout; owns its KV cache and its CUDA graphs."""

    def __init__(
        self,
        model: CausalWan,
        cache: KVCache,
        latent_size: tuple[int, int],
        timesteps: Collection[float],
        *,
        fused: FusedWan | None = None,
        backend: str | None = None,
        observer: Observer | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """Embed all timesteps: one embedding per step serves all chunks.

        Args:
            model: On its device, in its dtype.
            cache: Of this rollout.
            latent_size: Height and width of the latents.
            timesteps: All that denoising steps will ask for.
            fused: The model arranged for speed; passes that it cannot do, or that somebody looks into, go
                through the model itself. None: all do.
            backend: A name of `BACKENDS`; None: the fastest that is there.
            observer: Is shown every self-attention.
            ranks: The GPUs that share the passes; None: there is one.
        """
        self.model, self.cache = model, cache
        self._height, self._width = latent_size
        self._backend, self._observer = backend, observer
        weight = model.patch_embedding.weight
        self._dtype, self.device = weight.dtype, weight.device
        self._split = TokenSplit(ranks, cache.sizes.tokens_per_frame) if ranks else None
        self._graphs = GraphRunner(fused, cache, backend, self._split) if fused else None
        self.origin = 0
        """The position of the cache's frame 0."""
        self._place = (-1, 0)  # the frames that `_angles` are of
        with torch.inference_mode():
            self._times = {
                timestep: model.embed_time(send(torch.tensor([[timestep]]), self.device))
                for timestep in {*timesteps, COMMIT_TIMESTEP}
            }

    def tokens(self, x: Tensor) -> Tensor:
        """The tokens of latents `(B, F, C, h, w)`, as they enter the first block."""
        return self.model.patchify(x.to(self._dtype))

    def time(self, timesteps: Sequence[float], frames: int) -> TimeEmbedding:
        """The embedding of one timestep for all frames, or of one for each `frames` of them."""
        times = [self._times[timestep] for timestep in timesteps]
        if len(times) == 1:
            return times[0]
        return TimeEmbedding(
            torch.cat([time.head for time in times], 1).repeat_interleave(frames, 1),
            torch.cat([time.blocks for time in times], 1).repeat_interleave(frames, 1),
        )

    def velocity(self, hidden: Tensor, time: TimeEmbedding) -> Tensor:
        """Predict the velocity: the output head on the tokens behind the last block."""
        return self.model.unpatchify(hidden, time, self._height, self._width)

    def commit(
        self,
        x0: Tensor,
        text: TextKV,
        call: Call,
        scorer: HeadScorer | None = None,
        pinned: bool = True,
    ) -> None:
        """Write clean latents' keys and values into the cache: these frames are past from now on.

        Args:
            x0: Clean latents, `(B, F, C, h, w)`.
            text: Of the prompt.
            call: Names the chunk.
            scorer: Scores the heads, if it watches commit passes.
            pinned: See `KVCache.write`.
        """
        time = self._times[COMMIT_TIMESTEP]
        self.transform(self.tokens(x0), time, text, call, scorer, pinned, kv_only=True)
        self.cache.commit(x0.shape[1], x0)

    def transform(
        self,
        tokens: Tensor,
        time: TimeEmbedding,
        text: TextKV,
        call: Call,
        scorer: HeadScorer | None = None,
        pinned: bool = True,
        kv_only: bool = False,
    ) -> Tensor:
        """Run all blocks over the current frames: fused, if no observer looks at the attention.

        Args:
            tokens: From `tokens`, `(B, L, dim)`.
            time: From `time`.
            text: Of the prompt.
            call: What the pass is for.
            scorer: Scores the heads, if it watches such passes.
            pinned: See `KVCache.write`.
            kv_only: Stop when the last keys and values are in the cache (the commit pass).

        Returns:
            The tokens behind the last block, `(B, L, dim)`, valid until the next pass.
        """
        scorer = scorer if scorer is not None and scorer.watches(call.step) else None
        rope = self._rope(tokens.shape[1] // self.cache.sizes.tokens_per_frame)
        own = self._split.take(tokens) if self._split else tokens
        hidden = None
        if self._graphs and self._observer is None:
            watch = partial(self._score, scorer) if scorer else None
            hidden = self._graphs.run(own, time, text, rope, pinned, kv_only, watch)
            if hidden is None:
                _tell_of_plain_passes()
        if hidden is None:
            attention = self.attention(call, scorer, pinned, kv_only)
            hidden = self.model.transform(own, time, text, rope, attention, kv_only)
        return self._split.whole(hidden) if self._split and not kv_only else hidden

    def attention(self, call: Call, scorer: HeadScorer | None, pinned: bool, kv_only: bool) -> Attention:
        """What answers the model's self-attention in a pass that is not fused: score, cache, attend.

        Args:
            call: What the pass is for.
            scorer: Scores the heads in this pass; None: nothing does.
            pinned: See `KVCache.write`.
            kv_only: See `transform`.
        """
        last, split = self.model.config.num_layers - 1, self._split

        def exchanged(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            assert split is not None
            deal = self.cache.layers[layer].deal
            heads = [deal.heads(rank) for rank in range(split.ranks.size)]
            q, k, v = split.to_heads(torch.cat([q, k, v], -1), heads).chunk(3, -1)
            return split.to_tokens(attention(layer, q, k, v), heads)

        def attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            groups = self.cache.write(layer, k, v, pinned)
            if scorer is not None:
                self._score(scorer, layer, q, groups)
            if self._observer is not None:
                self._observer(call, layer, q, groups)
            if kv_only and layer == last:
                return q  # nobody reads what the last block of a commit pass attends to
            return attend(q, groups, self._backend)

        return exchanged if split else attention

    def _score(self, scorer: HeadScorer, layer: int, q: Tensor, groups: Sequence[HeadGroup]) -> None:
        """Score the heads of a layer that are kept here."""
        # Few rows of float8 are looked at, which torch does not index.
        wide = q.to(self._dtype) if q.element_size() == 1 else q
        scorer.observe(layer, wide, groups, self.cache.layers[layer].own)

    def _rope(self, frames: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the current frames; computed once for all passes at the same place."""
        start = self.origin + self.cache.frames
        if self._place != (start, frames):
            self._place = (start, frames)
            positions = torch.arange(start, start + frames, device=self.device)
            cos, sin = self.model.rope(positions, self._height, self._width)
            self._angles = cos, sin
            if self._split:
                self._angles = self._split.take(cos, 0), self._split.take(sin, 0)
        return self._angles

    def restart(self, frames: int) -> None:
        """Forget the whole past; the next pass writes the last `frames` frames again, at their positions."""
        self.origin += self.cache.frames - frames
        self.cache.reset()

    def state(self) -> PassesState:
        """Give the state; it shares memory with the cache."""
        return PassesState(self.cache.state(), self.origin)

    def load_state(self, state: PassesState) -> None:
        """Go on from what `state` gave; copies it."""
        self.cache.load_state(state.cache)
        self.origin = state.origin

    def copy(self) -> "Passes":
        """Passes that go on from here with a cache of their own."""
        other = copy(self)
        other.cache = self.cache.copy()
        other._graphs = self._graphs and self._graphs.over(other.cache)
        return other


@cache
def _tell_of_plain_passes() -> None:
    """Log it once, however many passes there are."""
    logger.info("the fused path is left where visible frames have gaps in the cache")
