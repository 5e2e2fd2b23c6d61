"""Write random checkpoints of the real sizes in the published layouts; load and sample them by the real code.

    python -m research.benchmarks.checkpoints --folder /scratch --output benchmarks/results/checkpoints.json

For every preset: seconds and peak GPU memory of each stage, from opening the files to the last pixel frame,
and the command as a user calls it. Random weights are right for speed and memory,
and say nothing about quality. 1.3B takes 18 GB of disk, 14B another 29 GB; files that are there
already are used again. `--small` tries the script itself with small models on any machine.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file
from torch import Tensor

from dummyforcing.checkpoints import text_encoder as text
from dummyforcing.checkpoints import transformer as checkpoints
from dummyforcing.checkpoints.hub import find_part
from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.checkpoints.names import vae_name
from dummyforcing.checkpoints.text_encoder import load_text_encoder
from dummyforcing.checkpoints.transformer import open_transformer
from dummyforcing.checkpoints.vae import load_vae
from dummyforcing.checkpoints.weights import fill
from dummyforcing.evaluation.results import write_results
from dummyforcing.files.records import to_json
from dummyforcing.models.wan import CausalWan, ModelConfig
from dummyforcing.pipeline.devices import choose_device, choose_dtype
from dummyforcing.pipeline.options import LoadOptions
from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from dummyforcing.pipeline.request import make_request
from dummyforcing.presets.catalog import bundled_folders

PROMPT = "a red ball bounces on a green floor"
SMALL = ModelConfig(dim=96, ffn_dim=128, num_heads=4, num_layers=2, text_dim=64)
SMALL_UMT5 = {"vocab_size": 4096, "d_model": 64, "d_kv": 64, "d_ff": 128, "num_layers": 2, "num_heads": 2}
ORIGINAL_VAE_NAMES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"^quant_conv\.", "conv1."),
    (r"^post_quant_conv\.", "conv2."),
    (r"\.mid_block\.resnets\.(\d)\.", lambda m: f".middle.{2 * int(m[1])}."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
    (r"\.down_blocks\.", ".downsamples."),
    (r"\.up_blocks\.(\d)\.resnets\.(\d)\.", lambda m: f".upsamples.{4 * int(m[1]) + int(m[2])}."),
    (r"\.up_blocks\.(\d)\.upsamplers\.0\.", lambda m: f".upsamples.{4 * int(m[1]) + 3}."),
    (r"\.(middle|downsamples|upsamples)\.(\d+)\.norm1\.", r".\1.\2.residual.0."),
    (r"\.(middle|downsamples|upsamples)\.(\d+)\.conv1\.", r".\1.\2.residual.2."),
    (r"\.(middle|downsamples|upsamples)\.(\d+)\.norm2\.", r".\1.\2.residual.3."),
    (r"\.(middle|downsamples|upsamples)\.(\d+)\.conv2\.", r".\1.\2.residual.6."),
    (r"\.conv_shortcut\.", ".shortcut."),
    (r"coder\.conv_in\.", "coder.conv1."),
    (r"coder\.norm_out\.", "coder.head.0."),
    (r"coder\.conv_out\.", "coder.head.2."),
]


def random_weight(name: str, shape: torch.Size | tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """Values that keep activations in range: small, and about one where a norm multiplies."""
    fan_in = shape[-1] if len(shape) > 1 else 4096
    weight: Tensor = torch.randn(shape, device=device, dtype=torch.bfloat16) * fan_in**-0.5
    return (weight + ("norm" in name and name.endswith("weight"))).to(dtype).cpu()


def write_transformer(path: Path, config: ModelConfig, dtype: torch.dtype, device: str) -> None:
    """A checkpoint of Self-Forcing's layout (`.pt`) or Krea's (`.safetensors`)."""
    with torch.device("meta"):
        parameters = dict(CausalWan(config).named_parameters())
    weights = {f"model.{n}": random_weight(n, p.shape, dtype, device) for n, p in parameters.items()}
    if path.suffix == ".pt":
        torch.save({"generator_ema": weights}, path)
    else:
        save_file(weights, path)


def write_base(folder: Path, device: str) -> None:
    """Text encoder, tokenizer and VAE under the names of Wan's own repository."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = text.UMT5_XXL
    width, ffn, inner = sizes["d_model"], sizes["d_ff"], sizes["d_kv"] * sizes["num_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "token_embedding.weight": (sizes["vocab_size"], width),
        "norm.weight": (width,),
    }
    for layer in range(sizes["num_layers"]):
        names = {"norm1": (width,), "norm2": (width,), "attn.o": (width, inner), "ffn.fc2": (width, ffn)}
        names |= {f"attn.{part}": (inner, width) for part in "qkv"}
        names |= {f"ffn.{part}": (ffn, width) for part in ("gate.0", "fc1")}
        names["pos_embedding.embedding"] = (32, sizes["num_heads"])
        shapes |= {f"blocks.{layer}.{name}.weight": shape for name, shape in names.items()}
    encoder = {name: random_weight(name, shape, torch.bfloat16, device) for name, shape in shapes.items()}
    torch.save(encoder, folder / "models_t5_umt5-xxl-enc-bf16.pth")
    vae = {}
    for name, weight in AutoencoderKLWan().state_dict().items():
        original = name
        for pattern, replacement in ORIGINAL_VAE_NAMES:
            original = re.sub(pattern, replacement, original)
        assert vae_name(original) == name, (original, name)
        vae[original] = weight
    torch.save(vae, folder / "Wan2.1_VAE.pth")
    # The vocabulary is another one; nothing depends on it but which rows of the embedding are read.
    shutil.copytree(
        bundled_folders()["tiny"] / "tokenizer", folder / "google" / "umt5-xxl", dirs_exist_ok=True
    )


class PeakHostMemory:
    """The most anonymous memory of this process while a block runs, in bytes beyond what it had."""

    def __enter__(self) -> "PeakHostMemory":
        self._start = self.peak = self._now()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()
        self.peak -= self._start

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self.peak = max(self.peak, self._now())

    def _now(self) -> int:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return 1024 * int(lines["RssAnon"].split()[0])


@contextmanager
def stage(name: str, stages: dict[str, dict[str, float]]) -> Iterator[None]:
    """Measure a block: seconds, peak of GPU memory, what is held afterwards, peak growth of main memory."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    with PeakHostMemory() as host:
        yield
        if cuda:
            torch.cuda.synchronize()
    stages[name] = {"seconds": time.perf_counter() - start, "host_peak_gb": host.peak / 1e9}
    if cuda:
        stages[name] |= {
            "gpu_peak_gb": torch.cuda.max_memory_allocated() / 1e9,
            "gpu_held_gb": torch.cuda.memory_allocated() / 1e9,
        }
    print(
        f"  {name}: {json.dumps({key: round(value, 2) for key, value in stages[name].items()})}", flush=True
    )


def load(files: ModelFiles, device: str, stages: dict[str, dict[str, float]]) -> DummyForcingPipeline:
    """Load what `DummyForcingPipeline.from_files` does, stage by stage."""
    where = choose_device(device)
    dtype = choose_dtype(None, where)
    assert isinstance(files.transformer, Path)
    assert isinstance(files.base, Path)
    with stage("load transformer", stages):
        model = fill(*open_transformer(files.transformer, files.config, files.key), where, dtype)
    encoder, tokenizer, vae = (find_part(files.base, part) for part in ("text_encoder", "tokenizer", "vae"))
    with stage("load text encoder", stages):
        encode = load_text_encoder(encoder, tokenizer, model.config.text_len, where, dtype)
    with stage("load VAE", stages):
        decoder = load_vae(vae, where, files.vae_dtype(dtype))
    with stage("encode prompt", stages):
        encode.encode(PROMPT)
    return DummyForcingPipeline.from_parts(files, model, encode, decoder)


def sample(
    pipeline: DummyForcingPipeline, policy: str, frames: int, size: tuple[int, int] | None
) -> dict[str, object]:
    """Make one video; seconds of its chunks, and rates over all but the first and the one after a plan."""
    stages: dict[str, dict[str, float]] = {}
    preset = pipeline.files.preset
    tail = preset.current_frames // preset.chunk_frames - 1  # chunks of windows that only shrink
    frames += preset.chunk_pixel_frames * tail
    request = make_request(pipeline.files, PROMPT, num_frames=frames, size=size, policy=policy)
    chunks = []
    with stage(f"video, {policy}", stages):
        for chunk in pipeline.run(request):
            chunks.append((chunk.timings, chunk.frames.shape[1], chunk.cache_bytes))
    assert chunk.frames.std() > 0
    steps = [
        {
            "diffusion_s": now.diffusion - before.diffusion,
            "decode_s": now.decode - before.decode,
            "wall_s": now.wall - before.wall,
            "pixel_frames": count,
            "cache_gb": cache / 1e9,
        }
        for (before, _, _), (now, count, cache) in pairwise(chunks)
    ]
    full = steps[: len(steps) - tail]
    steady = full[-max(1, len(full) // 2) :]
    count = steady[-1]["pixel_frames"]
    return {
        **stages[f"video, {policy}"],
        "first_frame_s": chunks[0][0].first_frame,
        "fps_without_vae": count / median(step["diffusion_s"] for step in steady),
        "fps": count / median(step["wall_s"] for step in steady),
        "cache_gb": chunks[-1][2] / 1e9,
        "chunks": steps,
    }


def main() -> None:
    """Write, load, sample, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="where the checkpoints are written")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--presets", nargs="+", default=["self-forcing", "rolling-forcing", "krea-realtime"])
    parser.add_argument(
        "--commands", nargs="*", default=["self-forcing"], help="also time these as a user calls them"
    )
    parser.add_argument("--policies", nargs="+", default=["native", "dummy"])
    parser.add_argument("--frames", type=int, default=81, help="pixel frames per video")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--small", action="store_true", help="small models, to try the script")
    args = parser.parse_args()
    device = choose_device(args.device)
    size = None
    if args.small:
        checkpoints.WAN_SIZES.update({"1.3B": SMALL, "14B": SMALL})
        text.UMT5_XXL.update(SMALL_UMT5)
        size = (64, 96)
    base = args.folder / "Wan2.1"
    results: dict[str, Any] = {"pixel_frames": args.frames, "small": args.small}
    with stage("write base", {}):
        if not (base / "google").exists():
            write_base(base, str(device))
    for name in args.presets:
        print(name, flush=True)
        is_large = name.startswith("krea")
        path = args.folder / ("krea.safetensors" if is_large else "self_forcing_dmd.pt")
        path.parent.mkdir(parents=True, exist_ok=True)
        if args.small:
            (args.folder / "config.json").write_text(to_json(asdict(SMALL)))
        stages: dict[str, dict[str, float]] = {}
        with stage("write checkpoint", {}):
            if not path.exists():
                config = checkpoints.WAN_SIZES["14B" if is_large else "1.3B"]
                write_transformer(path, config, torch.bfloat16 if is_large else torch.float32, str(device))
        files = ModelFiles.open(name, weights=path, base=base)
        pipeline = load(files, str(device), stages)
        videos = {policy: sample(pipeline, policy, args.frames, size) for policy in args.policies}
        results[name] = {"stages": stages, "videos": videos}
        del pipeline
        if device.type == "cuda":
            torch.cuda.empty_cache()
            pipeline = DummyForcingPipeline.from_files(files, LoadOptions(device=device, offload=True))
            results[name]["offloaded"] = sample(pipeline, "dummy", args.frames, size)
            del pipeline
            torch.cuda.empty_cache()
        if name in args.commands and not args.small:
            results[name]["command"] = command(name, path, base, args.folder, args.frames)
        write_results(args.output, results, device)


def command(preset: str, weights: Path, base: Path, folder: Path, frames: int) -> dict[str, object]:
    """The whole command as a user calls it, start-up and files included."""
    words = ["generate", PROMPT, "--model", preset, "--weights", weights, "--base", base, "--frames", frames]
    call = [sys.executable, "-m", "dummyforcing", *map(str, words), "-o", str(folder / f"{preset}.mp4")]
    start = time.perf_counter()
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    print(done.stdout[-1500:], done.stderr[-1500:], flush=True)
    return {"seconds": time.perf_counter() - start, "exit_code": done.returncode}


if __name__ == "__main__":
    main()
