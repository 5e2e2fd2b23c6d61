"""Time the default command as a user runs it: start-up, loading, generating, writing; and its peak memory.

python benchmarks/whole_process.py --output benchmarks/results/tiny-process.json
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from dummyforcing.eval.results import write_results

PROMPT = "a red ball bounces on a green floor"


def measure(policy: str, folder: Path) -> dict[str, float]:
    """Run the command once in a process of its own."""
    command = ["-m", "dummyforcing", "generate", PROMPT, "-o", str(folder / "ball.mp4"), "--policy", policy]
    start = time.perf_counter()
    child = os.posix_spawn(
        sys.executable,
        [sys.executable, *command],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)],
    )
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit(f"the command failed: {' '.join(command)}")
    return {
        "wall_s": time.perf_counter() - start,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_memory_mb": usage.ru_maxrss * 1024 / 1e6,
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
    runs: dict[str, list[dict[str, float]]] = {"dummy": [], "dense": []}
    with tempfile.TemporaryDirectory() as folder:
        measure("dummy", Path(folder))
        for _ in range(args.runs):
            for policy, measured in runs.items():
                measured.append(measure(policy, Path(folder)))
    results: dict[str, object] = {"prompt": PROMPT, "pixel_frames": 81, "size": [160, 160], "runs": args.runs}
    for policy, measured in runs.items():
        results[policy] = {key: round(median(run[key] for run in measured), 2) for key in measured[0]}
    write_results(args.output, results, torch.device("cpu"))


if __name__ == "__main__":
    main()
