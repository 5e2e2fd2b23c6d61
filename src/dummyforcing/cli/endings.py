"""How a command ends before its time: by a signal, without memory, or where nobody reads what it prints."""

import errno
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from types import FrameType

from dummyforcing.errors import BadRequest, NotEnoughMemory

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Those that end a command as Ctrl-C does."""
OUT_OF_MEMORY = ("allocate memory", "map segment", "not enough memory", "out of memory", "start new thread")
"""What the libraries say then, in errors of many kinds."""
LIBRARIES = 2**31
"""Bytes of address space that the libraries take; with less of it, they fail in odd ways, or crash."""


class Ended(KeyboardInterrupt):
    """A signal has come; whoever tidies up after Ctrl-C does so after this."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def ending_at_signals() -> Iterator[None]:
    """Let signals end the block as Ctrl-C does, the first of them; those that are ignored stay so."""

    def end(number: int, frame: FrameType | None) -> None:
        for one in before:  # a terminal that is closed, or a system that goes down, sends several
            signal.signal(one, signal.SIG_IGN)
        raise Ended(number)

    before = {one: signal.getsignal(one) for one in SIGNALS}
    before = {one: handler for one, handler in before.items() if handler is not signal.SIG_IGN}  # nohup
    for one in before:
        signal.signal(one, end)
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def interrupted(error: KeyboardInterrupt) -> int:
    """Say what is left of the work, which notes on the error tell, and give the exit code."""
    last_words(*getattr(error, "__notes__", ()), "Interrupted.")
    return 128 + (error.number if isinstance(error, Ended) else signal.SIGINT)


def unread() -> int:
    """Say that nobody reads what is printed, such as `| head`, and give the exit code."""
    _discard(sys.stdout.fileno())  # Python would complain again at exit
    last_words("Nobody reads this output any more: the rest of it is not printed.")
    return 141  # as after SIGPIPE, which Python turns into an error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory, or address space, has run out."""
    told = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or getattr(error, "errno", None) == errno.ENOMEM
        or any(words in told for words in OUT_OF_MEMORY)
    )


def refuse_little_address_space() -> None:
    """Refuse a limit (`ulimit -v`) that the libraries alone exceed, while the process still can say so.

    Raises:
        NotEnoughMemory: If there is such a limit.
    """
    try:
        import resource
    except ImportError:  # on Windows
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < LIBRARIES:
        raise NotEnoughMemory(
            f"This process may use {limit / 1e9:.1f} GB of address space, and the libraries alone take "
            f"{LIBRARIES / 1e9:.1f} GB",
            "raise the limit (ulimit -v)",
        )


def last_words(*lines: str) -> None:
    """Print lines to stderr, if there still is somebody who reads them."""
    try:
        for line in lines:
            print(line, file=sys.stderr, flush=True)
    except OSError:
        with suppress(OSError):
            _discard(sys.stderr.fileno())


def refuse_nothing(args: Sequence[str]) -> None:
    """Refuse an option whose value is empty, as that of a shell variable that is not set.

    Raises:
        BadRequest: If there is one.
    """
    for flag, value in pairwise(args):
        if flag.startswith("-") and not value.strip():
            raise BadRequest(f"There is nothing after {flag}", f"give a value, or leave {flag} out")
    for arg in args:
        if arg.startswith("--") and arg.endswith("="):
            raise BadRequest(f"There is nothing after {arg[:-1]}", f"give a value, or leave {arg[:-1]} out")


def _discard(output: int) -> None:
    """Let what is printed to a file descriptor vanish."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
