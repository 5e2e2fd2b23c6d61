"""Budgets of attention, and their best use: few heads with a long past, the others with one frame.

At one size and precision, both the work of attention and the bytes of the KV cache are proportional to the
head-frames: the frames that a head sees, the current ones included, summed over all heads. So one solver
serves both.
"""

import re
from fractions import Fraction
from math import ceil

from torch import Tensor

from dummyforcing.errors import BadRequest
from dummyforcing.method.criteria import Role, by_look, choose_dummies

DEFAULT_BUDGET = "window:12"
"""The cost of LongLive's own window, the chunk included."""
UNITS = {"MB": 10**6, "GB": 10**9}


def past_within(text: str, current: int, frame_bytes: int, fixed_bytes: int) -> Fraction:
    """Read a budget, and find how many past frames per head it pays for.

    Args:
        text: `window:N`, as much as if every head saw N frames, the current ones included; or the bytes of
            the KV cache of one video, such as `2GB` or `1.5MB` (powers of ten).
        current: Latent frames that are denoised at a time.
        frame_bytes: Keys and values of one frame, of all heads of all layers.
        fixed_bytes: What a cache takes besides past frames.

    Returns:
        Past frames, mean over heads; at least 1.

    Raises:
        BadRequest: If the text cannot be read, or heads with one past frame each cost more already; names the
            least that works.
    """
    window = re.fullmatch(r"window:(\d+)", text)
    size = re.fullmatch(r"(\d+(?:\.\d+)?)(MB|GB)", text, re.IGNORECASE)
    if window:
        past, least = Fraction(int(window[1]) - current), f"window:{current + 1}"
    elif size:
        nbytes = Fraction(size[1]) * UNITS[size[2].upper()]
        past = (nbytes - fixed_bytes) / frame_bytes
        least = f"{ceil(Fraction(frame_bytes + fixed_bytes, 10**5)) / 10:.1f}MB"
    else:
        raise BadRequest(
            f"The budget '{text}' cannot be read",
            "write window:N, the cost of N frames for every head, or a "
            "size of the KV cache such as 500MB or 2GB",
            "budget",
        )
    if past < 1:
        raise BadRequest(
            f"A budget of {text} is too small: every head sees {current} current frames and one past frame "
            f"at least",
            f"take {least} or more",
            "budget",
        )
    return past


def fit_heads(scores: Tensor, cap: int, past: int) -> tuple[tuple[tuple[Role, ...], ...], int]:
    """Choose roles and the context of neighbor heads within a budget: dynamic head programming by cost.

    Heads that look more at first than at middle frames are sink; sink and dummy heads see one past frame, so
    only neighbor heads cost more, all of them alike. The exact optimum of two aims, in this order:

    1. Neighbor heads see `cap` past frames, or, where the budget has no room for one such head, as many as a
       single head can.
    2. Of all sets of dummy heads that meet the budget then, this one has the least summed opportunity cost
       (see `criteria.dhp`). Making a sink head dummy saves nothing, and all neighbor heads save equally much:
       so it is the cheapest neighbor heads, as few as will do.

    If there are dummy heads, what is left of the budget is less than one more neighbor head costs; no context
    is made shorter to spend it.

    Args:
        scores: Attention mass on first, middle and current frames, `(layers, heads, 3)`.
        cap: Most past frames of a neighbor head, at least 1.
        past: Past frames of all heads together, at most.

    Returns:
        The role of each head, layer by layer; ties go by layer, then head. And the past frames of neighbor
        heads.

    Raises:
        BadRequest: If there is less than one past frame per head.
    """
    layers, heads, _ = scores.shape
    spare = past - layers * heads
    if spare < 0:
        raise BadRequest(
            f"{past} past frames are too few for {layers * heads} heads", "each one sees one at least"
        )
    roles = by_look(scores)
    by_cost = [head for head in choose_dummies(scores, len(roles)) if roles[head] is Role.NEIGHBOR]
    recent = min(cap, 1 + spare)
    kept = len(by_cost) if recent == 1 else min(len(by_cost), spare // (recent - 1))
    for head in by_cost[: len(by_cost) - kept]:
        roles[head] = Role.DUMMY
    return tuple(tuple(roles[layer * heads : (layer + 1) * heads]) for layer in range(layers)), recent
