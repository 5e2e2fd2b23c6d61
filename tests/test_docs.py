"""The README tells the truth, its tables come from the results and its code runs; so do the examples."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image

from tests.server.process import running

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SHORTER = {
    "branch.py": {"FRAMES": "45"},
    "long_context.py": {"FRAMES": "45"},
    "long_run.py": {"SECONDS, EVERY": "5, 1"},
    "memory.py": {"FRAMES": "69", "SWITCHES": '[(1.2, "leaves"), (2.4, "comes back")]'},
    "teacache.py": {"FRAMES": "21"},
}
"""Constants of long examples, and what they are while they are tried."""


@pytest.mark.slow
def test_the_tables_are_those_of_the_results():
    subprocess.run([sys.executable, "-m", "research.pages.tables", "--check"], check=True)


@pytest.mark.slow
def test_the_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec("".join(examples), names)
    assert names["out"].frames.shape == (1, 81, 160, 160, 3)
    assert sum(chunk.frames.shape[1] for chunk in names["beginning"]) == 33
    assert names["run"].prompts == ("a red ball bounces on a green floor",)
    assert names["branch"].prompts == ("a red ball grows on a green floor",)
    assert frame_count(Path("ball.mp4")) == 81


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_short_and_tell_how_to_run(path: Path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 40
    assert f"python examples/{path.name}" in text
    compile(text, path, "exec")
    assert f"examples/{path.name}" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_run_and_write_what_they_name(path: Path, tmp_path: Path):
    """In a folder of its own, shortened by nothing but the constants at its top."""
    if path.name == "live.py":
        with running(tmp_path.with_suffix(".log")) as server:
            run_example(path, tmp_path, URL=f'"{server.url}"')
    else:
        run_example(path, tmp_path)


def run_example(path: Path, tmp_path: Path, **constants: str) -> None:
    """Run an example, and look at the files that it names."""
    folder = tmp_path / "examples"
    shutil.copytree(path.parent, folder)
    script, story = folder / path.name, folder / "story.yaml"
    script.write_text(shortened(path, constants), encoding="utf-8")
    times = re.sub(r"(seconds|at): (\d+)", lambda m: f"{m[1]}: {int(m[2]) // 6}", story.read_text())
    story.write_text(times, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}  # a relative one would lead elsewhere
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    named = re.findall(r"[\w-]+\.(?:mp4|png|json)", script.read_text(encoding="utf-8").partition("\n")[0])
    assert named or done.stdout
    assert {file.name for file in tmp_path.iterdir()} == {"examples", *named}
    for name in named:
        file = tmp_path / name
        if file.suffix == ".mp4":
            assert frame_count(file) >= 21
        elif file.suffix == ".png":
            Image.open(file).verify()
        else:
            assert file.stat().st_size


def shortened(path: Path, constants: dict[str, str]) -> str:
    """The text of an example with smaller constants, and given ones."""
    text = path.read_text(encoding="utf-8")
    for name, value in {**SHORTER.get(path.name, {}), **constants}.items():
        text, count = re.subn(rf"^{re.escape(name)} = .*$", f"{name} = {value}", text, flags=re.MULTILINE)
        assert count == 1, f"{path.name} has no constant {name} any more"
    return text


def frame_count(path: Path) -> int:
    """Decode a whole video."""
    with av.open(str(path)) as video:
        return sum(1 for _ in video.decode(video=0))
