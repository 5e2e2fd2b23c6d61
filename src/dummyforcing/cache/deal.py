"""Which GPU keeps, and attends with, which heads of a layer.

Every GPU has the queries of its own tokens, a part of each latent frame; a head's queries of all tokens go to
the GPU that has the head. Heads cost what they see, so a plan makes them unequal. Where whole heads cannot be
dealt evenly, a head is cut: GPUs that share it keep its keys and values both, and attend for the tokens of
some of the GPUs each.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import NamedTuple

CUTTING_GAINS = 0.97
"""Heads are cut if the slowest GPU then has less to do than this share of what it has with whole heads: a cut
head is kept twice, and takes attention calls of its own."""
MOST_STATES = 20_000
"""Of the exact search for the best deal of whole heads; beyond it the largest goes to the least laden."""


class Part(NamedTuple):
    """A head, or the part of it that one GPU attends with."""

    head: int
    first: int
    """The first GPU whose tokens' queries these are."""
    end: int
    """One more than the last."""


@dataclass(frozen=True)
class Deal:
    """What each GPU has of a layer's heads."""

    parts: tuple[tuple[Part, ...], ...]
    """Of each GPU."""

    @classmethod
    def whole(cls, heads: Sequence[Sequence[int]]) -> "Deal":
        """Give every GPU whole heads."""
        ranks = len(heads)
        return cls(tuple(tuple(Part(head, 0, ranks) for head in sorted(row)) for row in heads))

    def heads(self, rank: int) -> tuple[int, ...]:
        """The heads whose keys and values a GPU keeps, in order."""
        return tuple(sorted({part.head for part in self.parts[rank]}))

    def keepers(self, head: int) -> list[int]:
        """The GPUs that keep a head's keys and values."""
        return [rank for rank in range(len(self.parts)) if head in self.heads(rank)]


@lru_cache(maxsize=1024)
def deal_heads(costs: tuple[int, ...], ranks: int) -> Deal:
    """Deal the heads of a layer so that the slowest GPU has least to do.

    Args:
        costs: Of each head: how many frames it sees, those of the current chunk included.
        ranks: How many GPUs there are.
    """
    whole = _deal_whole(costs, ranks)
    cut = _deal_cut(costs, ranks)
    return cut if slowest(cut, costs) < CUTTING_GAINS * slowest(whole, costs) else whole


def slowest(deal: Deal, costs: Sequence[int]) -> float:
    """What the GPU with most to do has to do."""
    ranks = len(deal.parts)
    return max(sum(costs[head] * (end - first) / ranks for head, first, end in row) for row in deal.parts)


def _deal_whole(costs: tuple[int, ...], ranks: int) -> Deal:
    """The best deal of whole heads: exact where few heads differ in cost."""
    counts = sorted(Counter(costs).items(), reverse=True)
    shares = _best_shares(tuple(counts), ranks)
    heads = {kind: [head for head, cost in enumerate(costs) if cost == kind] for kind, _ in counts}
    return Deal.whole(
        [
            [heads[kind].pop(0) for (kind, _), n in zip(counts, share, strict=True) for _ in range(n)]
            for share in shares
        ]
    )


Shares = list[tuple[int, ...]]
"""How many heads of each cost every GPU gets."""


@lru_cache(maxsize=1024)
def _best_shares(counts: tuple[tuple[int, int], ...], ranks: int) -> Shares:
    """Share out so many heads of each cost."""
    kinds, numbers = [kind for kind, _ in counts], tuple(n for _, n in counts)
    shares = _greedy(kinds, numbers, ranks)
    if prod(n + 1 for n in numbers) <= MOST_STATES:
        shares = _search(kinds, numbers, ranks, shares)
    return _without_idle(shares)


def _greedy(kinds: Sequence[int], counts: Sequence[int], ranks: int) -> Shares:
    """The costliest head that is left goes to the GPU that has least."""
    shares, loads = [[0] * len(kinds) for _ in range(ranks)], [0] * ranks
    for number, kind in enumerate(kinds):
        for _ in range(counts[number]):
            rank = min(range(ranks), key=loads.__getitem__)
            shares[rank][number] += 1
            loads[rank] += kind
    return [tuple(share) for share in shares]


def _search(kinds: Sequence[int], counts: tuple[int, ...], ranks: int, known: Shares) -> Shares:
    """Lower the load of the slowest GPU of a known deal as far as possible."""

    def load(share: Sequence[int]) -> int:
        return sum(kind * n for kind, n in zip(kinds, share, strict=True))

    def fit(most: int) -> Shares | None:
        dead: set[tuple[tuple[int, ...], int]] = set()

        def place(left: tuple[int, ...], ranks: int) -> Shares | None:
            if load(left) > most * ranks or (left, ranks) in dead:
                return None
            if not ranks:
                return []
            for share in _maximal(kinds, left, most):
                rest = place(tuple(a - b for a, b in zip(left, share, strict=True)), ranks - 1)
                if rest is not None:
                    return [share, *rest]
            dead.add((left, ranks))
            return None

        return place(counts, ranks)

    best = known
    while (better := fit(max(map(load, best)) - 1)) is not None:
        best = better
    return best


def _without_idle(shares: Shares) -> Shares:
    """Give GPUs without heads one of those that have several, as far as there are any."""
    rows = [list(share) for share in shares]
    for idle in rows:
        most = max(rows, key=sum)
        if not any(idle) and sum(most) > 1:
            kind = next(number for number, n in enumerate(most) if n)
            most[kind] -= 1
            idle[kind] += 1
    return [tuple(row) for row in rows]


def _maximal(kinds: Sequence[int], left: tuple[int, ...], most: int) -> Shares:
    """The shares up to a load to which no head that is left could be added; others are no better."""
    shares: list[tuple[tuple[int, ...], int]] = [((), most)]
    for kind, count in zip(kinds, left, strict=True):
        shares = [
            ((*share, n), room - n * kind)
            for share, room in shares
            for n in range(min(count, room // kind if kind else count) + 1)
        ]
    return [
        share
        for share, room in shares
        if not any(n < count and kind <= room for n, count, kind in zip(share, left, kinds, strict=True))
    ]


def _deal_cut(costs: tuple[int, ...], ranks: int) -> Deal:
    """All heads one after the other, cut at equal shares of the work, to a GPU's tokens.

    Source: McNaughton's wrap-around rule (Management Science 6, 1959).
    """
    order = sorted(range(len(costs)), key=lambda head: -costs[head])
    total, done = sum(costs), 0.0
    parts: list[list[Part]] = [[] for _ in range(ranks)]
    for head in order:
        first, cost = 0, costs[head]
        for rank in range(ranks):
            # Up to this place in the row of all heads the GPU's share reaches, in GPUs' tokens of this head.
            room = (total * (rank + 1) / ranks - done) / cost * ranks if cost else ranks
            end = ranks if rank == ranks - 1 else max(first, min(ranks, round(room)))
            if end > first:
                parts[rank].append(Part(head, first, end))
            first = end
        done += cost
    return Deal(tuple(tuple(sorted(row)) for row in parts))
