"""What the stages of `train_tiny.py` share: sizes, the run folder and its files, processes, pictures."""

import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from dummyforcing.files.records import to_json
from research.training.data import Pool

CHUNK = 3  # latent frames
SIZE = 160  # pixels, height and width
LATENT = SIZE // 8
TOKENS = (LATENT // 2) ** 2  # per latent frame
SHARD_BYTES = 15_500_000
LAST_THINGS = 15
"""Seconds at the end of a limited call that are left for pictures and for writing weights."""


@dataclass(frozen=True)
class Span:
    """How long a stage runs in this call, and which part of its schedule that is."""

    seconds: float
    begin: float = 0.0
    end: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "Span":
        """Read `SECONDS` or `SECONDS@FROM-TO`, as in "540@0-0.5"."""
        seconds, _, part = text.partition("@")
        begin, _, end = (part or "0-1").partition("-")
        span = cls(float(seconds), float(begin), float(end))
        if not (span.seconds > 0 and 0 <= span.begin < span.end <= 1):
            raise ValueError(f"'{text}' is no SECONDS or SECONDS@FROM-TO")
        return span


class Run:
    """Where this process runs, and what the stages share."""

    def __init__(
        self, folder: Path, small: bool, pool: float, data: int = 0, limit: float = math.inf
    ) -> None:
        self.folder, self.small, self.pool, self.data = folder, small, pool, data
        self.limit = limit
        if "RANK" in os.environ:
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(1234 + self.rank)
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for every length of a growing cache
        torch._dynamo.config.recompile_limit = 64  # one compiled block per shape
        self.started = time.monotonic()
        self.pools: dict[int, Pool] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def within(self, seconds: float) -> float:
        """So many seconds, or as many as the limit of this call leaves."""
        left = self.limit - LAST_THINGS - (time.monotonic() - self.started)
        return max(1.0, min(seconds, left))

    def wait(self) -> None:
        """Until all processes are here: what one has written the others may read."""
        if dist.is_initialized():
            dist.barrier()

    def seed(self, stage: str) -> tuple[int, ...]:
        """Of scenes; differs between stages and processes."""
        return (self.data, self.rank, *stage.encode())

    def rng(self, stage: str) -> np.random.Generator:
        """A generator that differs between stages and processes."""
        return np.random.default_rng(self.seed(stage))

    def log(self, *words: object) -> None:
        """Print once, with the time."""
        if self.rank == 0:
            print(f"[{time.monotonic() - self.started:6.1f}s]", *words, flush=True)

    def curve(self, stage: str, step: int, losses: dict[str, float]) -> None:
        """Log losses, and add them to the run's curves."""
        self.log(f"{stage} {step}:", ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items()))
        if self.rank == 0:
            row = {
                "stage": stage,
                "step": step,
                "seconds": round(time.monotonic() - self.started, 1),
                **losses,
            }
            with (self.folder / "curves.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")

    def share(self, batch: int) -> int:
        """What one process takes of a batch.

        With more of them the whole batch grows as the root of their number, and so does the number of steps
        in the same time.
        """
        processes = dist.get_world_size() if dist.is_initialized() else 1
        return self.scaled(max(1, round(batch / math.sqrt(processes))))

    def scaled(self, count: int) -> int:
        """A batch or pool size; tiny on a CPU, where only the logic is tried."""
        return 2 if self.small else count


def autocast(run: Run) -> torch.autocast:
    """bfloat16 matrix products on float32 weights."""
    on_gpu = run.device.type == "cuda"
    return torch.autocast(run.device.type, torch.bfloat16, enabled=on_gpu, cache_enabled=False)


def save_sharded(folder: Path, state: dict[str, Tensor], config: dict[str, object]) -> None:
    """Write config.json and float16 safetensors in files below 16 MB, as Hugging Face shards them."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.safetensors*"):
        old.unlink()
    shards: list[dict[str, Tensor]] = [{}]
    room = SHARD_BYTES
    for name, tensor in state.items():
        tensor = tensor.detach().to("cpu", torch.float16).contiguous()
        if tensor.nbytes > room:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = tensor
        room -= tensor.nbytes
    stem = "diffusion_pytorch_model" if folder.name != "text_encoder" else "model"
    names = [f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = [f"{stem}.safetensors"]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / name, metadata={"format": "pt"})
    if len(shards) > 1:
        where = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        total = sum(t.nbytes for shard in shards for t in shard.values())
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / f"{stem}.safetensors.index.json").write_text(to_json(index, indent=1))
    (folder / "config.json").write_text(to_json(config, indent=1))


def load_sharded(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, float32."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: t.float() for file in files for name, t in load_file(file).items()}


def save_picture(path: Path, pictures: Tensor) -> None:
    """Write uint8 pictures `(rows, columns, H, W, 3)` as one PNG at half size."""
    rows = pictures[:, :, ::2, ::2].permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1)
    Image.fromarray(rows.cpu().numpy()).save(path)
