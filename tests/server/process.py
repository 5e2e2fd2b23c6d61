"""Runs `dummyforcing serve` as its users do: as a process of its own, on a free port of loopback."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Answer:
    """Of an HTTP request."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """What it says."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """Why it was refused."""
        code: str = self.json["error"]["code"]
        return code


@dataclass(frozen=True)
class Process:
    """A server that runs."""

    process: subprocess.Popen[str]
    log: Path
    said: str
    """What it printed until it was there."""

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{self.said.rpartition('http://')[2].strip()}"

    @property
    def port(self) -> int:
        """Of its address."""
        return urlsplit(self.url).port or 0

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        **more: str,
    ) -> Answer:
        """Send a request, with headers whose underscores stand for dashes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        given = {name.replace("_", "-"): value for name, value in more.items()} | dict(headers or {})
        try:
            connection.request(method, path, body, given)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        finally:
            connection.close()

    def send_raw(self, *parts: bytes, wait: float = 5) -> bytes:
        """Send bytes as they are; all that comes back until the connection ends."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait) as connection:
            received = b""
            try:
                for part in parts:
                    connection.sendall(part)
                while data := connection.recv(65536):
                    received += data
            except (TimeoutError, ConnectionError):
                pass
            return received

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, float]:
        """Send a signal; the exit code, and the seconds until then."""
        start = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(15), time.monotonic() - start


@contextmanager
def running(log: Path, *flags: str, **environment: str) -> Iterator[Process]:
    """Start a server, wait until it says its address, and end it at the end of the block."""
    command = [sys.executable, "-m", "dummyforcing", "serve", "--port", "0", *flags]
    known = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment}
    with (
        open(log, "w") as stderr,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=known, cwd=log.parent
        ) as process,
    ):
        assert process.stdout is not None
        said = ""
        try:
            while "is at http" not in said:
                line = process.stdout.readline()
                assert line, f"it ended: {said}{log.read_text()}"
                said += line
            yield Process(process, log, said)
        finally:
            if process.poll() is None:
                process.kill()
