"""CUDA graphs of one rollout's passes through a `FusedWan`, with their static inputs.

Once all rings of the cache are full, every pass of a kind (denoising step or commit pass) is the same
sequence of kernels on the same memory; only numbers in small tables differ, such as the slots of the current
frames. From its second time on, such a pass is replayed as a CUDA graph. A change of the plan moves the
cache, so the graphs are captured again, each at the cost of one pass on the host.

Before, and in heads that see the whole past, that holds for the denoising steps of one chunk: they have a
graph of their own, which goes when the next chunk sees more.
"""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from dummyforcing.cache.head_group import HeadGroup
from dummyforcing.cache.kv_cache import KVCache
from dummyforcing.kernels.transfers import send
from dummyforcing.models.wan import TextKV, TimeEmbedding
from dummyforcing.runtime.fused import FusedBlock, FusedWan, Layer, Linear
from dummyforcing.runtime.head_layout import HeadLayout, place_of
from dummyforcing.runtime.ranks import TokenSplit

PassWatch = Callable[[int, Tensor, Sequence[HeadGroup]], None]
"""`watch(layer, q, groups)` looks at every self-attention of a pass: at the queries of the heads that are
kept here, `(B, L, H, D)`, and at what they see."""


class _Inputs:
    """Static inputs of the passes over a given number of frames: what differs from pass to pass."""

    def __init__(self, x: Tensor, modulation: Tensor, rope: tuple[Tensor, Tensor], heads: HeadLayout) -> None:
        self.x, self.modulation, self.rope = x, modulation, rope
        self.angles: Tensor | None = None
        """The cosines that `rope` is a copy of."""
        self.heads = heads
        """The self-attention of all layers."""
        self.outs: list[Linear] = []
        """Their output projections, for heads in the order in which they come."""


class GraphRunner:
    """Runs the passes of one rollout, from CUDA graphs where it can."""

    def __init__(
        self,
        fused: FusedWan,
        cache: KVCache,
        backend: str | None = None,
        split: TokenSplit | None = None,
    ) -> None:
        """Hold what passes need.

        Args:
            fused: The model.
            cache: The rollout's, of `fused.attention_dtype`.
            backend: Of self-attention; None: the fastest that is there.
            split: Of the tokens over several GPUs; None: there is one.
        """
        self._fused, self._cache, self._split = fused, cache, split
        self._backend = backend or fused.backend(fused.modulation.device)
        self._inputs: dict[tuple[int, ...], _Inputs] = {}
        self._text: TextKV = []
        self._text_source: TextKV | None = None
        self._place: object = None
        self._graphs: dict[tuple[object, ...], torch.cuda.CUDAGraph | None] = {}
        self._shown: tuple[int, ...] = ()
        """Tokens that each head group shows, if they will be more in later passes than in the graphs."""
        self._pool = torch.cuda.graph_pool_handle() if fused.modulation.is_cuda else None

    def over(self, cache: KVCache) -> "GraphRunner":
        """A runner like this one for another rollout's cache."""
        return GraphRunner(self._fused, cache, self._backend, self._split)

    def run(
        self,
        tokens: Tensor,
        time: TimeEmbedding,
        text: TextKV,
        rope: tuple[Tensor, Tensor],
        pinned: bool = True,
        kv_only: bool = False,
        watch: PassWatch | None = None,
    ) -> Tensor | None:
        """Run all blocks over the current frames; their keys and values are in the cache afterwards.

        Args:
            tokens: From `CausalWan.patchify`, `(B, L, dim)`; of several GPUs, this one's.
            time: From `embed_time`, the same for all samples.
            text: From `embed_text`.
            rope: From `rope_table`, for the same tokens.
            pinned: See `LayerCache.write`.
            kv_only: Stop when the last keys and values are in the cache (the commit pass).
            watch: Looks on, if any.

        Returns:
            The residual stream after the last block, `(B, L, dim)`, valid until the next call; None if this
            pass needs more than fused blocks can do (gaps in what is visible, a watch over heads that are
            cut): nothing has happened then.
        """
        per_frame = self._split.own_tokens if self._split else self._cache.sizes.tokens_per_frame
        frames = tokens.shape[1] // per_frame
        layers = self._cache.layers
        groups = [self._cache.prepare(number, frames, pinned) for number in range(len(layers))]
        caches = [group for layer in layers for group in layer.groups]
        if len(time.blocks) > 1 or not all(group.is_plain for group in caches):
            return None
        place = place_of(self._cache)
        if place != self._place:
            self._place = place
            self._forget_graphs()
        inputs = self._fill(tokens, time, text, rope, frames)
        if inputs.heads.prepare(place, groups):
            orders = torch.tensor([attention.order for attention in inputs.heads.attentions])
            pairs = zip(self._fused.blocks, send(orders, tokens.device), orders.tolist(), strict=True)
            inputs.outs = [in_order_of(block.out, there, order) for block, there, order in pairs]
        if watch is not None and not all(attention.shows_all for attention in inputs.heads.attentions):
            return None

        def forward() -> None:
            passes = [
                Layer(self._answer(inputs, number, seen, watch), out)
                for number, (out, seen) in enumerate(zip(inputs.outs, groups, strict=True))
            ]
            self._fused.transform(inputs.x, inputs.modulation, self._text, passes, frames, kv_only)

        # Triton looks at the current device, not at that of tensors.
        with torch.cuda.device_of(tokens):  # type: ignore[no-untyped-call]
            is_full = all(group.is_full for group in caches)
            # A commit pass that sees less than later ones is the only one of its kind.
            if tokens.is_cuda and watch is None and (is_full or not kv_only):
                shown = () if is_full else tuple(group.visible.k.shape[1] for group in caches)
                if shown != self._shown:
                    self._shown = shown
                    self._forget_graphs()
                self._replay((*tokens.shape, time.blocks.shape[1], pinned, kv_only), forward)
            else:
                forward()
        return inputs.x

    def _answer(
        self, inputs: _Inputs, number: int, seen: Sequence[HeadGroup], watch: PassWatch | None
    ) -> Callable[[Tensor, FusedBlock, bool], Tensor | None]:
        """What answers one layer's self-attention; see `Layer.attend`."""
        attention, config = inputs.heads.attentions[number], self._fused.config

        def show(q: Tensor) -> None:
            assert watch is not None
            watch(number, q, seen)

        def attend(qkv: Tensor, block: FusedBlock, kv_only: bool) -> Tensor | None:
            q, k, v = qkv.view(len(qkv), 3, config.num_heads, -1).unbind(1)
            look = show if watch else None
            return attention.attend(
                (q, k, v), block.gains, inputs.rope, config.eps, seen, self._backend, kv_only, look
            )

        return attend

    def _replay(self, kind: tuple[object, ...], forward: Callable[[], None]) -> None:
        """Run a pass, the first time as it is, which compiles and loads its kernels, later from a graph."""
        if kind not in self._graphs:
            self._graphs[kind] = None
            forward()
            return
        graph = self._graphs[kind]
        if graph is None:
            graph = self._graphs[kind] = self._capture(forward)
        graph.replay()

    def _forget_graphs(self) -> None:
        self._graphs.clear()
        self._pool = self._pool and torch.cuda.graph_pool_handle()  # torch gives up those without graphs

    def _capture(self, forward: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Record what a pass asks of the GPU, which goes on meanwhile, unlike with `torch.cuda.graph`."""
        graph, main = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        stream = _capture_stream(main.device)
        stream.wait_stream(main)
        with torch.cuda.stream(stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                forward()
            finally:
                graph.capture_end()
        main.wait_stream(stream)
        return graph

    def _fill(
        self, tokens: Tensor, time: TimeEmbedding, text: TextKV, rope: tuple[Tensor, Tensor], frames: int
    ) -> _Inputs:
        """Bring the inputs of a pass to their places."""
        config, device = self._fused.config, tokens.device
        size = (*tokens.shape, time.blocks.shape[1])
        if size not in self._inputs:
            layers = config.num_layers
            self._inputs[size] = _Inputs(
                torch.empty(tokens.shape, dtype=tokens.dtype, device=device),
                torch.empty(layers, *time.blocks.shape[1:], device=device),
                (torch.empty_like(rope[0]), torch.empty_like(rope[1])),
                HeadLayout(self._cache, frames, config.num_heads, self._split),
            )
        inputs = self._inputs[size]
        inputs.x.copy_(tokens)
        torch.add(self._fused.modulation, time.blocks, out=inputs.modulation)
        if inputs.angles is not rope[0]:
            inputs.angles = rope[0]
            for own, new in zip(inputs.rope, rope, strict=True):
                own.copy_(new)
        if self._text_source is not text:
            self._text_source = text
            if not self._text:
                self._text = [(torch.empty_like(k), torch.empty_like(v)) for k, v in text]
            for own_pair, pair in zip(self._text, text, strict=True):
                for own, new in zip(own_pair, pair, strict=True):
                    own.copy_(new)
        return inputs


def in_order_of(out: Linear, places: Tensor, order: Sequence[int]) -> Linear:
    """The output projection of a layer for heads in another order: `places (H,)` on its device."""
    if list(order) == sorted(order):
        return out
    # torch indexes no float8.
    weight = out.weight if out.scale is None else out.weight.view(torch.uint8)
    grouped = weight.view(len(weight), len(order), -1)[:, places].flatten(1)
    return out._replace(weight=grouped.view(out.weight.dtype))


@cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all graphs: cuBLAS keeps a workspace for every stream that it has seen."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
