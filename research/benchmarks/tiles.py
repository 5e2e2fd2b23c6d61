"""Decode a large video in tiles of rows: memory, time, and what changes. The bundled model's VAE on a CPU.

python -m research.benchmarks.tiles --output benchmarks/results/tiles-cpu.json

Every number of tiles has a process of its own, so that its peak of memory is its own.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from dummyforcing.checkpoints.vae import load_vae
from dummyforcing.evaluation.results import write_results
from dummyforcing.presets.preset import parse_size

ASSETS = Path(__file__).parents[2] / "src" / "dummyforcing" / "presets" / "tiny" / "vae"
TILES = (1, 2, 4)
FRAMES = 6
"""Latent frames, decoded three at a time."""


def decode(size: tuple[int, int], tiles: int, pixels: Path) -> None:
    """Decode random latents, keep the pixels, and print what it took."""
    decoder = load_vae(ASSETS)
    height, width = (side // decoder.stride for side in size)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, FRAMES, 16, height, width, generator=generator)
    before, start = peak(), time.perf_counter()
    stream = decoder.stream(tiles)
    frames = torch.cat([stream.decode(chunk) for chunk in torch.split(latents, 3, 1)], 1)
    found = {"seconds": round(time.perf_counter() - start, 2), "peak_bytes": peak() - before}
    np.save(pixels, frames.numpy())
    print(json.dumps(found))


def peak() -> int:
    """Bytes that this process has had in the main memory at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Measure all numbers of tiles, compare their pixels with those of one, and write what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write, or the pixels of one")
    parser.add_argument("--size", type=parse_size, default=(480, 832), help="480p, 720p, 1080p or WxH")
    parser.add_argument("--only", type=int, help="decode in so many tiles and print what it took")
    args = parser.parse_args()
    if args.only is not None:
        decode(args.size, args.only, args.output)
        return
    height, width = args.size
    rows, truth = [], None
    for tiles in TILES:
        pixels = args.output.with_suffix(".npy")
        command = [sys.executable, "-m", "research.benchmarks.tiles", "--size", f"{width}x{height}"]
        command += ["--only", f"{tiles}", "--output", str(pixels)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        frames = np.load(pixels).astype(np.int16)
        pixels.unlink()
        truth = frames if truth is None else truth
        change = int(np.abs(frames - truth).max())
        rows.append({"tiles": tiles, **json.loads(done.stdout), "largest_change": change})
    results: dict[str, object] = {"size": [height, width], "pixel_frames": len(truth[0]), "rows": rows}  # type: ignore[index]
    write_results(args.output, results, torch.device("cpu"))


if __name__ == "__main__":
    main()
