"""Text files as editors and programs of any system write them: plain text, JSON, TOML and YAML.

What cannot be read is an OSError or a ValueError, which says why; the reader of each format knows what it
wanted, and says that.
"""

import codecs
import json
import tomllib
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

import yaml

Value = TypeVar("Value")

BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16's, which it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""What a file begins with, and how the rest of it is written then."""

INSTEAD = {
    b"version https://git-lfs": "a Git LFS pointer",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"<?xml": "an error message in XML",
}
"""What files begin with that were downloaded in a wrong way, and what they are."""


def read_text(path: str | Path) -> str:
    """The text of a file: UTF-8, or what a byte order mark says; every line ends with a newline alone.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no text.
    """
    data = Path(path).read_bytes()
    encodings = (encoding for mark, encoding in BYTE_ORDER_MARKS.items() if data.startswith(mark))
    text = data.decode(next(encodings, "utf-8"))
    if "\0" in text:
        raise ValueError("it has zero bytes: save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: str | Path) -> Any:
    """The value of a JSON file.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no JSON, or a table has two values for a name.
    """
    return parse_json(read_text(path))


def parse_json(text: str) -> Any:
    """The value of JSON, which knows no NaN.

    Raises:
        ValueError: As for `read_json`.
    """
    return _shallow(lambda: json.loads(text, object_pairs_hook=_table, parse_constant=_no_number))


def read_toml(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no TOML.
    """
    text = read_text(path)
    return _shallow(lambda: tomllib.loads(text))


def read_yaml(path: str | Path) -> Any:
    """The value of a YAML file; JSON is YAML, too.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no YAML, or a table has two values for a name.
    """
    text = read_text(path)
    try:
        return _shallow(lambda: yaml.load(text, _Loader))
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def instead_of_a_file(begin: bytes) -> str:
    """What a download left in place of the file that was wanted: `a web page` and so on; empty: it did not.

    Args:
        begin: Its first bytes, 64 or more.
    """
    begin = begin.removeprefix(codecs.BOM_UTF8).lstrip()[:64].lower()
    return next((what for mark, what in INSTEAD.items() if begin.startswith(mark)), "")


def whole(text: str) -> str:
    r"""Text whose surrogate pairs are single characters, as in `"\ud83d\ude80"`.

    Raises:
        ValueError: If it has half of a pair, which is no character.
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")


class _Loader(yaml.SafeLoader):
    """YAML's safe values, of tables without repeated names and of text that can be written again."""

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        return whole(value) if isinstance(value, str) else value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for number, name in enumerate(names):
            if name in names[:number]:
                mark = node.value[number][0].start_mark
                raise yaml.constructor.ConstructorError(None, None, f"a second '{name}' in one table", mark)
        return super().construct_mapping(node, deep)


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for name, value in pairs:
        if name in table:
            raise ValueError(f"a second {name!r} in one table")
        table[name] = value
    return table


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no number of JSON")


def _shallow(parse: Callable[[], Value]) -> Value:
    try:
        return parse()
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
