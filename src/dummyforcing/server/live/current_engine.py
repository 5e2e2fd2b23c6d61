"""Who makes the chunks of a session: an engine, and another one whenever its replica is lost."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from dummyforcing.server.engine import Engine
from dummyforcing.server.fleet import TRIES
from dummyforcing.server.live.delivery import Delivery, News
from dummyforcing.server.live.live_track import LiveTrack
from dummyforcing.server.live.messages import Queued, Warned
from dummyforcing.server.replicas.replica import ReplicaLost
from dummyforcing.server.web.problems import Problem

Result = TypeVar("Result")

LOOK = 0.05
"""Seconds between two looks at how far a track is that is made again."""


class CurrentEngine:
    """The engine that makes a session, as long as its replica is there, and the one after it."""

    def __init__(self, engine: Engine, delivery: Delivery) -> None:
        """Begin with one.

        Args:
            engine: It.
            delivery: Of the session.
        """
        self.engine, self._delivery = engine, delivery
        self._losses = 0  # one after the other, without a further chunk between
        self._queued: Queued | None = None
        self._is_over = False
        self._is_there = asyncio.Event()
        self._is_there.set()

    @property
    def is_given_up(self) -> bool:
        """Whether so many replicas ended over the session that no other one shall."""
        return self._losses >= TRIES

    async def ask(self, work: Callable[[Engine], Awaitable[Result]]) -> tuple[Engine, Result]:
        """Ask something of the engine; once more of another one, if it is lost meanwhile. With who did it.

        Raises:
            Problem: If the session is over.
        """
        while True:
            await self._is_there.wait()
            self.require_going()
            engine = self.engine
            try:
                return engine, await work(engine)
            except ReplicaLost:
                if self.engine is engine:  # nobody may have told us yet
                    self._is_there.clear()

    def require_still(self, engine: Engine) -> None:
        """Refuse to go on with what an engine did that was lost since.

        Raises:
            Problem: If it was.
        """
        if self.engine is not engine or not self._is_there.is_set():
            message = "The process that made this video is gone; ask for the branch again."
            raise Problem(503, "replica_lost", message)

    def require_going(self) -> None:
        """Refuse to go on with a session that is over.

        Raises:
            Problem: If it is.
        """
        if self._is_over:
            raise Problem(404, "session_over", "This session is over; start a new one.")

    def arrived(self, live: LiveTrack, every: int) -> None:
        """Take note of a chunk, and keep the state after it, if that of so many is not kept yet."""
        if live.next > live.shown:
            self._losses = 0
        newest = live.snapshots[-1].index if live.snapshots else 0
        if live.next - newest >= every and live.keeping is None:
            live.keeping = asyncio.create_task(live.keep(self.engine.replica), name="snapshot")

    # --- when its replica is lost ------------------------------------------------------------------------

    def lose(self, tracks: Iterable[LiveTrack]) -> None:
        """Wait for another engine, and tell the client."""
        self._is_there.clear()
        self._losses += 1
        kept = min(live.kept for live in tracks)
        place = f"chunk {kept}, before which its state was kept" if kept else "its beginning"
        message = f"The process that made this video is gone; another one goes on from {place}."
        self._delivery.put(News(Warned(code="replica_lost", message=message)))

    def tell(self, message: Queued) -> None:
        """Tell the client his place among those who wait for an engine."""
        self._queued = message
        self._delivery.put(News(message))

    def tell_again(self) -> None:
        """Tell it to a client who comes back while he waits."""
        if self._queued is not None:
            self._delivery.put(News(self._queued))

    async def move(self, engine: Engine, tracks: Iterable[LiveTrack]) -> None:
        """Go on with another engine from the newest snapshots; what was sent already is not sent again.

        Raises:
            ReplicaLost: If that one is gone, too.
            UserError: If it cannot go on there.
        """
        self._queued = None
        await self._delivery.caught_up()
        self.engine, tracks = engine, list(tracks)
        try:
            for live in tracks:
                await live.move(engine)
            self.require_going()
        except BaseException:
            engine.drop([live.track for live in tracks])
            raise
        for live in tracks:
            engine.add(live)
        self._is_there.set()

    async def remade(self, live: LiveTrack, chunk: int) -> None:
        """Wait until a chunk that was sent before a loss is made again: one can go back to it then.

        Raises:
            Problem: If the session is over.
        """
        while live.next <= chunk < live.shown and live.ended != "failed":
            if live.ended and live.is_done:  # it had its length, and nothing more was needed
                live.is_done = False
                live.look()
                self.engine.wake()
            await asyncio.sleep(LOOK)
            self.require_going()

    def end(self) -> None:
        """The session is over; who waits for an engine learns it."""
        self._is_over = True
        self._is_there.set()
