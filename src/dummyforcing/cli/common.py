"""What several commands share: the types of their arguments, and small helpers."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import UseAppendAction, arg

from dummyforcing.errors import UserError
from dummyforcing.files.writing import temporary

if TYPE_CHECKING:
    import torch

    from dummyforcing.checkpoints.model_files import ModelFiles
    from dummyforcing.method.plan import Plan
    from dummyforcing.pipeline.pipeline import Chunk, Pipeline
    from dummyforcing.pipeline.request import Request

Model = Annotated[str, arg(metavar="NAME|FOLDER|FILE")]
Weights = Annotated[
    str | None, arg(metavar="FILE|FOLDER|OWNER/NAME:FILE", help_behavior_hint="(default: the model's own)")
]
Base = Annotated[
    str | None, arg(metavar="FOLDER|REPOSITORY", help_behavior_hint="(default: the model's own)")
]
DecoderFile = Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: the VAE's own)")]
LoRAFiles = Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="FILE[:SCALE]")]
Size = Annotated[
    str | None, arg(metavar="480p|720p|1080p|WxH", help_behavior_hint="(default: the model's own)")
]
Fraction = Annotated[float | None, arg(metavar="0..1", help_behavior_hint="(default: the model's own)")]
BudgetText = Annotated[
    str | None, arg(metavar="window:N|SIZE", help_behavior_hint="(default: window:12 with policy long)")
]
PolicyName = Annotated[str, arg(metavar="NAME")]
PlanFile = Annotated[Path | None, arg(metavar="FILE.json|shipped", help_behavior_hint="(default: find one)")]
NewPlanFile = Annotated[Path | None, arg(metavar="FILE.json", help_behavior_hint="(default: do not)")]
FP8 = Literal["none", "linear", "all"]
"""The modes of `fused.Fp8`, which the help must not import torch for."""
Device = Literal["auto", "cpu", "cuda"]
DType = Annotated[
    Literal["float32", "bfloat16"] | None,
    arg(metavar="{float32,bfloat16}", help_behavior_hint="(default: bfloat16 on a GPU, float32 elsewhere)"),
]


def load_for(
    files: "ModelFiles",
    request: "Request",
    device: str,
    dtype: str | None,
    offload: bool = False,
    vae: Path | None = None,
    fp8: FP8 = "none",
) -> "Pipeline":
    """Load a model for a request that fits into the memory."""
    from dummyforcing.pipeline.request import choose_device, choose_dtype

    where = choose_device(device)
    precision = choose_dtype(dtype, where)
    files.require_memory(request, precision, where, offload=offload)

    from dummyforcing.pipeline.pipeline import Pipeline

    return Pipeline.load(files, where, precision, offload, vae=vae, fp8=fp8)


def cache_dtype(device: str, dtype: str | None, fp8: FP8 = "none") -> "torch.dtype":
    """What a model loaded with these options keeps keys and values in."""
    import torch

    from dummyforcing.pipeline.request import choose_device, choose_dtype

    return torch.float8_e4m3fn if fp8 == "all" else choose_dtype(dtype, choose_device(device))


def progress(chunks: "Iterator[Chunk]", total: int, label: str) -> "Iterator[Chunk]":
    """Pass chunks on, with a bar that counts pixel frames and tells how many come per second so far."""
    from tqdm import tqdm

    with tqdm(desc=label, total=total, unit="frame") as bar:
        for chunk in chunks:
            bar.set_postfix_str(f"{chunk.timings.fps:.1f} FPS")
            bar.update(chunk.frames.shape[1])
            yield chunk


def parse_switches(texts: Sequence[str]) -> list[tuple[float, str]]:
    """Read changes of the prompt, each SECONDS:PROMPT."""
    switches = []
    for text in texts:
        seconds, _, prompt = text.partition(":")
        try:
            switches.append((float(seconds), prompt.strip()))
        except ValueError:
            raise UserError(
                f"The change of prompt '{text}' cannot be read; write SECONDS:PROMPT, such as '2.5:a ball'."
            ) from None
    return switches


def read_plan(path: Path | None, files: "ModelFiles") -> "Plan | None":
    """The head plan of a file, or `shipped`, the model's own."""
    from dummyforcing.method.plan import Plan

    if path is None:
        return None
    return files.shipped_plan() if str(path) == "shipped" else Plan.load(path)


def parse_list(text: str | None, option: str, *words: str) -> list[str] | None:
    """Split `0,3` into whole numbers, among which `words` may stand; `all`, the default, gives None."""
    if text is None or text == "all":
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() or part in words for part in parts):
        example = ",".join(["1", "3", *words])
        raise UserError(f"{option} '{text}' cannot be read; write all, or a list such as {example}.")
    return parts


def check_output(path: Path | None, *suffixes: str) -> None:
    """Refuse a file that could not be written, before any work is done for it."""
    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        raise UserError(f"Cannot write {path}: give a file name that ends in {' or '.join(suffixes)}.")
    temporary(path).unlink()
