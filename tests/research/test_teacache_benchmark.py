"""The benchmark of TeaCache runs, and compares what it says it does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_teacache_benchmark(tmp_path: Path) -> None:
    output = tmp_path / "out" / "teacache.json"
    script: list[str | Path] = [
        sys.executable,
        "-m",
        "research.benchmarks.teacache",
        "--output",
        output,
        "--limit",
        "1",
    ]
    subprocess.run([*script, "--frames", "33", "--teacache", "1e9"], cwd=ROOT, check=True)
    results = json.loads(output.read_text())
    assert results["prompts"] == 1
    plain, skipping, dummy, both = results["variants"]
    assert [(row["policy"], row["teacache"]) for row in results["variants"]] == [
        ("dense", None),
        ("dense", "1e9"),
        ("dummy", None),
        ("dummy", "1e9"),
    ]
    assert plain["speed_up"]["mean"] == 1
    for without, row in ((plain, skipping), (dummy, both)):
        assert row["skipped_steps"] == [1, 2, 3]
        assert row["fps_without_vae"] > 0
        assert row["fidelity"]["psnr"]["mean"] < 40
        assert row["one_object"]["count"] == without["one_object"]["count"] == 1
        assert without["skipped_steps"] == []
        assert "fidelity" not in without
