"""Checks the choices of a request against its model: policy, dummy heads, left-out steps, guards."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from dummyforcing.errors import BadRequest
from dummyforcing.method.criteria import Role
from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.method.policy import LONG_CONTEXT, Policy, as_policy, parse_policy
from dummyforcing.presets.preset import Preset
from dummyforcing.sampling.guard import Guard
from dummyforcing.sampling.teacache import Calibration


def check_teacache(
    preset: Preset, teacache: float | Sequence[int] | Calibration | None, strength: float = 1.0
) -> float | tuple[int, ...] | Calibration | None:
    """Check what TeaCache shall do.

    Args:
        preset: Of the model.
        teacache: See `Options`.
        strength: See `Request`.

    Returns:
        The field of a `Request`.

    Raises:
        BadRequest: If the model's sampler has no steps to leave out, the threshold is not positive, a table
            is of other noise levels, or there is no such step.
    """
    if teacache is None:
        return None
    if preset.sampler != "block":
        raise BadRequest(
            f"TeaCache leaves out steps of a chunk by itself, but model '{preset.name}' has sampler "
            f"'{preset.sampler}'",
            "leave TeaCache out, or take a model of sampler 'block'",
            "teacache",
        )
    if isinstance(teacache, Calibration):
        teacache.require(preset, strength)
        return teacache
    if isinstance(teacache, int | float):
        if not 0 < teacache < math.inf:
            raise BadRequest(
                f"A TeaCache threshold of {teacache:g} is out of range", "take a number above 0", "teacache"
            )
        return float(teacache)
    count = len(preset.schedule.steps)
    for step in teacache:
        if not 0 < step < count:
            choice = f"take 1 to {count - 1}" if count > 1 else "there is no other step"
            raise BadRequest(
                f"Step {step} cannot be left out: the first one always runs", f"{choice}", "teacache"
            )
    return tuple(sorted(set(teacache)))


def check_guard(preset: Preset, guard: Guard | None, policy: Policy, plan: Plan | None) -> Guard | None:
    """Check that there is something to guard, and that heads can be classified again.

    Args:
        preset: Of the model.
        guard: See `Options`.
        policy: How heads are classified.
        plan: Given to begin with.

    Returns:
        The field of a `Request`.

    Raises:
        BadRequest: If it cannot be done.
    """
    if guard is not None and preset.sampler != "block":
        raise BadRequest(
            f"Heads can be classified again where a past of single chunks is written again, but model "
            f"'{preset.name}' has sampler '{preset.sampler}'",
            "take no guard, or a model of sampler 'block'",
            "guard",
        )
    if guard is not None:
        guard.require(policy, plan)
    return guard


def choose_policy(preset: Preset, policy: object, frames: int | None = None) -> Policy:
    """A policy by name gets the preset's settings where its text gives none.

    Names are those that are built in or installed: no text makes this run a file, so that requests of
    strangers and presets may hold one.

    Args:
        preset: Of the model.
        policy: Name, or what `as_policy` takes.
        frames: Latent frames of the video; None: no end.

    Raises:
        BadRequest: If there is no such policy, or its heads see further than the model can.
    """
    if not isinstance(policy, str):
        return as_policy(policy)
    defaults, farthest = preset.dummy, preset.farthest()
    before = None if frames is None else max(frames - preset.current_frames, 1)
    cap = min(limit for limit in (LONG_CONTEXT, farthest, before) if limit is not None)
    complete = {
        "native": preset.native,
        "dummy": f"dummy:{defaults.neighbor_frames}",
        "anchored": f"anchored:{defaults.neighbor_frames}",
        "long": f"long:{cap}",
        "official": f"official:{defaults.classify_at_chunk},1,{preset.chunk_frames}",
    }
    chosen = parse_policy(complete.get(policy, policy))
    if chosen.name not in ("dummy", "anchored", "long"):
        return chosen
    assert chosen.roles is not None
    recent = chosen.roles[Role.NEIGHBOR].recent or 0
    if chosen.name == "long" and farthest is not None and recent > farthest:
        raise BadRequest(
            f"Model '{preset.name}' sees {farthest} past frames at most",
            f"take long:{farthest} or less",
            "policy",
        )
    chosen = replace(
        chosen,
        initial=parse_policy(preset.native).initial,
        classify_at_chunk=defaults.classify_at_chunk,
        dummy_fraction=defaults.dummy_fraction,
    )
    if lost := _lost_frames(preset, chosen):
        chosen = replace(chosen, initial=replace(chosen.initial, sink=lost))
    return chosen


def _lost_frames(preset: Preset, policy: Policy) -> int:
    """First frames that roles are to see, where these are gone when the heads get them; 0: they are not."""
    initial = policy.initial
    pinned = max(context.sink for context in policy.contexts)
    seen = preset.local_attention_size if initial.total is None else initial.total
    classified = (policy.classify_at_chunk + 1) * preset.chunk_frames
    return pinned if pinned > initial.sink and seen is not None and seen < classified else 0


def check_first_frames(preset: Preset, policy: Policy) -> None:
    """Check that there are first frames for the roles that see them, and room for these.

    Args:
        preset: Of the model.
        policy: It.

    Raises:
        BadRequest: If there is not.
    """
    pinned, span = max(context.sink for context in policy.contexts), preset.local_attention_size
    if span is not None and pinned > span - preset.chunk_frames:
        raise BadRequest(
            f"A head of model '{preset.name}' cannot see {pinned} first frames: of the {span} that attention "
            f"spans, {preset.chunk_frames} are current",
            f"take {span - preset.chunk_frames} at most",
            "policy",
        )
    if _lost_frames(preset, policy):
        raise BadRequest(
            f"Policy '{policy.name}' has roles that see {pinned} first frames, but these are gone when the "
            f"heads are classified: until then heads see {policy.initial.sink} first ones",
            f"let its initial context have sink={pinned}",
            "policy",
        )


def check_key_frames(preset: Preset, contexts: Iterable[HeadContext]) -> None:
    """Check that a model can keep key frames, if any head sees some.

    Args:
        preset: Of the model.
        contexts: Of all heads.

    Raises:
        BadRequest: If it cannot.
    """
    if not any(context.keys for context in contexts):
        return
    why = None
    if preset.local_attention_size is not None:
        why = f"its attention spans {preset.local_attention_size} frames"
    elif preset.sampler != "block":
        why = f"sampler '{preset.sampler}' writes its past again"
    if why:
        raise BadRequest(
            f"Model '{preset.name}' cannot keep key frames: {why}", "take a policy without them", "policy"
        )


def choose_heads(
    policy: Policy, plan: Plan | None, dummy_fraction: float | None, budget: str | None
) -> Policy:
    """Check what shall decide the number of dummy heads, and set it in the policy.

    Args:
        policy: By itself.
        plan: Given instead of finding one.
        dummy_fraction: Share of dummy heads; None: the policy's own.
        budget: See `Options`; needs the sizes of the model, so it is only checked that it has an effect.

    Raises:
        BadRequest: If the fraction or the budget has none.
    """
    given = "a plan is given" if plan is not None else None
    if budget is not None and (given or policy.budget is None):
        cause = given or f"the policy is '{policy.name}'"
        raise BadRequest(
            f"A budget has no effect when {cause}", "leave it out, or take policy long", "budget"
        )
    if dummy_fraction is None:
        return policy
    if given is None and policy.roles is None:
        given = f"policy '{policy.name}' has no dummy heads"
    if given is None and policy.assign is not None:
        given = f"policy '{policy.name}' assigns roles itself"
    if given is None and policy.budget is not None:
        given = f"policy '{policy.name}' finds it from its budget"
    if given:
        raise BadRequest(f"The dummy fraction has no effect when {given}", "leave it out", "dummy_fraction")
    return replace(policy, dummy_fraction=dummy_fraction, num_dummy=None)
