"""All live sessions: who is let in, who waits, and who has been away for too long."""

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dummyforcing.media.fragments import codec_for
from dummyforcing.pipeline.request import Request
from dummyforcing.server.allowed import require_allowed
from dummyforcing.server.costs import Claim
from dummyforcing.server.engine import Engine
from dummyforcing.server.fleet import TRIES, Fleet
from dummyforcing.server.live.messages import Queued
from dummyforcing.server.live.recording import Archive
from dummyforcing.server.live.session import Session
from dummyforcing.server.replicas.replica import ReplicaLost
from dummyforcing.server.settings import Settings, parse_bytes
from dummyforcing.server.threads import run_in
from dummyforcing.server.web.problems import Problem

logger = logging.getLogger(__name__)

MOST_KEPT = 8
"""Sessions of one owner that are over and can still be downloaded from."""
MOST_HELD = 32
"""Chunks that one can go back to, however small they are."""


@dataclass(frozen=True)
class Asked:
    """A session that was asked for, and can be made here."""

    requests: list[Request]
    """Of its tracks."""
    claims: list[Claim]

    @property
    def claim(self) -> Claim:
        """What all of it takes."""
        return Claim.of_all(self.claims)


@dataclass(eq=False)
class Waiting:
    """A session that waits for its turn."""

    name: str
    owner: str
    claim: Claim
    tell: Callable[[Queued], None]
    """Is told the place in the queue when it changes; never fails."""
    turn: asyncio.Future[Engine]
    """Who makes it, once there is room."""
    place: int = 0


class Sessions:
    """The live sessions of a server."""

    def __init__(self, fleet: Fleet, settings: Settings, folder: Path) -> None:
        """Begin with none.

        Args:
            fleet: Makes them.
            settings: Of the server.
            folder: Where their recordings lie while they last.
        """
        self.fleet, self.settings, self.folder = fleet, settings, folder
        self.all: dict[str, Session] = {}
        self._owners: dict[str, str] = {}  # of all sessions that have a place, by name
        self.waiting: list[Waiting] = []
        self.is_closing = False
        self._held_bytes = parse_bytes(settings.held)
        self._pool = ThreadPoolExecutor(2, "recordings")
        self._moving: dict[str, asyncio.Task[None]] = {}
        fleet.when_lost.append(self._lost)
        fleet.when_changed.append(self._admit)
        fleet.demands.append(self._demand)

    @property
    def running(self) -> list[Session]:
        """Those that are not over."""
        return [session for session in self.all.values() if not session.is_over]

    async def asked(self, prompt: str, options: dict[str, Any], beside: str | None) -> Asked:
        """Check what is asked for.

        Args:
            prompt: What the video shows.
            options: See `VideoOptions`.
            beside: Policy of a second track of the same noise.

        Raises:
            Problem: If it has to be refused.
            UserError: If it cannot be made here.
        """
        requests = [await asyncio.to_thread(self.request, prompt, options)]
        if beside is not None:
            own = ("plan", "budget", "guard", "dummy_fraction")
            other = {name: value for name, value in options.items() if name not in own}
            requests.append(await asyncio.to_thread(self.request, prompt, {**other, "policy": beside}))
        return Asked(requests, [self.claim(request) for request in requests])

    async def begin(self, owner: str, asked: Asked, tell: Callable[[Queued], None]) -> Session:
        """Begin a session, when there is room for it.

        Args:
            owner: Who may come back to it.
            asked: What it shall be.
            tell: Is told the place in the queue; must not fail.

        Raises:
            Problem: If there is no place, not even in the queue.
        """
        for _ in range(TRIES):
            name, engine = await self._enter(owner, asked.claim, tell)
            try:
                return await self._begin(name, owner, asked, engine)
            except ReplicaLost:
                self._leave(name)
            except BaseException:
                self._leave(name)
                raise
        raise Problem(503, "replica_lost", "The processes that began this video ended; ask for another one.")

    async def _begin(self, name: str, owner: str, asked: Asked, engine: Engine) -> Session:
        requests, claims, begun = asked.requests, asked.claims, []
        codec = await run_in(self._pool, codec_for, requests[0].size, self.fleet.facts.preset.fps)
        try:
            for request, one in zip(requests, claims, strict=True):
                begun.append(await engine.begin(request, one.held))
        except BaseException:
            engine.drop([track for track, _ in begun])
            raise
        archive = Archive(self.folder)
        session = Session(
            name,
            owner,
            self.fleet,
            engine,
            self.settings,
            requests[0],
            codec,
            archive,
            self._pool,
            self._ended,
            # Beside others the second chunk may come late, and the video would stop after the first one.
            together=min(2, self.settings.ahead) if self.running else 1,
        )
        self.all[name] = session
        for (track, place), request, one in zip(begun, requests, claims, strict=True):
            session.add(track, place, request, one, self.longest(request))
        session.beside = 1 if len(begun) > 1 else None
        return session

    def find(self, owner: str, name: str) -> Session:
        """A session by its name; it may be over.

        Raises:
            Problem: If there is none that this owner may see.
        """
        session = self.all.get(name)
        if session is None or session.owner != owner:  # the same words for both: names cannot be guessed
            raise Problem(404, "no_such_session", "This session is over; start a new one.", "session")
        return session

    async def watch(self) -> None:
        """End sessions whose clients are gone or idle, and forget old ones, until cancelled."""
        while True:
            await asyncio.sleep(1)
            now = time.monotonic()
            for session in list(self.all.values()):
                delivery = session.delivery
                away = now - delivery.detached if delivery.connection is None else 0.0
                if not session.is_over and (
                    away > self.settings.resume or now - session.heard > self.settings.idle
                ):
                    await session.end("idle")
                elif session.is_over and now - delivery.detached > self.settings.idle:
                    session.archive.close()
                    del self.all[session.name]
            self._admit()  # a job may have ended, and left room

    async def close(self) -> None:
        """End all sessions; none begins any more."""
        self.is_closing = True
        for waiting in self.waiting:
            if not waiting.turn.done():
                waiting.turn.set_exception(_shutting_down())
        await asyncio.gather(*(session.end("shutdown") for session in self.running))
        for session in self.all.values():
            session.archive.close()
        self._pool.shutdown()

    # --- who is let in -----------------------------------------------------------------------------------

    async def _enter(self, owner: str, claim: Claim, tell: Callable[[Queued], None]) -> tuple[str, Engine]:
        """Wait for a place, and take it; gives the new session its name, and who makes it."""
        if self.is_closing:
            raise _shutting_down()
        owners = self._owners | {one.name: one.owner for one in self.waiting}
        if list(owners.values()).count(owner) >= self.settings.max_sessions_per_key:
            most = self.settings.max_sessions_per_key
            raise Problem(429, "too_many_sessions", f"You have {most} live sessions already; end one first.")
        name = secrets.token_urlsafe(16)
        engine = None if self.waiting else self._room(claim)
        if engine is not None:
            self._let_in(name, owner, claim, engine)
            return name, engine
        if len(self.waiting) >= self.settings.max_waiting:
            raise Problem(503, "server_full", "The server is full, and so is its queue; try again later.")
        waiting = Waiting(name, owner, claim, tell, asyncio.get_running_loop().create_future())
        self.waiting.append(waiting)
        return name, await self._turn_of(waiting)

    async def _turn_of(self, waiting: Waiting) -> Engine:
        """Wait for the turn of one who waits."""
        self._admit()
        try:
            return await waiting.turn
        except BaseException:
            if waiting in self.waiting:
                self.waiting.remove(waiting)
                self._admit()
            else:  # it was let in at this very moment
                self._leave(waiting.name)
            raise

    def _room(self, claim: Claim) -> Engine | None:
        """Who could make one more session; None: nobody."""
        return self.fleet.place(claim) if len(self._owners) < self.settings.max_sessions else None

    def _let_in(self, name: str, owner: str, claim: Claim, engine: Engine) -> None:
        self._owners[name] = owner
        engine.reserve(name, claim)

    def _leave(self, name: str) -> None:
        """Give a place to others."""
        self._owners.pop(name, None)
        for engine in self.fleet.engines:
            engine.release(name)
        self._admit()

    async def _demand(self) -> int:
        """How many further replicas those who wait would fill, as full as the others are."""
        if len(self._owners) >= self.settings.max_sessions:
            return 0
        return math.ceil(len(self.waiting) * len(self.fleet.engines) / max(len(self._owners), 1))

    def _admit(self) -> None:
        """Let in those for whom there is room, in their order, and tell the others their places."""
        while self.waiting and not self.is_closing:
            one = self.waiting[0]
            # One that lost its replica has its place among the sessions still.
            engine = self.fleet.place(one.claim) if one.name in self._owners else self._room(one.claim)
            if engine is None:
                break
            self.waiting.pop(0)
            if not one.turn.done():
                self._let_in(one.name, one.owner, one.claim, engine)
                one.turn.set_result(engine)
        for place, one in enumerate(self.waiting, start=1):
            if place != one.place:
                one.place = place
                one.tell(Queued(place=place))

    # --- whose replica is lost ---------------------------------------------------------------------------

    def _lost(self, engine: Engine) -> None:
        for session in self.running:
            if session.engine is engine and session.name not in self._moving:
                moving = asyncio.create_task(self._move(session), name=f"move of {session.name[:6]}")
                self._moving[session.name] = moving

    async def _move(self, session: Session) -> None:
        """Have another replica go on with a session; it goes before those that wait to begin."""
        try:
            while True:
                session.current.lose(session.tracks.values())
                if session.current.is_given_up:
                    break
                claim = Claim.of_all([live.claim for live in session.tracks.values()])
                turn = asyncio.get_running_loop().create_future()
                waiting = Waiting(session.name, session.owner, claim, session.current.tell, turn)
                self.waiting.insert(0, waiting)
                engine = await self._turn_of(waiting)
                with suppress(ReplicaLost):
                    await session.move(engine)
                    logger.info("a session goes on in replica %s", engine.name)
                    return
            logger.error("%d replicas ended over a session; it is given up", TRIES)
        except Exception as error:
            if session.is_over:
                return
            logger.error("a session cannot go on in another replica", exc_info=error)
        finally:
            del self._moving[session.name]
        await session.fail("The processes that made this video ended again and again; start another one.")

    def _ended(self, session: Session) -> None:
        if session.name in self._moving:
            self._moving[session.name].cancel()
        self._leave(session.name)
        over = [one for one in self.all.values() if one.is_over and one.owner == session.owner]
        for old in over[:-MOST_KEPT]:
            old.archive.close()
            del self.all[old.name]

    # --- in threads --------------------------------------------------------------------------------------

    def request(self, prompt: str, options: dict[str, Any]) -> Request:
        """Check what is asked for; without a length it has no end.

        Raises:
            Problem: If the server's limits forbid it.
            UserError: If the model cannot do it.
        """
        given = {"num_frames": None, **options} if "seconds" not in options else options
        request = self.fleet.facts.request(prompt, given)
        require_allowed(self.settings, self.fleet.costs, request)
        return request

    def claim(self, request: Request) -> Claim:
        """What a track of a session takes.

        Raises:
            NotEnoughMemory: If it can never be made here.
        """
        # A new prompt may come so soon that all chunks that were made ahead are made again.
        least = self.settings.ahead + 1
        longest = self.longest(request)
        if longest < self.settings.max_frames:  # its cache grows: no more are held than have to be
            frames = self.fleet.facts.preset.latent_frames(longest)
            return self.fleet.costs.claim(replace(request, frames=frames), least=least, most=least)
        return self.fleet.costs.claim(request, room=self._held_bytes, least=least, most=MOST_HELD)

    def longest(self, request: Request) -> int:
        """Pixel frames that a track may have: fewer if its cache grows, as the dense one does.

        With what is held, it may take a quarter of the memory in the end.
        """
        facts, chunk = self.fleet.facts, request.chunk_frames
        few, many = (replace(request, frames=count * chunk).cache_frames() for count in (40, 80))
        if request.frames is not None or many <= few:
            return self.settings.max_frames
        copies = self.settings.ahead + 2
        one = facts.files.frame_bytes(request.size, facts.cache_dtype)
        latents = int(self.fleet.costs.capacity / 4 / copies / one)
        return min(facts.preset.pixel_frames(max(latents // chunk, 1) * chunk), self.settings.max_frames)


def _shutting_down() -> Problem:
    return Problem(503, "shutting_down", "The server is being shut down; try again in a moment.")
