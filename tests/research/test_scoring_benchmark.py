"""The benchmark of scoring runs, and measures what it says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_scoring_benchmark(tmp_path: Path) -> None:
    output = tmp_path / "out" / "scoring.json"
    script: list[str | Path] = [sys.executable, "-m", "research.benchmarks.scoring", "--output", output]
    subprocess.run(
        [*script, "--small", "--device", "cpu", "--runs", "1"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    results = json.loads(output.read_text())
    small = results["small"]
    # One run each on a busy machine: which of the two is longer is for the committed results to say.
    assert small["call_ms"] > 0
    assert small["classification_ms"] > 0
    # At least the logits and the keys in float32; at most some copies of them.
    logits = 256 * 3 * 60 * 4 / 2**20
    assert logits < small["extra_memory_mib"] < 10 * logits
    assert results["rows"] == 256
    assert "versions" in results
