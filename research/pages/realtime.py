"""The speed of the 1.3B models on a GPU: tables and pictures of docs/speed.md, from `dummyforcing bench`.

python -m research.pages.realtime    # the pictures; docs/benchmark.md has the commands of the recorded run
"""

import json
from pathlib import Path
from typing import Any, get_args

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dummyforcing.bench.report import label
from dummyforcing.presets.preset import SIZES
from dummyforcing.runtime.fused import Fp8
from research.pages.making import table
from research.pages.page import source

Result = dict[str, Any]
Row = dict[str, Any]

ROOT = Path(__file__).parents[2]
PICTURES = "docs/images/speed"
NAMES = {size: name for name, size in SIZES.items()}
COLORS = {"dense": "0.35", "window": "tab:olive", "dummy": "tab:blue", "long": "tab:purple"}
REAL_TIME = 16
"""Pixel frames per second at which Wan's videos are shown."""
HEADER = [
    "video",
    "cache",
    "FPS",
    "whole video",
    "with VAE",
    "first frame",
    "chunk p50 / p99",
    "KV cache",
    "peak memory",
]


def read_speed(folder: Path) -> dict[str, Result]:
    """The result files of the recorded run that are there: by size, then `long`."""
    paths = {part: folder / f"bench-{part}.json" for part in (*SIZES, "long")}
    return {part: json.loads(path.read_text()) for part, path in paths.items() if path.exists()}


def block(results: dict[str, Result]) -> str:
    """The first part of docs/speed.md, from what `read_speed` found."""
    sizes = {part: result for part, result in results.items() if part != "long"}
    rows = [cells(row, result) for result in sizes.values() for row in result["configurations"]]
    ratios = ", ".join(
        f"{speed_up(result):.2f}x at {size} ({speed_up(result, 'fps_video'):.2f}x for the whole video)"
        for size, result in sizes.items()
        if speed_up(result)
    )
    parts = [
        table([*HEADER, "TFLOP/s", "of the floor"], rows),
        f"Dummy Forcing over the dense cache with the same kernels: {ratios}." if ratios else "",
        "![Pixel frames per second by resolution](images/speed/fps.png)",
        "![TFLOP/s against the floor](images/speed/floor.png)",
    ]
    if "long" in results:
        rows = [long_cells(row, results["long"]) for row in results["long"]["configurations"]]
        parts += [
            table(
                ["240 latent frames, 480p", "FPS", "FPS at the end", "past frames, mean", "KV cache"], rows
            ),
            "![Latency of a chunk by length of the video](images/speed/latency.png)",
        ]
    parts.append("\n".join(f"- {source(f'bench-{part}', result)}" for part, result in results.items()))
    return "\n\n".join(part for part in parts if part)


def cells(row: Row, result: Result) -> list[str]:
    """A row of the main table."""
    return [
        NAMES[tuple(row["size"])],
        label(row, len(result["schedule"])),
        f"{row['fps']:.1f}",
        f"{row['fps_video']:.1f}",
        f"{row['fps_end_to_end']:.1f}" if "fps_end_to_end" in row else "-",
        f"{row['first_frame_ms']:.0f} ms" if "first_frame_ms" in row else "-",
        f"{row['latency_ms']['p50']:.0f} / {row['latency_ms']['p99']:.0f} ms",
        f"{row['cache_bytes'] / 1e9:.2f} GB",
        "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:.1f} GB",
        f"{row['tflops']:.0f}",
        f"{row['floor_fraction']:.0%}",
    ]


def long_cells(row: Row, result: Result) -> list[str]:
    """A row of the table of the long video."""
    return [
        label(row, len(result["schedule"])),
        f"{row['fps_video']:.1f}",
        f"{4 * result['chunk_frames'] / row['chunk_ms'][-1] * 1000:.1f}",
        f"{row['past_frames']:.1f}",
        f"{row['cache_bytes'] / 1e9:.2f} GB",
    ]


def speed_up(result: Result, figure: str = "fps") -> float | None:
    """How much faster `dummy` is than `dense` in the same precision; None: they were not both measured.

    Args:
        result: Of one size.
        figure: `fps` (the second half of a video) or `fps_video` (all of it).
    """
    rows = {(row["policy"], row["fp8"]): row for row in result["configurations"] if not row["skip_steps"]}
    for mode in get_args(Fp8):
        if ("dummy", mode) in rows and ("dense", mode) in rows:
            ratio: float = rows["dummy", mode][figure] / rows["dense", mode][figure]
            return ratio
    return None


def draw(results: dict[str, Result], folder: Path) -> None:
    """Write the pictures that the results suffice for; the folder is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {part: result for part, result in results.items() if part != "long"}
    if sizes:
        _save(speeds(sizes), folder / "fps.png")
        _save(floors(sizes), folder / "floor.png")
    if "long" in results:
        _save(latencies(results["long"]), folder / "latency.png")


def speeds(sizes: dict[str, Result]) -> Figure:
    """Pixel frames per second of every configuration, with and without the VAE, one panel for each size."""
    figure, panels = _panels(sizes)
    for axes, (size, result) in zip(panels, sizes.items(), strict=True):
        rows, places = result["configurations"], range(len(result["configurations"]))
        bars = axes.barh(
            places, [row["fps"] for row in rows], color=[_color(row) for row in rows], height=0.7
        )
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
        ends = [row.get("fps_end_to_end", float("nan")) for row in rows]
        axes.plot(ends, places, "d", color="white", markeredgecolor="black", label="with the VAE")
        axes.axvline(REAL_TIME, color="tab:red", linewidth=1, linestyle=":", label="real time, 16")
        axes.margins(x=0.15)
        _finish(axes, size, result, "pixel frames per second")
    panels[-1].legend(fontsize=8, loc="lower right")
    return figure


def floors(sizes: dict[str, Result]) -> Figure:
    """Achieved TFLOP/s, and what large matrix products would reach on the same work."""
    figure, panels = _panels(sizes)
    for axes, (size, result) in zip(panels, sizes.items(), strict=True):
        rows, places = result["configurations"], range(len(result["configurations"]))
        ceilings = [row["tflops"] / row["floor_fraction"] for row in rows]
        axes.barh(places, ceilings, color="0.92", edgecolor="0.7", height=0.7)
        bars = axes.barh(places, [r["tflops"] for r in rows], color=[_color(r) for r in rows], height=0.7)
        axes.bar_label(bars, [f"{r['floor_fraction']:.0%}" for r in rows], padding=3, fontsize=8)
        _finish(axes, size, result, "TFLOP/s (light: the floor)")
    return figure


def latencies(result: Result) -> Figure:
    """Milliseconds of every chunk over the length of the video."""
    figure, axes = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
    chunk = result["chunk_frames"]
    for row in result["configurations"]:
        # The first two also pay for graphs and allocations, and would set the scale.
        frames = [chunk * (number + 1) for number in range(2, len(row["chunk_ms"]))]
        line = label(row, len(result["schedule"]))
        axes.plot(frames, row["chunk_ms"][2:], color=_color(row), linewidth=1.6, label=line)
    axes.set_ylim(bottom=0)
    axes.set(xlabel="latent frames made, from the third chunk on", ylabel="milliseconds for a chunk")
    axes.set_title(f"Diffusion of {chunk} latent frames, 480p", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def _panels(sizes: dict[str, Result]) -> tuple[Figure, list[Axes]]:
    most = max(len(result["configurations"]) for result in sizes.values())
    figure, panels = plt.subplots(
        1, len(sizes), figsize=(4.2 * len(sizes), 1.3 + 0.36 * most), layout="constrained", squeeze=False
    )
    return figure, list(panels[0])


def _finish(axes: Axes, size: str, result: Result, unit: str) -> None:
    rows = result["configurations"]
    axes.set_yticks(range(len(rows)), [label(row, len(result["schedule"])) for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_title(size, fontsize=10)
    axes.set_xlabel(unit, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _color(row: Row) -> str:
    return COLORS.get(row["policy"].partition(":")[0], "tab:green")


def _save(figure: Figure, path: Path) -> None:
    # Without metadata and dates, so that the same results give the same file.
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    draw(read_speed(ROOT / "benchmarks" / "results"), ROOT / PICTURES)
