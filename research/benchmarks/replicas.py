"""What Ray between the server and the model costs, and how soon a video goes on whose replica is killed.

python -m research.benchmarks.replicas --output benchmarks/results/replicas-cpu.json

Servers are started as users do it. One viewer asks for chunks as fast as they come; what lies between two of
them and is not the device's is the server's own: scheduling, encoding, sending, and with Ray the way from the
replica. Then the process of a replica is killed in the middle of a video, with another one ready.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from dummyforcing.client import connect
from dummyforcing.errors import RequestWarning
from dummyforcing.evaluation.results import write_results
from dummyforcing.pipeline.devices import choose_device
from dummyforcing.server.live.messages import Warned

PROMPT = "a red ball bounces on a green floor"
FIRST = 4
"""Chunks that are left out of the averages: the heads are classified, and the buffer of the viewer fills."""


@contextmanager
def serving(log: Path, *flags: str, replicas: int = 1) -> Iterator[str]:
    """Start a server, wait until its replicas are warm, and end it; gives its address."""
    command = [sys.executable, "-m", "dummyforcing", "serve", "--port", "0", "--max-chunk", "60", *flags]
    with (
        log.open("w") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        assert process.stdout is not None
        try:
            url = next(line for line in process.stdout if "is at http" in line).split()[-1]
            while f'replicas{{state="ready"}} {replicas}.0' not in fetched(f"{url}/metrics"):
                time.sleep(0.2)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)


def fetched(url: str) -> str:
    """The text at an address."""
    with urllib.request.urlopen(url) as answer:
        text: str = answer.read().decode()
        return text


def own_time(url: str, chunks: int) -> dict[str, float]:
    """Seconds between two chunks, those of the device, and the difference, which is the server's own."""
    arrived, device = [], []
    with connect(url) as live:
        for chunk in live.start(PROMPT, seed=0):
            arrived.append(time.perf_counter())
            device.append(chunk.about.timings.seconds)
            if len(arrived) == chunks:
                break
    between = (arrived[-1] - arrived[FIRST]) / (chunks - 1 - FIRST)
    made = sum(device[FIRST + 1 :]) / (chunks - 1 - FIRST)
    return {"between": between, "device": made, "own": between - made}


def recovery(url: str, log: Path, at: int) -> dict[str, float]:
    """Kill the replica of a video after a chunk; seconds until the next one."""
    with connect(url) as live, warnings.catch_warnings():
        warnings.simplefilter("ignore", RequestWarning)
        killed = 0.0
        live.start(PROMPT, seed=0)
        for chunk in live.chunks():
            if chunk.index == at:
                names = re.findall(r'replica_videos\{replica="(\d+)"\} 1\.0', fetched(f"{url}/metrics"))
                known = dict(re.findall(r"replica (\d+) is in process (\d+)", log.read_text()))
                os.kill(int(known[names[0]]), signal.SIGKILL)
                killed = time.perf_counter()
            elif killed and any(isinstance(message, Warned) for message in live.messages):
                # Chunks that were on their way came before the warning.
                return {"seconds": time.perf_counter() - killed, "chunk": chunk.about.timings.seconds}
    raise AssertionError("the video ended")


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--chunks", type=int, default=40)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    results: dict[str, Any] = {"model": args.model, "chunks": args.chunks, "runs": args.runs}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        model = ("--model", args.model)
        for name, flags in (("plain", ()), ("ray", ("--ray", "local")), ("kept", ("--ray", "local"))):
            every = ("--snapshot", "8" if name == "kept" else "1000")
            with serving(log, *model, *flags, *every) as url:
                rows = [own_time(url, args.chunks) for _ in range(args.runs)]
            results[name] = {key: round(median(row[key] for row in rows), 4) for key in rows[0]}
            results[name]["all_own"] = [round(row["own"], 4) for row in rows]
            print(name, results[name], flush=True)
        results["recoveries"] = []
        with serving(log, *model, "--ray", "local", "--replicas", "2", replicas=2) as url:
            for _ in range(args.runs):
                found = recovery(url, log, at=12)
                results["recoveries"].append({key: round(value, 3) for key, value in found.items()})
                print(results["recoveries"][-1], flush=True)
                while 'replicas{state="ready"} 2.0' not in fetched(f"{url}/metrics"):
                    time.sleep(0.5)
    write_results(args.output, results, choose_device("auto"))


if __name__ == "__main__":
    main()
