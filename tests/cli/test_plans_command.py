"""`dummyforcing heads import` and `heads calibrate`, as users call them."""

import dataclasses
import json
import re
import signal
import sys
from pathlib import Path

import pytest
import torch

from dummyforcing.analysis.head_damage import HeadDamage
from dummyforcing.bench.run import Benchmark, Settings
from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.cli import main
from dummyforcing.evaluation.results import provenance
from dummyforcing.method.plan import HeadContext, Plan
from tests.conftest import write_model
from tests.terminal import OnTerminal, believe_in_terminal

PROMPT = "a red ball bounces"
LISTS = {
    "profile": "random_thr08",
    "num_layers": 3,
    "num_heads": 4,
    "layers": [
        {"layer_idx": 0, "static_head": [1, 2], "dynamic_head": [0, 3]},
        {"layer_idx": 1, "static_head": [], "dynamic_head": [0, 1, 2, 3]},
        {"layer_idx": 2, "static_head": [0, 1, 2, 3], "dynamic_head": []},
    ],
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with lists and prompts."""
    monkeypatch.chdir(tmp_path)
    Path("lists.json").write_text(json.dumps(LISTS))
    Path("prompts.txt").write_text(f"{PROMPT}\n\n a blue cube spins \n{PROMPT}\n")
    return tmp_path


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], here: Path):
    """Run a command that must be refused, change nothing, and give its message."""

    def run(*args: object) -> str:
        before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
        capsys.readouterr()
        assert main(list(map(str, args))) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before
        return printed.err.strip().splitlines()[-1]

    return run


# --- import -------------------------------------------------------------------------------------------------


def test_import_generate_and_bench(
    model_folder: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--static", "1,2", "--dynamic", "0,4", "--first-layer-whole"]
    assert main(["heads", "import", "lists.json", "-o", "plan.json", *options]) == 0
    printed = capsys.readouterr().out
    assert "static: 4 heads, see the first frame and the last 2 frames" in printed
    assert "dynamic: 4 heads, see the last 4 frames" in printed
    assert "whole: 4 heads, see all past frames" in printed
    plan = Plan.load("plan.json")
    assert plan.contexts == (
        (HeadContext(0, None),) * 4,
        (HeadContext(0, 4),) * 4,
        (HeadContext(1, 2),) * 4,
    )
    assert plan.found["profile"] == "random_thr08"

    model = ["--model", str(model_folder)]
    video = ["-o", "a.mp4", "--frames", "33", "--plan", "plan.json", "--save-plan", "same.json"]
    assert main(["generate", PROMPT, *model, *video]) == 0
    assert Plan.load("same.json") == plan
    capsys.readouterr()

    bench = ["bench", *model, "--frames", "33", "--repeats", "1", "--no-vae", "-o", "bench.json"]
    assert main([*bench, "--plan", "plan.json", "--compare"]) == 0
    assert re.search(r"plan\.json is \d\.\d\dx as fast as dense", capsys.readouterr().out)
    rows = json.loads(Path("bench.json").read_text())["configurations"]
    assert [row["policy"] for row in rows] == ["dense", "plan.json"]
    assert rows[1]["heads"]["static"] == {"heads": 4, "sink": 1, "recent": 2}
    assert rows[1]["past_frames"] == pytest.approx((4 * 6 + 4 * 4 + 4 * 3) / 12)
    assert main([*bench, "--plan", "plan.json", "--policies", "dummy"]) == 0
    rows = json.loads(Path("bench.json").read_text())["configurations"]
    assert [row["policy"] for row in rows] == ["dummy", "plan.json"]


def test_bench_takes_any_plan_of_the_size_for_random_weights(
    model_folder: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:

    plan = Plan.uniform(3, 4, HeadContext(1, 1))
    other = dataclasses.replace(plan, fingerprint="of another")
    files = ModelFiles.open(model_folder)
    settings = Settings(sizes=((32, 48),), policies=(), plans={"other": other})
    for random, expected in ((True, None), (False, "of another")):
        benchmark = Benchmark(files, settings, torch.device("cpu"), torch.float32, random)
        (request,) = benchmark.rows.values()
        assert request.plan is not None
        assert request.plan.fingerprint == expected


def test_plans_that_bench_cannot_take(refused, model_folder: Path) -> None:
    bench = ("bench", "--model", model_folder, "--frames", "33", "--plan")
    assert "nowhere.json cannot be read" in refused(*bench, "nowhere.json")
    assert "lists.json is not a head plan" in refused(*bench, "lists.json")
    assert "ships no head plan" in refused(*bench, "shipped")
    Plan.uniform(8, 12, HeadContext(0, 1)).save("large.json")
    assert "is for 8 layers with 12 heads, but the model has 3 layers with 4 heads" in refused(
        *bench, "large.json"
    )


def test_bad_imports(refused, here: Path) -> None:
    heads = ("heads", "import")
    assert "nowhere.json cannot be read" in refused(*heads, "nowhere.json")
    assert "prompts.txt holds no head lists (Expecting value" in refused(*heads, "prompts.txt")
    for text in ("1", "1,1,1", "a,b", "-1,2", "1.5,2", "1, 1", "9999999,1"):
        message = refused(*heads, "lists.json", f"--static={text}")
        assert f"A context of '{text}' cannot be read; write first and last frames, such as 1,1" in message
        assert message.endswith("(--static).")
    assert "ends in .json" in refused(*heads, "lists.json", "-o", "plan.txt")
    assert "lists.json holds the lists" in refused(*heads, "lists.json", "-o", here / "lists.json")
    broken = {**LISTS, "num_heads": 5}
    Path("broken.json").write_text(json.dumps(broken))
    assert "head 4 of layer 0 is missing" in refused(*heads, "broken.json")


# --- calibrate ----------------------------------------------------------------------------------------------

CALIBRATE = ("heads", "calibrate", "--prompts", "prompts.txt", "-o", "plan.json")


def test_calibrate(
    model_folder: Path, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    believe_in_terminal(monkeypatch)
    model = ["--model", str(model_folder)]
    assert main([*CALIBRATE, *model, "--seeds", "2", "--seed", "3"]) == 0
    printed = capsys.readouterr()
    assert "measuring: 100%" in printed.err
    assert "dummy: 6 heads, see the last frame" in printed.out
    assert re.search(
        r"dummy heads' damages add up to \d+\.\d\d% of the variance; of those that policy 'dummy' would",
        printed.out,
    )
    assert {path.name for path in here.iterdir()} == {
        "lists.json",
        "prompts.txt",
        "plan.json",
        "plan.json.measured",
    }
    kept = HeadDamage.load("plan.json.measured")
    plan = Plan.load("plan.json")
    assert (plan.policy, plan.num_dummy, plan.chunk) == ("calibrated dummy", 6, 4)
    assert plan.found["videos"] == [
        [PROMPT, 3],
        [PROMPT, 4],
        ["a blue cube spins", 3],
        ["a blue cube spins", 4],
    ]
    assert plan.found["made"] == provenance(torch.device("cpu"))
    assert main(["generate", PROMPT, *model, "-o", "a.mp4", "--frames", "21", "--plan", "plan.json"]) == 0

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("dummyforcing.analysis.head_damage.chunk_damages", refuse)
    options = ["--seeds", "2", "--seed", "3", "--dummy-fraction", "0.25", "--policy", "anchored"]
    assert main([*CALIBRATE, *model, *options]) == 0
    again = Plan.load("plan.json")
    assert (again.policy, again.num_dummy) == ("calibrated anchored", 3)
    assert again.scores == plan.scores
    assert {
        (layer, head) for layer, row in enumerate(again.roles) for head, r in enumerate(row) if r == "dummy"
    } <= {(layer, head) for layer, row in enumerate(plan.roles) for head, r in enumerate(row) if r == "dummy"}
    assert HeadDamage.load("plan.json.measured").settings == kept.settings


def test_bad_calibrations(refused, model_folder: Path, here: Path) -> None:
    model = ("--model", model_folder)
    Path("empty.txt").write_text(" \n\n")
    for args, message in (
        (["--seeds", "0"], "0 seeds make no video; take 1 or more (--seeds)."),
        (["--chunks", "0"], "no past to take away in chunk 0; give chunks from 1 on (--chunks)."),
        (["--chunks", "first"], "write all, or a list such as 1,3."),
        (["--chunks", "all"], "write a list such as 1,4 (--chunks)."),
        (["--policy", "dense"], "'dense' does not classify heads; take 'dummy' or 'anchored' (--policy)."),
        (["--policy", "long"], "within its budget"),
        (["--policy", "official"], "scores commit passes"),
        (["--dummy-fraction", "2"], "--dummy-fraction 2.0 is out of range"),
        (["--size", "100x64"], "nearest is 96x64"),
        (["--prompts", "none.txt"], "none.txt cannot be read"),
        (["--prompts", "empty.txt"], "empty.txt holds no prompts"),
        (["-o", "plan.txt"], "ends in .json"),
        (["-o", "no/plan.json"], "does not exist"),
        (["--model", "rolling-forcing"], "take a model of sampler 'block'"),
        (["--model", "causvid", "--chunks", "9"], "take"),
    ):
        assert message in refused(*CALIBRATE, *model, *args)


def test_what_was_measured_before_and_does_not_fit(
    refused, model_folder: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(here / "other", seed=1)
    assert main([*CALIBRATE, "--model", str(model_folder)]) == 0
    for args, message in (
        (["--model", "other"], "its model was random, and would be other now"),
        (["--model", model_folder, "--chunks", "1,2"], "its chunks was (4,), and would be (1, 2) now"),
        (["--model", model_folder, "--size", "32x32"], "its size was (32, 48), and would be (32, 32) now"),
        (
            ["--model", model_folder, "--dtype", "bfloat16"],
            "its dtype was float32, and would be bfloat16 now",
        ),
    ):
        found = refused(*CALIBRATE, *args)
        assert message in found
        assert "plan.json.measured was measured under other conditions" in found
    kept = Path("plan.json.measured")
    for content in (b"", b"{}", kept.read_bytes()[:-8]):
        kept.write_bytes(content)
        assert "damaged or no measurement of heads" in refused(*CALIBRATE, "--model", model_folder)


@pytest.mark.slow
def test_ctrl_c_and_the_same_command_again(model_folder: Path, here: Path) -> None:
    command = [sys.executable, "-m", "dummyforcing", *CALIBRATE, "--model", str(model_folder), "--seeds"]
    run = OnTerminal([*command, "200"])
    run.wait_for(r"measuring: +[1-9]\d*%")
    run.process.send_signal(signal.SIGINT)
    code, _, shown = run.finish()
    assert code == 130
    assert "What was measured is in plan.json.measured; the same command goes on." in shown
    assert shown.rstrip().endswith("Interrupted.")
    assert {path.name for path in here.iterdir()} == {"lists.json", "prompts.txt", "plan.json.measured"}
    known = HeadDamage.load("plan.json.measured")
    assert known.videos[0].scores is not None

    run = OnTerminal([*command, "2"])
    code, _, shown = run.finish()
    assert code == 0
    assert not re.search(r"measuring: +0%", shown)
    assert Plan.load("plan.json").found["videos"] == [
        [prompt, seed] for prompt in (PROMPT, "a blue cube spins") for seed in (0, 1)
    ]
