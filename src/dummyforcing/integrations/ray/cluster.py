"""A cluster of Ray: one that runs already, or one of this machine, for as long as it is needed.

with connected("local") as cluster:
    print(cluster.device("auto"))
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from dummyforcing.errors import BadRequest, NoSuchDevice

LOCAL = "local"
"""Address of a cluster that is begun here, on this machine alone, and ends with its use."""
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
REACHED = 5.0
"""Seconds within which a cluster answers, if there is one."""
QUESTION = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""What Ray itself asks first of a cluster, without arguments."""


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

    with _ending_in_order():
        try:
            try:
                with _uninterrupted():
                    ray.init(
                        address=address,
                        include_dashboard=False if is_local else None,
                        log_to_driver=False,
                        logging_level=logging.ERROR,
                    )
            except (ConnectionError, ValueError, ray.exceptions.RayError) as error:
                raise _unreachable(address) from error
            yield Cluster()
        finally:
            ray.shutdown()


@contextmanager
def _ending_in_order() -> Iterator[None]:
    """Let SIGTERM end the process in order, not at once: Ray's processes would outlive it for a minute."""
    is_at_once = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if not is_at_once or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Have signals wait while Ray begins its processes: some would be left. A second Ctrl-C does not wait.

    Ray's own handler of SIGTERM is not set: it would end the process at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    from ray._private import utils

    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and came:
            raise KeyboardInterrupt
        came.append(number)

    taken = (signal.SIGINT, signal.SIGTERM)
    before = {one: found for one in taken if (found := signal.getsignal(one)) is not None}
    of_ray = utils.set_sigterm_handler
    for one, handler in before.items():
        if handler != signal.SIG_IGN:  # as under nohup
            signal.signal(one, note)
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = of_ray
        for one, handler in before.items():
            signal.signal(one, handler)
        for number in came[:1]:
            signal.raise_signal(number)


def _require_reached(address: str) -> None:
    """Refuse an address where no cluster of Ray answers, or not to us: it would be tried for minutes.

    A cluster of this machine that wants Ray's token is shown it, as Ray does where it finds one by itself.
    """
    found = _found(address)
    if found == LOCAL or "://" in found or os.environ.get("RAY_USE_TLS") == "1":
        return
    import grpc

    mode, is_here = os.environ.get("RAY_AUTH_MODE"), found.rpartition(":")[0] in LOOPBACK
    try:
        code = _answer(found, _token() if mode == "token" else "")
        if code is grpc.StatusCode.UNAUTHENTICATED and mode is None and (_is_searched(address) or is_here):
            code = _answer(found, _token())
            if not _is_searched(address):  # else Ray does it
                os.environ["RAY_AUTH_MODE"] = "token"
    except ValueError as error:
        raise _unreachable(address, found) from error
    if code is grpc.StatusCode.UNAUTHENTICATED:
        raise BadRequest(
            f"The Ray cluster at '{found}' wants a token",
            "set RAY_AUTH_MODE=token, and put the token of the machine where it began, ~/.ray/auth_token, at "
            "the same place here or into RAY_AUTH_TOKEN",
            "ray",
        )
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        raise _unreachable(address, found)


def _is_searched(address: str) -> bool:
    """Whether nobody says where the cluster is: it is one that began on this machine."""
    return address == "auto" and not os.environ.get("RAY_ADDRESS")


def _found(address: str) -> str:
    """What Ray takes for an address; where it is searched, the cluster that began last, dead or alive."""
    if not _is_searched(address):
        return os.environ["RAY_ADDRESS"] if address == "auto" else address
    from ray._private.services import canonicalize_bootstrap_address

    try:
        return str(canonicalize_bootstrap_address("auto"))
    except (ConnectionError, ValueError) as error:
        raise _unreachable(address) from error


def _answer(address: str, token: str) -> Any:
    """How a cluster answers (a `grpc.StatusCode`), or that it does not.

    Args:
        address: Its own.
        token: That it is shown; empty: none.

    Raises:
        ValueError: If that is no address.
    """
    import grpc

    shown = [("authorization", f"Bearer {token}")] if token else None
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(QUESTION)(b"", timeout=REACHED, wait_for_ready=True, metadata=shown)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def _token() -> str:
    """The token of Ray's clusters; empty: there is none."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return path.read_text().strip() if path.is_file() else ""


def _unreachable(address: str, found: str = "") -> BadRequest:
    place = f"at '{found or address}'"
    if _is_searched(address):
        place = "on this machine" + (f": the one at '{found}' does not answer" if found else "")
    return BadRequest(
        f"There is no Ray cluster {place}",
        "begin one with `ray start --head`, or take local, which needs none",
        "ray",
    )
