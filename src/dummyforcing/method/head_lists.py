"""Head lists of Forcing-KV: which heads of a model others found static or dynamic, and the plan of that.

    plan = HeadLists.load("forcingkv_heads_selfforcing.json").plan()

A static head keeps at least 80% of its attention on the current chunk and the one before, the first three
frames left out of the count; the others are dynamic. Source: Forcing-KV (arXiv:2605.09681) and its files in
`configs_head`.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dummyforcing.errors import BadFile
from dummyforcing.files.reading import read_json
from dummyforcing.method.plan import HeadContext, Plan

STATIC, DYNAMIC = "static_head", "dynamic_head"
"""The keys of a layer's lists."""
WHOLE = HeadContext(0, None)


@dataclass(frozen=True)
class HeadLists:
    """Which heads of a model are static; the others are dynamic."""

    static: tuple[tuple[bool, ...], ...]
    """Of each head, layer by layer."""
    source: Mapping[str, str] = field(default_factory=dict)
    """The file, its hash, and what it says of itself."""

    @classmethod
    def load(cls, path: str | Path) -> "HeadLists":
        """Read a file: a list of layers, or a table with `layers` and perhaps its sizes.

        Raises:
            BadFile: If it cannot be read, or does not name every head of every layer once.
        """
        try:
            data = read_json(path)
            table = data if isinstance(data, dict) else {"layers": data}
            static = _static(table)
        except OSError as error:
            raise BadFile(
                f"The head lists {path} cannot be read ({error.strerror})", "give another file"
            ) from error
        except ValueError as error:
            raise BadFile(
                f"{path} holds no head lists ({error})",
                f"give Forcing-KV's format: layer_idx, {STATIC} and {DYNAMIC} of every layer",
            ) from error
        said = {name: table[name] for name in ("profile", "description") if isinstance(table.get(name), str)}
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        return cls(static, {"file": Path(path).name, "sha256": digest, **said})

    def plan(
        self,
        static: HeadContext = HeadContext(1, 1),  # noqa: B008 (frozen)
        dynamic: HeadContext = HeadContext(3, 6),  # noqa: B008
        first_layer_whole: bool = False,
    ) -> Plan:
        """Give every head a context.

        Args:
            static: What static heads see; the first and the last frame.
            dynamic: What dynamic heads see; LongLive's window.
            first_layer_whole: Whether all heads of layer 0 see the whole past.

        Returns:
            The plan, for any model of this size.
        """
        roles = [["static" if one else "dynamic" for one in row] for row in self.static]
        table = {"static": static, "dynamic": dynamic}
        if first_layer_whole:
            roles[0] = ["whole"] * len(roles[0])
            table["whole"] = WHOLE
        return Plan(
            roles=tuple(map(tuple, roles)),
            table=table,
            policy="forcing-kv",
            found={"by": "head lists of Forcing-KV", **self.source},
        )


def _static(table: Mapping[str, Any]) -> tuple[tuple[bool, ...], ...]:
    """Whether each head is static, layer by layer.

    Raises:
        ValueError: If a layer or a head is missing, or there twice; says which.
    """
    layers = table.get("layers")
    if not isinstance(layers, list) or not layers:
        raise ValueError("it has no list of layers")
    found: dict[int, tuple[list[int], list[int]]] = {}
    for place, entry in enumerate(layers):
        if not isinstance(entry, dict) or type(number := entry.get("layer_idx")) is not int:
            raise ValueError(f"entry {place} of its layers has no layer_idx")
        if number in found:
            raise ValueError(f"layer {number} is there twice")
        found[number] = (_heads(entry, number, STATIC), _heads(entry, number, DYNAMIC))
    count = _size(table, "num_layers", len(found))
    _require_all(found, count, "layer {}".format)
    width = _size(table, "num_heads", sum(map(len, found[0])))
    for number, (static, dynamic) in sorted(found.items()):
        _require_all([*static, *dynamic], width, f"head {{}} of layer {number}".format)
    return tuple(tuple(head in set(found[layer][0]) for head in range(width)) for layer in range(count))


def _heads(entry: Mapping[str, Any], layer: int, key: str) -> list[int]:
    heads = entry.get(key)
    if not isinstance(heads, list) or any(type(head) is not int for head in heads):
        raise ValueError(f"{key} of layer {layer} is no list of whole numbers")
    return heads


def _size(table: Mapping[str, Any], name: str, counted: int) -> int:
    """A size as the table says it, or as it was counted."""
    size = table.get(name, counted)
    if type(size) is not int or size < 1:
        raise ValueError(f"its {name} is {size!r}" if name in table else "its layer 0 has no heads")
    return size


def _require_all(numbers: Collection[int], count: int, name: Callable[[int], str]) -> None:
    """Refuse numbers that are not those from 0 to `count` - 1, each once."""
    seen = set()
    for number in numbers:
        if not 0 <= number < count:
            raise ValueError(f"there is {name(number)}, and the last one is {count - 1}")
        if number in seen:
            raise ValueError(f"{name(number)} is there twice")
        seen.add(number)
    if len(seen) < count:
        raise ValueError(f"{name(next(n for n in range(count) if n not in seen))} is missing")
