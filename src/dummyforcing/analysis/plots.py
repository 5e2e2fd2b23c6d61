"""Plans as maps of layers x heads: as a picture, and in the terminal."""

from collections.abc import Sequence
from itertools import cycle
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
OTHERS = ("#6a9f58", "#a05195", "#c9a227", "#2f9e9e", "#b5483a", "#7a7a7a")
"""Of other roles, in their order, again and again."""


def colours(plan: Plan) -> dict[str, str]:
    """The colour of each role."""
    others = cycle(OTHERS)
    return {role: COLOURS.get(role) or next(others) for role in plan.counts}


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
    colour_of = colours(plan)

    figure = Figure(figsize=(2.5 + 0.3 * heads, 1.8 + 0.3 * layers), layout="constrained")
    axes = figure.add_subplot()
    numbers = [[names.index(role) for role in row] for row in plan.roles]
    axes.pcolormesh(
        numbers,
        cmap=ListedColormap([*colour_of.values()]),
        vmin=-0.5,
        vmax=len(names) - 0.5,
        edgecolors="white",
    )
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.set(xlabel="head", ylabel="layer", title=f"Head plan, policy '{plan.policy}'")
    for axis, count in ((axes.xaxis, heads), (axes.yaxis, layers)):
        every = 1 if count <= 16 else 5
        axis.set_ticks([i + 0.5 for i in range(0, count, every)], [str(i) for i in range(0, count, every)])
    patches = zip(colour_of.values(), _legend(plan), strict=True)
    figure.legend(
        handles=[Patch(color=colour, label=label) for colour, label in patches],
        loc="outside lower left",
        frameon=False,
    )
    return figure


def print_head_map(plan: Plan) -> None:
    """Print a plan to the terminal; see `head_map_text`."""
    Console(highlight=False).print(head_map_text(plan))


def head_map_text(plan: Plan) -> Text:
    """A plan in letters and colours: one line per layer, one letter per head.

    The letter is the first of the role's name that no role before it has, or a number.
    """
    width = len(str(len(plan.roles) - 1))
    colour_of, letters = colours(plan), _letters(list(plan.counts))
    lines = []
    for layer, row in enumerate(plan.roles):
        gap = " " if len(row) <= 32 else ""  # those of a 14B model fit into a line of 80 letters
        heads = gap.join(f"[{colour_of[role]}]{escape(letters[role])}[/]" for role in row)
        lines.append(f"layer {layer:{width}}  {heads}")
    for role, label in zip(plan.counts, _legend(plan), strict=True):
        known_by = "" if letters[role] == role[0] else f"{letters[role]} is "
        lines.append(escape(f"{known_by}{label}"))
    return Text.from_markup("\n".join(lines))


def _letters(roles: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for place, role in enumerate(roles):
        free = [letter for letter in role if letter not in found.values()]
        found[role] = free[0] if free else str(place)
    return found


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
        for which, count in (("first", context.sink), ("key", context.keys), ("last", context.recent))
        if count
    ]
    return " and ".join(parts) or "no past frames"
