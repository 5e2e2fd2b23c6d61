"""No file holds NaN: JSON has no word for it, and other programs could not read it."""

import ast
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dummyforcing.errors import NotFinite
from dummyforcing.files.records import as_text, to_json
from dummyforcing.files.state import write_state
from dummyforcing.method.plan import HeadContext, Plan

ROOT = Path(__file__).parents[2]
NAN, INF = float("nan"), float("inf")

NUMBERS = st.one_of(st.integers(), st.floats(), st.text(), st.none(), st.booleans())
VALUES = st.recursive(
    NUMBERS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12
)


@given(VALUES)
def test_as_json_or_refused(value: object) -> None:
    """The standard library's own strict mode says which."""
    try:
        right = json.dumps(value, allow_nan=False)
    except ValueError:
        with pytest.raises(
            NotFinite, match=r"^Nothing is written: .* is (nan|-?inf), which no file can hold"
        ):
            to_json(value)
        with pytest.raises(NotFinite):
            as_text({"a": value})
    else:
        assert to_json(value) == right
        assert json.loads(as_text({"a": value}), parse_constant=pytest.fail) == {"a": json.loads(right)}


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": [1, {"b": (0.0, NAN)}]}, r"a\[1\]\.b\[1\] is nan"),
        ([INF], r"\[0\] is inf"),
        ({"a": {"b": {"c": -INF}}}, r"a\.b\.c is -inf"),
        (NAN, "the value is nan"),
        ({"mean": np.float64("nan")}, "mean is nan"),
    ],
)
def test_the_place_is_named(value: object, place: str) -> None:
    with pytest.raises(NotFinite, match=place):
        to_json(value)


@dataclass(frozen=True)
class State:
    number: float
    tensor: torch.Tensor


def save_plan(path: Path) -> None:
    plan = Plan.uniform(1, 2, HeadContext(1, 0))
    replace(plan, scores=(((0.5, 0.25, 0.25), (0.5, NAN, 0.25)),)).save(path)


def save_state(path: Path) -> None:
    write_state(path, "a state", "1", State(INF, torch.zeros(2)))


def save_results(path: Path) -> None:
    from dummyforcing.evaluation.results import write_results

    write_results(path, {"fps": {"dummy": NAN}}, torch.device("cpu"))


def save_table(path: Path) -> None:
    from dummyforcing.presets.preset import ScheduleArgs
    from dummyforcing.sampling.teacache import Calibration, SkipSet

    found = SkipSet((1,), (0.1,), ((NAN,),))
    schedule = ScheduleArgs((1000, 500), 5)
    Calibration("m", "f", schedule, "dense", 9, (32, 32), ("a",), (0,), 0.1, (found,)).save(path)


@pytest.mark.parametrize("save", [save_plan, save_state, save_results, save_table])
@pytest.mark.parametrize("is_old", [True, False])
def test_nothing_is_written(save: Callable[[Path], None], is_old: bool, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if is_old:
        path.write_text("old")
    with pytest.raises(NotFinite, match=r"is (nan|inf), which no file can hold"):
        save(path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == (
        [("file", "old")] if is_old else []
    )


DUMPS = {  # these write no file: they compare, hash, print or send
    "src/dummyforcing/files/records.py": 1,
    "src/dummyforcing/evaluation/generate.py": 3,
    "src/dummyforcing/evaluation/run_vbench.py": 1,
    "src/dummyforcing/models/wan.py": 1,
    "src/dummyforcing/pipeline/expander.py": 1,
    "src/dummyforcing/server/storage/decoding.py": 1,
    "src/dummyforcing/server/storage/uploads.py": 1,
    "src/dummyforcing/server/web/logs.py": 3,
    "research/benchmarks/checkpoints.py": 1,
    "research/benchmarks/tiles.py": 1,
    "research/training/run.py": 1,
}


def test_all_json_is_made_in_one_place() -> None:
    """`to_json` is what refuses NaN: nothing else may make the text of a file."""
    found: dict[str, int] = {}
    for path in [*ROOT.glob("src/**/*.py"), *ROOT.glob("research/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Attribute)
                and node.attr in ("dumps", "dump")
                and (isinstance(node.value, ast.Name) and node.value.id == "json")
            ):
                name = path.relative_to(ROOT).as_posix()
                found[name] = found.get(name, 0) + 1
    assert found == DUMPS
