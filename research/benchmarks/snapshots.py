"""What it takes to put a rollout aside, to take it up again and to branch it: the bundled model on a CPU.

python -m research.benchmarks.snapshots --output benchmarks/results/snapshots-cpu.json

Some seconds into a video, for every policy: milliseconds of `fork`, `save` and `resume` beside those of a
chunk, pixel frames included; the size of the file; and whether both go on as the rollout itself does, bit by
bit.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TypeVar

from dummyforcing.runtime.threads import spin_briefly

spin_briefly()  # before torch is imported

import numpy as np

from dummyforcing.evaluation.results import write_results
from dummyforcing.pipeline.pipeline import DummyForcingPipeline, load

PROMPT = "a red ball bounces on a green floor"
POLICIES = ("dense", "window:3,6", "dummy")
REPEATS = 5

Result = TypeVar("Result")


def measure(pipeline: DummyForcingPipeline, policy: str, chunks: int) -> dict[str, object]:
    """Branch and save a video of one policy after so many chunks."""
    run = pipeline.start(PROMPT, num_frames=None, policy=policy)
    plain = [timed(run.next_chunk)[0] for _ in range(chunks)]
    fork_s, save_s, resume_s = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.rollout"
        for _ in range(REPEATS):
            seconds, fork = timed(run.fork)
            fork_s.append(seconds)
            save_s.append(timed(lambda: run.save(path))[0])
            seconds, resumed = timed(lambda: pipeline.resume(path))
            resume_s.append(seconds)
        size = path.stat().st_size
    ways = [[way.next_chunk() for _ in range(2)] for way in (run, fork, resumed)]
    return {
        "policy": policy,
        "chunk_ms": round(1000 * median(plain[chunks // 2 :]), 1),
        "fork_ms": round(1000 * median(fork_s), 2),
        "save_ms": round(1000 * median(save_s), 1),
        "resume_ms": round(1000 * median(resume_s), 1),
        "file_bytes": size,
        "cache_bytes": ways[0][-1].cache_bytes,
        "identical": all(
            np.array_equal(mine.frames, theirs.frames)
            for way in ways[1:]
            for mine, theirs in zip(ways[0], way, strict=True)
        ),
    }


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds, and what came out."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def main() -> None:
    """Measure all policies and write what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--small", action="store_true", help="a short video, to try this script")
    args = parser.parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    pipeline, chunks = load("tiny", device="cpu"), 4 if args.small else 10
    rows = [measure(pipeline, policy, chunks) for policy in POLICIES]
    write_results(args.output, {"model": "tiny", "chunks": chunks, "rows": rows}, pipeline.device)


if __name__ == "__main__":
    main()
