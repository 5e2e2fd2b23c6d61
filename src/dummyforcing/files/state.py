"""Nested dataclasses with tensors as files: what a program needs to go on where it stopped.

    write_state(path, "my format", "1", state)
    state = read_state(path, "my format", "1", MyState)

A file is safetensors with the structure as JSON in its metadata, and a checksum over both. Only dataclasses
that `MyState` mentions in its type hints are ever built.
"""

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dummyforcing.errors import BadFile
from dummyforcing.files.records import to_json
from dummyforcing.files.writing import replacing

State = TypeVar("State")

KIND = "$kind"
"""Key that tells which class an object of the JSON is of."""


@dataclass(frozen=True)
class NotSaved:
    """Stands for a function, of which a file has only the name."""

    name: str

    @classmethod
    def of(cls, function: object) -> "NotSaved":
        """What stands for a function, or for what stands for one already."""
        if isinstance(function, cls):
            return function
        return cls(str(getattr(function, "__qualname__", type(function).__qualname__)))

    def __call__(self, *_: object) -> Any:
        """Refuse to be called.

        Raises:
            BadFile: Always.
        """
        raise BadFile(f"'{self.name}' is code, which was not saved", "give it again")


def write_state(path: Path, kind: str, version: str, state: object) -> None:
    """Write a state, whole or not at all.

    Args:
        path: The file; its folder must exist.
        kind: What the file is, in words; begins the error messages of `read_state`.
        version: Of its layout.
        state: A dataclass of numbers, text, tensors, fractions, tuples, mappings, None, and such dataclasses.
            Of functions the name is kept: `NotSaved` takes their place.

    Raises:
        BadFile: If it cannot be written.
        NotFinite: If a number of it is NaN or infinite.
    """
    tensors: dict[str, Tensor] = {}
    text = to_json(_encode(state, tensors))
    about = {"format": kind, "version": version, "state": text, "checksum": _checksum(text, tensors)}
    with replacing(path) as part:
        save_file(tensors, part, about)


def read_state(path: Path, kind: str, version: str, state: type[State]) -> State:
    """Read what `write_state` wrote.

    Args:
        path: The file.
        kind: As it was written.
        version: As it was written.
        state: The class of the state.

    Raises:
        BadFile: If it is not there, of another version, or not as it was written.
    """
    if not path.is_file():
        raise BadFile(f"There is no file {path}", f"give a {kind}")
    remedy = f"give a {kind} that was saved whole"
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            # Copies are aligned as any other tensors; matrix products round by alignment.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise BadFile(f"{path} is damaged or no {kind} ({error})", remedy) from error
    if about.get("format") != kind:
        raise BadFile(f"{path} is damaged or no {kind}", remedy)
    if (theirs := about.get("version")) != version:
        raise BadFile(
            f"{path} is of version {theirs} of the format, and this library reads {version}",
            "use the version of the library that saved it",
        )
    if about.get("checksum") != _checksum(about.get("state", ""), tensors):
        raise BadFile(f"{path} is damaged (its checksum differs)", remedy)
    known = {found.__name__: found for found in _kinds(state)}
    try:
        result = _decode(json.loads(about["state"]), tensors, known)
    except (KeyError, TypeError, ValueError) as error:
        raise BadFile(f"{path} is damaged or no {kind} ({error!r})", remedy) from error
    if not isinstance(result, state):
        raise BadFile(f"{path} is damaged or no {kind}", remedy)
    return result


def _encode(value: object, tensors: dict[str, Tensor]) -> Any:
    """The JSON of a value; its tensors go to `tensors`, on the CPU, each with memory of its own."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        return {KIND: "Tensor", "name": name}
    if isinstance(value, Fraction):
        return {KIND: "Fraction", "value": str(value)}
    if callable(value):
        return {KIND: NotSaved.__name__, "name": NotSaved.of(value).name}
    if is_dataclass(value):
        values = {field.name: _encode(getattr(value, field.name), tensors) for field in fields(value)}
        return {KIND: type(value).__name__, **values}
    if isinstance(value, Mapping):
        return {KIND: "Mapping", "items": [[str(key), _encode(item, tensors)] for key, item in value.items()]}
    if isinstance(value, tuple | list):
        return [_encode(item, tensors) for item in value]
    return value


def _decode(data: Any, tensors: Mapping[str, Tensor], known: Mapping[str, type[Any]]) -> Any:
    if isinstance(data, list):
        return tuple(_decode(item, tensors, known) for item in data)
    if not isinstance(data, dict):
        return data
    match data[KIND]:
        case "Tensor":
            return tensors[data["name"]]
        case "Fraction":
            return Fraction(data["value"])
        case NotSaved.__name__:
            return NotSaved(data["name"])
        case "Mapping":
            return {key: _decode(item, tensors, known) for key, item in data["items"]}
        case name:
            values = {key: _decode(item, tensors, known) for key, item in data.items() if key != KIND}
            return known[name](**values)


def _kinds(hint: Any) -> Iterator[type[Any]]:
    """Find all dataclasses that a type hint mentions, itself included."""
    seen: set[Any] = set()
    waiting = [hint]
    while waiting:
        hint = waiting.pop()
        if is_dataclass(hint) and isinstance(hint, type) and hint not in seen:
            seen.add(hint)
            yield hint
            waiting += get_type_hints(hint).values()
        waiting += get_args(hint)


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    total = zlib.crc32(text.encode())
    for name in sorted(tensors):
        total = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"
