"""Runs the application until somebody says stop: sockets, timeouts and signals.

with listening("127.0.0.1", 8000) as listener:
    run(app, listener, started=lambda: print("ready"))
"""

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from dummyforcing.errors import BadRequest

LINE = 16_384
"""Bytes of headers that are kept while the rest of them is waited for."""
MESSAGE = 10**6
"""Bytes of a message on a WebSocket."""
HEADER_SECONDS = 10.0
"""Until the headers of a request are there."""
CONNECTIONS = 1000
"""At once; further requests are answered with 503."""
GRACE = 3
"""Seconds in which viewers are told after a signal, and in which responses are finished after that."""
LIMIT = 8.0
"""Seconds after which the process ends, finished or not; the interpreter takes some for its own end."""


def listening(host: str, port: int) -> socket.socket:
    """Take a port, so that nobody else does while the model is loaded.

    Raises:
        BadRequest: If it cannot be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, *_, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        return socket.create_server(address[:2], family=family)
    except socket.gaierror as error:
        raise BadRequest(
            f"There is no address host={host}", "give one of this machine's own", "host"
        ) from error
    except OSError as error:
        why = os.strerror(error.errno).lower() if error.errno else str(error)
        raise BadRequest(
            f"Nothing can listen at port {port} of {host} ({why})",
            "give another one; 0 takes a free one",
            "port",
        ) from error


class _Protocol(H11Protocol):
    """HTTP, which gives up on a client that does not get its headers out."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Wait for headers while no request is there; between two of them the keep-alive timeout holds."""
        is_whole = self.cycle is not None and not self.cycle.response_complete
        if is_whole or self.transport.get_protocol() is not self:  # else: a WebSocket by now
            self._stop_watching()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def _stop_watching(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class LiveServer(uvicorn.Server):
    """Uvicorn's server, which tells the application before it ends the connections."""

    def __init__(self, app: FastAPI, started: Callable[[], None], *, trust_proxy: bool = False) -> None:
        """Set the limits.

        Args:
            app: From `create_app`.
            started: Called when the first request can come.
            trust_proxy: Take address and scheme of a client from headers that a proxy on this machine adds.
        """
        config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="websockets-sansio",
            ws_max_size=MESSAGE,
            ws_per_message_deflate=False,  # video is compressed already
            h11_max_incomplete_event_size=LINE,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=GRACE,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=trust_proxy,  # else anybody could say that he is somebody else
        )
        super().__init__(config)
        self._app, self._started = app, started
        self.is_interrupted = False

    async def serve_at(self, listener: socket.socket) -> None:
        """Serve until a signal comes, or `should_exit` is set."""
        # Not by uvicorn, which would turn an error into a traceback in its log.
        async with self._app.router.lifespan_context(self._app):
            await self.serve([listener])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self._started()

    async def on_tick(self, counter: int) -> bool:
        """Whether to end, asked ten times a second."""
        return await super().on_tick(counter) or self._app.state.server.has_failed

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell those who watch, then end the connections."""
        with suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                await self._app.state.server.begin_closing()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take signals until the block ends."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # Uvicorn would raise them again, in the middle of our own ending.
        taken = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))
        before = {one: signal.getsignal(one) for one in taken}
        for one, handler in before.items():
            if handler is not signal.SIG_IGN:  # nohup
                signal.signal(one, self.handle_exit)
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End because of a signal, however long a chunk takes."""
        super().handle_exit(sig, frame)
        self.is_interrupted = self.is_interrupted or sig == signal.SIGINT
        # A chunk may take longer than anybody waits for the end of a process; its job begins again.
        last = threading.Timer(LIMIT, os._exit, (130 if self.is_interrupted else 0,))
        last.daemon = True
        last.start()


def run(
    app: FastAPI, listener: socket.socket, started: Callable[[], None], *, trust_proxy: bool = False
) -> None:
    """Serve until a signal comes; then tell who watches, finish the chunk in hand, and return.

    Args:
        app: From `create_app`.
        listener: From `listening`.
        started: Called when the first request can come.
        trust_proxy: See `LiveServer`.

    Raises:
        UserError: If the server could not start.
        KeyboardInterrupt: If that was the signal.
        SystemExit: If the model's work ended with an error.
    """
    server = LiveServer(app, started, trust_proxy=trust_proxy)
    asyncio.run(server.serve_at(listener))
    if app.state.server.has_failed:
        raise SystemExit(1)
    if server.is_interrupted:
        raise KeyboardInterrupt
