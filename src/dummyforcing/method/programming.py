"""Dynamic head programming: from scores to a plan.

    plan = make_plan(policy, scorer.scores()[0], chunk=1)

Source: Dummy Forcing (arXiv:2601.20499).
"""

from math import floor

from torch import Tensor

from dummyforcing.errors import BadRequest, NotFinite
from dummyforcing.files.finite import all_finite, faults
from dummyforcing.method.budget import fit_heads
from dummyforcing.method.criteria import Criterion, Role, by_look, choose_dummies
from dummyforcing.method.own import explained
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
        BadRequest: If code of the user's own fails, or does not give every head a role of the policy.
    """
    assert policy.roles is not None
    require_finite_scores(scores, chunk)
    total, contexts = scores.shape[0] * scores.shape[1], dict(policy.roles)
    roles: tuple[tuple[str, ...], ...]
    if policy.assign is not None:
        roles = _own_roles(policy, scores)
    elif policy.budget is None:
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


def _own_roles(policy: Policy, scores: Tensor) -> tuple[tuple[str, ...], ...]:
    """The roles that a policy of the user's own gives, if there is one of its table for every head."""
    assert policy.assign is not None
    assert policy.roles is not None
    what, (layers, heads) = f"Policy '{policy.name}'", scores.shape[:2]
    with explained(what):
        given = policy.assign(scores.cpu().clone())
        rows = [list(row) for row in given if not isinstance(row, str)]
    sizes = {len(row) for row in rows}
    if len(rows) != layers or sizes != {heads}:
        found = f"{len(rows)} rows of {' or '.join(map(str, sorted(sizes))) or 'no'} roles"
        raise BadRequest(
            f"{what} gave {found}", f"give {layers} rows, one per layer, of {heads} roles each", "policy"
        )
    for role in (role for row in rows for role in row):
        if not isinstance(role, str) or role not in policy.roles:
            raise BadRequest(
                f"{what} gave a head role {role!r}, and does not say what that sees",
                f"give one of its roles ({', '.join(policy.roles)}), or put it into them",
                "policy",
            )
    return tuple(tuple(str(role) for role in row) for row in rows)


def assign_roles(
    scores: Tensor, num_dummy: int, criterion: str | Criterion = "dhp", seed: int = 0
) -> tuple[tuple[Role, ...], ...]:
    """Choose the dummy heads, then sort the rest.

    Args:
        scores: Attention mass on first, middle and current frames, `(layers, heads, 3)`.
        num_dummy: How many heads become dummy.
        criterion: A name of `CRITERIA`, or a function like those there.
        seed: Of `random`.

    Returns:
        The role of each head, layer by layer; ties go by layer, then head.
    """
    layers, heads, _ = scores.shape
    roles = by_look(scores)
    for head in choose_dummies(scores, num_dummy, criterion, seed):
        roles[head] = Role.DUMMY
    return tuple(tuple(roles[layer * heads : (layer + 1) * heads]) for layer in range(layers))
