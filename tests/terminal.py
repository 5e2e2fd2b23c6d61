"""Commands with a terminal on stderr, where progress is shown, and their files on stdout."""

import os
import pty
import re
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path

import pytest

COLUMNS = 100


def believe_in_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have commands in this process believe that stderr, which is captured, is a terminal."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)


class OnTerminal:
    """A process whose stderr is a terminal of its own."""

    def __init__(self, args: Sequence[str], cwd: Path | None = None, **environment: str) -> None:
        self._ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, COLUMNS))
        self.process = subprocess.Popen(
            args, cwd=cwd, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=theirs, text=True
        )
        os.close(theirs)
        self.seen = ""
        """What was shown so far."""

    def wait_for(self, pattern: str) -> None:
        """Read on until the terminal shows it."""
        while not re.search(pattern, self.seen):
            assert self._read(), f"it ended with {self.seen!r}"

    def finish(self) -> tuple[int, str, str]:
        """Exit code, standard output and all that the terminal showed."""
        while self._read():
            pass
        os.close(self._ours)
        printed, _ = self.process.communicate(timeout=20)
        return self.process.returncode, printed, self.seen

    def _read(self) -> bool:
        try:
            data = os.read(self._ours, 4096)
        except OSError:  # the other end is closed
            return False
        self.seen += data.decode()
        return bool(data)


def screen(text: str) -> list[str]:
    """The lines that stay on the screen, as far as carriage returns tell."""
    lines = []
    for line in text.replace("\r\n", "\n").split("\n"):
        shown = ""
        for part in line.split("\r"):
            part = part.replace("\x1b[A", "")
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return [line for line in lines if line]
