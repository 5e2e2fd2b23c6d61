"""Starts real servers for tests, in a thread, on a free port of loopback, and ends them."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI

from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from dummyforcing.server.app import create_app
from dummyforcing.server.engine import Engine
from dummyforcing.server.fleet import OneReplica, Replicas
from dummyforcing.server.parts import Server
from dummyforcing.server.replicas.replica import LocalReplica
from dummyforcing.server.run import LiveServer, listening
from dummyforcing.server.settings import read_settings


@dataclass(frozen=True)
class Serving:
    """A server that is running."""

    url: str
    app: FastAPI
    stop: Callable[[], None]
    """Ask it to end, as SIGTERM does."""

    @property
    def parts(self) -> Server:
        """Its parts; only to look at, from outside of its thread."""
        parts: Server = self.app.state.server
        return parts

    @property
    def engine(self) -> Engine:
        """That of its only replica."""
        (engine,) = self.parts.fleet.engines
        return engine


@contextmanager
def serving(model: DummyForcingPipeline | Replicas, **settings: Any) -> Iterator[Serving]:
    """Run a server until the block ends; it is warm when the block begins."""
    if isinstance(model, DummyForcingPipeline):
        model = OneReplica(LocalReplica(model))
    app = create_app(read_settings(settings), model)
    running, listener = LiveServer(app, lambda: None), listening("127.0.0.1", 0)
    port = listener.getsockname()[1]
    thread = threading.Thread(target=lambda: asyncio.run(running.serve_at(listener)), daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not (running.started and app.state.server.fleet.is_ready):
        assert thread.is_alive(), "the server ended"
        assert time.monotonic() < deadline, "the server does not start"
        time.sleep(0.02)

    def stop() -> None:
        running.should_exit = True

    try:
        yield Serving(f"http://127.0.0.1:{port}", app, stop)
    finally:
        stop()
        thread.join(30)
        assert not thread.is_alive(), "the server does not end"
