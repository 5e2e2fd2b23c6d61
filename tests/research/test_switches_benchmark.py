"""The benchmark of prompt changes runs, and finds the cost that its videos are made to have."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_cost_is_the_time_beyond_that_of_the_neighbours() -> None:
    from research.benchmarks.switches import summarise

    growing = [1.0 + 0.1 * chunk for chunk in range(12)]
    growing[4] += 0.7  # half a chunk, of 1.4 s
    growing[8] += 3.6  # two chunks, of 1.8 s
    found = summarise(growing, [4, 8])
    assert found["costs_chunks"] == [0.5, 2.0]
    assert (found["cost_chunks"], found["most_chunks"]) == (1.25, 2.0)
    assert (found["chunk_ms"], found["extra_ms"]) == (1600.0, 2150.0)


@pytest.mark.slow
def test_switches_benchmark(tmp_path: Path) -> None:
    output = tmp_path / "out" / "switches.json"
    script: list[str | Path] = [
        sys.executable,
        "-m",
        "research.benchmarks.switches",
        "--output",
        output,
        "--small",
    ]
    subprocess.run(script, cwd=ROOT, check=True)
    results = json.loads(output.read_text())
    assert results["weights"] == "real"
    rows = [(row["policy"], row["recache_frames"]) for row in results["rows"]]
    assert rows == [("dense", 0), ("dense", 12), ("dummy", 0), ("dummy", 12)]
    assert all(row["chunk_ms"] > 0 and len(row["costs_chunks"]) == 1 for row in results["rows"])
