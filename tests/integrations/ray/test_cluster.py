"""What the machines of a cluster compute on, and how many workers they get; Ray itself is not needed."""

import pytest
import torch

from dummyforcing.errors import BadRequest, NoSuchDevice
from dummyforcing.integrations.ray.cluster import Cluster, Node
from dummyforcing.integrations.ray.machines import CORES, Machines


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
