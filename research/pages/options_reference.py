"""Write docs/reference/options.md from the classes of options.

python -m research.pages.options_reference [--check]
"""

from collections.abc import Mapping
from pathlib import Path

from dummyforcing.pipeline.option import Documented, documented
from dummyforcing.pipeline.options import (
    REFUSED,
    CallOptions,
    LoadOptions,
    VideoOptions,
)
from research.pages.making import ROOT, main
from research.pages.page import table

PATH = ROOT / "docs" / "reference" / "options.md"
INTRODUCTION = """# Options

Written by `python -m research.pages.options_reference` from `pipeline/options.py`, the one place where
options are declared. In Python they are keyword arguments; the command line has the flags. A preset may have
other defaults (`options = { policy = "anchored" }`). A number out of its bounds, an unknown name, or two
options that say the same are refused with a sentence that says what would work.
"""
PARTS = (
    (
        "Of a model",
        "`DummyForcingPipeline.from_pretrained(name, ...)`, `load(name, ...)`, and commands with `--model`.",
        LoadOptions,
        None,
    ),
    (
        "Of a video",
        "`pipe(prompt, ...)`, `pipe.generate`, `pipe.stream`, `pipe.start`, and `dummyforcing generate`.",
        VideoOptions,
        None,
    ),
    ("Of a call", "`pipe(prompt, ...)` alone, beside those of a video.", CallOptions, VideoOptions),
)


def row(one: Documented) -> list[str]:
    """An option as a row."""
    flag = f"`--{one.flag}`" if one.about.is_flag else "-"
    return [f"`{one.name}`", flag, _default(one), _values(one), one.text.replace("|", "\\|")]


def _default(one: Documented) -> str:
    if one.about.hint:
        return one.about.hint
    return "none" if one.default in (None, ()) else f"`{one.default}`"


def _values(one: Documented) -> str:
    about = one.about
    if about.choices:
        return ", ".join(f"`{choice}`" for choice in about.choices)
    low = f"above {about.above:g}" if about.above is not None else ""
    if about.least is not None:
        low = f"{about.least:g}"
    if about.most is not None:
        high = "2^63 - 1" if about.most == 2**63 - 1 else f"{about.most:g}"
        bounds = f"{low} to {high}"
    else:
        bounds = f"{low} or more" if about.least is not None else low
    unit = f"in {about.unit}" if about.unit else ""
    return ", ".join(part for part in (bounds, unit) if part) or "-"


def made() -> Mapping[Path, str]:
    """The page by its path."""
    parts = [INTRODUCTION]
    header = ["option", "flag", "default", "values", "what it is"]
    for title, where, kind, base in PARTS:
        known = {one.name for one in documented(base)} if base else set()
        rows = [row(one) for one in documented(kind) if one.name not in known]
        parts.append(f"## {title}\n\n{where}\n\n{table(header, rows)}\n")
    refused = [[f"`{name}`", why] for name, why in REFUSED.items()]
    told = "What pipelines for other models have, and these refuse:"
    parts.append(f"## Not there\n\n{told}\n\n{table(['option', 'why'], refused)}\n")
    return {PATH: "\n".join(parts)}


if __name__ == "__main__":
    main(made, __doc__)
