"""States come back from files as they were, and nothing else does."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dummyforcing.errors import BadFile, NotFinite
from dummyforcing.files.state import read_state, write_state


@dataclass(frozen=True)
class Part:
    number: int
    share: Fraction | None = None


@dataclass(frozen=True)
class Other:
    value: float


@dataclass(frozen=True)
class Whole:
    name: str
    parts: tuple[Part, ...]
    either: Part | Other | None
    table: Mapping[str, Part]
    tensors: tuple[Tensor, ...]
    nothing: Tensor | None = None
    numbers: tuple[tuple[float, ...], ...] = field(default=())


@dataclass(frozen=True)
class Stranger:
    number: int


def whole(either: Part | Other | None = None) -> Whole:
    base = torch.arange(12.0).view(3, 4)
    tensors = (
        base,
        base[1:],  # shares memory
        base.t(),  # not in order
        torch.empty(2, 0, 3),
        torch.tensor(5, dtype=torch.int64),
        torch.randn(3, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16),
        torch.randn(3).to(torch.float8_e4m3fn),
        torch.tensor([True, False]),
    )
    parts = (Part(1, Fraction(1, 3)), Part(-(2**62)))
    return Whole(
        "a \u00e4 $kind", parts, either, {"x": Part(2), "y": Part(3)}, tensors, None, ((0.1, 1e-300), ())
    )


def read(path: Path) -> Whole:
    return read_state(path, "my format", "1", Whole)


@pytest.mark.parametrize("either", [None, Part(4), Other(-1.5e-300)])
def test_a_state_comes_back_as_it_was(either: Part | Other | None, tmp_path: Path) -> None:
    state, path = whole(either), tmp_path / "s"
    write_state(path, "my format", "1", state)
    found = read(path)
    for name in ("name", "parts", "either", "table", "nothing", "numbers"):
        assert getattr(found, name) == getattr(state, name)
        assert type(getattr(found, name)) is type(getattr(state, name))
    for one, other in zip(found.tensors, state.tensors, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert one.is_contiguous()
        assert torch.equal(one.float(), other.float())
    assert found.tensors[0].data_ptr() % 64 == 0, "aligned as torch aligns its own tensors"
    assert found.tensors[0].data_ptr() != found.tensors[1].data_ptr()


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFinite, match=r"either\.value is inf"):
        write_state(tmp_path / "s", "my format", "1", whole(Other(float("inf"))))
    assert list(tmp_path.iterdir()) == []


def test_only_what_the_hints_name_is_built(tmp_path: Path) -> None:
    path = tmp_path / "s"
    for state in (Stranger(1), Part(1), whole(Stranger(1))):  # type: ignore[arg-type]
        write_state(path, "my format", "1", state)
        with pytest.raises(BadFile, match="is damaged or no my format"):
            read(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write_state(path, "my format", "1", whole())
    for kind, version, message in (
        ("your format", "1", "is damaged or no your format; give a your format that was saved whole"),
        ("my format", "2", "is of version 1 of the format, and this library reads 2; use the version"),
    ):
        with pytest.raises(BadFile, match=message):
            read_state(path, kind, version, Whole)
    with pytest.raises(BadFile, match=r"There is no file .*none; give a my format"):
        read(tmp_path / "none")


@pytest.mark.parametrize("change", ["state", "tensor", "name", "no checksum", "no version", "cut"])
def test_damage_is_noticed(change: str, tmp_path: Path) -> None:
    path = tmp_path / "s"
    write_state(path, "my format", "1", whole())
    with safe_open(path, framework="pt") as file:
        about = dict(file.metadata())
    tensors = load_file(path)
    if change == "state":
        about["state"] = json.dumps(json.loads(about["state"]) | {"name": "b"})
    elif change == "tensor":
        tensors["0"] = tensors["0"] + 1
    elif change == "name":
        del tensors["0"]
    elif change == "no checksum":
        del about["checksum"]
    elif change == "no version":
        del about["version"]
    save_file(tensors, path, about)
    if change == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadFile, match="is of version None" if change == "no version" else "is damaged"):
        read(path)
