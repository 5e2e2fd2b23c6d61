"""Types of arguments and small helpers that several commands share."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from dummyforcing.cli.flags import FlagsOf, Given
from dummyforcing.cli.terminal import VOICE
from dummyforcing.errors import BadFile, BadRequest
from dummyforcing.files.writing import temporary
from dummyforcing.pipeline.options import LoadOptions, choose

if TYPE_CHECKING:
    import torch

    from dummyforcing.checkpoints.model_files import ModelFiles
    from dummyforcing.pipeline.outputs import Chunk
    from dummyforcing.pipeline.pipeline import DummyForcingPipeline
    from dummyforcing.pipeline.request import Request

Model = Annotated[str, arg(metavar="NAME|FOLDER|FILE")]
NewPlanFile = Annotated[Path | None, arg(metavar="FILE.json", help_behavior_hint="(default: do not)")]
FP8 = Literal["none", "vae", "linear", "all"]
"""The modes of `fused.Fp8`, which the help must not import torch for."""

LOAD = FlagsOf(LoadOptions)
FILES = FlagsOf(LoadOptions, only=("weights", "base", "lora"))
"""Where the files of a model are."""


def open_files(model: str, load: Given) -> "ModelFiles":
    """Find a model's files; nothing is read or downloaded."""
    from dummyforcing.checkpoints.model_files import ModelFiles

    return ModelFiles.open(model, **{name: load[name] for name in FILES.only if name in load})


def load_for(
    files: "ModelFiles", request: "Request", load: Given, beside: "Sequence[Request]" = ()
) -> "DummyForcingPipeline":
    """Load a model for a request that fits into the memory, with those that are made in turns with it."""
    from dummyforcing.pipeline.devices import choose_device, choose_dtype
    from dummyforcing.pipeline.memory import require_memory

    options = choose(LoadOptions, load)
    where = choose_device(options.device)
    dtype = choose_dtype(options.torch_dtype, where)
    require_memory(files, request, dtype, where, beside=beside, offload=options.offload)

    from dummyforcing.pipeline.pipeline import DummyForcingPipeline

    return DummyForcingPipeline.from_files(files, options)


def cache_dtype(load: Given, device: "torch.device | None" = None) -> "torch.dtype":
    """The dtype of keys and values of a model loaded with these options; None: on this machine's device."""
    import torch

    from dummyforcing.pipeline.devices import choose_device, choose_dtype

    options = choose(LoadOptions, load)
    if options.fp8 == "all":
        return torch.float8_e4m3fn
    return choose_dtype(options.torch_dtype, device or choose_device(options.device))


def bar(**options: Any) -> Any:
    """A progress bar of tqdm, which shows itself on a terminal or in a notebook, unless it is to be quiet."""
    from tqdm.auto import tqdm

    return tqdm(**options, disable=None if VOICE.get().shows_progress else True)


def progress(turns: "Iterable[tuple[Chunk, ...]]", total: int, label: str) -> "Iterator[tuple[Chunk, ...]]":
    """Pass chunks on, with a bar that counts pixel frames and tells how many come per second so far."""
    with bar(desc=label, total=total, unit="frame") as shown:
        for chunks in turns:
            shown.set_postfix_str(", ".join(f"{chunk.timings.fps:.1f} FPS" for chunk in chunks))
            shown.update(chunks[0].frames.shape[1])
            yield chunks


def parse_list(text: str | None, option: str, *words: str) -> list[str] | None:
    """Split `0,3` into whole numbers, among which `words` may stand; `all`, the default, gives None."""
    if text is None or text == "all":
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() or part in words for part in parts):
        example = ",".join(["1", "3", *words])
        raise BadRequest(f"{option} '{text}' cannot be read", f"write all, or a list such as {example}")
    return parts


def check_output(path: Path | None, *suffixes: str) -> None:
    """Refuse a file that could not be written, before any work is done for it."""
    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        raise BadFile(f"Cannot write {path}", f"give a file name that ends in {' or '.join(suffixes)}")
    temporary(path).unlink()
