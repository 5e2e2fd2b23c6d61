"""Criteria that choose the dummy heads: that of dynamic head programming, others, and controls.

A criterion sees where all heads of a model look and names those that are to lose their past. The heads that
stay are sorted alike by all criteria: a head that looks more at middle than at first frames is a neighbor.
"""

from collections.abc import Callable, Sequence
from enum import StrEnum

import torch
from torch import Tensor

from dummyforcing.errors import BadRequest
from dummyforcing.method.own import explained

Criterion = Callable[[Tensor, int, int], Sequence[int] | Tensor]
"""`criterion(mass, count, seed) -> heads`: the numbers of heads that become dummy, the first to go first, of
`mass (heads, 3)` float64, on first, middle and current frames. How many were asked for is `count`; it may
give more or fewer."""

CURRENT_THRESHOLD = 0.8
"""The current mass from which the paper calls a head dummy when it looks at heads one by one."""


class Role(StrEnum):
    """The role of a head."""

    DUMMY = "dummy"
    SINK = "sink"
    NEIGHBOR = "neighbor"


def dhp(mass: Tensor, count: int, seed: int) -> list[int]:
    """Dynamic head programming: the heads whose past costs least to lose.

    With p0 and p1 the masses on first and middle frames, each normalised over all heads, a dummy head costs
    max(p0, p1). Taking the cheapest heads is the exact optimum of the summed cost.
    """
    return _cheapest(_shares(mass).amax(1), count)


def current(mass: Tensor, count: int, seed: int) -> list[int]:
    """The heads with the most current mass; first and middle frames weigh alike."""
    return _cheapest(-mass[:, 2], count)


def threshold(mass: Tensor, count: int, seed: int) -> list[int]:
    """The heads whose current mass exceeds `CURRENT_THRESHOLD`, however many these are."""
    return torch.nonzero(mass[:, 2] > CURRENT_THRESHOLD)[:, 0].tolist()


def dearest(mass: Tensor, count: int, seed: int) -> list[int]:
    """The opposite of `dhp`, as a control."""
    return _cheapest(-_shares(mass).amax(1), count)


def random(mass: Tensor, count: int, seed: int) -> list[int]:
    """Any heads, as a control."""
    return torch.randperm(len(mass), generator=torch.Generator().manual_seed(seed))[:count].tolist()


CRITERIA: dict[str, Criterion] = {
    "dhp": dhp,
    "current": current,
    "threshold": threshold,
    "dearest": dearest,
    "random": random,
}


def choose_dummies(
    scores: Tensor, num_dummy: int, criterion: str | Criterion = "dhp", seed: int = 0
) -> list[int]:
    """The heads that become dummy, the first to go first, counted through all layers.

    Args:
        scores: Attention mass on first, middle and current frames, `(layers, heads, 3)`.
        num_dummy: How many heads become dummy; `threshold` finds the number itself.
        criterion: A name of `CRITERIA`, or a function like those there.
        seed: Of `random`.

    Raises:
        BadRequest: If a function of the user's own fails, or gives something else than heads.
    """
    mass = scores.double().cpu().flatten(0, 1)
    if isinstance(criterion, str):
        return list(CRITERIA[criterion](mass, num_dummy, seed))
    what = f"Criterion '{getattr(criterion, '__name__', type(criterion).__name__)}'"
    with explained(what):
        given = criterion(mass.clone(), num_dummy, seed)
        heads = list(given.tolist() if isinstance(given, Tensor) else given)
    known = set(range(len(mass)))
    if wrong := [head for head in heads if isinstance(head, bool) or head not in known]:
        raise BadRequest(
            f"{what} chose head {wrong[0]!r}", f"give whole numbers from 0 to {len(mass) - 1}", "policy"
        )
    return [int(head) for head in dict.fromkeys(heads)]


def by_look(scores: Tensor) -> list[Role]:
    """Sort all heads into sink and neighbor heads, by where they look more; counted through all layers.

    Args:
        scores: Attention mass on first, middle and current frames, `(layers, heads, 3)`.
    """
    first, middle = _shares(scores.double().cpu().flatten(0, 1)).T.tolist()
    return [Role.NEIGHBOR if p0 < p1 else Role.SINK for p0, p1 in zip(first, middle, strict=True)]


def _shares(mass: Tensor) -> Tensor:
    """Masses on first and on middle frames, each normalised over all heads, `(heads, 2)`."""
    return (mass / mass.sum(0).clamp_min(torch.finfo(mass.dtype).tiny))[:, :2]


def _cheapest(cost: Tensor, count: int) -> list[int]:
    """The `count` heads of least cost, ties by number."""
    return cost.argsort(stable=True)[:count].tolist()
