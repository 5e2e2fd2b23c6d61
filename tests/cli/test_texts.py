"""Texts that go in and out of the command line in other encodings than UTF-8."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROCKET = "a star \U0001f680"
SMALL = ("--size", "16x16", "--policy", "window:1,2")
SECONDS = ("--seconds", "1.3")


def run(
    folder: Path, *args: str, seconds: Sequence[str] = SECONDS, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "dummyforcing", "generate", *SMALL, *seconds, *args]
    return subprocess.run(
        [*command, "-o", str(folder / "o.mp4")],
        env={**os.environ, **environment},
        capture_output=True,
    )


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_what_cannot_be_shown_is_shown_otherwise(model_folder: Path, tmp_path: Path, encoding: str) -> None:
    """As in a log file, under cron, or on a console of Windows."""
    done = run(
        tmp_path,
        *("a red ball", "--switch", f"0.5:{ROCKET}", "--model", str(model_folder)),
        PYTHONIOENCODING=encoding,
    )
    assert done.returncode == 0, done.stderr[-500:]
    shown = ROCKET.encode(encoding, "backslashreplace")
    assert shown in done.stdout
    assert (tmp_path / "o.mp4").stat().st_size > 500


def test_a_story_as_json_writes_it(model_folder: Path, tmp_path: Path) -> None:
    story = tmp_path / "s.yaml"
    story.write_text(json.dumps({"seconds": 1.3, "scenes": [{"prompt": ROCKET}]}))
    done = run(tmp_path, "--story", str(story), "--model", str(model_folder), seconds=())
    assert done.returncode == 0, done.stderr[-500:]


@pytest.mark.parametrize("size", ["16x16", "32x16"])
def test_policy_official_in_pictures_of_a_token_or_two(model_folder: Path, tmp_path: Path, size: str) -> None:
    done = run(tmp_path, "a red ball", "--model", str(model_folder), "--size", size, "--policy", "official")
    assert done.returncode == 0, done.stderr[-500:]
