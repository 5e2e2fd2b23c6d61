"""What a change of the prompt costs: the chunk that follows it, against its neighbours.

OMP_NUM_THREADS=1 python -m research.benchmarks.switches --output benchmarks/results/switches-cpu.json
python -m research.benchmarks.switches --model longlive --device cuda --output benchmarks/results/gpu.json

The cost of a switch is the time of the first chunk with the new prompt, its encoding and the re-cache
included, minus the median of the two chunks before and the two after it, in units of that median. On a CPU
the processor's time counts, which other programs do not lengthen. Policies take turns, chunk by chunk. The
bundled model has its own weights, a public one random weights and no text encoder.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from dummyforcing.runtime.threads import spin_briefly

spin_briefly()  # before torch is imported

import torch

from dummyforcing.bench.candidates import build_candidates
from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.evaluation.results import write_results
from dummyforcing.pipeline.devices import choose_device, choose_dtype
from dummyforcing.pipeline.options import LoadOptions
from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from dummyforcing.pipeline.request import make_request
from dummyforcing.presets.preset import parse_size
from dummyforcing.sampling.sampler import Sampler

PROMPTS = ["a red ball bounces on a green floor", "a red ball moves in a circle on a green floor"]
RECACHE_FRAMES = 12
"""As LongLive has it."""

Row = tuple[str, int]
"""A policy, and how many frames it writes again when the prompt changes."""


def begin(
    pipeline: DummyForcingPipeline, rows: Sequence[Row], chunks: int, size: tuple[int, int]
) -> dict[Row, Sampler]:
    """Begin a video for every row; the first frames keep their keys and values as LongLive's do."""
    files, samplers = pipeline.files, {}
    for policy, recached in rows:
        preset = replace(files.preset, recache_frames=recached, global_sink=True)
        frames = preset.pixel_frames(chunks * preset.chunk_frames)
        own = replace(files, preset=preset)
        request = make_request(own, PROMPTS[0], num_frames=frames, size=size, policy=policy)
        same = DummyForcingPipeline.from_parts(
            own, pipeline.model, pipeline.text, pipeline.vae, pipeline.fused
        )
        samplers[policy, recached] = same.rollout(request).sampler
    return samplers


def time_chunks(
    pipeline: DummyForcingPipeline, samplers: dict[Row, Sampler], chunks: int, switches: Sequence[int]
) -> dict[Row, list[float]]:
    """Make all videos, in turns; the seconds of every chunk, with the change of prompt before it if any."""
    seconds: dict[Row, list[float]] = {row: [] for row in samplers}
    for chunk in range(chunks):
        for row, sampler in samplers.items():
            start = _now(pipeline.device)
            if chunk in switches:
                prompt = PROMPTS[(switches.index(chunk) + 1) % len(PROMPTS)]
                sampler.set_prompt(pipeline.text.encode([prompt]))
            sampler.next_chunk()
            seconds[row].append(_now(pipeline.device) - start)
    return seconds


def summarise(seconds: Sequence[float], switches: Sequence[int]) -> dict[str, object]:
    """What the switches of a video cost, in ms and in chunks."""
    neighbours = [
        median([*seconds[switch - 2 : switch], *seconds[switch + 1 : switch + 3]]) for switch in switches
    ]
    extra = [seconds[switch] - around for switch, around in zip(switches, neighbours, strict=True)]
    costs = [more / around for more, around in zip(extra, neighbours, strict=True)]
    return {
        "chunk_ms": round(1000 * median(neighbours), 1),
        "extra_ms": round(1000 * median(extra), 1),
        "cost_chunks": round(median(costs), 3),
        "most_chunks": round(max(costs), 3),
        "costs_chunks": [round(cost, 3) for cost in costs],
    }


def _now(device: torch.device) -> float:
    """Seconds, once a device has done all that it was asked for; on a CPU, of work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def main() -> None:
    """Measure all policies, with and without re-cache, and write what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto")
    parser.add_argument("--size", type=parse_size, help="480p, 720p, 1080p or WxH; default: the model's own")
    parser.add_argument("--policies", nargs="+", help="default: native, dense and dummy")
    parser.add_argument("--switches", type=int, default=5, help="changes of the prompt per video")
    parser.add_argument("--small", action="store_true", help="a short video, to try this script")
    args = parser.parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    device = choose_device(args.device)
    dtype = choose_dtype(None, device)
    files = ModelFiles.open(args.model)
    is_random = files.folder is None
    if is_random:
        pipeline = build_candidates(files, ("none",), device, dtype, random=True)["none"].pipeline
    else:
        pipeline = DummyForcingPipeline.from_files(files, LoadOptions(device=device, torch_dtype=dtype))
    policies = args.policies or dict.fromkeys([files.preset.native, "dense", "dummy"])
    size = (64, 64) if args.small else args.size or files.preset.size
    # The heads are classified and the rings full before the first switch.
    switches = [4] if args.small else [6 + 4 * number for number in range(args.switches)]
    chunks = switches[-1] + 3
    rows = [(policy, recached) for policy in policies for recached in (0, RECACHE_FRAMES)]
    if device.type == "cuda":  # kernels are compiled and loaded
        time_chunks(pipeline, begin(pipeline, rows, chunks, size), chunks, switches)
    seconds = time_chunks(pipeline, begin(pipeline, rows, chunks, size), chunks, switches)
    results: dict[str, object] = {
        "model": files.preset.name,
        "weights": "random" if is_random else "real",
        "dtype": str(dtype).removeprefix("torch."),
        "size": list(size),
        "latent_frames": chunks * files.preset.chunk_frames,
        "switched_at_chunks": switches,
        "rows": [
            {"policy": policy, "recache_frames": recached, **summarise(seconds[policy, recached], switches)}
            for policy, recached in rows
        ],
    }
    write_results(args.output, results, device)


if __name__ == "__main__":
    main()
