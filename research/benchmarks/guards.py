"""What guards of very long videos tell and cost: a minute of the bundled model, a new prompt in its middle.

OMP_NUM_THREADS=1 python -m research.benchmarks.guards --output benchmarks/results/guards-cpu.json

Chunks are timed without VAE and without measures; probes are as many as it takes to see how they move.
"""

import argparse
import time
from collections import defaultdict
from pathlib import Path
from statistics import mean, median

from dummyforcing.runtime.threads import spin_briefly

spin_briefly()  # before torch is imported

from dummyforcing.evaluation.results import write_results
from dummyforcing.media.monitor import Measures, Monitor
from dummyforcing.method.plan import Plan
from dummyforcing.pipeline.pipeline import DummyForcingPipeline, load
from dummyforcing.pipeline.request import make_request
from dummyforcing.sampling.guard import Guard

PROMPT, NEW_PROMPT = "a red ball bounces on a green floor", "a blue star spins on a yellow floor"
WINDOW = 5
"""Measures are means over so many seconds."""


def run(
    pipeline: DummyForcingPipeline, seconds: float, policy: str, guard: Guard | None, new_prompt: bool
) -> dict[str, object]:
    """Make one video, and tell how it fares.

    Returns:
        Measures by time, probes, when heads were classified again, and the median time of chunks by what
        they do.
    """
    preset = pipeline.files.preset
    switches = [(seconds / 2, NEW_PROMPT)] if new_prompt else []
    frames = preset.pixel_frames_for(seconds)
    request = make_request(
        pipeline.files, PROMPT, num_frames=frames, policy=policy, guard=guard, switches=switches
    )
    rollout, decoder = pipeline.rollout(request), pipeline.vae.stream()
    monitor = Monitor(preset.fps, preset.chunk_pixel_frames)
    measures: list[tuple[float, Measures]] = []
    probes: list[tuple[float, float]] = []
    again: list[dict[str, object]] = []
    milliseconds: dict[str, list[float]] = defaultdict(list)
    assert request.chunks is not None
    for chunk in range(request.chunks):
        sampler = rollout.sampler
        plan = sampler.plan
        kind = "plain" if not sampler.scores_next else "probe"
        if sampler.heads.classifies(sampler.frames):
            kind = "first plan" if plan.chunk is None else "again"
        start = time.perf_counter()
        latents = rollout.next_latents()
        if chunk >= 3:  # before that the cache is still filled
            milliseconds[kind].append(1000 * (time.perf_counter() - start))
        now = preset.pixel_frames(sampler.frames) / preset.fps
        measures.append((now, monitor.see(decoder.decode(latents)[0].numpy())))
        if kind == "probe" and sampler.heads.probe:
            probes.append((round(now, 2), round(sampler.heads.probe[0], 4)))
        if kind == "again":
            again.append({"seconds": round(now, 2), "heads_with_another_role": moved(plan, sampler.plan)})
    times = [end for end in (5.0, 30.0, 60.0) if end <= seconds] or [seconds]
    return {
        "seconds": seconds,
        "measures": {f"{end:g} s": average(measures, end) for end in times},
        "probes": probes,
        "classified_again": again,
        "chunk_ms": {kind: round(median(all_of), 1) for kind, all_of in milliseconds.items()},
    }


def average(measures: list[tuple[float, Measures]], end: float) -> dict[str, float]:
    """Means over the seconds before a time."""
    chosen = [m for at, m in measures if end - WINDOW < at <= end + 0.1]
    return {
        name: round(mean(getattr(m, name) for m in chosen), 3) for name in ("drift", "repetition", "motion")
    }


def moved(before: Plan, after: Plan) -> int:
    """How many heads have another role."""
    return sum(
        a != b for rows in zip(before.roles, after.roles, strict=True) for a, b in zip(*rows, strict=True)
    )


def main() -> None:
    """Make all videos and write what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--small", action="store_true", help="short videos, to try this script")
    args = parser.parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    pipeline = load("tiny", device="cpu")
    seconds, every = (6, 2) if args.small else (60, 4)
    tolerance = 0.0 if args.small else Guard.tolerance
    videos = {
        "dense": run(pipeline, seconds, "dense", None, False),
        "dummy, only probed": run(pipeline, seconds, "dummy", Guard(every, tolerance=1.0), False),
        "dummy, only probed, new prompt": run(pipeline, seconds, "dummy", Guard(every, tolerance=1.0), True),
        "dummy, guarded, new prompt": run(pipeline, seconds, "dummy", Guard(every, tolerance), True),
    }
    results: dict[str, object] = {
        "prompt": PROMPT,
        "new_prompt": NEW_PROMPT,
        "measures_over_seconds": WINDOW,
        "every": every,
        "tolerance": tolerance,
        "videos": videos,
    }
    write_results(args.output, results, pipeline.device)


if __name__ == "__main__":
    main()
