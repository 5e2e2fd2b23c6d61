"""Tensors in files, known by name and shape and not read before they are wanted.

tensors = open_tensors(Path("self_forcing_dmd.pt"), "generator_ema")
weight = tensors["model.head.head.weight"].read()

Files are mapped into memory: of 16 GB only the pages of the tensors that are read are ever loaded.
"""

import re
import reprlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dummyforcing.checkpoints.quantised import unscaled
from dummyforcing.checkpoints.stored import StoredTensor
from dummyforcing.checkpoints.unreadable import ZIP, is_safetensors, no_file, unreadable, unsafe
from dummyforcing.errors import BadFile
from dummyforcing.files.reading import read_json

GENERATORS = ("generator", "generator_ema")
WRAPS = ("model", "state_dict", "module", "ema", "model_ema", "ema_model", "state_dict_ema")
"""Names under which training programs put weights, and the averages of them; one may be in another."""

SAFETENSORS_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.[^.]+)", re.IGNORECASE)
"""Name of one of several files of a model."""


def open_tensors(path: Path, key: str = "") -> dict[str, StoredTensor]:
    """List the tensors of a file, or of a folder with `*.safetensors`, by name.

    What a file is, its first bytes tell, not its name. Weights in float8 that have scales are the products.

    Args:
        path: Safetensors, or anything that `torch.save` wrote, or a folder.
        key: Entry of a `torch.save` file that holds them. If it is not there, the other one of `generator`
            and `generator_ema` is taken, else one of `WRAPS`, else the tensors at the top.

    Raises:
        BadFile: If nothing is there, it is damaged, or it is not clear which entry is meant.
    """
    if path.is_dir():
        tensors: dict[str, StoredTensor] = {}
        for file in _weight_files(path):
            for name, tensor in _open_safetensors(file).items():
                if name in tensors:
                    raise BadFile(f"Tensor {name} is in {path} twice", "keep one set of weights there")
                tensors[name] = tensor
        return unscaled(tensors, path)
    if not path.is_file():
        raise no_file(path)
    if (shard := SHARD.fullmatch(path.name)) and int(shard[3]) > 1:
        raise BadFile(
            f"{path} is one of {int(shard[3])} files of a model", f"give their folder, {path.parent}"
        )
    return unscaled(_open_safetensors(path) if _is_safetensors(path) else _open_pickle(path, key), path)


def _is_safetensors(path: Path) -> bool:
    """Whether a file is; if it is nothing that `torch.save` wrote either, it is refused."""
    try:
        with path.open("rb") as file:
            begin = file.read(9)
    except OSError as error:
        raise unreadable(path) from error
    if is_safetensors(begin):
        return True
    if not begin.startswith((ZIP, b"\x80")):
        raise unreadable(path)
    return False


def _open_safetensors(path: Path) -> dict[str, StoredTensor]:
    try:
        file: Any = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise unreadable(path, error) from error

    def stored(name: str) -> StoredTensor:
        view = file.get_slice(name)
        kind = SAFETENSORS_TYPES.get(view.get_dtype(), view.get_dtype())
        return StoredTensor(tuple(view.get_shape()), kind, lambda: file.get_tensor(name), f"{name} of {path}")

    return {name: stored(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def _open_pickle(path: Path, key: str) -> dict[str, StoredTensor]:
    data = _load_pickle(path)
    tensors = {name: value for name, value in _entry(data, key, path).items() if isinstance(value, Tensor)}
    if not tensors:
        raise BadFile(f"{path} holds no tensors under {_first(list(data))}", "take a file of weights")

    def stored(name: str, tensor: Tensor) -> StoredTensor:
        kind = str(tensor.dtype).removeprefix("torch.")
        return StoredTensor(tuple(tensor.shape), kind, lambda: tensor, f"{name} of {path}")

    return {name: stored(name, tensor) for name, tensor in tensors.items()}


def _load_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        is_zip = file.read(len(ZIP)) == ZIP  # the format before 2020 cannot be mapped
    try:
        with warnings.catch_warnings(action="ignore"):  # of programs, which are refused
            return torch.load(path, map_location="cpu", mmap=is_zip, weights_only=True)
    except UnpicklingError as error:
        raise unsafe(path, str(error)) from error
    except Exception as error:  # anything from EOFError to a RuntimeError of the zip reader
        raise unreadable(path, str(error).strip().partition("\n")[0][:120]) from error


def read_notes(path: Path, key: str = "") -> dict[str, object]:
    """Read what a file of tensors says besides them.

    Args:
        path: As for `open_tensors`, but no folder.
        key: Likewise.

    Returns:
        The metadata of safetensors, which are texts; of a `torch.save` file, all values that are no tensors,
        those at its top and those among its tensors.

    Raises:
        UserError: If it is damaged.
    """
    if _is_safetensors(path):
        try:
            with safe_open(path, framework="pt") as file:
                return dict(file.metadata() or {})
        except (SafetensorError, OSError) as error:
            raise unreadable(path, error) from error
    data = _load_pickle(path)
    entry = _entry(data, key, path)
    both = {**data, **entry} if isinstance(data, Mapping) else dict(entry)
    return {str(name): v for name, v in both.items() if not isinstance(v, Tensor) and v is not entry}


def _entry(data: object, key: str, path: Path) -> Mapping[str, object]:
    """The part of a `torch.save` file that holds the weights."""
    if isinstance(data, list | tuple) and len(data) == 1:
        data = data[0]
    if not isinstance(data, Mapping):
        raise BadFile(f"{path} holds no weights by name, but {type(data).__name__}", "take a file of weights")
    entries = [name for name, value in data.items() if _has_tensors(value)]
    if key in entries:
        return _entry(data[key], key, path)
    generators = [name for name in GENERATORS if name in entries]
    found = generators or [name for name in WRAPS if name in entries]
    if len(found) > 1:
        raise BadFile(f"{path} holds {' and '.join(found)}", "name one of them as the preset's key")
    return _entry(data[found[0]], key, path) if found else data


def _has_tensors(value: object) -> bool:
    """Whether something is a table with tensors in it, however deep."""
    return isinstance(value, Mapping) and any(
        isinstance(v, Tensor) or _has_tensors(v) for v in value.values()
    )


def _weight_files(folder: Path) -> list[Path]:
    """The files of a folder that hold its weights; those of the index when there is one."""
    index = next(folder.glob("*.safetensors.index.json"), None)
    if index is None:
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() == ".safetensors")
        if not files:
            raise _no_weights(folder)
        for file in files:
            if shard := SHARD.fullmatch(file.name):
                for number in range(1, int(shard[3]) + 1):
                    other = folder / f"{shard[1]}-{number:05}-of-{shard[3]}{shard[4]}"
                    if not other.is_file():
                        raise BadFile(f"{other} is missing", f"download it: there are {int(shard[3])}")
        return files
    try:
        shards: Mapping[str, str] = read_json(index)["weight_map"]
        here = {file: (folder / file).is_file() for file in shards.values()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = reprlib.repr(str(error))
        raise BadFile(f"{index} is not an index of weights ({reason})", "fetch it again") from error
    for shard_name, is_here in here.items():
        if not is_here:
            names = [name for name, file in shards.items() if file == shard_name]
            raise BadFile(
                f"{folder / shard_name} is missing",
                f"download it: it holds {len(names)} tensors ({_first(names)})",
            )
    return [folder / shard_name for shard_name in sorted(here)]


def _no_weights(folder: Path) -> BadFile:
    """The error for a folder without safetensors, with what there is in place of them."""
    none = f"Folder {folder} holds no weights, no *.safetensors file"
    if (folder / "transformer").is_dir():
        return BadFile(none, f"give its transformer, {folder / 'transformer'}")
    if (folder / ".metadata").is_file():
        make = f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} FILE.pt"
        return BadFile(
            f"Folder {folder} is a checkpoint of torch.distributed", f"make one file of it: {make}"
        )
    endings = (".pt", ".pth", ".bin", ".ckpt")
    files = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in endings)
    return BadFile(none, f"give the file, such as {folder / files[0]}" if files else "give another one")


def _first(names: Sequence[str]) -> str:
    return ", ".join(map(str, names[:3])) + (", ..." if len(names) > 3 else "")
