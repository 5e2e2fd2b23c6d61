"""`dummyforcing env`: versions, hardware, and which fast paths they allow, to paste into a bug report."""

import getpass
import os
import platform
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout, suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from dummyforcing import __version__
from dummyforcing.cli.flags import command
from dummyforcing.cli.terminal import tell
from dummyforcing.evaluation.machine import main_memory, processor

PACKAGES = {
    "torch": "torch",
    "triton": "triton",
    "diffusers": "diffusers",
    "transformers": "transformers",
    "flash-attn-4": "flash_attn.cute.interface",
    "nvidia-cudnn-frontend": "cudnn",
    "av": "av",
}
"""The module of each package that must be there for it to be of use."""
OF_TORCH = ("CUDA", "cuDNN")
"""Versions that torch is asked for."""
HEAD_DIM = 128
"""Channels of a head of every Wan 2.1 model."""
CACHE_VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")
"""Where the Hub's cache folder may be set."""

Found = dict[str, Any]
"""Ready for JSON."""
Result = TypeVar("Result")


@command()
def env() -> Mapping[str, Any]:
    """Tell what a bug report needs: versions, hardware, and which fast paths they allow.

    Nothing personal is in it. Paste all of it:
      dummyforcing env

    For programs:
      dummyforcing env --json
    """
    found = examine()
    tell("\n".join(lines(found)))
    return found


def examine() -> Found:
    """Find out about everything; what is broken is described, too."""
    packages = {name: _package(name, module) for name, module in PACKAGES.items()}
    problems = {name: problem for name, (_, problem) in packages.items() if problem}
    torch, _ = _try(lambda: import_module("torch"))
    found: Found = {
        "versions": {
            "dummyforcing": __version__,
            "python": platform.python_version(),
            **{name: number for name, (number, _) in packages.items()},
            "CUDA": torch and torch.version.cuda,
            "cuDNN": torch and _cudnn(torch),
        },
        "problems": problems,
        "machine": {
            "platform": platform.platform(),
            "processor": processor(),
            "cores": os.cpu_count(),
            "torch_threads": torch and torch.get_num_threads(),
            "memory_bytes": main_memory(),
        },
        "hub": _hub(),
    }
    if torch is not None:
        gpus, broken = _try(lambda: _gpus(torch))
        found |= {"gpus": gpus or [], "no_gpu": broken or (None if gpus else _why_no_gpu(torch))}
        used, unknown = _try(lambda: _used(problems))
        found |= used or {}
        if unknown:
            problems["dummyforcing"] = unknown
    impersonal: Found = _impersonal(found)
    return impersonal


def lines(found: Found) -> Iterator[str]:
    """What was found as text."""
    versions, problems, machine, hub = (found[part] for part in ("versions", "problems", "machine", "hub"))
    width = max(map(len, versions)) + 3

    def row(name: str, text: object) -> str:
        return f"  {name:{width}}{text}"

    yield "versions"
    for name, number in versions.items():
        absent = ("not known" if "torch" in problems else "none") if name in OF_TORCH else "not installed"
        problem = problems.get(name)
        yield row(name, f"{number or 'installed'}, but broken: {problem}" if problem else number or absent)
    yield "machine"
    yield row("platform", machine["platform"])
    threads = f", torch threads: {machine['torch_threads']}" if machine["torch_threads"] else ""
    yield row("processor", f"{machine['processor']}, cores: {machine['cores']}{threads}")
    yield row("memory", _gigabytes(machine["memory_bytes"]))
    for number, gpu in enumerate(found.get("gpus", ())):
        capability = f"compute capability {gpu['compute_capability']}"
        yield row(f"GPU {number}", f"{gpu['name']}, {_gigabytes(gpu['memory_bytes'])}, {capability}")
    if found.get("no_gpu"):
        yield row("GPU", f"none: {found['no_gpu']}")
    for title in ("attention", "fast_paths"):
        if title in found:
            where = f"{found['device']}, {found['dtype']}, heads of {HEAD_DIM} channels"
            yield f"{title.replace('_', ' ')} on {where}"
            for name, reason in found[title].items():
                yield row(name.replace("_", " "), "used" if reason is None else f"not used: {reason}")
    yield "Hugging Face Hub"
    yield row("cache folder", f"{hub['cache']}, {_gigabytes(hub['free_bytes'])} free")
    yield row("offline", {None: "not known", True: "yes", False: "no"}[hub["offline"]])


def _package(name: str, module: str) -> tuple[str | None, str | None]:
    """Version of a package, None: it is not installed; and why it cannot be imported, None: it can."""
    number = None
    with suppress(PackageNotFoundError):
        number = version(name)
    _, problem = _try(lambda: import_module(module))
    is_absent = (
        number is None and problem is not None and problem.startswith("ModuleNotFoundError: No module")
    )
    return number, None if is_absent else problem


def _cudnn(torch: ModuleType) -> str | None:
    """Version of cuDNN as one says it: 91002 is 9.10.2."""
    number, _ = _try(torch.backends.cudnn.version)
    if number is None:
        return None
    major = 10000 if number >= 90000 else 1000
    return f"{number // major}.{number % major // 100}.{number % 100}"


def _gpus(torch: ModuleType) -> list[Found]:
    every = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [
        {
            "name": one.name,
            "memory_bytes": one.total_memory,
            "compute_capability": f"{one.major}.{one.minor}",
        }
        for one in every
    ]


def _why_no_gpu(torch: ModuleType) -> str:
    """Why torch sees none."""
    if torch.version.cuda is None:
        return "torch is built without CUDA"
    _, problem = _try(torch.cuda.init)
    return problem or "torch finds none"


def _used(problems: Mapping[str, str]) -> Found:
    """The attention backends and fast paths on the default device: None if used, else why not."""
    from dummyforcing.attention.backends import BACKENDS, default_backend, require, why_not
    from dummyforcing.errors import UserError
    from dummyforcing.pipeline.devices import choose_device, choose_dtype
    from dummyforcing.runtime.fused import CONVOLUTIONS, has_float8, why_not_fused

    device = choose_device("auto")
    dtype = choose_dtype(None, device)
    chosen = default_backend(device, dtype, HEAD_DIM)
    backends = {
        name: None if name == chosen else why_not(name, device, dtype, HEAD_DIM) or f"{chosen} is faster"
        for name in BACKENDS
    }
    fused = why_not_fused(device, HEAD_DIM)
    if fused is None and "triton" in problems:
        fused = "package triton is broken"
    no_float8 = None if has_float8(device) else "it needs a GPU of compute capability 8.9, a CPU emulates it"
    no_convolutions = None
    if not has_float8(device, CONVOLUTIONS):
        no_convolutions = "it needs a GPU of compute capability 9.0, a CPU emulates it"
    no_attention = no_float8
    try:
        require("fp8")
    except UserError as error:
        no_attention = no_attention or f"{error.problem}, {error.remedy}"
    if "nvidia-cudnn-frontend" in problems:
        no_attention = no_attention or "package nvidia-cudnn-frontend is broken"
    attention = no_attention or "it is there for --fp8 all"
    return {
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "attention": {**backends, "reference": "it is for tests", "fp8": attention},
        "fast_paths": {
            "fused_with_CUDA_graphs": fused,
            "float8_decoder": no_convolutions or "it is there for --fp8 vae, --fp8 linear and --fp8 all",
            "float8_linear": no_float8 or "it is there for --fp8 linear and --fp8 all",
            "float8_attention": attention,
        },
    }


def _hub() -> Found:
    """Where files of the Hub are kept, without the names of folders that are somebody's own."""
    constants, problem = _try(lambda: import_module("huggingface_hub.constants"))
    if constants is None:
        return {"cache": f"not known: {problem}", "free_bytes": None, "offline": None}
    folder = Path(constants.HF_HUB_CACHE)
    there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    free, _ = _try(lambda: shutil.disk_usage(there).free)
    shown = next((f"elsewhere, by {name}" for name in CACHE_VARIABLES if os.environ.get(name)), "elsewhere")
    if folder.is_relative_to(Path.home()):
        shown = f"~/{folder.relative_to(Path.home()).as_posix()}"
    return {"cache": shown, "free_bytes": free, "offline": bool(constants.HF_HUB_OFFLINE)}


def _try(work: Callable[[], Result]) -> tuple[Result | None, str | None]:
    """Do what may fail: its result, or the first line of what went wrong. It prints nothing."""
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return work(), None
    except (Exception, SystemExit) as error:
        return None, f"{type(error).__name__}: {error}".strip().partition("\n")[0]


def _impersonal(found: Any) -> Any:
    """Leave out the names of the user and of the home folder, wherever they are."""
    if isinstance(found, dict):
        return {name: _impersonal(value) for name, value in found.items()}
    if isinstance(found, list):
        return [_impersonal(value) for value in found]
    if not isinstance(found, str):
        return found
    user, _ = _try(getpass.getuser)
    text = found.replace(str(Path.home()), "~")
    return re.sub(rf"(?<=[/\\]){re.escape(user)}(?=[/\\]|$)", "USER", text) if user else text


def _gigabytes(count: float | None) -> str:
    return "? GB" if count is None else f"{count / 1e9:.1f} GB"
