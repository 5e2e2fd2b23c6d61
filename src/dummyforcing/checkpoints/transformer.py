"""Weights of the transformer: exact names, exact shapes, or an error that says which tensors differ.

Whoever published a checkpoint, its names become Wan's own. The module is built on the meta device and each
parameter replaced by a tensor of the file, cast on the way, so nothing is initialised in vain and the memory
never holds more than the model itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from dummyforcing.checkpoints.lora import LoRA, merge_loras
from dummyforcing.checkpoints.names import bare_names, kind_of, native_name, wrong_kind
from dummyforcing.checkpoints.stored import StoredTensor
from dummyforcing.checkpoints.tensor_files import open_tensors
from dummyforcing.checkpoints.weights import check_names
from dummyforcing.errors import BadFile
from dummyforcing.files.reading import read_json
from dummyforcing.files.records import build
from dummyforcing.models.wan import CausalWan, ModelConfig

Module = TypeVar("Module", bound=nn.Module)

WAN_SIZES = {
    "1.3B": ModelConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30),
    "14B": ModelConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40),
}


KEY = "generator_ema"
"""Entry of a file that no preset tells about."""


def count_parameters(config: ModelConfig) -> int:
    """Count the parameters of a transformer of these sizes."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in CausalWan(config).parameters())


PARAMETERS = {"text_encoder": 5_680_910_336, "vae": 126_892_531}
"""Of Wan 2.1, while its files are not here."""


def normalise(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Give a transformer's tensors Wan's own names, whoever saved them, and split a fused q, k and v.

    Raises:
        BadFile: If two tensors get the same name.
    """
    named: dict[str, StoredTensor] = {}
    for stored_name, bare_name in bare_names(tensors).items():
        name, tensor = native_name(bare_name), tensors[stored_name]
        head, fused, end = name.partition(".self_attn.to_qkv.")
        parts = {f"{head}.self_attn.{p}.{end}": t for p, t in zip("qkv", _thirds(tensor), strict=True)}
        for own_name, part in (parts if fused else {name: tensor}).items():
            if own_name in named:
                raise BadFile(f"Two of the tensors are {own_name}", "keep one set of weights in the file")
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
        BadFile: If the file is missing or lacks a size.
    """
    path = folder / "config.json"
    try:
        data = read_json(path)
        if "attention_head_dim" in data:
            data |= {
                "num_heads": data["num_attention_heads"],
                "dim": data["num_attention_heads"] * data["attention_head_dim"],
                "in_dim": data["in_channels"],
                "out_dim": data["out_channels"],
            }
        sizes = {field.name: data[field.name] for field in fields(ModelConfig) if field.name in data}
        return build(ModelConfig, sizes, path.name)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BadFile(
            f"{path} does not describe a Wan transformer ({error})", "give the folder of one"
        ) from error


OTHER_INPUTS = {
    36: "an image-to-video transformer, with 36 channels of input",
    48: "Wan 2.2's 5B transformer, whose latents have 48 channels",
}
"""Transformers whose tensors have the names of text-to-video ones, by the channels that they take."""


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
        BadFile: If a file is missing or damaged, or the tensors are not exactly those of the config.
    """
    with torch.device("meta"):
        model = CausalWan(config)
    tensors = normalise(open_tensors(path, key))
    _require_text_to_video(path, tensors, config)
    check_names(tensors, model, path)
    return model, merge_loras(tensors, loras)


def open_any_size(path: Path) -> tuple[str, CausalWan, dict[str, StoredTensor]]:
    """Find a transformer of no model yet: its sizes are in the `config.json` beside it, or public ones.

    Args:
        path: File or folder.

    Returns:
        What its sizes are called, and what `open_transformer` finds.

    Raises:
        BadFile: As `open_transformer`, or if there are no such sizes.
    """
    tensors, folder = normalise(open_tensors(path, KEY)), path if path.is_dir() else path.parent
    if kind_of(tensors) == "a Wan transformer" and (folder / "config.json").is_file():
        return "config.json", *open_transformer(path, read_config(folder), KEY)
    _require_text_to_video(path, tensors)
    patch = tensors.get("patch_embedding.weight")
    width = patch.shape[0] if patch is not None and patch.shape else 0
    name = next((name for name, size in WAN_SIZES.items() if size.dim == width), "")
    if patch is not None and not name:
        raise BadFile(f"{path} is a Wan transformer of width {width}", "put its config.json beside it")
    name = name or next(iter(WAN_SIZES))  # which it does not fit, so that what is missing is told
    return name, *open_transformer(path, WAN_SIZES[name], KEY)


def _require_text_to_video(
    path: Path, tensors: Mapping[str, StoredTensor], config: ModelConfig | None = None
) -> None:
    """Refuse weights of anything else than a transformer that takes text, and latents like those it makes.

    Args:
        path: Their file or folder.
        tensors: Under Wan's own names.
        config: The sizes, if they are known; else Wan 2.1's latents are expected.
    """
    wanted, kind = "a Wan transformer", kind_of(tensors)
    latents = config.in_dim if config is not None and config.in_dim == config.out_dim else 16
    if kind == wanted and (patch := tensors.get("patch_embedding.weight")) and len(patch.shape) > 1:
        kind = wanted if patch.shape[1] == latents else OTHER_INPUTS.get(patch.shape[1], wanted)
    if kind not in (wanted, None):
        raise wrong_kind(path, kind, wanted)
