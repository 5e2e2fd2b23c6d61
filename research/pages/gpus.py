"""The picture of docs/guides/gpus.md: how much faster one video is on several GPUs.

python -m research.pages.gpus    # the picture, from results of `dummyforcing bench --gpus`
"""

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from research.pages.several import NAMES, RUNS, beside_one

ROOT = Path(__file__).parents[2]
PICTURE = "docs/images/gpus.png"
COLORS = {480: "tab:blue", 720: "tab:purple", 1088: "tab:red"}
STYLES = {"none": "-", "linear": "--", "all": ":"}
PUBLISHED = ("StreamDiffusionV2", 4, 64.5)
"""FPS of a 1.3B model on so many H100, as its authors state it (arXiv 2511.07399): not the same work."""


def picture(results: dict[str, dict[str, Any]]) -> Figure:
    """Speed over GPUs: against one GPU without the VAE, beside the ideal line, and in FPS with the VAE."""
    figure, (gain, speed) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    pairs = [pair for name in RUNS for pair in beside_one(results[name])]
    counts = sorted({1, *(row["gpus"] for row, _ in pairs)})
    gain.plot(counts, counts, color="0.6", linewidth=1, label="ideal")
    for size, fp8 in sorted({(row["size"][0], row["fp8"]) for row, _ in pairs}):
        mine = [(row, one) for row, one in pairs if (row["size"][0], row["fp8"]) == (size, fp8)]
        _line(gain, size, fp8, [(1, 1.0), *((row["gpus"], row["fps"] / one["fps"]) for row, one in mine)])
        alone = mine[-1][1]["fps_end_to_end"]
        _line(speed, size, fp8, [(1, alone), *((row["gpus"], row["fps_end_to_end"]) for row, _ in mine)])
    name, gpus, fps = PUBLISHED
    speed.plot([gpus], [fps], "k*", markersize=9, label=f"{name}, 1.3B, as published")
    gain.set(title="against one GPU, without VAE", xlabel="GPUs", ylabel="times as fast")
    speed.set(title="with VAE", xlabel="GPUs", ylabel="FPS")
    for axes in (gain, speed):
        axes.set(xticks=counts, ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def _line(axes: Axes, size: int, fp8: str, points: list[tuple[int, float]]) -> None:
    label = NAMES[size] if fp8 == "none" else f"{NAMES[size]}, fp8 {fp8}"
    axes.plot(*zip(*sorted(points), strict=True), STYLES[fp8], color=COLORS[size], marker="o", label=label)


if __name__ == "__main__":
    folder = ROOT / "benchmarks" / "results"
    figure = picture({name: json.loads((folder / f"{name}.json").read_text()) for name in RUNS})
    figure.savefig(ROOT / PICTURE, dpi=110, metadata={"Software": None})
