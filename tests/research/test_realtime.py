"""The README's tables and pictures of speed on a GPU, from made-up results."""

import json
from pathlib import Path
from typing import Any

from dummyforcing.presets.preset import SIZES

ROOT = Path(__file__).parents[2]


def row(size: str, policy: str, fp8: str, fps: float, chunks: int = 7, skips: tuple = ()) -> dict[str, Any]:
    """A configuration whose chunks take longer as the dense cache grows."""
    grows = {"dense": 0.03, "long:24,117": 0.005}.get(policy, 0)
    times = [1000 * 12 / fps * (1 + grows * n) for n in range(chunks)]
    return {
        "size": list(SIZES[size]),
        "policy": policy,
        "fp8": fp8,
        "skip_steps": list(skips),
        "steps": 4 - len(skips),
        "chunk_ms": [8 * times[0], *times[1:]],
        "fps": fps,
        "fps_video": (1.2 if policy == "dense" else 0.9) * fps,
        "fps_end_to_end": 0.7 * fps,
        "latency_ms": {"p50": 12 / fps * 1000, "p99": 12.5 / fps * 1000, "chunks": 9},
        "first_frame_ms": 5000 / fps,
        "cache_bytes": 3.21e9,
        "peak_bytes": 12.3e9,
        "past_frames": 1.5,
        "tflops": 432.1,
        "floor_fraction": 0.65,
    }


def result(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "command": "python -m dummyforcing bench",
        "commit": "abc1234",
        "date": "2026-11-23",
        "device": "a GPU",
        "versions": {"torch": "2.11"},
        "schedule": [1000, 750, 500, 250],
        "chunk_frames": 3,
        "configurations": rows,
    }


def made_up() -> dict[str, dict[str, Any]]:
    """All parts of the recorded run."""
    parts = {}
    for size, fps in (("480p", 80.0), ("720p", 25.0), ("1080p", 6.5)):
        rows = [row(size, "dense", "none", fps / 2), row(size, "dummy", "none", fps)]
        if size == "480p":
            rows.append(row(size, "dummy", "none", 1.25 * fps, skips=(2,)))
        rows.append(row(size, "dummy", "linear", 1.2 * fps))
        if size == "1080p":
            rows.append(row(size, "dummy", "all", 1.4 * fps))
        parts[size] = result(rows)
    policies = {"dense": 40.0, "window:3,6": 55.0, "dummy": 80.0, "long:24,117": 70.0}
    parts["long"] = result([row("480p", policy, "none", fps, 80) for policy, fps in policies.items()])
    return parts


def test_the_tables() -> None:
    from research.pages import realtime

    text = realtime.block(made_up())
    speeds, sizes = "100.0 | 90.0 | 70.0 | 50 ms | 120 / 125 ms", "3.21 GB | 12.3 GB | 432 | 65%"
    assert f"| 480p | dummy, 3/4 steps | {speeds} | {sizes} |" in text
    assert "| 1080p | dummy, fp8 all | 9.1 |" in text
    assert "same kernels: 2.00x at 480p (1.50x for the whole video), 2.00x at 720p" in text
    assert "| window:3,6 | 49.5 | 55.0 | 1.5 | 3.21 GB |" in text
    assert text.count("at abc1234") == 4
    assert "240 latent frames" not in realtime.block({"480p": made_up()["480p"]})


def test_no_ratio_of_different_precisions() -> None:
    from research.pages import realtime

    rows = [row("480p", "dense", "none", 40), row("480p", "dummy", "linear", 90)]
    assert realtime.speed_up(result(rows)) is None
    assert realtime.speed_up(result(rows[:1])) is None
    assert realtime.speed_up(result([*rows, row("480p", "dummy", "none", 60)])) == 1.5


def test_files_and_pictures(tmp_path: Path) -> None:
    from research.pages import realtime

    assert realtime.read_speed(tmp_path) == {}
    parts = made_up()
    for part in ("480p", "long"):
        (tmp_path / f"bench-{part}.json").write_text(json.dumps(parts[part]))
    found = realtime.read_speed(tmp_path)
    assert found == {part: parts[part] for part in ("480p", "long")}
    realtime.draw(found, tmp_path / "images" / "speed")
    names = ["floor.png", "fps.png", "latency.png"]
    assert sorted(path.name for path in (tmp_path / "images" / "speed").iterdir()) == names
