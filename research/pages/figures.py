"""The figures of docs/reproduction.md, drawn from the result files."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Result = dict[str, Any]

ORDERS = {
    "dhp, denoise": ("dynamic head programming", "tab:blue", "-"),
    "dhp, commit": ("the same, commit pass scored", "tab:blue", ":"),
    "current": ("most current mass", "tab:green", "--"),
    "current and last": ("most mass on current and last frame", "tab:olive", "--"),
    "measured": ("least damage alone, measured", "black", "-"),
    "measured elsewhere": ("the same, on other videos", "black", ":"),
    "random": ("random", "tab:gray", "-"),
    "dearest": ("dearest", "tab:red", "-"),
}
COLORS = {
    "dense": "black",
    "window 3+6": "tab:gray",
    "window 1+1": "tab:olive",
    "window 0+2": "tab:brown",
    "dummy": "tab:blue",
    "anchored": "tab:green",
    "official": "tab:orange",
    "measured plan": "tab:purple",
    "mass plan": "tab:cyan",
    "random heads": "tab:pink",
    "dearest heads": "tab:red",
}
COSTS = (1, 2, 3, 5, 10, 20)
MEASURES = {
    "semantic": "color, shape, motion, count right (mean)",
    "seam_excess": "change across seams beyond that inside chunks\n(gray levels)",
    "dynamic": "share of pixels that move",
    "contrast_drift": "contrast drift per second",
}


def draw_figures(results: dict[str, Result], folder: Path) -> None:
    """Write the figures that the results suffice for.

    Args:
        results: By part: removal, search, study, long.
        folder: Where the pictures go; made if need be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if "removal" in results:
        _save(removal_curves(results["removal"]), folder / "removal.png")
    if "study" in results:
        _save(quality_and_cost(results["study"]["runs"]["5 s"]["variants"]), folder / "cost.png")
    if "study" in results and "long" in results:
        _save(lengths({**results["study"]["runs"], **results["long"]["runs"]}), folder / "length.png")


def removal_curves(removal: Result) -> Figure:
    """Damage over the share of heads that lose their past, with intervals."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    titles = {"none": "no past left", "last": "the last frame left (packed)"}
    for axes, (kept, title) in zip(panels, titles.items(), strict=True):
        for name, (label, color, style) in ORDERS.items():
            points = removal["orders"][name][kept]["damage"]
            axes.plot(removal["percents"], [p["mean"] for p in points], style, color=color, label=label)
            low, high = zip(*(p["interval"] for p in points), strict=True)
            axes.fill_between(removal["percents"], low, high, color=color, alpha=0.15, linewidth=0)
        axes.set(title=title, xlabel="heads, %", yscale="log")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("mean squared change of x0 / variance of x0")
    panels[0].legend(fontsize=8)
    return figure


def quality_and_cost(variants: dict[str, Result]) -> Figure:
    """Two measures of all variants over the past frames that a head keeps."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
    for axes, measure in zip(panels, ("semantic", "seam_excess"), strict=True):
        for name, variant in variants.items():
            if measure not in variant["measures"]:
                continue
            cost, color = variant["measures"]["past_frames"]["mean"], COLORS.get(name, "silver")
            _point(axes, cost, variant["measures"][measure], color)
            if name in COLORS:  # the others would hide each other; the table has them
                at = (cost, variant["measures"][measure]["mean"])
                axes.annotate(name, at, xytext=(4, 3), textcoords="offset points", fontsize=7, color=color)
        axes.set(xlabel="past frames that a head sees, mean", ylabel=MEASURES[measure], xscale="log")
        axes.set_xticks(COSTS, COSTS)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    return figure


def lengths(runs: dict[str, Result]) -> Figure:
    """How measures change with the length of the video."""
    figure, panels = plt.subplots(1, len(MEASURES), figsize=(14, 3.8), layout="constrained")
    names = [name for name in runs if name.endswith(" s") and "returns" not in name]
    shown = runs[names[-1]]["variants"]
    for axes, (measure, label) in zip(panels, MEASURES.items(), strict=True):
        for number, variant in enumerate(shown):
            color = COLORS.get(variant, "dimgray")
            points = [
                (
                    place + 0.06 * (number - len(shown) / 2),
                    runs[name]["variants"][variant]["measures"][measure],
                )
                for place, name in enumerate(names)
                if measure in runs[name]["variants"][variant]["measures"]
            ]
            for x, estimate in points:
                _point(axes, x, estimate, color)
            axes.plot([x for x, _ in points], [e["mean"] for _, e in points], color=color, label=variant)
        axes.set_xticks(range(len(names)), names)
        axes.set_title(label, fontsize=9)
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    return figure


def _point(axes: Axes, x: float, estimate: Result, color: str) -> None:
    """A mean with its interval."""
    axes.plot([x, x], estimate["interval"], color=color, linewidth=1)
    axes.plot([x], [estimate["mean"]], "o", color=color, markersize=4)


def _save(figure: Figure, path: Path) -> None:
    # Without metadata and dates, so that the same results give the same file.
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
