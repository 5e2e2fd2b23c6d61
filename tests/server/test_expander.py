"""A language model that writes prompts out: asked over HTTP, at its best and at its worst."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dummyforcing.cli import main
from dummyforcing.errors import UserError
from dummyforcing.pipeline.expander import MOST, MOST_BYTES, PromptExpander

LONG = "A small red fox trots through deep, powdery snow under bare birches, breath steaming in cold light."


class Endpoint(ThreadingHTTPServer):
    """An endpoint that answers as it is told."""

    answer: Callable[[BaseHTTPRequestHandler], None]
    asked: list[tuple[str, dict[str, str], Any]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def says(
        self, status: int, body: bytes, *, wait: float = 0, bit_by_bit: bool = False, **headers: str
    ) -> None:
        def answer(handler: BaseHTTPRequestHandler) -> None:
            time.sleep(wait)
            handler.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                handler.send_header(name, value)
            handler.end_headers()
            for start in range(0, len(body), 1 if bit_by_bit else len(body) or 1):
                handler.wfile.write(body[start : start + (1 if bit_by_bit else len(body))])
                time.sleep(0.05 * bit_by_bit)

        self.answer = answer

    def writes(self, text: object) -> None:
        self.says(
            200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()
        )

    def handle_error(self, *_: object) -> None:
        """The client is gone: that is what is tested."""


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, dict(self.headers), body))
        with suppress(ConnectionError):
            self.server.answer(self)

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Endpoint(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


def test_the_model_is_asked_as_openai_clients_do(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint.writes(LONG)
    assert PromptExpander(endpoint.url, "qwen3").expand("a fox in the snow") == LONG
    path, headers, body = endpoint.asked[0]
    assert path == "/v1/chat/completions"
    assert "Authorization" not in headers
    assert body["model"] == "qwen3"
    assert [one["role"] for one in body["messages"]] == ["system", "user"]
    assert body["messages"][1]["content"] == "a fox in the snow"
    monkeypatch.setenv("DUMMYFORCING_EXPAND_KEY", "secret")
    PromptExpander(f"{endpoint.url}/").expand("a fox")
    PromptExpander(f"{endpoint.url}/chat/completions").expand("a fox")
    for path, headers, _ in endpoint.asked[1:]:
        assert path == "/v1/chat/completions"
        assert headers["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    "text",
    [f'  "{LONG}"\n', f"<think>The user wants\na fox.</think>\n\n{LONG}", LONG.replace(" ", "\n\x1b\t", 3)],
)
def test_what_a_model_says_around_it_is_left_out(endpoint: Endpoint, text: str) -> None:
    endpoint.writes(text)
    assert PromptExpander(endpoint.url).expand("a fox").replace("[", "") == LONG


@pytest.mark.parametrize("text", ["", " \n", '""', None, 7, ["a"], "x" * (MOST + 1), "<think>without an end"])
def test_what_is_no_prompt_is_refused(endpoint: Endpoint, text: object) -> None:
    endpoint.writes(text)
    with pytest.raises(UserError, match="gave an answer that is no prompt"):
        PromptExpander(endpoint.url).expand("a fox")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"{}",
        b"[]",
        b"null",
        b'{"choices": []}',
        b'{"choices": [null]}',
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_garbage_is_refused(endpoint: Endpoint, body: bytes) -> None:
    endpoint.says(200, body)
    with pytest.raises(UserError, match="gave an answer that is no prompt"):
        PromptExpander(endpoint.url).expand("a fox")


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
def test_errors_are_told(endpoint: Endpoint, status: int) -> None:
    endpoint.says(status, b'{"error": {"message": "no"}}')
    with pytest.raises(UserError, match=f"127.0.0.1 answered with status {status}; try again"):
        PromptExpander(endpoint.url).expand("a fox")


def test_the_key_is_sent_nowhere_else(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUMMYFORCING_EXPAND_KEY", "secret")
    endpoint.says(302, b"", Location=f"{endpoint.url}/elsewhere")
    with pytest.raises(UserError, match="status 302"):
        PromptExpander(endpoint.url).expand("a fox")
    assert len(endpoint.asked) == 1


@pytest.mark.parametrize("how", [{"wait": 2}, {"bit_by_bit": True}])
def test_slow_answers_are_given_up(endpoint: Endpoint, how: dict[str, Any]) -> None:
    endpoint.says(200, b" " * 100, **how)
    start = time.monotonic()
    with pytest.raises(UserError, match=r"gave no answer within 0\.3 s"):
        PromptExpander(endpoint.url, timeout=0.3).expand("a fox")
    assert time.monotonic() - start < 1.5


def test_endless_answers_are_given_up(endpoint: Endpoint) -> None:
    endpoint.says(200, b" " * (MOST_BYTES + 1))
    with pytest.raises(UserError, match="its answer is too long"):
        PromptExpander(endpoint.url).expand("a fox")


def test_nobody_is_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(UserError, match=r"127\.0\.0\.1 cannot be asked \(Connection refused\)"):
        PromptExpander(f"http://127.0.0.1:{port}").expand("a fox")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:11434",
        "file:///etc/passwd",
        "ftp://a/b",
        "http://",
        "http://a b/",
        "http://u:p@a/",
        "http://a:x/",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="is no address; write it like"):
        PromptExpander(url)


def test_generate_takes_the_text_and_says_it(
    endpoint: Endpoint,
    model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dummyforcing.pipeline import request

    shown, make = [], request.make_request

    def noted(files: Any, prompt: Any, **options: Any) -> Any:
        shown.append(prompt)
        return make(files, prompt, **options)

    monkeypatch.setattr(request, "make_request", noted)
    flags = [
        "-o",
        str(tmp_path / "a.mp4"),
        "--model",
        str(model_folder),
        "--frames",
        "9",
        "--expand",
        endpoint.url,
    ]
    endpoint.writes("a red ball spins on a green floor")
    assert main(["generate", "a ball", *flags]) == 0
    assert "Prompt: a red ball spins on a green floor\n" in capsys.readouterr().out
    endpoint.says(500, b"")
    assert main(["generate", "a ball", *flags]) == 0
    said = capsys.readouterr()
    assert (
        "answered with status 500; try again, or write more yourself. The prompt is taken as it is."
        in said.err
    )
    assert "Prompt:" not in said.out
    assert shown == ["a red ball spins on a green floor", "a ball"]
    story = tmp_path / "story.yaml"
    story.write_text("seconds: 1\nscenes: []\n")
    without_length = [flag for flag in flags if flag not in ("--frames", "9")]
    assert main(["generate", "--story", str(story), *without_length]) == 2
    assert "leave out --expand" in capsys.readouterr().err
