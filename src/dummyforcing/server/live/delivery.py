"""What a session sends: chunks are encoded, recorded and sent, in order, with the news between them.

A client may lose its connection and come back: what it has not got is sent again.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

from pydantic import BaseModel

from dummyforcing.server.fleet import Fleet
from dummyforcing.server.live.live_track import LiveTrack
from dummyforcing.server.live.messages import (
    Chunk as ChunkMessage,
)
from dummyforcing.server.live.messages import (
    ChunkMeasures,
    ChunkTimings,
    Done,
    Failed,
    PromptActive,
)
from dummyforcing.server.live.recording import Archive
from dummyforcing.server.replicas.replica import Chunk, ReplicaLost
from dummyforcing.server.threads import run_in

logger = logging.getLogger(__name__)

HOLD = 2.0
"""Seconds that the first chunk waits for those that it is sent together with, at most."""


class Connection(Protocol):
    """Where a client is reached."""

    async def send(self, message: BaseModel, segment: bytes | None = None) -> None:
        """Send a message, and a binary one right after it.

        Raises:
            ConnectionError: If the client is gone, or takes nothing.
        """

    async def close(self, reason: str) -> None:
        """End the connection."""


@dataclass(frozen=True)
class Arrived:
    """A chunk that waits for its segment, and to be sent."""

    live: LiveTrack
    chunk: Chunk


@dataclass(frozen=True)
class News:
    """A message that waits to be sent after the chunks before it."""

    message: BaseModel
    before: Callable[[], None] = lambda: None
    """Done right before."""


@dataclass(frozen=True)
class Mark:
    """A place among what waits; it is told when that is reached."""

    reached: asyncio.Future[None]


class Delivery:
    """The way of chunks and news to a client."""

    def __init__(
        self,
        fleet: Fleet,
        size: tuple[int, int],
        archive: Archive,
        pool: Executor,
        failed: Callable[[], None],
        together: int = 1,
    ) -> None:
        """Begin without a client.

        Args:
            fleet: Makes the chunks.
            size: Height and width in pixels.
            archive: Takes the segments.
            pool: Writes and reads them.
            failed: Is told when nothing can be sent any more.
            together: So many chunks of a track are sent together at the beginning, if they come soon.
        """
        self._fleet, self._archive = fleet, archive
        self._pool, self._failed = pool, failed
        self._frame_bytes = fleet.facts.files.frame_bytes(size, fleet.facts.cache_dtype)
        self.connection: Connection | None = None
        self.detached = self._began = time.monotonic()
        """When the client lost its connection."""
        self._count = 0
        self._queue: asyncio.Queue[Arrived | News | Mark] = asyncio.Queue()
        self._sending = asyncio.Lock()
        self._together, self._enough = together, asyncio.Event()
        self._arrived: Counter[int] = Counter()  # chunks of each track
        self._task = asyncio.create_task(self._run(), name="delivery")

    def put(self, item: Arrived | News) -> None:
        """Send a chunk or a message after all that are on their way."""
        self._queue.put_nowait(item)
        if isinstance(item, Arrived) and not item.live.is_done:
            self._arrived[item.live.number] += 1
            if self._arrived[item.live.number] < self._together:
                asyncio.get_running_loop().call_later(HOLD, self.begin)
                return
        self.begin()

    def begin(self) -> None:
        """Send what is there: nothing may follow soon."""
        self._enough.set()

    async def caught_up(self) -> None:
        """Wait until all that waits now is sent; cancelled if nothing is sent any more."""
        self.begin()
        mark = Mark(asyncio.get_running_loop().create_future())
        self._queue.put_nowait(mark)
        await mark.reached

    async def send(self, message: BaseModel, segment: bytes | None = None) -> None:
        """Send at once, if there is somebody."""
        connection = self.connection
        if connection is None:
            return
        try:
            await connection.send(message, segment)
        except ConnectionError:
            self.detach(connection)

    async def attach(
        self,
        connection: Connection,
        hello: Callable[[], BaseModel],
        tracks: Iterable[LiveTrack],
        last: Mapping[int, int],
    ) -> None:
        """Send to a client from now on, beginning with what it has not.

        Args:
            connection: Its own; an older one is closed.
            hello: Makes the first message.
            tracks: All that there are.
            last: The number of the last chunk that it got, of each track.
        """
        before, self.connection = self.connection, None
        if before is not None and before is not connection:
            await before.close("another connection came for this session")
        async with self._sending:
            self.connection = connection
            await self.send(hello())
            for live in tracks:
                if live.plan is not None:
                    await self.send(live.heads(len(live.recording)))
                seen = last.get(live.number, 0)
                for entry in [one for one in live.recording.entries if one.chunk.number > seen]:
                    await self.send(entry.chunk, await run_in(self._pool, self._archive.read, entry))
                if live.ended:
                    await self.send(Done(track=live.number, reason=live.ended))

    def detach(self, connection: Connection) -> None:
        """The client is gone; it may come back."""
        if self.connection is connection:
            self.connection, self.detached = None, time.monotonic()

    def stop(self) -> None:
        """Send nothing more of what waits."""
        self._task.cancel()
        while not self._queue.empty():
            item = self._queue.get_nowait()
            if isinstance(item, Mark):
                item.reached.cancel()

    async def _run(self) -> None:
        await self._enough.wait()
        while True:
            item = await self._queue.get()
            try:
                if isinstance(item, Arrived):
                    await self._deliver(item)
                elif isinstance(item, Mark):
                    if not item.reached.done():
                        item.reached.set_result(None)
                else:
                    async with self._sending:
                        item.before()
                        await self.send(item.message)
            except OSError as error:
                logger.error("a chunk could not be kept", exc_info=error)
                message = "The server's disk has no room for this video; free some, or set another folder."
                await self.send(Failed(code="disk_full", message=message))
                self._failed()
            except Exception as error:
                logger.error("a chunk could not be sent", exc_info=error)
                self._failed()

    async def _deliver(self, item: Arrived) -> None:
        live, made, seconds = item.live, item.chunk.made, item.chunk.work.seconds
        try:
            segment = await item.chunk.pixels()
        except ReplicaLost:  # it is made again
            return
        if made.index > len(live.recording):  # the one before it was lost
            return
        assert isinstance(segment, bytes)
        self._count += 1
        chunk = ChunkMessage(
            track=live.number,
            number=self._count,
            index=made.index,
            first_frame=made.first_frame,
            frames=made.frames,
            prompt=made.prompt,
            timings=ChunkTimings(seconds=seconds, fps=made.frames / seconds),
            cache_bytes=made.cache_bytes,
            dense_bytes=made.latent_frames * self._frame_bytes,
            measures=ChunkMeasures(
                drift=made.measures.drift,
                repetition=made.measures.repetition,
                motion=made.measures.motion,
            ),
            held=list(made.held),
        )
        async with self._sending:
            await run_in(self._pool, live.recording.add, chunk, segment)
            await self.send(chunk, segment)
            if made.index == 0 and live.number == 0:
                self._fleet.metrics.first_chunk_seconds.observe(time.monotonic() - self._began)
            if live.plan is None or made.plan.roles != live.plan.roles:
                live.plan = made.plan
                if made.plan.chunk is not None:
                    self._fleet.newest_plan = made.plan
                await self.send(live.heads(made.index))
            shown = [
                first
                for first, (prompt, _) in live.waiting.items()
                if first <= made.index and prompt == made.prompt  # else it was made before it was asked for
            ]
            for first in shown:
                prompt, asked = live.waiting.pop(first)
                waited = time.monotonic() - asked
                self._fleet.metrics.steer_seconds.observe(waited)
                await self.send(PromptActive(track=live.number, chunk=first, prompt=prompt, seconds=waited))
            if live.is_done and made.index + 1 == live.next:
                live.ended = "length"
                await self.send(Done(track=live.number, reason="length"))
