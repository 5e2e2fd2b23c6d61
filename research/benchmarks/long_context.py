"""How far back heads see at the cost of a short window: the bundled model over 240 latent frames, no VAE.

OMP_NUM_THREADS=1 python -m research.benchmarks.long_context --output benchmarks/results/long-context-cpu.json

Policies take turns, chunk by chunk. The window makes the whole video; the others make its first two chunks
and those that are timed, and get the chunks between from it, so that a dense past is soon there.
"""

import argparse
import time
from pathlib import Path
from statistics import mean, median

from dummyforcing.runtime.threads import spin_briefly

spin_briefly()  # before torch is imported

from torch import Tensor

from dummyforcing.evaluation.results import write_results
from dummyforcing.method.criteria import Role
from dummyforcing.pipeline.pipeline import DummyForcingPipeline, load
from dummyforcing.pipeline.request import make_request
from dummyforcing.sampling.sampler import Sampler
from research.studies.study import past_frames

PROMPT = "a red ball bounces on a green floor"
BUDGET = "window:12"
WINDOW = "window:3,6"
REPEATS = 2
"""Chunks that are timed up to each length."""


def run(
    pipeline: DummyForcingPipeline, policies: list[str], lengths: list[int]
) -> tuple[dict[str, Sampler], dict[str, dict[int, float]]]:
    """Make a video up to the last length, in latent frames.

    Returns:
        By policy: the sampler at its end, and the median seconds of the chunks that end at each length or
        just before.
    """
    files = pipeline.files
    chunk = files.preset.chunk_frames
    samplers: dict[str, Sampler] = {}
    seconds: dict[str, dict[int, list[float]]] = {}
    for policy in policies:
        budget = BUDGET if policy.startswith("long") else None
        frames = files.preset.pixel_frames(lengths[-1])
        request = make_request(files, PROMPT, num_frames=frames, policy=policy, budget=budget)
        samplers[policy] = pipeline.rollout(request).sampler
        seconds[policy] = {length: [] for length in lengths}
    for end in range(chunk, lengths[-1] + 1, chunk):
        at = [length for length in lengths if 0 <= length - end < REPEATS * chunk]
        made: dict[str, Tensor] = {}
        for policy, sampler in samplers.items():  # the window comes first
            if policy != WINDOW and not at and end > 2 * chunk:
                sampler.extend(made[WINDOW])
                continue
            start = time.perf_counter()
            made[policy] = sampler.next_chunk()
            elapsed = time.perf_counter() - start
            for length in at:
                seconds[policy][length].append(elapsed)
    medians = {
        policy: {length: median(all_of) for length, all_of in by_length.items()}
        for policy, by_length in seconds.items()
    }
    return samplers, medians


def describe(sampler: Sampler, window: Sampler) -> dict[str, object]:
    """What the heads see at the end of a video, compared with a window that all heads share."""
    plan, past = sampler.plan, sampler.frames - sampler.chunk_frames
    seen = [
        min(past, past if context.total is None else context.total)
        for contexts, roles in zip(plan.contexts, plan.roles, strict=True)
        for context, role in zip(contexts, roles, strict=True)
        if role not in (Role.DUMMY, Role.SINK)
    ]
    return {
        "heads": plan.counts,
        "past_frames": round(past_frames(plan, past), 3),
        "longest_past_frames": max(seen),
        "long_heads_past_frames": round(mean(seen), 3),
        "context_ratio": round(mean(seen) / past_frames(window.plan, past), 2),
        "cache_bytes": sampler.cache.nbytes,
    }


def main() -> None:
    """Measure all policies and write what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--small", action="store_true", help="a short video, to try this script")
    args = parser.parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    lengths = [18, 27] if args.small else [30, 60, 120, 240]
    caps = [20, 12] if args.small else [120, 60]
    policies = [WINDOW, "dense", *(f"long:{cap}" for cap in caps)]
    pipeline = load("tiny", device="cpu")
    samplers, seconds = run(pipeline, policies, lengths)
    results: dict[str, object] = {
        "prompt": PROMPT,
        "size": list(pipeline.files.preset.size),
        "latent_frames": lengths[-1],
        "pixel_frames": pipeline.files.preset.pixel_frames(lengths[-1]),
        "budget": BUDGET,
        "chunks_per_length": REPEATS,
        "policies": {
            policy: {
                **describe(sampler, samplers[WINDOW]),
                "chunk_ms": {str(length): round(1000 * s, 1) for length, s in seconds[policy].items()},
            }
            for policy, sampler in samplers.items()
        },
    }
    write_results(args.output, results, pipeline.device)


if __name__ == "__main__":
    main()
