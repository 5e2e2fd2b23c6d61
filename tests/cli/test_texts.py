"""Texts that go in and out of the command line in other encodings than UTF-8."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dummyforcing.cli import main

ROCKET = "a star \U0001f680"
SMALL = ("--size", "16x16", "--policy", "window:1,2")
SECONDS = ("--seconds", "1.3")


@pytest.mark.parametrize(
    "encoding",
    ["ascii", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cp1252", "utf-8"))],
)
def test_what_cannot_be_shown_is_shown_otherwise(model_folder: Path, tmp_path: Path, encoding: str) -> None:
    """As in a log file, under cron, or on a console of Windows."""
    command = [sys.executable, "-m", "dummyforcing", "generate", "a red ball", "--switch", f"0.5:{ROCKET}"]
    done = subprocess.run(
        [*command, *SMALL, *SECONDS, "--model", str(model_folder), "-o", str(tmp_path / "o.mp4")],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert ROCKET.encode(encoding, "backslashreplace") in done.stdout
    assert (tmp_path / "o.mp4").stat().st_size > 500


def test_a_story_as_json_writes_it(model_folder: Path, tmp_path: Path) -> None:
    story = tmp_path / "s.yaml"
    story.write_text(json.dumps({"seconds": 1.3, "scenes": [{"prompt": ROCKET}]}))
    options = [*SMALL, "--model", str(model_folder), "-o", str(tmp_path / "o.mp4")]
    assert main(["generate", "--story", str(story), *options]) == 0


@pytest.mark.parametrize("size", ["16x16", "32x16"])
def test_policy_official_in_pictures_of_a_token_or_two(model_folder: Path, tmp_path: Path, size: str) -> None:
    options = [*SECONDS, "--model", str(model_folder), "-o", str(tmp_path / "o.mp4")]
    assert main(["generate", "a red ball", "--size", size, "--policy", "official", *options]) == 0
