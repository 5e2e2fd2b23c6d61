"""Replicas in this process that are lost when a test wants it, as processes may be at any time."""

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Concatenate, ParamSpec, TypeVar

from dummyforcing.media.frames import Frames
from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from dummyforcing.server.fleet import Fleet
from dummyforcing.server.replicas.host import ModelHost, snapshot_of
from dummyforcing.server.replicas.replica import Chunk, Form, LocalReplica, ReplicaLost
from dummyforcing.server.replicas.track import Snapshot

P = ParamSpec("P")
Result = TypeVar("Result")


class Mortal(LocalReplica):
    """A replica that can be killed."""

    def __init__(self, pipeline: DummyForcingPipeline) -> None:
        super().__init__(pipeline)
        self._lost = asyncio.Event()
        self._goes = asyncio.Event()
        self._goes.set()
        self.snapshots = 0
        self.holds_from = sys.maxsize
        """The first chunk whose pixels never come."""

    async def _or_lost(self, work: Awaitable[Result]) -> Result:
        task, lost = asyncio.ensure_future(work), asyncio.ensure_future(self._lost.wait())
        try:
            await asyncio.wait([task, lost], return_when=asyncio.FIRST_COMPLETED)
            if not self._goes.is_set():
                await asyncio.wait([lost])
            if self._lost.is_set():
                task.add_done_callback(lambda done: done.cancelled() or done.exception())
                raise ReplicaLost("it was killed")
            return task.result()
        finally:
            lost.cancel()

    async def call(
        self, method: Callable[Concatenate[ModelHost, P], Result], *args: P.args, **options: P.kwargs
    ) -> Result:
        return await self._or_lost(super().call(method, *args, **options))

    async def make(self, number: int, form: Form) -> Chunk:
        chunk = await super().make(number, form)

        async def pixels() -> Frames | bytes:
            if chunk.made.index >= self.holds_from:
                await self._or_lost(asyncio.Event().wait())
            return await self._or_lost(chunk.pixels())

        return Chunk(chunk.made, chunk.work, pixels)

    async def snapshot(self, number: int) -> Snapshot | None:
        newest = await self.call(ModelHost.newest, number)
        if newest is None:
            return None
        self.snapshots += 1
        return await self._or_lost(asyncio.to_thread(snapshot_of, *newest))

    async def gone(self) -> str:
        self.loop = asyncio.get_running_loop()
        await self._lost.wait()
        return "it was killed"

    def kill(self) -> None:
        """Be lost; in the event loop."""
        self._lost.set()

    async def close(self) -> None:
        await super().close()
        if not self._goes.is_set():
            self.kill()  # as a process that is ended

    def hang(self) -> None:
        """Return nothing any more; in the event loop."""
        self._goes.clear()


class Mortals:
    """Replicas that take part from the beginning, and others that a test adds."""

    coming = 0

    def __init__(self, pipeline: DummyForcingPipeline, count: int) -> None:
        self._pipeline, self._count = pipeline, count
        self.facts = LocalReplica(pipeline).facts
        self.all: list[Mortal] = []
        self.is_there = threading.Event()

    async def run(self, fleet: Fleet) -> None:
        self._loop, self._fleet = asyncio.get_running_loop(), fleet
        self._tasks: set[asyncio.Task[None]] = set()
        for _ in range(self._count):
            self._add()
        self.is_there.set()
        await fleet.is_closing.wait()
        await asyncio.wait(self._tasks)

    def _add(self) -> None:
        self.all.append(Mortal(self._pipeline))
        self._tasks.add(asyncio.create_task(self._fleet.serve(self.all[-1])))

    def add(self) -> None:
        """Have one more take part."""
        self._loop.call_soon_threadsafe(self._add)

    def kill(self, *replicas: Mortal) -> None:
        """Lose some, at once."""
        for replica in replicas:
            self._loop.call_soon_threadsafe(replica.kill)

    def hang(self, replica: Mortal) -> None:
        """Have one return nothing any more."""
        self._loop.call_soon_threadsafe(replica.hang)
