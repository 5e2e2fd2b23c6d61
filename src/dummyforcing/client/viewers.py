"""How many viewers a server has time for: a real server, and viewers that watch in real time.

with open_to_all(pipeline) as server:
    server.watched_by(3, seconds=60)          # one row of figures

A viewer begins to play with the first chunk, and tells which chunk the picture is at. As the page does, it
plays slower while there is little in its buffer, and stalls where nothing is left; nothing is decoded. All
are let in, whatever the server would say, which is told.
"""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import torch

from dummyforcing.client.live import LiveChunk, connect
from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from dummyforcing.server.app import create_app
from dummyforcing.server.engine import FULL
from dummyforcing.server.fleet import OneReplica
from dummyforcing.server.live.messages import PromptActive
from dummyforcing.server.parts import Server
from dummyforcing.server.replicas.replica import LocalReplica
from dummyforcing.server.run import LiveServer, listening
from dummyforcing.server.settings import read_settings

THIN, SLOWEST, TICK = 0.75, 0.4, 0.1
"""How the page's player slows down: see `server/page/player.js`."""
PROMPTS = ("a red ball bounces on a green floor", "a blue star spins on a green floor")
LIMITS = {"max_sessions": 10**4, "max_sessions_per_key": 10**4, "idle": 3600, "max_frames": 10**6}
"""Of the server: none that could end a measurement."""

Row = dict[str, Any]


class Viewer(threading.Thread):
    """Watches one video in real time, and asks for another prompt now and then."""

    def __init__(self, url: str, seconds: float, steer: float, number: int, options: dict[str, Any]) -> None:
        """Watch for so many seconds, from the first picture on.

        Args:
            url: Of the server.
            seconds: How long.
            steer: Seconds between two prompts; 0: there is one.
            number: Seed of the video.
            options: Of it.
        """
        super().__init__(daemon=True)
        self._url, self._seconds, self._steer = url, seconds, steer
        self._options = {"seed": number, **options}
        self.first_picture = 0.0
        """Seconds from the request to the first picture."""
        self.stalls: list[float] = []
        """Seconds of each."""
        self.slowed = 0.0
        """Seconds that the video lasted longer, played slower where the buffer was thin; without stalls."""
        self.stalled_at: list[float] = []
        """When each began, in seconds from the first picture on."""
        self.visible: list[float] = []
        """Seconds from asking for a prompt until a picture of it is shown."""
        self.chunks_until_visible: list[int] = []
        self.made: list[float] = []
        """Seconds from asking for a prompt until its first chunk was made."""
        self.chunks = 0

    def run(self) -> None:
        """Watch."""
        with connect(self._url) as live:
            asked = time.perf_counter()
            live.start(PROMPTS[0], **self._options)
            ready: dict[int, LiveChunk] = {}
            while 0 not in ready:
                message = live.receive(60)
                if isinstance(message, LiveChunk):
                    ready[message.index] = message
            began = now = time.perf_counter()
            self.first_picture = began - asked
            assert live.ready is not None
            fps, index, end, played = live.ready.fps, -1, 0.0, 0.0
            next_prompt, waiting = began + self._steer, (0, 0.0)
            prompt, stalled_since = 0, 0.0
            while now - began < self._seconds:
                if played >= end and index + 1 in ready:  # it is shown from now on
                    index += 1
                    end += ready[index].about.frames / fps
                    live.ack(index)
                    self.chunks += 1
                    if stalled_since:
                        self.stalls.append(now - stalled_since)
                        self.stalled_at.append(stalled_since - began)
                        stalled_since = 0.0
                    if waiting[1] and ready[index].prompt == PROMPTS[prompt % 2]:
                        self.visible.append(now - waiting[1])
                        self.chunks_until_visible.append(index - waiting[0])
                        waiting = (0, 0.0)
                elif played >= end and not stalled_since:
                    stalled_since = now
                if self._steer and not waiting[1] and now >= next_prompt:
                    prompt += 1
                    live.prompt(PROMPTS[prompt % 2])
                    waiting, next_prompt = (index, now), now + self._steer
                lead = end - played + sum(one.about.frames / fps for n, one in ready.items() if n > index)
                speed = min(1.0, SLOWEST + (1 - SLOWEST) * lead / THIN)
                with suppress(TimeoutError):
                    message = live.receive(min(TICK, max((end - played) / speed, 0.001)))
                    if isinstance(message, LiveChunk):
                        ready = {n: one for n, one in ready.items() if n < message.index}
                        ready[message.index] = message
                    elif isinstance(message, PromptActive):
                        self.made.append(message.seconds)
                before, now = now, time.perf_counter()
                played = min(end, played + speed * (now - before))
            if stalled_since:
                self.stalls.append(now - stalled_since)
                self.stalled_at.append(stalled_since - began)
            self.slowed = now - began - played - sum(self.stalls)


class OpenServer:
    """A server that lets everybody in."""

    def __init__(self, parts: Server, url: str) -> None:
        """Note what it would allow, and lift that.

        Args:
            parts: Of a server that is ready.
            url: Where it listens.
        """
        self.parts, self.url = parts, url
        (engine,), costs = parts.fleet.engines, parts.fleet.costs
        self._pace, self._capacity = costs.pace(parts.fleet.facts.preset.size), engine.capacity
        engine.capacity = engine.full = costs.capacity = float("inf")

    def about(self, options: Row) -> Row:
        """What the server is like, and how many viewers it would let in.

        Args:
            options: Of the videos.
        """
        sessions, preset = self.parts.sessions, self.parts.fleet.facts.preset
        claim = sessions.claim(sessions.request(PROMPTS[0], options))
        seconds = preset.chunk_pixel_frames / preset.fps
        by_time, by_memory = FULL * seconds / self._pace, (self._capacity - claim.shared) / claim.memory
        return {
            "fps": preset.fps,
            "chunk_seconds": round(self._pace, 3),
            "ahead": self.parts.settings.ahead,
            "session_gb": round(claim.memory / 1e9, 2),
            "shared_gb": round(claim.shared / 1e9, 2),
            "held_chunks": claim.held,
            "admits": max(1, min(int(by_time), int(by_memory))),
        }

    def watched_by(self, viewers: int, seconds: float, options: Row, steer: float = 0) -> Row:
        """Let viewers watch at once.

        Args:
            viewers: How many.
            seconds: How long, from the first picture of each on.
            options: Of the videos.
            steer: Seconds between two prompts of a viewer; 0: there is one.
        """
        watching = [Viewer(self.url, seconds, steer, number, options) for number in range(viewers)]
        memory = peak = resident()
        for viewer in watching:
            viewer.start()
            time.sleep(0.2)
        for viewer in watching:
            while viewer.is_alive():
                viewer.join(5)
                peak = max(peak, resident())
        self._rest()
        stalls = [seconds for viewer in watching for seconds in viewer.stalls]
        row: Row = {
            "viewers": viewers,
            "seconds": seconds,
            "stalls": len(stalls),
            "viewers_with_stalls": sum(bool(viewer.stalls) for viewer in watching),
            "stalled_seconds": round(sum(stalls), 2),
            "slowed_s": spread([viewer.slowed for viewer in watching]),
            "last_stall_at_s": round(max((at for one in watching for at in one.stalled_at), default=0.0), 1),
            "first_picture_s": spread([viewer.first_picture for viewer in watching]),
            "rss_before_mb": round(memory / 1e6),
            "rss_peak_mb": round(peak / 1e6),
            "rss_after_mb": round(resident() / 1e6),
        }
        if steer:
            for name in ("visible", "made", "chunks_until_visible"):
                row[f"steer_{name}"] = spread([one for viewer in watching for one in getattr(viewer, name)])
        return row

    def first_pictures(self, count: int, options: Row) -> dict[str, float]:
        """Seconds from asking for a video to its first picture, with nothing else to do."""
        found: list[float] = []
        for number in range(count):
            viewer = Viewer(self.url, 0.0, 0.0, number, options)
            viewer.run()
            found.append(viewer.first_picture)
            self._rest()
            time.sleep(0.5)
        return spread(found)

    def _rest(self) -> None:
        """Wait until nobody is watching: the chunk in hand is finished first."""
        while self.parts.sessions.running:
            time.sleep(0.1)


@contextmanager
def open_to_all(pipeline: DummyForcingPipeline, **settings: Any) -> Iterator[OpenServer]:
    """Serve a model on a free port of this machine, in a thread, and let everybody in.

    Args:
        pipeline: The model, loaded by `run_apart`.
        **settings: Of the server.
    """
    app = create_app(read_settings({**LIMITS, **settings}), OneReplica(LocalReplica(pipeline)))
    with listening("127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = LiveServer(app, lambda: None)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve_at(listener)), daemon=True)
        thread.start()
        try:
            while not (server.started and app.state.server.fleet.is_ready):
                if not thread.is_alive() or (server.started and app.state.server.has_failed):
                    raise RuntimeError("the server ended before it was ready")  # its log says why
                time.sleep(0.1)
            yield OpenServer(app.state.server, url)
        finally:
            server.should_exit = True
            thread.join(15)


def measure_viewers(
    pipeline: DummyForcingPipeline,
    viewers: Sequence[int],
    seconds: float,
    options: Row,
    *,
    starts: int = 5,
    steer: float = 0,
    report: Callable[[str], None] = lambda text: None,
    **settings: Any,
) -> Row:
    """Measure how several numbers of viewers fare, one after the other.

    Args:
        pipeline: The model, loaded by `run_apart`.
        viewers: How many watch at once.
        seconds: How long each time.
        options: Of the videos, such as `size`.
        starts: Videos to time the first picture of, before anybody else watches.
        steer: Seconds between two prompts of a viewer; 0: there is one.
        report: Is told what is done next.
        **settings: Of the server.
    """
    with open_to_all(pipeline, **settings) as server:
        report("first pictures")
        found = {**server.about(options), "first_picture_alone_s": server.first_pictures(starts, options)}
        rows = []
        for number in viewers:
            report(f"{number} viewer{'s' * (number > 1)}")
            rows.append(server.watched_by(number, seconds, options, steer))
    if pipeline.device.type == "cuda":
        found["peak_gpu_gb"] = round(torch.cuda.max_memory_allocated(pipeline.device) / 1e9, 1)
    return {**found, "rows": rows}


def spread(values: list[float]) -> dict[str, float]:
    """Median, 95th percentile and maximum."""
    if not values:
        return {}
    ordered = sorted(values)
    p95 = ordered[min(int(0.95 * len(ordered)), len(ordered) - 1)]
    return {
        name: round(one, 3) for name, one in (("p50", median(values)), ("p95", p95), ("max", ordered[-1]))
    }


def resident() -> int:
    """Bytes of this process in the memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
