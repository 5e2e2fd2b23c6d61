"""Time the classification of heads, and the memory that it takes besides: random data of real shapes.

On a GPU with our kernel, and with the reference in torch.

python -m research.benchmarks.scoring --output benchmarks/results/scoring.json
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from dummyforcing.runtime.threads import spin_briefly

spin_briefly()  # before torch is imported

import torch
from torch.profiler import profile

from dummyforcing.cache.head_group import HeadGroup
from dummyforcing.evaluation.results import write_results
from dummyforcing.kernels.mass import reference_log_mass
from dummyforcing.method.policy import parse_policy
from dummyforcing.method.programming import make_plan
from dummyforcing.method.scoring import HeadScorer, row_sampler
from dummyforcing.pipeline.devices import choose_device

STEPS = 4


@dataclass(frozen=True)
class Shape:
    """One attention call of a model, and how many layers make it."""

    layers: int
    heads: int
    head_dim: int
    tokens: int
    """Of one latent frame."""
    past: int
    """Latent frames before the chunk."""
    chunk: int = 3
    dtype: torch.dtype = torch.bfloat16


TINY = Shape(8, 12, 32, 100, 3, dtype=torch.float32)
LARGE = Shape(30, 12, 128, 1560, 3)
"""The Wan 1.3B shape at 480p."""
SMALL = Shape(2, 3, 8, 10, 3, dtype=torch.float32)
POLICY = parse_policy("dummy")


def cases(device: torch.device, small: bool) -> dict[str, Shape]:
    """What to measure, by name."""
    if small:
        return {"small": SMALL}
    if device.type == "cpu":
        return {"tiny": TINY}
    return {
        f"1.3B, {name}, {past} past frames": replace(LARGE, tokens=tokens, past=past)
        for name, tokens in (("480p", 1560), ("1080p", 8160))
        for past in (3, 6)
    }


def measure(shape: Shape, device: torch.device, runs: int) -> dict[str, float]:
    """Score one chunk of random queries and keys.

    Returns:
        Milliseconds of one denoising call (all layers) and of a whole classification (all steps, and the
        plan), and the most memory that a classification takes besides queries and keys, in MiB.
    """
    generator = torch.Generator(device).manual_seed(0)
    frames = tuple(range(shape.past + shape.chunk))

    def normal(length: int) -> torch.Tensor:
        size = (1, length * shape.tokens, shape.heads, shape.head_dim)
        return torch.randn(size, generator=generator, device=device).to(shape.dtype)

    # Every layer has keys of its own, so that caches do not flatter.
    queries = [normal(shape.chunk) for _ in range(shape.layers)]
    groups = []
    for _ in range(shape.layers):
        k = normal(len(frames))
        groups.append([HeadGroup(None, None, k, k, (frames,) * shape.heads)])

    def scorer() -> HeadScorer:
        return HeadScorer(1, shape.layers, shape.heads, POLICY.first_frames, row_sampler(POLICY))

    def call(heads: HeadScorer) -> None:
        for layer, (q, group) in enumerate(zip(queries, groups, strict=True)):
            heads.observe(layer, q, group)

    def classify() -> None:
        heads = scorer()
        for _ in range(STEPS):
            call(heads)
        make_plan(POLICY, heads.scores()[0], chunk=1)

    return {
        "call_ms": timed(lambda: call(scorer()), device, runs),
        "classification_ms": timed(classify, device, runs),
        "extra_memory_mib": extra_memory(classify, device) / 2**20,
    }


def timed(work: Callable[[], None], device: torch.device, runs: int) -> float:
    """Median milliseconds, after one run that does not count."""
    seconds = []
    for _ in range(runs + 1):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 1000 * median(seconds[1:])


def extra_memory(work: Callable[[], None], device: torch.device) -> int:
    """The most bytes that tensors take during `work` besides those that were there."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(profile_memory=True) as events:
        work()
    assert events.profiler is not None
    changes = [e for e in events.profiler.kineto_results.events() if e.name() == "[memory]"]
    most: int = max(accumulate(e.nbytes() for e in sorted(changes, key=lambda e: e.start_ns())))
    return most


def main() -> None:
    """Measure all cases of the device and write them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--runs", type=int, default=5, help="runs, after one that does not count")
    parser.add_argument("--small", action="store_true", help="a small shape only, to try this script")
    args = parser.parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    device = choose_device(args.device)
    results: dict[str, Any] = {"steps": STEPS, "rows": POLICY.rows, "runs": args.runs}
    for name, shape in cases(device, args.small).items():
        measured = measure(shape, device, args.runs)
        results[name] = {
            **asdict(shape),
            "dtype": str(shape.dtype).removeprefix("torch."),
            **{key: round(value, 2) for key, value in measured.items()},
        }
        if device.type == "cuda":
            with patch("dummyforcing.method.scoring.log_mass", reference_log_mass):
                measured = measure(shape, device, args.runs)
            results[name] |= {f"{key}_in_torch": round(value, 2) for key, value in measured.items()}
        print(name, results[name])
    write_results(args.output, results, device)


if __name__ == "__main__":
    main()
