"""What was right and wrong in videos of the rendered world, as the result files list it."""

from collections import defaultdict
from collections.abc import Sequence

from dummyforcing.evaluation.bootstrap import wilson
from dummyforcing.evaluation.world.detect import Verdict, summary
from dummyforcing.evaluation.world.scene import Scene


def listed(scenes: Sequence[Scene], verdicts: Sequence[Verdict]) -> dict[str, object]:
    """Counts with intervals, the failures by shape and by motion, and each failure with its reasons.

    Args:
        scenes: What the videos should show.
        verdicts: One for each.

    Returns:
        Ready for JSON. By shape and by motion: `[wrong, videos]`, the worst first; a video with two objects
        counts for both.
    """
    count, right = len(verdicts), sum(v.color and v.shape and v.motion for v in verdicts)
    return {
        **summary(verdicts),
        "all_right": {
            "right": right,
            "percent": round(100 * right / count, 1) if count else None,
            "interval": [round(100 * end, 1) for end in wilson(right, count)],
        },
        "wrong_shape_by_shape": _by(scenes, [v.shape for v in verdicts], "shape"),
        "wrong_motion_by_motion": _by(scenes, [v.motion for v in verdicts], "motion"),
        "failures": {scene.prompt: v.reasons for scene, v in zip(scenes, verdicts, strict=True) if v.reasons},
    }


def _by(scenes: Sequence[Scene], right: Sequence[bool], name: str) -> dict[str, list[int]]:
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for scene, ok in zip(scenes, right, strict=True):
        for value in {getattr(thing, name) for thing in scene.things}:
            counts[value][0] += not ok
            counts[value][1] += 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1][0] / item[1][1], item[0])))
