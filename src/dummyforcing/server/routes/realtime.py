"""`/v1/realtime`: the live protocol over a WebSocket, and what can be downloaded of a session."""

import asyncio
import logging
import os
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from fastapi import APIRouter, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel, ValidationError
from starlette.background import BackgroundTask

from dummyforcing.errors import (
    RequestWarning,
    TrainedLengthWarning,
    TrainedSizeWarning,
    UnknownWordsWarning,
    UserError,
)
from dummyforcing.files.records import as_text
from dummyforcing.media.fragments import save_fragments
from dummyforcing.pipeline.remarks import remarks, remarks_on_change, remarks_on_prompts
from dummyforcing.pipeline.request import check_prompts
from dummyforcing.server.fields import options_of
from dummyforcing.server.live.live_track import LiveTrack
from dummyforcing.server.live.messages import (
    CLIENT_MESSAGE,
    Ack,
    Branch,
    ClientMessage,
    Failed,
    Pause,
    Prompt,
    Resume,
    Rewind,
    Start,
    Stop,
    Warned,
)
from dummyforcing.server.live.session import Session
from dummyforcing.server.parts import Server
from dummyforcing.server.storage.decoding import Kind
from dummyforcing.server.web.access import owner_of
from dummyforcing.server.web.logs import log_prompt
from dummyforcing.server.web.problems import Problem, problem_of

logger = logging.getLogger(__name__)
router = APIRouter()

PATIENCE = 10.0
"""Seconds that a client may take to receive a message."""
MOST_PENDING = 16
"""Messages of a client that may be worked on at once."""
REMARKS: dict[type[RequestWarning], str] = {
    UnknownWordsWarning: "unknown_words",
    TrainedSizeWarning: "trained_size",
    TrainedLengthWarning: "trained_length",
}
"""Codes of warnings."""


class Socket:
    """A client's WebSocket, as a session sees it."""

    def __init__(self, websocket: WebSocket) -> None:
        """Wrap an accepted one."""
        self._websocket = websocket
        self._lock = asyncio.Lock()

    async def send(self, message: BaseModel, segment: bytes | None = None) -> None:
        """Send a message, and a segment right after it."""
        try:
            async with asyncio.timeout(PATIENCE), self._lock:
                await self._websocket.send_text(message.model_dump_json())
                if segment is not None:
                    await self._websocket.send_bytes(segment)
        except (TimeoutError, WebSocketDisconnect, RuntimeError, OSError) as error:
            # A message may be cut off from its segment: the client has to come back.
            self._closing = asyncio.create_task(self.close("the messages were not taken"))
            raise ConnectionError from error

    async def close(self, reason: str) -> None:
        """End the connection."""
        try:
            async with asyncio.timeout(1):
                await self._websocket.close(1000, reason)
        except (TimeoutError, WebSocketDisconnect, RuntimeError, OSError):
            pass


class Conversation:
    """What is said over one connection."""

    def __init__(self, server: Server, owner: str, socket: Socket) -> None:
        """Begin without a session.

        Args:
            server: Its parts.
            owner: Who is at the other end.
            socket: The connection.
        """
        self._server, self._owner, self._socket = server, owner, socket
        self._session: Session | None = None
        self._starting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._news: set[asyncio.Task[None]] = set()

    async def hear(self, message: ClientMessage) -> None:
        """Do what a message asks for; what takes time goes on by itself, in order."""
        match message:
            case Start():
                if self._starting is not None and not self._starting.done():
                    raise Problem(400, "is_starting", "A video is being started already; stop it first.")
                if message.session is not None:
                    session = self._server.sessions.find(self._owner, message.session)
                    if session.is_over:
                        raise Problem(
                            404, "session_over", "This session is over; start a new one.", "session"
                        )
                    if self._session is not None and self._session is not session:
                        self._session.delivery.detach(self._socket)
                    self._session = session
                    self._go_on(session.attach(self._socket, message.last, is_back=True))
                else:
                    self._starting = self._go_on(self._start(message))
            case Stop():
                await self._stop("stopped")
            case Ack():
                self._require().ack(message.track, message.chunk)
            case Pause() | Resume():
                self._require().pause(isinstance(message, Pause))
            case Prompt():
                session = self._require()
                self._go_on(self._set_prompt(session, message, session.viewed(message.track)))
            case Branch():
                self._go_on(self._branch(self._require(), message))
            case Rewind():
                self._go_on(self._require().rewind(message.track, message.chunk))

    async def leave(self) -> None:
        """The connection is lost; the session waits for another one, and does what it was asked for."""
        if self._starting is not None:
            self._starting.cancel()
        if self._session is not None:
            self._session.delivery.detach(self._socket)

    async def say(self, message: BaseModel) -> None:
        """Send a message, to whoever is still there."""
        with suppress(ConnectionError):
            await self._socket.send(message)

    async def explain(self, error: Exception) -> None:
        """Say what went wrong."""
        if isinstance(error, UserError):
            error = problem_of(error)
        if not isinstance(error, Problem):
            logger.error("a message could not be worked on", exc_info=error)
            error = Problem(500, "internal_error", "Something went wrong in the server; try again.")
        self._server.metrics.errors.labels(error.code).inc()
        await self.say(Failed(code=error.code, message=error.message, param=error.param))

    # --- what takes time ---------------------------------------------------------------------------------

    async def _start(self, message: Start) -> None:
        sessions = self._server.sessions
        if message.prompt is None:
            raise Problem(
                400, "bad_request", "The prompt is missing; say what the video shall show.", "prompt"
            )
        prompt = await self._prompt(message.prompt, expand=message.expand)
        async with self._options(prompt, message) as options:
            asked = await sessions.asked(prompt, options, message.beside)
        facts = self._server.fleet.facts
        said = {str(one): one for request in asked.requests for one in remarks(facts, request)}
        await self._remark(said.values())
        await self._stop("replaced", keep_starting=True)
        session = await sessions.begin(self._owner, asked, self._tell)
        self._session = session
        await session.attach(self._socket, {}, is_back=False)

    @asynccontextmanager
    async def _options(self, prompt: str, message: Start) -> AsyncIterator[dict[str, Any]]:
        """The options of a video; what it begins with is read from its upload."""
        server, options = self._server, options_of(message)
        if message.image is not None and message.clip is not None:
            raise Problem(
                400, "bad_request", "A video begins with an image or a clip; leave out one.", "clip"
            )
        reference = message.image or message.clip
        if reference is None:
            yield options
            return
        plain = await asyncio.to_thread(server.sessions.request, prompt, options)
        kind: Kind = "image" if message.image is not None else "clip"
        wanted = server.jobs.wanted(plain, kind)
        async with server.uploads.prepared(self._owner, reference, wanted) as path:
            yield options | {"image" if kind == "image" else "video": path}

    async def _set_prompt(self, session: Session, message: Prompt, viewed: int) -> None:
        prompt = await self._prompt(message.prompt, expand=message.expand)
        await self._remark_on_change(session, prompt)
        await session.set_prompt(message.track, prompt, message.fade, viewed)

    async def _branch(self, session: Session, message: Branch) -> None:
        prompt = None if message.prompt is None else await self._prompt(message.prompt)
        await session.branch(message.track, message.chunk, prompt, message.fade)
        if prompt is not None:
            await self._remark_on_change(session, prompt)

    async def _stop(self, reason: str, *, keep_starting: bool = False) -> None:
        if self._starting is not None and not keep_starting:
            self._starting.cancel()
            self._starting = None
        session, self._session = self._session, None
        if session is not None and not session.is_over:
            await session.end(reason)

    async def _prompt(self, text: str, *, expand: bool = False) -> str:
        """Check a prompt, and write it out if that is wished.

        Raises:
            Problem: If it is too long.
            BadRequest: If there is nothing in it.
        """
        most = self._server.settings.max_prompt
        if len(text) > most:
            message = f"The prompt has {len(text)} characters; take {most} at most."
            raise Problem(400, "bad_request", message, "prompt")
        if expand:
            text, why_not = await self._server.expanded(text)
            if why_not:
                await self.say(Warned(code="expansion_failed", message=why_not))
        (text,) = check_prompts(text)
        log_prompt(self._server.settings, self._owner, text)
        return text

    async def _remark_on_change(self, session: Session, prompt: str) -> None:
        facts = self._server.fleet.facts
        await self._remark([*remarks_on_prompts(facts, [prompt]), *remarks_on_change(facts, session.request)])

    async def _remark(self, said: Iterable[RequestWarning]) -> None:
        """Say what is done, but perhaps not as it was meant."""
        for one in said:
            words = list(one.words) if isinstance(one, UnknownWordsWarning) else []
            await self.say(Warned(code=REMARKS.get(type(one), "remark"), message=str(one), words=words))

    def _require(self) -> Session:
        if self._session is None or self._session.is_over:
            raise Problem(400, "not_started", "There is no video yet; send 'start' first.")
        return self._session

    def _tell(self, message: BaseModel) -> None:
        task = asyncio.create_task(self.say(message))
        self._news.add(task)
        task.add_done_callback(self._news.discard)

    def _go_on(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do something beside the messages that come, and say what goes wrong."""

        async def guarded() -> None:
            try:
                await work
            except ConnectionError:
                await self.leave()
            except Exception as error:
                await self.explain(error)

        if len(self._tasks) >= MOST_PENDING:
            work.close()
            raise Problem(429, "too_many_messages", "Too much was asked for at once; wait for the answers.")
        task = asyncio.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


@router.websocket("/v1/realtime")
async def realtime(websocket: WebSocket) -> None:
    """Watch and steer a video while it is made."""
    server: Server = websocket.app.state.server
    await websocket.accept()
    owner = owner_of(websocket)
    conversation = Conversation(server, owner, Socket(websocket))
    since, count = time.monotonic(), 0
    try:
        while True:
            received = await websocket.receive()
            if received["type"] == "websocket.disconnect":
                break
            now = time.monotonic()
            since, count = (now, 1) if now - since >= 1 else (since, count + 1)
            if count > server.settings.messages_per_second:  # let it wait: TCP tells the client
                await asyncio.sleep(max(since + 1 - now, 0))
            try:
                await conversation.hear(_parse(received.get("text")))
            except (Problem, UserError) as error:
                await conversation.explain(error)
    except WebSocketDisconnect:
        pass
    finally:
        await conversation.leave()


def _parse(text: str | None) -> ClientMessage:
    if text is None:
        raise Problem(400, "bad_message", "Messages are JSON text, not binary.")
    try:
        return CLIENT_MESSAGE.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or None
        raise Problem(400, "bad_message", f"This message cannot be read: {first['msg']}.", where) from None


# --- downloads -------------------------------------------------------------------------------------------


@router.get("/v1/realtime/{session}/{track}/video.mp4", response_class=FileResponse)
async def video(
    request: Request, session: str, track: int, first: int = 0, last: int | None = None
) -> Response:
    """The video so far, or the chunks from `first` to `last`, as an mp4."""
    found, live = _find(request, session, track)
    entries = live.recording.entries[max(first, 0) : None if last is None else last + 1]
    if not entries:
        raise Problem(404, "no_such_chunk", "There are no such chunks yet.", "first")
    fps = found.fleet.facts.preset.fps
    handle, name = tempfile.mkstemp(suffix=".mp4", dir=request.app.state.server.sessions.folder)
    os.close(handle)
    path = Path(name)

    def join() -> None:
        save_fragments(path, (found.archive.read(entry) for entry in entries), fps)

    try:
        await asyncio.to_thread(join)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    remove = BackgroundTask(path.unlink, missing_ok=True)
    return FileResponse(path, media_type="video/mp4", filename=f"video-{track}.mp4", background=remove)


@router.get("/v1/realtime/{session}/{track}/story.yaml", response_class=Response)
async def story(request: Request, session: str, track: int) -> Response:
    """The prompts of the video so far, for `dummyforcing generate --story`."""
    found, live = _find(request, session, track)
    if not live.recording.entries:
        raise Problem(404, "no_such_chunk", "There are no chunks yet.", "track")
    fps = found.fleet.facts.preset.fps
    end = live.recording.entries[-1].chunk
    scenes = [
        {"prompt": prompt} | ({"at": live.recording.entries[start].chunk.first_frame / fps} if start else {})
        for start, prompt in live.recording.scenes()
    ]
    text = f"# seed {found.request.seed}, policy {live.policy}\n" + yaml.safe_dump(
        {"seconds": (end.first_frame + end.frames) / fps, "scenes": scenes},
        sort_keys=False,
        allow_unicode=True,
    )
    headers = {"Content-Disposition": f'attachment; filename="story-{track}.yaml"'}
    return Response(text, media_type="application/yaml", headers=headers)


@router.get("/v1/realtime/{session}/{track}/plan.json", response_class=Response)
async def plan(request: Request, session: str, track: int) -> Response:
    """The head plan of the video, for `dummyforcing generate --plan`."""
    _, live = _find(request, session, track)
    if live.plan is None or live.plan.chunk is None:
        raise Problem(404, "no_plan", "The heads of this video are not classified, or not yet.", "track")
    headers = {"Content-Disposition": f'attachment; filename="plan-{track}.json"'}
    return Response(as_text(live.plan.to_fields()), media_type="application/json", headers=headers)


def _find(request: Request, session: str, track: int) -> tuple[Session, LiveTrack]:
    server: Server = request.app.state.server
    found = server.sessions.find(owner_of(request), session)
    if track not in found.tracks:
        raise Problem(404, "no_such_track", f"There is no track {track} in this session.", "track")
    return found, found.tracks[track]
