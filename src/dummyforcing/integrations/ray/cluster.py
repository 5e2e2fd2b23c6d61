"""A cluster of Ray: one that runs already, or one of this machine, for as long as it is needed.

with connected("local") as cluster:
    print(cluster.device("auto"))
"""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from dummyforcing.errors import BadRequest, NoSuchDevice

LOCAL = "local"
"""Address of a cluster that is begun here, on this machine alone, and ends with its use."""
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
REACHED = 5.0
"""Seconds within which a machine answers, if there is one."""


def require_ray() -> None:
    """Refuse to go on without the package; it is not imported.

    Raises:
        BadRequest: If it is not installed.
    """
    if find_spec("ray") is None:
        raise BadRequest(
            "The package ray is not installed", "get it with pip install 'dummyforcing[ray]'", "ray"
        )


@dataclass(frozen=True)
class Node:
    """A machine of a cluster."""

    id: str
    address: str
    cpus: int
    gpus: int


class Cluster:
    """The cluster that this process is connected to."""

    def nodes(self) -> list[Node]:
        """The machines that are there now."""
        import ray

        return [
            Node(
                found["NodeID"],
                found["NodeManagerAddress"],
                int(found["Resources"].get("CPU", 0)),
                int(found["Resources"].get("GPU", 0)),
            )
            for found in ray.nodes()
            if found["Alive"]
        ]

    def device(self, name: str | torch.device) -> torch.device:
        """What its machines compute on, for a `device` of `LoadOptions`; auto: GPUs, if any of them has one.

        Raises:
            BadRequest: If it is one GPU of many.
            NoSuchDevice: If no machine has such a device.
        """
        has_gpus = any(node.gpus for node in self.nodes())
        if name == "auto":
            return torch.device("cuda" if has_gpus else "cpu")
        if name not in ("cpu", "cuda"):
            raise BadRequest(
                f"Ray chooses which GPU a process gets, and {name} is one", "take cuda", "device"
            )
        if name == "cuda" and not has_gpus:
            raise NoSuchDevice("No machine of the Ray cluster has a GPU", "take auto or cpu", "device")
        return torch.device(name)


@contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """Connect this process to a cluster; one that is local begins here, and none of it is left at the end.

    Args:
        address: `local`; `auto`, the one that runs on this machine or that RAY_ADDRESS names; or HOST:PORT.

    Raises:
        BadRequest: If there is none.
    """
    require_ray()
    _require_reached(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to others unless it is wished
    is_local = address == LOCAL
    if is_local or address.rpartition(":")[0] in LOOPBACK:
        # As on macOS and Windows; else Ray listens at the address of this machine that others reach.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray
    import ray.exceptions

    before = signal.getsignal(signal.SIGTERM)
    try:
        try:
            ray.init(
                address=address,
                include_dashboard=False if is_local else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, ValueError, ray.exceptions.RayError) as error:
            raise _unreachable(address) from error
        finally:
            signal.signal(signal.SIGTERM, before)  # Ray would end the process at once
        yield Cluster()
    finally:
        ray.shutdown()


def _require_reached(address: str) -> None:
    """Refuse an address where nothing that could be Ray answers: it would be tried for ever."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or address
    if address in (LOCAL, "auto") or "://" in address or os.environ.get("RAY_USE_TLS") == "1":
        return
    import grpc

    try:
        with grpc.insecure_channel(address) as channel:
            grpc.channel_ready_future(channel).result(REACHED)
    except (grpc.FutureTimeoutError, ValueError) as error:
        raise _unreachable(address) from error


def _unreachable(address: str) -> BadRequest:
    place = "on this machine" if address == "auto" else f"at '{address}'"
    return BadRequest(
        f"There is no Ray cluster {place}",
        "begin one with `ray start --head`, or take local, which needs none",
        "ray",
    )
