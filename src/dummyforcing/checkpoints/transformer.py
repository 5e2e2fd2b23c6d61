"""Weights of the transformer: exact names, exact shapes, or an error that says which tensors differ.

Whoever published a checkpoint, its names become Wan's own. The module is built on the meta device and each
parameter replaced by a tensor of the file, cast on the way, so nothing is initialised in vain and the memory
never holds more than the model itself. A transformer of diffusers that is loaded already is taken in the same
way: what has the right dtype is shared with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel

from dummyforcing.checkpoints.components import quiet
from dummyforcing.checkpoints.lora import LoRA, merge_loras
from dummyforcing.checkpoints.names import bare_names, kind_of, native_name, wrong_kind
from dummyforcing.checkpoints.stored import StoredTensor, tensors_of
from dummyforcing.checkpoints.tensor_files import open_tensors
from dummyforcing.checkpoints.weights import check_names
from dummyforcing.errors import BadFile, BadRequest
from dummyforcing.files.reading import read_json
from dummyforcing.files.records import build
from dummyforcing.models.wan import CausalWan, ModelConfig

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
        return _config(read_json(path))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BadFile(
            f"{path} does not describe a Wan transformer ({error})", "give the folder of one"
        ) from error


OTHER_INPUTS = {
    36: "an image-to-video transformer, with 36 channels of input",
    48: "Wan 2.2's 5B transformer, whose latents have 48 channels",
}
"""Transformers whose tensors have the names of text-to-video ones, by the channels that they take."""


def config_of(transformer: WanTransformer3DModel | CausalWan, text_len: int) -> ModelConfig:
    """The sizes of a loaded transformer.

    Args:
        transformer: Diffusers' or ours.
        text_len: Tokens per prompt, which diffusers' does not know unless its files told it.

    Raises:
        BadRequest: If the config of diffusers' describes none that runs here.
    """
    if isinstance(transformer, CausalWan):
        return transformer.config
    try:
        return _config({"text_len": text_len, **transformer.config})
    except (ValueError, TypeError, KeyError) as error:
        raise BadRequest(
            f"The transformer's config does not describe one of Wan's ({error})",
            "give a WanTransformer3DModel",
            "transformer",
        ) from error


def _config(data: dict[str, Any]) -> ModelConfig:
    """The sizes in a `config.json`."""
    if "attention_head_dim" in data:
        data = data | {
            "num_heads": data["num_attention_heads"],
            "dim": data["num_attention_heads"] * data["attention_head_dim"],
            "in_dim": data["in_channels"],
            "out_dim": data["out_channels"],
        }
    sizes = {field.name: data[field.name] for field in fields(ModelConfig) if field.name in data}
    return build(ModelConfig, sizes, "config.json")


def empty_diffusers(config: ModelConfig) -> WanTransformer3DModel:
    """Diffusers' transformer of these sizes on the meta device: it knows its own names and its config."""
    with torch.device("meta"), quiet():
        model = WanTransformer3DModel(
            patch_size=config.patch_size,
            num_attention_heads=config.num_heads,
            attention_head_dim=config.head_dim,
            in_channels=config.in_dim,
            out_channels=config.out_dim,
            text_dim=config.text_dim,
            freq_dim=config.freq_dim,
            ffn_dim=config.ffn_dim,
            num_layers=config.num_layers,
            eps=config.eps,
        )
    if config.text_len != WAN_SIZES["1.3B"].text_len:  # diffusers warns of a field that it does not know
        model.register_to_config(text_len=config.text_len)
    return model


def open_transformer(
    source: Path | WanTransformer3DModel | CausalWan,
    config: ModelConfig,
    key: str = "",
    loras: Sequence[LoRA] = (),
) -> tuple[CausalWan, dict[str, StoredTensor]]:
    """Build a transformer without weights, and find them.

    Args:
        source: File or folder, in any of the layouts that `normalise` knows, or a loaded transformer.
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
    if isinstance(source, Path):
        tensors, place = normalise(open_tensors(source, key)), str(source)
        _require_text_to_video(source, tensors, config)
    else:
        tensors, place = normalise(tensors_of(source)), "transformer="
        if any(".base_layer." in name for name in tensors):  # PEFT's word for the layer that it wraps
            raise BadRequest(
                "The transformer has LoRA layers that are not merged",
                "call its fuse_lora() and unload_lora(), or leave the LoRA to lora=FILE",
                "transformer",
            )
    check_names(tensors, model, place)
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
