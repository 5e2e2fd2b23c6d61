"""Judge a video of the rendered world: which object is seen, and what does it do?

The world draws objects brighter than everything else, so nothing is learned here: bright pixels of one color
are an object (`pieces`); its outline is compared with templates (`outline`), its track with rules (`motion`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dummyforcing.evaluation.bootstrap import wilson
from dummyforcing.evaluation.world.motion import Floats, Track, motion_scores, spread
from dummyforcing.evaluation.world.outline import FOLDS, normalise, overlaps, turning
from dummyforcing.evaluation.world.pieces import Piece, find_pieces
from dummyforcing.evaluation.world.scene import SHAPES, Scene, Thing

_MIN_TWIN = 0.1  # share of the frames
_MIN_SHARE = 0.9  # of the frames in which the main object has the right color

# A jittery outline costs thin shapes more overlap than compact ones. Clean outlines reach 0.92 and more.
_MIN_OVERLAP = {
    "ball": 0.85, "square": 0.85, "triangle": 0.78, "star": 0.74, "ring": 0.62, "cross": 0.76, "heart": 0.8,
    "diamond": 0.76, "crescent": 0.64, "arrow": 0.74,
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """One object of a video.

    Attributes:
        color: Its palette color.
        shape: Its shape, or None if the outline is like none of them.
        motion: A key of `MOTIONS`, or None if it does none of them.
        track: Where it is.
        color_at: The palette color (index into `COLORS`) that it has in every frame, `(T,)`; -1 out of sight.
        color_share: Share of its frames in which it has its color.
        has_twin: Whether there is another object of its color, at least a third as large, in a tenth of the
            frames or more.
        largest_share: Share of the frames with any object in which this one is the largest.
        shape_scores: Mean overlap (IoU) of the outline with each shape at its best rotation.
        shape_at: The same for every frame, `(T, S)` in the order of `SHAPES`; zero where it is not whole.
        motion_scores: How well each motion's rules are met, 0 to 1; 0.5 is the threshold.
    """

    color: str
    shape: str | None
    motion: str | None
    track: Track
    color_at: NDArray[np.int8]
    color_share: float
    has_twin: bool
    largest_share: float
    shape_scores: Mapping[str, float]
    shape_at: Floats
    motion_scores: Mapping[str, float]

    @property
    def shape_margin(self) -> float:
        """Overlap with the best shape less that with the second best."""
        return _margin(self.shape_scores)

    @property
    def motion_margin(self) -> float:
        """Score of the best motion less that of the second best."""
        return _margin(self.motion_scores)


@dataclass(frozen=True)
class Detection:
    """The objects of a video, the one with the most visible area first."""

    objects: tuple[Found, ...]

    @property
    def count(self) -> int:
        """How many objects there are; more than two of one color count as two."""
        return sum(1 + found.has_twin for found in self.objects)

    def of_color(self, color: str) -> Found | None:
        """The object of that color."""
        return next((found for found in self.objects if found.color == color), None)


@dataclass(frozen=True)
class Verdict:
    """Whether a video shows what its scene says; with two objects, whether both are right."""

    color: bool
    shape: bool
    motion: bool
    reasons: tuple[str, ...] = ()
    """One line for each thing that is wrong."""


def detect(frames: NDArray[np.uint8]) -> Detection:
    """Find the objects of a video.

    Args:
        frames: `(T, H, W, 3)` uint8, square pictures.
    """
    if frames.ndim != 4 or frames.shape[1] != frames.shape[2] or frames.shape[3] != 3:
        raise ValueError(f"frames must be (T, H, W, 3) with H = W, not {frames.shape}")
    pieces, pillar = find_pieces(frames)
    if not pieces:
        return Detection(())
    areas = np.stack([piece.area for piece in pieces])
    largest = areas.argmax(0)[np.any([piece.visible for piece in pieces], axis=0)]
    found = []
    for i, piece in enumerate(pieces):
        shape, overlap, overlap_at, angle = _shape(piece)
        track = Track(piece.x, piece.y, piece.area, angle, piece.visible, piece.whole)
        motions = motion_scores(track, pillar)
        motion = max(motions, key=motions.__getitem__)
        found.append(
            Found(
                color=piece.color,
                shape=shape,
                motion=motion if motions[motion] >= 0.5 else None,
                track=track,
                color_at=piece.color_at,
                color_share=piece.color_share,
                has_twin=_has_twin(piece),
                largest_share=float((largest == i).mean()) if len(largest) else 0.0,
                shape_scores=overlap,
                shape_at=overlap_at,
                motion_scores=motions,
            )
        )
    return Detection(tuple(sorted(found, key=lambda f: -float(f.track.area.sum()))))


def judge(frames: NDArray[np.uint8], scene: Scene) -> Verdict:
    """Compare a video with the scene that its prompt describes: `verdict(detect(frames), scene)`."""
    return verdict(detect(frames), scene)


def verdict(detection: Detection, scene: Scene) -> Verdict:
    """Compare what was found with the scene that the prompt describes.

    With one object the largest one of the video counts, whatever its color; with two, things are matched by
    color.

    Args:
        detection: What was found.
        scene: What the video should show.
    """
    if not detection.objects:
        return Verdict(False, False, False, ("no object is seen",))
    alone = len(scene.things) == 1
    color = shape = motion = True
    reasons: list[str] = []
    for thing in scene.things:
        found = detection.objects[0] if alone else detection.of_color(thing.color)
        if found is None:
            reasons.append(f"color: no {thing.color} object")
            color = shape = motion = False
            continue
        if found.color != thing.color:
            reasons.append(f"color: {found.color}, not {thing.color}")
            color = False
        elif (share := min(found.color_share, found.largest_share if alone else 1.0)) < _MIN_SHARE:
            reasons.append(f"color: {thing.color} in only {share:.0%} of the frames")
            color = False
        if found.shape != thing.shape:
            reasons.append(f"shape: {found.shape or 'unclear'}, not {thing.shape}")
            shape = False
        if not _does(found, thing):
            reasons.append(f"motion: {found.motion or _unclear(found)}, not {thing.motion}")
            motion = False
    return Verdict(color, shape, motion, tuple(reasons))


def summary(verdicts: Sequence[Verdict]) -> dict[str, object]:
    """Counts, percentages and Wilson 95% intervals (in percent) of right verdicts, ready for JSON."""
    count = len(verdicts)
    right = {
        "color": sum(v.color for v in verdicts),
        "shape": sum(v.shape for v in verdicts),
        "color_and_shape": sum(v.color and v.shape for v in verdicts),
        "motion": sum(v.motion for v in verdicts),
    }
    return {"count": count} | {
        name: {
            "right": n,
            "percent": round(100 * n / count, 1) if count else None,
            "interval": [round(100 * end, 1) for end in wilson(n, count)],
        }
        for name, n in right.items()
    }


def _does(found: Found, thing: Thing) -> bool:
    if thing.motion == "across":  # passes another object; no motion of its own
        track = found.track
        return spread(track.x[track.visible]) > 0.5 and spread(track.y[track.visible]) < 0.3
    # Short clips may show two motions equally well: leaving the picture is a slide or half of a return.
    score = found.motion_scores[thing.motion]
    return score >= 0.5 and score == max(found.motion_scores.values())


def _unclear(found: Found) -> str:
    unseen = 1 - float(found.track.visible.mean())
    return f"unclear (out of sight in {unseen:.0%} of the frames)" if unseen > 0.05 else "unclear"


def _margin(scores: Mapping[str, float]) -> float:
    second, best = sorted(scores.values())[-2:]
    return best - second


def _has_twin(piece: Piece) -> bool:
    """Whether another object of its color is there; what a pillar cuts in two is still one, so not there."""
    return bool(piece.whole.any() and (piece.apart > piece.area / 3)[piece.whole].mean() >= _MIN_TWIN)


def _shape(piece: Piece) -> tuple[str | None, dict[str, float], Floats, Floats]:
    """Shape, mean overlap with each shape, overlaps `(T, S)` and angle `(T,)` where the outline is whole."""
    whole = piece.whole
    angle = np.zeros(len(whole), np.float32)
    overlap_at = np.zeros((len(whole), len(SHAPES)), np.float32)
    if not whole.any():
        return None, dict.fromkeys(SHAPES, 0.0), overlap_at, angle
    outlines = normalise(piece.light[whole], piece.x[whole], piece.y[whole], piece.area[whole])
    overlap = overlap_at[whole] = overlaps(outlines)
    scores = dict(zip(SHAPES, overlap.mean(0).tolist(), strict=True))
    shape = max(scores, key=scores.__getitem__)
    votes = float((overlap.argmax(1) == SHAPES.index(shape)).mean())
    if scores[shape] < _MIN_OVERLAP[shape] or votes < 0.6:
        return None, scores, overlap_at, angle
    if shape in FOLDS:
        turned = turning(outlines, shape)
        angle = np.interp(np.arange(len(whole)), np.flatnonzero(whole), turned).astype(np.float32)
    return shape, scores, overlap_at, angle
