"""The self-attention of all layers of a rollout, laid out for the cache as it is."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dummyforcing.cache.head_group import HeadGroup
from dummyforcing.cache.kv_cache import KVCache
from dummyforcing.kernels.transfers import Parcel, send
from dummyforcing.runtime.exchanged_heads import ExchangedHeads
from dummyforcing.runtime.heads import Grid, LocalHeads, Scratch
from dummyforcing.runtime.ranks import TokenSplit

SelfAttention = LocalHeads | ExchangedHeads


class HeadLayout:
    """The self-attention of all layers in passes of one length, laid out again whenever the cache moves."""

    def __init__(self, cache: KVCache, frames: int, heads: int, split: TokenSplit | None = None) -> None:
        """Lay out nothing yet.

        Args:
            cache: What is attended to.
            frames: Latent frames of a pass.
            heads: Of a layer.
            split: Of the tokens over several GPUs; None: there is one.
        """
        self._cache, self._heads, self._split = cache, heads, split
        sizes = cache.sizes
        part = split.part if split else sizes.tokens_per_frame
        self._grid = Grid(sizes.batch, frames, sizes.tokens_per_frame, part)
        self._key: object = None
        self._slots: Tensor
        """Of the current frames in all layers, flat."""
        self._written: HeadGroup | None
        """What the first heads see in the pass that the slots are of: another one in every other pass."""
        self.attentions: list[SelfAttention] = []
        """Of each layer."""

    def prepare(self, key: object, groups: Sequence[Sequence[HeadGroup]]) -> bool:
        """Get ready for a pass.

        Args:
            key: From `place_of`.
            groups: What each layer's heads see, none of it gathered.

        Returns:
            Whether all was laid out again.
        """
        moved = key != self._key
        if moved:
            self._key = key
            self._lay_out()
        if self._written is not groups[0][0]:
            self._written = groups[0][0]
            self._slots.copy_(send(self._present_slots(), self._slots.device))
        return moved

    def _lay_out(self) -> None:
        cache, grid = self._cache, self._grid
        device = cache.layers[0].groups[0].k.device
        rows = [grid.batch * len(layer.own) * grid.frames for layer in cache.layers]
        self._slots, self._written = torch.empty(sum(rows), dtype=torch.int32, device=device), None
        scratch, parcel = Scratch(cache.sizes.head_dim, cache.sizes.dtype, device), Parcel(device)
        self.attentions = []
        for layer, flat in zip(cache.layers, torch.split(self._slots, rows), strict=True):
            slots = flat.view(grid.batch, -1, grid.frames)
            self.attentions.append(
                LocalHeads(layer, grid, scratch, slots, parcel)
                if self._split is None
                else ExchangedHeads(layer, grid, self._split.ranks, scratch, self._heads, slots, parcel)
            )
        parcel.send()

    def _present_slots(self) -> Tensor:
        """The slot of each current frame, of all layers, samples and heads, flat."""
        found: list[int] = []
        for layer, attention in zip(self._cache.layers, self.attentions, strict=True):
            of = {
                (sample, head): slots
                for group in layer.groups
                for sample in group.samples
                for head, slots in zip(group.heads, group.targets, strict=True)
            }
            for sample, heads in enumerate(attention.heads):
                for head in heads:
                    found += of[sample, head]
        return torch.tensor(found, dtype=torch.int32)


def place_of(cache: KVCache) -> object:
    """Where a cache's heads are: equal as long as they have not moved."""
    groups = [group for layer in cache.layers for group in layer.groups]
    return cache.layout, [(group.k.data_ptr(), group.v.data_ptr(), group.k.shape[1]) for group in groups]
