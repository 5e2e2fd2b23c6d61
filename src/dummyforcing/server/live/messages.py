"""The messages of the live protocol, `/v1/realtime`: JSON text, and after each `chunk` one binary segment.

A segment is a fragmented mp4 that is playable by itself, and knows its time in the track. A session has one
or several *tracks*: videos that were branched off one another, or are made beside one another. Track 0 is
there from the start.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from dummyforcing.server.fields import VideoFields


class Message(BaseModel):
    """Any message; fields that are not known are refused."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


# --- what a client says ----------------------------------------------------------------------------------


class Start(VideoFields, Message):
    """Begin a video, or come back to a session."""

    type: Literal["start"] = "start"
    prompt: str | None = None
    """What the video shows; not with `session`."""
    expand: bool = False
    """Have the server's language model write the prompt out, if it has one."""
    beside: Literal["dense"] | None = None
    """Make a second track of the same noise, with the dense cache."""
    image: str | None = None
    """Id of an uploaded image to begin with."""
    clip: str | None = None
    """Id of an uploaded clip to go on from."""
    session: str | None = None
    """The session to come back to."""
    last: dict[int, int] = Field(default_factory=dict)
    """With it: the `number` of the last chunk that came, of each track."""


class Prompt(Message):
    """Show something else, from the second chunk after the one that the viewer is at."""

    type: Literal["prompt"] = "prompt"
    prompt: str
    """What."""
    fade: int = Field(1, ge=1, le=1000)
    """Chunks over which the old prompt fades into the new one."""
    track: int = 0
    """The track that is meant."""
    expand: bool = False
    """As in `start`."""


class Pause(Message):
    """Make nothing until `resume`."""

    type: Literal["pause"] = "pause"


class Resume(Message):
    """Go on after `pause`."""

    type: Literal["resume"] = "resume"


class Branch(Message):
    """Begin another track that goes on after a chunk of one."""

    type: Literal["branch"] = "branch"
    chunk: int = Field(ge=0)
    """The last one that the two have in common; one of those that are `held`."""
    track: int = 0
    """That it branches off."""
    prompt: str | None = None
    """What the new track shows; none: the same."""
    fade: int = Field(1, ge=1, le=1000)
    """As in `prompt`."""


class Rewind(Message):
    """Go back: what comes after a chunk is given up, and made again."""

    type: Literal["rewind"] = "rewind"
    chunk: int = Field(ge=0)
    """The last one that stays; one of those that are `held`."""
    track: int = 0
    """Its track."""


class Ack(Message):
    """Tell that the viewer is at a chunk: it begins to be shown. Chunks are made so far ahead of it only."""

    type: Literal["ack"] = "ack"
    chunk: int = Field(ge=0)
    """Its index."""
    track: int = 0
    """Its track."""


class Stop(Message):
    """End the session; what was made can still be downloaded for a while."""

    type: Literal["stop"] = "stop"


ClientMessage = Annotated[
    Start | Prompt | Pause | Resume | Branch | Rewind | Ack | Stop, Field(discriminator="type")
]
CLIENT_MESSAGE: TypeAdapter[ClientMessage] = TypeAdapter(ClientMessage)


# --- what the server says --------------------------------------------------------------------------------


class TrackInfo(Message):
    """A track of a session."""

    track: int
    """Its number."""
    parent: int | None = None
    """The track that it was branched off."""
    chunk: int | None = None
    """The last chunk that the two have in common."""
    policy: str
    """What its heads see."""
    prompt: str
    """What it shows at present."""
    chunks: int = 0
    """How many there are."""


class Ready(Message):
    """The session is there."""

    type: Literal["ready"] = "ready"
    session: str
    """To come back to, and for downloads."""
    model: str
    """Its name."""
    size: tuple[int, int]
    """Width and height in pixels."""
    fps: int
    """At which the video is to be shown."""
    codec: str
    """For `MediaSource.addSourceBuffer`, such as `video/mp4; codecs="avc1.64000b"`."""
    chunk_frames: int
    """Pixel frames of a chunk; the first one of a video has 3 fewer."""
    layers: int
    """Of the model."""
    heads: int
    """Attention heads per layer."""
    seed: int
    """Of the noise."""
    ahead: int
    """Chunks that are made ahead of the acks."""
    prompt: str
    """What the video shows, written out if that was asked for."""
    tracks: list[TrackInfo]
    """Those that there are."""
    is_back: bool = False
    """Whether this is a session that was come back to."""


class ChunkTimings(Message):
    """What a chunk took."""

    seconds: float
    """Of the device, from its beginning to its pixel frames."""
    fps: float
    """Pixel frames per second of that."""


class ChunkMeasures(Message):
    """How the video fares: see `dummyforcing.Measures`."""

    drift: float
    """How far its look is from that of the first second, gray levels of 255."""
    repetition: float
    """How closely it repeats an earlier one: 1 is a perfect loop."""
    motion: float
    """Mean change from frame to frame, gray levels of 255."""


class Chunk(Message):
    """A chunk; its segment follows as a binary message.

    If there is one of its number already, it is replaced, and what came after it is given up.
    """

    type: Literal["chunk"] = "chunk"
    track: int
    """That it is of."""
    number: int
    """Counts all chunks of the session, in the order in which they are sent, from 1."""
    index: int
    """Its place in the track, from 0."""
    first_frame: int
    """Number of its first pixel frame in the track, from 0."""
    frames: int
    """How many there are."""
    prompt: str
    """What it shows."""
    timings: ChunkTimings
    """What it took."""
    cache_bytes: int
    """Size of the KV cache."""
    dense_bytes: int
    """What a dense cache of the video so far would take."""
    measures: ChunkMeasures
    """How the video fares."""
    held: list[int]
    """The chunks of the track that one can go back to, or branch off."""


class PromptActive(Message):
    """A prompt is shown from a chunk on."""

    type: Literal["prompt_active"] = "prompt_active"
    track: int
    """Of which track."""
    chunk: int
    """The first one that shows it."""
    prompt: str
    """What is shown."""
    seconds: float
    """From the `prompt` message until that chunk was made."""


class Heads(Message):
    """The roles of all heads of a track, when they are found or change."""

    type: Literal["heads"] = "heads"
    track: int
    """Of which track."""
    chunk: int
    """The one after which they are so."""
    roles: list[list[str]]
    """Of each layer: `dummy`, `sink`, `neighbor`, or a policy's own words."""
    policy: str
    """By which they were found."""


class Branched(Message):
    """There is another track."""

    type: Literal["branched"] = "branched"
    track: int
    """The new one."""
    parent: int
    """The one that it was branched off."""
    chunk: int
    """The last chunk that the two have in common; the new track's next one is the one after it."""
    prompt: str
    """What it shows."""
    policy: str
    """What its heads see."""


class Rewound(Message):
    """A track goes on after this chunk."""

    type: Literal["rewound"] = "rewound"
    track: int
    """Of which track."""
    chunk: int
    """The last one that stays."""


class Queued(Message):
    """The server is full; the session begins when others end."""

    type: Literal["queued"] = "queued"
    place: int
    """From 1."""


class Warned(Message):
    """Something is not quite as it was asked for."""

    type: Literal["warning"] = "warning"
    code: str
    """`unknown_words`, `trained_size`, `trained_length`, `remark` (any other), `expansion_failed`, or
    `replica_lost`: the process that made the video is gone, and another one goes on."""
    message: str
    """In words."""
    words: list[str] = Field(default_factory=list)
    """The words that the model does not know."""


class Done(Message):
    """A track has its length, or the session is over."""

    type: Literal["done"] = "done"
    track: int | None = None
    """None: all of them, and the session is over."""
    reason: str
    """`length`, `stopped`, `idle`, `shutdown`, `replaced` or `failed`."""


class Failed(Message):
    """What was asked for cannot be done; the session goes on, unless `done` follows."""

    type: Literal["error"] = "error"
    code: str
    """For programs."""
    message: str
    """For people: what is wrong, and what would work."""
    param: str | None = None
    """The field that is to blame."""


ServerMessage = Annotated[
    Ready | Chunk | PromptActive | Heads | Branched | Rewound | Queued | Warned | Done | Failed,
    Field(discriminator="type"),
]
SERVER_MESSAGE: TypeAdapter[ServerMessage] = TypeAdapter(ServerMessage)
