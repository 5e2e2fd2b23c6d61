"""Draw the packages by layer, docs/images/architecture.svg, and list them in docs/architecture.md.

python -m research.pages.architecture [--check]

The layers are those of the contract in pyproject.toml, the arrows are the imports that the code really has.
"""

import ast
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import grimp

from research.pages.making import ROOT, fill, main, table
from research.pages.svg import QUIET, Picture

PACKAGE = "dummyforcing"
SOURCE = ROOT / "src" / PACKAGE
PICTURE = ROOT / "docs" / "images" / "architecture.svg"
PAGE = ROOT / "docs" / "architecture.md"
COLUMNS = {
    "cli": 300,
    "client": 620,
    "server": 620,
    "integrations": 460,
    "analysis": 140,
    "bench": 300,
    "evaluation": 460,
    "pipeline": 300,
    "sampling": 300,
    "runtime": 300,
    "models": 450,
    "vae": 660,
    "attention": 140,
    "cache": 300,
    "method": 300,
    "kernels": 555,
    "checkpoints": 770,
    "presets": 910,
    "media": 1050,
}
"""Where packages stand, their middles from the left; others are put beside their row."""
WIDTH, WIDE, HIGH, ROW = 1130, 124, 44, 74
EDGES, ENGINE, DATA, BASE = "#dbe7f7", "#fdeccd", "#e3f1e4", "#eceef2"
ARROW, FILLS = "#5b6577", "#b4552d"

Imports = Mapping[str, frozenset[str]]
"""The packages that each package imports."""


def layers() -> list[list[str]]:
    """The packages by layer, the highest first, as the contract has them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = next(c for c in settings["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    return [
        [name.strip().removeprefix(f"{PACKAGE}.") for name in layer.replace("|", ":").split(":")]
        for layer in contract["layers"]
    ]


def imports() -> Imports:
    """Who imports whom, package by package."""
    graph = grimp.build_graph(PACKAGE)
    found: dict[str, set[str]] = {}
    for module in graph.modules:
        _, _, rest = module.partition(".")
        own = rest.partition(".")[0]
        for other in graph.find_modules_directly_imported_by(module):
            theirs = other.partition(".")[2].partition(".")[0]
            if own and theirs and own != theirs:
                found.setdefault(own, set()).add(theirs)
    return {name: frozenset(others) for name, others in found.items()}


def drawn(found: Imports, rows: list[list[str]]) -> Iterator[tuple[str, str]]:
    """The imports to draw: those that do not follow from others, and those that lead upwards.

    Those of the lowest layer, which all may use, are left out.
    """
    depth = {name: number for number, row in enumerate(rows) for name in row}
    shown = {name for row in rows[:-1] for name in row}
    down = {
        name: frozenset(o for o in others if o in shown and depth[o] >= depth[name])
        for name, others in found.items()
        if name in shown
    }
    for name, others in sorted(down.items()):
        for other in sorted(others):
            if not any(other in _reached(down, step) for step in others - {other}):
                yield name, other
        yield from ((name, other) for other in sorted(found[name] & shown) if depth[other] < depth[name])


def _reached(found: Imports, start: str) -> set[str]:
    reached, left = {start}, [start]
    while left:
        for other in found.get(left.pop(), frozenset()):
            if other not in reached:
                reached.add(other)
                left.append(other)
    return reached


def draw(rows: list[list[str]], found: Imports) -> Picture:
    """Boxes in rows, arrows to what they import."""
    picture = Picture(WIDTH, 30 + ROW * len(rows) + 46, "The packages by layer and their imports")
    depth = {name: number for number, row in enumerate(rows) for name in row}
    places = {
        name: (COLUMNS.get(name, 140 + 160 * number), 30 + ROW * depth[name])
        for row in rows[:-1]
        for number, name in enumerate(row)
    }
    lanes: dict[str, int] = {}
    for name, other in sorted(drawn(found, rows), key=lambda pair: -places[pair[1]][0]):  # few lines cross
        _arrow(picture, places, name, other, lanes)
    for name, (x, y) in places.items():
        color = EDGES if depth[name] <= depth["pipeline"] else ENGINE
        color = DATA if depth[name] == len(rows) - 2 else color
        picture.rect(x - WIDE / 2, y, WIDE, HIGH, color, edge=ARROW, radius=6)
        picture.text(x, y + 19, name, bold=True, anchor="middle")
        picture.text(x, y + 35, _modules_in_words(name), size=11, color=QUIET, anchor="middle")
    y = 30 + ROW * (len(rows) - 1)
    picture.rect(78, y, WIDTH - 100, HIGH, BASE, edge=ARROW, radius=6)
    base = ", ".join(sorted(rows[-1]))
    picture.text((WIDTH + 56) / 2, y + 19, base, bold=True, anchor="middle")
    picture.text((WIDTH + 56) / 2, y + 35, "used by all packages", size=11, color=QUIET, anchor="middle")
    foot = y + HIGH + 34
    picture.line([(80, foot - 4), (110, foot - 4)], ARROW)
    picture.text(118, foot, "imports; what follows from other arrows is left out", size=12, color=QUIET)
    picture.line([(480, foot - 4), (510, foot - 4)], FILLS, dash="4 3")
    picture.text(518, foot, "fills with weights: the one exception from the layers", size=12, color=QUIET)
    for number in range(len(rows)):
        picture.text(26, 30 + ROW * number + 27, str(len(rows) - number), color=QUIET, anchor="middle")
    return picture


def _arrow(
    picture: Picture, places: Mapping[str, tuple[int, int]], name: str, other: str, lanes: dict[str, int]
) -> None:
    """From one package to another: straight to a near one, around the boxes to a far one."""
    (x0, y0), (x1, y1) = places[name], places[other]
    if y1 < y0:  # upwards, which only those may that fill others
        turn = lanes[name] = lanes.get(name, 0) + 1
        start, middle = x0 - 60 + 16 * turn, y1 + HIGH + 8 + 8 * turn
        picture.line(
            [(start, y0), (start, middle), (x1 + 24, middle), (x1 + 24, y1 + HIGH)], FILLS, dash="4 3"
        )
    elif y1 == y0:
        side = WIDE / 2 if x1 > x0 else -WIDE / 2
        picture.line([(x0 + side, y0 + HIGH / 2), (x1 - side, y1 + HIGH / 2)], ARROW)
    elif y1 - y0 <= ROW or x0 == x1:
        lean = max(-44.0, min(44.0, (x1 - x0) / 4))
        picture.line([(x0 + lean, y0 + HIGH), (x1 - lean, y1)], ARROW)
    elif _is_free(places, name, other):
        side = WIDE / 2 if x0 > x1 else -WIDE / 2
        picture.line([(x0, y0 + HIGH), (x0, y1 + HIGH / 2), (x1 + side, y1 + HIGH / 2)], ARROW)
    else:
        turn = lanes[name] = lanes.get(name, 0) + 1
        height, right = y0 + 6 + 11 * turn, WIDE / 2 if x1 > x0 else -WIDE / 2
        picture.line([(x0 + right, height), (x1, height), (x1, y1)], ARROW)


def _is_free(places: Mapping[str, tuple[int, int]], name: str, other: str) -> bool:
    """Whether no box is in the way straight down from one package to the row of another."""
    (x0, y0), (_, y1) = places[name], places[other]
    return not any(y0 < y <= y1 and abs(x - x0) < WIDE / 2 + 8 for x, y in places.values())


def _modules(name: str) -> list[str]:
    found = [path for path in (SOURCE / name).rglob("*.py") if path.stem != "__init__"]
    return sorted(path.relative_to(SOURCE / name).with_suffix("").as_posix() for path in found)


def _modules_in_words(name: str) -> str:
    count = len(_modules(name))
    return f"{count} modules" if count > 1 else "1 module"


def _about(name: str) -> str:
    """The first sentence of a package's documentation."""
    path = SOURCE / name / "__init__.py"
    text = ast.get_docstring(ast.parse((path if path.exists() else SOURCE / f"{name}.py").read_text("utf-8")))
    return str(text).partition("\n")[0].rstrip(".")


def packages(rows: list[list[str]]) -> str:
    """The table of the packages, the highest layer first."""
    lines = [
        [str(len(rows) - number), f"`{name}`", _about(name), ", ".join(f"`{m}`" for m in _modules(name))]
        for number, row in enumerate(rows)
        for name in row
    ]
    return table(["layer", "package", "what it is", "modules"], lines)


def made() -> dict[Path, str]:
    """The picture, and the page with its table."""
    rows = layers()
    page = fill(PAGE.read_text(encoding="utf-8"), {"packages": packages(rows)})
    return {PICTURE: str(draw(rows, imports())), PAGE: page}


if __name__ == "__main__":
    main(made, __doc__)
