"""Replicas in processes of Ray: as many as there is work for, on the machines that have room for them.

with connected("auto") as cluster, RayReplicas(cluster, files, options, (1, 4), request) as replicas:
    replicas.start()
    app = create_app(settings, replicas)
"""

import asyncio
import logging
import time
from collections import Counter
from typing import Self

from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.errors import BadRequest, UserError
from dummyforcing.integrations.ray.cluster import Cluster, Node
from dummyforcing.integrations.ray.machines import CORES, Machines, Process, ProcessLost
from dummyforcing.pipeline.options import LoadOptions
from dummyforcing.pipeline.request import Request
from dummyforcing.server.engine import Engine
from dummyforcing.server.fleet import TRIES, Fleet
from dummyforcing.server.replicas.facts import Facts
from dummyforcing.server.replicas.remote import RemoteReplica, ReplicaProcess
from dummyforcing.server.threads import first_of

logger = logging.getLogger(__name__)

LOOK = 1.0
"""Seconds after which one looks again how many replicas are needed."""
PATIENCE = 2
"""Looks for which sessions or jobs must have waited before further replicas begin."""
IDLE = 60.0
"""Seconds after which a replica ends that has nothing to do."""
AGAIN = 30.0
"""Seconds until a machine is tried again where replicas ended before they had loaded the model."""
GIVEN = 120.0
"""Seconds in which Ray must have given a process what it needs; else others use it."""
LOADING = 120.0
"""Seconds for which a process may answer nothing that imports and loads."""
PATIENT = 12
"""So many times as long as the longest chunk that is let in, a replica may be at one thing."""


class RayReplicas:
    """Replicas in processes of Ray."""

    facts: Facts
    """Of the model; known after `start`."""

    def __init__(
        self,
        cluster: Cluster,
        files: ModelFiles,
        options: LoadOptions,
        replicas: tuple[int, int],
        request: Request,
        max_chunk: float,
    ) -> None:
        """Describe them; nothing begins before `start`.

        Args:
            cluster: Where they are. Machines may come to it later.
            files: The model.
            options: How to load it.
            replicas: The least and the most of them.
            request: Of a video, for which there must be memory.
            max_chunk: Seconds that a chunk may take: see `Settings`.

        Raises:
            UserError: If the cluster lacks the device, or room for the least of them.
        """
        if options.gpus > 1:
            raise BadRequest("A replica of Ray has one GPU", "take gpus=1, or serve without ray", "gpus")
        self._files, self._options, self._request = files, options, request
        self._least, self._most = replicas
        self._patience = PATIENT * max_chunk
        self.device = cluster.device(options.device)
        """That of all replicas; its number is another for each."""
        cores = sum(node.cpus for node in cluster.nodes()) // self._most
        self._machines = Machines(cluster, self.device, min(max(cores, 1), CORES))
        room = len(self._machines.free([]))
        if room < self._least:
            what = "GPU" if self.device.type == "cuda" else "CPU core"
            raise BadRequest(
                f"The Ray cluster has room for {room} replicas, a {what} each, in place of {self._least}",
                "add a machine, or take fewer",
                "replicas",
            )
        self._processes: list[Process] = []
        self._serving: set[asyncio.Task[None]] = set()
        self._at_work = 0
        self._failures: Counter[str] = Counter()  # of a machine, one after the other
        self._failed_at: dict[str, float] = {}
        self._waited = 0
        self._idle_since: dict[Engine, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.end()

    @property
    def coming(self) -> int:
        """How many are being loaded."""
        return len(self._processes) - self._at_work

    # --- the first of them -------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin the least of them, and wait until one is loaded.

        Raises:
            UserError: If that cannot be.
        """
        for node in self._machines.free([])[: self._least]:
            self._begin(node)
        asyncio.run(self._first())

    async def _first(self) -> None:
        loading = {asyncio.create_task(self._load(process)): process for process in self._processes}
        try:
            while not any(done.done() and not done.exception() for done in loading):
                done, _ = await asyncio.wait(loading, return_when=asyncio.FIRST_COMPLETED)
                for one in done:
                    error, process = one.exception(), loading[one]
                    if error is None:
                        _, self.facts = one.result()
                        continue
                    del loading[one]
                    self._processes.remove(process)
                    process.end()  # it may hang
                    if not isinstance(error, ProcessLost):
                        raise error
                    self._failures[process.node.id] += 1
                    if self._failures[process.node.id] >= TRIES:
                        problem = f"No process of the Ray cluster outlives to load the model: {error}"
                        raise UserError(problem, "see Ray's logs for why, or take a smaller model")
                    again = self._begin(process.node)
                    loading[asyncio.create_task(self._load(again))] = again
        finally:
            for one in loading:
                one.cancel()

    async def _load(self, process: Process) -> tuple[int, Facts]:
        """Wait until a process has loaded the model; as often as one likes. With the process's id."""
        try:
            async with asyncio.timeout(GIVEN):
                number: int = await process.call("begun")
        except TimeoutError as error:
            process.end()
            what = "GPU" if self.device.type == "cuda" else "core"
            raise UserError(
                f"Ray gives a replica no {what} of {process.node.address} within {GIVEN:.0f} s",
                "end what else uses it",
            ) from error
        facts: Facts | str = await first_of(process.call("load", self._request), process.silence(LOADING))
        if isinstance(facts, str):
            raise ProcessLost(facts)
        return number, facts

    # --- as many as are needed ---------------------------------------------------------------------------

    async def run(self, fleet: Fleet) -> None:
        """Have replicas take part, as many as are needed, until the fleet is closed.

        Raises:
            Exception: If the work on one of them ends with an error that is not its loss.
        """
        for process in self._processes:
            self._serve(process, fleet)
        closing = asyncio.create_task(fleet.is_closing.wait())
        while not closing.done():
            ended, _ = await asyncio.wait(
                [closing, *self._serving], timeout=LOOK, return_when=asyncio.FIRST_COMPLETED
            )
            for one in ended:
                self._serving.discard(one)
                one.result()  # an error of the server itself
            if not closing.done():
                await self._look(fleet)
        for one in self._serving:
            one.cancel()
        if self._serving:
            await asyncio.wait(self._serving)

    async def _look(self, fleet: Fleet) -> None:
        """Begin and end replicas, if that is needed."""
        demand = await fleet.demand()
        self._waited = self._waited + 1 if demand else 0
        there, at_work = len(self._processes), self._at_work
        wanted = at_work + (demand if self._waited >= PATIENCE else 0)
        for node in await self._places(min(max(wanted, self._least), self._most) - there):
            logger.info("a further replica begins on %s", node.address)
            self._serve(self._begin(node), fleet)
        now, idle = time.monotonic(), [one for one in fleet.engines if one.is_ready and not one.users]
        self._idle_since = {engine: self._idle_since.get(engine, now) for engine in idle}
        for engine, since in self._idle_since.items():
            if len(self._processes) > self._least and not demand and now - since > IDLE:
                logger.info("replica %s has nothing to do, and ends", engine.name)
                await fleet.retire(engine)
                break  # one at a time

    async def _places(self, count: int) -> list[Node]:
        """The machines on which so many further processes may begin; fewer, if there is no room."""
        if count <= 0:
            return []
        taken = [process.node for process in self._processes]
        free, now = await asyncio.to_thread(self._machines.free, taken), time.monotonic()
        return [node for node in free if now - self._failed_at.get(node.id, -AGAIN) >= AGAIN][:count]

    def _begin(self, node: Node) -> Process:
        process = self._machines.begin(node, ReplicaProcess, self._files, self._options)
        self._processes.append(process)
        return process

    def _serve(self, process: Process, fleet: Fleet) -> None:
        self._serving.add(asyncio.create_task(self._served(process, fleet), name="replica"))

    async def _served(self, process: Process, fleet: Fleet) -> None:
        """Load a replica, and let it take part until its process ends."""
        node = process.node
        try:
            number, facts = await self._load(process)
        except Exception as error:
            logger.error("a replica on %s could not be loaded: %s", node.address, error)
            self._failures[node.id] += 1
            if not isinstance(error, ProcessLost) or self._failures[node.id] >= TRIES:
                self._failed_at[node.id] = time.monotonic()
        else:
            self._failures[node.id] = 0
            self._at_work += 1
            try:
                await fleet.serve(RemoteReplica(process, number, facts, self._patience))
            finally:
                self._at_work -= 1
        finally:
            self._processes.remove(process)
            process.end()
