"""Commands that end before their time: what they leave, what they say, and their exit codes."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dummyforcing.cli import main
from dummyforcing.cli.endings import SIGNALS, Ended, ending_at_signals, is_out_of_memory
from dummyforcing.media.clips import read_mp4
from dummyforcing.media.video import VideoWriter
from tests.terminal import OnTerminal

PROMPT = "a red ball bounces on a green floor"
LONG = 9 + 12 * 500
STEPS = r" [1-9]\d*/\d"
"""Of a bar that has begun to count."""


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "dummyforcing", *map(str, args)]


def end_by(number: int, args: list[str]) -> tuple[int, str]:
    """Send a signal once the work is on its way: exit code, and what the terminal showed."""
    run = OnTerminal(args)
    run.wait_for(STEPS)
    run.process.send_signal(number)
    code, printed, shown = run.finish()
    assert printed == ""
    assert "Traceback" not in shown
    return code, shown.replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
    ],
)
def test_a_part_never_replaces_a_finished_video(
    model_folder: Path, tmp_path: Path, number: int, code: int
) -> None:
    keep, part = tmp_path / "keep.mp4", tmp_path / "keep.part.mp4"
    assert main(["generate", PROMPT, "-o", str(keep), "--model", str(model_folder), "--frames", "21"]) == 0
    before = keep.read_bytes()
    args = command("generate", PROMPT, "-o", keep, "--model", model_folder, "--frames", LONG)
    ended, shown = end_by(number, args)
    assert ended == code
    assert shown.rstrip().endswith("Interrupted.")
    assert keep.read_bytes() == before
    if part.exists():  # nothing is fine, too, if the signal came inside of a frame
        frames = len(read_mp4(part))
        assert frames < LONG
        told = f"The first {frames} frames ({frames / 16:.1f} s) are in {part}; {keep} is as it was.\n"
        assert told in shown
    assert {path.name for path in tmp_path.iterdir()} <= {"keep.mp4", "keep.part.mp4"}


@pytest.mark.slow
def test_where_nothing_was_it_is_said_how_much_was_written(model_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "a.mp4"
    args = command("generate", PROMPT, "-o", output, "--model", model_folder, "--frames", LONG)
    code, shown = end_by(signal.SIGINT, args)
    assert code == 130
    assert list(tmp_path.iterdir()) in ([], [output])
    if output.exists():
        frames = len(read_mp4(output))
        assert 1 <= frames < LONG
        assert f"The first {frames} frames ({frames / 16:.1f} s) are in {output}.\n" in shown


@pytest.mark.slow
def test_both_videos_of_a_comparison_are_kept(model_folder: Path, tmp_path: Path) -> None:
    output, both = tmp_path / "a.mp4", tmp_path / "a-compare.mp4"
    both.write_bytes(b"older")
    args = command("generate", PROMPT, "-o", output, "--model", model_folder, "--frames", LONG, "--compare")
    code, shown = end_by(signal.SIGTERM, args)
    assert code == 143
    assert both.read_bytes() == b"older"
    for path in (output, tmp_path / "a-compare.part.mp4"):
        if path.exists():
            assert f"The first {len(read_mp4(path))} frames" in shown
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("name", ["heads", "bench", "teacache calibrate"])
def test_other_commands_leave_nothing(model_folder: Path, tmp_path: Path, name: str, number: int) -> None:
    output = tmp_path / ("a.html" if name == "heads" else "a.json")
    needed = {"heads": [PROMPT], "bench": [], "teacache calibrate": [PROMPT]}[name]
    args = command(*name.split(), *needed, "--model", model_folder, "--frames", 9 + 12 * 50, "-o", output)
    code, shown = end_by(number, args)
    assert code == 128 + number
    assert shown.rstrip().endswith("Interrupted.")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_run_tidies_up_after_one_that_was_killed(model_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "a.mp4"
    args = ["generate", PROMPT, "-o", str(output), "--model", str(model_folder), "--frames"]
    run = OnTerminal(command(*args, LONG))
    run.wait_for(STEPS)
    run.process.kill()
    run.finish()
    (left,) = tmp_path.iterdir()
    assert re.fullmatch(r"\.a\.mp4\.\d+\.part", left.name)
    assert main([*args, "9"]) == 0
    assert list(tmp_path.iterdir()) == [output]


def test_only_the_first_signal_counts() -> None:
    """Closing a terminal, or a system, sends several; tidying up goes on."""

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGHUP)

    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(Ended) as ended, ending_at_signals():
        work()
    assert ended.value.number == signal.SIGTERM
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_signal_that_is_ignored_stays_so() -> None:
    """As with `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending_at_signals():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("args", "flag"),
    [
        (["generate", PROMPT, "-o", ""], "-o"),
        (["generate", PROMPT, "--output="], "--output"),
        (["generate", PROMPT, "--sheet", ""], "--sheet"),
        (["generate", PROMPT, "--plan", " "], "--plan"),
        (["heads", PROMPT, "-o", ""], "-o"),
        (["eval", "p.txt", "-o", ""], "-o"),
        (["bench", "-o", ""], "-o"),
        (["teacache", "calibrate", PROMPT, "-o", ""], "-o"),
        (["models", "convert", "tiny", "-o", ""], "-o"),
    ],
)
def test_an_empty_value_is_said_to_be_one(
    args: list[str],
    flag: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text(PROMPT)
    assert main(args) == 2
    said = f"Error: There is nothing after {flag}; give a value, or leave {flag} out.\n"
    assert capsys.readouterr().err == said
    assert os.listdir() == ["p.txt"]


def within(megabytes: int) -> Callable[[], None]:
    """Limit the address space of a process, as `ulimit -v` does."""
    return lambda: resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))


@pytest.mark.parametrize("megabytes", [300, 800])
def test_too_little_address_space_is_a_sentence(model_folder: Path, tmp_path: Path, megabytes: int) -> None:
    """The libraries would fail in odd ways, or crash."""
    args = command("generate", PROMPT, "-o", tmp_path / "a.mp4", "--model", model_folder)
    done = subprocess.run(args, capture_output=True, text=True, preexec_fn=within(megabytes))
    assert done.returncode == 2
    last = done.stderr.rstrip()
    assert re.fullmatch(r"Error: This process may use 0\.[38] GB of address space, .*\(ulimit -v\)\.", last)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_address_space_counts_as_memory(model_folder: Path, tmp_path: Path) -> None:
    """What a video needs beyond the limit is known before it is made."""
    args = command(
        "generate", PROMPT, "-o", tmp_path / "a.mp4", "--model", model_folder, "--size", "1600x1600"
    )
    done = subprocess.run(args, capture_output=True, text=True, preexec_fn=within(3000))
    assert done.returncode == 2
    assert re.search(r"Error: This video needs about .* GB are free; take .*\.$", done.stderr.rstrip())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), True),
        (RuntimeError("can't start new thread"), True),
        (ImportError("No module named 'av'"), False),
        (RuntimeError("shapes differ"), False),
    ],
)
def test_errors_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


@pytest.mark.parametrize(
    "args",
    [
        ["models"],
        ["generate", "--help"],
        pytest.param(["heads", "--plan", "shipped"], marks=pytest.mark.slow),
    ],
)
def test_a_stopped_pipe_is_a_sentence(args: list[str], tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == "Nobody reads this output any more: the rest of it is not printed.\n"
    assert process.wait() == 141
    if args[0] == "heads":  # its file is there all the same
        assert os.listdir(tmp_path) == ["heads.png"]


def test_nobody_reads_errors_either(tmp_path: Path) -> None:
    """As with `2>&1 | head -0`."""
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.Popen(command("models"), stdout=writing, stderr=writing)
    os.close(writing)
    assert process.wait() == 141


def test_a_writer_notes_what_it_keeps(tmp_path: Path) -> None:
    """In Python, too, the note is there."""
    path = tmp_path / "a.mp4"

    def write() -> None:
        with VideoWriter(path) as writer:
            writer.write(np.zeros((4, 32, 32, 3), np.uint8))
            raise KeyboardInterrupt

    for notes in (
        [f"The first 4 frames (0.2 s) are in {path}."],
        [f"The first 4 frames (0.2 s) are in {tmp_path / 'a.part.mp4'}; {path} is as it was."],
    ):
        with pytest.raises(KeyboardInterrupt) as error:
            write()
        assert error.value.__notes__ == notes
    assert len(read_mp4(tmp_path / "a.part.mp4")) == 4


def test_nothing_is_json_but_the_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "show", "nothing", "--json"]) == 2
    assert capsys.readouterr().out == ""
    assert main(["models", "list", "--json"]) == 0
    assert {"tiny", "self-forcing"} <= {
        model["name"] for model in json.loads(capsys.readouterr().out)["models"]
    }
