"""Policies of files on the command line, and own presets like bundled models."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dummyforcing.cli import main
from dummyforcing.media.clips import read_mp4
from dummyforcing.method.plan import Plan
from dummyforcing.pipeline.pipeline import load
from dummyforcing.presets.catalog import find_preset, read_preset

PROMPT = "a red ball bounces"
CODE = """
from dummyforcing import HeadContext
from dummyforcing.method.programming import assign_roles

class Same:
    roles = {"idle": HeadContext(0, 1), "anchor": HeadContext(1, 0), "[far]": HeadContext(0, 3)}
    names = {"dummy": "idle", "sink": "anchor", "neighbor": "[far]"}

    def assign(self, scores):
        return [[self.names[role] for role in row] for row in assign_roles(scores, 6)]

class Ghost(Same):
    def assign(self, scores):
        return [["ghost"] * scores.shape[1]] * len(scores)

class Short(Same):
    def assign(self, scores):
        return [["idle"]]

class Raises(Same):
    def assign(self, scores):
        raise RuntimeError("on purpose")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current one, with a file of policies."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path


def generate(model: Path, policy: str, *options: str) -> int:
    return main(["generate", PROMPT, "--model", str(model), "--frames", "33", "--policy", policy, *options])


def test_a_policy_of_a_file_that_does_what_dummy_does(
    folder: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(model_folder, "dummy", "-o", "dummy.mp4") == 0
    assert generate(model_folder, "mine.py:Same", "-o", "own.mp4", "--save-plan", "plan.json") == 0
    assert Path("own.mp4").read_bytes() == Path("dummy.mp4").read_bytes()
    assert Plan.load("plan.json").policy == "mine.py:Same"
    assert set(Plan.load("plan.json").counts) == {"idle", "anchor", "[far]"}
    assert generate(model_folder, "dense", "--plan", "plan.json", "-o", "planned.mp4") == 0
    by_plan = load(model_folder).generate(PROMPT, num_frames=33, plan="plan.json")
    by_plan.save("expected.mp4")
    assert np.array_equal(read_mp4(Path("planned.mp4")), read_mp4(Path("expected.mp4")))
    capsys.readouterr()


def test_a_module_is_found_in_the_current_folder(folder: Path, model_folder: Path) -> None:
    """By the program that is installed, too, which does not begin with that folder."""
    source = Path(__file__).parents[2] / "src"
    code = f"import sys; sys.path.remove(''); sys.path.insert(0, {str(source)!r})\n"
    code += "from dummyforcing.cli import main; sys.exit(main(sys.argv[1:]))"
    options = ["--model", str(model_folder), "--frames", "21", "-o", "own.mp4"]
    command = [sys.executable, "-c", code, "generate", PROMPT, "--policy", "mine:Same", *options]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert len(read_mp4(Path("own.mp4"))) == 21


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (
            "mine.py:Raises",
            "Error: Policy 'mine.py:Raises' failed in line 22 of mine.py (RuntimeError: on purpose)",
        ),
        ("mine.py:Short", "gave 1 rows of 1 roles; give 3 rows, one per layer, of 4 roles each (--policy)."),
        ("mine.py:Ghost", "gave a head role 'ghost', and does not say what that sees"),
        ("mine.py:same", "There is no 'same' in mine.py; the nearest is 'Same' (--policy)."),
        ("mine.py", "'mine.py' does not name a policy of your own; write FILE.py:NAME or MODULE:NAME"),
        ("none.py:Same", "There is no file none.py"),
        ("Same", "There is no policy 'Same'"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_left(
    folder: Path, model_folder: Path, policy: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(model_folder, policy, "-o", "own.mp4", "--save-plan", "plan.json") == 2
    assert message in capsys.readouterr().err
    assert {path.name for path in folder.iterdir()} <= {"mine.py", "__pycache__"}


def test_every_command_with_a_policy_takes_one_of_a_file(
    folder: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(model_folder)]
    own = ["--policy", "mine.py:Same"]
    assert main(["heads", PROMPT, *model, *own, "-o", "heads.png"]) == 0
    printed = capsys.readouterr().out
    assert "layer 0  " in printed
    assert "idle: 6 heads, see the last frame" in printed
    assert "[far]: " in printed
    Path("prompts.txt").write_text(PROMPT)
    atlas = ["--prompts", "prompts.txt", "--frames", "33", "--steps", "all"]
    assert main(["heads", *model, *own, *atlas, "-o", "atlas.html", "--save-plan", "plan.json"]) == 0
    report = Path("atlas.html").read_text()
    assert (
        "policy &#x27;mine.py:Same&#x27; assigns the roles" in report
        or "policy 'mine.py:Same' assigns" in report
    )
    assert Plan.load("plan.json").counts["idle"] == 6
    assert main(["models", "show", str(model_folder), *own]) == 0
    assert "policy mine.py:Same" in capsys.readouterr().out
    calibrate = [
        "teacache",
        "calibrate",
        "prompts.txt",
        *model,
        *own,
        "--frames",
        "21",
        "-o",
        "table.json",
    ]
    assert main(calibrate) == 0
    assert json.loads(Path("table.json").read_text())["policy"] == "mine.py:Same"
    bench = ["bench", *model, "--policies", "mine.py:Same", "--frames", "33", "--repeats", "1", "--no-vae"]
    assert main([*bench, "-o", "bench.json"]) == 0
    (row,) = json.loads(Path("bench.json").read_text())["configurations"]
    assert (row["policy"], row["heads"]["idle"]["heads"]) == ("mine.py:Same", 6)


def test_the_atlas_of_own_roles_agrees_with_the_built_in_one(
    folder: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("prompts.txt").write_text(f"{PROMPT}\na blue cube spins")
    asked = ["heads", "--model", str(model_folder), "--prompts", "prompts.txt", "--frames", "33"]
    printed = []
    for policy in ("dummy", "mine.py:Same"):
        assert main([*asked, "--policy", policy, "-o", "atlas.html"]) == 0
        printed.append(capsys.readouterr().out.splitlines()[0])
    assert printed[0] == printed[1]  # a single video finds as many roles of the plan


def test_a_preset_like_the_bundled_model_has_its_files(folder: Path) -> None:
    Path("mine.toml").write_text('like = "tiny"\nfps = 8\noptions = { policy = "anchored" }\n')
    mine, bundled = read_preset(Path("mine.toml")), find_preset("tiny")[0]
    assert (mine.name, mine.fps, mine.schedule, mine.dummy) == ("mine", 8, bundled.schedule, bundled.dummy)
    own, theirs = load("mine.toml"), load("tiny")
    expected = theirs.generate(PROMPT, num_frames=9, policy="anchored")
    assert np.array_equal(own.generate(PROMPT, num_frames=9).frames, expected.frames)


def test_weights_for_a_bundled_model_need_no_sizes(folder: Path) -> None:
    """A single file of a finetune, without a config.json beside it."""
    from safetensors.torch import load_file, save_file

    transformer = find_preset("tiny")[1]
    assert transformer is not None
    tensors = {}
    for path in (transformer / "transformer").glob("*.safetensors"):
        tensors.update(load_file(path))
    save_file(tensors, "mine.safetensors")
    Path("mine.toml").write_text('like = "tiny"\nsource = { file = "mine.safetensors" }\n')
    expected = load("tiny").generate(PROMPT, num_frames=9)
    for pipe in (load("mine.toml"), load("tiny", weights="mine.safetensors")):
        assert np.array_equal(pipe.generate(PROMPT, num_frames=9).frames, expected.frames)


def test_a_preset_like_no_model_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.toml").write_text('like = "tinny"\n')
    assert main(["models", "show", "mine.toml"]) == 2
    assert (
        "mine.toml: like 'tinny' names no bundled and no public model; the nearest is 'tiny'."
        in capsys.readouterr().err
    )
