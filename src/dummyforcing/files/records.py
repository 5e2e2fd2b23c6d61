"""Frozen dataclasses from JSON or TOML: every field known and of its type, or an error that names it.

preset = build(Preset, tomllib.loads(text), "my.toml")
"""

import json
import math
import reprlib
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from dummyforcing.errors import BadFile, BadRequest, NotFinite

Record = TypeVar("Record")

WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def build(kind: type[Record], data: object, where: str) -> Record:
    """Make a dataclass of a table of its fields; tables inside become dataclasses, lists become tuples.

    Args:
        kind: A dataclass whose fields are numbers, text, booleans, literals, tuples or dataclasses.
        data: What was read.
        where: Begins the error messages, such as the name of the file.

    Returns:
        The record; fields that are not given have their defaults.

    Raises:
        BadFile: If a field is unknown (names the nearest), missing or of another type, or the record refuses
            the values.
    """
    known: Any = fields(kind)  # type: ignore[arg-type]
    names = [field.name for field in known]
    if not isinstance(data, dict):
        raise BadFile(f"{where} is {reprlib.repr(data)}, not a table", f"give its fields: {', '.join(names)}")
    for name in data:
        if name not in names:
            raise BadFile(f"{where}: there is no field '{name}'", f"{nearest(str(name), names)}")
    missing = [
        f.name for f in known if f.default is MISSING and f.default_factory is MISSING and f.name not in data
    ]
    if missing:
        raise BadFile(f"{where}: field '{missing[0]}' is missing", "give it")
    hints = get_type_hints(kind)
    values = {name: _convert(hints[name], value, f"{where}: {name}") for name, value in data.items()}
    try:
        return kind(**values)
    except BadRequest as error:  # rules of its own
        raise BadFile(f"{where}: {error.problem}", error.remedy) from error


def to_json(value: object, *, indent: int | None = None) -> str:
    """JSON for a file, which has no word for NaN or infinity: other programs could not read it.

    Raises:
        NotFinite: If there is such a number; says where.
    """
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError as error:
        if (found := _not_finite(value)) is None:
            raise
        place, number = found
        raise NotFinite(
            f"Nothing is written: {place or 'the value'} is {number}, which no file can hold",
            "mend what it was computed from",
        ) from error


def _not_finite(value: object) -> tuple[str, float] | None:
    """Find the first number that is not finite, and where it is, such as `scores[0][3]`."""
    if isinstance(value, float):
        return None if math.isfinite(value) else ("", value)
    inside: list[tuple[str, object]] = []
    if isinstance(value, Mapping):
        inside = [(str(name), item) for name, item in value.items()]
    elif isinstance(value, list | tuple):
        inside = [(f"[{number}]", item) for number, item in enumerate(value)]
    for name, item in inside:
        if found := _not_finite(item):
            place = found[0] if found[0].startswith("[") or not found[0] else f".{found[0]}"
            return f"{name}{place}", found[1]
    return None


def as_text(fields: Mapping[str, object]) -> str:
    """JSON that a person can read: a line for each field, and for each item of a list.

    Raises:
        NotFinite: If there is a number that JSON cannot hold; names the field.
    """
    to_json(fields)  # a number that cannot be written is named with its field
    return "{\n" + ",\n".join(f"{to_json(name)}: {_lines(value)}" for name, value in fields.items()) + "\n}\n"


def _lines(value: object) -> str:
    if isinstance(value, list | tuple):
        return "[\n  " + ",\n  ".join(to_json(row) for row in value) + "\n]"
    return to_json(value)


def nearest(name: str, known: Collection[str]) -> str:
    """Suggest the known name nearest to an unknown one, else all of them."""
    close = get_close_matches(name, known, 1)
    return f"the nearest is '{close[0]}'" if close else f"take {', '.join(known)}"


def _convert(hint: Any, value: object, where: str) -> object:
    origin, options = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Mapping:
        if not isinstance(value, dict):
            raise BadFile(f"{where} cannot be {reprlib.repr(value)}", "give a table")
        return {str(key): _convert(options[1], item, f"{where}: {key}") for key, item in value.items()}
    if origin in (UnionType, Union):
        (other,) = (option for option in options if option is not NoneType)
        return None if value is None else _convert(other, value, where)
    if origin is Literal:
        if value in options:
            return value
        raise BadFile(f"{where} cannot be {reprlib.repr(value)}", f"take {' or '.join(map(str, options))}")
    if origin is tuple and isinstance(value, list | tuple):
        repeated = options[-1] is Ellipsis
        if repeated or len(options) == len(value):
            kinds = [options[0]] * len(value) if repeated else options
            return tuple(_convert(kind, item, where) for kind, item in zip(kinds, value, strict=True))
    if is_dataclass(hint):
        return build(hint, value, where)  # type: ignore[arg-type]
    if hint is float and type(value) is int and abs(value) < 2**1023:
        return float(value)
    if type(value) is hint:
        return value
    if origin is tuple:
        count = "" if options[-1] is Ellipsis else f"{len(options)} "
        kind = "tables" if is_dataclass(options[0]) else "numbers"
        raise BadFile(f"{where} cannot be {reprlib.repr(value)}", f"give a list of {count}{kind}")
    raise BadFile(f"{where} cannot be {reprlib.repr(value)}", f"give {WORDS[hint]}")
