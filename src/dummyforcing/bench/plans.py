"""Head plans to measure with: fixed ones, so that random weights classify nothing."""

import torch

from dummyforcing.errors import BadRequest
from dummyforcing.method.criteria import Role
from dummyforcing.method.loading import is_code
from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.method.policy import POLICIES, installed
from dummyforcing.models.wan import ModelConfig


def fixture_plan(
    layers: int,
    heads: int,
    *,
    neighbors: int | None = None,
    recent: int | None = 3,
    name: str = "dummy",
    seed: int = 0,
) -> Plan:
    """A plan of fixed size, spread unevenly over the layers as found plans are.

    Args:
        layers: Of the model.
        heads: Of the model, per layer.
        neighbors: How many heads are neighbors; None: a quarter. Of the others two thirds are dummy, and a
            third is sink: of 360 heads 180 dummy, 90 sink, 90 neighbor.
        recent: How many recent frames neighbor heads see; None: all.
        name: Of the plan's policy.
        seed: Of the draw without replacement that gives the heads their roles.

    Returns:
        The plan, the same at every call; it fits any model of this size.

    Raises:
        BadRequest: If there are fewer heads than neighbors.
    """
    total = layers * heads
    count = total // 4 if neighbors is None else neighbors
    if not 0 <= count <= total:
        raise BadRequest(
            f"{count} neighbor heads were asked for, but the model has {total} heads",
            f"take {total} at most",
            "policy",
        )
    sinks = (total - count) // 3
    roles = [str(Role.NEIGHBOR)] * total
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).tolist()
    for place, head in enumerate(order[: total - count]):
        roles[head] = str(Role.SINK if place < sinks else Role.DUMMY)
    return Plan(
        roles=tuple(tuple(roles[layer * heads : (layer + 1) * heads]) for layer in range(layers)),
        table={
            str(Role.DUMMY): HeadContext(0, 1),
            str(Role.SINK): HeadContext(1, 0),
            str(Role.NEIGHBOR): HeadContext(0, recent),
        },
        policy=name,
        seed=seed,
        num_dummy=total - count - sinks,
    )


def plan_of(policy: str, config: ModelConfig, seed: int = 0) -> Plan | None:
    """The fixed plan of a policy's name, in place of one that is found on the way.

    Args:
        policy: `dummy`; `long:N,CAP` or `long:N`, where N neighbor heads see CAP past frames, or all; or a
            policy of `dummyforcing generate`, of which heads are classified on the way.
        config: Sizes of the model.
        seed: Another one gives other heads the same roles.

    Returns:
        The plan of the first two; None: the policy does without.

    Raises:
        BadRequest: If there is no such policy, or the numbers do not fit it.
    """
    name, _, numbers = policy.partition(":")
    layers, heads = config.num_layers, config.num_heads
    if policy == "dummy":
        return fixture_plan(layers, heads, seed=seed)
    if name != "long":
        known = (*POLICIES, *installed(), "native")
        if name not in known and not is_code(policy):
            raise BadRequest(
                f"There is no policy '{policy}' to measure", f"the policies are {', '.join(known)}", "policy"
            )
        return None
    parts = numbers.split(",")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise BadRequest(
            f"Policy '{policy}' cannot be read", "write long:N,CAP with whole numbers, or long:N", "policy"
        )
    cap = int(parts[1]) if len(parts) == 2 else None
    return fixture_plan(layers, heads, neighbors=int(parts[0]), recent=cap, name=policy, seed=seed)
