"""The public code bases that can be attached to, told by what their objects are, never by import paths.

`recognise` finds the transformer in a pipeline, a wrapper or a session, and what it needs to know around it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter, Signature, signature
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from dummyforcing.checkpoints.names import WRAPPED
from dummyforcing.errors import BadRequest
from dummyforcing.models.wan import ModelConfig

DEPTH = 4
"""How many attributes deep a transformer is looked for."""
ATTRIBUTES = ("num_heads", "head_dim", "o", "norm_q", "norm_k")
"""Of every self-attention, beside q, k and v, or to_qkv."""
TOLD = {"updating_cache": "commits", "sink_recache_after_switch": "restarts"}
"""Arguments by which a pass says what it is for, and fields of `follower.Pass`."""


@dataclass(frozen=True)
class Family:
    """Public code that calls its self-attention in the same way."""

    name: str
    title: str
    mark: str
    """An argument of the self-attention's `forward` that only this family has, or an attribute of it."""
    presets: tuple[str, ...]
    """The public models whose settings hold where the objects don't say: the first whose chunk, or number of
    noise levels in a window, is that of the objects, or else the first."""
    tried: str
    """Repositories and commits that were tried."""
    returns_update: bool = False
    """Whether the self-attention writes nothing, and returns beside its output what is to be written."""
    masks_context: bool = False
    """Whether a pass under a block mask writes context from position 0 on, wherever it says it begins."""

    def matches(self, attention: nn.Module) -> bool:
        """Whether a self-attention is of this family."""
        return self.mark in arguments_of(attention) or hasattr(attention, self.mark)


FAMILIES = (
    Family(
        "longlive",
        "LongLive 1.0",
        "sink_recache_after_switch",
        ("longlive",),
        "NVlabs/LongLive, branch v1.0, e52d9ef",
        returns_update=True,
    ),
    Family(
        "rolling-forcing",
        "Rolling Forcing and the long videos of Causal-Forcing",
        "updating_cache",
        ("rolling-forcing", "causal-forcing-long"),
        "TencentARC/RollingForcing a1477d0",
    ),
    Family("causvid", "CausVid", "current_end", ("causvid",), "tianweiy/CausVid ca21150"),
    Family(
        "krea",
        "Krea Realtime 14B",
        "fuse_projections",
        ("krea-realtime",),
        "krea-ai/realtime-video acf4b7b",
        masks_context=True,
    ),
    Family(
        "self-forcing",
        "Self-Forcing and Causal-Forcing",
        "cache_start",
        ("self-forcing", "causal-forcing-frame"),
        "guandeh17/Self-Forcing 33593df, thu-ml/Causal-Forcing 1fc7bbc",
    ),
    Family(
        "comfyui",
        "ComfyUI's AR model",
        "transformer_options",
        ("self-forcing", "causal-forcing-frame"),
        "none: its interface is known from its documentation",
    ),
)
"""The first one that matches counts."""


@dataclass(frozen=True)
class Upstream:
    """What was found in somebody's object."""

    family: Family
    transformer: nn.Module
    attentions: Sequence[nn.Module]
    """The self-attention of every block."""
    owners: Sequence[object]
    """The objects around the transformer, such as a pipeline, outermost first."""
    config: ModelConfig

    def setting(self, name: str) -> Any:
        """An attribute of the first object around the transformer that has it; None: none has."""
        found = (getattr(owner, name, None) for owner in (*self.owners, self.transformer))
        return next((value for value in found if value is not None), None)

    def __reduce__(self) -> NoReturn:
        """Keep what is attached from being copied: a copy would be attached, too, without anybody's handle.

        Raises:
            BadRequest: Always.
        """
        raise BadRequest(
            "What is attached cannot be copied or pickled",
            "detach() first, and attach again afterwards; state_dict() can be saved at any time",
        )


def recognise(target: object) -> Upstream:
    """Find the transformer in an object, and tell whose code it is.

    Args:
        target: A pipeline, wrapper, session or transformer of one of `FAMILIES`.

    Raises:
        BadRequest: If there is none, or are several; says what was looked for.
    """
    if isinstance(target, type):
        raise BadRequest(f"{target.__name__} is a class", "give an object of it, with its weights", "target")
    found: dict[int, tuple[nn.Module, list[object]]] = {}
    near = ""
    for holder, owners in _walk(target):
        modules = holder.modules() if isinstance(holder, nn.Module) else ()
        for module in modules:
            problem = _why_no_transformer(module)
            if problem is None:
                _, around = found.setdefault(id(module), (module, []))
                around += [one for one in owners if all(one is not other for other in around)]
            near = near or problem or ""
    if not found:
        raise BadRequest(
            f"No transformer that can be attached to was found in this {type(target).__name__}"
            + (f" ({near})" if near else ""),
            "give a pipeline or transformer of one of these: "
            f"{', '.join(family.title for family in FAMILIES)}; that is, blocks whose self_attn has q, k, v, "
            f"{', '.join(ATTRIBUTES)}, and takes a kv_cache",
            "target",
        )
    if len(found) > 1:
        raise BadRequest(
            f"{len(found)} transformers that can be attached to were found in this {type(target).__name__}",
            "give the one that makes the video",
            "target",
        )
    ((transformer, owners),) = found.values()
    attentions = [unwrapped(block.self_attn) for block in transformer.blocks]  # type: ignore[union-attr]
    family = next(family for family in FAMILIES if family.matches(attentions[0]))
    around = [owner for owner in owners if owner is not transformer]
    return Upstream(family, transformer, attentions, around, _config(transformer, attentions[0]))


def arguments_of(module: nn.Module) -> Mapping[str, Parameter]:
    """The arguments of a module's `forward`."""
    return signature(module.forward).parameters


def told(call: Mapping[str, Any]) -> dict[str, Any]:
    """What a pass says of itself, as fields of `follower.Pass`.

    Args:
        call: The arguments of a self-attention or a transformer, its defaults included.
    """
    says: dict[str, Any] = {field: bool(call[name]) for name, field in TOLD.items() if name in call}
    layer = call["kv_cache"] if isinstance(call["kv_cache"], Mapping) else call["kv_cache"][0]
    # Wrappers such as FSDP hand on copies of dictionaries, and the very tensors in them.
    return {**says, "memory": id(layer["k"]), "masked": call.get("block_mask") is not None}


def arguments(takes: Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by their names, the defaults of what was not given included."""
    call = takes.bind(*args, **kwargs)
    call.apply_defaults()
    return dict(call.arguments)


def require_no_gradients(module: nn.Module) -> None:
    """Refuse to compute where gradients of a module's parameters are asked for.

    Raises:
        BadRequest: If they are.
    """
    if torch.is_grad_enabled() and any(weight.requires_grad for weight in module.parameters()):
        raise BadRequest(
            "What is attached has no gradients", "call it under torch.no_grad(), or detach() first"
        )


def signature_of(transformer: nn.Module) -> Signature:
    """The arguments that a transformer's `forward` takes when it has a KV cache.

    Several families hand `*args, **kwargs` on to `_forward_inference`.
    """
    return signature(getattr(transformer, "_forward_inference", transformer.forward))


def holds(owner: object, transformer: nn.Module) -> bool:
    """Whether a transformer is still in an object around it."""
    return any(
        module is transformer
        for holder, _ in _walk(owner)
        if isinstance(holder, nn.Module)
        for module in holder.modules()
    )


def _walk(target: object) -> Iterator[tuple[object, list[object]]]:
    """Objects that may hold a transformer, nearest first, each with those around it, itself included.

    One comes as often as there are ways to it.
    """
    seen: set[int] = set()
    level: list[tuple[object, list[object]]] = [(target, [target])]
    for _ in range(DEPTH):
        below: list[tuple[object, list[object]]] = []
        for one, around in level:
            yield one, [*around, *(_wrappers(one) if isinstance(one, nn.Module) else ())]
            if id(one) not in seen:
                seen.add(id(one))
                below += [(value, [*around, value]) for value in _attributes(one) if _may_hold(value)]
        level = below


def _attributes(one: object) -> Sequence[object]:
    if isinstance(one, ModuleType):  # the whole library would follow
        return []
    try:
        return list(vars(one).values())
    except TypeError:
        return []


def _may_hold(value: object) -> bool:
    """Whether an attribute may lead to a transformer: an object of some library, no plain data."""
    plain = (str, bytes, int, float, complex, bool, list, tuple, dict, set, Tensor, type(None), type)
    return not isinstance(value, plain) and not hasattr(type(value), "__get__")


def _wrappers(module: nn.Module) -> list[nn.Module]:
    """Modules inside that have settings of their own: what wraps the transformer."""
    return [
        child
        for child in module.children()
        if any(_why_no_transformer(part) is None for part in child.modules())
    ]


def _why_no_transformer(module: nn.Module) -> str | None:
    """Tell what keeps a module from being attached to; None: nothing; empty: it is something else."""
    blocks = module._modules.get("blocks")  # a wrapper shows the attributes of what it wraps as its own
    if not isinstance(blocks, nn.ModuleList) or not len(blocks) or "patch_embedding" not in module._modules:
        return ""
    for number, block in enumerate(blocks):
        attention = getattr(block, "self_attn", None)
        if not isinstance(attention, nn.Module):
            return ""
        attention = unwrapped(attention)
        lacks = [name for name in ATTRIBUTES if not hasattr(attention, name)]
        if not hasattr(attention, "to_qkv"):
            lacks += [name for name in "qkv" if not hasattr(attention, name)]
        if lacks:
            return f"self_attn of block {number} has no {', '.join(lacks)}"
        takes = arguments_of(attention)
        if "kv_cache" not in takes:
            return f"self_attn of block {number} takes no kv_cache, but {', '.join(takes)}"
        if not any(family.matches(attention) for family in FAMILIES):
            marks = ", ".join(family.mark for family in FAMILIES)
            return f"self_attn of block {number} takes {', '.join(takes)}, and none of {marks}"
    return None


def _config(transformer: Any, attention: Any) -> ModelConfig:
    """The sizes of a transformer, as far as its modules tell."""
    blocks, patch = transformer.blocks, transformer.patch_embedding
    dim = attention.num_heads * attention.head_dim
    first = getattr(blocks[0], "ffn", [None])[0]
    text = getattr(transformer, "text_embedding", [None])[0]
    known = {
        "ffn_dim": getattr(first, "out_features", 4 * dim),
        "text_dim": getattr(text, "in_features", 4096),
        "in_dim": getattr(patch, "in_channels", 16),
        "out_dim": getattr(transformer, "out_dim", 16),
        "text_len": getattr(transformer, "text_len", 512),
        "freq_dim": getattr(transformer, "freq_dim", 256),
        "eps": getattr(transformer, "eps", 1e-6),
        "patch_size": tuple(getattr(transformer, "patch_size", (1, 2, 2))),
    }
    return ModelConfig(dim=dim, num_heads=attention.num_heads, num_layers=len(blocks), **known)


def unwrapped(module: nn.Module) -> nn.Module:
    """A module without what FSDP, checkpointing and torch.compile put around it."""
    inside = next((module._modules[name] for name in WRAPPED if name in module._modules), None)
    return module if inside is None else unwrapped(inside)
