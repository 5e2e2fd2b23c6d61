"""Draw the method in one picture, docs/images/concept.svg, from the head plan of the bundled model.

python -m research.pages.concept [--check]
"""

from collections.abc import Mapping
from pathlib import Path

from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.presets.catalog import bundled_folders
from research.pages.making import ROOT, main
from research.pages.svg import INK, PAPER, QUIET, Picture

PATH = ROOT / "docs" / "images" / "concept.svg"
FIRST, MIDDLE, CURRENT, DUMMY = "#e8a33d", "#3b78c2", "#d9dee7", "#8b93a3"
ROLES = {"dummy": DUMMY, "sink": FIRST, "neighbor": MIDDLE}
EDGE, PANEL = "#c3c9d4", "#f7f8fa"
PAST, CHUNK = 12, 3
"""Latent frames in the picture: finished ones, and those of the current chunk."""
LAYER = 4
"""The layer whose attention is drawn."""
CELL = (29, 19)
"""Width and height of a head."""


def draw(plan: Plan) -> Picture:
    """Score, plan, cache, attend, one panel each.

    Args:
        plan: With scores.
    """
    picture = Picture(988, 616, "The method in four calls: score, plan, cache, attend")
    for x, y, title, about in (
        (32, 42, "1 score", "where each head looks in one chunk"),
        (524, 42, "2 plan", "each head gets one of three roles"),
        (32, 372, "3 cache", "each role keeps the past frames it uses"),
        (524, 372, "4 attend", "equal lengths share one attention call"),
    ):
        picture.rect(x - 20, y - 30, 472, 318 if y < 100 else 262, PANEL, radius=8)
        picture.text(x, y, title, size=19, bold=True)
        picture.text(x + 104, y, about, color=QUIET)
    _scores(picture, plan, 32, 62)
    _roles(picture, plan, 524, 62)
    _cache(picture, plan.table, 32, 396)
    _attend(picture, plan, 524, 396)
    return picture


def _grid(picture: Picture, plan: Plan, x: float, y: float) -> None:
    """Names of rows and columns of a map of heads."""
    layers, heads = len(plan.roles), len(plan.roles[0])
    for layer in range(layers):
        picture.text(
            x + 44, y + (layer + 0.7) * CELL[1], f"layer {layer + 1}", size=11, color=QUIET, anchor="end"
        )
    below = y + layers * CELL[1] + 16
    picture.text(x + 50, below, "head 1", size=11, color=QUIET)
    picture.text(x + 48 + heads * CELL[0], below, f"head {heads}", size=11, color=QUIET, anchor="end")


def _scores(picture: Picture, plan: Plan, x: float, y: float) -> None:
    """The attention of all heads as bars of three parts."""
    assert plan.scores is not None
    _grid(picture, plan, x, y)
    width, height = CELL[0] - 3, CELL[1] - 3
    for layer, row in enumerate(plan.scores):
        for head, masses in enumerate(row):
            left, top = x + 50 + head * CELL[0], y + layer * CELL[1]
            for mass, color in zip(masses, (FIRST, MIDDLE, CURRENT), strict=True):
                picture.rect(left, top, mass * width, height, color)
                left += mass * width
    names = {"first frame": FIRST, "middle": MIDDLE, "current chunk": CURRENT}
    _legend(picture, names, x + 50, y + 210)
    picture.text(x + 50, y + 236, "a bar is one head: the shares of its attention", size=12, color=QUIET)


def _roles(picture: Picture, plan: Plan, x: float, y: float) -> None:
    """The roles of all heads."""
    _grid(picture, plan, x, y)
    for layer, row in enumerate(plan.roles):
        for head, role in enumerate(row):
            left, top = x + 50 + head * CELL[0], y + layer * CELL[1]
            picture.rect(left, top, CELL[0] - 3, CELL[1] - 3, ROLES[role])
    names = {f"{count} {role}": ROLES[role] for role, count in plan.counts.items()}
    _legend(picture, names, x + 50, y + 210)
    for line in (
        "dummy: the heads whose past costs least to lose;",
        "sink, neighbor: by where they look more than other heads do",
    ):
        picture.text(x + 50, y + 236, line, size=12, color=QUIET)
        y += 17


def _cache(picture: Picture, table: Mapping[str, HeadContext], x: float, y: float) -> None:
    """The frames that each role sees."""
    step, left = 22, x + 80
    picture.text(left, y + 12, "first frame", size=11, color=QUIET)
    middle = left + PAST * step - 6
    picture.text(middle, y + 12, "last frame", size=11, color=QUIET, anchor="end")
    picture.text(middle + 14, y + 12, "current chunk", size=11, color=QUIET)
    for row, (role, context) in enumerate(table.items()):
        top = y + 24 + 46 * row
        picture.text(x, top + 16, role, bold=True)
        recent = context.recent or 0
        for frame in range(PAST):
            is_seen = frame < context.sink or frame >= PAST - recent
            dash = "" if is_seen else "2 3"
            fill, edge = (ROLES[role], ROLES[role]) if is_seen else (PAPER, EDGE)
            picture.rect(left + frame * step, top, 17, 22, fill, edge=edge, radius=2, dash=dash)
        for frame in range(CHUNK):
            picture.rect(middle + 14 + frame * step, top, 17, 22, CURRENT, edge=QUIET, radius=2)
    note = y + 24 + 46 * len(table) + 12
    for line in (
        "The current chunk is written in place, so the size is constant:",
        "pinned slots for first frames, a ring for the last ones.",
    ):
        picture.text(x, note, line, size=12, color=QUIET)
        note += 17


def _attend(picture: Picture, plan: Plan, x: float, y: float) -> None:
    """The attention calls of one layer, beside the dense one, to scale."""
    row = plan.roles[LAYER - 1]
    lengths = {role: context.total or 0 for role, context in plan.table.items()}
    calls: dict[int, list[str]] = {}
    for role in sorted(row, key=lambda role: (lengths[role], list(plan.table).index(role))):
        calls.setdefault(lengths[role], []).append(role)
    step, high, top = 15, 10, y + 22
    picture.text(x, y + 8, f"layer {LAYER}, Dummy Forcing", size=12, bold=True)
    for number, (past, roles) in enumerate(calls.items()):
        names = " and ".join(dict.fromkeys(roles))
        picture.text(x, top + 9, f"call {number + 1}: {names}", size=12)
        top += 17
        for role in roles:
            for frame in range(past + CHUNK):
                color = ROLES[role] if frame < past else CURRENT
                picture.rect(x + frame * step, top, step - 2, high - 2, color)
            top += high
        top += 10
    left, top = x + 215, y + 39
    picture.text(left, y + 8, "the same layer, dense", size=12, bold=True)
    for _ in row:
        for frame in range(PAST + CHUNK):
            color = PAPER if frame < PAST else CURRENT
            picture.rect(left + frame * step, top, step - 2, high - 2, color, edge=EDGE)
        top += high
    here = sum(len(roles) * (past + CHUNK) for past, roles in calls.items())
    dense = len(row) * (PAST + CHUNK)
    picture.text(left, top + 20, f"keys of {here} frames in place of {dense},", size=12, color=INK)
    picture.text(left, top + 37, "and no more when the video grows", size=12, color=INK)


def _legend(picture: Picture, names: Mapping[str, str], x: float, y: float) -> None:
    for name, color in names.items():
        picture.rect(x, y - 10, 12, 12, color)
        picture.text(x + 17, y, name, size=12)
        x += 40 + 7 * len(name)


def made() -> dict[Path, str]:
    """The picture by its path."""
    plan = Plan.load(bundled_folders()["tiny"] / "plan.json")
    return {PATH: str(draw(plan))}


if __name__ == "__main__":
    main(made, __doc__)
