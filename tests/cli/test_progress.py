"""What a command says on stderr: progress on a terminal only, log messages once, nothing over a bar."""

import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dummyforcing.cli import main
from dummyforcing.cli.common import bar
from dummyforcing.cli.terminal import say, telling
from tests.terminal import OnTerminal, believe_in_terminal, screen

PROMPT = "a red ball bounces on a green floor"
BACKEND = r"dummyforcing\.attention\.backends: attention backend \w+ on cpu in float32"
COMMANDS = {
    "generate": (["generate", PROMPT, "--frames", "21", "-o", "a.mp4"], "21/21"),
    "heads": (["heads", PROMPT, "--frames", "21", "--save", "a.npz", "-o", "a.html"], "2/2"),
    "eval": (["eval", "p.txt", "--frames", "9", "--samples", "2", "-o", "out"], "2/2"),
    "teacache": (
        ["teacache", "calibrate", PROMPT, "--frames", "21", "--error", "1e9", "-o", "t.json"],
        "2/2",
    ),
    "bench": (["bench", "--frames", "21", "--repeats", "1"], "3/3"),
}
"""Every command that shows progress, in its smallest form, and where its bar ends."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text(PROMPT)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_progress_shows_itself_on_terminals_unless_it_is_to_be_quiet(
    name: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args, end = COMMANDS[name]

    def said(*more: str) -> str:
        assert main([*args, "--model", str(model_folder), *more]) == 0
        shutil.rmtree("out", ignore_errors=True)  # else eval goes on from there
        return capsys.readouterr().err

    assert said() == ""
    believe_in_terminal(monkeypatch)
    assert end in said()
    assert said("--quiet") == ""


def run(*args: object) -> list[str]:
    return [sys.executable, "-m", "dummyforcing", *map(str, args)]


@pytest.mark.slow
def test_a_pipe_gets_no_progress(model_folder: Path) -> None:
    done = subprocess.run(
        run(*COMMANDS["generate"][0], "--model", model_folder), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "FPS" in done.stdout


@pytest.mark.slow
def test_a_terminal_gets_a_bar(model_folder: Path) -> None:
    args = [*COMMANDS["generate"][0], "--model", model_folder]
    code, printed, shown = OnTerminal(run(*args)).finish()
    assert code == 0
    (line,) = screen(shown)
    assert re.match(r"dummy: 100%\|█+\| 21/21 \[.* FPS\]$", line)
    assert "21/21" not in printed
    assert OnTerminal(run(*args, "--quiet")).finish()[2] == ""


@pytest.mark.slow
def test_verbose_tells_each_message_once_and_keeps_the_bar_whole(model_folder: Path) -> None:
    """Also the warnings, of a word that is not known; in two videos that are made in turns."""
    args = ["generate", "a purple ball", "--frames", "21", "-o", "a.mp4", "--compare", "-v"]
    code, printed, shown = OnTerminal(run(*args, "--model", model_folder)).finish()
    assert code == 0
    lines = screen(shown)
    told = [line for line in lines if line.startswith("dummyforcing.")]
    assert len(told) == len(set(told)) >= 1
    assert [line for line in told if re.fullmatch(BACKEND, line)] != []
    (warning,) = [line for line in lines if "purple" in line]
    assert warning.startswith("Warning: Model 'random' does not know the word purple; it knows a, ball,")
    bars = [line for line in lines if "/21" in line]
    assert [re.sub(r": .*", "", line) for line in bars] == ["dummy and dense"]
    assert all("| 21/21 [" in line for line in bars)
    assert len(lines) == len(told) + 1 + 1
    assert "attention backend" not in printed


@pytest.mark.slow
def test_without_verbose_nothing_is_told(model_folder: Path) -> None:
    args = [*COMMANDS["generate"][0], "--model", model_folder, "-q"]
    assert subprocess.run(run(*args), capture_output=True, text=True).stderr == ""
    told = subprocess.run(run(*args, "-v"), capture_output=True, text=True).stderr
    assert re.fullmatch(rf"{BACKEND}\n", told)


@pytest.mark.slow
def test_a_message_is_told_once_even_if_others_listen(capsys: pytest.CaptureFixture[str]) -> None:
    logger, root = logging.getLogger("dummyforcing.somewhere"), logging.getLogger()
    other = logging.StreamHandler(sys.stderr)
    root.addHandler(other)
    try:
        with telling(verbose=True, quiet=False):
            for _ in range(3):
                logger.info("a fast path was left")
            logger.debug("details")
        logger.info("after the command")
    finally:
        root.removeHandler(other)
    assert capsys.readouterr().err == "dummyforcing.somewhere: a fast path was left\n"
    assert logging.getLogger("dummyforcing").level == logging.NOTSET


@pytest.mark.slow
def test_what_is_said_does_not_break_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    believe_in_terminal(monkeypatch)
    with bar(total=2, desc="work") as shown:
        shown.update(1)
        say("a line")
        shown.update(1)
    lines = screen(capsys.readouterr().err)
    assert lines[0] == "a line"
    assert re.match(r"work: 100%.* 2/2 ", lines[1])
    assert len(lines) == 2
