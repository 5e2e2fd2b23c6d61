"""The `vbench` package in an environment of its own: the real one where there is one, and a stand-in for it.

DUMMYFORCING_VBENCH_PYTHON=vbench-env/bin/python names the interpreter of a real one.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from dummyforcing.cli import main
from dummyforcing.errors import UserError
from dummyforcing.evaluation.metrics import changes
from dummyforcing.evaluation.prompts import PromptSet
from dummyforcing.evaluation.vbench import DIMENSIONS, FLICKER
from dummyforcing.evaluation.vbench_package import VBenchPackage
from dummyforcing.media.clips import read_mp4
from dummyforcing.media.video import write_mp4

REAL = os.environ.get("DUMMYFORCING_VBENCH_PYTHON")
NAMES = [FLICKER, "color", "scene", "human_action"]

STAND_IN = """
import json, os, sys
from pathlib import Path

class VBench:
    def __init__(self, device, full_info_dir, output_path):
        self.made = [str(device), full_info_dir]
        self.output = Path(output_path)
        self.output.mkdir(parents=True, exist_ok=True)

    def evaluate(self, videos_path, name, prompt_list=[], dimension_list=None, local=False, read_frame=False,
                 mode="vbench_standard", **kwargs):
        print("computing", name)
        with open(CALLS, "a") as calls:
            calls.write(json.dumps([*self.made, videos_path, name, dimension_list, local, mode]) + chr(10))
        score = 0.9
        HOW
        result = {dimension: [score, []] for dimension in dimension_list}
        (self.output / f"{name}_eval_results.json").write_text(json.dumps(result))
"""
"""A package of VBench's interface (0.1.5) that notes its calls, and writes what it would write."""


@pytest.fixture
def info(tmp_path: Path) -> Path:
    """Three dimensions: two of one prompt each, one of both; the other 13 have none."""
    path = tmp_path / "info.json"
    entries = [
        {"prompt_en": "a cat", "dimension": [FLICKER, "color"]},
        {"prompt_en": "a dog", "dimension": ["scene", "color"]},
    ]
    path.write_text(json.dumps(entries))
    return path


def environment(folder: Path, how: str = "") -> Path:
    """An interpreter whose environment has the stand-in, and none of ours."""
    modules = folder / "modules"
    (modules / "vbench").mkdir(parents=True, exist_ok=True)
    text = STAND_IN.replace("CALLS", repr(str(folder / "calls"))).replace("HOW", how or "pass")
    (modules / "vbench" / "__init__.py").write_text(text)
    (modules / "torch.py").write_text("def device(name): return name\n")
    return script(folder / "python", f'PYTHONPATH="$PYTHONPATH:{modules}" exec {sys.executable} -S "$@"')


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def calls(folder: Path) -> list[list[object]]:
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


def test_what_can_be_computed_is(info: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path / "cache"))
    package = VBenchPackage.find(
        environment(tmp_path, 'if name == "scene": raise RuntimeError("no network")')
    )
    videos, output = tmp_path / "videos", tmp_path / "out"
    found = package.evaluate(videos, info, output, ["a cat"], NAMES, "cpu")
    assert found.raw == {FLICKER: 0.9}
    assert found.not_computed.keys() == DIMENSIONS.keys() - {FLICKER}
    assert found.not_computed["color"] == "1 of its 2 prompts have no videos"
    assert found.not_computed["dynamic_degree"] == "it was not asked for"
    call = ["cpu", str(info), str(videos), FLICKER, [FLICKER], True, "vbench_standard"]
    assert calls(tmp_path) == [call]
    assert (output / f"{FLICKER}.log").read_text() == f"computing {FLICKER}\n"

    both = package.evaluate(videos, info, output, ["a cat", "a dog"], NAMES, "cpu")
    assert "grit_b_densecap_objectdet.pth is missing" in both.not_computed["color"]
    assert len(calls(tmp_path)) == 1  # what was computed before is read

    network = tmp_path / "cache" / DIMENSIONS["color"].networks[0]
    network.parent.mkdir(parents=True)
    network.touch()
    both = package.evaluate(videos, info, output, ["a cat", "a dog"], NAMES, "cpu", download=True)
    assert both.raw == {FLICKER: 0.9, "color": 0.9}
    assert both.not_computed["scene"].startswith("VBench failed: RuntimeError: no network (see ")


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("import numpy_1", "ModuleNotFoundError: No module named 'numpy_1'"),
        ("os._exit(3)", f"computing {FLICKER}"),
        ("os.kill(os.getpid(), 9)", "it was killed by SIGKILL, perhaps for want of memory"),
        ("os.kill(os.getpid(), 11)", "it was killed by SIGSEGV"),
        ("return", "it wrote no score from 0 to 1"),
        ("score = float('nan')", "it wrote no score from 0 to 1"),
        ("score = 90", "it wrote no score from 0 to 1"),
        ("score = 'good'", "it wrote no score from 0 to 1"),
        ("dimension_list = ['color']", "it wrote no score from 0 to 1"),
    ],
)
def test_failures(how: str, reason: str, info: Path, tmp_path: Path) -> None:
    """Each is a reason; nothing of them is left that a later call would take for a score."""
    package = VBenchPackage.find(environment(tmp_path, how))
    output = tmp_path / "out"
    found = package.evaluate(tmp_path, info, output, ["a cat"], [FLICKER], "cpu")
    assert found.raw == {}
    log = output / f"{FLICKER}.log"
    assert found.not_computed[FLICKER] == f"VBench failed: {reason} (see {log})"
    assert list(output.iterdir()) == [log]
    environment(tmp_path)
    assert package.evaluate(tmp_path, info, output, ["a cat"], [FLICKER], "cpu").raw == {FLICKER: 0.9}


def test_modules_of_ours_are_kept_from_it(
    info: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a numpy that is too new for it."""
    ours = tmp_path / "ours"
    ours.mkdir()
    (ours / "vbench.py").write_text("raise ImportError('not this one')")
    monkeypatch.setenv("PYTHONPATH", str(ours))
    package = VBenchPackage.find(environment(tmp_path))
    assert package.evaluate(tmp_path, info, tmp_path / "out", ["a cat"], [FLICKER], "cpu").raw == {
        FLICKER: 0.9
    }


def test_a_damaged_score_is_computed_again(info: Path, tmp_path: Path) -> None:
    package, output = VBenchPackage.find(environment(tmp_path)), tmp_path / "out"
    output.mkdir()
    (output / f"{FLICKER}_eval_results.json").write_text("{")
    assert package.evaluate(tmp_path, info, output, ["a cat"], [FLICKER], "cpu").raw == {FLICKER: 0.9}


def test_an_interpreter_that_goes_away(info: Path, tmp_path: Path) -> None:
    package = VBenchPackage.find(environment(tmp_path))
    (tmp_path / "python").unlink()
    found = package.evaluate(tmp_path, info, tmp_path / "out", ["a cat"], [FLICKER], "cpu")
    assert "cannot be run" in found.not_computed[FLICKER]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"python is not there; give the one of the environment that vbench is in"),
        ("folder", r"python is a folder; give the one of the environment"),
        ("echo hello", r"python is no Python interpreter; give the one"),
        ("echo '{\"vbench\": 3}'", r"python is no Python interpreter; give the one"),
        ("true", r"python is no Python interpreter; give the one"),
        ("kill -9 $$", r"python cannot import vbench \(it was killed by SIGKILL.*install it there: "),
        (
            f'exec {sys.executable} -S "$@"',
            r"cannot import vbench \(ModuleNotFoundError: No module named 'vbench'\); install it there: .*"
            r"python -m pip install vbench==0\.1\.5",
        ),
    ],
)
def test_interpreters_that_have_none(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "python"
    if text == "folder":
        path.mkdir()
    elif text is not None:
        script(path, text)
    with pytest.raises(UserError, match=message) as caught:
        VBenchPackage.find(path)
    assert caught.value.option == "vbench_python"
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_run(tmp_path: Path) -> None:
    (tmp_path / "python").write_text("#!/bin/sh\n")
    with pytest.raises(UserError, match="cannot be run"):
        VBenchPackage.find(tmp_path / "python")


def test_obstacles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path))
    package = VBenchPackage("python")
    assert package.obstacle(FLICKER, download=False) is None
    assert "tag2text" in (package.obstacle("scene", download=False) or "")
    assert package.obstacle("scene", download=True) is None
    assert "not installed" in (VBenchPackage(None).obstacle("scene", download=True) or "")


def test_without_its_prompts_nothing_is_computed(tmp_path: Path) -> None:
    found = VBenchPackage("python").evaluate(
        tmp_path, None, tmp_path / "out", ["a cat"], list(DIMENSIONS), "cpu"
    )
    assert found.raw == {}
    assert set(found.not_computed.values()) == {"VBench_full_info.json was not given"}
    assert not (tmp_path / "out").exists()


def test_the_command_asks_it(
    info: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.txt").write_text("a cat\n")
    args = ["eval", str(tmp_path / "p.txt"), "-o", str(tmp_path / "out"), "--model", str(model_folder)]
    args += ["--frames", "9", "--samples", "1", "--vbench-python"]
    assert main([*args, str(tmp_path / "nothing")]) == 2
    assert "give --vbench-info" in capsys.readouterr().err
    args[-1:] = ["--vbench-info", str(info), "--vbench-python"]
    assert main([*args, str(tmp_path / "nothing")]) == 2
    error = capsys.readouterr().err
    assert "nothing is not there; give the one" in error
    assert "(--vbench-python)" in error
    assert not (tmp_path / "out").exists()  # nothing is made for a score that cannot be
    assert main([*args, str(environment(tmp_path))]) == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["vbench"]["raw"] == {FLICKER: 0.9}
    assert "90.00" not in found["vbench"]["not_computed"]["color"]


def write_exact(path: Path, frames: NDArray[np.uint8], fps: int) -> None:
    """Write a video that every decoder gives back as it is: without loss, in RGB."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264rgb", rate=fps, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "rgb24"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        file.mux(stream.encode())


def moving(sample: int) -> NDArray[np.uint8]:
    """A ramp that moves."""
    ramp = np.linspace(0, 200, 48)[None, None, :, None] + np.arange(9)[:, None, None, None] * (3 + sample)
    return np.broadcast_to(ramp, (9, 32, 48, 3)).astype(np.uint8)


@pytest.mark.slow
@pytest.mark.skipif(REAL is None, reason="DUMMYFORCING_VBENCH_PYTHON names no environment with vbench")
@pytest.mark.parametrize(("write", "tolerance"), [(write_exact, 1e-8), (write_mp4, 5e-4)])
def test_the_real_package_agrees(write: Callable[..., None], tolerance: float, tmp_path: Path) -> None:
    """It finds our videos by their names, and its temporal flickering is ours.

    OpenCV, which it reads with, turns YUV into RGB with other roundings than we do.
    """
    prompts = ["In a still frame, a stop sign", "a laptop, frozen in time"]
    info = tmp_path / "info.json"
    info.write_text(json.dumps([{"prompt_en": prompt, "dimension": [FLICKER]} for prompt in prompts]))
    videos = tmp_path / "videos"
    videos.mkdir()
    jobs = PromptSet.read(info).jobs(5, 0)
    for number, job in enumerate(jobs):
        write(videos / job.name, moving(number), 16)
    package = VBenchPackage.find(Path(str(REAL)))
    found = package.evaluate(videos, info, tmp_path / "out", prompts, [FLICKER], "cpu")
    ours = [float(1 - changes(read_mp4(videos / job.name)).mean()) for job in jobs]
    assert (len(ours), min(ours) < 0.98) == (10, True)
    assert found.raw[FLICKER] == pytest.approx(np.mean(ours), abs=tolerance)
    assert "WARNING" not in (tmp_path / "out" / f"{FLICKER}.log").read_text()  # of videos that are missing
