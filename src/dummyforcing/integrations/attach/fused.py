"""The whole transformer of somebody else on our fused path, over its own weights: the engine `fused`.

Its first pass runs both ways. Only if they give the same does the fused path go on alone.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dummyforcing.checkpoints.names import WRAPPERS
from dummyforcing.integrations.attach.attention import SeenPasses
from dummyforcing.integrations.attach.families import (
    Upstream,
    arguments,
    require_no_gradients,
    signature_of,
    told,
)
from dummyforcing.integrations.attach.follower import FollowedVideo
from dummyforcing.models.wan import CausalWan, TextKV, TimeEmbedding, fingerprint
from dummyforcing.runtime.fused import Fp8, FusedWan, arrange
from dummyforcing.sampling.passes import Call, Passes
from dummyforcing.sampling.teacache import SkipChooser

logger = logging.getLogger(__name__)

NEEDED = ("x", "t", "context", "kv_cache", "crossattn_cache", "current_start")
"""What a transformer must be given by these names."""
OTHER_INPUTS = ("clip_fea", "y")
"""Inputs of image-to-video models, which ours has not."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""How far its own code and ours may be apart in the first pass: norm of the difference over the norm."""


def shared_model(upstream: Upstream) -> CausalWan | str:
    """Our transformer over the weights of somebody else's, without a copy.

    Returns:
        The model, or in one clause what keeps its weights from being ours.
    """
    with torch.device("meta"):
        model = CausalWan(upstream.config)
    theirs = {WRAPPERS.sub("", name): p for name, p in upstream.transformer.named_parameters()}
    for name in [name for name in theirs if ".self_attn.to_qkv." in name]:
        whole = theirs.pop(name)
        for letter, part in zip("qkv", whole.detach().chunk(3), strict=True):
            theirs[name.replace("to_qkv", letter)] = nn.Parameter(part, requires_grad=False)
    if strange := next((n for n, p in theirs.items() if type(p) is not nn.Parameter), None):
        return f"its {strange} is spread over processes, quantised or otherwise no plain parameter"
    if any(".base_layer." in name for name in theirs):
        return "it has LoRA layers beside its weights, which are to be merged"
    own = dict(model.named_parameters())
    if lacking := sorted(own.keys() - theirs.keys()):
        return f"it has no parameter {lacking[0]}"
    if more := sorted(theirs.keys() - own.keys()):
        return f"it has a parameter {more[0]}, which ours has not"
    for name, parameter in theirs.items():
        if parameter.shape != own[name].shape:
            return f"its {name} has shape {tuple(parameter.shape)}, where ours has {tuple(own[name].shape)}"
        where, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(where), leaf, parameter)
    for name, layer in upstream.transformer.get_submodule("blocks").named_modules():
        if layer._forward_hooks or layer._forward_pre_hooks:
            return f"its blocks.{name} has hooks, which would not be called"
    kinds = {(parameter.dtype, parameter.device) for parameter in theirs.values()}
    if len(kinds) > 1:
        return "its parameters are of several dtypes or on several devices"
    return model


class SharedModel:
    """Our transformer over the weights of somebody else's; made again where these have changed."""

    def __init__(self, upstream: Upstream) -> None:
        """Make it.

        Args:
            upstream: The transformer.
        """
        self._upstream = upstream
        self.settle()
        self.model: CausalWan | str = shared_model(upstream)
        """See `shared_model`."""
        self._fingerprint: str | None = None

    def settle(self) -> None:
        """Take the weights and the modules for what they are now."""
        self._seen = _state_of(self._upstream.transformer)

    def renew(self) -> bool:
        """Make it again, if anything has changed.

        Returns:
            Whether anything has.
        """
        if _state_of(self._upstream.transformer) == self._seen:
            return False
        self.settle()
        self.model, self._fingerprint = shared_model(self._upstream), None
        return True

    def fingerprint(self) -> str | None:
        """The fingerprint of the weights as they are now; None: they are not ours."""
        self.renew()
        if self._fingerprint is None and not isinstance(self.model, str):
            self._fingerprint = fingerprint(self.model)
        return self._fingerprint


def _state_of(transformer: nn.Module) -> tuple[object, ...]:
    """What shows whether other weights, layers or hooks have come into a transformer."""
    weights = [
        (id(weight), weight.data_ptr(), None if weight.is_inference() else weight._version)
        for weight in transformer.parameters()
    ]
    layers = [
        (id(layer), id(vars(layer).get("forward")), len(layer._forward_hooks), len(layer._forward_pre_hooks))
        for layer in transformer.get_submodule("blocks").modules()
    ]
    return *weights, *layers


class FusedForward:
    """The `forward` of a transformer whose passes run on our fused path."""

    def __init__(
        self, upstream: Upstream, seen: SeenPasses, shared: SharedModel, fp8: Fp8, teacache: float | None
    ) -> None:
        """Take the place of a transformer's `forward`, in which the attached attention is already.

        Args:
            upstream: The transformer.
            seen: Its passes.
            shared: Ours over its weights.
            fp8: What runs in float8.
            teacache: Threshold above which a step is not left out; None: all run.
        """
        self._seen, self._shared, self._fp8 = seen, shared, fp8
        self._original: Callable[..., Any] = upstream.transformer.forward
        self._signature = signature_of(upstream.transformer)
        self._teacache = None if teacache is None else TeaCache(teacache)
        self.refused = ""
        """Why the attached attention runs in place of the fused path; empty: the fused path does."""
        self._begin_with(shared.model)

    def _begin_with(self, model: CausalWan | str) -> None:
        """Begin with what is to be verified, or cannot be."""
        self._model = model
        self._fused: FusedWan | None = None
        self._verified = False
        self._passes: Passes | None = None
        self._text: TextKV = []
        self.refused = model if isinstance(model, str) else ""
        if lacking := [name for name in NEEDED if name not in self._signature.parameters]:
            self.refused = self.refused or f"its forward takes no {', '.join(lacking)}"
        self._tell()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Predict the velocity, `(B, C, F, h, w)`.

        Raises:
            BadRequest: If the pass goes on from nothing that is known.
        """
        call = arguments(self._signature, args, kwargs)
        if call.get("current_start") == 0 and self._shared.renew():
            self._begin_with(self._shared.model)
        if self.refused:
            return self._original(*args, **kwargs)
        if call["kv_cache"] is None or any(call.get(name) is not None for name in OTHER_INPUTS):
            return self._original(*args, **kwargs)
        assert isinstance(self._model, CausalWan)
        require_no_gradients(self._model)
        if self._verified:
            with torch.inference_mode(False), torch.no_grad():
                return self._run(call, self._begin(call))
        theirs = self._original(*args, **kwargs)
        layers = self._seen.layers
        with torch.inference_mode(False), torch.no_grad():
            self._verify(theirs, self._run(call, self._seen.video))
        self._seen.layers = layers
        return theirs

    def _verify(self, theirs: Any, ours: Tensor) -> None:
        """Go on alone from now on, if both give the same."""
        assert isinstance(self._model, CausalWan)
        theirs = torch.stack(list(theirs)) if not isinstance(theirs, Tensor) else theirs
        tolerance = TOLERANCE.get(ours.dtype, 1e-4)
        if theirs.shape != ours.shape:
            self.refused = f"it gives {tuple(theirs.shape)}, and ours {tuple(ours.shape)}"
        else:
            error = ((theirs.float() - ours.float()).norm() / theirs.float().norm()).item()
            if not error <= tolerance:
                self.refused = f"its blocks and ours are {error:.2g} apart, where {tolerance:g} is allowed"
        self._verified = not self.refused
        self._passes = None
        if self._verified:
            self._fused = arrange(self._model, self._fp8)
            self._shared.settle()
        self._tell()

    def _begin(self, call: dict[str, Any]) -> FollowedVideo:
        """Tell of a pass that the attached attention does not see."""
        assert isinstance(self._model, CausalWan)
        x, config = _latents(call), self._model.config
        batch, frames, _, height, width = x.shape
        self._seen.size = (frames, height // config.patch_size[1], width // config.patch_size[2])
        weight = self._model.patch_embedding.weight
        dtype = self._fused.attention_dtype if self._fused else weight.dtype
        start = self._seen.start_of(call["current_start"])
        # Krea keeps the mask that its self-attention is given with the transformer.
        mask = getattr(self._seen.upstream.transformer, "block_mask", None)
        self._seen.begin(start, batch, dtype, weight.device, **told({**call, "block_mask": mask}))
        self._seen.layers = config.num_layers
        return self._seen.video

    def _run(self, call: dict[str, Any], video: FollowedVideo) -> Tensor:
        """Run a pass that has begun."""
        model = self._model
        assert isinstance(model, CausalWan)
        x = _latents(call)
        height, width = x.shape[-2:]
        if self._passes is None or self._passes.cache is not video.cache:
            self._passes = Passes(
                model, video.cache, (height, width), (), fused=self._fused, backend=video.rules.backend
            )
        passes = self._passes
        passes.origin = video.last.start - video.cache.frames
        # A scorer that is there is to see this pass, whatever it turns out to be.
        commit = video.scorer is not None and video.scorer.score_pass == "commit"
        step = None if commit else 0
        time, tokens = self._time(call["t"]), passes.tokens(x)
        skips = self._teacache
        if skips is not None and skips.leaves_out(video, call["t"], time):
            assert skips.residual is not None
            hidden = tokens + skips.residual
        else:
            text = self._text_of(call)
            hidden = passes.transform(tokens, time, text, Call(0, step), video.scorer, video.pinned)
            if skips is not None:
                skips.residual = hidden - tokens
        return passes.velocity(hidden, time).transpose(1, 2)

    def _time(self, timesteps: Tensor) -> TimeEmbedding:
        """The embedding of timesteps `(B, F)`; samples that have the same ones share it."""
        assert isinstance(self._model, CausalWan)
        if len(timesteps) > 1 and bool((timesteps == timesteps[:1]).all()):
            timesteps = timesteps[:1]
        return self._model.embed_time(timesteps)

    def _text_of(self, call: dict[str, Any]) -> TextKV:
        """Keys and values of the prompt: those in the pipeline's cache for them, filled where it is empty."""
        assert isinstance(self._model, CausalWan)
        caches = call["crossattn_cache"]
        if not all(cache["is_init"] for cache in caches):
            config = self._model.config
            context = torch.stack(
                [
                    torch.cat([one, one.new_zeros(config.text_len - len(one), one.shape[-1])])
                    for one in call["context"]
                ]
            )
            weight = self._model.patch_embedding.weight
            for cache, (k, v) in zip(caches, self._model.embed_text(context.to(weight.dtype)), strict=True):
                cache["k"], cache["v"], cache["is_init"] = k, v, True
        known = [tensor for pair in self._text for tensor in pair]
        now = [cache[name] for cache in caches for name in "kv"]
        if len(known) != len(now) or any(a is not b for a, b in zip(known, now, strict=True)):
            self._text = [(cache["k"], cache["v"]) for cache in caches]
        return self._text

    def _tell(self) -> None:
        if self.refused:
            logger.info("the fused path is left for the attached attention: %s", self.refused)


class TeaCache:
    """Leaves out steps of chunks after the first, which shows the timestep of the commit pass."""

    def __init__(self, threshold: float) -> None:
        """Begin with nothing.

        Args:
            threshold: See `SkipChooser`.
        """
        self._threshold = threshold
        self._chooser = SkipChooser(threshold)
        self._place: tuple[object, int] | None = None
        self._lowest: float | None = None
        self._seen: list[float] = []
        self.residual: Tensor | None = None
        """What the blocks added in the last pass that ran."""

    def leaves_out(self, video: FollowedVideo, timesteps: Tensor, time: TimeEmbedding) -> bool:
        """Tell whether a pass is left out; a GPU is waited for.

        Args:
            video: It.
            timesteps: Of the pass, `(B, F)`.
            time: Their embedding.
        """
        begins = self._place != (video, video.last.start)
        if begins:
            if self._place is None or self._place[0] is not video:
                self._seen = []
            self._lowest = min(self._seen, default=None)
            self._place, self._seen = (video, video.last.start), []
            self._chooser = SkipChooser(self._threshold)
        values = set(timesteps.flatten().tolist())
        self._seen += values
        must_run = begins or self._lowest is None or len(values) > 1
        must_run = must_run or bool(values & {0, 1000}) or min(values) <= (self._lowest or 0)
        return self._chooser.leaves_out(time, must_run)


def _latents(call: dict[str, Any]) -> Tensor:
    """What a pass works on, `(B, F, C, h, w)`."""
    x = call["x"]
    return (x if isinstance(x, Tensor) else torch.stack(list(x))).transpose(1, 2)
