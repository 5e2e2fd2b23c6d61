"""What a command says: results on stdout; log messages, warnings and progress on stderr."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Voice:
    """How a command that runs is to speak."""

    shows_progress: bool = True
    tells: bool = True
    """Whether results are printed as text."""
    written: list[dict[str, Any]] = field(default_factory=list)
    """Files that were written so far."""


VOICE: ContextVar[Voice] = ContextVar("voice", default=Voice())  # noqa: B039 (frozen, and outside of commands nobody reads it)
"""Of the command that runs."""


@contextmanager
def telling(*, verbose: bool, quiet: bool, as_json: bool = False) -> Iterator[Voice]:
    """Run a command with its -v, -q and --json.

    Args:
        verbose: Show what the library logs.
        quiet: Say nothing but warnings and errors; show no progress, nor that of downloads.
        as_json: Print no text: JSON is printed at the end.
    """
    if quiet:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when the Hub's library is imported
    logger = logging.getLogger("dummyforcing")
    level, propagates = logger.level, logger.propagate
    voice, handler = Voice(shows_progress=not quiet, tells=not (quiet or as_json)), _Said()
    token = VOICE.set(voice)
    if verbose:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False  # else a handler of the root would say it again
    try:
        yield voice
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagates
        VOICE.reset(token)


def tell(*results: "RenderableType") -> None:
    """Print results: lines of text, and what rich can draw; nothing with --quiet or --json."""
    if not VOICE.get().tells:
        return
    for one in results:
        if isinstance(one, str):
            print(one)
            continue
        from rich.console import Console

        console = Console(highlight=False)
        with console.capture() as drawn:
            console.print(one)
        print(drawn.get(), end="")  # rich would end the process where nobody reads


def wrote(path: Path, length: str = "", **facts: Any) -> None:
    """Tell that a file was written.

    Args:
        path: The file.
        length: How long it is; empty: its size.
        **facts: The same for JSON.
    """
    if not length:
        facts["bytes"] = path.stat().st_size
        length = f"{facts['bytes']:,} bytes"
    VOICE.get().written.append({"path": str(path), **facts})
    tell(f"Wrote {path}: {length}.")


def wrote_video(path: Path, frames: int, fps: int) -> None:
    """Tell that a video of so many pixel frames was written."""
    seconds = frames / fps
    wrote(path, f"{frames} frames, {seconds:.1f} s", frames=frames, seconds=seconds)


def say(text: str) -> None:
    """Print a line to stderr; a progress bar that is shown there stays whole below it."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)


def say_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Say a warning in one line, in place of `warnings.showwarning`."""
    say(f"Warning: {message}")


class _Said(logging.Handler):
    """Says every message once."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = f"{record.name}: {record.getMessage()}"
        if text not in self._said:
            self._said.add(text)
            say(text)
