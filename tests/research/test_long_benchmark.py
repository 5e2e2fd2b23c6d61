"""The benchmark of long contexts runs, and its policies keep to the cost of the window."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_long_context_benchmark(tmp_path: Path) -> None:
    output = tmp_path / "out" / "long.json"
    script: list[str | Path] = [
        sys.executable,
        "-m",
        "research.benchmarks.long_context",
        "--output",
        output,
        "--small",
    ]
    subprocess.run(script, cwd=ROOT, check=True)
    policies = json.loads(output.read_text())["policies"]
    window = policies["window:3,6"]
    for cap in (20, 12):
        row = policies[f"long:{cap}"]
        assert row["cache_bytes"] <= window["cache_bytes"] < policies["dense"]["cache_bytes"]
        assert row["context_ratio"] == round(cap / 9, 2)
        assert all(ms > 0 for ms in row["chunk_ms"].values())
