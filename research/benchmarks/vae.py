"""Time the VAE's streamed decoder against diffusers' own: random weights and latents, real sizes.

`library` is our decoder with convolutions of cuDNN or oneDNN, `ours` with our kernel where there is a GPU for
it, `float8` in float8, too (a CPU emulates it).

python -m research.benchmarks.vae --sizes 480p 720p 1080p --output benchmarks/results/vae.json
python -m research.benchmarks.vae --sizes 720p 1080p --tiles 2 4 8 --output benchmarks/results/vae-tiles.json
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from dummyforcing.runtime.threads import spin_briefly

spin_briefly()  # before torch is imported

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, unpatchify
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from dummyforcing.evaluation.results import write_results
from dummyforcing.pipeline.devices import choose_device, choose_dtype
from dummyforcing.presets.preset import SIZES
from dummyforcing.vae.codec import VideoDecoder

SMALL = {"base_dim": 8, "num_res_blocks": 1}
SMALL_SIZE = (64, 96)
CHUNKS, CHUNK_FRAMES = 4, 3

Decode = Callable[[Tensor], Tensor]
"""Decodes the next latents of a video, `(1, F, C, h, w)`, to float `(1, n, H, W, 3)` in [0, 1]."""


def diffusers_stream(decoder: VideoDecoder) -> Decode:
    """Begin a video that diffusers decodes: latent frame by latent frame."""
    vae = decoder.vae
    features: list[Any] = [None] * sum(isinstance(m, WanCausalConv3d) for m in vae.decoder.modules())
    is_first = True

    @torch.inference_mode()
    def decode(latents: Tensor) -> Tensor:
        nonlocal is_first
        z = latents.transpose(1, 2).float() * decoder._std + decoder._mean
        pieces = []
        with decoder.at_work():
            for frame in vae.post_quant_conv(z.to(vae.dtype)).split(1, dim=2):
                pieces.append(vae.decoder(frame, feat_cache=features, feat_idx=[0], first_chunk=is_first))
                is_first = False
        pixels: Tensor = unpatchify(torch.cat(pieces, dim=2), decoder.patch_size)
        return (pixels.float().clamp(-1, 1) * 0.5 + 0.5).permute(0, 2, 3, 4, 1)

    return decode


def our_stream(decoder: VideoDecoder, tiles: int = 1) -> Decode:
    """Begin a video that we decode."""
    return decoder.stream(tiles).decode_float


def to_uint8(pixels: Tensor) -> Tensor:
    """As what is decoded leaves the library."""
    return (pixels * 255).round().to(torch.uint8)


def seconds(work: Callable[[], object]) -> float:
    """What one call takes, until the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def speed(begin: Callable[[], Decode], chunks: list[Tensor]) -> dict[str, float]:
    """Decode the beginning of a video to warm up, then all of it."""
    run(begin(), chunks[:2])
    held = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    if held:
        torch.cuda.reset_peak_memory_stats()
    times = run(begin(), chunks)
    result = {
        "pixel_frames_per_s": 4 * CHUNK_FRAMES / median(times[1:]),
        "first_frame_ms": 1e3 * run(begin(), [chunks[0][:, :1]])[0],
    }
    if held:
        result["memory_gb"] = (torch.cuda.max_memory_allocated() - held) / 1e9
    return result


def run(decode: Decode, chunks: list[Tensor]) -> list[float]:
    """Seconds of each chunk."""

    def work(chunk: Tensor) -> Tensor:
        return to_uint8(decode(chunk))

    return [seconds(partial(work, chunk)) for chunk in chunks]


@contextmanager
def exact_float32() -> Iterator[None]:
    """No TF32 in products and convolutions."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def differences(outputs: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Largest and mean absolute differences, in gray levels, between each two of the outputs."""
    names, found = list(outputs), {}
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            gap = (outputs[one] - outputs[other]).abs() * 255
            found[f"{one} - {other}"] = {"max": gap.max().item(), "mean": gap.mean().item()}
    return found


def print_kernels(work: Callable[[], object], device: torch.device) -> None:
    """Print the 15 kernels, or operators of a CPU, that take most of the time."""
    kind = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[kind]) as profiler:
        seconds(work)
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    events = [event for event in profiler.key_averages() if getattr(event, key)]
    total = sum(getattr(event, key) for event in events)
    print(f"  {total / 1e3:.1f} ms in all")
    for event in sorted(events, key=lambda event: -getattr(event, key))[:15]:
        time_ms = getattr(event, key) / 1e3
        print(f"  {time_ms:8.2f} ms {time_ms * 1e5 / total:5.1f}% {event.count:5} x {event.key[:120]}")


def main() -> None:
    """Measure every size on both paths."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["480p"])
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--small", action="store_true", help="a small VAE and small frames, to try the script"
    )
    parser.add_argument(
        "--tiles", nargs="+", type=int, default=[], help="numbers of tiles of rows to decode in, besides one"
    )
    parser.add_argument("--profile", action="store_true", help="print the kernels that take most of the time")
    parser.add_argument(
        "--autotune",
        action="store_true",
        help="let cuDNN time its algorithms for each shape, and take the best",
    )
    args = parser.parse_args()
    device = choose_device(args.device)
    dtype = choose_dtype(None, device)
    torch.backends.cudnn.benchmark = args.autotune
    torch.manual_seed(0)
    with device:
        exact, vae = (AutoencoderKLWan(**(SMALL if args.small else {})).eval() for _ in range(2))
    vae.load_state_dict(exact.state_dict())
    decoder, library = (VideoDecoder(nn.Module.to(vae, dtype)) for _ in range(2))
    library.convolutions.in_one_kernel = False
    paths: dict[str, Callable[[], Decode]] = {
        "diffusers": partial(diffusers_stream, decoder),
        "library": partial(our_stream, library),
        "ours": partial(our_stream, decoder),
        "float8": partial(our_stream, VideoDecoder(vae, fp8=True)),
    }
    paths |= {f"{tiles} tiles": partial(our_stream, decoder, tiles) for tiles in args.tiles}
    results: dict[str, Any] = {"dtype": str(dtype), "chunk_frames": CHUNK_FRAMES, "autotune": args.autotune}
    for name in ["small"] if args.small else args.sizes:
        height, width = SMALL_SIZE if args.small else SIZES[name]
        latents = torch.randn(1, CHUNKS * CHUNK_FRAMES, 16, height // 8, width // 8, device=device)
        chunks = list(torch.split(latents, CHUNK_FRAMES, dim=1))
        results[name] = {path: speed(stream, chunks) for path, stream in paths.items()}
        outputs = {path: stream()(chunks[0]) for path, stream in paths.items()}
        with exact_float32():
            outputs["float32"] = diffusers_stream(VideoDecoder(exact))(chunks[0])
        results[name]["gray_levels"] = differences(outputs)
        results[name]["std"] = outputs["float32"].std().item() * 255
        del outputs
        if args.profile:
            for path, stream in paths.items():
                print(f"{name}, {path}, one chunk of {CHUNK_FRAMES} latent frames:")
                decode = stream()
                decode(chunks[0])
                print_kernels(partial(run, decode, chunks[1:2]), device)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_results(args.output, results, device)
    for name, result in results.items():
        if isinstance(result, dict):
            print_size(name, result, list(paths))


def print_size(name: str, result: dict[str, Any], paths: list[str]) -> None:
    """Print the table of a size."""
    for path in paths:
        measured = result[path]
        print(
            f"{name:>6} {path:>9}: {measured['pixel_frames_per_s']:6.1f} pixel frames/s, first after "
            f"{measured['first_frame_ms']:6.1f} ms, {measured.get('memory_gb', 0):5.1f} GB beside the weights"
        )
    for pair, gap in result["gray_levels"].items():
        print(f"{name:>6} {pair:>20}: {gap['max']:.3f} gray levels at most, {gap['mean']:.4f} on average")


if __name__ == "__main__":
    main()
