"""One model, loaded once, and the thread that it works in; videos take turns chunk by chunk.

Everything of the server lives in the event loop, and needs no locks; only what touches the model, a rollout
or its frames runs in the engine's thread, one call at a time, in the order in which it was asked for.
"""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import inf
from typing import Any, ParamSpec, TypeVar

from dummyforcing.errors import NotEnoughMemory
from dummyforcing.method.plan import Plan
from dummyforcing.pipeline.memory import estimates
from dummyforcing.pipeline.options import VideoOptions, choose
from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from dummyforcing.pipeline.request import Request
from dummyforcing.server.scheduler import Scheduler, Turn
from dummyforcing.server.threads import run_in
from dummyforcing.server.web.metrics import Metrics
from dummyforcing.vae.memory import available_memory

logger = logging.getLogger(__name__)

P = ParamSpec("P")
Result = TypeVar("Result")

WARM_UP = {"cpu": 4, "cuda": 8}
"""Chunks of the first video; on a GPU the graphs of both kinds of chunk are recorded on the way."""
FULL = 0.95
"""Share of the device's time up to which live sessions are let in."""


class Stream(ABC):
    """A video that is made chunk by chunk, in turns with others."""

    turn: Turn

    @abstractmethod
    def make(self) -> Any:
        """Make the next chunk; runs in the engine's thread."""

    @abstractmethod
    def made(self, result: Any, seconds: float) -> None:
        """Take what `make` gave, in the event loop; must not wait.

        Args:
            result: What it gave.
            seconds: How long the device was at it.
        """

    @abstractmethod
    def failed(self, error: Exception) -> None:
        """Take an error of `make`, in the event loop; the stream has been removed."""


@dataclass(frozen=True)
class Claim:
    """What a video takes of the machine."""

    memory: float
    """Bytes of the device, as long as it lasts."""
    shared: float
    """Bytes while a chunk is made: videos take turns, so those of one suffice for all."""
    load: float
    """Share of the device's time that it takes to be made at the speed at which it is shown."""
    held: int = 0
    """Chunks that it has the memory to go back to."""

    @classmethod
    def of_all(cls, claims: Sequence["Claim"]) -> "Claim":
        """What several take together, of which only the first counts for the device's time.

        Further tracks of a session may slow it down, and nobody else.
        """
        memory, shared = sum(one.memory for one in claims), max(one.shared for one in claims)
        return cls(memory, shared, claims[0].load)


class Engine:
    """The model, its thread, and who is at work."""

    def __init__(self, pipeline: DummyForcingPipeline, metrics: Metrics | None = None) -> None:
        """Take a loaded model; `run` does the work.

        Args:
            pipeline: Of the videos.
            metrics: Count what it does.
        """
        self.pipeline = pipeline
        self.metrics = metrics or Metrics()
        self.metrics.claimed_bytes.set_function(lambda: sum(one.memory for one in self._claims.values()))
        self.scheduler = Scheduler()
        self.streams: list[Stream] = []
        self.newest_plan: Plan | None = None
        """Of the newest video whose heads were classified."""
        self.is_ready = False
        """Whether it has made a video to warm up."""
        self.capacity = 0.9 * available_memory(pipeline.device)
        """Bytes for videos."""
        self.full = FULL
        self._claims: dict[str, Claim] = {}
        # Seconds of the device for a chunk, by size; that of the first video first.
        self._pace: dict[tuple[int, int], float] = {}
        self._fastest: dict[tuple[int, int], float] = {}
        self._thread = ThreadPoolExecutor(1, "model")
        self._wake = asyncio.Event()
        self._is_closing = False

    async def call(self, function: Callable[P, Result], *args: P.args, **options: P.kwargs) -> Result:
        """Run something in the engine's thread, between two chunks."""
        return await run_in(self._thread, function, *args, **options)

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
        """Make chunks until `close`."""
        await self.call(self._warm_up)
        self.is_ready = True
        while not self._is_closing:
            self._wake.clear()
            turns = {id(stream.turn): stream for stream in self.streams}
            turn = self.scheduler.next((stream.turn for stream in self.streams), time.monotonic())
            if turn is None:
                await self._wake.wait()
                continue
            await self._give(turns[id(turn)])

    async def close(self) -> None:
        """Finish the chunk in hand, and end."""
        self._is_closing = True
        self.wake()
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)

    async def _give(self, stream: Stream) -> None:
        try:
            result, seconds = await self.call(_timed, stream.make)
        except Exception as error:
            if stream in self.streams:
                self.remove(stream)
                stream.failed(error)
            return
        if stream in self.streams:
            self.scheduler.used(stream.turn, seconds, time.monotonic())
        frames = self.pipeline.files.preset.chunk_pixel_frames
        self.metrics.chunk_made(frames, seconds, is_live=stream.turn.is_live)
        if stream in self.streams:
            stream.made(result, seconds)

    # --- what fits ---------------------------------------------------------------------------------------

    def claim(
        self, request: Request, *, room: float = 0.0, least: int = 0, most: int = 0, is_live: bool = True
    ) -> Claim:
        """What a video would take.

        Args:
            request: It.
            room: Bytes for chunks of it that one can go back to: each has a cache and a decoder of its own.
            least: As many are held in any case.
            most: No more than so many.
            is_live: Whether it is watched while it is made; jobs take the time that is left.

        Raises:
            NotEnoughMemory: If it can never be made here.
        """
        pipeline, (height, width) = self.pipeline, request.size
        files, is_gpu = pipeline.files, pipeline.device.type != "cpu"
        needs = estimates(files, request, pipeline.dtype, loaded=True, offload=pipeline.vae.moves)
        needs = [need.on_gpu() if is_gpu else need for need in needs]
        smallest = min(needs, key=lambda need: need.total)
        stride = files.decoder.stride
        past = files.decoder.memory((1, 0, height // stride, width // stride), pipeline.dtype.itemsize)
        one = smallest.cache + past.working
        held = min(max(int(room / one), least), most)
        memory, shared = (held + 1) * one, max(smallest.total - one, 0.0)
        if memory + shared > self.capacity:
            raise NotEnoughMemory(
                f"This video needs about {(memory + shared) / 1e9:.1f} GB of memory, and there are "
                f"{self.capacity / 1e9:.1f} GB",
                'take a smaller size, fewer frames or policy="dummy"',
            )
        seconds = files.preset.chunk_pixel_frames / files.preset.fps
        return Claim(memory, shared, self.pace(request.size) / seconds if is_live else 0.0, held)

    def has_room(self, claim: Claim) -> bool:
        """Whether a video can be made beside the others; a live one alone may be slower than it is shown."""
        claims = [*self._claims.values(), claim]
        together = Claim.of_all(claims)
        if together.memory + together.shared > self.capacity:
            return False
        load = sum(one.load for one in claims[:-1])
        return not load or not claim.load or load + claim.load <= self.full

    def reserve(self, owner: str, claim: Claim) -> None:
        """Note what a session or job takes, in place of what it took before."""
        self._claims[owner] = claim

    def release(self, owner: str) -> None:
        """Give it back."""
        self._claims.pop(owner, None)

    def pace(self, size: tuple[int, int]) -> float:
        """Seconds of the device for a chunk of a size, height and width, by measurement."""
        return self._pace[size] if size in self._pace else _scaled(self._pace, size)

    def fastest(self, size: tuple[int, int]) -> float:
        """The least that `pace` could be: what is refused for its pace is not measured again.

        So an hour in which the machine was busy with something else must not decide.
        """
        return min(self._fastest.get(size, inf), _scaled(self._fastest, size))

    def learn(self, size: tuple[int, int], seconds: float) -> None:
        """Take a chunk's time into account.

        Not on a GPU: there a chunk is made while the one before it is handed out, so that its own turn takes
        no time unless the device is busy. What the first video took, one chunk after the other, holds.
        """
        if self.pipeline.device.type == "cuda":
            return
        before = self._pace.get(size, seconds)
        self._pace[size] = 0.8 * before + 0.2 * seconds
        self._fastest[size] = min(self._fastest.get(size, inf), seconds)

    def _warm_up(self) -> None:
        """Make a few chunks, so that the first viewer waits for nothing but his own."""
        options = choose(VideoOptions, {"num_frames": None}, self.pipeline.option_defaults)
        rollout = self.pipeline.rollout(self.pipeline.request("a video", options))
        taken: list[float] = []
        for _ in range(WARM_UP[self.pipeline.device.type]):
            taken.append(_timed(rollout.next_chunk)[1])
            if self._is_closing:
                return
        size = rollout.request.size
        self._pace[size], self._fastest[size] = taken[-1], min(taken[1:])


def _scaled(known: Mapping[tuple[int, int], float], size: tuple[int, int]) -> float:
    """Seconds for a size by those for the first one that is known, and their pixels; 0: none is known."""
    if not known:
        return 0.0
    first, seconds = next(iter(known.items()))
    return seconds * size[0] * size[1] / (first[0] * first[1])


def _timed(function: Callable[[], Result]) -> tuple[Result, float]:
    start = time.perf_counter()
    return function(), time.perf_counter() - start
