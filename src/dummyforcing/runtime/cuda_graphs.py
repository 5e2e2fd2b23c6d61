"""CUDA graphs of one rollout's passes through a `FusedWan`, with their static inputs.

Once all rings of the cache are full, every pass of a kind (denoising step or commit pass) is the same
sequence of kernels on the same memory; only numbers in small tables differ, such as the slots of the current
frames. From its second time on, such a pass is replayed as a CUDA graph. A change of the plan moves the
cache, so the graphs are captured again, each at the cost of one pass on the host.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from dummyforcing.cache.head_group import HeadGroup
from dummyforcing.cache.kv_cache import KVCache, LayerCache
from dummyforcing.kernels.ops import Targets
from dummyforcing.kernels.transfers import send
from dummyforcing.models.wan import TextKV, TimeEmbedding
from dummyforcing.runtime.fused import FusedBlock, FusedWan, Layer, Linear


class _Place(NamedTuple):
    """The part of a layer's `Targets` and `Layer` that is fixed until the cache moves."""

    heads: Tensor
    table: Tensor
    out: Linear


class _Inputs:
    """Static inputs of the passes over a given number of frames: what differs from pass to pass."""

    def __init__(self, x: Tensor, modulation: Tensor, rope: tuple[Tensor, Tensor], slots: Tensor) -> None:
        self.x, self.modulation, self.rope, self.slots = x, modulation, rope, slots
        self.angles: Tensor | None = None
        """The cosines that `rope` is a copy of."""
        self.written: HeadGroup | None = None
        """What the first heads see in the pass that `slots` are of: another one in every other pass."""


class GraphRunner:
    """Runs the passes of one rollout, from CUDA graphs where it can."""

    def __init__(self, fused: FusedWan, cache: KVCache, backend: str | None = None) -> None:
        """Hold what passes need.

        Args:
            fused: The model.
            cache: The rollout's, of `fused.attention_dtype`.
            backend: Of self-attention; None: the fastest that is there.
        """
        self._fused, self._cache = fused, cache
        self._backend = backend or fused.backend(fused.modulation.device)
        self._inputs: dict[tuple[int, ...], _Inputs] = {}
        self._text: TextKV = []
        self._text_source: TextKV | None = None
        self._layout: tuple[int, ...] = ()
        self._places: list[_Place] = []
        self._graphs: dict[tuple[object, ...], torch.cuda.CUDAGraph | None] = {}
        self._pool = torch.cuda.graph_pool_handle() if fused.modulation.is_cuda else None

    def over(self, cache: KVCache) -> "GraphRunner":
        """A runner like this one for another rollout's cache."""
        return GraphRunner(self._fused, cache, self._backend)

    def run(
        self,
        tokens: Tensor,
        time: TimeEmbedding,
        text: TextKV,
        rope: tuple[Tensor, Tensor],
        pinned: bool = True,
        kv_only: bool = False,
    ) -> Tensor | None:
        """Run all blocks over the current frames; their keys and values are in the cache afterwards.

        Args:
            tokens: From `CausalWan.patchify`, `(B, L, dim)`.
            time: From `embed_time`, the same for all samples.
            text: From `embed_text`.
            rope: From `rope_table`.
            pinned: See `LayerCache.write`.
            kv_only: Stop when the last keys and values are in the cache (the commit pass).

        Returns:
            The residual stream after the last block, `(B, L, dim)`, valid until the next call; None if this
            pass needs more than fused blocks can do (plans that differ between samples, gaps in what is
            visible): nothing has happened then.
        """
        frames = tokens.shape[1] // self._cache.sizes.tokens_per_frame
        layers = self._cache.layers
        groups = [self._cache.prepare(number, frames, pinned) for number in range(len(layers))]
        caches = [group for layer in layers for group in layer.groups]
        if len(time.blocks) > 1 or not all(group.is_plain for group in caches):
            return None
        layout = (self._cache.layout, *(t.data_ptr() for group in caches for t in (group.k, group.v)))
        if layout != self._layout:
            self._layout = layout
            self._graphs.clear()
            self._pool = self._pool and torch.cuda.graph_pool_handle()  # torch gives up those without graphs
            for known in self._inputs.values():
                known.written = None
            self._places = [self._place(*pair) for pair in zip(layers, self._fused.blocks, strict=True)]
        inputs = self._fill(tokens, time, text, rope, frames)
        if inputs.written is not groups[0][0]:
            inputs.written = groups[0][0]
            slots = torch.tensor(_slots(layers), dtype=inputs.slots.dtype)
            inputs.slots.copy_(send(slots, tokens.device))
        passes = [
            Layer(
                Targets([(group.k, group.v) for group in layer.groups], place.heads, place.table, slots),
                seen,
                place.out,
            )
            for layer, place, slots, seen in zip(layers, self._places, inputs.slots, groups, strict=True)
        ]

        def forward() -> None:
            self._fused.transform(
                inputs.x, inputs.modulation, self._text, inputs.rope, passes, self._backend, kv_only
            )

        # Triton looks at the current device, not at that of tensors.
        with torch.cuda.device_of(tokens):  # type: ignore[no-untyped-call]
            if tokens.is_cuda and all(group.is_full for group in caches):
                self._replay((*tokens.shape, time.blocks.shape[1], pinned, kv_only), forward)
            else:
                forward()
        return inputs.x

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
                torch.empty(layers, config.num_heads, frames, dtype=torch.int32, device=device),
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

    def _place(self, layer: LayerCache, block: FusedBlock) -> _Place:
        """Tables of a layer, and its output projection for heads in the order of the groups."""
        device, width = self._fused.modulation.device, self._fused.config.head_dim
        heads = [head for group in layer.groups for head in group.heads]
        rows: dict[int, tuple[int, ...]] = {}
        for group in layer.groups:
            step = width * group.k.element_size()
            for column, head in enumerate(group.heads):
                starts = (group.k.data_ptr() + column * step, group.v.data_ptr() + column * step)
                rows[head] = (*starts, group.k.stride(1), group.k.stride(0), heads.index(head))
        order = send(torch.tensor(heads), device)
        out = block.out
        if heads != sorted(heads):
            # torch indexes no float8.
            weight = out.weight if out.scale is None else out.weight.view(torch.uint8)
            grouped = weight.view(len(weight), len(heads), width)[:, order].flatten(1)
            out = out._replace(weight=grouped.view(out.weight.dtype))
        table = send(torch.tensor([rows[head] for head in sorted(rows)]), device)
        return _Place(order, table, out)


@cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all graphs: cuBLAS keeps a workspace for every stream that it has seen."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _slots(layers: Sequence[LayerCache]) -> list[list[tuple[int, ...]]]:
    """The slot of each current frame, of every layer and head."""
    found = []
    for layer in layers:
        of = {h: slots for g in layer.groups for h, slots in zip(g.heads, g.targets, strict=True)}
        found.append([of[head] for head in sorted(of)])
    return found
