"""The benchmark of guards runs, and tells of every kind of chunk."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_guards_benchmark(tmp_path: Path) -> None:
    output = tmp_path / "out" / "guards.json"
    script: list[str | Path] = [
        sys.executable,
        "-m",
        "research.benchmarks.guards",
        "--output",
        output,
        "--small",
    ]
    subprocess.run(script, cwd=ROOT, check=True)
    videos = json.loads(output.read_text())["videos"]
    assert set(videos["dense"]["chunk_ms"]) == {"plain"}
    probed, guarded = videos["dummy, only probed, new prompt"], videos["dummy, guarded, new prompt"]
    assert len(probed["probes"]) > 2
    assert probed["classified_again"] == []
    assert guarded["classified_again"]
    assert set(guarded["chunk_ms"]) == {"plain", "probe", "again"}
    for video in videos.values():
        assert all(set(m) == {"drift", "repetition", "motion"} for m in video["measures"].values())
        assert all(ms > 0 for ms in video["chunk_ms"].values())
