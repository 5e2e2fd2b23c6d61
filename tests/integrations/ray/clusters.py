"""Clusters of several machines, all of them this one, and what is left of them."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # Ray uses the loopback address then

MARK = "DUMMYFORCING_TEST_OF_RAY"
"""An environment variable by which the processes of a test are known."""
ENDING = 20.0
"""Seconds that processes may take to end."""


@contextmanager
def cluster_of(*cores: int) -> Iterator[Any]:
    """A cluster on the loopback address: a head that computes nothing, and machines of so many cores."""
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:  # sockets need a short path
        made = Cluster(initialize_head=True, head_node_args={**loopback(), "num_cpus": 0, "temp_dir": folder})
        try:
            for count in cores:
                made.add_node(**loopback(), num_cpus=count)
            yield made
        finally:
            made.shutdown()


def loopback() -> dict[str, Any]:
    """Arguments of a machine that nobody else reaches."""
    return {"node_ip_address": "127.0.0.1", "include_dashboard": False}


def processes(mark: str) -> list[int]:
    """All processes that have inherited `MARK` with this value, but for this one."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdecimal() and int(path.name) != os.getpid():
            try:
                environment = (path / "environ").read_bytes().split(b"\0")
            except OSError:  # it is gone, or somebody else's
                continue
            if f"{MARK}={mark}".encode() in environment:
                found.append(int(path.name))
    return found


def all_ended(mark: str) -> bool:
    """Whether all of them end within a while."""
    until = time.monotonic() + ENDING
    while (left := processes(mark)) and time.monotonic() < until:
        time.sleep(0.2)
    return not left


def is_there(pid: int) -> bool:
    """Whether there is such a process."""
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False
