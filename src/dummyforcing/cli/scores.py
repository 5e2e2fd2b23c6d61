"""The tables that `dummyforcing eval` prints."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.table import Table

from dummyforcing.cli.terminal import tell
from dummyforcing.evaluation.vbench import DIMENSIONS, scores

if TYPE_CHECKING:
    from dummyforcing.evaluation.bootstrap import EstimateJson
    from dummyforcing.evaluation.vbench import Outcome


def print_measures(measures: "Mapping[str, EstimateJson]", videos: int) -> None:
    """Print means and intervals.

    Args:
        measures: From `suite.aggregate`.
        videos: How many there are.
    """
    table = Table("measure", title=f"{videos} videos", title_justify="left")
    for title in ("mean", "95% interval", "prompts"):
        table.add_column(title, justify="right")
    for name, found in measures.items():
        low, high = found["interval"]
        table.add_row(name, f"{found['mean']:.4g}", f"{low:.4g} .. {high:.4g}", str(found["n"]))
    tell(table)


def print_vbench(outcome: "Outcome") -> None:
    """Print VBench's scores, and which dimensions are missing and why."""
    summary = scores(outcome.raw)  # first: it refuses scores that cannot be
    if outcome.raw:
        table = Table("VBench dimension")
        for title in ("raw", "normalised"):
            table.add_column(title, justify="right")
        for name, dimension in DIMENSIONS.items():
            if name in outcome.raw:
                raw = outcome.raw[name]
                table.add_row(name, f"{raw:.4f}", f"{100 * dimension.normalise(raw):.2f}%")
        tell(table)
        for title in ("quality", "semantic", "total"):
            value = getattr(summary, title)
            shown = "not all of its dimensions are there" if value is None else f"{value:.2f}"
            tell(f"VBench {title}: {shown}")
    for reason in dict.fromkeys(outcome.not_computed.values()):
        names = [name for name, why in outcome.not_computed.items() if why == reason]
        which = ", ".join(names) if len(names) < len(DIMENSIONS) else f"all {len(names)} dimensions"
        tell(f"VBench, not computed: {which}; {reason}.")
