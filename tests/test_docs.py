"""The README tells the truth: its tables come from the results, and its code runs."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import pytest

ROOT = Path(__file__).parent.parent


def test_the_tables_are_those_of_the_results():
    subprocess.run([sys.executable, "-m", "research.pages.tables", "--check"], check=True)


def test_the_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec("".join(examples), names)
    assert names["session"].frames == names["branch"].frames == 9
    with av.open("ball.mp4") as video:
        assert sum(1 for _ in video.decode(video=0)) == 81


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_are_short_and_tell_how_to_run(path: Path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 40
    assert f"python examples/{path.name}" in text
    compile(text, path, "exec")
    assert f"examples/{path.name}" in (ROOT / "README.md").read_text(encoding="utf-8")
