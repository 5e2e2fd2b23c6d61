"""Whether an object that leaves and comes back is still the same: what a cache must remember."""

import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dummyforcing.evaluation.world.detect import Detection, Found
from dummyforcing.evaluation.world.motion import find_absences

_NEAREST, _FEWEST = 8, 3  # frames with the whole outline on each side of an absence
MAX_GROWTH = math.log(1.5)
"""Of the area of an object that is still the same, as a logarithm; its outline's jitter is within a tenth."""


def same_on_return(detection: Detection) -> bool | None:
    """Whether every object that leaves and comes back is the same before and after.

    Returns:
        True if all keep color, shape and size (area within a factor of 1.5) over each absence; False if one
        does not; None if no absence shows an object whole before and after.
    """
    verdicts = [same for found in detection.objects for same in _over_absences(found)]
    return all(verdicts) if verdicts else None


def _over_absences(found: Found) -> list[bool]:
    """Whether an object is the same before and after each absence that can be judged."""
    absences = find_absences(found.track)
    starts = [0, *(absence.end for absence in absences)]
    ends = [*(absence.first for absence in absences), len(found.track.x)]
    sights = [
        first + np.flatnonzero(found.track.whole[first:end]) for first, end in zip(starts, ends, strict=True)
    ]
    pairs = [(a[-_NEAREST:], b[:_NEAREST]) for a, b in pairwise(sights)]
    return [_same(found, *pair) for pair in pairs if min(map(len, pair)) >= _FEWEST]


def _same(found: Found, before: NDArray[np.int64], after: NDArray[np.int64]) -> bool:
    colors = [int(np.bincount(found.color_at[frames]).argmax()) for frames in (before, after)]
    shapes = [int(found.shape_at[frames].mean(0).argmax()) for frames in (before, after)]
    areas = [float(np.median(found.track.area[frames])) for frames in (before, after)]
    growth = abs(math.log(areas[1] / areas[0]))
    return colors[0] == colors[1] and shapes[0] == shapes[1] and growth < MAX_GROWTH
