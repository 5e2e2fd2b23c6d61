"""Weights of the transformer: exact names, exact shapes, or an error that says which tensors differ.

Whoever published a checkpoint, its names become Wan's own. The module is built on the meta device and each
parameter replaced by a tensor of the file, cast on the way, so nothing is initialised in vain and the memory
never holds more than the model itself.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from dummyforcing.checkpoints.lora import LoRA, merge_loras
from dummyforcing.checkpoints.names import bare_names, kind_of, native_name
from dummyforcing.checkpoints.tensor_files import StoredTensor, open_tensors
from dummyforcing.errors import UserError
from dummyforcing.models.wan import CausalWan, ModelConfig
from dummyforcing.pipeline.memory import DecoderSizes

Module = TypeVar("Module", bound=nn.Module)

WAN_SIZES = {
    "1.3B": ModelConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30),
    "14B": ModelConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40),
}


def count_parameters(config: ModelConfig) -> int:
    """How many parameters a transformer of these sizes has."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in CausalWan(config).parameters())


PARAMETERS = {"text_encoder": 5_680_910_336, "vae": 126_892_531}
"""Of Wan 2.1, while its files are not here."""


def count_stored(path: Path) -> int:
    """Parameters in a file or folder."""
    return sum(math.prod(tensor.shape) for tensor in open_tensors(path).values())


def decoder_sizes(folder: Path) -> DecoderSizes:
    """Sizes of a VAE's decoder; without a folder, those of Wan 2.1.

    Raises:
        UserError: If its `config.json` describes no Wan VAE.
    """
    if not folder.exists():
        return DecoderSizes()
    config = folder / "config.json"
    try:
        return DecoderSizes.of(json.loads(config.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{config} does not describe a Wan VAE: {error}.") from error


def normalise(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Give a transformer's tensors Wan's own names, whoever saved them, and split a fused q, k and v.

    Raises:
        UserError: If two tensors get the same name.
    """
    named: dict[str, StoredTensor] = {}
    for stored_name, bare_name in bare_names(tensors).items():
        name, tensor = native_name(bare_name), tensors[stored_name]
        head, fused, end = name.partition(".self_attn.to_qkv.")
        parts = {f"{head}.self_attn.{p}.{end}": t for p, t in zip("qkv", _thirds(tensor), strict=True)}
        for own_name, part in (parts if fused else {name: tensor}).items():
            if own_name in named:
                raise UserError(f"Two of the tensors are {own_name}; keep one set of weights in the file.")
            named[own_name] = part
    return named


def _thirds(tensor: StoredTensor) -> list[StoredTensor]:
    """The rows of q, of k and of v."""
    rows, *rest = tensor.shape
    count = rows // 3

    def third(i: int) -> StoredTensor:
        return replace(tensor, shape=(count, *rest), read=lambda: tensor.read()[i * count : (i + 1) * count])

    return [third(i) for i in range(3)]


def read_config(folder: Path) -> ModelConfig:
    """Read the sizes of a transformer from its `config.json`, in Wan's or in diffusers' words.

    Raises:
        UserError: If the file is missing or lacks a size.
    """
    path = folder / "config.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if "attention_head_dim" in data:
            data |= {
                "num_heads": data["num_attention_heads"],
                "dim": data["num_attention_heads"] * data["attention_head_dim"],
                "in_dim": data["in_channels"],
                "out_dim": data["out_channels"],
            }
        sizes = {field.name: data[field.name] for field in fields(ModelConfig) if field.name in data}
        if "patch_size" in sizes:
            sizes["patch_size"] = tuple(sizes["patch_size"])
        return ModelConfig(**sizes)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} does not describe a Wan transformer: {error}.") from error


def check_names(tensors: Mapping[str, StoredTensor], module: nn.Module, path: Path) -> None:
    """Require exactly the parameters of `module`, each in its shape.

    Raises:
        UserError: If there is a difference; counts all, names the first few and the nearest missing.
    """
    expected = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]

    def with_nearest(name: str) -> str:
        close = get_close_matches(name, missing, 1)
        return f"{name}, near {close[0]}" if close else name

    differences = {
        "missing": missing,
        "unexpected": [*map(with_nearest, unexpected[:3]), *unexpected[3:]],
        "wrong in shape": [
            f"{name} {list(tensors[name].shape)} instead of {list(shape)}"
            for name, shape in expected.items()
            if name in tensors and tensors[name].shape != shape
        ],
    }
    found = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in differences.items()
        if names
    ]
    if found:
        is_kind, is_expected = kind_of(list(tensors)), kind_of(list(expected))
        what = f"they are of {is_kind} instead of {is_expected}, " if is_kind != is_expected else ""
        raise UserError(f"The weights in {path} do not fit the model: {what}{'; '.join(found)}.")


def open_transformer(
    path: Path, config: ModelConfig, key: str = "", loras: Sequence[LoRA] = ()
) -> tuple[CausalWan, dict[str, StoredTensor]]:
    """Build a transformer without weights, and find them.

    Args:
        path: File or folder, in any of the layouts that `normalise` knows.
        config: The sizes.
        key: Entry of the file, as for `open_tensors`.
        loras: Merged into the weights when they are read.

    Returns:
        The module on the meta device, and exactly its tensors by name.

    Raises:
        UserError: If a file is missing or damaged, or the tensors are not exactly those of the config.
    """
    with torch.device("meta"):
        model = CausalWan(config)
    tensors = normalise(open_tensors(path, key))
    check_names(tensors, model, path)
    return model, merge_loras(tensors, loras)


def fill(
    module: Module, tensors: Mapping[str, StoredTensor], device: torch.device | str, dtype: torch.dtype
) -> Module:
    """Put the weights into a module that is on the meta device, one after the other.

    Args:
        module: From `open_transformer` and its like.
        tensors: Exactly its parameters.
        device: Where they go.
        dtype: What they are converted to.

    Returns:
        The module, frozen and in evaluation mode.
    """
    weights = {name: tensor.read().to(device, dtype) for name, tensor in tensors.items()}
    # Not strict: a parameter with two names needs one tensor. The names were checked at opening.
    module.load_state_dict(weights, assign=True, strict=False)
    return module.eval().requires_grad_(False)
