"""A replica in a process of Ray: what runs there, and how it is asked from here."""

import asyncio
import os
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.integrations.ray import machines
from dummyforcing.integrations.ray.machines import Process, ProcessLost, load_here
from dummyforcing.media.frames import Frames
from dummyforcing.pipeline.options import LoadOptions
from dummyforcing.pipeline.request import Request
from dummyforcing.runtime.apart import run_apart
from dummyforcing.server.replicas.facts import Facts
from dummyforcing.server.replicas.host import ModelHost, snapshot_of
from dummyforcing.server.replicas.replica import Chunk, Form, LocalReplica, Replica, ReplicaLost
from dummyforcing.server.replicas.track import Snapshot
from dummyforcing.server.threads import first_of, run_in

P = ParamSpec("P")
Result = TypeVar("Result")


SILENT = 20.0
"""Seconds after which a process counts as lost that answers nothing, though it is there."""
FIRST = 600.0
"""Seconds that a call may take while a replica warms up: kernels are compiled, CUDA graphs recorded."""
SLOWER = 5.0
"""So many times as long as any call before, a later one may take: some machines are slow."""


class ReplicaProcess:
    """What lives in the process of a replica."""

    def __init__(self, files: ModelFiles, options: LoadOptions) -> None:
        """Take what is needed to load the model.

        Args:
            files: The model; its files lie at the same place here, or are fetched from the Hub.
            options: How to load it.
        """
        self._files, self._options = files, options
        self._loading: asyncio.Task[LocalReplica] | None = None
        self._keeper = ThreadPoolExecutor(1, "snapshots")

    async def begun(self) -> int:
        """Answer, since the process has what it needs of its machine; with its id."""
        return os.getpid()

    async def load(self, request: Request) -> Facts:
        """Load the model, once, for such videos.

        Raises:
            UserError: If it cannot be.
        """
        if self._loading is None:
            self._loading = asyncio.create_task(asyncio.to_thread(run_apart, lambda: self._load(request)))
        return (await asyncio.shield(self._loading)).facts

    def _load(self, request: Request) -> LocalReplica:
        pipeline = load_here(self._files, self._options, request)
        warnings.simplefilter("ignore")  # of prompts: viewers are told, and Ray's log shall not have them
        return LocalReplica(pipeline)

    async def call(self, method: str, *args: Any, **options: Any) -> Any:
        """Call a method of the host."""
        return await self._replica.call(getattr(ModelHost, method), *args, **options)

    async def make(self, number: int, form: Form) -> AsyncIterator[Any]:
        """Make a chunk: what is known of it, and as soon as they are ready, its pixels."""
        chunk = await self._replica.make(number, form)
        yield chunk.made, chunk.work
        yield await chunk.pixels()

    async def snapshot(self, number: int) -> Snapshot | None:
        """The state of a track after the newest chunk; None: there is no such track any more."""
        newest = await self._replica.call(ModelHost.newest, number)
        return None if newest is None else await run_in(self._keeper, snapshot_of, *newest)

    async def pulse(self) -> None:
        """Answer, whatever the model is at."""

    async def stay(self) -> None:
        """Wait for ever: who waits for this learns when the process is gone."""
        await asyncio.Event().wait()

    @property
    def _replica(self) -> LocalReplica:
        assert self._loading is not None
        return self._loading.result()


@dataclass(eq=False)
class Call:
    """What the model of a process is at."""

    most: float
    """Seconds that it may take in any case."""
    taken: float = 0.0
    """Seconds so far."""


class RemoteReplica(Replica):
    """A replica in a process of Ray, as this process sees it."""

    def __init__(self, process: Process, number: int, facts: Facts, patience: float) -> None:
        """Take a process whose model is loaded.

        Args:
            process: With a `ReplicaProcess`.
            number: Its id, on its machine.
            facts: Of the model, as it told them.
            patience: Seconds that a call may take in any case.
        """
        self.facts, self.place = facts, f"in process {number} on {process.node.address}"
        self._process, self._patience = process, patience
        self._calls: list[Call] = []
        self._longest = 0.0

    async def call(
        self, method: Callable[Concatenate[ModelHost, P], Result], *args: P.args, **options: P.kwargs
    ) -> Result:
        """Call a method of the host, between two chunks."""
        # A snapshot may be long on its way to another machine.
        most = FIRST if method is ModelHost.resume else 0.0
        result: Result = await self._timed(self._ask("call", method.__name__, *args, **options), most)
        return result

    async def make(self, number: int, form: Form) -> Chunk:
        """Make the next chunk of a track."""
        told = self._process.stream("make", number, form)
        try:
            made, work = await self._timed(anext(told))
        except ProcessLost as error:
            raise ReplicaLost(str(error)) from error
        # Asked for at once: it tells of a loss by itself, whether or not somebody still wants the pixels.
        coming = asyncio.ensure_future(self._timed(anext(told)))
        coming.add_done_callback(lambda done: done.cancelled() or done.exception())

        async def pixels() -> Frames | bytes:
            try:
                found: Frames | bytes = await coming
            except ProcessLost as error:
                raise ReplicaLost(str(error)) from error
            return found

        return Chunk(made, work, pixels)

    async def snapshot(self, number: int) -> Snapshot | None:
        """The state of a track, taken while other chunks are made."""
        found: Snapshot | None = await self._ask("snapshot", number)
        return found

    async def gone(self) -> str:
        """Wait until the process is gone, or does nothing any more, and tell why."""
        signs = [self._process.call("stay"), self._process.silence(SILENT), self._overdue()]
        try:
            return str(await first_of(*signs))
        except ProcessLost as lost:
            return str(lost)

    async def close(self) -> None:
        """End the process."""
        self._process.end()

    async def _timed(self, work: Awaitable[Result], most: float = 0.0) -> Result:
        """Wait for what the model is at, and note how long it takes; it may take `most` seconds, or more."""
        call = Call(most)
        self._calls.append(call)
        try:
            return await work
        finally:
            self._calls.remove(call)
            self._longest = max(self._longest, call.taken)

    async def _overdue(self) -> str:
        """Wait until the model is at one thing for too long; gives that in words."""
        while True:
            await asyncio.sleep(machines.BEAT)
            usual = max(self._patience, SLOWER * self._longest) if self.is_warm else FIRST
            for call in self._calls:
                call.taken += machines.BEAT  # counted: see `Process.silence`
                if call.taken > max(usual, call.most):
                    return f"it has been at one thing for {call.taken:.0f} s"

    async def _ask(self, name: str, *args: Any, **options: Any) -> Any:
        try:
            return await self._process.call(name, *args, **options)
        except ProcessLost as error:
            raise ReplicaLost(str(error)) from error
