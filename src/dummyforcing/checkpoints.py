"""Reading weights: exact names, exact shapes, or an error that says which tensors differ.

A model folder holds `*.safetensors` files, one or several with an index. Modules are built on the meta device
and their parameters replaced by the files' tensors, so nothing is initialised in vain.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dummyforcing.errors import UserError
from dummyforcing.model import CausalWan, ModelConfig

WAN_SIZES = {
    "1.3B": ModelConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30),
    "14B": ModelConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40),
}

DIFFUSERS_NAMES = {
    r"^condition_embedder\.text_embedder\.linear_1\.": "text_embedding.0.",
    r"^condition_embedder\.text_embedder\.linear_2\.": "text_embedding.2.",
    r"^condition_embedder\.time_embedder\.linear_1\.": "time_embedding.0.",
    r"^condition_embedder\.time_embedder\.linear_2\.": "time_embedding.2.",
    r"^condition_embedder\.time_proj\.": "time_projection.1.",
    r"^scale_shift_table$": "head.modulation",
    r"^proj_out\.": "head.head.",
    r"\.scale_shift_table$": ".modulation",
    r"\.attn1\.": ".self_attn.",
    r"\.attn2\.": ".cross_attn.",
    r"\.to_([qkv])\.": r".\1.",
    r"\.to_out\.0\.": ".o.",
    r"\.norm2\.": ".norm3.",
    r"\.ffn\.net\.0\.proj\.": ".ffn.0.",
    r"\.ffn\.net\.2\.": ".ffn.2.",
}
"""Patterns in diffusers' parameter names and what Wan calls the same thing."""


def native_name(name: str) -> str:
    """Wan's own name of a parameter that may be called as in diffusers; Wan's names stay as they are."""
    for pattern, replacement in DIFFUSERS_NAMES.items():
        name = re.sub(pattern, replacement, name)
    return name


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


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, known from the file's header."""

    file: Path
    name: str
    shape: tuple[int, ...]


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """List the tensors of a folder's `*.safetensors` files by name, without reading them.

    Raises:
        UserError: If the folder holds no weights, a shard is missing or a file is damaged.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in _weight_files(folder):
        with _open(path) as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                if name in tensors:
                    raise UserError(f"Tensor {name} is in {folder} twice; keep one set of weights there.")
                tensors[name] = StoredTensor(path, name, tuple(file.get_slice(name).get_shape()))
    return tensors


def check_names(tensors: Mapping[str, StoredTensor], module: nn.Module, folder: Path) -> None:
    """Require exactly the parameters of `module`, each in its shape.

    Raises:
        UserError: If there is a difference; names the first few tensors and counts all.
    """
    expected = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    differences = {
        "missing": [name for name in expected if name not in tensors],
        "unexpected": [name for name in tensors if name not in expected],
        "wrong in shape": [
            f"{name} {list(tensors[name].shape)} instead of {list(shape)}"
            for name, shape in expected.items()
            if name in tensors and tensors[name].shape != shape
        ],
    }
    found = [f"{len(names)} {kind} ({_first(names)})" for kind, names in differences.items() if names]
    if found:
        raise UserError(f"The weights in {folder} do not fit its config.json: {'; '.join(found)}.")


def load_transformer(folder: Path, device: torch.device, dtype: torch.dtype) -> CausalWan:
    """Load a causal Wan transformer from `config.json` and `*.safetensors`.

    Args:
        folder: Holds the files, under Wan's own or diffusers' names.
        device: Where the weights go, tensor by tensor.
        dtype: What they are converted to.

    Returns:
        The model, frozen and in evaluation mode.

    Raises:
        UserError: If a file is missing or damaged, or the tensors are not exactly those of the config.
    """
    with torch.device("meta"):
        model = CausalWan(read_config(folder))
    tensors = {native_name(name): tensor for name, tensor in read_headers(folder).items()}
    check_names(tensors, model, folder)
    weights: dict[str, Tensor] = {}
    for path in {tensor.file for tensor in tensors.values()}:
        with _open(path) as file:
            for name, tensor in tensors.items():
                if tensor.file == path:
                    weights[name] = file.get_tensor(tensor.name).to(device, dtype)
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


def _weight_files(folder: Path) -> list[Path]:
    """The files of a folder that hold its weights; those of the index when there is one."""
    index = next(folder.glob("*.safetensors.index.json"), None)
    if index is None:
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise UserError(f"Folder {folder} holds no weights: there is no *.safetensors file in it.")
        return files
    try:
        shards: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{index} is not an index of weights: {error}.") from error
    for shard in shards.values():
        if not (folder / shard).is_file():
            names = [name for name, file in shards.items() if file == shard]
            raise UserError(f"{folder / shard} is missing; it holds {len(names)} tensors ({_first(names)}).")
    return [folder / shard for shard in sorted(set(shards.values()))]


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or incomplete; copy or download it again ({error}).") from error


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
