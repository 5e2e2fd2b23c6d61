"""How many viewers so many GPUs have time for: the table and the picture in docs/guides/how-many-gpus.md.

python -m research.pages.viewers    # the picture, from `python -m research.benchmarks.viewers`
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from research.benchmarks.viewers import LONG
from research.pages.making import table
from research.pages.page import source

Result = dict[str, Any]

ROOT = Path(__file__).parents[2]
NAME = "viewers-h200"
PICTURE = "docs/images/viewers.png"
PANELS = {
    "all let in": ("late", "all are let in", "of the watched time, the video is late by, %"),
    "some wait": ("waited", "a GPU lets in what it has time for", f"wait {LONG:.0f} s or more, % of viewers"),
}
LIMITS = {"all let in": 0.01, "some wait": 0.05}
"""Shares that one may put up with."""
COLORS = ("0.35", "tab:olive", "tab:blue", "tab:purple", "tab:red")


def block(result: Result) -> str:
    """A part of docs/guides/how-many-gpus.md."""
    rows = [
        [
            gpus,
            *(
                f"{most_below(found[way], PANELS[way][0], limit) / int(gpus):.1f} a GPU, "
                f"{most_below(found[way], PANELS[way][0], limit):.1f} in all"
                for way, limit in LIMITS.items()
            ),
        ]
        for gpus, found in result["gpus"].items()
    ]
    header = ["GPUs", "all let in, late by less than 1%", "some wait, fewer than 5% of them long"]
    compared = ", ".join(
        f"{row['viewers']} viewer{'s' * (row['viewers'] > 1)} {row['measured']['late']:.1%} "
        f"({row['simulated']['late']:.1%})"
        for row in result["compared"]
    )
    return "\n\n".join(
        [
            table(header, rows),
            "![Lateness and waiting over the number of viewers](../images/viewers.png)",
            f"Simulated, from a chunk of {result['shown_seconds']:.2f} s of video in "
            f"{result['chunk_seconds']:.3f} s of an {result['measured_device']}; viewers watch for "
            f"{result['stays'] / 60:.0f} minutes on average. How late one GPU is, measured with real servers "
            f"(simulated): {compared}. {source(NAME, result)}.",
        ]
    )


def most_below(rows: Sequence[dict[str, float]], what: str, limit: float) -> float:
    """The most viewers up to which a share stays below a limit; 0: it never does."""
    most = 0.0
    for row in rows:
        if row[what] >= limit:
            break
        most = row["viewers"]
    return most


def picture(result: Result) -> Figure:
    """Lateness and waiting over viewers per GPU, a line for each number of GPUs."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axes, (way, (what, title, label)) in zip(panels, PANELS.items(), strict=True):
        for (gpus, found), color in zip(result["gpus"].items(), COLORS, strict=False):
            viewers = [row["viewers"] / int(gpus) for row in found[way]]
            axes.plot(
                viewers,
                [100 * row[what] for row in found[way]],
                color=color,
                label=f"{gpus} GPU{'s' * (gpus != '1')}",
            )
        axes.axvline(result["shown_seconds"] / result["chunk_seconds"], color="0.7", linestyle=":")
        axes.axhline(100 * LIMITS[way], color="0.7", linestyle=":")
        axes.set(title=title, xlabel="viewers at once per GPU, mean", ylabel=label)
        axes.grid(alpha=0.3)
    panels[0].legend()
    return figure


def read() -> Result:
    """The result file."""
    found: Result = json.loads((ROOT / "benchmarks" / "results" / f"{NAME}.json").read_text())
    return found


if __name__ == "__main__":
    figure = picture(read())
    figure.savefig(ROOT / PICTURE, dpi=110, metadata={"Software": None})
