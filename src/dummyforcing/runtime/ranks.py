"""Ranks: processes, one for each GPU, that make one video together.

Each has a part of the tokens of every latent frame for all that is done token by token, and some of the heads
for self-attention, so heads are exchanged around it.

Source: DeepSpeed-Ulysses (arXiv:2309.14509), here with heads that differ in cost.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from dummyforcing.errors import UserError

Value = TypeVar("Value")

_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
"""Newer versions of torch call it so."""


class Ranks:
    """The process group that this process belongs to."""

    def __init__(self) -> None:
        """Take the default process group; `torch.distributed` must be initialised, all ranks come here."""
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        # Decoding goes on beside the transformer, and a communicator works on one thing at a time.
        self._beside = dist.new_group()

    def all_to_all(
        self, incoming: Tensor, outgoing: Tensor, in_sizes: Sequence[int], out_sizes: Sequence[int]
    ) -> None:
        """Give every rank a part of a flat tensor, and take one from each.

        Args:
            incoming: Receives the parts, in order.
            outgoing: Of the same dtype.
            in_sizes: Elements that come from each rank.
            out_sizes: Elements that go to each rank.
        """
        if incoming.element_size() == 1:  # float8 is bytes to NCCL and Gloo
            incoming, outgoing = incoming.view(torch.uint8), outgoing.view(torch.uint8)
        dist.all_to_all_single(incoming, outgoing, list(in_sizes), list(out_sizes))

    def exchange(self, outgoing: Sequence[Tensor], incoming: Sequence[int]) -> list[Tensor]:
        """Give every rank one tensor, and take one from each.

        Args:
            outgoing: For each rank, all of one dtype.
            incoming: How many elements come from each.

        Returns:
            What each sent, flat.
        """
        sent = torch.cat([part.flatten() for part in outgoing])
        received = sent.new_empty(sum(incoming))
        self.all_to_all(received, sent, incoming, [part.numel() for part in outgoing])
        return list(torch.split(received, list(incoming)))

    def sum(self, x: Tensor) -> Tensor:
        """The sum of a tensor over all ranks."""
        total = x.clone()
        dist.all_reduce(total)
        return total

    def gather(self, x: Tensor, sizes: Sequence[int], dim: int, beside: bool = False) -> Tensor:
        """Put together what ranks have.

        Args:
            x: What this one has.
            sizes: How much each has in dimension `dim`.
            dim: In which they differ.
            beside: Whether it is decoded pixels, which come beside the work of the transformer.
        """
        shape = list(x.shape)
        shape[dim] = max(sizes)
        padded = x.new_empty(self.size, *shape)
        mine = x.new_empty(shape)
        mine.narrow(dim, 0, x.shape[dim]).copy_(x)
        _all_gather(padded.flatten(0, 1), mine, group=self._beside if beside else None)
        return torch.cat([part.narrow(dim, 0, n) for part, n in zip(padded, sizes, strict=True)], dim)

    def share(self, make: Callable[[], Value]) -> Value:
        """What rank 0 makes, on all ranks, by way of the main memory; what it is refused, all are refused.

        Args:
            make: Called on rank 0 only.
        """
        made: list[Any] = [None, None]
        if self.rank == 0:
            try:
                made = [make(), None]
            except UserError as error:
                made = [None, error]
        dist.broadcast_object_list(made)
        if made[1] is not None:
            raise made[1]
        value: Value = made[0]
        return value

    def make(self, make: Callable[[], Value]) -> Value:
        """Make something on all ranks; what any of them is refused, rank 0 is refused, too.

        Args:
            make: Called on all of them.
        """
        error = None
        try:
            made = make()
        except UserError as refused:
            error = refused
        for one in self.collect(error) or [error]:
            if one is not None:
                raise one
        return made

    def collect(self, value: Any) -> list[Any] | None:
        """What all ranks have, on rank 0; None on the others."""
        found: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(value, found)
        return found


class TokenSplit:
    """The part of every latent frame's tokens that each rank has."""

    def __init__(self, ranks: Ranks, tokens: int) -> None:
        """Split evenly, but for the last rank.

        Args:
            ranks: Who shares them.
            tokens: Of one latent frame.
        """
        self.ranks, self.tokens = ranks, tokens
        self.part = -(-tokens // ranks.size)
        """Tokens of each rank but the last."""
        self.own = self._span(ranks.rank)
        """The first token of this rank in a latent frame, and one more than the last."""

    def _span(self, rank: int) -> tuple[int, int]:
        return min(rank * self.part, self.tokens), min((rank + 1) * self.part, self.tokens)

    @property
    def own_tokens(self) -> int:
        """How many tokens of a latent frame this rank has."""
        return self.own[1] - self.own[0]

    def take(self, x: Tensor, dim: int = 1) -> Tensor:
        """This rank's tokens of those in a dimension, frame after frame."""
        frames = x.view(*x.shape[:dim], -1, self.tokens, *x.shape[dim + 1 :])
        return frames.narrow(dim + 1, self.own[0], self.own_tokens).flatten(dim, dim + 1)

    def whole(self, x: Tensor) -> Tensor:
        """All tokens, from what each rank has of them: `(B, F * own, dim)` to `(B, F * tokens, dim)`."""
        own = x.view(len(x), -1, self.own_tokens, x.shape[-1])
        sizes = [end - first for first, end in map(self._span, range(self.ranks.size))]
        return self.ranks.gather(own, sizes, 2).flatten(1, 2)

    def to_heads(self, x: Tensor, heads: Sequence[Sequence[int]]) -> Tensor:
        """Give every rank its heads of all tokens.

        Args:
            x: All heads of this rank's tokens, `(B, F * own, H, D)`.
            heads: Those of each rank.

        Returns:
            This rank's heads of all tokens, `(B, F * tokens, H', D)`.
        """
        batch, width, own = x.shape[0], x.shape[-1], heads[self.ranks.rank]
        frames = x.shape[1] // self.own_tokens
        spans = [self._span(rank) for rank in range(self.ranks.size)]
        shapes = [(batch, frames, end - first, len(own), width) for first, end in spans]
        outgoing = [x[:, :, list(theirs)] for theirs in heads]
        received = self.ranks.exchange(outgoing, [torch.Size(shape).numel() for shape in shapes])
        parts = [part.view(shape) for part, shape in zip(received, shapes, strict=True)]
        return torch.cat(parts, 2).flatten(1, 2)

    def to_tokens(self, x: Tensor, heads: Sequence[Sequence[int]]) -> Tensor:
        """Give every rank all heads of its tokens: the way back."""
        batch, width = x.shape[0], x.shape[-1]
        frames = x.view(batch, -1, self.tokens, *x.shape[2:])
        outgoing = [frames[:, :, slice(*self._span(rank))] for rank in range(self.ranks.size)]
        shapes = [(batch, frames.shape[1] * self.own_tokens, len(theirs), width) for theirs in heads]
        received = self.ranks.exchange(outgoing, [torch.Size(shape).numel() for shape in shapes])
        parts = [part.view(shape) for part, shape in zip(received, shapes, strict=True)]
        order = [head for theirs in heads for head in theirs]
        places = [order.index(head) for head in range(1 + max(order))]
        return torch.cat(parts, 2)[:, :, places]
