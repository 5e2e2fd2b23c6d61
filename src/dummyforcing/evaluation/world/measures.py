"""Measures of a video of the rendered world: those of any video, and what exact detectors say of it."""

from dataclasses import asdict, dataclass

import numpy as np

from dummyforcing.evaluation.metrics import Frames
from dummyforcing.evaluation.suite import Measures, measure
from dummyforcing.evaluation.world.detect import Detection, detect, verdict
from dummyforcing.evaluation.world.identity import same_on_return
from dummyforcing.evaluation.world.scene import Scene


@dataclass(frozen=True, kw_only=True)
class SceneMeasures(Measures):
    """What was measured of one video of the rendered world; None where a measure does not apply."""

    color: bool | None = None
    """Whether every object has its color."""
    shape: bool | None = None
    """Whether every object has its shape."""
    motion: bool | None = None
    """Whether every object does what the prompt says."""
    count: bool | None = None
    """Whether there are as many objects as the prompt says."""
    consistency: bool | None = None
    """Whether what leaves and comes back is still the same; None if nothing does. See `same_on_return`."""
    speed: float | None = None
    """Mean speed of the main object while it is whole, picture widths per second; None if never seen."""
    reasons: tuple[str, ...] = ()
    """One line for each thing that is wrong."""


def measure_scene(frames: Frames, scene: Scene, chunk_frames: int = 3, fps: float = 16) -> SceneMeasures:
    """Measure one video of the rendered world.

    Args:
        frames: uint8 RGB `(T, H, W, 3)`, square.
        scene: What it should show.
        chunk_frames: Latent frames per chunk of the model that made it, for the seams.
        fps: Pixel frames per second.

    Raises:
        ValueError: If `frames` is no such video.
    """
    detection = detect(frames)
    seen = verdict(detection, scene)
    return SceneMeasures(
        **asdict(measure(frames, chunk_frames, fps)),
        color=seen.color,
        shape=seen.shape,
        motion=seen.motion,
        count=detection.count == len(scene.things),
        consistency=same_on_return(detection),
        speed=_speed(detection, fps),
        reasons=seen.reasons,
    )


def _speed(detection: Detection, fps: float) -> float | None:
    """Mean speed of the largest object between frames that show it whole, in picture widths per second."""
    if not detection.objects:
        return None
    track = detection.objects[0].track
    both = track.whole[1:] & track.whole[:-1]
    steps = np.hypot(np.diff(track.x), np.diff(track.y))[both]
    return float(steps.mean()) * fps / 2 if len(steps) else None  # the picture is 2 wide
