"""Files of rollouts: their state, and what must be the same to go on from one."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from dummyforcing.errors import BadFile, BadRequest
from dummyforcing.files.state import NotSaved, read_state, write_state
from dummyforcing.method.policy import Policy
from dummyforcing.models.wan import fingerprint
from dummyforcing.pipeline.decoding import FrameDecoderState
from dummyforcing.pipeline.delivery import DeliveryState
from dummyforcing.pipeline.parts import Parts
from dummyforcing.pipeline.request import Request
from dummyforcing.sampling.block import BlockState
from dummyforcing.sampling.rolling import RollingState
from dummyforcing.sampling.sampler import SamplerState

KIND, VERSION = "Dummy Forcing rollout", "5"


@dataclass(frozen=True)
class RolloutState:
    """The state of a rollout: it can go on from here in another process, too."""

    fingerprint: str
    """Of the transformer."""
    rules: tuple[tuple[str, str], ...]
    """Properties of the model and its preset that must be the same, in words."""
    request: Request
    """What was asked for, without the pixels that it began with or was made from."""
    prompts: tuple[str, ...]
    """At present."""
    prompt_embeds: Tensor
    switches: int
    """How many changes of the prompt are to come."""
    given: tuple[Tensor, ...]
    """Latents of chunks that the video begins with, not taken yet."""
    source: Tensor | None
    """Latents of the video that this one is made from."""
    frames: int
    """Finished latent frames, of all parts of the video."""
    latents: Tensor | None
    """Of the newest chunk."""
    sampler: BlockState | RollingState | SamplerState
    decoder: FrameDecoderState
    delivery: DeliveryState


def write_rollout(path: Path, state: RolloutState) -> None:
    """Write the state of a rollout, whole or not at all.

    Raises:
        BadFile: If it cannot be written.
    """
    write_state(path, KIND, VERSION, state)


def read_rollout(path: Path, parts: Parts) -> RolloutState:
    """Read what `write_rollout` wrote, to go on with a model.

    Raises:
        BadFile: If the file is damaged or of another version, or was made with another model.
    """
    state = read_state(path, KIND, VERSION, RolloutState)
    mine = fingerprint(parts.model)
    if state.fingerprint != mine:
        raise BadFile(
            f"{path} was saved with model {state.fingerprint}, but this model is {mine}",
            "resume it with the model that it began with",
        )
    rules = dict(rules_of(parts))
    for name, theirs in state.rules:
        if theirs != rules[name]:
            raise BadFile(
                f"{path} was saved with another {name}, {theirs} in place of {rules[name]}",
                "resume it with what it began with",
            )
    return state


def with_policy(state: RolloutState, policy: Policy) -> RolloutState:
    """Put the code of a policy in the place of what a file has of it.

    Raises:
        BadRequest: If it is another policy, or its file has changed.
    """
    saved = state.request.policy

    def told(one: Policy) -> tuple[object, ...]:
        code = (NotSaved.of(part) if callable(part) else part for part in (one.assign, one.criterion))
        return (one.name, dict(one.roles or {}), one.sha256, *code)

    if told(policy) != told(saved):
        what = "another policy" if policy.name != saved.name else "other code"
        raise BadRequest(
            f"The rollout was saved with {what} than this '{policy.name}'",
            f"resume it with '{saved.name}' as it was",
            "policy",
        )
    with_code = replace(saved, assign=policy.assign, criterion=policy.criterion)
    return replace(state, request=replace(state.request, policy=with_code))


def require_code(state: RolloutState) -> None:
    """Refuse to go on where heads are to be classified by code that was not saved.

    Raises:
        BadRequest: If they are.
    """
    request, heads = state.request, state.sampler.heads
    is_lost = isinstance(request.policy.assign, NotSaved) or isinstance(request.policy.criterion, NotSaved)
    if is_lost and (heads.classify_at is not None or request.guard is not None):
        raise BadRequest(
            f"Heads are still to be classified by policy '{request.policy.name}', whose code was not saved",
            "give it again as policy=",
            "policy",
        )


def rules_of(parts: Parts) -> tuple[tuple[str, str], ...]:
    """List what must be the same to go on, in words."""
    preset = parts.preset
    cached = parts.fused.attention_dtype if parts.fused else parts.model.patch_embedding.weight.dtype
    return (
        ("sampler", preset.sampler),
        ("dtype of the cache", str(cached)),
        ("decoder", type(parts.vae).__name__),
        ("schedule", repr(preset.schedule)),
        ("first schedule", repr(preset.first_schedule)),
        ("number of frames per chunk", repr(preset.chunk_frames)),
        ("local attention size", repr(preset.local_attention_size)),
        ("number of frames to rewrite", repr(preset.recache_frames)),
        ("global sink", repr(preset.global_sink)),
        ("number of context frames", repr((preset.context_frames, preset.keep_first_frame))),
        ("length of a part", repr((preset.max_frames, preset.overlap_frames))),
    )
