"""Attachments to real checkouts: `DUMMYFORCING_UPSTREAM` has their folders, `self-forcing=PATH,krea=PATH`."""

import os
import subprocess
import sys

import pytest

from tests.integrations.run_checkout import CASES

CHECKOUTS = {
    "causal-forcing-frame": "causal-forcing",
    "longlive-interactive": "longlive",
    "longlive-infinite": "longlive",
}
"""Cases that share the checkout of another."""
FOLDERS = dict(
    part.split("=", 1) for part in os.environ.get("DUMMYFORCING_UPSTREAM", "").split(",") if "=" in part
)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_checkout(case: str) -> None:
    checkout = CHECKOUTS.get(case, case)
    if checkout not in FOLDERS:
        pytest.skip(f"DUMMYFORCING_UPSTREAM names no {checkout}")
    command = [sys.executable, "-m", "tests.integrations.run_checkout", case, FOLDERS[checkout]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
