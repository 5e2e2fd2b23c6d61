"""The default policy by a rule: the simplest that holds what is asked, and that nothing beats.

    table = read_table(results)          # of `research.benchmarks.policies`
    table.decide().default

The rule, in this order, at each length:

1. What is asked (`misses`): no more past frames per head than `MOST_FRAMES`, no more points below dense than
   `MARGINS`, no seam above dense by more than `MOST_SEAM`. The mean counts; the table shows the intervals.
2. No simpler policy beats it at its cost (`losses`). Simpler is: fewer kinds of context; of as many kinds,
   contexts that need not be found; of equally many found alike, fewer past frames.
3. Of the policies that are left, those that no other one of them beats; if there are none, as each is beaten
   by some other one, all of them.

The default is the simplest policy that is left at every length. If there is none, the best differs by length,
and the default is `auto`: the simplest that is left at the length of the video.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from dummyforcing.evaluation.bootstrap import Estimate, bootstrap

JUDGED = {"whole": ("color", "shape", "motion", "count"), "end": ("color", "shape", "count")}
"""What is judged of each video: of its end no motion, as things that slide, float, grow or shrink stand still
by then, as they should. A point is a hundredth of all verdicts."""
FOUND = ("given", "video", "model")
"""How heads get their contexts, the simplest first: all alike, by each video's own attention, or by a
measurement of the model beforehand."""
MARGINS = {5: 1.0, 10: 1.0, 30: 2.0, 60: 4.0}
"""Points below dense that a default may have, up to so many seconds."""
MOST_FRAMES = 4.0
"""Past frames per head that a default may have."""
MOST_SEAM = 0.05
"""Gray levels by which its seams may exceed those of dense."""
BEATS_LEVEL = 0.99
"""Of the intervals that tell whether one policy beats another: so many pairs are compared that some 95%
intervals lie beyond 0 by chance."""
EQUAL_FRAMES = 0.25
"""Past frames per head that make no difference in cost: with a chunk of 3 frames, at most 5% of what a head
sees."""


@dataclass(frozen=True)
class Outcome:
    """What a policy does at one length."""

    past_frames: float
    """Per head, mean."""
    seam: float
    """Gray levels beyond those of dense."""
    right: Mapping[str, str]
    """For each of `JUDGED` a digit for each video, in the same order for all policies: how many verdicts are
    right."""


@dataclass(frozen=True)
class Contender:
    """A policy with its outcomes."""

    name: str
    kinds: int
    """How many different contexts its heads see."""
    found: str
    """One of `FOUND`."""
    is_control: bool
    """Controls may beat others, and are never chosen."""
    outcomes: Mapping[int, Outcome]
    """By seconds."""

    def is_simpler(self, other: "Contender", seconds: int) -> bool:
        """Whether it comes before another one in the order of simplicity."""
        return self.order(seconds) < other.order(seconds)

    def order(self, seconds: int) -> tuple[int, int, float]:
        """Its place in the order of simplicity: least is simplest."""
        return self.kinds, FOUND.index(self.found), self.outcomes[seconds].past_frames


@dataclass(frozen=True)
class Decision:
    """What the rule says."""

    default: str | None
    """The policy for all lengths; None: there is none."""
    best: Mapping[int, str | None]
    """The best by seconds; None: nothing holds what is asked there."""

    @property
    def is_auto(self) -> bool:
        """Whether the default is one policy up to some length, and another one beyond it."""
        return self.default is None and None not in self.best.values()


class Table:
    """All policies with their outcomes, and the rule."""

    def __init__(self, contenders: Sequence[Contender], reference: str = "dense") -> None:
        self.contenders = {one.name: one for one in contenders}
        self.reference = reference
        self.lengths = tuple(sorted(self.contenders[reference].outcomes))
        self.points = cache(self._points)

    def _points(self, name: str, other: str, seconds: int, judged: str, level: float = 0.95) -> Estimate:
        """How many points more a policy has than another one, pair by pair, with the interval."""
        mine, theirs = (
            np.array([int(digit) for digit in self.contenders[one].outcomes[seconds].right[judged]])
            for one in (name, other)
        )
        return bootstrap((mine - theirs) * (100 / len(JUDGED[judged])), level=level)

    def beats(self, name: str, other: str, seconds: int) -> bool:
        """Whether a policy is better over the whole or at the end, and in neither worse, by the intervals."""
        found = [self.points(name, other, seconds, judged, BEATS_LEVEL) for judged in JUDGED]
        return any(one.low > 0 for one in found) and not any(one.high < 0 for one in found)

    def misses(self, name: str, seconds: int) -> list[str]:
        """What is asked of a default and a policy does not hold, in words."""
        own, margin = self.contenders[name].outcomes[seconds], margin_at(seconds)
        found = []
        if own.past_frames > MOST_FRAMES:
            found.append(f"{own.past_frames:.2f} past frames")
        for judged in JUDGED:
            points = self.points(name, self.reference, seconds, judged).value
            if points < -margin:
                found.append(f"{points:+.1f} points ({judged})")
        if own.seam > MOST_SEAM:
            found.append(f"seams {own.seam:+.3f}")
        return found

    def losses(self, name: str, seconds: int) -> list[str]:
        """Simpler policies that beat a policy at its cost."""
        own = self.contenders[name]
        most = own.outcomes[seconds].past_frames + EQUAL_FRAMES
        return [
            other.name
            for other in self.contenders.values()
            if other.is_simpler(own, seconds)
            and other.outcomes[seconds].past_frames <= most
            and self.beats(other.name, name, seconds)
        ]

    def left(self, seconds: int) -> list[str]:
        """The policies among which simplicity decides, the simplest first."""
        fit = [
            one
            for one in self.contenders.values()
            if not one.is_control
            and one.name != self.reference
            and not self.misses(one.name, seconds)
            and not self.losses(one.name, seconds)
        ]
        fit.sort(key=lambda one: one.order(seconds))
        names = [one.name for one in fit]
        unbeaten = [name for name in names if not any(self.beats(o, name, seconds) for o in names)]
        return unbeaten or names

    def decide(self) -> Decision:
        """Apply the rule."""
        left = {seconds: self.left(seconds) for seconds in self.lengths}
        shortest = self.lengths[0]
        everywhere = [name for name in left[shortest] if all(name in names for names in left.values())]
        best = {seconds: names[0] if names else None for seconds, names in left.items()}
        return Decision(everywhere[0] if everywhere else None, best)


def margin_at(seconds: float) -> float:
    """Points below dense that a default may have in videos of some length."""
    return next((points for most, points in MARGINS.items() if seconds <= most), MARGINS[max(MARGINS)])


def read_table(results: Mapping[str, Any]) -> Table:
    """The table of a result file of `research.benchmarks.policies`."""
    lengths: Mapping[str, Any] = results["lengths"]
    return Table(
        [
            Contender(
                name,
                about["kinds"],
                about["found"],
                about["is_control"],
                {int(seconds): _outcome(run["policies"][name]) for seconds, run in lengths.items()},
            )
            for name, about in results["policies"].items()
        ]
    )


def _outcome(found: Mapping[str, Any]) -> Outcome:
    return Outcome(
        found["measures"]["past_frames"]["mean"],
        found["against_dense"]["seam_excess"]["mean"],
        found["right"],
    )
