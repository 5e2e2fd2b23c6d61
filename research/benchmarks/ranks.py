"""What several GPUs of one host gain, beside one of them alone, in one run.

torchrun --nproc-per-node 2 -m research.benchmarks.ranks --output benchmarks/results/gpus-2-exchange.json

Wan 1.3B with random weights in bfloat16, 21 latent frames (81 pixel frames), 4 steps and a commit pass,
no VAE. Frames per second are of the whole video, classification included, and steady: of its last chunks.
Communication is what a pass takes longer than the same one without its exchanges, whose result is wrong.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dummyforcing.bench.candidates import random_model
from dummyforcing.evaluation.results import write_results
from dummyforcing.method.plan import Plan
from dummyforcing.models.wan import CausalWan, ModelConfig
from dummyforcing.pipeline.choices import choose_policy
from dummyforcing.presets.catalog import find_preset
from dummyforcing.presets.preset import parse_size
from dummyforcing.runtime.fused import FusedWan
from dummyforcing.runtime.ranks import Ranks
from dummyforcing.sampling.block import BlockSampler
from dummyforcing.sampling.schedule import make_schedule

FRAMES, CHUNK, CHANNELS = 21, 3, 16
SIZES = ModelConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30)
SMALL = ModelConfig(dim=96, ffn_dim=64, num_heads=12, num_layers=2, text_dim=16)
"""For trying the program where there is no GPU."""


def video(
    model: CausalWan,
    fused: FusedWan,
    size: tuple[int, int],
    policy: str,
    ranks: Ranks | None,
    plan: Plan | None = None,
) -> dict[str, Any]:
    """Make a video; seconds of each chunk, and the most memory that it took."""
    preset, weight = find_preset("self-forcing")[0], model.patch_embedding.weight
    device = weight.device
    torch.manual_seed(1)
    prompt = torch.randn(1, 512, model.config.text_dim).to(device, weight.dtype)
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    sampler = BlockSampler(
        model,
        prompt,
        choose_policy(preset, policy),
        make_schedule(preset.schedule.steps, preset.schedule.shift),
        (1, CHANNELS, size[0] // 8, size[1] // 8),
        frames=FRAMES,
        fused=fused,
        ranks=ranks,
        plan=plan,
    )
    seconds, latents = [], []
    for _ in range(FRAMES // CHUNK):
        start = time.perf_counter()
        latents.append(sampler.next_chunk())
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {
        "chunks": seconds,
        "cache_bytes": sampler.cache.nbytes,
        "peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else 0,
        "latents": torch.cat(latents, 1),
        "plan": sampler.plan,
    }


def figures(videos: list[dict[str, Any]]) -> dict[str, Any]:
    """Speed and memory of the best of some videos."""
    best = min(videos, key=lambda one: sum(one["chunks"]))
    late = [seconds for one in videos for seconds in one["chunks"][-3:]]
    pixel_frames = 1 + 4 * (FRAMES - 1)
    return {
        "fps": pixel_frames / sum(best["chunks"]),
        "steady_fps": 4 * CHUNK / statistics.median(late),
        "chunk_seconds": best["chunks"],
        "first_chunk_seconds": best["chunks"][0],
        "slowest_late_chunk_seconds": max(late),
        "peak_bytes": best["peak_bytes"],
        "cache_bytes": best["cache_bytes"],
    }


class Silent(Ranks):
    """Ranks that exchange nothing on the fused path: what comes is what was there."""

    def all_to_all(self, *args: Any) -> None:
        """Nothing."""


def measure(args: argparse.Namespace, ranks: Ranks, device: torch.device) -> Iterator[dict[str, Any]]:
    """All sizes, policies and precisions, one GPU and all of them."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = random_model(SMALL if args.small else SIZES, device, dtype)
    for fp8 in args.fp8:
        fused = FusedWan(model, fp8)
        for name in args.sizes:
            size = parse_size(name)
            for policy in args.policies:
                row = {"size": name, "policy": policy, "fp8": fp8}
                alone = [video(model, fused, size, policy, None) for _ in range(args.repeats)]
                dist.barrier()
                yield {**row, "gpus": 1, **figures(alone)}
                together = [video(model, fused, size, policy, ranks) for _ in range(args.repeats)]
                first, other = alone[0]["latents"], together[0]["latents"]
                found = figures(together)
                silent = figures([video(model, fused, size, policy, Silent(), together[0]["plan"])])
                found["communication_share"] = 1 - found["steady_fps"] / silent["steady_fps"]
                found["difference"] = float((first - other).norm() / first.norm())
                yield {**row, "gpus": ranks.size, **found}


def main() -> None:
    """Measure, and let rank 0 write down."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", default=["480p", "720p", "1080p"])
    parser.add_argument("--policies", nargs="+", default=["dummy"])
    parser.add_argument("--fp8", nargs="+", default=["none"], choices=["none", "linear", "all"])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="a small transformer, to try this program")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=timedelta(minutes=5))
        device = torch.device("cuda", dist.get_rank())
        torch.cuda.set_device(device)
    else:
        dist.init_process_group("gloo")
    ranks, rows = Ranks(), []
    for row in measure(args, ranks, device):
        rows.append(row)
        if ranks.rank == 0:
            print(
                f"{row['size']:>9} {row['policy']:<6} fp8 {row['fp8']:<6} {row['gpus']} GPU "
                f"{row['fps']:6.1f} FPS, steady {row['steady_fps']:6.1f}, first chunk "
                f"{1000 * row['first_chunk_seconds']:5.0f} ms, {row['peak_bytes'] / 1e9:5.2f} GB"
                + (
                    f", exchange {row['communication_share']:.0%}, differs by {row['difference']:.4f}"
                    if "difference" in row
                    else ""
                ),
                flush=True,
            )
    if ranks.rank == 0:
        write_results(args.output, {"model": "Wan 1.3B", "weights": "random", "rows": rows}, device)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
