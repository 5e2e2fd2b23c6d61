"""A job while it is made: chunks come from a replica, and wait to be written."""

import asyncio
import math
from dataclasses import dataclass

from dummyforcing.media.frames import Frames
from dummyforcing.pipeline.request import Request
from dummyforcing.server.engine import Engine, Stream
from dummyforcing.server.fleet import Fleet
from dummyforcing.server.replicas.replica import Chunk
from dummyforcing.server.replicas.track import Made
from dummyforcing.server.scheduler import Turn

BEHIND = 2
"""Chunks that may wait to be written; no further ones are made meanwhile."""


class Job(Stream):
    """A video that is made chunk by chunk, in turns with others."""

    form = "frames"

    def __init__(self, fleet: Fleet, engine: Engine, id: str, request: Request, track: int) -> None:
        """Describe it.

        Args:
            fleet: Learns what it costs.
            engine: Makes it.
            id: Of the video.
            request: What it shall be.
            track: What the replica calls it.
        """
        self.turn = Turn(id, is_live=False, due=math.inf)
        self.track = track
        self._fleet, self._engine, self._request = fleet, engine, request
        self._ready: asyncio.Queue[Chunk | Exception] = asyncio.Queue()

    def made(self, chunk: Chunk) -> None:
        """Hand the chunk to the writer."""
        self._fleet.costs.learn(self._request.size, chunk.work.seconds)
        self._ready.put_nowait(chunk)
        if chunk.made.is_last:
            self._engine.remove(self)
        elif self._ready.qsize() >= BEHIND:
            self.turn.due = None

    def failed(self, error: Exception) -> None:
        """Hand the error to the writer."""
        self._ready.put_nowait(error)

    async def next(self) -> tuple[Made, Frames]:
        """The next chunk with its frames, once it is made.

        Raises:
            Exception: What the replica raised.
        """
        found = await self._ready.get()
        if isinstance(found, Exception):
            raise found
        self.turn.due = math.inf
        self._engine.wake()
        pixels = await found.pixels()
        assert not isinstance(pixels, bytes)
        return found.made, pixels


@dataclass(eq=False)
class Running:
    """A job that runs."""

    task: asyncio.Task[None]
    progress: int = 0
    """In percent."""
    engine: Engine | None = None
    """Makes it; None: there is no room yet."""
    job: Job | None = None
