"""Stability of roles over videos, steps and chunks; sets are boolean over heads."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dummyforcing.analysis.atlas import ROLES, Atlas, codes_of, policy_codes, role_codes, roles_of
from dummyforcing.method.criteria import Role
from dummyforcing.method.policy import Policy

AXES = ("prompt", "seed", "chunk", "step")
"""What conditions differ in, in the order of the axes of `Atlas.mass`."""

Sets = NDArray[np.bool_]
Codes = NDArray[np.integer]


def jaccard(sets: Sets) -> NDArray[np.float64]:
    """Compare sets with each other: size of the intersection / size of the union; two empty sets are equal.

    Args:
        sets: `(n, heads)`.

    Returns:
        `(n, n)`.
    """
    members = sets.astype(np.float64)
    both = members @ members.T
    sizes = members.sum(1)
    union = sizes[:, None] + sizes - both
    similarity: NDArray[np.float64] = np.divide(both, union, out=np.ones_like(both), where=union > 0)
    return similarity


def core_ratio(sets: Sets, axes: Sequence[int]) -> float:
    """Size of what sets have in common / their mean size.

    Args:
        sets: `(..., heads)`.
        axes: The axes over which the common part is taken; over the others, ratios are averaged.

    Returns:
        1 if the sets are equal along `axes` (or all empty), 0 if they have nothing in common.
    """
    common = sets.all(axis=tuple(axes)).sum(-1)
    size = sets.sum(-1).mean(axis=tuple(axes))
    ratios = np.divide(common, size, out=np.ones_like(size, dtype=np.float64), where=size > 0)
    return float(ratios.mean())


@dataclass(frozen=True)
class Stability:
    """Stability of the set of dummy heads over all conditions."""

    overall: float
    """Core ratio over all conditions at once."""
    along: dict[str, tuple[int, float]]
    """Axis -> its length, and the core ratio when nothing but it varies (mean over the rest)."""
    similarity: float
    """Mean Jaccard similarity of two different conditions."""
    chance: float
    """Mean Jaccard similarity of two random sets of that size, nearly."""


def stability(scores: NDArray[np.float32], num_dummy: int) -> Stability:
    """Measure it.

    Args:
        scores: Mass on first, middle and current frames, `(prompts, seeds, chunks, steps, layers, heads, 3)`.
        num_dummy: How many heads become dummy under each condition.
    """
    sets = dummy_sets(role_codes(scores, num_dummy))
    along = {
        name: (sets.shape[axis], core_ratio(sets, [axis]))
        for axis, name in enumerate(AXES)
        if sets.shape[axis] > 1
    }
    matrix = jaccard(sets.reshape(-1, sets.shape[-1]))
    n, share = len(matrix), num_dummy / sets.shape[-1]
    return Stability(
        core_ratio(sets, range(len(AXES))),
        along,
        float((matrix.sum() - n) / (n * (n - 1))) if n > 1 else 1.0,
        share / (2 - share),
    )


def dummy_sets(codes: Codes) -> Sets:
    """Sets of dummy heads: role codes `(..., layers, heads)` -> `(..., layers * heads)`."""
    sets: Sets = (codes == ROLES.index(Role.DUMMY)).reshape(*codes.shape[:-2], -1)
    return sets


@dataclass(frozen=True)
class Finding:
    """The roles that one way of looking finds."""

    name: str
    codes: Codes
    """`(layers, heads)`."""


def findings(atlas: Atlas, policy: Policy) -> Iterator[Finding]:
    """Find the roles of every chunk: in the denoising steps of all videos, then in their commit passes."""
    for name, calls in (("denoising", atlas.denoising), ("commit", atlas.commit)):
        for place, chunk in enumerate(atlas.settings.chunks):
            if calls:
                scores = atlas.regions[:, :, place][:, :, calls].mean((0, 1, 2), dtype=np.float64)
                yield Finding(f"{name}, chunk {chunk}", policy_codes(scores, policy))


def agreement(a: Codes, b: Codes) -> tuple[float, float]:
    """Compare two sets of roles `(layers, heads)`.

    Returns:
        The share of heads with equal roles, and the Jaccard similarity of the dummy heads.
    """
    return float((a == b).mean()), float(jaccard(dummy_sets(np.stack([a, b])))[0, 1])


def single_videos(atlas: Atlas, policy: Policy) -> tuple[float, float]:
    """Compare the plan that each video alone would find with the plan of all.

    A video alone is scored as the policy says: in its chunk if that was watched, else in the first that was.

    Returns:
        As `agreement`, mean over the videos.
    """
    plan = atlas.plan(policy)
    merged = codes_of(plan.roles, roles_of(policy))
    chunks = atlas.settings.chunks
    place = chunks.index(policy.classify_at_chunk) if policy.classify_at_chunk in chunks else 0
    own = policy_codes(atlas.scored(policy)[:, :, place].mean(2, dtype=np.float64), policy)
    pairs = [agreement(codes, merged) for codes in own.reshape(-1, *merged.shape)]
    same, overlap = np.mean(pairs, axis=0).tolist()
    return same, overlap
