"""The `vbench` package (0.1.5) in a process of its own, for what it needs breaks other environments.

    package = VBenchPackage.find(Path("vbench-env/bin/python"))
    outcome = package.evaluate(videos, info, output, prompts, DIMENSIONS, "cuda")

Whatever becomes of that process, the dimensions that it computed count, and the others have a reason.
"""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from dummyforcing.errors import BadFile, BadRequest
from dummyforcing.evaluation.vbench import DIMENSIONS, read_info, read_results
from dummyforcing.files.reading import parse_json
from dummyforcing.files.records import to_json
from dummyforcing.files.writing import explaining, replacing

PROGRAM = Path(__file__).with_name("run_vbench.py")
INSTALL = "-m pip install vbench==0.1.5"


@dataclass(frozen=True)
class Outcome:
    """Scores that VBench gave, and reasons for those that it did not."""

    raw: dict[str, float]
    """Dimension -> raw score."""
    not_computed: dict[str, str]
    """Every other dimension -> why not."""


@dataclass(frozen=True)
class VBenchPackage:
    """The package, where it is installed."""

    python: str | None
    """Interpreter of its environment; None: there is none."""

    @classmethod
    def find(cls, python: Path | None = None) -> "VBenchPackage":
        """Look for the package.

        Args:
            python: Interpreter of the environment that it is in; None: this one, if it is there.

        Raises:
            BadRequest: If that is no interpreter, or cannot import the package.
        """
        if python is None:
            return cls(sys.executable if importlib.util.find_spec("vbench") else None)
        here = python.absolute()  # not resolved: a virtual environment's is a link
        example = "give the one of the environment that vbench is in, such as vbench-env/bin/python"
        if not here.is_file():
            what = "is a folder" if here.is_dir() else "is not there"
            raise BadRequest(f"The interpreter {python} {what}", example, "vbench_python")
        try:
            done = subprocess.run([here, PROGRAM], capture_output=True, check=False, env=_environment())
        except OSError as error:
            raise BadRequest(
                f"{python} cannot be run ({error.strerror})", example, "vbench_python"
            ) from error
        if done.returncode:
            raise BadRequest(
                f"{python} cannot import vbench ({_ending(done.returncode, done.stderr)})",
                f"install it there: {python} {INSTALL}",
                "vbench_python",
            )
        try:
            if not Path(parse_json(_last_line(done.stdout))["vbench"]).name:
                raise ValueError
        except (ValueError, TypeError, KeyError) as error:
            raise BadRequest(f"{python} is no Python interpreter", example, "vbench_python") from error
        return cls(str(here))

    def evaluate(
        self,
        videos: Path,
        info: Path | None,
        output: Path,
        prompts: Collection[str],
        names: Collection[str],
        device: str,
        download: bool = False,
    ) -> Outcome:
        """Compute what can be computed here; what was computed before is read.

        Args:
            videos: Folder of nothing but videos, named `{prompt}-{index}.mp4`.
            info: VBench's `VBench_full_info.json`.
            output: Folder for its results, and for what it says while it computes, `{dimension}.log`.
            prompts: Those that there are videos of.
            names: Dimensions that are wanted.
            device: Name of the torch device.
            download: Whether the package may download the networks that are missing.

        Raises:
            BadFile: If `info` is something else, or `output` cannot be written.
        """
        members = read_info(info) if info else {}
        raw: dict[str, float] = {}
        missing: dict[str, str] = {}
        for name in DIMENSIONS:
            absent = [prompt for prompt in members.get(name, []) if prompt not in prompts]
            if name not in names:
                missing[name] = "it was not asked for"
            elif info is None:
                missing[name] = "VBench_full_info.json was not given"
            elif absent or not members[name]:
                missing[name] = f"{len(absent)} of its {len(members[name])} prompts have no videos"
            elif (score := _score(output, name)) is not None:
                raw[name] = score
            elif reason := self.obstacle(name, download):
                missing[name] = reason
            else:
                try:
                    raw[name] = self._compute(videos, info, output, name, device)
                except _Failed as error:  # the other dimensions count
                    missing[name] = f"VBench failed: {error} (see {output / name}.log)"
        return Outcome(raw, missing)

    def obstacle(self, dimension: str, download: bool) -> str | None:
        """Why a dimension cannot be computed here; None if it can.

        Args:
            dimension: Its name.
            download: Whether the package may download the networks that are missing.
        """
        if self.python is None:
            return f"the vbench package is not installed (python {INSTALL}, in an environment of its own)"
        default = Path.home() / ".cache" / "vbench"
        cache = Path(os.environ.get("VBENCH_CACHE_DIR", default))
        missing = [name for name in DIMENSIONS[dimension].networks if not (cache / name).exists()]
        if missing and not download:
            return f"its network {cache / missing[0]} is missing, which VBench may be allowed to fetch"
        return None

    def _compute(self, videos: Path, info: Path, output: Path, dimension: str, device: str) -> float:
        """Compute one dimension; its file appears in `output` once it is whole."""
        assert self.python is not None
        with explaining(output):
            output.mkdir(parents=True, exist_ok=True)
        env = None if self.python == sys.executable else _environment()
        with tempfile.TemporaryDirectory() as folder:
            job = {
                "device": device,
                "info": str(info.absolute()),
                "output": folder,
                "videos": str(videos.absolute()),
                "dimension": dimension,
            }
            command = [self.python, str(PROGRAM), to_json(job)]
            log = output / f"{dimension}.log"
            with explaining(log), log.open("wb") as said:  # to be read while it grows
                try:
                    code = subprocess.run(command, stdout=said, stderr=said, check=False, env=env).returncode
                except OSError as error:
                    raise _Failed(f"{self.python} cannot be run any more ({error.strerror})") from error
            if code:
                raise _Failed(_ending(code, log.read_bytes()))
            score = _score(Path(folder), dimension)
            if score is None:
                raise _Failed("it wrote no score from 0 to 1")
            with replacing(_result(output, dimension)) as part:
                shutil.copyfile(_result(Path(folder), dimension), part)
        return score


class _Failed(Exception):
    """VBench computed nothing, for this reason."""


def _result(folder: Path, dimension: str) -> Path:
    return folder / f"{dimension}_eval_results.json"


def _score(folder: Path, dimension: str) -> float | None:
    """The score that VBench has written; None if there is none that can be."""
    try:
        score = read_results(_result(folder, dimension)).get(dimension)
    except BadFile:
        return None
    return score if score is not None and 0 <= score <= 1 else None


def _environment() -> dict[str, str]:
    """The variables for another environment, which has modules of its own."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def _ending(code: int, said: bytes) -> str:
    """How a process ended that failed, in words."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"it was killed by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")
    return _last_line(said)[:200] or f"exit status {code}"


def _last_line(said: bytes) -> str:
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""
