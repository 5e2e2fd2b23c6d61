"""Which motion of the world a track shows, by rules that a person would use.

Every rule is a ramp from "not at all" (0) to "plainly" (1); a motion scores as its weakest ramp; 0.5 is the
threshold. Units are the world's: the picture is 2 wide and 2 high, y points down, 16 pixel frames/s.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dummyforcing.evaluation.world.scene import FPS, MOTIONS

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Track:
    """Where an object is in each of T pixel frames.

    Attributes:
        x: Centroid of what is visible, (T,); the last known one while nothing is.
        y: Likewise.
        area: Visible area, (T,), in units in which the picture has 4.
        angle: Turn of the outline in radians, (T,), unwrapped; zero for a ball or ring.
        visible: Whether there is anything to see, (T,).
        whole: Whether nothing cuts the outline: no border, no pillar, no other object, (T,).
    """

    x: Floats
    y: Floats
    area: Floats
    angle: Floats
    visible: Bools
    whole: Bools


def motion_scores(track: Track, pillar: bool) -> dict[str, float]:
    """How well a track meets the rules of each motion, 0 to 1.

    Args:
        track: The track.
        pillar: Whether a pillar stands in the middle of the picture.
    """
    scores = dict.fromkeys(MOTIONS, 0.0)
    free = np.flatnonzero(track.whole)
    if len(free) < 4:
        return scores
    long = len(track.x) >= 4 * FPS  # shorter clips show less than two rounds of most motions
    x, y, angle, area = (_smooth(v[free]) for v in (track.x, track.y, track.angle, track.area))
    size = np.log(area)
    dx, dy = spread(x), spread(y)
    moved = max(dx, dy)
    tenth = max(1, len(free) // 10)
    growth = float(np.median(size[-tenth:]) - np.median(size[:tenth]))
    turns = float(angle[-1] - angle[0]) / (2 * math.pi)
    step = np.hypot(np.diff(x), np.diff(y))[np.diff(free) == 1]
    fluent = _ramp(float(step.max(initial=0)), 0.45, 0.25)  # the fastest fall is 0.16 per pixel frame
    steady = min(fluent, _ramp(abs(growth), 0.9, 0.5))
    here = min(fluent, _ramp(moved, 0.4, 0.2))

    absences = [absence.kind for absence in find_absences(track)]
    if "hidden" in absences and pillar:
        scores["behind"] = min(fluent, _ramp(dx, 0.3, 0.6))
    elif "out" in absences or ("left" in absences and not long):
        scores["return"] = fluent
    if set(absences) - {"left"}:  # the rest is for objects that stay in sight, or slide out for good
        return scores

    circling = _ramp(_circling(x, y), *((0.5, 1.0) if long else (0.3, 0.6)))
    scores["circle"] = min(steady, _ramp(min(dx, dy), 0.2, 0.4), circling)
    scores["bounce"] = min(
        steady,
        1 - scores["circle"],
        _ramp(dy, 0.2, 0.4),
        _ramp(dx, 1.0 * dy, 0.6 * dy),
        _ramp(_swaps(y), *((1, 4) if long else (0.5, 2.5))),
        _ramp(float((y < (y.min() + y.max()) / 2).mean()), 0.48, 0.60),  # slow at the top, quick at the floor
    )
    scores["swing"] = min(
        steady,
        _ramp(dx, 0.25, 0.5),
        _ramp(dy, 0.8 * dx, 0.4 * dx),
        _ramp(_swaps(x), *((0, 3) if long else (0, 1.5))),
        _ramp(_backwards(x), 0.05, 0.35),
    )
    for curve, other, names in ((x, dy, ("left", "right")), (y, dx, ("up", "down"))):
        way = float(curve[-1] - curve[0])
        scores[names[int(way > 0)]] = min(
            steady,
            _ramp(abs(way), 0.2, 0.4),
            _ramp(other, 0.8 * abs(way), 0.4 * abs(way)),
            _ramp(_backwards(curve), 0.35, 0.1),
        )
    scores["grow"] = min(here, _ramp(growth, 0.3, 0.7), _ramp(_backwards(size), 0.6, 0.3))
    scores["shrink"] = min(here, _ramp(-growth, 0.3, 0.7), _ramp(_backwards(size), 0.6, 0.3))
    scores["spin"] = min(here, steady, _ramp(abs(turns), 0.15, 0.35), _ramp(_backwards(angle), 0.5, 0.2))
    scores["pulse"] = min(
        here, _ramp(spread(size), 0.4, 0.8), _ramp(_swaps(size), *((1, 4) if long else (0, 2)))
    )
    # What falls is quick, and rests at the ground; what floats down takes its time.
    scores["fall"] = min(scores["down"], haste := _ramp(_hurry(y), 1.8, 1.2))
    scores["down"] = min(scores["down"], 1 - haste)
    scores["still"] = min(
        _ramp(moved, 0.16, 0.08),
        _ramp(spread(angle), 0.9, 0.4),
        _ramp(abs(growth), 0.5, 0.2),
        _ramp(spread(size), 0.6, 0.3),
    )
    return scores


@dataclass(frozen=True)
class Absence:
    """A time of three pixel frames or more in which most of an object is out of sight.

    Attributes:
        kind: "hidden" (in the middle, between two sights), "out" (beyond a border, back at the same side),
            "left" (beyond a border at the start or end) or "lost" (anything else).
        first: Its first pixel frame.
        end: The pixel frame after its last one.
    """

    kind: str
    first: int
    end: int


def find_absences(track: Track) -> list[Absence]:
    """The times when most of an object is out of sight: where, and whether it comes back."""
    free = np.flatnonzero(track.whole)
    if not len(free):
        return []
    half = min(FPS, len(free) - 1)  # compare with the second before and after: it may grow or shrink
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(track.area[free], half, "reflect"), 2 * half + 1
    )
    usual = np.interp(np.arange(len(track.area)), free, np.median(windows, 1))
    lost = track.area < 0.4 * usual
    ends = np.flatnonzero(np.diff(np.concatenate(([False], lost, [False]))))
    found = []
    for first, last in zip(ends[::2], ends[1::2] - 1, strict=True):
        if last - first < 2:
            continue
        inner = first > 0 and last < len(lost) - 1
        before, after = max(first - 1, 0), min(last + 1, len(lost) - 1)
        at = np.array([[v[before], v[after]] for v in (track.x, track.y)])
        if not inner:  # only the seen end tells where
            at = at[:, [0 if first > 0 else 1]]
        if (np.abs(at).max(0) > 0.65).all():
            same = bool((np.abs(at[:, 0] - at[:, -1]) < 0.5).all())
            kind = "left" if not inner else "out" if same else "lost"
        else:
            kind = "hidden" if inner and (np.abs(at[0]) < 0.5).all() else "lost"
        found.append(Absence(kind, int(first), int(last) + 1))
    return found


def spread(values: Floats) -> float:
    """Range without the outermost 4% at each end."""
    low, high = np.quantile(values, (0.04, 0.96))
    return float(high - low)


def _ramp(value: float, none: float, full: float) -> float:
    """0 at `none`, 1 at `full`, straight between; `full` may be the smaller one."""
    return float(np.clip((value - none) / (full - none), 0, 1)) if none != full else 0.0


def _smooth(values: Floats) -> Floats:
    """Median of 3 neighbours: a single odd frame does not count."""
    padded = np.pad(values, 1, mode="edge")
    return np.median(np.stack([padded[:-2], padded[1:-1], padded[2:]]), 0).astype(np.float32)


def _swaps(values: Floats) -> int:
    """How often a curve goes from its lower third to its upper third or back."""
    low, high = np.quantile(values, (0.04, 0.96))
    third = (high - low) / 3
    side = np.where(values > high - third, 1, np.where(values < low + third, -1, 0))
    side = side[side != 0]
    return int((side[1:] != side[:-1]).sum())


def _hurry(values: Floats) -> float:
    """Seconds that a curve takes from the first to the last tenth of its way."""
    way = (values - values[0]) / ((values[-1] - values[0]) or 1.0)
    return float(np.argmax(way >= 0.9) - np.argmax(way >= 0.1)) / FPS


def _backwards(values: Floats) -> float:
    """How far a curve goes against its main direction, as a share of its spread."""
    rising = values if values[-1] >= values[0] else -values
    return float((np.maximum.accumulate(rising) - rising).max() / max(spread(values), 1e-6))


def _circling(x: Floats, y: Floats) -> float:
    """Turns around the centre of the circle through the points; 0 if they lie on none."""
    system = np.stack([x, y, np.ones_like(x)], 1)
    a, b, c = np.linalg.lstsq(system, x * x + y * y, rcond=None)[0]
    dx, dy = x - a / 2, y - b / 2
    radius = math.sqrt(max(float(c + (a * a + b * b) / 4), 1e-9))
    if radius > 1 or np.quantile(np.abs(np.hypot(dx, dy) - radius), 0.9) > 0.35 * radius:
        return 0.0
    turn = np.unwrap(np.arctan2(dy, dx))
    return float(abs(turn[-1] - turn[0]) / (2 * math.pi))
