"""Plans as maps of layers x heads: as a picture, and in the terminal."""

from pathlib import Path

from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from dummyforcing.files.writing import replacing
from dummyforcing.method.plan import HeadContext, Plan

COLOURS = {"dummy": "#d9d9d9", "sink": "#e6873c", "neighbor": "#3b76af"}
OTHER = "#6a9f58"
"""Of heads that have none of these roles."""


def save_head_map(path: str | Path, plan: Plan) -> None:
    """Draw a plan and save it as a PNG.

    Raises:
        BadFile: If the file cannot be written; nothing is left then.
    """
    with replacing(Path(path)) as part:
        head_map(plan).savefig(part, format="png", dpi=150)


def head_map(plan: Plan) -> Figure:
    """Draw a plan as a map of layers x heads, one colour per role."""
    names = list(plan.counts)
    layers, heads = len(plan.roles), len(plan.roles[0])
    colours = [COLOURS.get(name, OTHER) for name in names]

    figure = Figure(figsize=(2.5 + 0.3 * heads, 1.8 + 0.3 * layers), layout="constrained")
    axes = figure.add_subplot()
    numbers = [[names.index(role) for role in row] for row in plan.roles]
    axes.pcolormesh(
        numbers, cmap=ListedColormap(colours), vmin=-0.5, vmax=len(names) - 0.5, edgecolors="white"
    )
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.set(xlabel="head", ylabel="layer", title=f"Head plan, policy '{plan.policy}'")
    for axis, count in ((axes.xaxis, heads), (axes.yaxis, layers)):
        every = 1 if count <= 16 else 5
        axis.set_ticks([i + 0.5 for i in range(0, count, every)], [str(i) for i in range(0, count, every)])
    patches = zip(colours, _legend(plan), strict=True)
    figure.legend(
        handles=[Patch(color=colour, label=label) for colour, label in patches],
        loc="outside lower left",
        frameon=False,
    )
    return figure


def print_head_map(plan: Plan) -> None:
    """Print a plan to the terminal: one line per layer, one letter per head."""
    Console(highlight=False).print(head_map_text(plan))


def head_map_text(plan: Plan) -> Text:
    """A plan in letters and colours, as `print_head_map` prints it."""
    width = len(str(len(plan.roles) - 1))
    rows = [
        f"layer {layer:{width}}  " + " ".join(f"[{COLOURS.get(role, OTHER)}]{role[0]}[/]" for role in row)
        for layer, row in enumerate(plan.roles)
    ]
    return Text.from_markup("\n".join([*rows, *map(escape, _legend(plan))]))


def _legend(plan: Plan) -> list[str]:
    """Legend: the number of heads of each role, and their context."""
    return [
        f"{role}: {count} heads, see {_describe(plan.table[role])}" for role, count in plan.counts.items()
    ]


def _describe(context: HeadContext) -> str:
    if context.recent is None:
        return "all past frames"
    parts = [
        f"the {which} frame" if count == 1 else f"the {which} {count} frames"
        for which, count in (("first", context.sink), ("last", context.recent))
        if count
    ]
    return " and ".join(parts) or "no past frames"
