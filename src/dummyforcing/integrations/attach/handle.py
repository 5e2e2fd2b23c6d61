"""Attaches head-wise memory to a pipeline or a transformer of a public repository.

handle = attach(pipeline, policy="dummy")
video = pipeline.inference(noise, prompts)
handle.plan.save("plan.json"); handle.detach()

with attach(pipeline): ...
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

from torch import nn

from dummyforcing.attention.backends import BACKENDS
from dummyforcing.errors import BadRequest
from dummyforcing.files.records import nearest
from dummyforcing.integrations.attach import buffers
from dummyforcing.integrations.attach.attention import AttachedAttention, SeenPasses
from dummyforcing.integrations.attach.families import Upstream, holds, recognise
from dummyforcing.integrations.attach.follower import Follower, Rules
from dummyforcing.integrations.attach.fused import FusedForward, SharedModel
from dummyforcing.method.plan import Plan
from dummyforcing.method.policy import Policy
from dummyforcing.pipeline.choices import (
    check_first_frames,
    check_teacache,
    choose_heads,
    choose_policy,
)
from dummyforcing.pipeline.options import VideoOptions, choose
from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from dummyforcing.presets.catalog import find_preset
from dummyforcing.presets.preset import Preset
from dummyforcing.runtime.fused import Fp8, require_fp8

Engine = Literal["attention", "fused"]
"""What is replaced: self-attention with its cache, or the whole transformer."""

INFINITE = "use_infinite_attention"
"""Setting of LongLive's pipelines under which positions are relative to the window."""


def attach(
    target: object,
    policy: str | Policy = "dummy",
    *,
    engine: Engine = "attention",
    plan: Plan | str | Path | None = None,
    dummy_fraction: float | None = None,
    preset: str | Path | None = None,
    fp8: Fp8 = "none",
    teacache: float | None = None,
    backend: str | None = None,
) -> "Attachment":
    """Give the attention heads of somebody else's transformer the past that they use, and no more.

    Its code stays as it is: its sampler, its VAE, its prompts. One transformer has one attachment at a time.

    Args:
        target: A pipeline, wrapper, session or transformer of Self-Forcing, Causal-Forcing, LongLive 1.0,
            CausVid, Rolling Forcing, Krea Realtime, ComfyUI's AR model, or of a fork of these.
        policy: `dummy`, `anchored`, `long`, `window:3,6`, `dense`, ... or one of your own; `native`: what the
            model was trained for.
        engine: `attention`: only self-attention and its cache are ours. `fused`: the whole transformer runs
            on our fused path, with CUDA graphs, if its first pass gives what its own code gives; else
            `attention`, and `Attachment.note` says why.
        plan: What the heads see, found earlier, or its file: nothing is classified then.
        dummy_fraction: Share of all heads that become dummy; None: the model's.
        preset: A public model, bundled one or preset file whose settings hold, such as `longlive-infinite`;
            None: that of the code, with the chunk and the window that its objects have.
        fp8: What runs in float8; for engine `fused`.
        teacache: Threshold above which a step is not left out; None: all run. For engine `fused`.
        backend: Attention backend; None: the fastest that is there.

    Returns:
        The attachment; it ends with `detach()`, or as a context manager.

    Raises:
        BadRequest: If there is nothing that can be attached to, something is attached already, or an option
            does not go with the model.
    """
    if engine not in get_args(Engine):
        raise BadRequest(f"There is no engine {engine!r}", f"take {' or '.join(get_args(Engine))}", "engine")
    if engine == "attention" and (fp8 != "none" or teacache is not None):
        option = "fp8" if fp8 != "none" else "teacache"
        raise BadRequest(f"Engine 'attention' has no {option}", 'take engine="fused"', option)
    if teacache is not None and not isinstance(teacache, int | float):
        raise BadRequest("Attached code leaves out steps by a threshold only", "give a number", "teacache")
    choose(VideoOptions, {"policy": policy, "plan": plan, "dummy_fraction": dummy_fraction})  # their types
    plan = Plan.load(plan) if isinstance(plan, str | Path) else plan
    if isinstance(target, DummyForcingPipeline):
        raise BadRequest(f"A {type(target).__name__} is ours", "give it policy= where it is called", "target")
    upstream = recognise(target)
    if isinstance(upstream.attentions[0].forward, AttachedAttention) or any(
        isinstance(vars(owner).get(buffers.METHOD), buffers.WithoutMemory) for owner in upstream.owners
    ):
        raise BadRequest("Something is attached to this already", "detach() it first", "target")

    def rules(frames: int) -> Rules:
        found = _preset(upstream, frames, preset)
        chosen = choose_heads(choose_policy(found, policy), plan, dummy_fraction, None)
        check_first_frames(found, chosen)
        if any(context.keys for context in (*chosen.contexts, *(plan.table.values() if plan else ()))):
            raise BadRequest("Attached code keeps no key frames", "take a policy without them", "policy")
        return Rules(found, chosen, plan, backend)

    if backend is not None and backend not in BACKENDS:
        known = nearest(str(backend), BACKENDS)
        raise BadRequest(f"There is no attention backend {backend!r}", known, "backend")
    require_fp8(fp8, upstream.attentions[0].norm_q.weight)  # type: ignore[arg-type, union-attr]
    check_teacache(rules(0).preset, teacache)
    if plan is not None:
        plan.require(upstream.config.num_layers, upstream.config.num_heads)
    return Attachment(upstream, rules, engine, fp8, teacache)


def _preset(upstream: Upstream, frames: int, name: str | Path | None) -> Preset:
    """The settings of a video whose first pass has so many latent frames; 0: that is not known yet."""
    if name is None and getattr(getattr(upstream.setting("args"), "model_kwargs", None), INFINITE, False):
        name = "longlive-infinite"
    known = [find_preset(one)[0] for one in upstream.family.presets]
    if name is not None:
        named = find_preset(str(name))[0]
        if named.sampler != known[0].sampler:
            raise BadRequest(
                f"Model '{named.name}' has sampler '{named.sampler}', and code like {upstream.family.title} "
                f"has sampler '{known[0].sampler}'",
                f"name one like {known[0].name}, or none",
                "preset",
            )
        return named
    chunk = upstream.setting("num_frame_per_block") if upstream.owners else None
    steps = upstream.setting("denoising_step_list")
    chunk = chunk or frames or known[0].chunk_frames
    count = None if steps is None else len(steps)
    rolling = known[0].sampler == "rolling"
    fitting = [
        one
        for one in known
        if (not rolling and one.chunk_frames == chunk) or (rolling and len(one.schedule.steps) == count)
    ]
    found = (fitting or known)[0]
    if found.sampler != "block":
        return found
    found = replace(found, chunk_frames=chunk)
    span, pinned = upstream.setting("local_attn_size"), getattr(upstream.attentions[0], "sink_size", 0)
    if span is None:
        return found
    recent = span - pinned - chunk
    return replace(found, native="dense" if span == -1 else f"window:{pinned},{max(recent, 0)}")


@dataclass(frozen=True)
class _Ended:
    """What an attachment tells after `detach`."""

    plans: tuple[Plan, ...]
    timings: tuple[float, ...]
    engine: Engine
    note: str


class Attachment:
    """What is attached to a transformer; see `attach`."""

    def __init__(
        self,
        upstream: Upstream,
        rules: Callable[[int], Rules],
        engine: Engine,
        fp8: Fp8,
        teacache: float | None,
    ) -> None:
        """Attach; either everything is, or nothing.

        Args:
            upstream: What was found.
            rules: What holds for a video, by the latent frames of its first pass.
            engine: See `attach`.
            fp8: Likewise.
            teacache: Likewise.
        """
        self.family = upstream.family.name
        """Whose code it is."""
        self.is_attached = True
        self._undo = ExitStack()
        shared = SharedModel(upstream)
        self._follower = Follower(upstream.config, rules, shared.fingerprint, upstream.family.masks_context)
        self._ended: _Ended | None = None
        passes = SeenPasses(upstream, self._follower)
        transformer: Any = upstream.transformer
        self._fused: FusedForward | None = None
        try:
            for layer, attention in enumerate(upstream.attentions):
                self._replace(attention, "forward", AttachedAttention(passes, layer, attention.forward))
            for hook in (
                transformer.patch_embedding.register_forward_hook(passes.see_size),
                transformer.register_forward_hook(passes.check_whole, with_kwargs=True),
                transformer.register_forward_pre_hook(_unbound, with_kwargs=True),
            ):
                self._undo.callback(hook.remove)
            if hasattr(transformer, "_apply_cache_updates"):
                self._replace(transformer, "_apply_cache_updates", _nothing)
            for owner in upstream.owners:
                if hasattr(owner, buffers.METHOD):
                    own = getattr(owner, buffers.METHOD)
                    buffers.forget(owner)
                    self._undo.callback(buffers.forget, owner)
                    self._replace(
                        owner,
                        buffers.METHOD,
                        buffers.WithoutMemory(own, owner, partial(holds, owner, transformer)),
                    )
            if engine == "fused":
                self._fused = FusedForward(upstream, passes, shared, fp8, teacache)
                self._replace(transformer, "forward", self._fused)
        except BaseException:
            self.detach()
            raise

    @property
    def engine(self) -> Engine:
        """What is replaced, at present."""
        if self._ended:
            return self._ended.engine
        return "fused" if self._fused is not None and not self._fused.refused else "attention"

    @property
    def note(self) -> str:
        """Why the fused path was left; empty: it was not, or not asked for."""
        if self._ended:
            return self._ended.note
        return self._fused.refused if self._fused is not None else ""

    @property
    def plans(self) -> tuple[Plan, ...]:
        """What the heads of every sample see at present; empty before the first video."""
        if self._ended:
            return self._ended.plans
        video = self._follower.video
        return video.heads.plans if video else ()

    @property
    def plan(self) -> Plan:
        """What the heads of the first sample see at present.

        Raises:
            BadRequest: If there was no video yet.
        """
        if not self.plans:
            raise BadRequest("There is no head plan before the first pass", "make a video first")
        return self.plans[0]

    @property
    def cache_bytes(self) -> int:
        """Bytes of the KV cache at present."""
        video = self._follower.video
        return video.cache.nbytes if video else 0

    @property
    def timings(self) -> tuple[float, ...]:
        """Seconds of each finished chunk of the present video, from its first pass to that of the next.

        A GPU is waited for.
        """
        return self._ended.timings if self._ended else self._follower.timings()

    def detach(self) -> None:
        """Give everything back as it was, the memory, too; plans and timings are still told.

        Again: nothing happens.
        """
        self._undo.close()
        self._ended = _Ended(self.plans, self.timings, self.engine, self.note)
        self._follower.video = self._fused = None
        self.is_attached = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def __repr__(self) -> str:
        if not self.is_attached:
            return f"Attachment({self.family}, detached)"
        state = f"KV cache {self.cache_bytes / 1e6:.1f} MB" if self.plans else "no video yet"
        return f"Attachment({self.family}, {self.engine}, {state})"

    def _replace(self, owner: Any, name: str, new: object) -> None:
        """Set an attribute until `detach`, of this one object alone."""
        own = vars(owner)
        if name in own:
            self._undo.callback(setattr, owner, name, own[name])
        else:
            self._undo.callback(delattr, owner, name)
        setattr(owner, name, new)


def _nothing(*args: object, **kwargs: object) -> None:
    """Stands for the update of a cache that nobody reads."""


def _unbound(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Hook before the transformer: its guard against more tokens than its own buffers hold has no object."""
    if kwargs.get("kv_cache") is not None and "seq_len" in kwargs:
        kwargs["seq_len"] = max(kwargs["seq_len"], 2**31)
    return args, kwargs
