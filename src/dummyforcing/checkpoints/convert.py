"""Models as folders: what is wrong with one, and writing one.

A folder is laid out as pipelines of diffusers are, with `preset.json` beside: the loaders of diffusers and
transformers read every part of it, the transformer too, which has diffusers' names and config there.

    for report in check_model(ModelFiles.open("self-forcing")): ...
    for path in convert(ModelFiles.open("self-forcing"), Path("self-forcing"), torch.bfloat16): ...

Only names and shapes are read to check, unless it is asked to be deep; to convert, one shard at a time is in
memory.
"""

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from dummyforcing.checkpoints.hub import HubFile, fetch, fetch_lora, find_part
from dummyforcing.checkpoints.lora import DoesNotFit, LayerChange, LoRA, describe, read_lora
from dummyforcing.checkpoints.lora_strength import CONFIG
from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.checkpoints.names import bare_names, kind_of, native_name, wrong_kind
from dummyforcing.checkpoints.stored import StoredTensor, tensors_of
from dummyforcing.checkpoints.tensor_files import open_tensors
from dummyforcing.checkpoints.text_encoder import load_tokenizer, open_text_encoder
from dummyforcing.checkpoints.transformer import (
    KEY,
    WAN_SIZES,
    empty_diffusers,
    open_any_size,
    open_transformer,
    read_config,
)
from dummyforcing.checkpoints.vae import open_small_decoder, open_vae
from dummyforcing.checkpoints.weights import require_finite
from dummyforcing.errors import UserError
from dummyforcing.files.records import to_json
from dummyforcing.files.writing import new_folder
from dummyforcing.models.text_encoder import TextEncoder
from dummyforcing.models.wan import CausalWan, ModelConfig
from dummyforcing.presets.catalog import bundled_folders
from dummyforcing.presets.preset import Preset

WEIGHTS = ("transformer", "text_encoder", "vae")
SHARD_BYTES = 5 * 10**9
STEMS = {"text_encoder": "model"}
"""How the files of weights are called, where not as in diffusers."""


@dataclass(frozen=True)
class PartReport:
    """Findings on one part of a model."""

    part: str
    place: str
    tensors: int = 0
    parameters: int = 0
    dtype: str = ""
    """Of most parameters."""
    problem: str = ""
    """Empty: there is none."""
    facts: tuple[str, ...] = ()
    """Of a LoRA: its layers, ranks and strengths, a line for each kind."""


def open_part(
    files: ModelFiles, part: str, *, here: bool = False
) -> tuple[nn.Module, dict[str, StoredTensor]]:
    """Build a part of a model without weights, and find them.

    Args:
        files: The model.
        part: One of `WEIGHTS`.
        here: Download nothing.

    Returns:
        The module on the meta device, and exactly its tensors by name.

    Raises:
        BadFile: If a file is missing or damaged, or the tensors are not those of the part.
    """
    if part == "transformer":
        loras = [LoRA(fetch_lora(place, here=here), scale) for place, scale in files.loras]
        return open_transformer(fetch(files.transformer, here=here), files.config, files.key, loras)
    path = find_part(fetch(files.base, here=here), part)
    return open_text_encoder(path) if part == "text_encoder" else open_vae(path)


def check_model(files: ModelFiles, *, deep: bool = False) -> list[PartReport]:
    """Look at every part of a model, and at its LoRAs, as far as they are here.

    Args:
        files: The model.
        deep: Read all weights, which takes as long as loading does, and look for NaN and infinite numbers.
    """
    places: Mapping[str, Path | HubFile] = {"transformer": files.transformer}
    reports = []
    for part in (*WEIGHTS, "tokenizer"):
        place = str(places.get(part, files.base))
        try:
            if part != "transformer":
                place = str(find_part(fetch(files.base, here=True), part))
            if part == "tokenizer":
                load_tokenizer(Path(place))
                reports.append(PartReport(part, place))
            else:
                reports.append(_report(part, place, open_part(files, part, here=True)[1], deep))
        except UserError as error:
            reports.append(PartReport(part, place, problem=str(error)))
    for lora, scale in files.loras:
        try:
            path = fetch_lora(lora, here=True)
            changes = read_lora(path, _shapes(files.config))
            reports.append(_lora_report("LoRA", path, changes, deep, scale))
        except UserError as error:
            reports.append(PartReport("LoRA", str(lora), problem=str(error)))
    return reports


def check_file(path: Path, *, deep: bool = False) -> PartReport:
    """Look at a file or folder of weights that belongs to no model yet: what it is, and whether it is whole.

    Args:
        path: The file or folder.
        deep: Read all weights and look for NaN and infinite numbers.

    Raises:
        BadFile: If there is nothing that can be read, or it is of no kind that a model needs.
    """
    if (path / CONFIG).is_file():
        return _check_lora(path, deep)
    match kind := kind_of(bare_names(open_tensors(path, KEY)).values()):
        case "a Wan transformer":
            size, _, tensors = open_any_size(path)
            return _report(f"Wan transformer, {size}", str(path), tensors, deep)
        case "a UMT5 text encoder":
            return _report("UMT5 text encoder", str(path), open_text_encoder(path)[1], deep)
        case "a Wan VAE":
            return _report("Wan VAE", str(path), open_vae(path)[1], deep)
        case "a small decoder":
            return _report("small decoder", str(path), open_small_decoder(path)[1], deep)
        case "a LoRA":
            return _check_lora(path, deep)
    raise wrong_kind(path, kind)


def convert(
    files: ModelFiles, folder: Path, dtype: torch.dtype, parts: Sequence[str] = WEIGHTS
) -> Iterator[Path]:
    """Write a model as a folder of safetensors, whole or not at all, with LoRAs merged.

    Args:
        files: The model; what is not here is downloaded.
        folder: A new folder.
        dtype: Of the weights.
        parts: Which of `WEIGHTS` to write. The tokenizer goes with the text encoder; of what is left out, the
            folder's preset says where it is.

    Yields:
        The files of weights, relative to the folder, as they are finished.

    Raises:
        UserError: If a part is missing or damaged, a weight is NaN or infinite, or the folder cannot be
            written.
    """
    with new_folder(folder) as new:
        for part in parts:
            module, tensors = open_part(files, part)
            kind = files.vae_dtype(dtype) if part == "vae" else dtype
            for file in _write_part(module, tensors, new / part, kind):
                yield file.relative_to(new)
        whole = set(parts) == set(WEIGHTS)
        if "text_encoder" in parts:
            shutil.copytree(find_part(fetch(files.base), "tokenizer"), new / "tokenizer")
        base = files.base.absolute() if isinstance(files.base, Path) else files.base
        _write_preset(replace(files.preset, source=None, base="" if whole else str(base)), new)


def save_model(
    preset: Preset, model: CausalWan, text: TextEncoder, vae: AutoencoderKLWan, folder: Path
) -> None:
    """Write a loaded model as a folder of safetensors, whole or not at all.

    Args:
        preset: Of the model.
        model: The transformer.
        text: The text encoder with its tokenizer.
        vae: The VAE.
        folder: A new folder.

    Raises:
        BadFile: If it exists or cannot be written, or a weight is NaN or infinite.
    """
    parts: dict[str, nn.Module] = {"transformer": model, "text_encoder": text.model, "vae": vae}
    with new_folder(folder) as new:
        for part, module in parts.items():
            _write_part(module, tensors_of(module), new / part, next(module.parameters()).dtype)
        text.tokenizer.save_pretrained(new / "tokenizer")
        _write_preset(replace(preset, source=None, base=""), new)


def _write_preset(preset: Preset, folder: Path) -> None:
    text = to_json(_changed_fields(preset), indent=1) + "\n"
    (folder / "preset.json").write_text(text, encoding="utf-8")


def _write_part(
    module: Any, tensors: Mapping[str, StoredTensor], folder: Path, dtype: torch.dtype
) -> list[Path]:
    """Write the configuration and the weights of a part into a new folder, as its library's loader wants."""
    folder.mkdir()
    if isinstance(module, CausalWan):
        module = empty_diffusers(module.config)
        tensors = {name: tensors[native_name(name)] for name, _ in module.named_parameters()}
    if hasattr(module, "save_config"):
        module.save_config(folder)  # diffusers
    else:
        module.config.save_pretrained(folder)
    return list(_write_weights(tensors, folder, STEMS.get(folder.name, "diffusion_pytorch_model"), dtype))


def _write_weights(
    tensors: Mapping[str, StoredTensor], folder: Path, stem: str, dtype: torch.dtype
) -> Iterator[Path]:
    """Write `*.safetensors` of 5 GB at most, and their index if there are several."""
    sizes = {name: torch.empty(t.shape, dtype=dtype, device="meta") for name, t in tensors.items()}
    pattern = stem + "{suffix}.safetensors"
    split = split_torch_state_dict_into_shards(sizes, filename_pattern=pattern, max_shard_size=SHARD_BYTES)
    for file, names in split.filename_to_tensors.items():
        shard = {name: _converted(name, tensors[name], dtype) for name in names}
        try:
            save_file(shard, folder / file, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(str(error)) from error
        yield folder / file
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / f"{stem}.safetensors.index.json").write_text(to_json(index, indent=1), encoding="utf-8")


def _converted(name: str, tensor: StoredTensor, dtype: torch.dtype) -> Tensor:
    return require_finite(name, tensor, tensor.read().to("cpu", dtype, copy=True).contiguous())


def _changed_fields(preset: Preset) -> dict[str, object]:
    """The fields of a preset that differ from their defaults, for JSON."""
    values = asdict(preset)
    changed = (f.name for f in fields(preset) if f.default is MISSING or getattr(preset, f.name) != f.default)
    return {name: values[name] for name in changed}


def _report(
    part: str, place: str, tensors: Mapping[str, StoredTensor], deep: bool, facts: Sequence[str] = ()
) -> PartReport:
    counts: Counter[str] = Counter()
    for tensor in tensors.values():
        counts[tensor.dtype] += prod(tensor.shape)
    dtype, problem = counts.most_common(1)[0][0], _damage(tensors) if deep else ""
    return PartReport(part, place, len(tensors), counts.total(), dtype, problem, tuple(facts))


def _damage(tensors: Mapping[str, StoredTensor]) -> str:
    """Read all weights, one after the other, and tell which of them are not finite; empty: none is."""
    problems = []
    for name, tensor in tensors.items():
        try:
            require_finite(name, tensor, tensor.read())
        except UserError as error:
            problems.append(error)
    if not problems:
        return ""
    first, count = problems[0], len(problems)
    return str(first) if count == 1 else f"{count} of {len(tensors)} tensors cannot be used. {first}"


def _check_lora(path: Path, deep: bool) -> PartReport:
    """A LoRA that fits a model of a public size, or one of those that come along."""
    sizes = dict(WAN_SIZES)
    for name, folder in bundled_folders().items():
        if (folder / "transformer" / "config.json").is_file():
            sizes[f"model {name}"] = read_config(folder / "transformer")
    problem: UserError | None = None
    for name, config in sizes.items():
        try:
            changes = read_lora(path, _shapes(config))
        except DoesNotFit as error:
            problem = problem or error
        else:
            return _lora_report(f"LoRA for {name}", path, changes, deep)
    assert problem is not None
    raise problem


def _shapes(config: ModelConfig) -> dict[str, StoredTensor]:
    """The tensors of a transformer of these sizes, without weights."""
    with torch.device("meta"):
        weights = CausalWan(config).state_dict()
    return {name: StoredTensor(tuple(w.shape), "", torch.Tensor) for name, w in weights.items()}


def _lora_report(
    part: str, path: Path, changes: Sequence[LayerChange], deep: bool, scale: float = 1.0
) -> PartReport:
    tensors = {matrix.place: matrix for change in changes for matrix in (change.down, change.up)}
    return _report(part, str(path), tensors, deep, describe(changes, scale))
