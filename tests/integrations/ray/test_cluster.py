"""What the machines of a cluster compute on, and how many workers they get; Ray itself is not needed."""

import pytest
import torch

from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.errors import BadRequest, NoSuchDevice
from dummyforcing.integrations.ray.cluster import Cluster, Node
from dummyforcing.integrations.ray.workers import CORES, Workers
from dummyforcing.pipeline.options import LoadOptions


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
def test_workers_of_each_machine(cluster, name, counts, model_folder):
    workers = Workers(cluster, ModelFiles.open(model_folder), LoadOptions(device=name))
    assert [workers._count(node) for node in cluster.nodes()] == counts
