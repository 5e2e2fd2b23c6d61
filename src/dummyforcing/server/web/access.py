"""Who gets in: keys, the page's cookie, and which names and which sites a request may come by.

A browser sends requests for any page that is open in it. So a request must name this server (else somebody
bound his name to our address), and one that changes something must come from a page of this server.
"""

import hashlib
import hmac
import ipaddress
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dummyforcing.errors import BadFile, BadRequest
from dummyforcing.files.reading import read_text
from dummyforcing.server.settings import PREFIX, Settings, several
from dummyforcing.server.web.limits import Rates
from dummyforcing.server.web.problems import Problem
from dummyforcing.server.web.refusals import DOCUMENTED

LEAST = 16
"""Characters of a key."""
LOCAL = "local"
"""Who everybody is where there are no keys."""
COOKIE = "dummyforcing"
LASTS = 12 * 3600
"""Seconds for which a login is good."""
LOGINS = 1000
"""Logins that are kept at once; then the oldest one ends."""
OPEN = ("/", "/login", "/logout", "/health", "/ready")
"""What needs no key, beside the files of the page."""
SAFE = ("GET", "HEAD", "OPTIONS")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; connect-src 'self'; "
        "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "X-Frame-Options": "DENY",
}
"""Of every response."""


class Keys:
    """The keys that let clients in, and the logins of pages that showed one."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        """Take the keys; without any, everybody is let in."""
        self._digests = [hashlib.sha256(key.encode()).digest() for key in dict.fromkeys(keys)]
        self._logins: OrderedDict[bytes, tuple[str, float]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._digests)

    def owner(self, key: str) -> str | None:
        """Who shows a key, as a short name that does not tell it; None: it is no key."""
        given = hashlib.sha256(key.encode(errors="surrogatepass")).digest()
        # All of them are compared: the time says nothing about which one is the nearest.
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return given.hex()[:12] if any(matches) else None

    def log_in(self, key: str) -> str | None:
        """Begin a login with a key.

        Returns:
            Its token; None: it is no key.
        """
        owner = self.owner(key)
        if owner is None:
            return None
        token = secrets.token_urlsafe(32)
        self._logins[_digest(token)] = owner, time.monotonic() + LASTS
        mine = [one for one, (whose, _) in self._logins.items() if whose == owner]
        for oldest in mine[:-LOGINS]:  # of the same key: nobody logs others out
            del self._logins[oldest]
        return token

    def log_out(self, token: str) -> None:
        """End a login."""
        self._logins.pop(_digest(token), None)

    def owner_of_login(self, token: str) -> str | None:
        """Who logged in; None: nobody, or too long ago."""
        owner, until = self._logins.get(_digest(token), ("", 0.0))
        return owner if time.monotonic() < until else None


def _digest(token: str) -> bytes:
    """What a token is kept as: looking it up takes a time that says nothing about the others."""
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()


def read_keys(settings: Settings) -> Keys:
    """The keys of the settings.

    Raises:
        UserError: If the file cannot be read or has a bad key, or others could get in unasked.
    """
    keys = _of_file(Path(settings.api_key_file)) if settings.api_key_file is not None else []
    if settings.api_key is not None:
        keys.append(_checked(settings.api_key, f"{PREFIX}API_KEY"))
    if keys and settings.no_auth:
        raise BadRequest("no_auth=True lets everybody in, and there are keys", "leave out one of them")
    if not keys and not settings.no_auth and not settings.is_local:
        raise BadRequest(
            f"Other machines can reach host={settings.host}, and there are no keys",
            f"give api_key_file= or the variable {PREFIX}API_KEY, or no_auth=True to let anybody in",
        )
    return Keys(keys)


def _of_file(path: Path) -> list[str]:
    try:
        lines = read_text(path).splitlines()
    except OSError as error:
        raise BadFile(
            f"{path} cannot be read ({error.strerror})", "give a file of keys, one a line", "api_key_file"
        ) from error
    except ValueError as error:
        raise BadFile(
            f"{path} is no text ({error})", "give a file of keys, one a line", "api_key_file"
        ) from error
    found = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    keys = [_checked(line, f"{path}, line {number}") for number, line in found if line and line[0] != "#"]
    if not keys:
        remedy = "write one into it, such as the output of `openssl rand -hex 32`"
        raise BadFile(f"{path} has no key", remedy, "api_key_file")
    return keys


def _checked(key: str, where: str) -> str:
    if len(key) < LEAST or not key.isascii() or not key.isprintable() or " " in key:
        raise BadFile(
            f"The key of {where} cannot be used",
            f"take {LEAST} letters and digits or more, such as the output of `openssl rand -hex 32`",
        )
    return key


def owner_of(connection: HTTPConnection) -> str:
    """Who asks: sessions, jobs and uploads belong to the key that made them."""
    owner: str = getattr(connection.state, "owner", LOCAL)
    return owner


class Access:
    """Lets requests through to the application that may be made, and says no to all others."""

    def __init__(self, app: ASGIApp, settings: Settings, keys: Keys, rates: Rates) -> None:
        """Take what is behind it.

        Args:
            app: That.
            settings: Names and sites.
            keys: Without any, everybody is let in.
            rates: How often one may ask.
        """
        self.app, self.keys, self.rates = app, keys, rates
        names = ["localhost", settings.host, *several(settings.allowed_host)]
        self._names = {_name(name) for name in names} - {""}
        self._origins = {_origin(origin) for origin in several(settings.cors)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        try:
            scope.setdefault("state", {})["owner"] = self._admit(connection)
        except Problem as problem:
            # On a WebSocket this is the answer to the handshake.
            await JSONResponse(problem.body(), problem.status, problem.headers)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _admit(self, connection: HTTPConnection) -> str:
        """Who asks.

        Raises:
            Problem: If it may not be asked.
        """
        host = connection.headers.get("host", "")
        if not self._is_known(host):
            raise Problem(
                421,
                "wrong_host",
                "This server has another name; use its address, or start it with --allowed-host.",
            )
        scope = connection.scope
        if scope["type"] == "websocket" or scope["method"] not in SAFE:
            self._require_own_page(connection.headers, host)

        owner = self._owner(connection)
        if scope["path"] not in ("/health", "/ready"):  # who watches over the server is not to be turned away
            address = scope["client"][0] if scope.get("client") else ""
            self.rates.check(f"key {owner}" if owner and self.keys else f"address {address}")
        if owner is None and not _is_open(scope):
            raise Problem(
                401,
                "invalid_api_key",
                "This needs a key: send the header 'Authorization: Bearer KEY', or log in on the page.",
                **{"WWW-Authenticate": "Bearer"},
            )
        return owner or LOCAL

    def _is_known(self, host: str) -> bool:
        """Whether a Host header names this server; any address does, as only names can be bound anew."""
        name = _name(host)
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _require_own_page(self, headers: Headers, host: str) -> None:
        """Refuse what a browser sends for a page of another site; other programs name no site."""
        origin = headers.get("origin")
        if origin is None:
            return
        found = _origin(origin)
        if found is None or (found not in self._origins and found != _origin(f"{found[0]}://{host}")):
            raise Problem(
                403,
                "wrong_origin",
                "Pages of that site may not use this server; its owner can allow it with --cors.",
            )

    def _owner(self, connection: HTTPConnection) -> str | None:
        if not self.keys:
            return LOCAL
        scheme, _, key = connection.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self.keys.owner(key.strip())
        token = connection.cookies.get(COOKIE)
        return self.keys.owner_of_login(token) if token else None


def _name(host: str) -> str:
    """The name or address in a Host header, without its port; empty: there is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _origin(text: str) -> tuple[str, str, int] | None:
    """Scheme, name and port of an origin; None: it is none."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return None
    return parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80)


def _is_open(scope: Scope) -> bool:
    path: str = scope["path"]
    return scope["type"] == "http" and (path in OPEN or path.startswith("/page/"))


class SafeHeaders:
    """Adds to every response what keeps browsers from misusing it."""

    def __init__(self, app: ASGIApp) -> None:
        """Take what is behind it."""
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, send_with_headers)


# --- the page's login ---------------------------------------------------------------------------------------


class Login(BaseModel):
    """A key that a page shows."""

    model_config = ConfigDict(extra="forbid")

    key: str = Field(max_length=1000)


router = APIRouter(tags=["access"], responses=DOCUMENTED)


@router.post("/login", status_code=204)
async def log_in(login: Login, request: Request) -> Response:
    """Show a key, and get a cookie in return; where no key is needed there is none."""
    keys: Keys = request.app.state.server.keys
    response = Response(status_code=204)
    if keys:
        token = keys.log_in(login.key)
        if token is None:
            raise Problem(401, "invalid_api_key", "There is no such key; look at it again.", "key")
        response.set_cookie(
            COOKIE,
            token,
            max_age=LASTS,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
    return response


@router.post("/logout", status_code=204)
async def log_out(request: Request) -> Response:
    """End the login of this page."""
    token = request.cookies.get(COOKIE)
    if token:
        request.app.state.server.keys.log_out(token)
    response = Response(status_code=204)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return response
