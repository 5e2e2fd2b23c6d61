"""A track while it is made: how far it is, and how soon it needs another chunk."""

from collections.abc import Callable
from dataclasses import dataclass, field

from dummyforcing.method.plan import Plan
from dummyforcing.server.engine import Claim, Stream
from dummyforcing.server.live.messages import Heads, TrackInfo
from dummyforcing.server.live.recording import Recording
from dummyforcing.server.live.track import Made, Track
from dummyforcing.server.scheduler import Turn


@dataclass(eq=False)
class LiveTrack(Stream):
    """A track while it is made."""

    number: int
    track: Track
    claim: Claim
    """What it takes of the machine."""
    turn: Turn
    recording: Recording
    ahead: int
    most: int
    """Pixel frames that it may have."""
    chunk_seconds: float
    arrived: Callable[["LiveTrack", Made, float], None]
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
    is_paused: bool = False
    is_done: bool = False
    ended: str = ""
    """Why it is done, once the client was told."""
    waiting: dict[int, tuple[str, float]] = field(default_factory=dict)
    """Prompts that are not shown yet, by the chunk that they begin with, and when they were asked for."""
    plan: Plan | None = None
    """What its heads see, as it was told to the client."""

    def make(self) -> Made:
        """Make the next chunk."""
        return self.track.make()

    def made(self, result: Made, seconds: float) -> None:
        """Take it."""
        self.next = result.index + 1
        self.is_done = result.is_last or result.first_frame + len(result.frames) >= self.most
        self.look()
        self.arrived(self, result, seconds)

    def failed(self, error: Exception) -> None:
        """Take an error."""
        self.is_done = True
        self.broke(self, error)

    def look(self) -> None:
        """Find out whether a chunk is needed, and how soon."""
        rests = self.is_paused or self.is_done or self.next > self.acked + self.ahead
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
