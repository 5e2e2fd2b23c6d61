"""A replica: a loaded model somewhere, that is asked for one thing after the other."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Concatenate, Literal, ParamSpec, TypeVar

from dummyforcing.media.fragments import fragment
from dummyforcing.media.frames import Frames
from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from dummyforcing.server.replicas.facts import Facts
from dummyforcing.server.replicas.host import ModelHost, Work
from dummyforcing.server.replicas.track import Made, Snapshot
from dummyforcing.server.threads import run_in

P = ParamSpec("P")
Result = TypeVar("Result")
LOOKED_AT = 0.2
"""Seconds after which it is seen that the process of another GPU has ended."""
Form = Literal["frames", "segment"]
"""Of the pixels of a chunk: frames as they are, or a fragmented mp4 that is playable by itself."""


class ReplicaLost(Exception):
    """The process of a replica, or its machine, is gone, with all that it was at."""


@dataclass(frozen=True)
class Chunk:
    """A chunk of a track, whose pixels may still be on their way."""

    made: Made
    work: Work
    pixels: Callable[[], Awaitable[Frames | bytes]]
    """Waits for them, in the form that was asked for; once."""


class Replica(ABC):
    """A loaded model somewhere."""

    facts: Facts
    place: str
    """Where it is, for the log."""
    is_warm = False
    """Whether it has done what takes long only at the first time."""

    @abstractmethod
    async def call(
        self, method: Callable[Concatenate[ModelHost, P], Result], *args: P.args, **options: P.kwargs
    ) -> Result:
        """Call a method of the host, between two chunks; calls are worked on in their order.

        Raises:
            ReplicaLost: If the replica is gone.
        """

    @abstractmethod
    async def make(self, number: int, form: Form) -> Chunk:
        """Make the next chunk of a track, in the order of calls.

        Raises:
            NotFinite: If it cannot be shown.
            ReplicaLost: If the replica is gone.
        """

    @abstractmethod
    async def snapshot(self, number: int) -> Snapshot | None:
        """The state of a track, taken while other chunks are made; None: nothing would outlive the replica.

        Raises:
            ReplicaLost: If the replica is gone.
        """

    @abstractmethod
    async def gone(self) -> str:
        """Wait until the replica is gone, and tell why."""

    @abstractmethod
    async def close(self) -> None:
        """Finish what was asked for, and end."""


class LocalReplica(Replica):
    """A model in a thread of this process."""

    def __init__(self, pipeline: DummyForcingPipeline) -> None:
        """Take a loaded model.

        Raises:
            BadRequest: If it has no text encoder.
        """
        self.facts, self.place = Facts.of(pipeline), "in this process"
        self.host = ModelHost(pipeline)
        self._thread = ThreadPoolExecutor(1, "model")
        # Enough for the segments of a few viewers at once, and not so many that the model has no room.
        self._encoders = ThreadPoolExecutor(2, "segments")

    async def call(
        self, method: Callable[Concatenate[ModelHost, P], Result], *args: P.args, **options: P.kwargs
    ) -> Result:
        """Call a method of the host in its thread."""
        return await run_in(self._thread, method, self.host, *args, **options)

    async def make(self, number: int, form: Form) -> Chunk:
        """Make the next chunk of a track."""
        made, frames, work = await self.call(ModelHost.make, number)

        async def pixels() -> Frames | bytes:
            if form == "frames":
                return frames
            return await run_in(self._encoders, fragment, frames, made.first_frame, self.facts.preset.fps)

        return Chunk(made, work, pixels)

    async def snapshot(self, number: int) -> Snapshot | None:
        """None: it would end with this process."""
        return None

    async def gone(self) -> str:
        """Wait for ever; with several GPUs, look after the processes of the others.

        Raises:
            RankFailed: If one ends, without which nothing can be made.
        """
        while True:
            if team := self.host.pipeline.parts.team:
                team.check()
            await asyncio.sleep(LOOKED_AT)

    async def close(self) -> None:
        """Finish what was asked for, and end."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._thread.shutdown)
        await loop.run_in_executor(None, self._encoders.shutdown)
