"""Measure what float8 changes: the velocity of every denoising step, against float32 and the model's own.

python -m research.benchmarks.fp8 --output benchmarks/results/fp8-tiny.json                 # bundled weights
python -m research.benchmarks.fp8 --model self-forcing --output benchmarks/results/fp8.json # random ones

All see the same noise and the same past, so that errors are of one pass, not of rollouts that drift apart.
Also by block: the error with this block alone in float8, which tells whether some had better stay out of it.
Random weights tell how exact the arithmetic is; what it does to videos only trained ones can tell, so the
quality score of the bundled model (`python -m research.studies.benchmark --fp8 linear`) belongs to it.
Of the bundled model also what the VAE makes of its videos, in bfloat16 and in float8, against float32.
Without a GPU float8 is emulated.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dummyforcing.bench.candidates import PROMPT, random_model
from dummyforcing.bench.plans import fixture_plan
from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.evaluation.results import write_results
from dummyforcing.method.policy import parse_policy
from dummyforcing.models.wan import CausalWan
from dummyforcing.pipeline.devices import choose_device, choose_dtype
from dummyforcing.pipeline.pipeline import DummyForcingPipeline, load
from dummyforcing.runtime.fused import FusedWan
from dummyforcing.sampling.block import BlockSampler
from dummyforcing.sampling.schedule import make_schedule
from dummyforcing.vae.codec import VideoDecoder

PAST_CHUNKS = 2
DECODED = (
    PROMPT,
    "a blue square slides right in front of a yellow pillar",
    "a green triangle spins on a gray floor",
    "a purple star grows and a white ring shrinks",
    "an orange cross swings over a brown floor",
    "a cyan circle comes from behind a red pillar",
)
"""Prompts of the videos that are decoded again."""


def velocities(
    files: ModelFiles, model: CausalWan, prompt: Tensor, past: Tensor, fused: FusedWan | None = None
) -> list[Tensor]:
    """What a model predicts of the same noisy latents in every step, `(1, F, C, h, w)` float32 each."""
    preset, config = files.preset, model.config
    schedule = make_schedule(preset.schedule.steps, preset.schedule.shift, preset.schedule.warp)
    sampler = BlockSampler(
        model,
        prompt,
        parse_policy("dummy"),
        schedule,
        (1, *past.shape[2:]),
        chunk_frames=preset.chunk_frames,
        plan=fixture_plan(config.num_layers, config.num_heads),
        fused=fused,
    )
    sampler.extend(past)
    passes = sampler.passes
    noise = torch.randn(1, preset.chunk_frames, *past.shape[2:], generator=torch.Generator().manual_seed(1))
    clean = past[:, -preset.chunk_frames :]
    found = []
    with torch.inference_mode():
        for step, (sigma, timestep) in enumerate(zip(schedule.sigmas, schedule.timesteps, strict=True)):
            mix = (1 - sigma) * clean + sigma * noise.to(clean.device)
            time = passes.time([timestep], preset.chunk_frames)
            hidden = passes.transform(passes.tokens(mix), time, sampler.prompts.text, sampler.call(step))
            found.append(passes.velocity(hidden, time).float())
    return found


def errors(found: Sequence[Tensor], truth: Sequence[Tensor]) -> list[float]:
    """Norm of the difference over that of the truth, by step."""
    return [round(float((f - t).norm() / t.norm()), 5) for f, t in zip(found, truth, strict=True)]


def variants(model: CausalWan) -> Iterator[tuple[str, FusedWan | None]]:
    """The ways of computing, one at a time in memory."""
    yield "plain", None
    yield "fused", FusedWan(model)
    yield "linear", FusedWan(model, "linear")
    yield "all", FusedWan(model, "all")


@torch.inference_mode()
def decode_errors(pipeline: DummyForcingPipeline) -> dict[str, dict[str, float]]:
    """Decode latents of the model's own videos in other precisions, against float32.

    Returns:
        For each precision the signal-to-noise ratio in dB, and mean and largest difference in gray levels of
        255, over all videos.
    """
    exact = pipeline.vae
    half = VideoDecoder(deepcopy(exact.vae).to(torch.bfloat16))
    ways = {
        "bfloat16": half,
        "float8 in float32": VideoDecoder(exact.vae, fp8=True),
        "float8 in bfloat16": VideoDecoder(half.vae, fp8=True),
    }
    gaps: dict[str, list[Tensor]] = {name: [] for name in ways}
    for prompt in DECODED:
        latents = exact.encode(torch.from_numpy(pipeline.generate(prompt, num_frames=45).frames)[None])
        expected = exact.stream().decode_float(latents)
        for name, decoder in ways.items():
            gaps[name].append((decoder.stream().decode_float(latents) - expected).cpu())
    return {
        name: {
            "psnr_db": round(-10 * math.log10(float(torch.stack(gap).square().mean())), 2),
            "mean": round(255 * float(torch.stack(gap).abs().mean()), 3),
            "max": round(255 * float(torch.stack(gap).abs().max()), 1),
        }
        for name, gap in gaps.items()
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny", help="tiny, or a public model with random weights")
    parser.add_argument("--size", nargs=2, type=int, metavar=("WIDTH", "HEIGHT"), help="of the video")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    device = choose_device(args.device)
    dtype = choose_dtype(None, device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    files = ModelFiles.open(args.model)
    width, height = args.size or reversed(files.preset.size)
    frames = PAST_CHUNKS * files.preset.chunk_frames
    if args.model == "tiny":
        pipeline = load("tiny", device=device, torch_dtype=torch.float32)
        exact, prompt = pipeline.model, pipeline.text.encode(PROMPT)
        count = files.preset.pixel_frames(frames)
        video = torch.from_numpy(pipeline.generate(PROMPT, num_frames=count).frames)[None]
        past = pipeline.vae.encode(video)
    else:
        exact = random_model(files.config, device, torch.float32)
        prompt = torch.randn(1, files.config.text_len, files.config.text_dim, device=device)
        past = torch.randn(1, frames, files.config.in_dim, height // 8, width // 8, device=device)
    truth = velocities(files, exact, prompt, past)
    model = exact.to(dtype)
    found = {name: velocities(files, model, prompt, past, fused) for name, fused in variants(model)}
    layers = range(files.config.num_layers)
    alone = [
        velocities(files, model, prompt, past, FusedWan(model, "linear", {n for n in layers if n != one}))
        for one in layers
    ]
    results: dict[str, Any] = {
        "model": args.model,
        "weights": "bundled" if args.model == "tiny" else "random",
        "size": [width, height],
        "dtype": str(dtype).removeprefix("torch."),
        "timesteps": [round(t, 2) for t in files.preset.schedule.steps],
        "against_float32": {name: errors(v, truth) for name, v in found.items()},
        "against_plain": {name: errors(v, found["plain"]) for name, v in found.items() if name != "plain"},
        "one_block_in_float8": [errors(v, found["fused"]) for v in alone],
    }
    if args.model == "tiny":
        results["decode"] = {"prompts": list(DECODED), **decode_errors(pipeline)}
        print("decoded:", results["decode"])
    write_results(args.output, results, device)
    for name, row in found.items():
        print(f"{name:8}", "against float32, by step:", errors(row, truth))
    print(
        "one block in float8, mean over steps:",
        [round(sum(e) / len(e), 4) for e in results["one_block_in_float8"]],
    )


if __name__ == "__main__":
    main()
