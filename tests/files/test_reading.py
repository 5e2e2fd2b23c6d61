"""Text files as other programs write them, by every reader of them."""

import codecs
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.checkpoints.transformer import read_config
from dummyforcing.errors import BadFile, BadRequest, UserError
from dummyforcing.files.reading import parse_json, read_json, read_text, read_yaml, whole
from dummyforcing.files.text import read_prompts
from dummyforcing.media.story import Scene, Story
from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.pipeline.request import make_request
from dummyforcing.presets.catalog import read_preset
from dummyforcing.sampling.teacache import Calibration
from dummyforcing.server.settings import read_settings
from dummyforcing.server.web.access import read_keys
from tests.files.documents import CALIBRATION, CONFIG, PRESET

TEXT = "größer ✓ \U0001f680"
ENCODINGS = {
    "utf-8": b"",
    "utf-8-sig": b"",
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}
STORY = f"seconds: 3\nscenes:\n  - prompt: {TEXT}\n  - at: 1\n    prompt: b\n"
PLAN = Plan.uniform(2, 3, HeadContext(1, 2), TEXT)
SETTINGS = f'host = "127.0.0.1"  # {TEXT}\nport = 8123\n'
READERS: dict[str, tuple[str, str, Callable[[Path], Any], Any]] = {
    "prompts": ("p.txt", f"{TEXT}\nb\n", read_prompts, [TEXT, "b"]),
    "story": ("s.yaml", STORY, Story.load, Story(3.0, (Scene(TEXT), Scene("b", 1.0)))),
    "preset as JSON": ("a.json", json.dumps(PRESET), lambda p: read_preset(p).fps, 16),
    "preset as TOML": (
        "a.toml",
        f'like = "longlive"\ndescription = "{TEXT}"\n',
        lambda path: read_preset(path).description,
        TEXT,
    ),
    "plan": ("plan.json", json.dumps(PLAN.to_fields(), ensure_ascii=False), Plan.load, PLAN),
    "TeaCache table": (
        "t.json",
        json.dumps(CALIBRATION),
        lambda path: Calibration.load(path).prompts,
        tuple(CALIBRATION["prompts"]),
    ),
    "sizes": ("config.json", json.dumps(CONFIG), lambda path: read_config(path.parent).dim, CONFIG["dim"]),
    "settings": ("s.toml", SETTINGS, lambda path: read_settings({}, path).port, 8123),
    "keys": (
        "keys.txt",
        "# mine\n" + "k" * 40 + "\n",
        lambda path: bool(read_keys(read_settings({"api_key_file": str(path)})).owner("k" * 40)),
        True,
    ),
}


@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("reader", READERS)
def test_every_text_is_read_however_it_was_written(
    tmp_path: Path, reader: str, encoding: str, newline: str
) -> None:
    name, text, read, expected = READERS[reader]
    path = tmp_path / name
    path.write_bytes(ENCODINGS[encoding] + text.replace("\n", newline).encode(encoding))
    assert read(path) == expected


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("content", [b"\xff\xff\xfea", "a\n".encode("utf-16-le"), b"\x80\x81", b"\0"])
def test_what_is_no_text_is_said_to_be_none(tmp_path: Path, reader: str, content: bytes) -> None:
    name, _, read, _ = READERS[reader]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadFile, match=name):
        read(path)


def test_texts_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a\r\nb\rc\n\r\nd")
    assert read_text(path) == "a\nb\nc\n\nd"


def test_surrogate_pairs_are_characters(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(json.dumps({"seconds": 4, "scenes": [{"prompt": "a star \U0001f680"}]}))
    assert r"\ud83d\ude80" in path.read_text()
    assert Story.load(path).prompt == "a star \U0001f680" == whole("a star \ud83d\ude80")
    path.write_text(json.dumps({"seconds": 4, "scenes": [{"prompt": "a star \ud83d"}]}))
    with pytest.raises(BadFile, match=r"s\.yaml is not a story"):
        Story.load(path)


@pytest.mark.parametrize(
    "options", [{"prompt": "a \udcff"}, {"prompt": "a", "switches": [(1.0, "b \ud83d")]}]
)
def test_a_prompt_of_broken_characters_is_refused(model_folder: Path, options: dict[str, Any]) -> None:
    files = ModelFiles.open(model_folder)
    with pytest.raises(BadRequest, match=r"The prompt '. \\ud\w+' has a part of a character"):
        make_request(files, **options)
    assert make_request(files, "a \ud83d\ude80").prompts == ("a \U0001f680",)


@pytest.mark.parametrize(
    "text",
    [
        "seconds: 6\nscenes:\n  - prompt: a\n  - at: 2\n    prompt: b\n    at: 4\n    prompt: c\n",
        "seconds: 6\nseconds: 7\nscenes:\n  - prompt: a\n",
    ],
)
def test_a_second_value_of_a_name_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(BadFile, match=r"s\.yaml is not a story.*a second '(at|seconds)' in one table"):
        Story.load(path)


def test_a_second_value_in_json(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(PLAN.to_fields()).replace('"seed"', '"chunk": 4, "seed"'))
    with pytest.raises(BadFile, match=r"plan\.json is not a head plan \(a second 'chunk' in one table\)"):
        Plan.load(path)


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_json_has_no_such_numbers(word: str) -> None:
    with pytest.raises(ValueError, match=f"^{word} is no number of JSON$"):
        parse_json(f'{{"a": [{word}]}}')


@pytest.mark.parametrize("depth", [200_000])
def test_what_is_nested_too_deeply(tmp_path: Path, depth: int) -> None:
    path = tmp_path / "a.json"
    path.write_text("[" * depth + "]" * depth)
    for read in (read_json, read_yaml):
        with pytest.raises(ValueError, match="nested too deeply"):
            read(path)


def test_merged_tables_of_yaml_are_no_second_values(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        "seconds: 4\nscenes:\n  - &a {prompt: red}\n  - {<<: *a, at: 1}\n  - {<<: *a, at: 2, prompt: blue}\n"
    )
    assert [scene.prompt for scene in Story.load(path).scenes] == ["red", "red", "blue"]


def test_errors_are_those_of_users(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        Story.load(tmp_path / "none.yaml")
