"""A replica at work: videos take turns on it, chunk by chunk.

Everything of the server lives in the event loop, and needs no locks; only what touches the model, a rollout
or its frames is done by the replica, one thing at a time.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Concatenate, ParamSpec, TypeVar

from dummyforcing.pipeline.request import Request
from dummyforcing.server.costs import Claim, Costs
from dummyforcing.server.replicas.host import ModelHost
from dummyforcing.server.replicas.replica import Chunk, Form, Replica, ReplicaLost
from dummyforcing.server.replicas.track import Place, Snapshot
from dummyforcing.server.scheduler import Scheduler, Turn
from dummyforcing.server.web.metrics import Metrics

P = ParamSpec("P")
Result = TypeVar("Result")

WARM_UP = {"cpu": 4, "cuda": 8}
"""Chunks of the first video; on a GPU the graphs of both kinds of chunk are recorded on the way."""
LAST = 2.0
"""Seconds that the chunk in hand may take when a replica is closed: its process may hang."""
FULL = 0.95
"""Share of the device's time up to which live sessions are let in."""


class Stream(ABC):
    """A video that is made chunk by chunk, in turns with others."""

    turn: Turn
    track: int
    """Its number in the replica."""
    form: Form
    """Of its pixels."""

    @abstractmethod
    def made(self, chunk: Chunk) -> None:
        """Take a chunk; must not wait."""

    @abstractmethod
    def failed(self, error: Exception) -> None:
        """Take an error of making one; the stream has been removed."""


class Engine:
    """A replica, and who is at work on it."""

    def __init__(
        self, replica: Replica, costs: Costs, metrics: Metrics, numbers: Iterator[int], name: str = "1"
    ) -> None:
        """Take a replica; `run` does the work.

        Args:
            replica: It.
            costs: Learn from it what videos take.
            metrics: Count what it does.
            numbers: For tracks; no two of a fleet have the same, whatever replica makes them.
            name: What it is called in metrics.
        """
        self.replica, self.costs, self.metrics, self.name = replica, costs, metrics, name
        self.facts = replica.facts
        self.scheduler = Scheduler()
        self.streams: list[Stream] = []
        self.is_ready = False
        """Whether it has made a video to warm up."""
        self.capacity = self.facts.memory
        """Bytes for videos."""
        self.full = FULL
        """Share of the device's time that live sessions may take together."""
        self.memory_in_use = 0
        """Bytes of the GPU."""
        self._claims: dict[str, Claim] = {}
        self._numbers = numbers
        self._dropping: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()
        self._is_closing = self._is_lost = False

    # --- videos ------------------------------------------------------------------------------------------

    async def begin(
        self, request: Request, most_held: int = 0, snapshot: Snapshot | None = None
    ) -> tuple[int, Place]:
        """Begin a video, or go on from a snapshot of one; gives its number.

        Args:
            request: What it shall be.
            most_held: Chunks that one can go back to.
            snapshot: To go on from; None: from the beginning.
        """
        if snapshot is None:
            return await self._begun(lambda number: self.call(ModelHost.begin, number, request, most_held))
        return await self._begun(
            lambda number: self.call(ModelHost.resume, number, request, most_held, snapshot)
        )

    async def fork(self, parent: int, chunk: int, prompt: str | None, fade: int) -> tuple[int, Place]:
        """Begin a video that goes on after a chunk of another one: see `ModelHost.fork`."""
        return await self._begun(
            lambda number: self.call(ModelHost.fork, number, parent, chunk, prompt, fade)
        )

    async def set_prompt(
        self, numbers: Sequence[int], prompt: str, fade: int, at: Callable[[], int], shown: int
    ) -> list[Place]:
        """Show something else in some videos: see `ModelHost.set_prompt`; `at` is asked when it is done."""
        async with self._its_turn():
            return await self.replica.call(ModelHost.set_prompt, numbers, prompt, fade, at(), shown)

    async def rewind(self, number: int, chunk: int) -> Place:
        """Give up what comes after a chunk of a video: see `ModelHost.rewind`."""
        return await self.call(ModelHost.rewind, number, chunk)

    async def end(self, numbers: Sequence[int]) -> None:
        """Give the memory of videos back."""
        with suppress(ReplicaLost):
            await self.call(ModelHost.close, numbers)

    def drop(self, numbers: Sequence[int]) -> "asyncio.Task[None]":
        """The same, without waiting for it; what is asked for after it comes after it."""
        dropping = asyncio.create_task(self.end(numbers))
        self._dropping.add(dropping)
        dropping.add_done_callback(self._dropping.discard)
        return dropping

    async def call(
        self, method: Callable[Concatenate[ModelHost, P], Result], *args: P.args, **options: P.kwargs
    ) -> Result:
        """Call a method of the replica's host, between two chunks.

        Raises:
            ReplicaLost: If the replica is gone.
        """
        async with self._its_turn():
            return await self.replica.call(method, *args, **options)

    async def _begun(self, begin: Callable[[int], Awaitable[Place]]) -> tuple[int, Place]:
        number = next(self._numbers)
        try:
            return number, await begin(number)
        except BaseException:  # it may begin though nobody waits for it any more
            self.drop([number])
            raise

    # --- who makes chunks --------------------------------------------------------------------------------

    def add(self, stream: Stream) -> None:
        """Let a video take part."""
        self.streams.append(stream)
        self.wake()

    def remove(self, stream: Stream) -> None:
        """Let it take part no longer; a chunk that is being made is thrown away."""
        if stream in self.streams:
            self.streams.remove(stream)
        if not any(other.turn.owner == stream.turn.owner for other in self.streams):
            self.scheduler.forget(stream.turn.owner)

    def wake(self) -> None:
        """Look again who needs a chunk: a `Turn` has changed."""
        self._wake.set()

    async def run(self) -> None:
        """Make chunks until `close`.

        Raises:
            ReplicaLost: If the replica is gone.
        """
        working = asyncio.create_task(self._work(), name="engine")
        watching = asyncio.create_task(self.replica.gone(), name="watch")
        try:
            await asyncio.wait([working, watching], return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise ReplicaLost(watching.result())
            working.result()
        except ReplicaLost:
            if not self._is_closing:
                self._is_lost = True
                raise
        finally:
            working.cancel()
            watching.cancel()

    async def close(self) -> None:
        """Finish the chunk in hand, if it does not take long, and end."""
        self._is_closing = True
        self.wake()
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST), self._turn:
                pass
        await self.replica.close()

    @asynccontextmanager
    async def _its_turn(self) -> AsyncIterator[None]:
        """Wait until nothing else is asked of the replica."""
        async with self._turn:
            if self._is_closing or self._is_lost:
                raise ReplicaLost("it ends")
            yield
            if self._is_lost:  # those who were told of it did not know of this
                raise ReplicaLost("it has ended")

    async def _work(self) -> None:
        await self._warm_up()
        self.is_ready = self.replica.is_warm = True
        while not self._is_closing:
            self._wake.clear()
            turns = {id(stream.turn): stream for stream in self.streams}
            turn = self.scheduler.next((stream.turn for stream in self.streams), time.monotonic())
            if turn is None:
                await self._wake.wait()
                continue
            await self._give(turns[id(turn)])

    async def _give(self, stream: Stream) -> None:
        try:
            async with self._its_turn():
                chunk = await self.replica.make(stream.track, stream.form)
        except ReplicaLost:
            raise
        except Exception as error:
            if stream in self.streams:
                self.remove(stream)
                stream.failed(error)
            return
        seconds, self.memory_in_use = chunk.work.seconds, chunk.work.memory
        if stream in self.streams:
            self.scheduler.used(stream.turn, seconds, time.monotonic())
        frames = self.facts.preset.chunk_pixel_frames
        self.metrics.chunk_made(frames, seconds, is_live=stream.turn.is_live)
        if stream in self.streams:
            stream.made(chunk)

    async def _warm_up(self) -> None:
        """Make a few chunks, so that the first viewer waits for nothing but his own."""
        request = self.facts.request("a video", {"num_frames": None})
        number, _ = await self.begin(request)
        taken: list[float] = []
        for _ in range(WARM_UP[self.facts.device.type]):
            async with self._its_turn():
                chunk = await self.replica.make(number, "frames")
            taken.append(chunk.work.seconds)
        await self.end([number])
        self.costs.begin(request.size, taken)

    # --- what fits ---------------------------------------------------------------------------------------

    def has_room(self, claim: Claim) -> bool:
        """Whether a video can be made beside the others; a live one alone may be slower than it is shown."""
        claims = [*self._claims.values(), claim]
        together = Claim.of_all(claims)
        if together.memory + together.shared > self.capacity:
            return False
        return not self.load or not claim.load or self.load + claim.load <= self.full

    @property
    def load(self) -> float:
        """Share of the device's time that its live sessions take."""
        return sum(one.load for one in self._claims.values())

    @property
    def claimed(self) -> float:
        """Bytes that were promised to videos."""
        return sum(one.memory for one in self._claims.values())

    @property
    def users(self) -> int:
        """How many sessions and jobs it has."""
        return len(self._claims)

    def reserve(self, owner: str, claim: Claim) -> None:
        """Note what a session or job takes, in place of what it took before."""
        self._claims[owner] = claim

    def release(self, owner: str) -> None:
        """Give it back."""
        self._claims.pop(owner, None)
