"""The benchmark of what is remembered runs, and counts what it judged."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_recall_benchmark(tmp_path: Path) -> None:
    output = tmp_path / "out" / "recall.json"
    script: list[str | Path] = [
        sys.executable,
        "-m",
        "research.benchmarks.recall",
        "--output",
        output,
        "--seconds",
        "1",
    ]
    script += ["--kinds", "there", "--watch", "1"]
    subprocess.run(
        [*script, "--count", "1", "--variants", "window 0+9", "--watched", "6"], cwd=ROOT, check=True
    )
    rows = json.loads(output.read_text())["rows"]
    assert [row["variant"] for row in rows] == ["window 0+9", "watched, 6"]
    for row in rows:
        assert row["videos"] == 1 >= row["valid"] >= row["back"]["right"] >= row["same"]["right"]
        assert row["long_heads"] == (6 if row["variant"] == "watched, 6" else 0)
    past = 36 - 3  # of twelve chunks; 90 of 96 heads see one frame
    assert [row["past_frames"] for row in rows] == [9, pytest.approx((90 + 6 * past) / 96, abs=0.01)]
