"""Measure a set of videos: one row of measures per video, means with intervals over the set.

```python
rows = [measure(frames) for frames in videos]
aggregate(rows)  # {"flicker": {"mean": ..., "interval": [...], "n": ...}, ...}
differences(rows, dense_rows)  # the same, of what changed pair by pair
aggregate([compare(frames, reference) for ...])  # works for fidelity, too
```
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields

from dummyforcing.evaluation.bootstrap import Estimate, EstimateJson, bootstrap, paired, wilson
from dummyforcing.evaluation.fidelity import Fidelity, compare
from dummyforcing.evaluation.metrics import (
    Frames,
    changes,
    drifts,
    dynamic_degree,
    frame_statistics,
    repetition,
    require_video,
    seam_change,
    temporal_flicker,
)

__all__ = ["Fidelity", "Measures", "aggregate", "compare", "differences", "measure"]


@dataclass(frozen=True)
class Measures:
    """Measures of one video; None where a measure does not apply."""

    flicker: float | None
    """VBench's raw temporal flickering, 1 - mean change; 1 is a standing picture. See `temporal_flicker`."""
    seam_excess: float | None
    """Change across seams beyond that inside of chunks, in gray levels; 0 is no seam. See `seam_change`."""
    seam_ratio: float | None
    """The same as a ratio; 1 is no seam."""
    dynamic: float | None
    """Share of pixels that move from frame to frame, 0 to 1. See `dynamic_degree`."""
    brightness: float
    """Mean luma, 0 to 1."""
    contrast: float
    """Standard deviation of luma, 0 to 0.5, mean over frames."""
    saturation: float
    """Largest less smallest channel, 0 to 1."""
    sharpness: float
    """Variance of the Laplacian, gray levels squared; higher is sharper."""
    brightness_drift: float | None
    """Slope of the brightness per second, with sign."""
    contrast_drift: float | None
    """Slope of the contrast per second."""
    saturation_drift: float | None
    """Slope of the saturation per second."""
    sharpness_drift: float | None
    """Slope of the sharpness per second, as a share of its mean."""
    repetition: float | None
    """1 is a perfect loop. See `metrics.repetition`."""


def measure(frames: Frames, chunk_frames: int = 3, fps: float = 16) -> Measures:
    """Measure one video.

    Args:
        frames: uint8 RGB `(T, H, W, 3)`.
        chunk_frames: Latent frames per chunk of the model that made it, for the seams.
        fps: Pixel frames per second.

    Raises:
        ValueError: If `frames` is no such video.
    """
    require_video(frames)
    change, statistics = changes(frames), frame_statistics(frames)
    seam, drift = seam_change(change, chunk_frames), drifts(statistics, fps)
    return Measures(
        flicker=temporal_flicker(change),
        seam_excess=seam.excess if seam else None,
        seam_ratio=seam.ratio if seam else None,
        dynamic=dynamic_degree(frames),
        **{name: float(curve.mean()) for name, curve in statistics.items()},
        **{f"{name}_drift": value for name, value in drift.items()},  # type: ignore[arg-type]
        repetition=repetition(frames, fps),
    )


Row = Measures | Fidelity


def aggregate(
    rows: Sequence[Row], seed: int = 0, groups: Sequence[Hashable] | None = None
) -> dict[str, EstimateJson]:
    """Mean, 95% interval and number of videos of every measure that applies to any of them; ready for JSON.

    Shares of right verdicts get Wilson intervals, which stay honest at 0 and 1; all else is bootstrapped.

    Args:
        rows: One per video.
        seed: Of the bootstrap.
        groups: What each video's prompt is, if prompts have several videos: these are not independent, so
            each prompt's mean counts as one value.

    Raises:
        ValueError: If `groups` has another length.
    """
    found = {}
    for name in _names(rows):
        values, is_share = _grouped([getattr(row, name) for row in rows], groups)
        if len(values):
            found[name] = (_share(values) if is_share else bootstrap(values, seed=seed)).as_json()
    return found


def differences(
    rows: Sequence[Row], reference: Sequence[Row], seed: int = 0, groups: Sequence[Hashable] | None = None
) -> dict[str, EstimateJson]:
    """Compare with a reference of the same prompts and seeds, in the same order, measure by measure.

    Args:
        rows: One per video.
        reference: As many; a pair in which either lacks a measure does not count for it.
        seed: Of the bootstrap.
        groups: As in `aggregate`.

    Returns:
        Mean difference, its 95% bootstrap interval and the number of pairs, as in `aggregate`.

    Raises:
        ValueError: If the lengths differ.
    """
    if len(rows) != len(reference):
        raise ValueError(f"{len(rows)} videos cannot be paired with {len(reference)}")
    found = {}
    for name in _names(rows):
        pairs = [(getattr(a, name), getattr(b, name)) for a, b in zip(rows, reference, strict=True)]
        both = [None not in pair for pair in pairs]
        mine, _ = _grouped([a if ok else None for (a, _), ok in zip(pairs, both, strict=True)], groups)
        theirs, _ = _grouped([b if ok else None for (_, b), ok in zip(pairs, both, strict=True)], groups)
        if len(mine):
            found[name] = paired(mine, theirs, seed=seed).as_json()
    return found


def _names(rows: Sequence[Row]) -> list[str]:
    return [field.name for field in fields(rows[0]) if field.name != "reasons"] if rows else []


def _grouped(
    values: Sequence[float | bool | None], groups: Sequence[Hashable] | None
) -> tuple[list[float], bool]:
    """The values that apply, averaged within groups; and whether they are verdicts."""
    members: dict[Hashable, list[float]] = {}
    is_share = False
    for value, group in zip(values, range(len(values)) if groups is None else groups, strict=True):
        if value is not None:
            members.setdefault(group, []).append(float(value))
            is_share |= isinstance(value, bool)
    return [sum(group) / len(group) for group in members.values()], is_share


def _share(values: Sequence[float]) -> Estimate:
    """A share of right verdicts; the mean of a group may be a fraction of one."""
    low, high = wilson(sum(values), len(values))
    return Estimate(sum(values) / len(values), low, high, len(values))
