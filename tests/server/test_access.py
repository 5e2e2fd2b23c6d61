"""Who gets in: a real server with keys, asked as clients, browsers and strangers would."""

import asyncio
import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import connect

from dummyforcing.errors import UserError
from dummyforcing.server.settings import read_settings
from dummyforcing.server.web import access
from dummyforcing.server.web.access import LASTS, Access, Keys, read_keys
from dummyforcing.server.web.limits import TABLE, BodyLimit, Rates
from tests.server.process import Process, running

KEY = "correct-horse-battery-staple"
OTHER = "another-key-of-enough-characters"
BEARER = f"Bearer {KEY}"


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server with two keys."""
    folder = tmp_path_factory.mktemp("keyed")
    keys = folder / "keys.txt"
    keys.write_text(f"# for the tests\n{KEY}\n\n  {OTHER}  \n")
    flags = ("--api-key-file", str(keys), "--cors", "https://app.example", "--log-format", "json")
    with running(folder / "log", *flags, "--allowed-host", "video.example") as server:
        yield server


def log_in(server: Process, key: str = KEY) -> str:
    """The cookie of a login."""
    answer = server.ask("POST", "/login", json.dumps({"key": key}).encode(), Content_Type="application/json")
    assert answer.status == 204
    return answer.headers["set-cookie"]


def test_what_is_open_and_what_needs_a_key(keyed: Process) -> None:
    assert keyed.ask("GET", "/health").status == 200
    assert keyed.ask("GET", "/ready").status in (200, 503)
    assert keyed.ask("GET", "/").status != 401
    for path in ("/metrics", "/openapi.json", "/docs", "/v1/videos", "/nothing", "/page", "/health/"):
        refused = keyed.ask("GET", path)
        assert (refused.status, refused.code) == (401, "invalid_api_key"), path
        assert refused.headers["www-authenticate"] == "Bearer"
    assert keyed.ask("GET", "/metrics", Authorization=BEARER).status == 200
    assert keyed.ask("GET", "/metrics", Authorization=f"bearer {OTHER}").status == 200


@pytest.mark.parametrize(
    "key", ["", "x" * 40, KEY[:-1], KEY + "x", KEY.upper(), "# for the tests", "\xe9" * 20]
)
def test_other_keys_are_refused(keyed: Process, key: str) -> None:
    for scheme in ("Bearer ", "Basic ", ""):
        assert keyed.ask("GET", "/metrics", Authorization=scheme + key).status == 401
    body = json.dumps({"key": key}).encode()
    assert keyed.ask("POST", "/login", body, Content_Type="application/json").status == 401


def test_a_page_logs_in_and_out_with_a_cookie(keyed: Process) -> None:
    given = log_in(keyed)
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(given.split("; "))
    assert "Secure" not in given  # by http; a proxy that speaks https says so
    assert KEY not in given
    cookie = given.partition(";")[0]
    assert cookie != log_in(keyed).partition(";")[0]
    assert keyed.ask("GET", "/metrics", Cookie=cookie).status == 200
    assert keyed.ask("GET", "/metrics", Cookie=cookie + "x").status == 401
    assert keyed.ask("POST", "/logout", Cookie=cookie).status == 204
    assert keyed.ask("GET", "/metrics", Cookie=cookie).status == 401


def test_who_says_that_he_comes_through_a_proxy_is_not_believed(keyed: Process) -> None:
    body = json.dumps({"key": KEY}).encode()
    answer = keyed.ask("POST", "/login", body, Content_Type="application/json", X_Forwarded_Proto="https")
    assert "Secure" not in answer.headers["set-cookie"].split("; ")


@pytest.mark.slow
def test_a_cookie_of_https_goes_by_https_alone(tmp_path: Path) -> None:
    body = json.dumps({"key": KEY}).encode()
    with running(tmp_path / "log", "--trust-proxy", DUMMYFORCING_API_KEY=KEY) as keyed:
        answer = keyed.ask("POST", "/login", body, Content_Type="application/json", X_Forwarded_Proto="https")
    assert "Secure" in answer.headers["set-cookie"].split("; ")


@pytest.mark.parametrize(
    "name", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "[::1", "a@b:x"]
)
def test_other_names_are_refused(keyed: Process, name: str) -> None:
    for path in ("/health", "/metrics", "/"):
        answer = keyed.ask("GET", path, Host=name, Authorization=BEARER)
        assert (answer.status, answer.code) == (421, "wrong_host")


@pytest.mark.parametrize(
    "name", ["127.0.0.1", "localhost", "LocalHost:1", "[::1]:8000", "video.example", "10.0.0.7:80"]
)
def test_its_own_names_are_known(keyed: Process, name: str) -> None:
    assert keyed.ask("GET", "/health", Host=name).status == 200


def test_other_sites_cannot_change_anything(keyed: Process) -> None:
    cookie = log_in(keyed).partition(";")[0]
    for origin in (
        "http://evil.example",
        "null",
        f"http://127.0.0.1:{keyed.port + 1}",
        f"http://localhost:{keyed.port}",
    ):
        for method, path in (("POST", "/login"), ("DELETE", "/v1/videos/x"), ("POST", "/v1/videos")):
            answer = keyed.ask(method, path, b"{}", Origin=origin, Cookie=cookie)
            assert (answer.status, answer.code) == (403, "wrong_origin"), origin
    own = {"Origin": f"http://127.0.0.1:{keyed.port}", "Cookie": cookie}
    assert keyed.ask("POST", "/logout", headers=own).status == 204


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": f"Bearer {KEY}x"}, 401),
        ({"Authorization": BEARER, "Origin": "http://evil.example"}, 403),
        ({"Authorization": BEARER, "Origin": "null"}, 403),
    ],
)
def test_sockets_are_refused_before_they_open(keyed: Process, headers: dict[str, str], status: int) -> None:
    with pytest.raises(InvalidStatus) as refused:
        connect(f"ws://127.0.0.1:{keyed.port}/v1/realtime", additional_headers=headers).close()
    assert refused.value.response.status_code == status


def test_sockets_under_another_name_are_refused(keyed: Process) -> None:
    address = f"ws://evil.example:{keyed.port}/v1/realtime"
    with pytest.raises(InvalidStatus) as refused, socket.create_connection(("127.0.0.1", keyed.port)) as own:
        connect(address, sock=own, additional_headers={"Authorization": BEARER}).close()
    assert refused.value.response.status_code == 421


def test_sockets_open_with_a_key_or_the_cookie(keyed: Process) -> None:
    cookie = log_in(keyed).partition(";")[0]
    origin = f"http://127.0.0.1:{keyed.port}"
    for headers in ({"Authorization": BEARER}, {"Cookie": cookie, "Origin": origin}):
        with connect(f"ws://127.0.0.1:{keyed.port}/v1/realtime", additional_headers=headers) as live:
            live.send("{}")
            assert json.loads(live.recv(10))["type"] == "error"


def test_one_other_site_may_be_allowed(keyed: Process) -> None:
    asked = keyed.ask(
        "OPTIONS",
        "/v1/videos",
        Origin="https://app.example",
        Access_Control_Request_Method="POST",
        Access_Control_Request_Headers="authorization",
    )
    assert asked.status == 200
    assert asked.headers["access-control-allow-origin"] == "https://app.example"
    refused = keyed.ask("GET", "/metrics", Origin="https://app.example")
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, "https://app.example")
    stranger = keyed.ask(
        "OPTIONS", "/v1/videos", Origin="https://evil.example", Access_Control_Request_Method="POST"
    )
    assert "access-control-allow-origin" not in stranger.headers


def test_every_response_is_safe_in_a_browser(keyed: Process) -> None:
    for method, path in (("GET", "/health"), ("GET", "/metrics"), ("GET", "/nothing"), ("POST", "/login")):
        headers = keyed.ask(method, path).headers
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["object-src"] == policy["base-uri"] == "'none'"
        assert not re.search(r"unsafe|\*|http", headers["content-security-policy"])
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers
        assert "access-control-allow-origin" not in headers


def test_requests_have_an_id_and_the_log_no_key(keyed: Process) -> None:
    assert (
        keyed.ask("GET", "/nothing", X_Request_ID="my-own.id_7", Authorization=BEARER).headers["x-request-id"]
        == "my-own.id_7"
    )
    for bad in ("a b", "x" * 65, 'a"b', "\xe9"):
        assert re.fullmatch(
            r"[0-9a-f]{32}", keyed.ask("GET", "/health", X_Request_ID=bad).headers["x-request-id"]
        )
    keyed.ask("GET", '/a%0A{"level":"critical"}%1b[31m?prompt=secret', Authorization=BEARER)
    text = keyed.log.read_text()
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    mine = next(line for line in lines if line.get("request_id") == "my-own.id_7")
    assert (mine["method"], mine["path"], mine["status"]) == ("GET", "/nothing", 404)
    assert mine["owner"] == Keys([KEY]).owner(KEY)
    assert not any(line["level"] == "critical" for line in lines)
    assert "\x1b" not in text
    for secret in (KEY, OTHER, "secret", log_in(keyed).partition("=")[2].partition(";")[0]):
        assert secret not in keyed.log.read_text()


# --- limits -------------------------------------------------------------------------------------------------


def request(length: str, *more: str) -> bytes:
    """The beginning of a POST to /login."""
    lines = [
        "POST /login HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/json",
        length,
        *more,
        "",
        "",
    ]
    return "\r\n".join(lines).encode()


def test_bodies_are_limited_whatever_they_say_of_themselves(keyed: Process) -> None:
    announced = keyed.send_raw(request("Content-Length: 2000000"))
    assert announced.startswith(b"HTTP/1.1 413")
    assert json.loads(announced.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_large"
    chunk = b"%x\r\n%s\r\n" % (50_000, b" " * 50_000)
    assert keyed.send_raw(request("Transfer-Encoding: chunked"), *[chunk] * 30).startswith(b"HTTP/1.1 413")
    huge = keyed.send_raw(request("Content-Length: " + "9" * 30))
    assert huge.startswith((b"HTTP/1.1 413", b"HTTP/1.1 400"))
    both = keyed.send_raw(
        request("Content-Length: 5", "Transfer-Encoding: chunked", "Connection: close"),
        b"5\r\n{}   \r\n0\r\n\r\n",
    )
    assert both.startswith(b"HTTP/1.1 4")
    # What follows a body that is longer than it said is no part of it.
    longer = keyed.send_raw(request("Content-Length: 2", "Connection: close"), b"{}" + b"x" * 3000)
    assert longer.startswith((b"HTTP/1.1 422", b"HTTP/1.1 400"))
    assert keyed.ask("GET", "/health").status == 200


def test_headers_are_limited(keyed: Process) -> None:
    start = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nX: "
    end = b"\r\n\r\n"
    assert keyed.send_raw(start, b"x" * 8000, end).startswith(b"HTTP/1.1 200")
    # The answer may be lost, as the connection ends while more is on its way.
    assert keyed.send_raw(start, b"x" * 600_000, end)[:12] in (b"HTTP/1.1 400", b"")


@pytest.mark.slow
def test_headers_that_never_end_are_given_up(keyed: Process) -> None:
    assert keyed.send_raw(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n", wait=15) == b""
    assert keyed.ask("GET", "/health").status == 200


def test_messages_on_a_socket_are_limited(keyed: Process) -> None:
    with connect(
        f"ws://127.0.0.1:{keyed.port}/v1/realtime", additional_headers={"Authorization": BEARER}
    ) as live:
        live.send("x" * 1_100_000)
        with pytest.raises(ConnectionClosedError, match="1009"):
            live.recv(10)


def test_no_answer_has_a_traceback(keyed: Process) -> None:
    for path, body in (
        ("/login", b"{"),
        ("/login", b"\xff\xfe"),
        ("/login", b"[" * 100_000),
        ("/nothing", b""),
    ):
        answer = keyed.ask("POST", path, body, Content_Type="application/json", Authorization=BEARER)
        assert 400 <= answer.status < 500
        assert b"Traceback" not in answer.body
        assert b".py" not in answer.body


def guarded(rates: Rates, *keys: str, **settings: object) -> TestClient:
    """A small application behind the same doors."""

    async def length(request: Request) -> Response:
        return JSONResponse(len(await request.body()))

    app = Starlette(routes=[Route("/v1/files", length, methods=["POST"]), Route("/ready", length)])
    chosen = read_settings(settings)
    behind = BodyLimit(app, chosen)
    return TestClient(Access(behind, chosen, Keys(keys), rates), "http://127.0.0.1")


def test_uploads_may_be_larger_than_other_bodies() -> None:
    client = guarded(Rates(600), max_body="3MB")
    form = {"Content-Type": "multipart/form-data; boundary=x"}

    def parts(size: int) -> Iterator[bytes]:  # of a length that no header tells
        yield from [b" " * 100_000] * (size // 100_000)

    assert client.post("/v1/files", content=parts(2_900_000), headers=form).json() == 2_900_000
    assert client.post("/v1/files", content=parts(3_100_000), headers=form).status_code == 413
    assert client.post("/v1/files", content=parts(1_000_000)).json() == 1_000_000
    assert client.post("/v1/files", content=parts(1_100_000)).status_code == 413


def test_bodies_that_stall_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dummyforcing.server.web.limits.PATIENCE", 0.05)
    sent: list[Message] = []
    parts: list[Message] = [{"type": "http.request", "body": b"half", "more_body": True}]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(await Request(scope, receive).body())(scope, receive, send)

    async def receive() -> Message:
        return parts.pop() if parts else await asyncio.Future()

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/files", "headers": [(b"content-length", b"8")]}
    asyncio.run(BodyLimit(app, read_settings({}))(scope, receive, send))
    assert [message.get("status") for message in sent if "status" in message] == [408]


def test_too_many_requests_wait() -> None:
    client = guarded(Rates(3), KEY, OTHER)
    mine, yours = ({"Authorization": f"Bearer {key}"} for key in (KEY, OTHER))
    statuses = [client.post("/v1/files", headers=mine).status_code for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
    refused = client.post("/v1/files", headers=mine)
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(refused.headers["Retry-After"]) <= 20
    assert client.post("/v1/files", headers=yours).status_code == 200
    # Who guesses keys is slowed down by his address.
    guesses = [
        client.post("/v1/files", headers={"Authorization": f"Bearer {n}"}).status_code for n in range(5)
    ]
    assert guesses == [401, 401, 401, 429, 429]
    assert client.get("/ready").status_code == 200


def test_rates_fill_up_again_and_their_table_is_bounded() -> None:
    rates = Rates(60)
    assert [rates.take("a", now=0) for _ in range(61)] == [0.0] * 60 + [1.0]
    assert rates.take("a", now=0.5) == 0.5
    assert rates.take("a", now=1.0) == 0
    assert rates.take("a", now=1.0) > 0
    for n in range(TABLE + 10):
        rates.take(str(n), now=2)
    assert len(rates._buckets) == TABLE


# --- keys ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no key"),
        ("# nothing\n\n", "has no key"),
        (f"{KEY}\nshort\n", "line 2 cannot be used; take 16 letters"),
        ("a key with blanks in it\n", "line 1 cannot be used"),
        ("schlüssel-mit-umlaut-darin\n", "line 1 cannot be used"),
        (b"\xff\xfe\x00", "is no text"),
        (None, "cannot be read"),
    ],
)
def test_bad_key_files_are_explained(tmp_path: Path, text: str | bytes | None, message: str) -> None:
    path = tmp_path / "keys"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as caught:
        read_keys(read_settings({"api_key_file": path}))
    assert KEY not in str(caught.value)


def test_others_are_let_in_only_if_that_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.7", "example.com"):
        with pytest.raises(UserError, match="no keys"):
            read_keys(read_settings({"host": host}))
        assert not read_keys(read_settings({"host": host, "no_auth": True}))
    for host in ("127.0.0.1", "127.0.0.2", "::1", "localhost"):
        assert not read_keys(read_settings({"host": host}))
    monkeypatch.setenv("DUMMYFORCING_API_KEY", KEY)
    assert read_keys(read_settings({"host": "0.0.0.0"})).owner(KEY)
    with pytest.raises(UserError, match="there are keys"):
        read_keys(read_settings({"no_auth": True}))


def test_logins_end_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Keys([KEY])
    assert keys.log_in("wrong") is None
    first = keys.log_in(KEY)
    assert first is not None
    assert keys.owner_of_login(first) == keys.owner(KEY)
    # In that module alone: other servers of the tests live by the same clock.
    monkeypatch.setattr(access, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + LASTS + 1))
    assert keys.owner_of_login(first) is None
    tokens = [keys.log_in(KEY) or "" for _ in range(1100)]
    assert keys.owner_of_login(tokens[0]) is None
    assert keys.owner_of_login(tokens[-1]) is not None
