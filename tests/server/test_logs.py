"""The log: what happens in a request, told to its owner and not to its client."""

import io
import json
import logging
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from dummyforcing.server.settings import Settings, read_settings
from dummyforcing.server.web.logs import RequestLog, log_prompt, logging_to_stderr
from dummyforcing.server.web.metrics import Metrics


async def good(request: Request) -> Response:
    logging.getLogger("dummyforcing.server.test").warning("within %s", request.query_params.get("text", "it"))
    return JSONResponse(request.state.request_id)


async def bad(_: Request) -> Response:
    raise RuntimeError("a secret of the server")


async def worse(_: Request) -> Response:
    async def parts() -> AsyncIterator[bytes]:
        yield b"begun"
        raise RuntimeError("in the middle")

    return StreamingResponse(parts())


async def refuses(_: WebSocket) -> None:
    raise RuntimeError("a secret of the server")


async def breaks(websocket: WebSocket) -> None:
    await websocket.accept()
    raise RuntimeError("a secret of the server")


ROUTES = [
    Route("/good", good),
    Route("/bad", bad),
    Route("/worse", worse),
    WebSocketRoute("/refuses", refuses),
    WebSocketRoute("/breaks", breaks),
]


@pytest.fixture
def client() -> TestClient:
    inside = [Middleware(RequestLog, metrics=Metrics())]  # as in the application
    return TestClient(Starlette(routes=ROUTES, middleware=inside), raise_server_exceptions=False)


def logged(monkeypatch: pytest.MonkeyPatch, client: TestClient, path: str, **settings: Any) -> str:
    """What a request writes into the log."""
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    with logging_to_stderr(read_settings(settings)):
        client.get(path, headers={"X-Request-ID": "seven"})
    return written.getvalue()


def test_an_error_is_for_the_log_alone(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = client.get("/bad", headers={"X-Request-ID": "seven"})
    assert answer.status_code == 500
    assert answer.headers["X-Request-ID"] == "seven"
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == ("internal_error", "server_error")
    assert "seven" in error["message"]
    assert "secret" not in answer.text
    lines = [json.loads(line) for line in logged(monkeypatch, client, "/bad", log_format="json").splitlines()]
    failed, request = lines
    assert failed["level"] == "error"
    assert failed["traceback"].endswith("RuntimeError: a secret of the server")
    assert (request["status"], request["route"]) == (500, "/bad")
    assert failed["request_id"] == request["request_id"] == "seven"


def test_an_answer_that_has_begun_is_broken_off(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = logged(monkeypatch, client, "/worse", log_format="json").splitlines()
    assert json.loads(lines[-1])["status"] == 500


def test_sockets_are_told_no_more(client: TestClient) -> None:
    with pytest.raises(Exception) as refused, client.websocket_connect("/refuses"):  # noqa: PT011
        pass
    assert getattr(refused.value, "status_code", None) == 500
    assert "secret" not in str(refused.value.__dict__)
    with client.websocket_connect("/breaks") as socket, pytest.raises(WebSocketDisconnect) as closed:
        socket.receive_text()
    assert (closed.value.code, closed.value.reason) == (1011, "internal error")


def test_what_is_logged_within_a_request_has_its_id(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in ("/good", "/good?text=%s%n{0}%0Aforged"):
        lines = logged(monkeypatch, client, path, log_format="json").splitlines()
        within, request = map(json.loads, lines)
        assert within["request_id"] == request["request_id"] == "seven"
        assert request["path"] == "/good"
        assert request["ms"] >= 0
    assert within["message"] == "within %s%n{0}\nforged"


def test_text_has_one_line_for_each_message(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    text = logged(monkeypatch, client, "/good?text=a%0Ab%1b[31m%22", log_format="text")
    within, request = text.splitlines()
    assert r"WARNING within a\nb\u001b[31m\"" in within
    assert 'request request_id="seven" method="GET" path="/good"' in request
    assert "status=200" in request


def test_the_log_is_json_where_no_terminal_is(monkeypatch: pytest.MonkeyPatch, client: TestClient) -> None:
    assert logged(monkeypatch, client, "/good").startswith("{")


def test_prompts_are_logged_only_if_that_was_said(capsys: pytest.CaptureFixture[str]) -> None:
    for settings in (Settings(), Settings(log_prompts=True, log_format="json")):
        with logging_to_stderr(settings):
            log_prompt(settings, "me", "a red\nball")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["prompt"] == "a red\nball"


def test_loggers_are_as_before_afterwards() -> None:
    loggers = [logging.getLogger(name) for name in ("dummyforcing.server", "uvicorn", "asyncio")]
    before = [(one.level, one.propagate, list(one.handlers)) for one in loggers]
    with logging_to_stderr(Settings()):
        pass
    assert [(one.level, one.propagate, list(one.handlers)) for one in loggers] == before
