"""The section of docs/reproduction.md that decides on the default policy, from its benchmark's results."""

from typing import Any

from dummyforcing.evaluation.bootstrap import Estimate
from research.pages.making import table
from research.pages.verdicts import number
from research.studies.decision import (
    BEATS_LEVEL,
    EQUAL_FRAMES,
    JUDGED,
    MARGINS,
    MOST_FRAMES,
    MOST_SEAM,
    Table,
    margin_at,
    read_table,
)

Result = dict[str, Any]

SECTION = """## Which policy is the default

Every policy makes the same videos, from the same noise, at equal cost: *past frames* that a head sees, mean
over heads. *All right* are videos whose colors, shapes, motions and number of objects are right; at the end,
that is in the last 5 seconds, motions do not count: things that slide, float, grow or shrink stand still by
then, as they should. *Points* are hundredths of these four or three verdicts against dense, pair by pair.
*Seam* and *drift* are those of [Longer videos](#longer-videos), the seam less that of dense. *Chunk* is the
time of a chunk at the end, of one video by itself; *cache* is one video's. Heads by *measured damage* are one
plan, from {calibrated_on} training prompts.
"""
RULE = """The rule (`research/studies/decision.py`), at each length:

1. A default has {frames:g} past frames per head or fewer, loses no more points against dense than
   {margins}
   (over the whole, and at the end), and its seams are no more than {seam:g} gray levels above those of dense.
   The means count.
2. No simpler policy *beats* it at its cost ({equal:g} frames more cost the same): is better over the whole or
   at the end, and worse in neither, beyond the {level:.0%} intervals, as many pairs are compared. Simpler is
   what has fewer kinds of context; of as many kinds, what need not be found, then what each video's own
   attention finds, then what is measured beforehand; of these, what costs less.
3. It is not beaten by another one that is left.

The default is the simplest policy that is left at every length; if there is none, the simplest that is left
at the length of the video.
"""
HEADER = [
    *("policy", "heads", "kinds", "past frames", "chunk, ms", "cache, MB", "all right, %", "at the end, %"),
    *("points", "points at the end", "seam", "drift", "verdict"),
]


def section(results: Result) -> str:
    """The rule, its verdict, and a table for each length."""
    decided = read_table(results)
    margins = ", ".join(f"{points:g} (up to {seconds} s)" for seconds, points in MARGINS.items())
    rule = RULE.format(
        frames=MOST_FRAMES,
        margins=margins,
        seam=MOST_SEAM,
        equal=EQUAL_FRAMES,
        level=BEATS_LEVEL,
    )
    parts = [SECTION.format(**results), rule, verdict(decided)]
    for seconds in decided.lengths:
        run = results["lengths"][str(seconds)]
        parts.append(
            f"### {seconds} s\n\n{run['videos']} videos of {run['pixel_frames']} pixel frames per policy.\n"
        )
        rows = [_row(results, decided, name, seconds) for name in _by_cost(decided, seconds)]
        parts.append(f"{table(HEADER, rows)}\n")
    return "\n".join(parts)


def verdict(decided: Table) -> str:
    """What the rule says, in words."""
    decision = decided.decide()
    if decision.default is not None:
        said = f"**The default is `{decision.default}`**, at every length."
    elif decision.is_auto:
        best = "; ".join(f"{seconds} s: `{name}`" for seconds, name in decision.best.items())
        said = f"**The best differs by length**, so the default is `auto`: {best}."
    else:
        best = "; ".join(
            f"{seconds} s: {f'`{name}`' if name else 'none'}" for seconds, name in decision.best.items()
        )
        said = f"**No policy holds what is asked at every length**: {best}."
    lines = [said, ""]
    for seconds in decided.lengths:
        left = decided.left(seconds)
        found = "; ".join(f"`{name}` {_held(decided, name, seconds)}" for name in left)
        lines.append(f"- {seconds} s, left by the rule, the simplest first: {found or 'none'}.")
    return "\n".join([*lines, ""])


def _by_cost(decided: Table, seconds: int) -> list[str]:
    """All policies, the cheapest first, so that those of equal cost stand together."""
    return sorted(decided.contenders, key=lambda name: decided.contenders[name].outcomes[seconds].past_frames)


def _held(decided: Table, name: str, seconds: int) -> str:
    """How far the points are from what is asked, by their intervals."""
    margin = margin_at(seconds)
    lows = [decided.points(name, decided.reference, seconds, judged).low for judged in JUDGED]
    return "(the whole interval holds)" if min(lows) >= -margin else "(the mean holds, the interval is open)"


def _row(results: Result, decided: Table, name: str, seconds: int) -> list[str]:
    about, found = results["policies"][name], results["lengths"][str(seconds)]["policies"][name]
    own, change = found["measures"], found["against_dense"]
    points = [_points(decided.points(name, decided.reference, seconds, judged)) for judged in JUDGED]
    is_dense = name == decided.reference
    return [
        name,
        about["what"],
        str(about["kinds"]),
        f"{own['past_frames']['mean']:.2f}",
        f"{about['chunk_ms'][str(seconds)]:.1f}",
        f"{own['cache_bytes']['mean'] / 1e6:.1f}",
        number(own["right"], 100, 0),
        number(own["right_at_end"], 100, 0),
        *(["-", "-"] if is_dense else points),
        f"{own['seam_excess']['mean']:.3f}" if is_dense else number(change["seam_excess"], 1, 3, True),
        number(own["contrast_drift"], 100, 3, True),
        "the reference" if is_dense else _judged(decided, name, seconds),
    ]


def _points(found: Estimate) -> str:
    return number({**found.as_json()}, 1, 1, True)


def _judged(decided: Table, name: str, seconds: int) -> str:
    """Why a policy is out, or that it is left."""
    if decided.contenders[name].is_control:
        return "a control"
    if missed := decided.misses(name, seconds):
        return ", ".join(missed)
    if lost := decided.losses(name, seconds):
        return f"beaten by {', '.join(lost)}"
    return "**left**" if name in decided.left(seconds) else "beaten by one that is left"
