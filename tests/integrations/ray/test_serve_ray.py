"""`serve --ray`: a server whose model is in processes of Ray, which are killed, and so are their machines."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dummyforcing.cli import main
from dummyforcing.client import Live, LiveChunk, connect
from dummyforcing.integrations.ray import cluster as clusters
from dummyforcing.media.clips import read_mp4
from dummyforcing.media.fragments import fragment
from dummyforcing.media.video import write_mp4
from dummyforcing.pipeline.pipeline import DummyForcingPipeline, load
from tests.integrations.ray.clusters import MARK, all_ended, cluster_of, is_there, processes
from tests.server.process import Process, running

PROMPT = "a red ball bounces on a green floor"
pytestmark = pytest.mark.filterwarnings("ignore:The process that made this video is gone")


@pytest.fixture(scope="module")
def pipeline(model_folder: Path) -> DummyForcingPipeline:
    return load(model_folder)


@pytest.fixture
def replicated(model_folder: Path, tmp_path: Path) -> Callable[..., Any]:
    """Starts a server on a cluster; it is warm, as far as so many replicas."""

    @contextmanager
    def start(address: str, replicas: str, *flags: str, ready: int = 1) -> Iterator[Process]:
        model = ["--model", str(model_folder), "--data", str(tmp_path / "data")]
        with running(tmp_path / "log", *model, "--ray", address, "--replicas", replicas, *flags) as server:
            until(lambda: metric(server, 'replicas{state="ready"}') == ready, server)
            yield server
            if server.process.poll() is None:
                code, _ = server.stop()
                assert code == 0

    return start


def until(holds: Callable[[], Any], server: Process, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert server.process.poll() is None, server.log.read_text()
        assert time.monotonic() < deadline, server.log.read_text()
        time.sleep(0.1)


def metric(server: Process, name: str) -> float:
    found = re.search(
        rf"^dummyforcing_{re.escape(name)} (\S+)$", server.ask("GET", "/metrics").body.decode(), re.M
    )
    return float(found[1]) if found else 0.0


def replica_processes(server: Process) -> dict[str, int]:
    """The ids of the replicas' processes, by their names in metrics."""
    found = re.findall(r"replica (\d+) is in process (\d+) on", server.log.read_text())
    return {name: int(number) for name, number in found}


def at_work(server: Process) -> int:
    """The process of a replica that has something to do."""
    known = replica_processes(server)
    return next(pid for name, pid in known.items() if metric(server, f'replica_videos{{replica="{name}"}}'))


def create(server: Process, **request: Any) -> str:
    body = json.dumps({"prompt": PROMPT, **request}).encode()
    id: str = server.ask("POST", "/v1/videos", body, content_type="application/json").json["id"]
    return id


def check(chunks: list[LiveChunk], frames: np.ndarray) -> None:
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    for chunk in chunks:
        first = chunk.about.first_frame
        assert chunk.segment == fragment(frames[first : first + chunk.about.frames], first, 16), chunk.index
    assert sum(chunk.about.frames for chunk in chunks) == len(frames)


@contextmanager
def watching(server: Process) -> Iterator[Live]:
    with connect(server.url) as live:
        live.receive = partial(live.receive, 60)  # type: ignore[method-assign]
        yield live


# --- without a cluster --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_without_the_flag_nothing_of_ray_is_imported(model_folder: Path) -> None:
    program = """
import os, signal, sys, threading, time
from dummyforcing.cli import main
import dummyforcing.server.run as run
class Once(run.LiveServer):
    async def on_tick(self, counter):
        if self._app.state.server.fleet.is_ready:
            self.should_exit = True
        return await super().on_tick(counter)
run.LiveServer = Once
code = main(sys.argv[1:])
assert not [name for name in sys.modules if name.partition(".")[0] == "ray"]
sys.exit(code)
"""
    command = [sys.executable, "-c", program, "serve", "--port", "0", "--model", str(model_folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_without_its_package_a_sentence_names_the_extra(monkeypatch, capsys):
    monkeypatch.setattr(clusters, "find_spec", lambda name: None)
    assert main(["serve", "--ray", "local"]) == 2
    assert "The package ray is not installed; get it with pip install 'dummyforcing[ray]'" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("text", ["0", "0:2", "4:1", "many", "1:", "-1"])
def test_numbers_of_replicas(text, capsys):
    assert main(["serve", "--ray", "local", f"--replicas={text}"]) == 2
    assert (
        f"'{text}' is no number of processes; write it like 2 or 1:4; one is there" in capsys.readouterr().err
    )


@pytest.mark.slow
def test_where_no_cluster_is(model_folder, monkeypatch, capsys):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    for address in ("127.0.0.1:1", "auto"):
        assert main(["serve", "--ray", address, "--port", "0", "--model", str(model_folder)]) == 2
        assert "There is no Ray cluster at '127.0.0.1:1'; begin one with" in capsys.readouterr().err


# --- on a cluster -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a cluster of two machines, with a core each."""
    pytest.importorskip("ray", reason="the extra ray is not installed")
    with cluster_of(1, 1) as cluster:
        yield cluster.address


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--replicas", "3"], "has room for 2 replicas, a CPU core each, in place of 3; add a machine"),
        (["--device", "cuda"], "No machine of the Ray cluster has a GPU; take auto or cpu"),
        (["--gpus", "2"], "A replica of Ray has one GPU; take --gpus 1"),
    ],
)
def test_what_a_cluster_cannot_do(flags, message, address, model_folder, capsys):
    assert main(["serve", "--ray", address, "--port", "0", "--model", str(model_folder), *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_process_that_is_killed_costs_neither_videos_nor_jobs(replicated, address, pipeline, tmp_path):
    """Another one begins in its place; at the end, none is left, and the cluster is."""
    with replicated(address, "2", "--snapshot", "2", ready=2) as server:
        with watching(server) as live:
            chunks = []
            for chunk in live.start(PROMPT, num_frames=141, seed=3):
                chunks.append(chunk)
                if chunk.index == 4:
                    os.kill(at_work(server), signal.SIGKILL)
            check(chunks, pipeline.generate(PROMPT, num_frames=141, seed=3).frames)
            told = [message for message in live.messages if message.model_dump()["type"] == "warning"]
            assert [message.model_dump()["code"] for message in told] == ["replica_lost"]
        until(lambda: metric(server, 'replicas{state="ready"}') == 2, server)

        id = create(server, num_frames=1197, seed=4)
        until(lambda: server.ask("GET", f"/v1/videos/{id}").json["progress"] > 5, server)
        os.kill(at_work(server), signal.SIGKILL)
        until(lambda: server.ask("GET", f"/v1/videos/{id}").json["status"] == "completed", server)
        (tmp_path / "made.mp4").write_bytes(server.ask("GET", f"/v1/videos/{id}/content").body)
        write_mp4(tmp_path / "expected.mp4", pipeline.generate(PROMPT, num_frames=1197, seed=4).frames, 16)
        assert np.array_equal(read_mp4(tmp_path / "made.mp4"), read_mp4(tmp_path / "expected.mp4"))
        assert metric(server, "lost_replicas_total") == 2
        until(lambda: metric(server, 'replicas{state="ready"}') == 2, server)
        pids = replica_processes(server).values()
        assert sum(map(is_there, pids)) == 2
    deadline = time.monotonic() + 20
    while any(map(is_there, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with clusters.connected(address) as cluster:
        assert len(cluster.nodes()) == 3


@pytest.mark.slow
def test_processes_that_are_stopped_count_as_lost(replicated, address, pipeline, tmp_path):
    """Both at once, with a live video and a job; and one that is stopped still when the server ends."""
    with replicated(address, "2", "--snapshot", "2", ready=2) as server:
        known = replica_processes(server)
        id = create(server, num_frames=141, seed=4)
        with watching(server) as live:
            chunks = []
            for chunk in live.start(PROMPT, num_frames=93, seed=3):
                chunks.append(chunk)
                if chunk.index == 3:
                    for pid in known.values():
                        os.kill(pid, signal.SIGSTOP)
            check(chunks, pipeline.generate(PROMPT, num_frames=93, seed=3).frames)
        until(lambda: server.ask("GET", f"/v1/videos/{id}").json["status"] == "completed", server)
        (tmp_path / "made.mp4").write_bytes(server.ask("GET", f"/v1/videos/{id}/content").body)
        write_mp4(tmp_path / "expected.mp4", pipeline.generate(PROMPT, num_frames=141, seed=4).frames, 16)
        assert np.array_equal(read_mp4(tmp_path / "made.mp4"), read_mp4(tmp_path / "expected.mp4"))
        assert metric(server, "lost_replicas_total") == 2
        assert "it has answered nothing for 20 s" in server.log.read_text()
        until(lambda: not any(map(is_there, known.values())), server)
        left = [pid for name, pid in replica_processes(server).items() if name not in known]
        os.kill(left[0], signal.SIGSTOP)
    deadline = time.monotonic() + 20
    while any(map(is_there, left)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_a_machine_that_dies(replicated, pipeline):
    """Two videos on two machines: the one whose machine is gone goes on beside the other one."""
    pytest.importorskip("ray", reason="the extra ray is not installed")
    with cluster_of(1, 1) as cluster, replicated(cluster.address, "1:2", "--snapshot", "3") as server:
        made: dict[int, list[LiveChunk]] = {1: [], 2: []}
        is_killed, failed = threading.Event(), []

        def watch(seed: int) -> None:
            try:
                with watching(server) as live:
                    for chunk in live.start(PROMPT, num_frames=141, seed=seed):
                        made[seed].append(chunk)
                        if chunk.index == 4:
                            is_killed.wait(60)
            except Exception as error:
                failed.append(error)

        # The first one waits for nothing; jobs have a second replica begin.
        ids = [create(server, num_frames=4797) for _ in range(2)]
        until(lambda: metric(server, 'replicas{state="ready"}') == 2, server)
        viewers = [threading.Thread(target=watch, args=(seed,)) for seed in made]
        for viewer in viewers:
            viewer.start()
        until(lambda: failed or all(len(chunks) == 5 for chunks in made.values()), server)
        for id in ids:
            server.ask("DELETE", f"/v1/videos/{id}")
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        is_killed.set()
        for viewer in viewers:
            viewer.join(120)
        assert not failed
        for seed, chunks in made.items():
            check(chunks, pipeline.generate(PROMPT, num_frames=141, seed=seed).frames)
        until(lambda: metric(server, "lost_replicas_total") == 1, server)
        assert metric(server, 'replicas{state="ready"}') == 1


@pytest.mark.slow
def test_nothing_is_left_of_a_cluster_that_was_about_to_begin(model_folder, monkeypatch):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    mark = f"{os.getpid()}-begin"
    monkeypatch.setenv(MARK, mark)
    command = [sys.executable, "-m", "dummyforcing", "serve", "--port", "0", "--model", str(model_folder)]
    with subprocess.Popen([*command, "--ray", "local"], stderr=subprocess.PIPE, text=True) as server:
        while len(processes(mark)) < 5:  # itself, and some of Ray
            assert server.poll() is None
            time.sleep(0.05)
        server.terminate()
        assert "Traceback" not in server.communicate(timeout=60)[1]
        assert server.returncode == 0
    assert all_ended(mark)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_local_cluster_ends_with_the_server(number, model_folder, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    mark = f"{os.getpid()}-{number}"
    monkeypatch.setenv(MARK, mark)
    with running(tmp_path / "log", "--model", str(model_folder), "--ray", "local") as server:
        with watching(server) as live:
            assert next(live.start(PROMPT)).index == 0
            assert len(processes(mark)) > 3
            code, seconds = server.stop(number)
        assert code == (130 if number == signal.SIGINT else 0)
        assert seconds < 10
        assert "Traceback" not in server.log.read_text()
    assert all_ended(mark)
