"""Limits that hold for every request: how many in a minute, and how large and slow a body may be."""

import asyncio
import math
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dummyforcing.server.settings import Settings, parse_bytes
from dummyforcing.server.web.problems import Problem

BODY = 10**6
"""Bytes of a request that uploads nothing."""
UPLOADS = ("/v1/files", "/v1/videos")
"""Where forms with files are sent to."""
PATIENCE = 30.0
"""Seconds without a byte of a body that was announced."""
TABLE = 10_000
"""Clients whose rate is known at once; then the one that was not seen for longest is forgotten."""


@dataclass
class Rates:
    """Requests per minute of each client: a bucket that fills steadily and may be emptied at once."""

    per_minute: int
    _buckets: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)
    """What is left, and since when."""

    def take(self, client: str, now: float | None = None) -> float:
        """Count a request.

        Args:
            client: Whose.
            now: Seconds of a clock; None: the monotonic one.

        Returns:
            Seconds to wait before the next try; 0: the request is allowed.
        """
        now = time.monotonic() if now is None else now
        per_second = self.per_minute / 60
        left, since = self._buckets.get(client, (float(self.per_minute), now))
        left = min(self.per_minute, left + (now - since) * per_second)
        is_allowed = left >= 1
        self._buckets[client] = (left - 1 if is_allowed else left, now)
        self._buckets.move_to_end(client)
        while len(self._buckets) > TABLE:
            self._buckets.popitem(last=False)
        return 0.0 if is_allowed else (1 - left) / per_second

    def check(self, client: str) -> None:
        """Count a request.

        Raises:
            Problem: If there were too many.
        """
        wait = self.take(client)
        if wait:
            seconds = math.ceil(wait)
            raise Problem(
                429,
                "rate_limit_exceeded",
                f"There may be {self.per_minute} requests per minute; try again in {seconds} s.",
                **{"Retry-After": str(seconds)},
            )


class BodyLimit:
    """Refuses bodies that are too large, whatever their headers say, and gives up on those that stall."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        """Take what is behind it.

        Args:
            app: That.
            settings: With the size of uploads.
        """
        self.app, self.upload = app, parse_bytes(settings.max_body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        most = self._most(scope["path"], headers)
        size = headers.get(b"content-length", b"0")
        if size.isdigit() and (len(size) > 18 or int(size) > most):
            await _refuse(_too_large(most), scope, receive, send)
            return

        left, is_whole, has_begun = most, False, False
        problem: Problem | None = None

        async def bounded_receive() -> Message:
            nonlocal left, is_whole, problem
            if problem:
                return {"type": "http.disconnect"}
            try:
                async with asyncio.timeout(None if is_whole else PATIENCE):
                    message = await receive()
            except TimeoutError:
                problem = Problem(
                    408, "timeout", f"No byte of the body came for {PATIENCE:g} s; send it again."
                )
                return {"type": "http.disconnect"}
            left -= len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if left < 0:
                problem = _too_large(most)
                return {"type": "http.disconnect"}
            return message

        async def send_unless_refused(message: Message) -> None:
            nonlocal has_begun
            if problem and not has_begun:
                return  # what the application makes of half a body is of no interest
            has_begun = True
            await send(message)

        try:
            await self.app(scope, bounded_receive, send_unless_refused)
        except Exception:
            if problem is None or has_begun:
                raise
        if problem and not has_begun:
            await _refuse(problem, scope, receive, send)

    def _most(self, path: str, headers: dict[bytes, bytes]) -> int:
        is_form = headers.get(b"content-type", b"").lower().startswith(b"multipart/form-data")
        return max(self.upload, BODY) if is_form and path in UPLOADS else BODY


def _too_large(most: int) -> Problem:
    return Problem(413, "too_large", f"The body may have {most / 1e6:g} MB here; send a smaller one.")


async def _refuse(problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
    # The rest of the body is not read: the connection cannot serve another request.
    headers = {**problem.headers, "Connection": "close"}
    await JSONResponse(problem.body(), problem.status, headers)(scope, receive, send)
