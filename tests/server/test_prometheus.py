"""Metrics, as Prometheus reads them."""

import json
import re
import time
import urllib.error
import urllib.request
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.sync.client import ClientConnection, connect

from dummyforcing.server.web.metrics import Metrics
from tests.server.serving import Serving

PROMPT = "a red ball bounces on a green floor"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(text: str) -> Samples:
    """Every sample by its name and labels."""
    return {
        (sample.name.removeprefix("dummyforcing_"), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, frozenset(labels.items())), 0.0)


def ask(server: Serving) -> Samples:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=")
        return read(response.read().decode())


def hear(live: ClientConnection) -> Any:
    """The next message; segments are passed over."""
    while isinstance(text := live.recv(30), bytes):
        pass
    return json.loads(text)


def test_a_live_video_is_counted_and_measured(server: Serving) -> None:
    before = ask(server)
    with connect(f"ws{server.url[4:]}/v1/realtime") as live:
        live.send(json.dumps({"type": "start", "prompt": PROMPT, "num_frames": 33}))
        chunks: list[Any] = []
        while len(chunks) < 3:
            chunks += [message for message in [hear(live)] if message["type"] == "chunk"]
        live.send(json.dumps({"type": "nonsense"}))
        while hear(live)["type"] != "error":
            pass
        during = ask(server)
        live.send(json.dumps({"type": "stop"}))
        time.sleep(0.5)
    after = ask(server)

    def rise(name: str, **labels: str) -> float:
        return value(during, name, **labels) - value(before, name, **labels)

    assert value(during, "sessions") == value(before, "sessions") + 1
    assert value(after, "sessions") == value(before, "sessions")
    assert rise("chunks_total", kind="live") >= 3
    assert rise("chunk_seconds_count", kind="live") == rise("chunks_total", kind="live")
    seconds = [chunk["timings"]["seconds"] for chunk in chunks]
    cache = chunks[-1]["cache_bytes"]
    assert rise("chunk_seconds_sum", kind="live") >= sum(seconds) * 0.99
    assert rise("first_chunk_seconds_count") == 1
    assert rise("first_chunk_seconds_sum") > seconds[0]
    assert rise("errors_total", code="bad_message") == 1
    assert value(during, "cache_bytes") >= cache
    assert value(during, "held_bytes") >= cache
    assert value(during, "claimed_bytes") > value(before, "claimed_bytes")
    assert value(during, "fps") > 0
    assert rise("http_requests_total", method="GET", route="/metrics", status="200") == 1
    assert value(after, "http_requests_total", method="WEBSOCKET", route="/v1/realtime", status="101") >= 1


@pytest.mark.parametrize("path", ["/no/such/path", "/v1/realtime/made-up/0/video.mp4", "/wp-login.php"])
def test_paths_that_clients_make_up_get_no_series_of_their_own(server: Serving, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(server.url + path, timeout=10)
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(urllib.request.Request(server.url + path, method="BREW"), timeout=10)
    routes = {dict(labels).get("route") for name, labels in ask(server) if name == "http_requests_total"}
    assert not any("made-up" in str(route) or "such" in str(route) or "wp" in str(route) for route in routes)
    methods = {dict(labels).get("method") for name, labels in ask(server) if name == "http_requests_total"}
    assert "BREW" not in methods


def test_two_servers_count_for_themselves() -> None:
    one, other = Metrics(), Metrics()
    one.chunk_made(12, 0.5, is_live=False)
    assert value(read(one.text().decode()), "chunks_total", kind="job") == 1
    assert value(read(one.text().decode()), "fps") == 24
    assert value(read(other.text().decode()), "chunks_total", kind="job") == 0
    names = set(re.findall(r"^# HELP (\S+)", one.text().decode(), re.MULTILINE))
    assert all(name.startswith("dummyforcing_") for name in names)
