"""What attaching to Self-Forcing's own code gains, beside that code alone and our own engine.

python -m research.benchmarks.attach --checkout Self-Forcing --output benchmarks/results/attach.json

Wan 1.3B with random weights in bfloat16, 21 latent frames (81 pixel frames), 4 steps and a commit pass per
chunk, without VAE and text encoder. cuDNN's attention for all, as far as the code calls attention. Memory is
the most that was allocated during a video, beside what was before it: cache, activations and graphs.
"""

import argparse
import builtins
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dummyforcing
from dummyforcing.attention.backends import cudnn, sdpa
from dummyforcing.evaluation.results import write_results
from dummyforcing.integrations.attach.families import recognise
from dummyforcing.integrations.attach.fused import shared_model
from dummyforcing.models.wan import CausalWan
from dummyforcing.pipeline.choices import choose_policy
from dummyforcing.presets.catalog import find_preset
from dummyforcing.presets.preset import parse_size
from dummyforcing.runtime.fused import arrange
from dummyforcing.sampling.block import BlockSampler
from dummyforcing.sampling.schedule import make_schedule
from research.upstream import pipeline, put_on_path, transformer

FRAMES, CHUNK, CHANNELS = 21, 3, 16
SIZES = {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30, "text_dim": 4096}
SMALL = {"dim": 1536, "ffn_dim": 64, "num_heads": 12, "num_layers": 2, "text_dim": 16}
"""For trying the program where there is no GPU."""


def attention(q: Tensor, k: Tensor, v: Tensor, *args: object, **kwargs: object) -> Tensor:
    """The kernel of Self-Forcing's attention."""
    return (cudnn if q.is_cuda else sdpa)(q, k, v).contiguous()


def timed(make: Callable[[], object], device: torch.device, repeats: int) -> dict[str, Any]:
    """Seconds of a video, the best of some after one that warms up, and the memory that it takes."""
    make()
    seconds, taken = [], 0
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
        start = time.perf_counter()
        make()
        if device.type == "cuda":
            torch.cuda.synchronize()
            taken = torch.cuda.max_memory_allocated() - before
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds, "fps": (1 + 4 * (FRAMES - 1)) / min(seconds), "bytes": taken}


def ours(model: CausalWan, size: tuple[int, int], policy: str, fp8: Any) -> Callable[[], object]:
    """A video of our own engine over the same weights."""
    preset = find_preset("self-forcing")[0]
    fused = arrange(model, fp8)
    weight = model.patch_embedding.weight
    prompt = torch.randn(1, 512, model.config.text_dim, device=weight.device, dtype=weight.dtype)

    def make() -> object:
        sampler = BlockSampler(
            model,
            prompt,
            choose_policy(preset, policy),
            make_schedule(preset.schedule.steps, preset.schedule.shift),
            (1, CHANNELS, size[0] // 8, size[1] // 8),
            frames=FRAMES,
            fused=fused,
            backend="cudnn" if weight.is_cuda else None,
        )
        return list(sampler)

    return make


def measure(name: str, sizes: dict[str, Any], device: torch.device, repeats: int) -> Iterator[dict[str, Any]]:
    """All ways at one size, in one run."""
    size = parse_size(name)
    tokens = size[0] * size[1] // 256
    torch.manual_seed(0)
    with torch.device(device):
        model = transformer("wan.modules", attention, tokens, **sizes).to(torch.bfloat16)
    for weight in model.parameters():
        weight.data = torch.randn_like(weight) * weight[0].numel() ** -0.5 if weight.dim() > 1 else weight
    preset = find_preset("self-forcing")[0]
    pipe = pipeline(model, preset.schedule.steps, CHUNK, tokens, local_attn_size=-1)
    pipe.local_attn_size = FRAMES  # its buffers hold the video, of any size
    noise = torch.randn(1, FRAMES, CHANNELS, size[0] // 8, size[1] // 8, device=device, dtype=torch.bfloat16)
    backend = "cudnn" if device.type == "cuda" else None

    def theirs() -> object:
        return pipe.inference(noise, ["a"])

    ways: dict[str, tuple[Callable[[], object], Callable[[], AbstractContextManager[Any]]]] = {
        "alone": (theirs, nullcontext),
        "attention, dense": (theirs, lambda: dummyforcing.attach(pipe, "dense", backend=backend)),
        "attention, dummy": (theirs, lambda: dummyforcing.attach(pipe, "dummy", backend=backend)),
        "fused, dummy": (
            theirs,
            lambda: dummyforcing.attach(pipe, "dummy", engine="fused", backend=backend),
        ),
        "fused, dummy, fp8": (
            theirs,
            lambda: dummyforcing.attach(pipe, "dummy", engine="fused", fp8="linear", backend=backend),
        ),
    }
    with torch.no_grad():
        for way, (make, attached) in ways.items():
            with attached() as handle:
                found = timed(make, device, repeats)
                if handle is not None:
                    found |= {"cache_bytes": handle.cache_bytes, "engine": handle.engine, "note": handle.note}
            pipe.kv_cache1 = None
            yield {"size": name, "way": way, **found}
        shared = shared_model(recognise(pipe))
        assert isinstance(shared, CausalWan)
        for fp8 in ("none", "linear"):
            found = timed(ours(shared, size, "dummy", fp8), device, repeats)
            yield {"size": name, "way": f"our engine, dummy{', fp8' if fp8 != 'none' else ''}", **found}


def main() -> None:
    """Measure, and write down."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkout", required=True, help="folder of guandeh17/Self-Forcing")
    parser.add_argument("--sizes", nargs="+", default=["480p", "720p"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a small transformer, to try this program")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    put_on_path(args.checkout)
    cuda: Any = torch.cuda
    if device.type != "cuda":
        cuda.current_device = lambda: 0  # asked for when a module is imported
    say, builtins.print = print, lambda *args, **kwargs: None  # its code tells every step
    rows = []
    for name in args.sizes:
        for row in measure(name, SMALL if args.small else SIZES, device, args.repeats):
            rows.append(row)
            say(f"{row['size']:>9}  {row['way']:<24} {row['fps']:6.1f} FPS  {row['bytes'] / 1e9:5.2f} GB")
    write_results(args.output, {"model": "Self-Forcing", "weights": "random", "rows": rows}, device)


if __name__ == "__main__":
    main()
