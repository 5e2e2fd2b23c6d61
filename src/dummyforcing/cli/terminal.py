"""What a command says on the terminal besides its results: log messages, warnings, progress."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO

IS_QUIET: ContextVar[bool] = ContextVar("is_quiet", default=False)
"""Whether the command is to show no progress."""


@contextmanager
def telling(*, verbose: bool, quiet: bool) -> Iterator[None]:
    """Run a command with its -v and -q.

    Args:
        verbose: Show what the library logs.
        quiet: Show no progress, nor that of downloads.
    """
    if quiet:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when the Hub's library is imported
    logger = logging.getLogger("dummyforcing")
    level, propagates = logger.level, logger.propagate
    token, handler = IS_QUIET.set(quiet), _Said()
    if verbose:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False  # else a handler of the root would say it again
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagates
        IS_QUIET.reset(token)


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
