"""Time the default command as a user runs it: start-up, loading, generating, writing; and its peak memory.

python -m research.benchmarks.speed --output benchmarks/results/tiny-speed.json
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from dummyforcing.runtime.threads import spin_briefly

spin_briefly()  # before torch is imported

from dummyforcing.evaluation.results import write_results
from dummyforcing.pipeline.pipeline import DummyForcingPipeline, load

PROMPT = "a red ball bounces on a green floor"


def whole_command(policy: str, folder: Path) -> dict[str, float]:
    """Run the command once in a process of its own."""
    command = ["-m", "dummyforcing", "generate", PROMPT, "-o", str(folder / "ball.mp4"), "--policy", policy]
    silent = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)]
    start = time.perf_counter()
    child = os.posix_spawn(sys.executable, [sys.executable, *command], os.environ, file_actions=silent)
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit(f"the command failed: {' '.join(command)}")
    return {
        "wall_s": time.perf_counter() - start,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_memory_mb": usage.ru_maxrss * 1024 / 1e6,
    }


def inside(pipeline: DummyForcingPipeline, policy: str) -> dict[str, float]:
    """Generate the same video in this process, without start-up."""
    video = pipeline.generate(PROMPT, policy=policy)
    return {
        "first_frame_s": video.timings.first_frame,
        "fps_without_vae": video.timings.fps_without_vae,
        "fps": video.timings.fps,
        "cache_bytes": video.cache_bytes,
    }


def main() -> None:
    """Alternate between the policies, so that both meet the same machine, and report medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument(
        "--runs", type=int, default=5, help="runs of each policy, after one that does not count"
    )
    args = parser.parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    pipeline = load("tiny", device="cpu")
    runs: dict[str, list[dict[str, float]]] = {"dense": [], "dummy": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.runs + 1):
            for policy, measured in runs.items():
                run = whole_command(policy, Path(folder)) | inside(pipeline, policy)
                if number:
                    measured.append(run)
    results: dict[str, object] = {"prompt": PROMPT, "pixel_frames": 81, "size": [160, 160], "runs": args.runs}
    for policy, measured in runs.items():
        results[policy] = {key: round(median(run[key] for run in measured), 3) for key in measured[0]}
    write_results(args.output, results, pipeline.device)


if __name__ == "__main__":
    main()
