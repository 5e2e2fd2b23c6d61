"""Triton's interpreter, which must be on before Triton is imported: files of tests run themselves in it."""

import os
import subprocess
import sys
from pathlib import Path

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether this process is in it."""


def run_interpreted(file: str, *options: str) -> str:
    """Run the tests of a file in a process of their own, which all must pass; gives what pytest prints."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, file],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout
