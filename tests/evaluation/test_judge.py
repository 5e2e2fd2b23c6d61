"""Judging a policy: prompts that are read, what is worse in words, folders that are compared, records."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dummyforcing.cli import main
from dummyforcing.evaluation.generate import VideoFolder
from dummyforcing.evaluation.judge import FEWEST, TOLD, judge
from dummyforcing.evaluation.metrics import Frames
from dummyforcing.evaluation.prompts import Job
from dummyforcing.evaluation.suite import differences
from dummyforcing.evaluation.world.detect import verdict
from dummyforcing.evaluation.world.measures import SceneMeasures, measure_scene
from dummyforcing.evaluation.world.scene import Scene, read_prompt
from dummyforcing.media.video import write_mp4
from dummyforcing.method.plan import Plan
from dummyforcing.pipeline.pipeline import load
from dummyforcing.presets.catalog import find_preset
from research.world.prompts import MAX_SCENES, benchmark_scenes, two_object_scenes
from research.world.render import render
from research.world.wording import Teller
from tests.conftest import write_model

POLICIES = """
from dummyforcing import HeadContext, Policy

def first_only():
    return Policy("first", initial=HeadContext(1, 0))
"""
WRONG = """
    return Policy("wrong", roles={"near": HeadContext(0, 1)}, assign=lambda scores: [["near"]])
"""
PROMPTS = Path(__file__).parents[2] / "benchmarks" / "held-out.txt"


# --- prompts ------------------------------------------------------------------------------------------------


def test_what_prompts_of_the_world_say_is_read() -> None:
    """The oracle is what they were made of."""
    for scene in [*benchmark_scenes(MAX_SCENES), *two_object_scenes()]:
        read = read_prompt(scene.prompt)
        assert read is not None
        assert [thing.kind for thing in read.things] == [thing.kind for thing in scene.things]
    teller = Teller(np.random.default_rng(0))
    scenes = [teller.tell().scene for _ in range(4000)]
    read_of = [(scene, read) for scene in scenes if (read := read_prompt(scene.prompt)) is not None]
    assert read_of  # few people choose the world's own words
    for scene, read in read_of:
        assert {thing.kind for thing in read.things} == {thing.kind for thing in scene.things}
    read = read_prompt("  A red ball  bounces, on a Green floor. ")
    assert read is not None
    assert (read.things[0].kind, read.floor) == (("red", "ball", "bounce"), "green")


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a ball bounces",
        "a red ball",
        "a red fox runs through snow",
        "a red ball bounces and a fox sleeps",
        "a red ball bounces and a red star spins",
        "a red ball spins",
        "leaves",
        "a red ball bounces and a blue star spins and a white cross stays still",
    ],
)
def test_what_cannot_be_judged_is_left_alone(prompt: str) -> None:
    assert read_prompt(prompt) is None


def test_the_file_of_prompts_is_the_benchmark() -> None:
    assert PROMPTS.read_text().splitlines() == [scene.prompt for scene in benchmark_scenes()]


# --- judging ------------------------------------------------------------------------------------------------


def rendered(scene: Scene) -> Frames:
    frames: Frames = (render([scene], 45, 96)[0] * 255).byte().permute(0, 2, 3, 1).numpy()
    return frames


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [scene for scene in benchmark_scenes() if scene.things[0].motion in ("bounce", "swing", "circle")][
        :8
    ]


@pytest.fixture(scope="module")
def truth(scenes: list[Scene]) -> list[SceneMeasures]:
    return [measure_scene(rendered(scene), scene) for scene in scenes]


def test_videos_that_stand_still_are_worse_in_words(scenes: list[Scene], truth: list[SceneMeasures]) -> None:
    frozen = [measure_scene(rendered(scene)[:1].repeat(45, axis=0), scene) for scene in scenes]
    found = judge(frozen, truth, [scene.prompt for scene in scenes])
    assert found.is_told
    assert found.worse[0].startswith(
        "objects do less often what the prompt says: 0%, dense 100% (difference -100"
    )
    assert "seen: 'still, not " in found.worse[0]
    assert any(text.startswith("objects move more slowly: 0 picture widths/s") for text in found.worse)
    assert any(text.startswith("less of the picture moves: 0%") for text in found.worse)
    assert "color" in found.no_loss
    # The other way round nothing is lost, and more motion alone is no gain.
    other = judge(truth, frozen, [scene.prompt for scene in scenes], than="frozen")
    assert not [text for text in other.worse if "move" in text or "prompt" in text]
    assert other.better[0].startswith("objects do more often what the prompt says: 100%, frozen 0%")
    assert not [text for text in other.better if "moves" in text]


def test_equal_videos_are_not_worse(scenes: list[Scene], truth: list[SceneMeasures]) -> None:
    found = judge(truth, truth, [scene.prompt for scene in scenes])
    assert (found.worse, found.better, found.is_told) == ((), (), True)
    assert {"motion", "color", "shape", "speed"} <= set(found.no_loss)


def test_few_prompts_tell_nothing(scenes: list[Scene], truth: list[SceneMeasures]) -> None:
    lost = [dataclasses.replace(row, motion=False) for row in truth]
    prompts = [scene.prompt for scene in scenes]
    assert not judge(lost[: FEWEST - 1], truth[: FEWEST - 1], prompts[: FEWEST - 1]).is_told
    assert judge(lost[:FEWEST], truth[:FEWEST], prompts[:FEWEST]).is_told
    # Many videos of one prompt are one prompt.
    assert not judge(lost, truth, [prompts[0]] * len(truth)).is_told


def test_numbers_are_those_of_the_differences(scenes: list[Scene], truth: list[SceneMeasures]) -> None:
    lost = [dataclasses.replace(row, color=i % 2 == 0) for i, row in enumerate(truth)]
    prompts = [scene.prompt for scene in scenes]
    expected = differences(lost, truth, groups=prompts)["color"]
    low, high = expected["interval"]
    (told,) = judge(lost, truth, prompts).worse
    assert told == (
        f"objects have the wrong color more often: 50%, dense 100% (difference {100 * expected['mean']:+.3g} "
        f"points, 95% interval {100 * low:+.3g} to {100 * high:+.3g})"
    )


def test_drifts_count_without_their_sign(scenes: list[Scene], truth: list[SceneMeasures]) -> None:
    up, down = ([dataclasses.replace(row, brightness_drift=sign * 0.01) for row in truth] for sign in (1, -1))
    none = [dataclasses.replace(row, brightness_drift=0.0) for row in truth]
    prompts = [scene.prompt for scene in scenes]
    assert judge(up, down, prompts).worse == ()
    for drifting in (up, down):
        assert (
            judge(drifting, none, prompts)
            .worse[0]
            .startswith("brightness drifts more: 1% per s, dense 0% per")
        )


def test_every_judged_measure_is_one() -> None:
    assert set(TOLD) <= {field.name for field in dataclasses.fields(SceneMeasures)}


def test_only_models_of_the_world_are_judged_by_detectors(tmp_path: Path) -> None:
    assert find_preset("tiny")[0].rendered_world
    assert not find_preset("self-forcing")[0].rendered_world
    scene = benchmark_scenes()[0]
    job = Job(scene.prompt, scene.prompt, 0, 0)
    folder = VideoFolder.open(tmp_path / "out", {}, torch.device("cpu"))
    write_mp4(folder.video(job), rendered(scene), 16)
    for name, is_judged in (("self-forcing", False), ("tiny", True)):
        folder.measure(job, find_preset(name)[0])
        (row,) = folder.read_measures([job])
        assert (row.motion is not None) == is_judged
    assert row.reasons == verdict_of(folder.video(job), scene)


def verdict_of(path: Path, scene: Scene) -> tuple[str, ...]:
    from dummyforcing.evaluation.world.detect import detect
    from dummyforcing.media.clips import read_mp4

    return verdict(detect(read_mp4(path)), scene).reasons


# --- the command --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def square(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose videos detectors are asked to judge."""
    folder = tmp_path_factory.mktemp("models") / "square"
    write_model(folder)
    preset = json.loads((folder / "preset.json").read_text())
    preset |= {"size": [32, 32], "rendered_world": True}
    (folder / "preset.json").write_text(json.dumps(preset))
    return folder


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, square: Path) -> list[str]:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(POLICIES)
    Path("prompts.txt").write_text("\n".join(PROMPTS.read_text().splitlines()[:5]))
    return ["eval", "prompts.txt", "--model", str(square), "--frames", "21", "--samples", "1"]


def run(*args: str) -> None:
    assert main(list(args)) == 0


def results(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(folder) / "metrics.json").read_text())
    return found


def test_judge_makes_the_dense_videos_of_the_same_noise(
    asked: list[str], square: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(*asked, "-o", "mine", "--policy", "mine.py:first_only", "--judge")
    printed = capsys.readouterr().out
    assert "Exact detectors judge 5 of 5 prompts." in printed
    assert "orse than dense" in printed
    prompts = Path("prompts.txt").read_text().splitlines()
    pipe = load(square, device="cpu")
    for folder, policy in (("mine/dense", "dense"), ("mine", "window:1,0")):
        pipe.generate(prompts[2], num_frames=21, seed=0, policy=policy).save("expected.mp4")
        assert (Path(folder) / "videos" / f"{prompts[2]}-0.mp4").read_bytes() == Path(
            "expected.mp4"
        ).read_bytes()
    found, dense = results("mine"), results("mine/dense")
    rows, others = (
        [SceneMeasures(**{**row, "reasons": tuple(row["reasons"])}) for row in some["videos"].values()]
        for some in (found, dense)
    )
    assert found["against_dense"] == differences(rows, others, groups=prompts)
    assert found["judgement"] == json.loads(json.dumps(dataclasses.asdict(judge(rows, others, prompts))))
    # Where it was finished, nothing is made again; the two are result folders like any other.
    before = (Path("mine") / "videos" / f"{prompts[0]}-0.mp4").stat().st_mtime_ns
    run(*asked, "-o", "mine", "--policy", "mine.py:first_only", "--judge")
    assert (Path("mine") / "videos" / f"{prompts[0]}-0.mp4").stat().st_mtime_ns == before
    run(*asked, "-o", "mine/dense", "--policy", "dense")
    capsys.readouterr()
    run("eval", "compare", "mine", "mine/dense")
    printed = capsys.readouterr().out
    assert "5 pairs of videos, A mine and B mine/dense" in " ".join(printed.split())
    run(*asked, "-o", "more", "--policy", "dense", "--samples", "2")
    run("eval", "compare", "more", "mine/dense")  # sample 0 has the same noise
    assert "Of 10 and 5 videos, 5 are in both." in capsys.readouterr().out
    assert "policy: mine.py:first_only in mine, dense in mine/dense" in printed
    difference = found["against_dense"]["sharpness"]
    assert f"{difference['mean']:+.3g}" in printed
    assert "{:+.3g} .. {:+.3g}".format(*difference["interval"]) in printed
    for sentence in found["judgement"]["worse"]:
        assert sentence.partition(":")[0] in printed


def test_shards_share_the_work_of_judging(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    own = ["-o", "mine", "--policy", "window:1,1", "--judge"]
    run(*asked, *own, "--shard", "0/2")
    assert "6 of 10 videos are there" in capsys.readouterr().out
    assert not Path("mine/metrics.json").exists()
    run(*asked, *own, "--shard", "1/2")
    assert "dense" in capsys.readouterr().out
    assert Path("mine/dense/metrics.json").exists()


def test_results_say_truly_which_plan_and_policy(asked: list[str], square: Path) -> None:
    plan = load(square, device="cpu").generate("a red ball bounces", num_frames=33, policy="anchored").plan
    plan.save("found.json")
    run(*asked, "-o", "planned", "--plan", "found.json")
    found = results("planned")
    digest = hashlib.sha256(Path("found.json").read_bytes()).hexdigest()
    assert found["plan"] == {
        "file": "found.json",
        "sha256": digest,
        "policy": "anchored",
        "heads": plan.counts,
    }
    assert (found["settings"]["policy"], found["settings"]["plan"]) == ("anchored", digest)
    shutil.copy("found.json", "renamed.json")  # the same plan: the same videos
    run(*asked, "-o", "planned", "--plan", "renamed.json")
    assert results("planned")["plan"]["file"] == "renamed.json"
    plan.uniform(3, 4, plan.contexts[0][0]).save("renamed.json")
    assert main([*asked, "-o", "planned", "--plan", "renamed.json"]) == 2

    run(*asked, "-o", "own", "--policy", "mine.py:first_only")
    settings = results("own")["settings"]
    code = hashlib.sha256(Path("mine.py").read_bytes()).hexdigest()
    assert (settings["policy"], settings["policy_sha256"]) == ("mine.py:first_only", code)
    assert (settings["plan"], results("own")["plan"]) == (None, None)


def test_a_folder_keeps_to_the_code_of_a_policy(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run(*asked, "-o", "own", "--policy", "mine.py:first_only")
    Path("mine.py").write_text(POLICIES.replace("(1, 0)", "(1, 1)"))
    capsys.readouterr()
    assert main([*asked, "-o", "own", "--policy", "mine.py:first_only"]) == 2
    assert "policy_sha256 was" in capsys.readouterr().err


def test_code_that_failed_can_be_mended_and_run_again(
    asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.py").write_text(POLICIES + "    return 1\n\ndef wrong():\n" + WRONG)
    own = [*asked, "-o", "own", "--policy", "mine.py:wrong", "--judge"]
    assert main(own) == 2
    assert "gave 1 rows of 1 roles" in capsys.readouterr().err
    assert not list(Path("own/videos").iterdir())
    assert not Path("own/metrics.json").exists()
    Path("mine.py").write_text(POLICIES + "\ndef wrong():\n    return first_only()\n")
    run(*own)
    assert len(list(Path("own/videos").iterdir())) == 5


def test_the_shipped_plan_is_named_with_its_hash(asked: list[str], square: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(square, tmp_path / "shipping")
    load(square, device="cpu").generate("a red ball bounces", num_frames=33).plan.save(folder / "plan.json")
    asked[asked.index(str(square))] = str(folder)
    run(*asked, "-o", "shipped", "--plan", "shipped")
    plan = results("shipped")["plan"]
    digest = hashlib.sha256((folder / "plan.json").read_bytes()).hexdigest()
    assert (plan["file"], plan["sha256"], plan["policy"]) == ("shipped", digest, "dummy")
    assert Plan.load(folder / "plan.json").counts == plan["heads"]


def test_measures_of_older_versions_are_taken_again(asked: list[str]) -> None:
    run(*asked, "-o", "old", "--policy", "dense")
    for path in Path("old/measures").iterdir():
        row = json.loads(path.read_text())
        path.write_text(json.dumps({name: row[name] for name in list(row)[:13]}))
    before = {path.name: path.stat().st_mtime_ns for path in Path("old/videos").iterdir()}
    run(*asked, "-o", "old", "--policy", "dense")
    assert before == {path.name: path.stat().st_mtime_ns for path in Path("old/videos").iterdir()}
    assert all(row["motion"] is not None for row in results("old")["videos"].values())


def test_other_models_and_prompts_are_told(
    asked: list[str], model_folder: Path, square: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("prompts.txt").write_text("a red ball bounces\na red fox runs\na cat")
    run(*asked, "-o", "some", "--policy", "window:1,1", "--judge")
    printed = capsys.readouterr().out
    assert "Exact detectors judge 1 of 3 prompts." in printed
    assert "do not know what to look for in 'a red fox runs' and others" in printed
    assert "3 prompts cannot tell loss from chance, 5 or more can" in printed
    asked[asked.index(str(square))] = str(model_folder)
    run(*asked, "-o", "other", "--policy", "window:1,1", "--judge")
    assert "Model 'random' does not show the rendered world" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["eval", "prompts.txt", "--policy", "dense", "--judge"], "cannot be worse than themselves"),
        (["eval", "prompts.txt", "--policy", "native", "--judge"], "cannot be worse than themselves"),
        (["eval", "compare", "a", "nothing"], "There are no results in a; give a folder in which"),
        (["eval", "prompts.txt", "--policy", "mine.py:nothing"], "There is no 'nothing' in mine.py"),
    ],
)
def test_what_cannot_be_judged_is_refused(
    asked: list[str], args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(Path().iterdir())
    assert main(args) == 2
    assert message in capsys.readouterr().err
    assert set(Path().iterdir()) - before <= {Path("__pycache__")}


def test_folders_that_are_no_pair_are_refused(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run(*asked, "-o", "a", "--policy", "dense")
    run(*asked, "-o", "b", "--policy", "dense", "--seed", "1")
    Path("prompts.txt").write_text("a blue star spins")
    run(*asked, "-o", "c", "--policy", "dense")
    capsys.readouterr()
    for other, message in (("b", "not made of the same noise"), ("c", "no video of the same name")):
        assert main(["eval", "compare", "a", other]) == 2
        assert message in capsys.readouterr().err
    Path("c/metrics.json").write_text("{}")
    assert main(["eval", "compare", "c", "a"]) == 2
    assert "metrics.json cannot be read" in capsys.readouterr().err


@pytest.mark.slow
def test_the_bundled_model_without_a_past_is_judged_worse(
    asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run(
        "eval",
        "prompts.txt",
        "--samples",
        "1",
        "-o",
        "mine",
        "--policy",
        "mine.py:first_only",
        "--judge",
    )
    assert "- objects do less often what the prompt says" in capsys.readouterr().out
