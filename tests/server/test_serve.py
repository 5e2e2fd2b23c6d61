"""`dummyforcing serve`, as it is run: what it says, and how it ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from dummyforcing.cli import main
from tests.server.process import Process, running

PROMPT = "a red ball bounces on a green floor"


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Process]:
    """A server with its defaults."""
    with running(tmp_path / "log") as server:
        yield server


def refusal(capsys: pytest.CaptureFixture[str], *flags: object) -> str:
    """What is said of bad input: one sentence."""
    assert main(["serve", *map(str, flags)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"Error: [^\n]+; [^\n]+\.\n", said.err), said.err
    return said.err


def test_bad_input_is_refused_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["dummyforcing.cli.serve"], "load_for", None)  # it would be called
    file = tmp_path / "file"
    file.write_text("text")
    cases: list[tuple[list[object], str]] = [
        (
            ["--host", "0.0.0.0"],
            "--host 0.0.0.0, and there are no keys; give --api-key-file or .* or --no-auth",
        ),
        (["--host", "nowhere.invalid", "--no-auth"], "There is no address --host nowhere.invalid"),
        (["--host", "192.0.2.1", "--no-auth"], "Nothing can listen at port .* of 192.0.2.1"),
        (
            ["--api-key-file", tmp_path / "none"],
            "cannot be read .*; give a file of keys, one a line .--api-key-file",
        ),
        (["--api-key-file", file], "line 1 cannot be used"),
        (["--port", "70000"], "--port 70000 is out of range"),
        (["--data", file], "--data"),
        (["--data", file / "below"], "--data"),
        (["--max-disk", "plenty"], r"no size; write it like 500MB or 20GB \(--max-disk\)"),
        (["--config", tmp_path / "none.toml"], "cannot be read"),
        (["--model", "no-such-model"], "no-such-model"),
        (["--device", "abacus"], "abacus"),
    ]
    for flags, message in cases:
        assert re.search(message, refusal(capsys, *flags)), flags


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refusal(capsys, "--port", port)
    assert f"port {port} of 127.0.0.1 (address already in use)" in said
    assert "(--port)" in said


def test_missing_packages_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    said = refusal(capsys)
    assert "uvicorn" in said
    assert "pip install 'dummyforcing[server]'" in said


@pytest.mark.slow
def test_sigterm_ends_it_in_order(local: Process) -> None:
    folder = Path(re.findall(r"Data: (\S+) \(temporary", local.said)[0])
    assert folder.is_dir()
    with connect(f"ws://127.0.0.1:{local.port}/v1/realtime") as live:
        live.send(json.dumps({"type": "start", "prompt": PROMPT}))
        kinds = [json.loads(text)["type"] for text in (live.recv(30), live.recv(30))]
        assert kinds == ["ready", "chunk"]
        code, seconds = local.stop()
        told = []
        with suppress(ConnectionClosed):  # "service restart"
            while True:
                text = live.recv(10)
                told += [json.loads(text)] if isinstance(text, str) else []
    assert (told[-1]["type"], told[-1]["reason"]) == ("done", "shutdown")
    assert code == 0
    assert seconds < 10
    assert not folder.exists()
    log = local.log.read_text()
    assert "Traceback" not in log
    assert PROMPT not in log


@pytest.mark.slow
def test_ctrl_c_ends_it_as_other_commands(local: Process) -> None:
    code, seconds = local.stop(signal.SIGINT)
    assert code == 130
    assert seconds < 10
    assert local.log.read_text().splitlines()[-1] == "Interrupted."


@pytest.mark.slow
def test_a_closed_terminal_ends_it_as_sigterm_does(local: Process) -> None:
    code, seconds = local.stop(signal.SIGHUP)
    assert code == 0
    assert seconds < 10
    assert "Traceback" not in local.log.read_text()


@pytest.mark.slow
def test_sigterm_ends_it_while_the_model_is_loaded(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dummyforcing", "serve", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "Loading" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert "Traceback" not in process.stderr.read()


@pytest.mark.slow
@pytest.mark.parametrize("is_idle", [False, True])
def test_a_gpu_whose_process_dies_ends_it(tmp_path: Path, model_folder: Path, is_idle: bool) -> None:
    """In the middle of a chunk or while nobody watches: with exit code 1, so that it is started again."""
    flags = ("--model", str(model_folder), "--device", "cpu", "--gpus", "2")
    told = []
    with running(tmp_path / "log", *flags) as server:
        number = server.process.pid
        (other,) = Path(f"/proc/{number}/task/{number}/children").read_text().split()
        if is_idle:
            time.sleep(1)
            os.kill(int(other), signal.SIGKILL)
        else:
            with connect(f"ws://127.0.0.1:{server.port}/v1/realtime") as live:
                live.send(json.dumps({"type": "start", "prompt": PROMPT, "num_frames": None}))
                assert json.loads(live.recv(60))["type"] == "ready"
                live.recv(60)
                os.kill(int(other), signal.SIGKILL)
                with suppress(ConnectionClosed):
                    while True:
                        text = live.recv(20)
                        told += [json.loads(text)] if isinstance(text, str) else []
        assert server.process.wait(20) == 1
    log = server.log.read_text()
    assert log.count("the server ends: The process of GPU 1 ended (signal SIGKILL)") == 1
    assert "Traceback" not in log
    if not is_idle:
        reasons = [(one["type"], one.get("reason")) for one in told]
        assert ("done", "shutdown") in reasons or reasons[-1][0] == "error", reasons


@pytest.mark.slow
def test_it_is_ready_after_a_moment_and_logs_prompts_if_told_so(tmp_path: Path) -> None:
    flags = ("--log-prompts", "--log-format", "text", "--data", str(tmp_path / "new" / "data"))
    with running(tmp_path / "log", *flags, DUMMYFORCING_AHEAD="1") as server:
        assert f"Data: {tmp_path / 'new' / 'data'}\n" in server.said
        deadline = time.monotonic() + 30
        while server.ask("GET", "/ready").status != 200:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        with connect(f"ws://127.0.0.1:{server.port}/v1/realtime") as live:
            live.send(json.dumps({"type": "start", "prompt": PROMPT}))
            assert json.loads(live.recv(30))["type"] == "ready"
        body = json.dumps({"prompt": "a blue cube spins\non a red floor"}).encode()
        assert server.ask("POST", "/v1/videos", body, Content_Type="application/json").status == 200
        assert server.stop()[0] == 0
    log = server.log.read_text()
    assert f'owner="local" prompt="{PROMPT}"' in log
    assert 'prompt="a blue cube spins\\non a red floor"' in log
    assert (tmp_path / "new" / "data").is_dir()
