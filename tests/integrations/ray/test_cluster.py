"""What the machines of a cluster compute on, and how many workers they get."""

import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.cli import main
from dummyforcing.errors import BadRequest, NoSuchDevice, UserError
from dummyforcing.evaluation.prompts import Job
from dummyforcing.integrations.ray import cluster as clusters
from dummyforcing.integrations.ray.cluster import Cluster, Node, connected
from dummyforcing.integrations.ray.machines import CORES, Machines
from dummyforcing.integrations.ray.workers import Maker, Workers
from dummyforcing.pipeline.options import LoadOptions
from dummyforcing.pipeline.request import make_request
from tests.integrations.ray.clusters import cluster_of, loopback


class Known(Cluster):
    """A cluster of machines that are known."""

    def __init__(self, *sizes: tuple[int, int]) -> None:
        self._nodes = [Node(str(n), "127.0.0.1", *size) for n, size in enumerate(sizes)]

    def nodes(self) -> list[Node]:
        return self._nodes


CPUS, GPUS = Known((0, 0), (1, 0), (9, 0)), Known((4, 0), (16, 2))


@pytest.mark.parametrize(
    ("cluster", "name", "device"),
    [(CPUS, "auto", "cpu"), (CPUS, "cpu", "cpu"), (GPUS, "auto", "cuda"), (GPUS, "cpu", "cpu")],
)
def test_devices(cluster, name, device):
    assert cluster.device(name) == torch.device(device)


def test_devices_that_are_not_there():
    with pytest.raises(NoSuchDevice, match="No machine of the Ray cluster has a GPU; take auto or cpu"):
        CPUS.device("cuda")
    with pytest.raises(BadRequest, match="cuda:1"):
        GPUS.device("cuda:1")


@pytest.mark.parametrize(
    ("cluster", "name", "counts"),
    [(CPUS, "auto", [0, 1, 2]), (GPUS, "auto", [0, 2]), (GPUS, "cpu", [1, 16 // CORES])],
)
def test_processes_of_each_machine(cluster, name, counts):
    machines = Machines(cluster, cluster.device(name))
    assert [machines.count(node) for node in cluster.nodes()] == counts


def test_machines_with_few_processes_come_first():
    machines = Machines(cluster := Known((8, 0), (4, 0), (12, 0)), torch.device("cpu"))
    first, second, third = cluster.nodes()
    assert machines.free([]) == [first, second, third, first, third, third]
    assert machines.free([third, first]) == [second, first, third, third]
    assert machines.free([first, first, second, third, third, third]) == []


def test_processes_of_several_gpus(model_folder):
    """As many as there are whole teams of GPUs on a machine."""
    for gpus, counts in ((2, [0, 1]), (3, [0, 0])):
        machines = Machines(GPUS, torch.device("cuda"), gpus=gpus)
        assert [machines.count(node) for node in GPUS.nodes()] == counts
    files = ModelFiles.open(model_folder)
    workers = Workers(GPUS, files, LoadOptions(gpus=3))
    with pytest.raises(UserError, match="no machine with 3 GPUs for a video; add a machine"):
        list(workers.make([Job("a", "a", 0, 0)], lambda job: make_request(files, job.text)))


# --- where a cluster is -------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["serve", "eval", "generate"])
@pytest.mark.parametrize("is_open", [False, True], ids=["closed", "silent"])
def test_a_cluster_that_died_is_not_waited_for(command, is_open, tmp_path, model_folder, monkeypatch, capsys):
    """Ray finds its address still, and would try it for minutes."""
    services = pytest.importorskip("ray._private.services", reason="the extra ray is not installed")
    monkeypatch.setattr(services, "find_gcs_addresses", set)  # of others on this machine
    monkeypatch.setattr(clusters, "REACHED", 0.5)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "prompts.txt").write_text("a ball")
    out = ["-o", str(tmp_path / "out"), "--model", str(model_folder), "--frames", "21"]
    given = {
        "serve": ["--port", "0", "--model", str(model_folder)],
        "eval": [str(tmp_path / "prompts.txt"), *out],
        "generate": ["--prompts", str(tmp_path / "prompts.txt"), *out],
    }
    with socket.create_server(("127.0.0.1", 0)) as dead:
        port = dead.getsockname()[1]
        if not is_open:
            dead.close()
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{port}")
        for address, place in (
            ("auto", "on this machine: the one at '"),
            (f"127.0.0.1:{port}", f"at '127.0.0.1:{port}'; begin one with"),
        ):
            start = time.monotonic()
            assert main([command, *given[command], "--ray", address]) == 2
            assert time.monotonic() - start < 20
            assert f"Error: There is no Ray cluster {place}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@contextmanager
def guarded(token: str) -> Iterator[str]:
    """An address that answers those who show a token, as Ray's clusters do."""
    grpc = pytest.importorskip("grpc", reason="the extra ray is not installed")

    class Guarded(grpc.GenericRpcHandler):  # type: ignore[name-defined,misc]
        def service(self, call):
            def answer(_, context):
                if dict(call.invocation_metadata).get("authorization") != f"Bearer {token}":
                    context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")
                return b""

            return grpc.unary_unary_rpc_method_handler(answer) if call.method == clusters.QUESTION else None

    server = grpc.server(ThreadPoolExecutor(1), handlers=[Guarded()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)


def test_a_cluster_that_wants_a_token(tmp_path, monkeypatch):
    """`ray start` begins such ones wherever a local one was begun before."""
    path = tmp_path / "auth_token"
    path.write_text("secret\n")
    monkeypatch.setattr(clusters, "LOOPBACK", ())
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "")  # put back at the end, whatever is done to it
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    with guarded("secret") as address:
        with pytest.raises(BadRequest, match="wants a token; set RAY_AUTH_MODE=token"):
            clusters._require_reached(address)  # of a machine that we were not told to trust
        assert "RAY_AUTH_MODE" not in os.environ
        monkeypatch.undo()
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        clusters._require_reached(address)
        monkeypatch.delenv("RAY_AUTH_MODE")
        clusters._require_reached(address)
        assert os.environ["RAY_AUTH_MODE"] == "token"
        Path(path).write_text("another one")
        with pytest.raises(BadRequest, match=f"The Ray cluster at '{address}' wants a token"):
            clusters._require_reached(address)


@pytest.mark.slow
def test_ray_is_asked_for_all_gpus_of_a_process(model_folder):
    """Ray shares out four GPUs that it is told to have: two processes of two get all of them."""
    import ray

    with cluster_of() as made:
        made.add_node(**loopback(), num_cpus=8, num_gpus=4)
        with connected(made.address) as cluster:
            machines = Machines(cluster, torch.device("cuda"), gpus=2)
            (node,) = [one for one in cluster.nodes() if one.gpus]
            assert machines.free([]) == [node, node]
            files = ModelFiles.open(model_folder)
            begun = [machines.begin(node, Maker, files, LoadOptions(gpus=2)) for _ in range(2)]
            until = time.monotonic() + 60
            while (left := ray.available_resources().get("GPU", 0)) and time.monotonic() < until:
                time.sleep(0.2)
            for process in begun:
                process.end()
            assert left == 0
            assert ray.cluster_resources()["GPU"] == 4
