"""What commands print: every file that was written, one JSON object for scripts, or nothing; colours."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from dummyforcing.cli import main
from dummyforcing.media.clips import read_mp4
from dummyforcing.method.plan import Plan

PROMPT = "a red ball bounces on a green floor"
SHORT = ["--frames", "21"]
WRITERS: dict[str, tuple[list[str], dict[str, str]]] = {
    "generate": (
        ["generate", PROMPT, *SHORT, "-o", "a.mp4", "--compare", "--sheet", "a.png", "--save-plan", "a.json"],
        {
            "a.mp4": "21 frames, 1.3 s",
            "a-compare.mp4": "21 frames, 1.3 s",
            "a.png": "bytes",
            "a.json": "bytes",
        },
    ),
    "heads": (
        ["heads", PROMPT, *SHORT, "-o", "a.html", "--save", "a.npz", "--save-plan", "a.json"],
        {"a.html": "bytes", "a.npz": "bytes", "a.json": "bytes"},
    ),
    "eval": (
        ["eval", "p.txt", "--frames", "9", "--samples", "1", "-o", "out"],
        {"out/videos": "1 video", "out/metrics.json": "all measures, with those of every video"},
    ),
    "teacache": (
        ["teacache", "calibrate", PROMPT, *SHORT, "--error", "1e9", "-o", "a.json"],
        {"a.json": "bytes"},
    ),
    "bench": (["bench", *SHORT, "--repeats", "1", "--no-vae", "-o", "a.json"], {"a.json": "bytes"}),
    "models convert": (
        ["models", "convert", "MODEL", "--only", "transformer", "--dtype", "float32", "-o", "a"],
        {"a/transformer/diffusion_pytorch_model.safetensors": "bytes"},
    ),
}
"""Every command that writes files, and what it writes, with its length."""
LISTS = {
    "models": (["models", "list"], "models"),
    "models show": (["models", "show", "MODEL"], "name"),
    "models check": (["models", "check", "MODEL"], "parts"),
    "teacache show": (["teacache", "show"], "steps"),
    "eval --scores": (["eval", "--scores", "s.json"], "raw"),
    "env": (["env"], "versions"),
}
"""Commands that only print, and a key of their JSON."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text(PROMPT)
    Path("s.json").write_text('{"subject_consistency": 0.9}')


def with_model(args: Sequence[str], model: Path) -> list[str]:
    """The arguments of a command, on this model."""
    placed = [str(model) if arg == "MODEL" else arg for arg in args]
    return placed if "MODEL" in args or args[0] in ("models", "env") else [*placed, "--model", str(model)]


@pytest.mark.parametrize("name", WRITERS)
def test_what_was_written_is_told(name: str, model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args, files = WRITERS[name]
    assert main(with_model(args, model_folder)) == 0
    printed = capsys.readouterr().out
    for path, length in files.items():
        size = f"{os.path.getsize(path):,} bytes" if length == "bytes" else length
        assert f"Wrote {path}: {size}.\n" in printed
    assert printed.count("Wrote ") == len(files)


@pytest.mark.parametrize("name", WRITERS)
def test_json_is_one_object_with_the_files(
    name: str, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args, files = WRITERS[name]
    assert main([*with_model(args, model_folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["path"] for one in found["written"]] == list(files)
    for one in found["written"]:
        assert "bytes" not in one or one["bytes"] == os.path.getsize(one["path"])


@pytest.mark.parametrize("name", LISTS)
def test_json_of_what_is_only_printed(
    name: str, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args, key = LISTS[name]
    args = [str(model_folder) if arg == "MODEL" else arg for arg in args]
    assert main([*args, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found[key]
    assert found["written"] == []


def test_json_of_a_video(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Paths, timings and counts of the plan, as the files and the library have them."""
    args = with_model(["generate", PROMPT, "--frames", "33", "-o", "a.mp4"], model_folder)
    more = ["--switch", "1:a blue cube spins", "--save-plan", "plan.json", "--compare", "--json"]
    assert main([*args, *more]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["plan"] == Plan.load("plan.json").counts
    assert found["written"][0] == {"path": "a.mp4", "frames": 33, "seconds": 33 / 16}
    assert len(read_mp4("a.mp4")) == 33
    mine, theirs = found["timings"], found["compared"]["timings"]
    for timings in (mine, theirs):
        assert timings["pixel_frames"] == 33
        assert timings["wall"] == pytest.approx(timings["diffusion"] + timings["decode"])
        assert timings["fps"] == pytest.approx(33 / timings["wall"])
    assert found["compared"]["speed_up"] == pytest.approx(mine["fps"] / theirs["fps"])
    assert found["compared"]["cache_ratio"] == found["compared"]["cache_bytes"] / found["cache_bytes"]
    assert 0 < found["compared"]["psnr"] < 100
    assert found["prompts"] == [
        {"prompt": PROMPT, "asked_for_at": 0, "from": 0},
        {"prompt": "a blue cube spins", "asked_for_at": 1, "from": 21 / 16},
    ]


@pytest.mark.parametrize("name", WRITERS)
def test_quiet_is_quiet(name: str, model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args, files = WRITERS[name]
    assert main([*with_model(args, model_folder), "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    assert all(Path(path).exists() for path in files)


def test_when_a_prompt_takes_effect(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = with_model(["generate", PROMPT, "--frames", "33", "-o", "a.mp4"], model_folder)
    assert main([*args, "--switch", "1:a blue cube spins"]) == 0
    printed = capsys.readouterr().out
    assert "A prompt takes effect where a chunk begins: at 1.3 s for 1 s.\n" in printed
    assert main([*args, "--switch", "1.3125:a blue cube spins"]) == 0  # with the chunk of pixel frame 21
    assert "takes effect" not in capsys.readouterr().out


@pytest.mark.parametrize("args", [["--version"], ["generate", "--version"], ["models", "show", "--version"]])
def test_version_of_any_command(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 0
    assert capsys.readouterr().out == f"dummyforcing {version('dummyforcing')}\n"


@pytest.mark.parametrize(
    "command", ["generate --policy", "heads --policy", "bench --policies", "models show tiny --policy"]
)
def test_the_list_of_policies_has_native(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    needed = [PROMPT] if command.split()[0] in ("generate", "heads") else []
    assert main([*command.split(), "sparse", *needed]) == 2
    assert re.search(r"dense, .*native", capsys.readouterr().err)


# On a terminal, and off it.


def shown_on_terminal(args: list[str], **environment: str) -> str:
    """All that a process prints on a terminal that it has for stdout and stderr."""
    ours, theirs = pty.openpty()
    run = [sys.executable, "-m", "dummyforcing", *args]
    variables = {**os.environ, "TERM": "xterm-256color", **environment}
    process = subprocess.Popen(run, stdout=theirs, stderr=theirs, env=variables)
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
    process.wait()
    os.close(ours)
    return shown.decode()


COLOUR = re.compile(r"\x1b\[[\d;]*?(3\d|4\d|9\d|10\d)[\d;]*m")


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["generate", "--help"],
        ["generate", "--bogus"],
        ["models"],
        pytest.param(["heads", "--plan", "shipped"], marks=pytest.mark.slow),
        pytest.param(["teacache", "show"], marks=pytest.mark.slow),
    ],
)
def test_no_color(args: list[str]) -> None:
    """https://no-color.org: where the variable is set, there is no colour; bold letters may be."""
    assert not COLOUR.search(shown_on_terminal(args, NO_COLOR="1"))


@pytest.mark.parametrize(
    "args", [["--help"], pytest.param(["heads", "--plan", "shipped"], marks=pytest.mark.slow)]
)
def test_there_is_colour_to_leave_out(args: list[str]) -> None:
    assert COLOUR.search(shown_on_terminal(args, NO_COLOR=""))


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_a_file_gets_neither_carriage_returns_nor_escapes(name: str, model_folder: Path) -> None:
    args, _ = WRITERS[name]
    run = [sys.executable, "-m", "dummyforcing", *with_model(args, model_folder)]
    done = subprocess.run(run, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0
    assert not set(b"\r\x1b") & set(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion(shell: str) -> None:
    """Of commands, of those of groups, and of their flags."""
    run = [sys.executable, "-m", "dummyforcing", "--tyro-write-completion", shell, "completion"]
    subprocess.run(run, check=True)
    script = Path("completion").read_text()
    for word in ("generate", "--save-plan", "calibrate", "convert", "--skip-steps", "--json"):
        assert word in script
