"""A crowd: 30 live sockets and 200 jobs, with clients that vanish, stall, flood and send nonsense.

Everybody else gets right answers meanwhile, and afterwards nothing of them is left in the server.
"""

import json
import os
import random
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect as open_socket

from dummyforcing.client import connect
from tests.server.process import Process, running

PROMPT, OTHER = "a red ball bounces on a green floor", "a blue cube spins"
SOCKETS, JOBS, ROUNDS = 30, 200, 3
POOLS = 12
"""Threads that pools may still start, each when all its others are busy; sockets and jobs are far more."""


def live_url(server: Process) -> str:
    return f"ws{server.url.removeprefix('http')}/v1/realtime"


def stall(server: Process, rng: random.Random) -> None:
    """Start a video, and read nothing of it."""
    with open_socket(live_url(server), max_queue=1) as live:
        live.send(json.dumps({"type": "start", "prompt": PROMPT, "seed": rng.randrange(100)}))
        time.sleep(2)


def vanish(server: Process, rng: random.Random) -> None:
    """Start a video, watch a little, and go without a word."""
    live = open_socket(live_url(server)).__enter__()
    live.send(json.dumps({"type": "start", "prompt": PROMPT}))
    for _ in range(rng.randrange(4)):
        live.recv(10)
    live.socket.shutdown(socket.SHUT_RDWR)
    live.close()


def flood(server: Process, rng: random.Random) -> None:
    """Send more messages than anybody reads."""
    with open_socket(live_url(server)) as live:
        live.send(json.dumps({"type": "start", "prompt": PROMPT}))
        for number in range(300):
            kind = rng.choice(["ack", "rewind", "branch"])
            live.send(json.dumps({"type": kind, "chunk": number % 7}))


def babble(server: Process, rng: random.Random) -> None:
    """Send what is no message."""
    with open_socket(live_url(server)) as live:
        for _ in range(20):
            live.send(rng.randbytes(rng.randrange(1, 2000)))
            live.send(rng.choice(["", "{", "null", "[" * 900, '{"type":"start"}', '{"type":"stop"}']))


def half(server: Process, rng: random.Random) -> None:
    """Begin a message, and never end it."""
    key = "dGhlIHNhbXBsZSBub25jZQ=="
    hello = (
        f"GET /v1/realtime HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as raw:
        raw.sendall(hello.encode()[: rng.choice([20, 1000])])
        raw.sendall(b"\x81\xfe\x03")  # a frame of 900 bytes, of which none come
        time.sleep(1)


def too_long(server: Process, rng: random.Random) -> None:
    """Send a message that is larger than any."""
    with open_socket(live_url(server)) as live:
        live.send("x" * 2_000_000)
        live.recv(5)


RUDE: list[Callable[[Process, random.Random], None]] = [stall, vanish, flood, babble, half, too_long]


def watch(server: Process, seed: int) -> list[bytes]:
    """A polite viewer: the segments of five chunks."""
    with connect(server.url) as live:
        found = []
        for chunk in live.start(PROMPT, seed=seed):
            found.append(chunk.segment)
            if len(found) == 5:
                break
        return found


def size_of(server: Process) -> dict[str, int]:
    """Memory in KB, threads, and open files of the server."""
    proc = Path(f"/proc/{server.process.pid}")
    status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    return {
        "rss": int(status["VmRSS"].split()[0]),
        "threads": int(status["Threads"]),
        "files": len(os.listdir(proc / "fd")),
    }


def settled(server: Process, http: httpx2.Client) -> dict[str, int]:
    """The same once no session is left."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        text = http.get("/metrics").text
        gauges = dict(line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
        if float(gauges["dummyforcing_sessions"]) == 0:
            time.sleep(2)
            return size_of(server)
        time.sleep(0.2)
    raise AssertionError("sessions are left")


@pytest.mark.slow
def test_a_crowd(model_folder: Path, tmp_path: Path) -> None:
    flags = ["--model", str(model_folder), "--data", str(tmp_path / "data"), "--resume", "1", "--idle", "3"]
    limits = ["--requests-per-minute", "100000", "--max-sessions-per-key", "40", "--max-sessions", "8"]
    with (
        running(tmp_path / "log", *flags, *limits) as server,
        httpx2.Client(base_url=server.url, timeout=60, trust_env=False) as http,
    ):
        expected = watch(server, 7)
        sizes = [settled(server, http)]
        jobs = []
        for number in range(JOBS):
            fields: dict[str, Any] = {"prompt": PROMPT, "num_frames": 9, "seed": number % 5}
            answer = http.post("/v1/videos", json=fields)
            assert answer.status_code == 200, answer.text
            jobs.append(answer.json()["id"])
        for number in range(ROUNDS):
            crowd(server, number, expected)
            sizes.append(settled(server, http))
        deadline = time.monotonic() + 240
        while True:
            states = [http.get(f"/v1/videos/{id}").json()["status"] for id in jobs]
            if set(states) == {"completed"}:
                break
            assert "failed" not in states
            assert time.monotonic() < deadline, states
            time.sleep(1)
        films = [http.get(f"/v1/videos/{id}/content").content for id in jobs]
        assert [films[number] == films[number % 5] for number in range(JOBS)] == [True] * JOBS
        assert watch(server, 7) == expected
        sizes.append(settled(server, http))
        code, seconds = server.stop()
    assert code == 0
    assert seconds < 10
    assert "Traceback" not in (tmp_path / "log").read_text()
    print(sizes)
    first, last = sizes[1], sizes[-1]
    assert last["threads"] <= first["threads"] + POOLS
    assert last["files"] <= first["files"] + 4
    assert last["rss"] < first["rss"] + 60_000  # what allocators keep


def crowd(server: Process, seed: int, expected: list[bytes]) -> None:
    """All sockets at once; two polite viewers among them."""
    errors: list[BaseException] = []

    def rude(number: int) -> None:
        rng = random.Random(100 * seed + number)
        try:
            RUDE[number % len(RUDE)](server, rng)
        except (OSError, WebSocketException, TimeoutError):
            pass  # the server had enough of it
        except BaseException as error:
            errors.append(error)

    def polite() -> None:
        try:
            assert watch(server, 7) == expected
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=rude, args=[number]) for number in range(SOCKETS - 2)]
    threads += [threading.Thread(target=polite) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    if errors:
        raise errors[0]
