"""Result files: measured figures with what made them, so that every number in the docs can be traced."""

import os
import platform
import shlex
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from dummyforcing import __version__
from dummyforcing.evaluation.machine import processor
from dummyforcing.files.records import to_json
from dummyforcing.files.writing import replacing


def provenance(device: torch.device) -> dict[str, object]:
    """The command, commit, device and versions behind a result."""
    cpu = f"{processor()}, {os.cpu_count()} cores"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return {
        "command": shlex.join([*_program(), *sys.argv[1:]]),
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "device": name,
        "threads": torch.get_num_threads(),
        "versions": {
            "dummyforcing": __version__,
            "python": platform.python_version(),
            **{library: version(library) for library in ("torch", "diffusers", "transformers")},
            **(_gpu_versions() if device.type == "cuda" else {}),
        },
    }


def _commit() -> str:
    """The commit of the folder that this code runs in, if it is under git."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except OSError:  # there is no git
        return "unknown"
    return found.stdout.strip() or "unknown"


def _gpu_versions() -> dict[str, str]:
    """Versions of the libraries that torch uses on a GPU."""
    cudnn: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    versions = {"cuda": str(torch.version.cuda), "cudnn": str(cudnn)}
    with suppress(PackageNotFoundError):
        versions["triton"] = version("triton")
    return versions


def write_results(path: Path, results: dict[str, object], device: torch.device) -> None:
    """Write results and their provenance as readable JSON, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(to_json({**provenance(device), **results}, indent=1) + "\n")


def _program() -> list[str]:
    """What was called, as it can be called anywhere: an installed command, a module or a script."""
    path = Path(sys.argv[0])
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec:
        return ["python", "-m", spec.name.removesuffix(".__main__")]
    return ["python", os.path.relpath(path)] if path.suffix == ".py" else [path.stem]
