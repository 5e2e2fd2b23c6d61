"""Processes on the machines of a cluster: where they fit, and how they are asked for something.

machines = Machines(cluster, torch.device("cuda"))
process = machines.begin(machines.free([])[0], Maker, files, options)     # an actor of Ray
made = await process.call("make", job)
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.errors import BadRequest
from dummyforcing.integrations.ray.cluster import Cluster, Node
from dummyforcing.method.loading import own_modules
from dummyforcing.pipeline.devices import choose_device, choose_dtype
from dummyforcing.pipeline.memory import require_memory
from dummyforcing.pipeline.options import LoadOptions
from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from dummyforcing.pipeline.request import Request

logger = logging.getLogger(__name__)

CORES = 4
"""Of a process, at most: without GPUs, a machine with 32 cores has room for 8 of them."""
BEAT = 1.0
"""Seconds between two looks at whether a process answers."""


class ProcessLost(Exception):
    """A process, or its machine, is gone; the text says why, as far as Ray knows."""


@dataclass(frozen=True, eq=False)
class Process:
    """An object in a process of its own, on some machine."""

    actor: Any
    node: Node

    async def call(self, name: str, *args: Any, **options: Any) -> Any:
        """Call a method of the object.

        Raises:
            ProcessLost: If the process is gone.
            Exception: What the method raised.
        """
        return await _got(getattr(self.actor, name).remote(*args, **options))

    async def stream(self, name: str, *args: Any) -> AsyncIterator[Any]:
        """Call a method that yields; gives what it yields as soon as it does.

        Raises:
            ProcessLost: If the process is gone.
            Exception: What the method raised.
        """
        yielded = getattr(self.actor, name).options(num_returns="streaming").remote(*args)
        async for one in yielded:
            yield await _got(one)

    async def silence(self, seconds: float) -> str:
        """Wait until the process, which may still be there, answers nothing for so long; gives that in words.

        Its object has to have a method `pulse`, which answers whatever else it is at.

        Raises:
            ProcessLost: If the process is gone.
        """
        while True:
            asked = asyncio.ensure_future(self.call("pulse"))
            try:
                # Looks are counted, and not time: this process may have been stopped, too.
                for _ in range(max(round(seconds / BEAT), 1)):
                    await asyncio.wait([asked], timeout=BEAT)
                    if asked.done():
                        asked.result()
                        break
                else:
                    return f"it has answered nothing for {seconds:.0f} s"
            finally:
                asked.cancel()
            await asyncio.sleep(BEAT)

    def end(self) -> None:
        """End it, whatever it is at, or if it is stopped."""
        import ray

        ray.kill(self.actor)


class Machines:
    """The machines of a cluster, as processes see them that need GPUs, or a share of the cores."""

    def __init__(self, cluster: Cluster, device: torch.device, cores: int = CORES, gpus: int = 1) -> None:
        """Describe the processes.

        Args:
            cluster: Its machines; others may come to it later.
            device: What a process computes on.
            cores: What it gets of them, if there are so many.
            gpus: What it gets of them, if it computes on GPUs.
        """
        self._cluster, self._device, self._cores, self._gpus = cluster, device, cores, gpus

    def count(self, node: Node) -> int:
        """Processes that a machine has room for."""
        if self._device.type == "cuda":
            return node.gpus // self._gpus
        return max(node.cpus // self._cores, min(node.cpus, 1))

    def free(self, taken: Iterable[Node]) -> list[Node]:
        """The machines with room for further processes, each so many times as it has room.

        Those with few processes come first.

        Args:
            taken: The machines of the processes that there are.
        """
        here = Counter(node.id for node in taken)
        places = [
            (number, node)
            for node in self._cluster.nodes()
            for number in range(here[node.id], self.count(node))
        ]
        return [node for _, node in sorted(places, key=lambda place: place[0])]

    def begin(self, node: Node, kind: type, *args: Any) -> Process:
        """Begin a process; Ray lets it compute with as many threads as it has cores.

        Args:
            node: Where.
            kind: Of its object.
            *args: To make it of.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        for module in own_modules():  # of files that the machines do not have
            ray.cloudpickle.register_pickle_by_value(module)
        actor = (
            ray.remote(kind)
            .options(
                num_gpus=self._gpus if self._device.type == "cuda" else 0,
                num_cpus=min(self._cores, node.cpus // self.count(node)),
                scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
            )
            .remote(*args)
        )
        logger.info("a process begins on %s", node.address)
        return Process(actor, node)


def load_here(files: ModelFiles, options: LoadOptions, request: Request) -> DummyForcingPipeline:
    """Load a model in a process, on the device that the process has, if there is memory for such a video.

    Raises:
        UserError: If it cannot be.
    """
    device = choose_device(options.device)
    dtype = choose_dtype(options.torch_dtype, device)
    require_memory(files, request, dtype, device, offload=options.offload)
    return DummyForcingPipeline.from_files(files, options)


def cause_of(error: Any) -> Exception:
    """What a method raised in its process (a RayTaskError), as this process would have raised it."""
    cause: Exception = error.cause if isinstance(error.cause, Exception) else error
    if isinstance(cause, ImportError):
        missing = cause.name or str(cause)
        return BadRequest(
            f"A machine of the Ray cluster lacks the module '{missing}'",
            "install it on all of them, in the same version as here",
        )
    return cause


def reason_of(error: Exception) -> str:
    """Why a process ended, in a line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "nobody knows why")


async def _got(asked: Any) -> Any:
    from ray.exceptions import RayError, RayTaskError

    try:
        return await asked
    except RayTaskError as error:
        raise cause_of(error) from error
    except RayError as error:  # the process or its machine is gone
        raise ProcessLost(reason_of(error)) from error
