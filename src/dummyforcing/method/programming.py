"""Dynamic head programming: from scores to a plan.

    plan = make_plan(policy, scorer.scores()[0], chunk=1)

Source: Dummy Forcing (arXiv:2601.20499).
"""

from math import floor

from torch import Tensor

from dummyforcing.errors import NotFinite
from dummyforcing.files.finite import all_finite, faults
from dummyforcing.method.budget import fit_heads
from dummyforcing.method.criteria import Role, by_look, choose_dummies
from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.method.policy import Policy


def make_plan(policy: Policy, scores: Tensor, chunk: int, fingerprint: str | None = None) -> Plan:
    """Turn scores into a plan.

    Args:
        policy: With roles.
        scores: Of one sample, `(layers, heads, 3)`.
        chunk: The chunk that was scored.
        fingerprint: Of the model.

    Returns:
        The context of every head, and how it was found.

    Raises:
        NotFinite: If a score is NaN or infinite.
    """
    assert policy.roles is not None
    require_finite_scores(scores, chunk)
    total, contexts = scores.shape[0] * scores.shape[1], dict(policy.roles)
    if policy.budget is None:
        roles = assign_roles(scores, policy.dummy_heads(total), policy.criterion, policy.seed)
    else:
        cap = policy.roles[Role.NEIGHBOR].recent
        assert cap is not None
        roles, recent = fit_heads(scores, cap, floor(policy.budget * total))
        contexts[Role.NEIGHBOR] = HeadContext(0, recent)
    return Plan(
        roles=roles,
        table={str(role): context for role, context in contexts.items()},
        policy=policy.name,
        chunk=chunk,
        score_pass=policy.score_pass,
        seed=policy.seed,
        num_dummy=sum(row.count(Role.DUMMY) for row in roles),
        scores=tuple(tuple(tuple(round(x, 7) for x in head) for head in row) for row in scores.tolist()),
        fingerprint=fingerprint,
    )


def require_finite_scores(scores: Tensor, chunk: int) -> None:
    """Refuse scores by which nothing can be sorted.

    Args:
        scores: Of any number of heads.
        chunk: The chunk that was scored.

    Raises:
        NotFinite: If one is NaN or infinite.
    """
    if not all_finite(scores):
        raise NotFinite(
            f"The heads cannot be classified by chunk {chunk}: of their scores, {faults(scores)}",
            'load the model with torch_dtype="float32", or look at what it was made with',
        )


def assign_roles(
    scores: Tensor, num_dummy: int, criterion: str = "dhp", seed: int = 0
) -> tuple[tuple[Role, ...], ...]:
    """Choose the dummy heads, then sort the rest.

    Args:
        scores: Attention mass on first, middle and current frames, `(layers, heads, 3)`.
        num_dummy: How many heads become dummy.
        criterion: A name of `CRITERIA`.
        seed: Of `random`.

    Returns:
        The role of each head, layer by layer; ties go by layer, then head.
    """
    layers, heads, _ = scores.shape
    roles = by_look(scores)
    for head in choose_dummies(scores, num_dummy, criterion, seed):
        roles[head] = Role.DUMMY
    return tuple(tuple(roles[layer * heads : (layer + 1) * heads]) for layer in range(layers))
