"""`eval --ray` and `generate --prompts --ray`: the same files as without, whatever dies meanwhile."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.cli import main
from dummyforcing.evaluation.prompts import Job
from dummyforcing.integrations.ray import cluster as clusters
from dummyforcing.integrations.ray import workers
from dummyforcing.pipeline.options import LoadOptions
from dummyforcing.pipeline.request import make_request
from tests.integrations.ray.clusters import ENDING, MARK, all_ended, cluster_of, is_there, loopback, processes
from tests.terminal import OnTerminal

PROMPTS = ["a red ball bounces", "a blue cube spins", "a ball on a green floor", "a red cube"]
SMALL = ("--frames", "21")
DEADLY = '''
import os, signal
from pathlib import Path
from dummyforcing import HeadContext

class Deadly:
    """Kills its process as often as there are files to remove, which is where a prompt is in hand."""

    roles = {{"near": HeadContext(0, 1), "first": HeadContext(1, 0)}}

    def assign(self, scores):
        for path in Path("{folder}").iterdir():
            try:
                path.unlink()
            except FileNotFoundError:  # another process died of it
                continue
            os.kill(os.getpid(), signal.SIGKILL)
        return [["near", "first", "near", "first"]] * 3
'''

PATIENT = '''
import os, time
from pathlib import Path
from dummyforcing import HeadContext

class Patient:
    """Tells which process has a video in hand, and waits as long as there is a file."""

    roles = {{"near": HeadContext(0, 1), "first": HeadContext(1, 0)}}

    def assign(self, scores):
        Path("{begun}").write_text(str(os.getpid()))
        while Path("{held}").exists():
            time.sleep(0.05)
        return [["near", "first", "near", "first"]] * 3
'''


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return path


@pytest.fixture
def args(prompts: Path, model_folder: Path) -> list[str]:
    return ["eval", str(prompts), "--model", str(model_folder), *SMALL, "--samples", "1"]


@pytest.fixture
def deaths(tmp_path: Path) -> Path:
    """A folder: each file in it is a death of a process with the policy `deadly.py:Deadly`."""
    folder = tmp_path / "deaths"
    folder.mkdir()
    (tmp_path / "deadly.py").write_text(DEADLY.format(folder=folder))
    return folder


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A file that names a process with a video in hand, if videos are made with `patient`."""
    return tmp_path / "begun"


@pytest.fixture
def held(tmp_path: Path) -> Path:
    """A file: such a process waits as long as it is there."""
    return tmp_path / "held"


@pytest.fixture
def patient(args: list[str], tmp_path: Path, begun: Path, held: Path) -> list[str]:
    """`args` with the policy `patient.py:Patient`, whose videos are in `plain`; from now on they wait."""
    (tmp_path / "patient.py").write_text(PATIENT.format(begun=begun, held=held))
    command = [*args, "--policy", f"{tmp_path / 'patient.py'}:Patient"]
    assert main([*command, "-o", str(tmp_path / "plain")]) == 0
    begun.unlink()
    held.touch()
    return command


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a cluster of two machines, with a core each."""
    pytest.importorskip("ray", reason="the extra ray is not installed")
    with cluster_of(1, 1) as cluster:
        yield cluster.address


def contents(folder: Path) -> dict[str, bytes]:
    """All files by their paths, but for the two that say when they were made."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("manifest.json", "metrics.json")
    }


def settings(folder: Path) -> Any:
    return json.loads((folder / "manifest.json").read_text())["settings"]


# --- without Ray --------------------------------------------------------------------------------------------


def test_many_prompts_make_a_folder_that_eval_measures(prompts, args, model_folder, tmp_path, capsys):
    many = ["generate", "--prompts", str(prompts), "--model", str(model_folder), *SMALL]
    assert main([*many, "-o", str(tmp_path / "many")]) == 0
    assert sorted(path.name for path in (tmp_path / "many" / "videos").iterdir()) == sorted(
        f"{prompt}-0.mp4" for prompt in PROMPTS
    )
    assert not list((tmp_path / "many" / "measures").iterdir())
    before = contents(tmp_path / "many")
    assert main([*many, "-o", str(tmp_path / "many"), "--json"]) == 0  # it is all there
    assert main([*args, "-o", str(tmp_path / "many")]) == 0
    assert main([*args, "-o", str(tmp_path / "eval")]) == 0
    after = contents(tmp_path / "many")
    assert before.items() <= after.items()
    assert after == contents(tmp_path / "eval")
    assert main([*many, "-o", str(tmp_path / "many"), "--fade", "2"]) == 2
    assert "fade was null, now 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["-o", "many.mp4"], "go into a folder; give -o FOLDER"),
        ([], "go into a folder; give -o FOLDER"),
        (["a ball", "-o", "many"], "--prompts makes many videos, and PROMPT is for one"),
        (["-o", "many", "--compare"], "--prompts makes many videos, and --compare is for one"),
        (["-o", "many", "--frames", "20"], "take 9 or 21"),
        (["-o", "many", "--seed", "-1"], "seed"),
    ],
)
def test_what_is_refused(given, message, prompts, model_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", *given, "--prompts", str(prompts), "--model", str(model_folder)]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.txt"]


def test_ray_is_for_many_prompts(capsys):
    assert main(["generate", "a ball", "--ray", "local"]) == 2
    assert "Ray shares out many prompts; give --prompts" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["eval", "generate"])
def test_without_its_package_a_sentence_names_the_extra(command, prompts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(clusters, "find_spec", lambda name: None)
    given = [str(prompts)] if command == "eval" else ["--prompts", str(prompts)]
    assert main([command, *given, "-o", str(tmp_path / "out"), "--ray", "local"]) == 2
    assert "The package ray is not installed; get it with pip install 'dummyforcing[ray]'" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


def test_without_the_flag_nothing_of_ray_is_imported(args, tmp_path):
    program = (
        "import sys; from dummyforcing.cli import main; code = main(sys.argv[1:]); "
        "assert not [name for name in sys.modules if name.partition('.')[0] == 'ray']; sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *args, "-o", str(tmp_path / "out")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_worker_leaves_nothing_behind(model_folder, tmp_path, monkeypatch):
    """Not even before its end: it is killed."""
    files, temporary = ModelFiles.open(model_folder), tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    request, job = make_request(files, PROMPTS[0], num_frames=21), Job(PROMPTS[0], PROMPTS[0], 0, 0)
    worker = workers.Maker(files, LoadOptions(device="cpu"))

    async def make() -> workers.Made:
        await worker.load(request)
        return await worker.make(job, request, True)

    made = asyncio.run(make())
    assert made.video
    assert made.measures
    assert not list(temporary.iterdir())


@pytest.mark.slow
def test_where_no_cluster_is(args, tmp_path, monkeypatch, capsys):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    for address in ("127.0.0.1:1", "nonsense"):
        assert main([*args, "-o", str(tmp_path / "out"), "--ray", address]) == 2
        assert f"There is no Ray cluster at '{address}'; begin one with" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- on a cluster -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_same_files_as_without(args, address, tmp_path, capsys):
    assert main([*args, "-o", str(tmp_path / "plain"), "--judge"]) == 0
    printed = capsys.readouterr()
    assert main([*args, "-o", str(tmp_path / "ray"), "--judge", "--ray", address]) == 0
    assert contents(tmp_path / "ray") == contents(tmp_path / "plain")
    for folder in ("", "dense"):
        assert settings(tmp_path / "ray" / folder) == settings(tmp_path / "plain" / folder)
    again = capsys.readouterr()
    assert again.out == printed.out.replace(str(tmp_path / "plain"), str(tmp_path / "ray"))
    assert again.err == printed.err  # a word that the model does not know is said once

    # It goes on where it was, and with what another way has made.
    gone = tmp_path / "ray" / "videos" / f"{PROMPTS[2]}-0.mp4"
    (tmp_path / "ray" / "measures" / f"{PROMPTS[1]}-0.mp4.json").unlink()
    gone.unlink()
    kept = (tmp_path / "ray" / "videos" / f"{PROMPTS[0]}-0.mp4").stat().st_mtime_ns
    assert main([*args, "-o", str(tmp_path / "ray"), "--judge", "--ray", address]) == 0
    assert contents(tmp_path / "ray") == contents(tmp_path / "plain")
    assert (tmp_path / "ray" / "videos" / f"{PROMPTS[0]}-0.mp4").stat().st_mtime_ns == kept


@pytest.mark.slow
def test_a_process_that_dies_costs_its_video_alone(args, address, deaths, tmp_path, capsys):
    """Policies of a file go along, too: the machines do not have it."""
    policy = ["--policy", f"{tmp_path / 'deadly.py'}:Deadly"]
    assert main([*args, "-o", str(tmp_path / "plain"), *policy]) == 0
    for name in ("first", "second"):
        (deaths / name).touch()
    assert main([*args, "-o", str(tmp_path / "ray"), *policy, "--ray", address]) == 0
    assert not list(deaths.iterdir())
    assert contents(tmp_path / "ray") == contents(tmp_path / "plain")


@pytest.mark.slow
def test_what_kills_again_and_again_is_given_up(model_folder, address, deaths, tmp_path, capsys):
    only = tmp_path / "one.txt"
    only.write_text(PROMPTS[0])
    policy = ["--policy", f"{tmp_path / 'deadly.py'}:Deadly"]
    many = ["generate", "--prompts", str(only), "--model", str(model_folder), *SMALL, *policy]
    for number in range(3):
        (deaths / str(number)).touch()
    assert main([*many, "-o", str(tmp_path / "ray"), "--ray", address]) == 2
    error = capsys.readouterr().err
    assert f"Error: 1 of 1 videos could not be made, '{PROMPTS[0]}-0.mp4' among them: 3 processes" in error
    assert not list(deaths.iterdir())
    assert not list((tmp_path / "ray" / "videos").iterdir())
    assert main([*many, "-o", str(tmp_path / "ray"), "--ray", address]) == 0
    assert len(list((tmp_path / "ray" / "videos").iterdir())) == 1


@pytest.mark.slow
def test_an_error_of_a_worker_is_that_of_the_command(args, address, model_folder, tmp_path, capsys):
    """Here one of loading: the weights are damaged."""
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"\0" * 100)
    plain = [*args, "-o", str(tmp_path / "out"), "--weights", str(damaged)]
    codes, errors = [], []
    for further in ([], ["--ray", address]):
        codes.append(main([*plain, *further]))
        errors.append(capsys.readouterr().err)
    assert codes == [2, 2]
    assert errors[0] == errors[1] != ""


@pytest.mark.slow
def test_a_machine_that_dies_and_one_that_comes(patient, begun, held, tmp_path):
    """A video is in hand when the machine dies; all are made by the one that came meanwhile."""
    pytest.importorskip("ray", reason="the extra ray is not installed")
    with cluster_of(1) as cluster:
        (first,) = cluster.worker_nodes
        command = [*patient, "-o", str(tmp_path / "ray"), "--ray", cluster.address]
        with subprocess.Popen(
            [sys.executable, "-m", "dummyforcing", *command], stderr=subprocess.PIPE, text=True
        ) as running:
            while running.poll() is None and not begun.exists():
                time.sleep(0.05)
            cluster.add_node(**loopback(), num_cpus=1)
            cluster.remove_node(first, allow_graceful=False)
            held.unlink()
            _, error = running.communicate(timeout=120)
    assert running.returncode == 0, error
    assert contents(tmp_path / "ray") == contents(tmp_path / "plain")


@pytest.mark.slow
def test_a_process_that_hangs_is_replaced(patient, begun, held, address, tmp_path, monkeypatch, caplog):
    stopped: list[int] = []

    def stop() -> None:
        while not (begun.exists() and begun.read_text()):
            time.sleep(0.05)
        time.sleep(2.5)  # so that it has answered before
        stopped.append(int(begun.read_text()))
        os.kill(stopped[0], signal.SIGSTOP)
        held.unlink()

    monkeypatch.setattr(workers, "SILENT", 8)
    caplog.set_level("INFO", "dummyforcing")
    threading.Thread(target=stop, daemon=True).start()
    assert main([*patient, "-o", str(tmp_path / "ray"), "--ray", address]) == 0
    assert contents(tmp_path / "ray") == contents(tmp_path / "plain")
    assert "it has answered nothing for 8 s" in caplog.text
    until = time.monotonic() + ENDING
    while is_there(stopped[0]):
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_local_cluster_ends_with_its_command(number, args, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    mark = f"{os.getpid()}-{number}"
    command = [sys.executable, "-m", "dummyforcing", *args, "-o", str(tmp_path / "out"), "--samples", "99"]
    monkeypatch.setenv(MARK, mark)
    run = OnTerminal([*command, "--ray", "local"])
    run.wait_for(r" [1-9]\d*/396")
    assert len(processes(mark)) > 3
    run.process.send_signal(number)
    code, _, shown = run.finish()
    assert code == 128 + number
    assert "the same command goes on." in shown
    assert "Traceback" not in shown
    assert all_ended(mark)
    left = {path.suffix for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert left == {".mp4", ".json"}
