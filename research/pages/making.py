"""What all scripts here share that make pages: write what they made, or only look whether it is there."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"

Made = Callable[[], Mapping[Path, str]]
"""`made() -> {path: text}`."""


def stale(made: Mapping[Path, str]) -> list[Path]:
    """The files that are not as they would be made now."""
    return [
        path for path, text in made.items() if not path.exists() or path.read_text(encoding="utf-8") != text
    ]


def main(made: Made, description: str | None) -> None:
    """Run a script: write what it makes; with `--check` fail if anything would change.

    Args:
        made: Makes it.
        description: For the help.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing; fail if anything would change")
    is_check = parser.parse_args().check
    files = made()
    changed = stale(files)
    if is_check and changed:
        names = ", ".join(str(path.relative_to(ROOT)) for path in changed)
        raise SystemExit(f"out of date: {names}; run python -m research.pages")
    for path in changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[path], encoding="utf-8")


def fill(text: str, blocks: Mapping[str, str]) -> str:
    """Put blocks between their marks `<!-- name -->` and `<!-- /name -->`.

    Raises:
        ValueError: If a mark is missing or there twice.
    """
    for name, block in blocks.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"{begin} ... {end} must be there once")
        head, rest = text.split(begin)
        text = f"{head}{begin}\n{block}\n{end}{rest.split(end)[1]}"
    return text


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
