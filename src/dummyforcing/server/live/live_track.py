"""A track while it is made: how far it is, and how soon it needs another chunk."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from dummyforcing.method.plan import Plan
from dummyforcing.pipeline.request import Request
from dummyforcing.server.costs import Claim
from dummyforcing.server.engine import Engine, Stream
from dummyforcing.server.live.messages import Heads, TrackInfo
from dummyforcing.server.live.recording import Recording
from dummyforcing.server.replicas.host import ModelHost
from dummyforcing.server.replicas.replica import Chunk, Replica, ReplicaLost
from dummyforcing.server.replicas.track import Place, Snapshot
from dummyforcing.server.scheduler import Turn

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class LiveTrack(Stream):
    """A track while it is made."""

    form = "segment"

    number: int
    """What clients call it: 0, 1, ..."""
    track: int
    """What its replica calls it."""
    request: Request
    """What was asked for at the beginning of the video."""
    claim: Claim
    """What it takes of the machine."""
    turn: Turn
    recording: Recording
    ahead: int
    most: int
    """Pixel frames that it may have."""
    chunk_seconds: float
    arrived: Callable[["LiveTrack", Chunk], None]
    broke: Callable[["LiveTrack", Exception], None]
    parent: int | None = None
    parent_chunk: int | None = None
    prompt: str = ""
    policy: str = ""
    acked: int = -1
    """The chunk that the viewer is at."""
    shown_at: float = 0.0
    """When that one began to be shown; before the first one, when one before it would have."""
    next: int = 0
    """The chunk that is made next."""
    shown: int = 0
    """So many chunks were sent before the replica was lost; they are made again, and not sent again."""
    changes: list[tuple[int, str, int]] = field(default_factory=list)
    """Prompts after the first one: from which chunk on, what, and how long the fade."""
    snapshots: list[Snapshot] = field(default_factory=list)
    """Those that hold still: `snapshot`, and newer ones."""
    keeping: "asyncio.Task[None] | None" = None
    """Takes a snapshot."""
    version: int = 0
    """Another one whenever the track is another: a snapshot of before does not hold any more."""
    is_paused: bool = False
    is_done: bool = False
    ended: str = ""
    """Why it is done, once the client was told."""
    waiting: dict[int, tuple[str, float]] = field(default_factory=dict)
    """Prompts that are not shown yet, by the chunk that they begin with, and when they were asked for."""
    plan: Plan | None = None
    """What its heads see, as it was told to the client."""

    def made(self, chunk: Chunk) -> None:
        """Take a chunk."""
        made = chunk.made
        self.next = made.index + 1
        self.is_done = made.is_last or made.first_frame + made.frames >= self.most
        self.look()
        self.arrived(self, chunk)

    def taken_back(self, place: Place, changed: int) -> None:
        """Go on from where the track is now, which may be before chunks that were made.

        Args:
            place: Where it is.
            changed: The first chunk that is another one now.
        """
        self.next = place.index
        self.is_done = place.is_done or place.frames >= self.most
        self.ended = ""
        self.shown = min(self.shown, changed)
        self.version += 1
        self.snapshots = [one for one in self.snapshots if one.asked <= place.asked]

    @property
    def snapshot(self) -> Snapshot | None:
        """The newest one of before a chunk that all others before were recorded of.

        A replica is faster than the recording: the pixels of a chunk before a snapshot may be lost with it.
        """
        recorded = [one for one in self.snapshots if one.index <= len(self.recording)]
        return recorded[-1] if recorded else None

    @property
    def kept(self) -> int:
        """The chunk that would be made next if the replica were lost now."""
        return self.snapshot.index if self.snapshot else 0

    async def keep(self, replica: Replica) -> None:
        """Take a snapshot."""
        version = self.version
        try:
            snapshot = await replica.snapshot(self.track)
            if snapshot is not None and version == self.version:
                before = self.snapshot
                self.snapshots = [
                    one for one in self.snapshots if before is None or one.index >= before.index
                ]
                self.snapshots.append(snapshot)
        except ReplicaLost:
            pass
        except Exception as error:  # the video goes on; it may be taken back further than it had to be
            logger.error("no snapshot of a video could be taken", exc_info=error)
        finally:
            self.keeping = None

    async def move(self, engine: Engine) -> None:
        """Go on in another replica, from the newest snapshot on; what was sent stays as it is.

        Raises:
            ReplicaLost: If that one is gone, too.
            UserError: If it cannot go on there.
        """
        self.version += 1
        self.shown, snapshot = len(self.recording), self.snapshot
        self.snapshots = [snapshot] if snapshot else []
        self.track, place = await engine.begin(self.request, self.claim.held, snapshot)
        for first, prompt, fade in self.changes:
            if snapshot is None or first >= snapshot.asked:
                (place,) = await engine.call(
                    ModelHost.set_prompt, [self.track], prompt, fade, at=first, shown=first
                )
        self.next, self.is_done = place.index, bool(self.ended)

    def failed(self, error: Exception) -> None:
        """Take an error."""
        self.is_done = True
        self.broke(self, error)

    def look(self) -> None:
        """Find out whether a chunk is needed, and how soon."""
        # What was lost is made again in any case: one may want to go back to it.
        is_paused = self.is_paused and self.next >= self.shown
        rests = is_paused or self.is_done or self.next > self.acked + self.ahead
        self.turn.due = None if rests else self.shown_at + (self.next - self.acked) * self.chunk_seconds

    def info(self) -> TrackInfo:
        """What a client is told of it."""
        return TrackInfo(
            track=self.number,
            parent=self.parent,
            chunk=self.parent_chunk,
            policy=self.policy,
            prompt=self.prompt,
            chunks=len(self.recording),
        )

    def heads(self, chunk: int) -> Heads:
        """The roles of its heads, as they are after a chunk; there must be a plan."""
        assert self.plan is not None
        roles = [list(row) for row in self.plan.roles]
        return Heads(track=self.number, chunk=chunk, roles=roles, policy=self.policy)
