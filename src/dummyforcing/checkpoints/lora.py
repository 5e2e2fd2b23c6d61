"""LoRA: low-rank changes of a transformer's weights, merged into them.

Each matrix is merged when it is read, in float32 and before the cast: there is no second copy of the weights.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dummyforcing.checkpoints.lora_strength import Strength, Strengths
from dummyforcing.checkpoints.names import OTHER_ADAPTERS, WRAPPERS, flat_name, native_name
from dummyforcing.checkpoints.quantised import FLOAT8, FLOATS
from dummyforcing.checkpoints.stored import StoredTensor
from dummyforcing.checkpoints.tensor_files import open_tensors, read_notes
from dummyforcing.checkpoints.weights import require_finite
from dummyforcing.errors import BadFile, NotFinite
from dummyforcing.files.finite import all_finite, faults
from dummyforcing.files.text import split_number

ENTRY = "generator_lora"
"""Where LongLive's file has it; other files have it at their top."""

PEFT = "base_model.model."
"""Begins the names in a file of PEFT."""

AROUND = re.compile(r"^((base_model\.model|generator|model|transformer|diffusion_model)\.)+")
"""What libraries put before the name of a layer, besides what wraps the transformer's own names."""

UNDERSCORES = re.compile(r"^(lora_unet|lora_transformer|lycoris)_+")
"""Begins names whose dots were written as underscores."""

SUFFIX = re.compile(
    r"\.(?:(lora_A|lora_down|lora\.down)|(lora_B|lora_up|lora\.up))(?:\.(?!weight$)[\w-]+)?\.weight$"
    r"|\.(alpha)$"
)
"""Ends the names of its tensors; PEFT can put the name of an adapter, such as `default`, before `weight`."""

PARTS = ("down", "up", "alpha")
"""What the groups of `SUFFIX` stand for."""

FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors", "adapter_model.bin")
"""How PEFT and diffusers call the file in a folder."""


class DoesNotFit(BadFile):
    """A LoRA is for a transformer of other layers or sizes."""


@dataclass(frozen=True)
class LoRA:
    """A file with a LoRA, or the folder that one is in, and how strongly it counts."""

    path: Path
    scale: float = 1.0
    """Besides the strength that the file has by itself."""


@dataclass(frozen=True)
class LayerChange:
    """The change of one layer's weight: strength * up @ down."""

    layer: str
    """Wan's own name of it."""
    down: StoredTensor
    """`(rank, in)`."""
    up: StoredTensor
    """`(out, rank)`."""
    strength: Strength
    """Of the file, without `LoRA.scale`."""

    @property
    def rank(self) -> int:
        """Of both matrices."""
        return self.down.shape[0]


def parse_lora(text: str) -> tuple[Path, float]:
    """Read FILE or FILE:SCALE.

    Raises:
        UserError: If there is no such file, or the scale is no finite number.
    """
    path, scale = split_number(text, "scale", "LoRA")
    if not Path(path).exists():
        raise BadFile(f"There is no LoRA file {path}", "give FILE or FILE:SCALE", "lora")
    return Path(path), _checked_scale(1.0 if scale is None else scale, path)


def merge_lora(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """Weight + scale * up @ down, in float32, where the weight is; `down (rank, in)`, `up (out, rank)`."""
    up, down = (part.to(weight.device, torch.float32) for part in (up, down))
    return weight.float().addmm(up, down, alpha=scale)


def merge_loras(tensors: Mapping[str, StoredTensor], loras: Sequence[LoRA]) -> dict[str, StoredTensor]:
    """Weights that have LoRAs merged into them once they are read.

    Args:
        tensors: Of a transformer, under Wan's own names.
        loras: Merged one after the other.

    Returns:
        The same names and shapes.

    Raises:
        UserError: If a LoRA is damaged, changes a layer that the transformer does not have in this shape, or
            says something about its strength that is not understood. Reading a weight raises it if one of the
            numbers that go into it is NaN or infinite.
    """
    merged = dict(tensors)
    for lora in loras:
        scale = _checked_scale(lora.scale, lora.path)
        for change in read_lora(lora.path, tensors):
            name = f"{change.layer}.weight"
            read = partial(_merged, name, merged[name], change, scale)
            merged[name] = replace(tensors[name], dtype="float32", read=read)
    return merged


def read_lora(path: Path, tensors: Mapping[str, StoredTensor]) -> list[LayerChange]:
    """Find the changes that a LoRA makes to a transformer, and their strengths; reads nothing else.

    Args:
        path: A file, or the folder of one.
        tensors: Of the transformer, under Wan's own names; only their shapes count.

    Raises:
        UserError: See `merge_loras`.
    """
    path = _file(path)
    parts, raw_names, is_kohya = _parts(path, tensors)
    notes = read_notes(path, ENTRY)
    for name, value in list(notes.items()):  # torch.save keeps a number as a number
        if name.endswith(".alpha") and isinstance(value, int | float):
            layer = _layer(name.removesuffix(".alpha"), tensors)
            _add(parts, layer, "alpha", value, name, path)
            del notes[name]
    _require_layers(path, {layer: raw_names.get(layer, layer) for layer in parts}, tensors)
    strengths = Strengths.of(path, notes)
    changes = [
        _change(path, layer, found, raw_names.get(layer, layer), layer in is_kohya, strengths, tensors)
        for layer, found in parts.items()
    ]
    if not changes:
        raise BadFile(f"{path} holds no LoRA: it is empty", "download it again, or take another file")
    for config in strengths.configs:
        config.require_patterns([raw_names[change.layer] for change in changes])
    return changes


def describe(changes: Sequence[LayerChange], scale: float = 1.0) -> list[str]:
    """Tell the layers of a LoRA, their ranks and their strengths, most layers first.

    Args:
        changes: From `read_lora`.
        scale: Of `LoRA`.
    """
    kinds = Counter((change.rank, change.strength) for change in changes)
    times = "" if scale == 1 else f", times {scale:g} as asked for"
    lines = []
    for (rank, strength), count in kinds.most_common():
        first = next(c.layer for c in changes if (c.rank, c.strength) == (rank, strength))
        which = "" if count == len(changes) else f" ({first}{', ...' if count > 1 else ''})"
        layers = f"{count} layer{'s' * (count > 1)}{which}"
        lines.append(f"{layers} of rank {rank}, strength {strength.factor:g}{times} ({strength.told})")
    return lines


def _file(path: Path) -> Path:
    """The file that is meant by a folder."""
    if not path.is_dir():
        return path
    found = [path / name for name in FILES if (path / name).is_file()] or sorted(path.glob("*.safetensors"))
    if not found:
        raise BadFile(f"Folder {path} holds no LoRA, no {' or '.join(FILES)}", "give the file")
    if len(found) > 1 and found[0].name not in FILES:
        names = ", ".join(file.name for file in found[:3])
        raise BadFile(f"Folder {path} holds several LoRAs: {names}", "give one of the files")
    return found[0]


Part = StoredTensor | int | float
Parts = dict[str, dict[str, tuple[str, Part]]]
"""The parts of every layer, each with its name in the file."""


def _parts(path: Path, tensors: Mapping[str, StoredTensor]) -> tuple[Parts, dict[str, str], set[str]]:
    """The parts of a LoRA by layer, under Wan's own names.

    Returns:
        The parts; the layers' names in the file, without what PEFT puts before them; and the layers whose
        matrices are called as in kohya's trainers.
    """
    parts: Parts = {}
    raw_names: dict[str, str] = {}
    is_kohya: set[str] = set()
    for name, tensor in open_tensors(path, ENTRY).items():
        bare = WRAPPERS.sub("", name)
        suffix = SUFFIX.search(bare)
        if suffix is None:
            kind = next((kind for kind, mark in OTHER_ADAPTERS.items() if mark.search(bare)), "")
            what = f", {kind}" if kind else ""
            raise BadFile(f"{path} is no LoRA that can be merged: it holds {name}{what}", "take another file")
        raw = bare[: suffix.start()]
        layer, part = _layer(raw, tensors), PARTS[(suffix.lastindex or 1) - 1]
        _add(parts, layer, part, tensor, name, path)
        raw_names[layer] = raw.removeprefix(PEFT)
        if suffix[1] == "lora_down":
            is_kohya.add(layer)
    return parts, raw_names, is_kohya


def _layer(name: str, tensors: Mapping[str, StoredTensor]) -> str:
    """Wan's own name of a layer."""
    layer = AROUND.sub("", name)
    if UNDERSCORES.match(layer):
        flat = flat_name(f"{UNDERSCORES.sub('', layer)}_weight")
        known = (name for name in tensors if name.replace(".", "_") == flat)
        return next(known, layer).removesuffix(".weight")
    return native_name(f"{layer}.weight").removesuffix(".weight")


def _add(parts: Parts, layer: str, part: str, found: Part, name: str, path: Path) -> None:
    mine = parts.setdefault(layer, {})
    if part in mine:
        raise BadFile(
            f"{path} changes {layer} twice, by {mine[part][0]} and by {name}", "keep one of them in the file"
        )
    mine[part] = (name, found)


def _require_layers(path: Path, layers: Mapping[str, str], tensors: Mapping[str, StoredTensor]) -> None:
    """Refuse changes of layers that the transformer does not have.

    Args:
        path: Of the LoRA.
        layers: Wan's own name of each layer -> its name in the file.
        tensors: Of the transformer.
    """
    linear = {name.removesuffix(".weight") for name, tensor in tensors.items() if len(tensor.shape) == 2}
    others = [name for layer, name in layers.items() if layer not in linear]
    if not others:
        return
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    what = "is no linear layer" if len(others) == 1 else "are no linear layers"
    raise DoesNotFit(
        f"{path} does not fit the transformer: it changes {', '.join(others[:3])}{more}, which {what} there",
        "take another",
    )


def _change(
    path: Path,
    layer: str,
    parts: Mapping[str, tuple[str, Part]],
    raw_name: str,
    is_kohya: bool,
    strengths: Strengths,
    tensors: Mapping[str, StoredTensor],
) -> LayerChange:
    """Put the parts of a layer together."""
    weight, where = tensors[f"{layer}.weight"], f"{path} does not fit the transformer"
    if not {"down", "up"} <= set(parts):
        raise BadFile(f"{where}: of {layer} it has only {', '.join(parts)}", "download it again")
    down, up = parts["down"][1], parts["up"][1]
    assert isinstance(down, StoredTensor)
    assert isinstance(up, StoredTensor)
    rank = down.shape[0] if down.shape else 0
    if len(down.shape) == len(up.shape) == 2 and up.shape[1] != rank:
        raise BadFile(
            f"{where}: the matrices of {layer} disagree on its rank, {rank} and {up.shape[1]}",
            "download it again",
        )
    if not rank or (up.shape, down.shape) != ((weight.shape[0], rank), (rank, weight.shape[1])):
        raise DoesNotFit(
            f"{where}: {layer} is {list(weight.shape)}, its changes are {list(up.shape)} times "
            f"{list(down.shape)}",
            "take one that was made for this size",
        )
    for part in (down, up):
        if part.dtype not in (*FLOATS, *FLOAT8):
            raise BadFile(f"{path} cannot be merged: {part.place} is {part.dtype}", "take one in bfloat16")
    alpha = _alpha(*parts["alpha"], path) if "alpha" in parts else None
    return LayerChange(layer, down, up, strengths.find(raw_name, rank, alpha, is_kohya))


def _alpha(name: str, found: Part, path: Path) -> float:
    """The alpha of a layer."""
    if isinstance(found, StoredTensor):
        if math.prod(found.shape) != 1:
            raise BadFile(
                f"{path}: {name} is {list(found.shape)}, and a strength is one number", "take another LoRA"
            )
        value = float(found.read())
    else:
        value = float(found)
    if not math.isfinite(value):
        raise BadFile(
            f"{path}: {name} is {value}, no finite number", "download it again, or take another LoRA"
        )
    return value


def _checked_scale(scale: float, path: object) -> float:
    if not math.isfinite(scale):
        raise BadFile(f"The scale of LoRA {path} is {scale}, no finite number", "take one such as 1")
    return scale


def _merged(name: str, weight: StoredTensor, change: LayerChange, scale: float) -> Tensor:
    """Read a weight and what changes it; what is not finite is named."""
    down = require_finite(name, change.down, change.down.read())
    up = require_finite(name, change.up, change.up.read())
    base, factor = weight.read(), scale * change.strength.factor
    merged = merge_lora(base, down, up, factor)
    if not all_finite(merged):
        require_finite(name, weight, base)
        raise NotFinite(
            f"{change.layer} with the LoRA in {change.down.place.rpartition(' of ')[2]} is not finite at "
            f"strength {factor:g}: {faults(merged)}",
            "take a smaller scale, FILE:SCALE",
        )
    return merged
