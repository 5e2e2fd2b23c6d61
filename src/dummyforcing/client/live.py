"""The live protocol from Python."""

import time
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import av
import numpy as np
from pydantic import BaseModel
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as open_socket

from dummyforcing.errors import RequestWarning, UnknownWordsWarning, UserError
from dummyforcing.media.frames import Frames
from dummyforcing.server.live.messages import (
    SERVER_MESSAGE,
    Ack,
    Branch,
    Branched,
    Chunk,
    Done,
    Failed,
    Pause,
    Prompt,
    Ready,
    Resume,
    Rewind,
    Rewound,
    Start,
    Stop,
    Warned,
)

Answer = TypeVar("Answer", bound=BaseModel)

ATTEMPTS = 5
"""To reach the server again, each twice as long after the one before."""


class LiveError(UserError):
    """The server cannot do what was asked for, or is not to be reached."""


@dataclass(frozen=True)
class LiveChunk:
    """A chunk of a live video."""

    about: Chunk
    """What the server says of it."""
    segment: bytes = field(repr=False)
    """A fragmented mp4 that is playable by itself."""

    @property
    def index(self) -> int:
        """Its number, from 0."""
        return self.about.index

    @property
    def track(self) -> int:
        """The track that it is of."""
        return self.about.track

    @property
    def prompt(self) -> str:
        """What it shows."""
        return self.about.prompt

    @property
    def frames(self) -> Frames:
        """Its pixel frames, uint8 RGB `(n, H, W, 3)`, decoded."""
        with av.open(BytesIO(self.segment), "r") as container:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


class Live:
    """A connection to a live server, and the session on it; lost connections are taken up again."""

    def __init__(self, url: str, key: str | None = None) -> None:
        """Connect.

        Args:
            url: Of the server: `http://`, `https://`, `ws://` or `wss://`, with or without a path.
            key: That the server wants, if it wants one.

        Raises:
            LiveError: If it is not to be reached, or the key is wrong.
        """
        parts = urlsplit(url)
        scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
        path = parts.path.rstrip("/")
        path = path if path.endswith("/v1/realtime") else f"{path}/v1/realtime"
        self._url = urlunsplit((scheme, parts.netloc, path, "", ""))
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.ready: Ready | None = None
        """The session, once it is there."""
        self.last: dict[int, int] = {}
        """The number of the chunk of each track that came last."""
        self.messages: deque[BaseModel] = deque(maxlen=1000)
        """What the server said besides chunks, the newest last."""
        self._waiting: deque[LiveChunk | BaseModel] = deque()
        self._socket = self._connect()

    def __enter__(self) -> "Live":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the session and the connection."""
        with suppress(ConnectionClosed):
            self._socket.send(Stop().model_dump_json())
        self._socket.close()

    def start(
        self, prompt: str, *, tracks: tuple[int, ...] | None = None, **options: Any
    ) -> Iterator[LiveChunk]:
        """Begin a video, in place of one before it.

        Every chunk counts as watched once the next one is asked for: a loop that shows each of them for its
        time is never far behind what is made.

        Args:
            prompt: What it shows.
            tracks: Those to wait for; None: all.
            **options: Fields of the `start` message, such as `seed`, `policy` or `size`.

        Yields:
            The chunks of all tracks as they come, until the video has its length or the session is over.

        Raises:
            LiveError: If the server refuses something; the video goes on if it is asked for more.
        """
        self.ready, self.last = None, {}
        self._waiting.clear()
        self._send(Start.model_validate({"prompt": prompt, **options}))
        return self.chunks(tracks)

    def chunks(self, tracks: tuple[int, ...] | None = None) -> Iterator[LiveChunk]:
        """The chunks that come next; see `start`."""
        done: set[int] = set()
        while True:
            message = self.receive()
            if self.ready is None and isinstance(message, LiveChunk | Done):
                continue  # of the video before
            match message:
                case LiveChunk():
                    done.discard(message.track)
                    if tracks is None or message.track in tracks:
                        yield message
                        self.ack(message.index, track=message.track)
                case Failed():
                    raise _refused(message)
                case Done(track=None):
                    return
                case Done():
                    assert message.track is not None
                    done.add(message.track)
                    assert self.ready is not None
                    known = set(tracks or [*self.last, *(one.track for one in self.ready.tracks)])
                    if known <= done:
                        return

    def receive(self, timeout: float | None = None) -> LiveChunk | BaseModel:
        """The next message of the server; a chunk comes with its segment.

        Raises:
            TimeoutError: If nothing comes in time.
            LiveError: If the connection is lost, and cannot be had again.
        """
        return self._waiting.popleft() if self._waiting else self._receive(timeout)

    def _answer(self, kind: type[Answer]) -> Answer:
        """The next message of a kind; what comes before it waits to be received."""
        while not isinstance(message := self._receive(), kind):
            if isinstance(message, Failed):
                raise _refused(message)
            self._waiting.append(message)
        return message

    def _receive(self, timeout: float | None = None) -> LiveChunk | BaseModel:
        while True:
            try:
                text = self._socket.recv(timeout)
                message = SERVER_MESSAGE.validate_json(text)
                segment = self._socket.recv() if isinstance(message, Chunk) else b""
            except ConnectionClosed:
                self._come_back()
                continue
            if isinstance(message, Chunk):
                assert isinstance(segment, bytes)
                self.last[message.track] = message.number
                return LiveChunk(message, segment)
            if isinstance(message, Ready):
                self.ready = message
            if isinstance(message, Warned):
                said = RequestWarning(message.message)
                if message.words:
                    said = UnknownWordsWarning(message.message, message.words)
                warnings.warn(said, stacklevel=4)
            self.messages.append(message)
            return message

    def ack(self, chunk: int, *, track: int = 0) -> None:
        """Tell that a chunk begins to be watched; `chunks` does it by itself, players with a clock do it."""
        self._send(Ack(track=track, chunk=chunk))

    def prompt(self, prompt: str, *, fade: int = 1, track: int = 0) -> None:
        """Show something else, from the second chunk after the one that was asked for last.

        Args:
            prompt: What.
            fade: Chunks over which the old prompt fades into it.
            track: Of which video.
        """
        self._send(Prompt(prompt=prompt, fade=fade, track=track))

    def branch(self, chunk: int, prompt: str | None = None, *, track: int = 0, fade: int = 1) -> int:
        """Begin another track that goes on after a chunk.

        Args:
            chunk: One that is held; see `LiveChunk.about.held`.
            prompt: What the new track shows; None: the same.
            track: That it branches off.
            fade: See `prompt`.

        Returns:
            The number of the new track; its chunks come with the others.

        Raises:
            LiveError: If the chunk is not held any more.
        """
        self._send(Branch(chunk=chunk, prompt=prompt, track=track, fade=fade))
        return self._answer(Branched).track

    def rewind(self, chunk: int, *, track: int = 0) -> None:
        """Give up what comes after a chunk, and make it again.

        Raises:
            LiveError: If the chunk is not held any more.
        """
        self._send(Rewind(chunk=chunk, track=track))
        rewound = self._answer(Rewound)
        self._waiting = deque(one for one in self._waiting if not _given_up(one, rewound))

    def pause(self) -> None:
        """Have nothing made until `resume`."""
        self._send(Pause())

    def resume(self) -> None:
        """Go on after `pause`."""
        self._send(Resume())

    # --- the connection ----------------------------------------------------------------------------------

    def _connect(self) -> ClientConnection:
        try:
            socket = open_socket(self._url, additional_headers=self._headers, max_size=None, compression=None)
            return socket.__enter__()  # it is closed by `close`
        except InvalidStatus as error:
            status = error.response.status_code
            remedy = "give the right key" if status in (401, 403) else "look at its log"
            raise LiveError(f"The server at {self._url} answers {status}", remedy) from error
        except (OSError, TimeoutError, ValueError) as error:
            problem = f"There is no live server at {self._url} ({error})"
            raise LiveError(problem, "start one with 'dummyforcing serve'") from error

    def _come_back(self) -> None:
        """Connect again, and go on with the session."""
        if self.ready is None:
            raise LiveError("The connection to the server is lost", "connect again")
        for attempt in range(ATTEMPTS):
            time.sleep(0.25 * (2**attempt - 1))
            try:
                self._socket = self._connect()
                again = {"session": self.ready.session, "last": self.last}
                self._socket.send(Start.model_validate(again).model_dump_json())
                return
            except (LiveError, ConnectionClosed) as error:
                last = error
        raise LiveError("The connection to the server is lost", "connect again") from last

    def _send(self, message: BaseModel) -> None:
        try:
            self._socket.send(message.model_dump_json())
        except ConnectionClosed:
            self._come_back()
            self._socket.send(message.model_dump_json())


def connect(url: str = "http://127.0.0.1:8000", key: str | None = None) -> Live:
    """Connect to a live server: see `Live`."""
    return Live(url, key)


def _given_up(message: LiveChunk | BaseModel, rewound: Rewound) -> bool:
    """Whether a message is of what a track was before it went back."""
    if isinstance(message, LiveChunk):
        return message.track == rewound.track and message.index > rewound.chunk
    return isinstance(message, Done) and message.track == rewound.track


def _refused(message: Failed) -> LiveError:
    """The error of a message, whose sentence has the remedy after a semicolon."""
    problem, _, remedy = message.message.rstrip(".").partition("; ")
    return LiveError(problem, remedy or "ask for something else", message.param)
