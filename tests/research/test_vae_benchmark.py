"""The benchmark of the VAE's decoder runs, and measures what it says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_vae_benchmark(tmp_path: Path) -> None:
    output = tmp_path / "out" / "vae.json"
    script: list[str | Path] = [sys.executable, "-m", "research.benchmarks.vae", "--output", output]
    options = ["--small", "--device", "cpu", "--profile", "--tiles", "2"]
    done = subprocess.run([*script, *options], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    results = json.loads(output.read_text())
    small = results["small"]
    for path in ("diffusers", "ours", "2 tiles"):
        assert small[path]["pixel_frames_per_s"] > 0
        assert f"{small[path]['pixel_frames_per_s']:.1f} pixel frames/s" in done.stdout
    assert small["std"] > 1
    assert small["gray_levels"]["ours - float32"]["max"] < 0.01
    assert small["gray_levels"]["ours - 2 tiles"]["max"] < 0.01
    assert "aten::mkldnn_convolution" in done.stdout
    assert "versions" in results
