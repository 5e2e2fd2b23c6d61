"""Sets of prompts in the files that people have: VBench's, MovieGen's, tables of any program."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dummyforcing.cli import main
from dummyforcing.errors import UserError
from dummyforcing.evaluation.prompts import Job, PromptSet, file_name

BUND = "The bund Shanghai, oil painting"
LONG = "A stylish woman walks down a Tokyo street filled with warm glowing neon. " * 4
ROWS: list[dict[str, Any]] = [
    {"id": "first", "prompt": 'a "red", round ball', "seed": 7, "negative_prompt": "blur", "fps": 16},
    {"id": "", "prompt": "a cube;\nit spins", "seed": None, "negative_prompt": "", "fps": 16},
    {"id": "3/3", "prompt": LONG.strip(), "seed": 0, "negative_prompt": "", "fps": 16},
]


def write_csv(path: Path, delimiter: str = ",", encoding: str = "utf-8") -> None:
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


TABLES: dict[str, Callable[[Path], object]] = {
    "comma.csv": write_csv,
    "excel.CSV": lambda path: write_csv(path, ";", "utf-8-sig"),
    "tab.tsv": lambda path: write_csv(path, "\t", "utf-16"),
    "rows.jsonl": lambda path: path.write_text("\n".join(map(json.dumps, ROWS)) + "\n\n"),
    "rows.json": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "capitals.jsonl": lambda path: path.write_text(
        "\n".join(json.dumps({name.title(): value for name, value in row.items()}) for row in ROWS)
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    TABLES[name](path)
    found = PromptSet.read(path)
    assert [prompt.text for prompt in found.prompts] == [row["prompt"] for row in ROWS]
    assert found.names == ["first", "a cube;-it spins", "3-3"]
    assert found.unused == ("negative_prompt", "fps")
    seeds = {job.name: job.seed for job in found.jobs(2, 40)}
    assert seeds == {
        "first-0.mp4": 7,
        "first-1.mp4": 8,
        "a cube;-it spins-0.mp4": 40,
        "a cube;-it spins-1.mp4": 41,
        "3-3-0.mp4": 0,
        "3-3-1.mp4": 1,
    }


def test_vbench_lists(tmp_path: Path) -> None:
    """Two prompts of VBench's list are there twice, with other extensions; a video of them has one name."""
    short, long, info = tmp_path / "all_dimension.txt", tmp_path / "longer.txt", tmp_path / "info.json"
    short.write_text(f"{BUND}\na cat\n{BUND}\n")
    long.write_bytes(b"Old Shanghai.\r\nA tabby cat.\r\nThe bund at dusk.")
    found = PromptSet.read(short, long)
    assert [(prompt.name, prompt.text) for prompt in found.prompts] == [
        (BUND, "The bund at dusk."),
        ("a cat", "A tabby cat."),
    ]
    assert found.repeated == (BUND,)
    assert len({job.name for job in found.jobs(5, 0)}) == len(found.jobs(5, 0)) == 10
    more = found.jobs(1, 3, {"a cat": 2})
    assert more[1:] == [Job("a cat", "A tabby cat.", 0, 3), Job("a cat", "A tabby cat.", 1, 4)]
    entries = [{"prompt_en": prompt, "dimension": ["scene"]} for prompt in (BUND, "a cat", BUND)]
    info.write_text(json.dumps(entries, indent=4))
    assert PromptSet.read(info).names == found.names
    assert PromptSet.read(info, long).prompts == found.prompts
    assert found.only({"a cat"}).names == ["a cat"]


def test_names_of_long_prompts(tmp_path: Path) -> None:
    """MovieGen's prompts do not fit into file names, and one has a slash in it."""
    path = tmp_path / "MovieGenVideoBench.txt"
    path.write_text(f"{LONG}\na 3/4 view of a table\n")
    found = PromptSet.read(path)
    assert found.names == [LONG[:180].strip(), "a 3-4 view of a table"]
    assert [prompt.text for prompt in found.prompts] == [LONG.strip(), "a 3/4 view of a table"]
    path.write_text(f"{LONG} one\n{LONG} two\n")
    with pytest.raises(UserError, match=r"txt, line 2: .* those of line 1, 'A styl.*in a column 'id'"):
        PromptSet.read(path)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=300))
def test_every_name_can_be_one(tmp_path_factory: pytest.TempPathFactory, prompt: str) -> None:
    """The file system itself says so, with all that is added to it."""
    folder = tmp_path_factory.getbasetemp()
    path = folder / f".{file_name(prompt)}-24.mp4.json.1234567.part"
    path.touch()
    assert path.parent == folder
    path.unlink()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", "prompt,seed\na ball,1\na cube,x\n", r"p\.csv, line 3: seed 'x' is no whole number"),
        ("p.csv", "prompt,seed\na ball,-1\n", "line 2: seed '-1' is no whole number from 0; write one"),
        ("p.csv", "prompt,seed\na ball,1.5\n", "line 2: seed '1.5'"),
        ("p.csv", "prompt,seed\na ball,9999999999999999999\n", "line 2: seed"),
        ("p.csv", "prompt,seed\n\na ball,1\n ,2\n", "line 4 has no prompt; write one in its column"),
        ("p.csv", "prompt,seed\na ball, red,1\n", "line 2 has 3 columns, and the first line names 2; put"),
        ("p.csv", 'prompt,seed\n"a\nb",1\na ball\n', "line 4 has 1 columns"),
        ("p.csv", 'prompt\n"a" ball\n', r"line 2: it is no CSV"),
        ("p.csv", "a red ball\na cube\n", "first line does not name the columns, one of them 'prompt'"),
        ("p.csv", "prompt,prompt\na,b\n", "first line does not name the columns"),
        ("p.csv", "prompt\n", "holds no prompts"),
        ("p.csv", "", "holds no prompts"),
        ("p.csv", "id,prompt\na,x\na,y\n", r"line 3: its videos .* names of those of line 2, 'a'"),
        ("p.csv", "prompt,seed\na,1\na,2\n", "line 3: its videos would have the names of those of line 2"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": \n', r"p\.jsonl, line 2: it is no JSON"),
        ("p.jsonl", '{"prompt": "a"}\n[1]\n', "line 2 is no table; write one such as"),
        ("p.jsonl", '{"text": "a"}\n', "line 1 has no prompt"),
        ("p.jsonl", '{"prompt": 3}\n', "line 1 has no prompt"),
        ("p.jsonl", '{"prompt": "a", "seed": true}\n', "line 1: seed 'True'"),
        ("p.json", '{"prompt": "a"}', "is no list of prompts"),
        ("p.json", '["a", 3]', "entry 2 is no table"),
        ("p.txt", "a\n\n", None),
        ("p.txt", "\n", "holds no prompts"),
        (
            "p.txt",
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "is a Git LFS pointer",
        ),
        (
            "p.txt",
            "\n<!DOCTYPE html>\n<html>\n",
            "is a web page instead of prompts; download the file itself",
        ),
    ],
)
def test_rows_that_are_wrong(name: str, text: str, message: str | None, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    if message is None:
        assert PromptSet.read(path).names == ["a"]
        return
    with pytest.raises(UserError, match=message) as caught:
        PromptSet.read(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).count("\n") == 0


def test_numbers_of_data_frames(tmp_path: Path) -> None:
    """A column with a gap is of floats there."""
    (tmp_path / "p.csv").write_text("prompt,seed\na,3.0\nb,\n")
    assert [prompt.seed for prompt in PromptSet.read(tmp_path / "p.csv").prompts] == [3, None]


def test_the_command_says_what_it_leaves_out(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "p.jsonl", tmp_path / "out"
    rows = [{"id": "1", "prompt": "a ball", "seed": 5, "negative_prompt": "x"}, {"prompt": "a cube"}]
    path.write_text("\n".join(map(json.dumps, [*rows, rows[1]])))
    args = ["eval", str(path), "-o", str(out), "--model", str(model_folder), "--frames", "9"]
    args += ["--samples", "1"]
    assert main([*args, "--seed", "3"]) == 2
    assert "have seeds of their own; leave out --seed" in capsys.readouterr().err
    assert main(args) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{path} has 'a cube' more than once: there is one set of videos of each." in printed
    assert f"{path}: not used: negative_prompt; models of this kind take no negative prompt." in printed
    assert sorted(video.name for video in (out / "videos").iterdir()) == ["1-0.mp4", "a cube-0.mp4"]
    assert json.loads((out / "manifest.json").read_text())["settings"]["seeds"] == [0, 5]
    assert json.loads((out / "prompts.json").read_text()) == {"1-0.mp4": "a ball", "a cube-0.mp4": "a cube"}


def test_prompts_that_are_none_of_vbench(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Long prompts given in place of the short ones: VBench would find no video by its name."""
    (tmp_path / "longer.txt").write_text("A tabby cat.\n")
    (tmp_path / "info.json").write_text(json.dumps([{"prompt_en": "a cat", "dimension": ["scene"]}]))
    args = ["eval", str(tmp_path / "longer.txt"), "--vbench-info", str(tmp_path / "info.json")]
    assert main([*args, "--model", str(model_folder), "-o", str(tmp_path / "out")]) == 2
    assert "belongs to VBench; take VBench's own, which name the videos" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
