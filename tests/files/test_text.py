"""Texts that name files, and files of prompts."""

from pathlib import Path

import pytest

from dummyforcing.errors import BadFile, BadRequest
from dummyforcing.files.text import read_prompts, split_number


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors", ("a.safetensors", None)),
        ("a.safetensors:0.5", ("a.safetensors", 0.5)),
        ("C:/a.pt:2", ("C:/a.pt", 2.0)),
        ("shipped:0.02", ("shipped", 0.02)),
        ("a:-1", ("a", -1.0)),
    ],
)
def test_a_file_and_a_number(text: str, expected: tuple[str, float | None]) -> None:
    assert split_number(text, "scale", "LoRA") == expected


def test_a_file_may_have_a_colon_in_its_name(tmp_path: Path) -> None:
    path = str(tmp_path / "a:2")
    assert split_number(path, "scale", "LoRA") == (path.removesuffix(":2"), 2.0)
    Path(path).touch()
    assert split_number(path, "scale", "LoRA") == (path, None)


@pytest.mark.parametrize("text", ["a.pt:much", "a.pt:", ":b"])
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(BadRequest, match=rf"^The scale of LoRA '{text}' is no number; write FILE:SCALE\.$"):
        split_number(text, "scale", "LoRA")


def test_prompts_are_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("a red ball\r\n\n   \n  ein großer Würfel  \na b\x85c".encode())
    assert read_prompts(path) == ["a red ball", "ein großer Würfel", "a b\x85c"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"^The prompts .*p\.txt cannot be read \(No such file or directory\); give a text file\.$"),
        (b"\xff\xfea", r"p\.txt are no text \(.* truncated data\); write one prompt per line, in UTF-8\.$"),
        (b" \n\n", r"p\.txt holds no prompts; write one per line\.$"),
    ],
)
def test_what_holds_no_prompts(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "p.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadFile, match=message):
        read_prompts(path)
