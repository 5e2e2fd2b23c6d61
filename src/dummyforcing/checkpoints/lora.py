"""LoRA: low-rank changes of a transformer's weights, merged into them.

Each matrix is merged when it is read, in float32 and before the cast: there is no second copy of the weights.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from dummyforcing.checkpoints.names import WRAPPERS, native_name
from dummyforcing.checkpoints.tensor_files import StoredTensor, open_tensors
from dummyforcing.errors import BadFile
from dummyforcing.files.text import split_number

ENTRY = "generator_lora"
"""Where LongLive's file has it; other files have it at their top."""

AROUND = re.compile(r"\.default(?=\.)|^((base_model\.model|generator|model|transformer|diffusion_model)\.)+")
"""What libraries put around the name of a layer, besides what wraps the transformer's own names."""

UNDERSCORES = "lora_unet_"
"""Begins names whose dots were written as underscores."""

SUFFIX = re.compile(r"\.(?:(lora_A|lora_down)\.weight|(lora_B|lora_up)\.weight|(alpha))$")
PARTS = ("down", "up", "alpha")
"""What the groups of `SUFFIX` stand for."""


@dataclass(frozen=True)
class LoRA:
    """A file with a LoRA, and how strongly it counts."""

    path: Path
    scale: float = 1.0
    """Besides the file's own alpha / rank."""


def parse_lora(text: str) -> tuple[Path, float]:
    """Read FILE or FILE:SCALE.

    Raises:
        BadFile: If there is no such file.
        BadRequest: If the scale is no number.
    """
    path, scale = split_number(text, "scale", "LoRA")
    if not Path(path).exists():
        raise BadFile(f"There is no LoRA file {path}", "give FILE or FILE:SCALE")
    return Path(path), 1.0 if scale is None else scale


def merge_lora(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """Weight + scale * up @ down, in float32; `down (rank, in)`, `up (out, rank)`."""
    return weight.float().addmm(up.float(), down.float(), alpha=scale)


def merge_loras(tensors: Mapping[str, StoredTensor], loras: Sequence[LoRA]) -> dict[str, StoredTensor]:
    """Weights that have LoRAs merged into them once they are read.

    Args:
        tensors: Of a transformer, under Wan's own names.
        loras: Merged one after the other.

    Returns:
        The same names and shapes.

    Raises:
        BadFile: If a LoRA is damaged or changes a layer that the transformer does not have in this shape.
    """
    merged = dict(tensors)
    for lora in loras:
        for layer, change in _changes(lora, tensors).items():
            weight, where = tensors.get(f"{layer}.weight"), f"{lora.path} does not fit the transformer"
            if weight is None or len(weight.shape) != 2:
                raise BadFile(f"{where}: it changes {layer}, which is no linear layer there", "take another")
            if not {"down", "up"} <= set(change):
                raise BadFile(f"{where}: of {layer} it has only {', '.join(change)}", "download it again")
            down, up = change["down"], change["up"]
            rank = down.shape[0]
            if (up.shape, down.shape) != ((weight.shape[0], rank), (rank, weight.shape[1])):
                raise BadFile(
                    f"{where}: {layer} is {list(weight.shape)}, its changes are {list(up.shape)} times "
                    f"{list(down.shape)}",
                    "take one that was made for this size",
                )
            alpha = float(change["alpha"].read()) if "alpha" in change else _alpha_beside(lora.path, rank)
            below = merged[f"{layer}.weight"]
            read = partial(_merged, below, down, up, lora.scale * alpha / rank)
            merged[f"{layer}.weight"] = replace(weight, dtype="float32", read=read)
    return merged


def _changes(lora: LoRA, tensors: Mapping[str, StoredTensor]) -> dict[str, dict[str, StoredTensor]]:
    """The parts of a LoRA by layer, under Wan's own names."""
    flat = {name.removesuffix(".weight").replace(".", "_"): name.removesuffix(".weight") for name in tensors}
    changes: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in open_tensors(lora.path, ENTRY).items():
        short = AROUND.sub("", WRAPPERS.sub("", name))
        suffix = SUFFIX.search(short)
        if suffix is None:
            raise BadFile(f"{lora.path} is no LoRA that can be merged: it holds {name}", "take another file")
        layer = short[: suffix.start()]
        if layer.startswith(UNDERSCORES):
            layer = flat.get(layer.removeprefix(UNDERSCORES), layer)
        layer = native_name(f"{layer}.weight").removesuffix(".weight")
        changes.setdefault(layer, {})[PARTS[(suffix.lastindex or 1) - 1]] = tensor
    return changes


def _alpha_beside(path: Path, rank: int) -> float:
    """The alpha of a LoRA that PEFT saved: it is in a file beside; elsewhere it is the rank."""
    config = path.with_name("adapter_config.json")
    try:
        return (
            float(json.loads(config.read_text(encoding="utf-8"))["lora_alpha"]) if config.exists() else rank
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BadFile(f"{config} does not describe a LoRA: {error}", "download it again") from error


def _merged(weight: StoredTensor, down: StoredTensor, up: StoredTensor, scale: float) -> Tensor:
    return merge_lora(weight.read(), down.read(), up.read(), scale)
