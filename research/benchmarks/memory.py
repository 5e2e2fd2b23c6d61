"""What a chunk takes of a GPU's memory, beside what `pipeline.memory` estimates for it.

python -m research.benchmarks.memory --sizes 480p 720p 1080p --output benchmarks/results/memory.json

The shapes of a model with random weights. Of every size and float8 mode: what denoising takes besides weights
and cache, in a chunk in which heads are scored (the plain path) and in a later one (the fused path), and what
decoding takes besides weights.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dummyforcing.bench.candidates import PROMPT, build_candidates
from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.evaluation.results import write_results
from dummyforcing.pipeline.devices import choose_device, choose_dtype
from dummyforcing.pipeline.memory import SCRATCH, estimate
from dummyforcing.pipeline.pipeline import DummyForcingPipeline


def taken(function: Callable[[], object]) -> int:
    """Bytes that a function allocates at most, besides what is there before or afterwards."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - max(before, torch.cuda.memory_allocated())


def measure(pipeline: DummyForcingPipeline, size: str) -> dict[str, Any]:
    """One size, with the model as it is loaded."""
    run = pipeline.start(PROMPT, num_frames=None, size=size)
    need = estimate(pipeline.files, run.request, pipeline.dtype, loaded=True)
    chunks = [taken(run.next_latents) for _ in range(6)]
    latents = run.next_latents()

    def decode() -> None:
        stream = pipeline.vae.stream(1)
        for _ in range(3):
            stream.decode(latents)

    return {
        "size": f"{run.request.size[1]}x{run.request.size[0]}",
        "denoising": {
            "estimated": need.denoising - SCRATCH,
            "scored": chunks[1],
            "fused": max(chunks[2:]),
            "chunks": chunks,
        },
        "decoding": {"estimated": need.decoding - SCRATCH, "taken": taken(decode)},
    }


def main() -> None:
    """Measure, and write down."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="self-forcing")
    parser.add_argument("--sizes", nargs="+", default=["480p", "720p", "1080p"])
    parser.add_argument("--fp8", nargs="+", default=["none", "linear"], choices=("none", "linear", "all"))
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    rows, device, files = [], choose_device("auto"), ModelFiles.open(args.model)
    for fp8 in args.fp8:
        built = build_candidates(files, (fp8,), device, choose_dtype(None, device), random=True)
        pipeline = built.popitem()[1].pipeline
        for size in args.sizes:
            rows.append({"fp8": fp8, **measure(pipeline, size)})
            print(rows[-1], flush=True)
        del built, pipeline
        torch.cuda.empty_cache()
    write_results(args.output, {"model": args.model, "weights": "random", "rows": rows}, device)


if __name__ == "__main__":
    main()
