"""A live session: the tracks that a client watches and steers. Everything here lives in the event loop."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import replace

from dummyforcing.errors import UserError
from dummyforcing.pipeline.request import Request
from dummyforcing.server.costs import Claim
from dummyforcing.server.engine import Engine
from dummyforcing.server.fleet import Fleet
from dummyforcing.server.live.current_engine import CurrentEngine
from dummyforcing.server.live.delivery import Arrived, Connection, Delivery, News
from dummyforcing.server.live.live_track import LiveTrack
from dummyforcing.server.live.messages import (
    Branched,
    Done,
    Failed,
    Ready,
    Rewound,
)
from dummyforcing.server.live.recording import Archive, Recording
from dummyforcing.server.replicas.replica import Chunk
from dummyforcing.server.replicas.track import Place
from dummyforcing.server.scheduler import Turn
from dummyforcing.server.settings import Settings
from dummyforcing.server.web.problems import Problem, problem_of

logger = logging.getLogger(__name__)

SOON = 2
"""A new prompt shows from the second chunk after the one at which it was asked for."""
MOST_TRACKS = 4
PATIENCE = 2.0
"""Seconds that somebody may wait for his first picture rather than that others stall."""
FAREWELL = 2.0
"""Seconds that a replica may take to give the memory of a session back, and a client to hear of its end."""


class Session:
    """What a client watches."""

    def __init__(
        self,
        name: str,
        owner: str,
        fleet: Fleet,
        engine: Engine,
        settings: Settings,
        request: Request,
        codec: str,
        archive: Archive,
        pool: Executor,
        ended: Callable[["Session"], None],
        together: int = 1,
    ) -> None:
        """Begin without tracks.

        Args:
            name: Nobody can guess it.
            owner: Who may come back to it.
            fleet: Has other engines, if this one is lost.
            engine: Makes the chunks, at first.
            settings: Of the server.
            request: Of the first track.
            codec: Of its segments.
            archive: Takes the segments.
            pool: Writes and reads them.
            ended: Is told when the session is over.
            together: See `Delivery`.
        """
        self.name, self.owner, self.settings = name, owner, settings
        self.fleet, self.archive, self._ended = fleet, archive, ended
        self.tracks: dict[int, LiveTrack] = {}
        self.request = request
        self.beside: int | None = None
        """The track that gets the same prompts as track 0."""
        self.delivery = Delivery(fleet, request.size, archive, pool, self._failed, together)
        self.current = CurrentEngine(engine, self.delivery)
        self.is_over = self.is_paused = False
        self.heard = time.monotonic()
        """When the client last asked for something."""
        self.codec = codec
        self._operating = asyncio.Lock()
        self._ending: asyncio.Task[None] | None = None

    @property
    def engine(self) -> Engine:
        """Who makes it now."""
        return self.current.engine

    # --- what the client asks for ------------------------------------------------------------------------

    def add(
        self,
        track: int,
        place: Place,
        request: Request,
        claim: Claim,
        most: int,
        *,
        parent: LiveTrack | None = None,
        chunk: int | None = None,
    ) -> LiveTrack:
        """Let a track be made.

        Args:
            track: What the replica calls it.
            place: Where it is.
            request: What was asked for at the beginning of the video.
            claim: What it takes of the machine.
            most: Pixel frames that it may have.
            parent: That it was branched off.
            chunk: The last one that the two have in common.
        """
        number = len(self.tracks)
        live = LiveTrack(
            number,
            track,
            request,
            claim,
            Turn(self.name, is_live=True),
            parent.recording.fork(place.index) if parent else Recording(self.archive),
            self.settings.ahead,
            most,
            self.fleet.facts.chunk_seconds,
            self._arrived,
            self._broke,
            parent.number if parent else None,
            chunk,
            place.prompt,
            request.plan.policy if request.plan else request.policy.name,
            acked=place.index - 1,
            next=place.index,
            is_paused=self.is_paused,
        )
        live.shown_at = time.monotonic() + PATIENCE - live.chunk_seconds
        live.look()
        self.tracks[number] = live
        self.engine.add(live)
        return live

    def ack(self, track: int, chunk: int) -> None:
        """The viewer is at a chunk."""
        live = self._track(track)
        chunk = min(chunk, max(live.next, live.shown) - 1)  # it may have been given up meanwhile
        if chunk != live.acked:
            live.acked, live.shown_at = chunk, time.monotonic()
        self._look()

    def pause(self, is_paused: bool) -> None:
        """Make nothing, or go on."""
        self.is_paused = is_paused
        self.delivery.begin()
        for live in self.tracks.values():
            live.is_paused = is_paused
        self._look()

    def viewed(self, track: int) -> int:
        """The chunk that the viewer of a track, and of what is beside it, is at."""
        return max(live.acked for live in self._pair(track))

    async def set_prompt(self, track: int, prompt: str, fade: int, viewed: int) -> None:
        """Show something else, from the second chunk after one that was viewed.

        If the viewer is there by now, from the next one; chunks that were made already are made again.
        """
        asked = time.monotonic()
        async with self._operating:
            self.current.require_going()
            pair = self._pair(track)

            def at() -> int:
                return max(viewed + SOON, self.viewed(track) + 1)

            def change(engine: Engine) -> Awaitable[list[Place]]:
                shown = max(live.shown for live in pair)
                return engine.set_prompt([live.track for live in pair], prompt, fade, at, shown)

            _, places = await self.current.ask(change)
            for live, place in zip(pair, places, strict=True):
                first = place.prompt_from
                live.prompt = prompt
                live.waiting = {chunk: told for chunk, told in live.waiting.items() if chunk < first}
                live.waiting[first] = prompt, asked
                live.changes = [*(one for one in live.changes if one[0] < first), (first, prompt, fade)]
                self._again_from(live, place, first)

    async def branch(self, track: int, chunk: int, prompt: str | None, fade: int) -> None:
        """Begin another track."""
        async with self._operating:
            self.current.require_going()
            parent = self._track(track)
            if len(self.tracks) >= MOST_TRACKS:
                raise Problem(429, "too_many_tracks", f"A session has {MOST_TRACKS} tracks at most.", "track")

            async def fork(engine: Engine) -> tuple[int, Place]:
                await self.current.remade(parent, chunk)
                if not engine.has_room(replace(parent.claim, load=0.0)):
                    message = "There is no memory for another track now; end a session, or ask again later."
                    raise Problem(503, "no_room", message)
                return await engine.fork(parent.track, chunk, prompt, fade)

            engine, (number, place) = await self.current.ask(fork)
            self.current.require_going()  # nothing is sent any more, and nobody catches up
            await self.delivery.caught_up()  # the recording has all that the two have in common then
            if self.is_over:
                return
            self.current.require_still(engine)
            live = self.add(
                number, place, parent.request, parent.claim, parent.most, parent=parent, chunk=chunk
            )
            live.changes = [one for one in parent.changes if one[0] < place.asked]
            if parent.snapshot is not None and parent.snapshot.asked <= place.asked:
                live.snapshots = [parent.snapshot]
            claims = [one.claim for one in self.tracks.values()]
            self.engine.reserve(self.name, Claim.of_all(claims))
            if prompt is not None:
                live.changes.append((place.prompt_from, prompt, fade))
                live.waiting[place.prompt_from] = prompt, time.monotonic()
            told = Branched(
                track=live.number,
                parent=track,
                chunk=chunk,
                prompt=live.prompt,
                policy=live.policy,
            )
            self.delivery.put(News(told))

    async def rewind(self, track: int, chunk: int) -> None:
        """Go back."""
        async with self._operating:
            self.current.require_going()
            live = self._track(track)

            async def back(engine: Engine) -> Place:
                await self.current.remade(live, chunk)
                return await engine.rewind(live.track, chunk)

            _, place = await self.current.ask(back)
            live.prompt = place.prompt
            live.changes = [one for one in live.changes if one[0] < place.asked]
            live.waiting = {first: told for first, told in live.waiting.items() if first <= chunk}
            if chunk < live.acked:
                live.acked, live.shown_at = chunk, time.monotonic()
            self._again_from(live, place, chunk + 1)

            def forget() -> None:
                live.recording.truncate(chunk + 1)

            self.delivery.put(News(Rewound(track=track, chunk=chunk), before=forget))
            if live.is_done:
                live.ended = "length"
                self.delivery.put(News(Done(track=track, reason="length")))

    # --- the connection ----------------------------------------------------------------------------------

    async def attach(self, connection: Connection, last: Mapping[int, int], *, is_back: bool) -> None:
        """Send to a client from now on, beginning with what it has not.

        Args:
            connection: Its own; an older one is closed.
            last: The number of the last chunk that it got, of each track.
            is_back: Whether it was here before.
        """
        self.heard = time.monotonic()
        await self.delivery.attach(connection, lambda: self._ready(is_back), self.tracks.values(), last)
        self.current.tell_again()

    async def end(self, reason: str) -> None:
        """End the session, whatever becomes of the caller; what was made can still be downloaded."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._end(reason), name=f"end of {self.name[:6]}")
        await asyncio.shield(self._ending)

    async def _end(self, reason: str) -> None:
        self.is_over = True
        self.current.end()
        self.delivery.detached = time.monotonic()
        try:
            for live in self.tracks.values():
                self.engine.remove(live)
            self.delivery.stop()
            # A process that hangs, or is at a long chunk, keeps nobody from leaving.
            dropping = self.engine.drop([live.track for live in self.tracks.values()])
            await asyncio.wait([dropping], timeout=FAREWELL)
            with suppress(TimeoutError):
                async with asyncio.timeout(FAREWELL):
                    await self.delivery.send(Done(reason=reason))
        finally:
            self._ended(self)

    async def move(self, engine: Engine) -> None:
        """Go on with another engine: see `CurrentEngine.move`."""
        await self.current.move(engine, self.tracks.values())
        self._look()

    # --- what is made ------------------------------------------------------------------------------------

    def _arrived(self, live: LiveTrack, chunk: Chunk) -> None:
        self.fleet.costs.learn(self.request.size, chunk.work.seconds)
        if chunk.made.index >= live.shown:
            self.delivery.put(Arrived(live, chunk))
        self.current.arrived(live, self.settings.snapshot)

    def _broke(self, live: LiveTrack, error: Exception) -> None:
        if isinstance(error, UserError):
            problem = problem_of(error)
        else:
            logger.error("a chunk could not be made", exc_info=error)
            problem = Problem(500, "internal_error", "The chunk could not be made; start another video.")
        failed = Failed(code=problem.code, message=problem.message, param=problem.param)
        live.ended = "failed"
        self.delivery.put(News(failed))
        self.delivery.put(News(Done(track=live.number, reason="failed")))

    async def fail(self, message: str) -> None:
        """End because of something that went wrong, and say so."""
        await self.delivery.send(Failed(code="replica_lost", message=message))
        await self.end("failed")

    def _failed(self) -> None:
        """End from within the delivery, which ending stops."""
        self._ending = self._ending or asyncio.create_task(self._end("failed"))

    # --- what it is --------------------------------------------------------------------------------------

    def _track(self, number: int) -> LiveTrack:
        self.heard = time.monotonic()
        if number not in self.tracks:
            raise Problem(404, "no_such_track", f"There is no track {number} in this session.", "track")
        return self.tracks[number]

    def _pair(self, track: int) -> list[LiveTrack]:
        """A track, and the one that gets the same prompts."""
        live = self._track(track)
        return [live, self.tracks[self.beside]] if track == 0 and self.beside is not None else [live]

    def _again_from(self, live: LiveTrack, place: Place, changed: int) -> None:
        """Go on from the chunk that the track was taken back to: see `LiveTrack.taken_back`."""
        live.taken_back(place, changed)
        self._look()

    def _look(self) -> None:
        self.heard = time.monotonic()
        for live in self.tracks.values():
            live.look()
        self.engine.wake()

    def _ready(self, is_back: bool) -> Ready:
        files = self.fleet.facts.files
        height, width = self.request.size
        return Ready(
            session=self.name,
            model=files.preset.name,
            size=(width, height),
            fps=files.preset.fps,
            codec=self.codec,
            chunk_frames=files.preset.chunk_pixel_frames,
            layers=files.config.num_layers,
            heads=files.config.num_heads,
            seed=self.request.seed,
            ahead=self.settings.ahead,
            prompt=self.tracks[0].prompt,
            tracks=[live.info() for live in self.tracks.values()],
            is_back=is_back,
        )
