"""Scores of heads: their shares of attention on first frames, middle frames and the current chunk.

    scorer.observe(layer, q, groups)     # while a chunk is denoised
    scorer.scores()                      # (B, layers, heads, 3)

Source: Dummy Forcing (arXiv:2601.20499), online head classification.
"""

from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dummyforcing.kernels.mass import log_mass
from dummyforcing.kernels.transfers import send
from dummyforcing.method.policy import Policy

RowSampler = Callable[[int, int], Tensor]
"""`rows(layer, L) -> (R,)` int64: the query rows of a chunk that one scoring call looks at."""

Labels = Callable[[Tensor, int], Tensor]
"""`label(frames, current) -> (H, slots)` int64: the region of each frame slot; see `frame_regions`."""


class Group(Protocol):
    """The interface of the cache's `HeadGroup`, as far as scoring needs it."""

    @property
    def k(self) -> Tensor:
        """Keys, `(B', S, H', D)`."""

    @property
    def frames(self) -> tuple[tuple[int, ...], ...]:
        """The frame in each slot of `S`, for each of the `H'` heads."""

    def select(self, x: Tensor) -> Tensor:
        """Take the group's part of `x (B, L, H, D)`."""

    def scatter(self, out: Tensor, part: Tensor) -> None:
        """Write `part (B', L, H', D)` to its place in `out (B, L, H, D)`."""


def row_sampler(policy: Policy) -> RowSampler:
    """Draw rows as `policy` says, from a generator of its own."""
    generator = torch.Generator().manual_seed(policy.seed)

    def sample(layer: int, length: int) -> Tensor:
        if policy.rows is None:
            return torch.arange(length)
        count = policy.rows if isinstance(policy.rows, int) else int(policy.rows * length)
        return torch.randint(length, (max(count, 1),), generator=generator)

    return sample


def attention_mass(q: Tensor, k: Tensor, slots: int) -> Tensor:
    """Measure the share of attention that each head spends on each frame slot.

    The softmax over all keys is one over slots, of what `log_mass` gives.

    Args:
        q: Query rows, RoPE applied, `(B, R, H, D)`.
        k: Visible keys, RoPE applied, `(B, S, H, D)`.
        slots: How many frames `S` holds.

    Returns:
        Mean over the rows, `(B, H, slots)` float32; the slots sum to 1.
    """
    return log_mass(q, k, slots).softmax(-1).mean(2)


def region_mass(q: Tensor, groups: Sequence[Group], rows: Tensor, label: Labels, count: int) -> Tensor:
    """Measure the share of attention that each head spends on each region of frames, in one attention call.

    Args:
        q: Queries of the current chunk, RoPE applied, `(B, L, H, D)`.
        groups: What they attend to.
        rows: The query rows to look at, `(R,)` int64.
        label: Tells the region of each frame.
        count: How many regions there are.

    Returns:
        Mean over the rows, `(B, H, count)` float32; the regions sum to 1.
    """
    # Copies to a GPU wait for nothing here: the rollout runs on while heads are watched.
    chosen = q.index_select(1, rows.to(q.device, non_blocking=True))
    out = torch.empty(q.shape[0], 1, q.shape[2], count, device=q.device)
    for group in groups:
        slots = len(group.frames[0])
        current = q.shape[1] * slots // group.k.shape[1]
        regions = F.one_hot(label(torch.tensor(group.frames), current), count).float()
        mass = attention_mass(group.select(chosen), group.k, slots)
        part = torch.einsum("bhs,hsr->bhr", mass, regions.to(q.device, non_blocking=True))
        group.scatter(out, part[:, None])
    return out[:, 0]


class HeadScorer:
    """Accumulates where heads look, over the scored calls of one chunk."""

    def __init__(
        self,
        batch: int,
        layers: int,
        heads: int,
        first_frames: int,
        rows: RowSampler,
        last_frames: int = 0,
        score_pass: Literal["denoise", "commit"] = "denoise",
        total: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.rows, self.score_pass = rows, score_pass
        self._total = total
        """Adds up a tensor over the GPUs that score some heads each; None: there is one."""
        self._label = partial(frame_regions, first=first_frames, last=last_frames)
        self._sum = torch.zeros(batch, layers, heads, 3)
        self._calls = torch.zeros(layers, heads, 1)

    def copy(self) -> "HeadScorer":
        """Another one that goes on from here; both draw rows from the same source."""
        other = copy(self)
        other._sum, other._calls = self._sum.clone(), self._calls.clone()
        return other

    def watches(self, step: int | None) -> bool:
        """Whether it is to observe a denoising step, or a commit pass (None)."""
        return (step is None) == (self.score_pass == "commit")

    def observe(
        self, layer: int, q: Tensor, groups: Sequence[Group], heads: Sequence[int] | None = None
    ) -> None:
        """Score one attention call.

        Args:
            layer: Its layer.
            q: Queries of the current chunk, RoPE applied, `(B, L, H, D)`.
            groups: What the queries attend to.
            heads: Which heads of the layer they are of; None: all.
        """
        self._sum = self._sum.to(q.device)
        mass = region_mass(q, groups, self.rows(layer, q.shape[1]), self._label, 3)
        if heads is None or len(heads) == self._sum.shape[2]:
            self._sum[:, layer] += mass
            self._calls[layer] += 1
        else:
            self._calls[layer, list(heads)] += 1
            self._sum[:, layer].index_add_(1, send(torch.tensor(heads), q.device), mass)

    def scores(self) -> Tensor:
        """Attention mass on first, middle and current frames, `(B, layers, heads, 3)` float32, on the CPU."""
        sums, calls = self._sum.cpu(), self._calls
        if self._total is not None:
            sums, calls = self._total(sums), self._total(calls)
        return sums / calls


def frame_regions(frames: Tensor, current: int, first: int, last: int = 0) -> Tensor:
    """Tell for each frame slot whether it holds a first frame (0), a middle one (1) or a current one (2).

    Args:
        frames: Absolute frame number in each slot, `(H, slots)` int64, in any order.
        current: How many frames, the newest ones, are the current chunk.
        first: How many of the oldest past frames count as first.
        last: How many of the newest past frames count as current.

    Returns:
        `(H, slots)` int64.
    """
    age_rank = frames.argsort(1).argsort(1)
    regions = torch.where(age_rank < first, 0, 1)
    return regions.masked_fill(age_rank >= frames.shape[1] - current - last, 2)
