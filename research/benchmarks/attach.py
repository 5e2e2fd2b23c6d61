"""What attaching to Self-Forcing's own code gains, beside that code alone and our own engine.

python -m research.benchmarks.attach --checkout Self-Forcing --official DummyForcing \
    --output benchmarks/results/attach.json

Wan 1.3B with random weights in bfloat16, 21 latent frames (81 pixel frames), 4 steps and a commit pass per
chunk, without VAE and text encoder. cuDNN's attention for all, as far as the code calls attention. Memory is
the most that was allocated during a video, beside weights: cache, activations and graphs. The official code
of Dummy Forcing (180 dummy heads), whose modules are called as Self-Forcing's, runs in a process of its own.
"""

import argparse
import builtins
import gc
import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
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
    if not q.shape[2]:  # a layer of the official code can have no heads of a role
        return q
    return (cudnn if q.is_cuda else sdpa)(q, k, v).contiguous()


def timed(make: Callable[[], object], device: torch.device, repeats: int) -> dict[str, Any]:
    """Seconds of a video, the best of some after one that warms up, and the memory that it takes."""
    gc.collect()
    before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    make()
    seconds, taken = [], 0
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
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


def weights(tokens: int, sizes: dict[str, Any], device: torch.device) -> Any:
    """The transformer of the checkout that is on the path, with random weights."""
    torch.manual_seed(0)
    with torch.device(device):
        model = transformer("wan.modules", attention, tokens, **sizes).to(torch.bfloat16)
    for weight in model.parameters():
        weight.data = torch.randn_like(weight) * weight[0].numel() ** -0.5 if weight.dim() > 1 else weight
    return model


def noise(size: tuple[int, int], device: torch.device) -> Tensor:
    """Noise for a video."""
    shape = 1, FRAMES, CHANNELS, size[0] // 8, size[1] // 8
    return torch.randn(shape, device=device, dtype=torch.bfloat16)


def measure_official(
    checkout: str, name: str, sizes: dict[str, Any], device: torch.device, repeats: int
) -> dict[str, Any]:
    """The official code of Dummy Forcing, in a process of its own."""
    prepare(checkout, device)
    size, preset = parse_size(name), find_preset("self-forcing")[0]
    tokens = size[0] * size[1] // 256
    settings = SimpleNamespace(
        denoise_start=0,
        ar_start=1,
        local_context_length=1,
        num_dummy=180,
        teacache_enabled=False,
        teacache_threshold=0.2,
    )
    model, given = weights(tokens, sizes, device), noise(size, device)
    pipe = pipeline(
        model,
        preset.schedule.steps,
        CHUNK,
        tokens,
        settings={"dummy_forcing": settings},
        local_attn_size=12,
        sink_size=3,
    )
    with torch.no_grad():
        return {
            "size": name,
            "way": "official code",
            **timed(partial(pipe.inference, given, ["a"]), device, repeats),
        }


def measure(name: str, sizes: dict[str, Any], device: torch.device, repeats: int) -> Iterator[dict[str, Any]]:
    """All ways at one size, in one run."""
    size, preset = parse_size(name), find_preset("self-forcing")[0]
    tokens = size[0] * size[1] // 256
    model, given = weights(tokens, sizes, device), noise(size, device)
    pipe = pipeline(model, preset.schedule.steps, CHUNK, tokens, local_attn_size=-1)
    backend = "cudnn" if device.type == "cuda" else None
    attached = partial(dummyforcing.attach, pipe, backend=backend)
    ways: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "alone": nullcontext,
        "attention, dense": partial(attached, policy="dense"),
        "attention, dummy": partial(attached, policy="dummy"),
        "fused, dummy": partial(attached, policy="dummy", engine="fused"),
        "fused, dummy, fp8": partial(attached, policy="dummy", engine="fused", fp8="linear"),
    }
    with torch.no_grad():
        for way, attach in ways.items():
            # Alone, its buffers hold the video, of any size.
            pipe.local_attn_size = FRAMES if way == "alone" else -1
            with attach() as handle:
                found = timed(partial(pipe.inference, given, ["a"]), device, repeats)
                if handle is not None:
                    found |= {"cache_bytes": handle.cache_bytes, "engine": handle.engine, "note": handle.note}
            pipe.kv_cache1 = None
            del handle
            yield {"size": name, "way": way, **found}
        shared = shared_model(recognise(pipe))
        assert isinstance(shared, CausalWan)
        for fp8 in ("none", "linear"):
            found = timed(ours(shared, size, "dummy", fp8), device, repeats)
            yield {"size": name, "way": f"our engine, dummy{', fp8' if fp8 != 'none' else ''}", **found}


def prepare(checkout: str, device: torch.device) -> None:
    """Let a checkout be imported."""
    put_on_path(checkout)
    cuda: Any = torch.cuda
    if device.type != "cuda":
        cuda.current_device = lambda: 0  # asked for when a module is imported
    builtins.print = lambda *args, **kwargs: None  # its code tells every step


def main() -> None:
    """Measure, and write down."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkout", required=True, help="folder of guandeh17/Self-Forcing")
    parser.add_argument("--official", help="folder of csguoh/DummyForcing")
    parser.add_argument("--sizes", nargs="+", default=["480p", "720p"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a small transformer, to try this program")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    say, sizes = print, SMALL if args.small else SIZES
    prepare(args.checkout, device)
    rows = []

    def measured(name: str) -> Iterator[dict[str, Any]]:
        if args.official:
            with multiprocessing.get_context("spawn").Pool(1) as apart:
                yield apart.apply(measure_official, (args.official, name, sizes, device, args.repeats))
        yield from measure(name, sizes, device, args.repeats)

    for name in args.sizes:
        for row in measured(name):
            rows.append(row)
            say(f"{row['size']:>9}  {row['way']:<24} {row['fps']:6.1f} FPS  {row['bytes'] / 1e9:5.2f} GB")
    write_results(args.output, {"model": "Self-Forcing", "weights": "random", "rows": rows}, device)


if __name__ == "__main__":
    main()
