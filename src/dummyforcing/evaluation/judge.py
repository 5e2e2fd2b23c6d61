"""What is worse in some videos than in others of the same prompts and noise, in words.

    judgement = judge(rows, dense_rows, prompts)
    judgement.worse  # ("objects do less often what the prompt says: 25%, dense 92% ...",)

Only measures of which more, or less, is plainly worse are judged. One counts as worse if the whole 95%
interval of the paired differences is on that side. Of fewer than five prompts no interval means anything:
what differs is told then, and not called a loss.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dummyforcing.evaluation.bootstrap import EstimateJson
from dummyforcing.evaluation.suite import aggregate, differences
from dummyforcing.evaluation.world.measures import SceneMeasures

FEWEST = 5
"""Prompts from which on an interval is believed: five differ all to the worse in 1 of 32 cases by chance."""


@dataclass(frozen=True)
class Told:
    """How a measure is told."""

    name: str
    """Of the measure, in words."""
    worse: str
    """What it means that it is worse, as a sentence."""
    better: str | None = None
    """What the opposite means; None: it is no gain (noise moves, too)."""
    is_high_worse: bool = False
    scale: float = 1.0
    unit: str = ""
    points: str = ""
    """The unit of differences."""

    def number(self, value: float, sign: str = "") -> str:
        """A value of it as text, without its unit."""
        return f"{round(self.scale * value, 5) + 0.0:{sign}.3g}"  # no rounding errors, no minus zero


def _share(name: str, worse: str, better: str | None = None) -> Told:
    return Told(name, worse, better, scale=100, unit="%", points=" points")


def _drift(of: str) -> Told:
    name, unit = f"drift of {of}", "% per s"
    return Told(name, f"{of} drifts more", f"{of} drifts less", True, scale=100, unit=unit, points=unit)


GRAY = " gray levels"
SPEED = " picture widths/s"
TOLD: Mapping[str, Told] = {
    "motion": _share(
        "motion",
        "objects do less often what the prompt says",
        "objects do more often what the prompt says",
    ),
    "color": _share(
        "color", "objects have the wrong color more often", "objects have the right color more often"
    ),
    "shape": _share(
        "shape", "objects have the wrong shape more often", "objects have the right shape more often"
    ),
    "count": _share(
        "number of objects",
        "the number of objects is wrong more often",
        "the number of objects is right more often",
    ),
    "consistency": _share(
        "return of objects",
        "objects that leave come back as others more often",
        "objects that leave come back as they were more often",
    ),
    "speed": Told("speed", "objects move more slowly", unit=SPEED, points=SPEED),
    "dynamic": _share("moving pixels", "less of the picture moves"),
    "seam_excess": Told(
        "seams between chunks",
        "the picture jumps more between chunks",
        "the picture jumps less between chunks",
        True,
        unit=GRAY,
        points=GRAY,
    ),
    "repetition": Told("repetition", "it repeats itself more", None, True),
    "sharpness": Told("sharpness", "it is less sharp"),
    **{f"{of}_drift": _drift(of) for of in ("brightness", "contrast", "saturation", "sharpness")},
}
"""The measures that are judged, what matters most first. Drifts count without their sign."""


@dataclass(frozen=True)
class Judgement:
    """What was found, in words, what matters most first."""

    worse: tuple[str, ...]
    """A sentence for each measure that is worse."""
    better: tuple[str, ...]
    """A sentence for each that is better."""
    no_loss: tuple[str, ...]
    """Names of the measures in which no loss was found."""
    prompts: int
    """How many there are."""
    is_told: bool
    """Whether these are enough to tell loss from chance; else `worse` and `better` are what differs."""


def judge(
    rows: Sequence[SceneMeasures],
    reference: Sequence[SceneMeasures],
    prompts: Sequence[str],
    than: str = "dense",
) -> Judgement:
    """Compare videos with a reference of the same prompts and noise, in the same order.

    Args:
        rows: One per video.
        reference: As many.
        prompts: What each video shows; videos of a prompt count as one value.
        than: What the reference is called.

    Raises:
        ValueError: If the numbers of videos differ.
    """
    mine, theirs = list(map(_unsigned, rows)), list(map(_unsigned, reference))
    found = differences(mine, theirs, groups=prompts)
    is_told = len(set(prompts)) >= FEWEST
    worse, better, no_loss = [], [], []
    for name, told in TOLD.items():
        if name not in found or (is_told and found[name]["n"] < FEWEST):
            continue
        low, high = found[name]["interval"]
        places = [i for i, pair in enumerate(zip(mine, theirs, strict=True)) if _applies(name, *pair)]
        groups = [prompts[i] for i in places]
        means = [aggregate([some[i] for i in places], groups=groups)[name]["mean"] for some in (mine, theirs)]
        is_worse, is_better = (low > 0, high < 0) if told.is_high_worse else (high < 0, low > 0)
        if is_worse:
            said = _sentence(told, told.worse, means, found[name], than)
            worse.append(said + _seen(name, rows, reference))
        elif is_better and told.better:
            better.append(_sentence(told, told.better, means, found[name], than))
        else:
            no_loss.append(told.name)
    return Judgement(tuple(worse), tuple(better), tuple(no_loss), len(set(prompts)), is_told)


def _unsigned(row: SceneMeasures) -> SceneMeasures:
    """The measures with drifts whose sign does not matter."""
    drifts = {name: getattr(row, name) for name in TOLD if name.endswith("_drift")}
    unsigned: dict[str, Any] = {name: value and abs(value) for name, value in drifts.items()}
    return replace(row, **unsigned)


def _applies(name: str, one: SceneMeasures, other: SceneMeasures) -> bool:
    """Whether both have a measure."""
    return getattr(one, name) is not None and getattr(other, name) is not None


def _sentence(told: Told, what: str, means: Sequence[float], found: EstimateJson, than: str) -> str:
    mine, theirs = (f"{told.number(mean)}{told.unit}" for mean in means)
    low, high = (told.number(end, "+") for end in found["interval"])
    difference = f"{told.number(found['mean'], '+')}{told.points}"
    return f"{what}: {mine}, {than} {theirs} (difference {difference}, 95% interval {low} to {high})"


def _seen(name: str, rows: Sequence[SceneMeasures], reference: Sequence[SceneMeasures]) -> str:
    """What most often is wrong where the reference is right, such as `still, not bounce`."""
    reasons = [
        reason.partition(": ")[2]
        for row, other in zip(rows, reference, strict=True)
        if getattr(other, name) is True
        for reason in row.reasons
        if reason.startswith(f"{name}: ")
    ]
    shown = [f"'{reason}'{f' ({n} times)' * (n > 1)}" for reason, n in Counter(reasons).most_common(3)]
    return f"; seen: {', '.join(shown)}" if shown else ""
