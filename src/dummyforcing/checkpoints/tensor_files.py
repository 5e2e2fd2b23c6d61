"""Tensors in files, known by name and shape and not read before they are wanted.

tensors = open_tensors(Path("self_forcing_dmd.pt"), "generator_ema")
weight = tensors["model.head.head.weight"].read()

Files are mapped into memory: of 16 GB only the pages of the tensors that are read are ever loaded.
"""

import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dummyforcing.errors import BadFile, BadRequest
from dummyforcing.files.reading import read_json

ZIP, TEXT = b"PK\x03\x04", (b"<", b"version https://git-lfs", b"{")
"""How files begin that `torch.save` wrote, and such that were downloaded in a wrong way."""

GENERATORS = ("generator", "generator_ema")
SAFETENSORS_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is still in its file, or in a loaded module."""

    shape: tuple[int, ...]
    dtype: str
    """`float32` and so on."""
    read: Callable[[], Tensor]
    """Maps it into memory, on the CPU, or gives the module's own, wherever it is; not to be written to."""
    place: str = ""
    """Its name there and the file, for error messages; empty: it is in none."""


def open_tensors(path: Path, key: str = "") -> dict[str, StoredTensor]:
    """List the tensors of a file, or of a folder with `*.safetensors`, by name.

    Args:
        path: `.safetensors`, or anything that `torch.save` wrote, or a folder.
        key: Entry of a `torch.save` file that holds them. If it is not there, the other one of `generator`
            and `generator_ema` is taken, else `model`, else the tensors at the top.

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
        return tensors
    if not path.is_file():
        raise BadFile(f"There is no file {path}", "give one that holds weights")
    return _open_safetensors(path) if path.suffix == ".safetensors" else _open_pickle(path, key)


def tensors_of(module: nn.Module) -> dict[str, StoredTensor]:
    """List the parameters of a loaded module by name; reading one copies nothing.

    Raises:
        BadRequest: If one is no floating-point number, as those of quantised modules.
    """
    stored = {}
    for name, weight in module.named_parameters():
        if not weight.is_floating_point():
            raise BadRequest(
                f"{name} is of {str(weight.dtype).removeprefix('torch.')}: the model is quantised",
                "give one in bfloat16 or float32",
            )
        kind = str(weight.dtype).removeprefix("torch.")
        stored[name] = StoredTensor(tuple(weight.shape), kind, weight.detach, name)
    return stored


def _open_safetensors(path: Path) -> dict[str, StoredTensor]:
    try:
        file: Any = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error

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
        return torch.load(path, map_location="cpu", mmap=is_zip, weights_only=True)
    except Exception as error:  # anything from EOFError to a RuntimeError of the zip reader
        reason = str(error).strip().partition("\n")[0][:120]
        raise _damaged(path, reason) from error


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
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return dict(file.metadata() or {})
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from error
    data = _load_pickle(path)
    entry = _entry(data, key, path)
    both = {**data, **entry} if isinstance(data, Mapping) else dict(entry)
    return {str(name): v for name, v in both.items() if not isinstance(v, Tensor) and v is not entry}


def _entry(data: object, key: str, path: Path) -> Mapping[str, object]:
    """The part of a `torch.save` file that holds the weights."""
    if not isinstance(data, Mapping):
        raise BadFile(f"{path} holds no weights by name, but {type(data).__name__}", "take a file of weights")
    entries = [name for name, value in data.items() if isinstance(value, Mapping)]
    generators = [name for name in GENERATORS if name in entries]
    if key in entries:
        chosen = key
    elif len(generators) > 1:
        raise BadFile(f"{path} holds {' and '.join(generators)}", "name one of them as the preset's key")
    else:
        chosen = generators[0] if generators else "model"
    found = data.get(chosen, data)
    return found if isinstance(found, Mapping) else data


def _weight_files(folder: Path) -> list[Path]:
    """The files of a folder that hold its weights; those of the index when there is one."""
    index = next(folder.glob("*.safetensors.index.json"), None)
    if index is None:
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise BadFile(f"Folder {folder} holds no weights, no *.safetensors file", "give another one")
        return files
    try:
        shards: Mapping[str, str] = read_json(index)["weight_map"]
        here = {file: (folder / file).is_file() for file in shards.values()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = reprlib.repr(str(error))
        raise BadFile(f"{index} is not an index of weights ({reason})", "fetch it again") from error
    for shard, is_here in here.items():
        if not is_here:
            names = [name for name, file in shards.items() if file == shard]
            raise BadFile(f"{folder / shard} is missing", f"it holds {len(names)} tensors ({_first(names)})")
    return [folder / shard for shard in sorted(here)]


def _damaged(path: Path, reason: object) -> BadFile:
    """The error for a file that cannot be read."""
    with path.open("rb") as file:
        begin = file.read(64).lstrip()
    if begin.startswith(TEXT):
        is_text = f"{path} is text instead of weights, such as a web page or a Git LFS pointer ({reason})"
        return BadFile(is_text, "download the file itself")
    return BadFile(
        f"{path} is damaged, incomplete or no file of weights ({reason})", "copy or download it again"
    )


def _first(names: Sequence[str]) -> str:
    return ", ".join(map(str, names[:3])) + (", ..." if len(names) > 3 else "")
