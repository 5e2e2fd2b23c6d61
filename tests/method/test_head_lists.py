"""Head lists of Forcing-KV: both forms that are published, and files that are damaged."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dummyforcing.errors import BadFile
from dummyforcing.method.head_lists import HeadLists
from dummyforcing.method.plan import HeadContext, Plan

STATIC = [[0, 2], [], [0, 1, 2, 3]]
"""Of three layers of four heads."""


def layers(static: list[list[int]] = STATIC, heads: int = 4) -> list[dict[str, Any]]:
    return [
        {
            "layer_idx": layer,
            "static_head": row,
            "dynamic_head": [head for head in range(heads) if head not in row],
        }
        for layer, row in enumerate(static)
    ]


def table(**changes: Any) -> dict[str, Any]:
    found = {
        "format": "forcingkv_offline_head_custom2",
        "profile": "a model",
        "num_layers": 3,
        "num_heads": 4,
        "layers": layers(),
    }
    return {**found, **changes}


@pytest.mark.parametrize("data", [table(), layers(), layers()[::-1], {"layers": layers()}])
def test_both_forms(tmp_path: Path, data: object) -> None:
    file = tmp_path / "lists.json"
    file.write_text(json.dumps(data))
    lists = HeadLists.load(file)
    assert [[head for head, static in enumerate(row) if static] for row in lists.static] == STATIC
    plan = lists.plan()
    assert [[head for head, role in enumerate(row) if role == "static"] for row in plan.roles] == STATIC
    assert plan.table == {"static": HeadContext(1, 1), "dynamic": HeadContext(3, 6)}
    assert plan.found["file"] == "lists.json"
    assert (plan.found.get("profile") == "a model") == (isinstance(data, dict) and "profile" in data)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


def test_contexts() -> None:
    lists = HeadLists(((True, False), (True, True)))
    plan = lists.plan(HeadContext(0, 2), HeadContext(0, 12), first_layer_whole=True)
    assert plan.contexts == ((HeadContext(0, None),) * 2, (HeadContext(0, 2),) * 2)
    assert plan.counts == {"static": 2, "dynamic": 0, "whole": 2}


def changed(layer: int, **changes: Any) -> dict[str, Any]:
    rows = layers()
    rows[layer] = {name: value for name, value in {**rows[layer], **changes}.items() if value is not None}
    return table(layers=rows)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("no JSON", "holds no head lists (Expecting value"),
        (7, "it has no list of layers"),
        ([], "it has no list of layers"),
        ({"format": "dummyforcing plan 1", "roles": []}, "it has no list of layers"),
        (table(layers={}), "it has no list of layers"),
        (table(layers=[3]), "entry 0 of its layers has no layer_idx"),
        (changed(1, layer_idx=None), "entry 1 of its layers has no layer_idx"),
        (changed(1, layer_idx="1"), "entry 1 of its layers has no layer_idx"),
        (changed(1, layer_idx=True), "entry 1 of its layers has no layer_idx"),
        (changed(1, layer_idx=0), "layer 0 is there twice"),
        (changed(1, layer_idx=3), "there is layer 3, and the last one is 2"),
        (changed(0, layer_idx=-1), "there is layer -1, and the last one is 2"),
        ([*layers()[:1], *layers()[2:]], "there is layer 2, and the last one is 1"),
        (table(num_layers=4), "layer 3 is missing"),
        (table(num_layers=2), "there is layer 2, and the last one is 1"),
        (table(num_layers="3"), "its num_layers is '3'"),
        (table(num_heads=0), "its num_heads is 0"),
        (table(num_heads=5), "head 4 of layer 0 is missing"),
        (table(num_heads=3), "there is head 3 of layer 0, and the last one is 2"),
        (table(num_heads=10**12), "head 4 of layer 0 is missing"),
        (changed(1, static_head=None), "static_head of layer 1 is no list of whole numbers"),
        (changed(1, dynamic_head="0"), "dynamic_head of layer 1 is no list of whole numbers"),
        (changed(1, dynamic_head=[0, 1, 2, 3.0]), "dynamic_head of layer 1 is no list of whole numbers"),
        (changed(1, static_head=[1]), "head 1 of layer 1 is there twice"),
        (changed(0, static_head=[0, 0, 2]), "head 0 of layer 0 is there twice"),
        (changed(0, static_head=[0]), "head 2 of layer 0 is missing"),
        (changed(2, dynamic_head=[4]), "there is head 4 of layer 2, and the last one is 3"),
        (changed(1, dynamic_head=[0, 1, 2, -1]), "there is head -1 of layer 1, and the last one is 3"),
        ([*layers()[:2], *layers([[], [], [0, 1]], heads=3)[2:]], "head 3 of layer 2 is missing"),
        ([{"layer_idx": 0, "static_head": [], "dynamic_head": []}], "its layer 0 has no heads"),
    ],
)
def test_damaged_lists(tmp_path: Path, data: object, message: str) -> None:
    file = tmp_path / "lists.json"
    file.write_text(data if isinstance(data, str) else json.dumps(data))
    with pytest.raises(BadFile, match=re.escape(message)) as error:
        HeadLists.load(file)
    assert "give Forcing-KV's format" in str(error.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(BadFile, match="cannot be read"):
            HeadLists.load(path)
