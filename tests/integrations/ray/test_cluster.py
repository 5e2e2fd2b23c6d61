"""What the machines of a cluster compute on, and how many workers they get."""

import time

import pytest
import torch

from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.errors import BadRequest, NoSuchDevice, UserError
from dummyforcing.evaluation.prompts import Job
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
