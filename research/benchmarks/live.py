"""How many viewers a machine has time for: real servers and viewers that watch in real time.

python -m research.benchmarks.live --viewers 1 2 3 --seconds 60 --output benchmarks/results/live-cpu.json
python -m research.benchmarks.live --viewers 1 --seconds 1200 --steer 10 --output .../live-soak.json
python -m research.benchmarks.live --model self-forcing --random --fp8 linear --viewers 1 2 3 4 ...

A viewer begins to play with the first chunk, and tells which chunk the picture is at. As the page does, it
plays slower while there is little in its buffer, and stalls where nothing is left; nothing is decoded. All
are let in, whatever the server would say, which is told.
"""

import argparse
import asyncio
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from dummyforcing.runtime.threads import spin_briefly

spin_briefly()  # before torch is imported

import torch
from transformers import AutoTokenizer

from dummyforcing.bench.candidates import build_candidates
from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.client import LiveChunk, connect
from dummyforcing.evaluation.results import write_results
from dummyforcing.pipeline.devices import choose_device, choose_dtype
from dummyforcing.pipeline.pipeline import DummyForcingPipeline, load
from dummyforcing.presets.catalog import bundled_folders
from dummyforcing.runtime.apart import run_apart
from dummyforcing.runtime.fused import Fp8
from dummyforcing.server import engine
from dummyforcing.server.app import create_app
from dummyforcing.server.fleet import OneReplica
from dummyforcing.server.live.messages import PromptActive
from dummyforcing.server.replicas.replica import LocalReplica
from dummyforcing.server.run import LiveServer, listening
from dummyforcing.server.settings import read_settings

THIN, SLOWEST, TICK = 0.75, 0.4, 0.1
"""How the page's player slows down: see `server/page/player.js`."""
PROMPTS = ("a red ball bounces on a green floor", "a blue star spins on a green floor")


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


def random_pipeline(model: str, fp8: Fp8) -> DummyForcingPipeline:
    """A public model's shapes with random weights; it reads the words of the bundled model."""
    device = choose_device("auto")
    built = build_candidates(
        ModelFiles.open(model),
        [fp8],
        device,
        choose_dtype(None, device),
        random=True,
    )
    pipeline = next(iter(built.values())).pipeline
    text: Any = pipeline.text
    tokenizer = AutoTokenizer.from_pretrained(bundled_folders()["tiny"] / "tokenizer")
    text.tokenizer, text.model, text.text_len = tokenizer, None, pipeline.files.config.text_len
    return pipeline


def measure(url: str, app: Any, viewers: int, args: argparse.Namespace) -> dict[str, Any]:
    """Let viewers watch at once."""
    options = {"size": args.size} if args.size else {}
    watching = [Viewer(url, args.seconds, args.steer, number, options) for number in range(viewers)]
    memory = resident()
    for viewer in watching:
        viewer.start()
        time.sleep(0.2)
    peak = memory
    for viewer in watching:
        while viewer.is_alive():
            viewer.join(5)
            peak = max(peak, resident())
    parts = app.state.server
    while parts.sessions.running:
        time.sleep(0.1)
    stalls = [seconds for viewer in watching for seconds in viewer.stalls]
    row = {
        "viewers": viewers,
        "seconds": args.seconds,
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
    if args.steer:
        for name in ("visible", "made", "chunks_until_visible"):
            row[f"steer_{name}"] = spread([one for viewer in watching for one in getattr(viewer, name)])
    return row


def first_pictures(url: str, app: Any, count: int) -> dict[str, float]:
    """Seconds from asking for a video to its first picture, on a server that has nothing else to do."""
    found: list[float] = []
    for number in range(count):
        viewer = Viewer(url, 0.0, 0.0, number, {})
        viewer.run()
        found.append(viewer.first_picture)
        while app.state.server.sessions.running:  # the chunk in hand is finished first
            time.sleep(0.1)
        time.sleep(0.5)
    return spread(found)


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


def main() -> None:
    """Start a server, and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--random", action="store_true", help="random weights of its shapes")
    parser.add_argument("--fp8", default="none", choices=("none", "linear", "all"))
    parser.add_argument("--size", default=None)
    parser.add_argument("--viewers", type=int, nargs="+", default=[1])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--ahead", type=int, default=3, help="chunks made ahead of a viewer")
    parser.add_argument("--steer", type=float, default=0, help="seconds between two prompts")
    parser.add_argument("--starts", type=int, default=5, help="videos to time the first picture of")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    pipeline = run_apart(
        lambda: random_pipeline(args.model, args.fp8) if args.random else load(args.model, fp8=args.fp8)
    )
    full, engine.FULL = engine.FULL, float("inf")
    limits = {"max_sessions_per_key": 64, "idle": 3600, "max_frames": 10**6}
    app = create_app(read_settings({**limits, "ahead": args.ahead}), OneReplica(LocalReplica(pipeline)))
    listener = listening("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = LiveServer(app, lambda: None)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve_at(listener)), daemon=True)
    thread.start()
    while not (server.started and app.state.server.fleet.is_ready):
        time.sleep(0.1)
    preset = pipeline.files.preset
    fleet = app.state.server.fleet
    pace, capacity = fleet.costs.pace(preset.size), fleet.costs.capacity
    fleet.costs.capacity = fleet.engines[0].capacity = float("inf")
    request = app.state.server.sessions.request(PROMPTS[0], {"size": args.size} if args.size else {})
    claim = app.state.server.sessions.claim(request)
    load_of_one = pace * preset.fps / preset.chunk_pixel_frames
    results: dict[str, Any] = {
        "model": args.model,
        "weights": "random" if args.random else "own",
        "fp8": args.fp8,
        "policy": "dummy",
        "size": args.size or f"{preset.size[1]}x{preset.size[0]}",
        "fps": preset.fps,
        "with_vae": True,
        "chunk_seconds": round(pace, 3),
        "ahead": args.ahead,
        "session_gb": round(claim.memory / 1e9, 2),
        "shared_gb": round(claim.shared / 1e9, 2),
        "held_chunks": claim.held,
        "admits": max(1, min(int(full / load_of_one), int((capacity - claim.shared) / claim.memory))),
        "first_picture_alone_s": first_pictures(url, app, args.starts),
        "rows": [],
    }
    print(results)
    for viewers in args.viewers:
        results["rows"].append(measure(url, app, viewers, args))
        print(results["rows"][-1], flush=True)
        write_results(args.output, results, pipeline.device)
    if torch.cuda.is_available():
        results["peak_gpu_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 1)
        write_results(args.output, results, pipeline.device)
    server.should_exit = True
    thread.join(15)


if __name__ == "__main__":
    main()
