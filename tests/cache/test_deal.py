"""Heads dealt to GPUs: the slowest one has least to do, by brute force."""

import random
from itertools import product

import pytest

from dummyforcing.cache.deal import CUTTING_GAINS, Deal, _deal_whole, deal_heads, slowest


@pytest.mark.parametrize("seed", range(120))
def test_whole_heads_are_dealt_best(seed: int) -> None:
    rng = random.Random(seed)
    heads = rng.randint(2, 7)
    ranks = rng.randint(2, min(4, heads))
    costs = tuple(rng.choice([3, 4, 6, 9, 24]) for _ in range(heads))
    loads = (
        [sum(cost for cost, at in zip(costs, places, strict=True) if at == rank) for rank in range(ranks)]
        for places in product(range(ranks), repeat=heads)
    )
    deal = _deal_whole(costs, ranks)
    assert slowest(deal, costs) == min(map(max, loads))
    assert all(deal.heads(rank) for rank in range(ranks))  # nobody is idle


@pytest.mark.parametrize("ranks", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("seed", range(8))
def test_every_query_is_answered_once(ranks: int, seed: int) -> None:
    rng = random.Random(seed)
    costs = tuple(rng.choice([4, 6, 24]) for _ in range(rng.choice([8, 12, 40])))
    deal = deal_heads(costs, ranks)
    for head, source in product(range(len(costs)), range(ranks)):
        answering = [
            rank
            for rank, parts in enumerate(deal.parts)
            for part in parts
            if part.head == head and part.first <= source < part.end
        ]
        assert len(answering) == 1
        assert answering[0] in deal.keepers(head)


def test_heads_are_cut_where_that_is_faster() -> None:
    """Twelve equal heads on eight GPUs: one and a half each, in place of two on half of them."""
    deal = deal_heads((24,) * 12, 8)
    assert slowest(deal, (24,) * 12) == 36
    assert {len(deal.heads(rank)) for rank in range(8)} == {2}
    assert max(len(deal.keepers(head)) for head in range(12)) == 2
    even = deal_heads((4,) * 12, 4)
    assert even == Deal.whole([even.heads(rank) for rank in range(4)])  # nothing is cut in vain


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_nobody_has_much_more_to_do(ranks: int) -> None:
    """With half of the heads dummy, as the paper has them: within a token's part of the even share."""
    for neighbors in range(13):
        costs = (4,) * (12 - neighbors) + (6,) * neighbors
        even = sum(costs) / ranks
        assert slowest(deal_heads(costs, ranks), costs) <= max(
            even + max(costs) / ranks, even / CUTTING_GAINS
        )


def test_many_kinds_of_heads_are_dealt_quickly() -> None:
    costs = tuple(range(3, 43))
    deal = deal_heads(costs, 8)
    assert slowest(deal, costs) <= 1.1 * sum(costs) / 8
