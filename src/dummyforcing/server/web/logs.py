"""The log: a line for every request, as text for people or as JSON for programs, with the request's id.

What clients send is never a format, and cannot end a line. Prompts are left out unless the settings say so.
"""

import json
import logging
import re
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dummyforcing.server.settings import Settings
from dummyforcing.server.web.metrics import Metrics
from dummyforcing.server.web.problems import Problem

logger = logging.getLogger(__name__)

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Of the request that is being answered."""
OURS = ("dummyforcing.server", "uvicorn", "asyncio", "websockets")
"""Loggers whose messages belong into the server's log."""
QUIET = ("/health", "/ready", "/metrics")
"""What is asked for all the time, and is not worth a line while all is well."""


@contextmanager
def logging_to_stderr(settings: Settings) -> Iterator[None]:
    """Write the log to stderr for as long as the block runs."""
    is_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if is_json else _Text())
    loggers = [logging.getLogger(name) for name in OURS]
    before = [(one.level, one.propagate) for one in loggers]
    for one in loggers:
        one.addHandler(handler)
        one.setLevel(logging.INFO if one.name == OURS[0] else logging.WARNING)
        one.propagate = False  # else a handler of the root would say it again
    try:
        yield
    finally:
        for one, (level, propagates) in zip(loggers, before, strict=True):
            one.removeHandler(handler)
            one.setLevel(level)
            one.propagate = propagates


def log_prompt(settings: Settings, owner: str, prompt: str) -> None:
    """Note what somebody wants to see, if the settings allow it."""
    if settings.log_prompts:
        logger.info("prompt", extra={"fields": {"owner": owner, "prompt": prompt}})


class _Json(logging.Formatter):
    """A line of JSON for every message."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": REQUEST_ID.get(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps({name: value for name, value in line.items() if value is not None})


class _Text(logging.Formatter):
    """A line for people; only a traceback has more."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {"request_id": REQUEST_ID.get(), **getattr(record, "fields", {})}
        parts = [time.strftime("%H:%M:%S", time.localtime(record.created))]
        if record.levelno > logging.INFO:
            parts.append(record.levelname)
        parts.append(json.dumps(record.getMessage(), ensure_ascii=False)[1:-1])
        parts += [f"{name}={json.dumps(value)}" for name, value in fields.items() if value is not None]
        if record.exc_info:
            parts.append("\n" + self.formatException(record.exc_info))
        return " ".join(parts)


class RequestLog:
    """Gives every request an id, logs and counts it, and keeps the tracebacks of errors from its client."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        """Take what is behind it.

        Args:
            app: That.
            metrics: Counts requests.
        """
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        token = REQUEST_ID.set(request_id)
        start, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
                status = message["status"]
            elif message["type"] == "websocket.accept":
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
                status = 101
            elif message["type"] == "websocket.close" and not status:
                status = 403
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception:
            logger.exception("request failed")
            has_begun, status = bool(status), 500
            if has_begun:
                # Nothing can be said any more but that the rest does not come: whoever called us ends it.
                if scope["type"] == "http":
                    raise
                await _close(send)
            else:
                await _failed(request_id)(scope, receive, send_with_id)
        finally:
            self._note(scope, status, time.perf_counter() - start)
            REQUEST_ID.reset(token)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        method = scope.get("method", "WEBSOCKET")
        route = _route(scope)
        self.metrics.request_done(method, route or "none", status, seconds)
        if route in QUIET and status < 400:
            return
        fields: dict[str, Any] = {
            "method": method,
            "path": scope["path"][:200],
            "route": route,
            "status": status,
            "ms": round(1000 * seconds, 1),
            "owner": scope["state"].get("owner"),
        }
        logger.info("request", extra={"fields": fields})


def _route(scope: Scope) -> str | None:
    """The template of the path, such as /v1/videos/{video_id}; None: there is no such path."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else None


def _failed(request_id: str) -> JSONResponse:
    problem = Problem(
        500,
        "internal_error",
        f"Something went wrong here; the log of the server has it as request {request_id}.",
    )
    return JSONResponse(problem.body(), problem.status)


async def _close(send: Send) -> None:
    try:
        await send({"type": "websocket.close", "code": 1011, "reason": "internal error"})
    except Exception:  # closed already
        logger.debug("the connection was closed before")
