"""The table of policies: what each sees, that pairs share prompt and noise, and a run that goes on."""

import dataclasses
import json
import sys
import time
from functools import partial
from typing import Any

import numpy as np
import pytest

from dummyforcing.analysis.head_damage import measure_damage
from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.evaluation.world.measures import SceneMeasures
from dummyforcing.method.plan import HeadContext
from dummyforcing.pipeline.pipeline import load
from research.benchmarks import policies as benchmark
from research.pages.page import page
from research.pages.policies import HEADER, section
from research.studies import policies
from research.studies.damage import damage_jobs, read_damage
from research.studies.jobs import Job, Workers, read_journal
from research.studies.policies import Length
from research.studies.study import past_frames
from research.world.prompts import benchmark_scenes
from research.world.render import render
from research.world.world import prompt_scene
from tests.conftest import write_model

NEAR = HeadContext(1, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The small model, with square videos."""
    folder = tmp_path_factory.mktemp("policies") / "random"
    write_model(folder, size=(32, 32))
    return folder


@pytest.fixture(scope="module")
def pipeline(folder):
    return load(folder, device="cpu")


@pytest.fixture(scope="module")
def plans(pipeline, tmp_path_factory):
    policy = policies.role_policies(pipeline.files)["dummy"]
    (job,) = damage_jobs(["a red ball bounces"], policy, folder=tmp_path_factory.mktemp("damage"))
    damage = read_damage([json.loads(json.dumps(job.work(pipeline)))])
    return policies.damage_plans(damage, pipeline.files)


@pytest.fixture(scope="module")
def table(pipeline, plans):
    return policies.candidates(pipeline.files, plans)


def test_measured_plans_are_those_of_calibrate(pipeline, plans):
    roles = policies.role_policies(pipeline.files)
    damage = measure_damage(pipeline, ["a red ball bounces"], roles["dummy"])
    for name, policy in roles.items():
        plan, most = plans[name], policies.AT_COST[name]
        expected = damage.plan(dataclasses.replace(policy, num_dummy=plan.num_dummy))
        assert plan.to_fields() == expected.to_fields()
        assert past_frames(plan, 99) <= most
        fewer = damage.plan(dataclasses.replace(policy, num_dummy=plan.num_dummy - 1))
        assert plan.num_dummy == 6 or past_frames(fewer, 99) > most


def test_kinds_of_context(table):
    kinds = {name: one.kinds for name, one in table.items()}
    assert {name for name, count in kinds.items() if count == 1} == {
        *("dense", "window 1+1", "window 1+2", "window 1+3", "window 3+6"),
        *("deep sinks 3+1", "deep sinks 10+8", "key frames 1+1+2", "key frames 1+4+4"),
    }
    assert {name for name, count in kinds.items() if count == 2} >= {"first kept", "first kept, chunk 2"}
    assert kinds["dummy"] == kinds["anchored"] == kinds["forcing-kv"] == 3
    assert {name for name, one in table.items() if one.is_control} == {"dummy, random", "first kept, random"}
    assert {name for name, one in table.items() if one.found == "model"} == {
        *("dummy, damage", "first kept, damage"),
    }


@pytest.mark.slow
def test_every_policy_sees_what_it_says(pipeline, table):
    """Six chunks, 15 past frames, 12 heads in 3 layers, of which half are dummy."""
    plans = {
        name: pipeline.generate("a red ball", num_frames=69, seed=0, **one.options).plan
        for name, one in table.items()
    }
    found = {name: past_frames(plan, 15) for name, plan in plans.items()}
    expected = {
        "dense": 15,
        "window 1+1": 2,
        "window 1+2": 3,
        "window 1+3": 4,
        "window 3+6": 9,
        "deep sinks 3+1": 4,
        "key frames 1+1+2": 4,
        "key frames 1+4+4": 9,
        "deep sinks 10+8": 15,
    }
    assert {name: found[name] for name in expected} == expected
    for name in ("first kept", "first kept, 3", "first kept, chunk 2", "first kept, damage"):
        contexts = [context for row in plans[name].contexts for context in row]
        assert set(contexts) <= {NEAR, HeadContext(1, 3)}
        assert contexts.count(NEAR) >= 6
    assert plans["first kept, chunk 2"].chunk == 2
    assert plans["first kept"].chunk == plans["dummy"].chunk == 1
    # The same heads are dummy, whatever they see then.
    assert plans["first kept"].roles == plans["dummy"].roles
    assert plans["dummy, random"].roles != plans["dummy"].roles
    assert all(context == HeadContext(0, None) for context in plans["forcing-kv"].contexts[0])
    assert found["forcing-kv"] > found["forcing-kv, short"]


def test_a_batch_has_the_noise_of_its_pairs(pipeline, table):
    scenes = benchmark_scenes(2)
    both = policies.make_videos(scenes, 4, 33, table["window 1+1"].options, pipeline)["rows"]
    (second,) = policies.make_videos(scenes[1:], 5, 33, table["window 1+1"].options, pipeline)["rows"]
    assert both[1]["contrast"] == pytest.approx(second["contrast"], abs=1e-3)
    assert both[0]["contrast"] != both[1]["contrast"]
    assert both[1]["cache_bytes"] == second["cache_bytes"], "of one video, whatever the batch is"


def test_jobs_keep_pairs_together(pipeline, plans):
    scenes = tuple(benchmark_scenes(5))
    lengths = [Length(5, 81, scenes), Length(10, 165, scenes[:3])]
    names = ["dense", "dummy, random"]
    jobs = policies.video_jobs(pipeline.files, plans, lengths, names, batch=2)
    assert [*jobs] == [
        (seconds, start, name)
        for seconds, start in ((10, 0), (5, 0), (10, 2), (5, 2), (5, 4))
        for name in names
    ]
    work = {key: job.work.args for key, job in jobs.items() if isinstance(job.work, partial)}
    assert work[5, 2, "dense"][:3] == (scenes[2:4], 2, 81)
    assert work[10, 2, "dense"][:3] == (scenes[2:3], 2, 165)
    assert [work[5, start, "dummy, random"][3]["policy"].seed for start in (0, 2, 4)] == [0, 2, 4]
    assert len({job.name for job in jobs.values()}) == len(jobs)


@pytest.mark.parametrize("motion", ["left", "grow", "bounce"])
def test_the_end_of_the_truth_is_right(motion):
    """What slides or grows stands still at the end; its color, shape and number are right."""
    scene = prompt_scene(("red", "square", motion), np.random.default_rng(0))
    frames = (render([scene], 165, 96)[0] * 255).byte().permute(0, 2, 3, 1).numpy()
    assert policies.verdicts_at_end(frames[-81:], scene) == [True] * 3
    other = prompt_scene(("blue", "ball", motion), np.random.default_rng(0))
    assert policies.verdicts_at_end(frames[-81:], other) == [False, False, True]


def test_no_job_begins_when_the_time_is_up(tmp_path):
    jobs = [Job(name, partial(print)) for name in "ab"]  # type: ignore[arg-type]
    (tmp_path / "journal").write_text('{"job": "a", "result": {"x": 1}}\n')
    with Workers("no-such-model", ["cpu"], 1) as workers:
        found = list(workers.run(jobs, tmp_path / "journal", until=time.monotonic() - 1))
    assert found == [("a", {"x": 1})]


@pytest.mark.slow
def test_jobs_that_wait_are_left_when_the_time_is_up(folder, tmp_path):
    """The process starts longer than there is time: what is in hand is finished, the rest is not begun."""
    work = partial(policies.make_videos, benchmark_scenes(1), 0, 9, {"policy": "dense"})
    jobs = [Job(f"job {number}", work) for number in range(8)]
    with Workers(str(folder), ["cpu"], 1) as workers:
        found = dict(workers.run(jobs, tmp_path / "journal", until=time.monotonic() + 0.5))
    assert list(found) == ["job 0"]
    assert {name for name, _ in read_journal(tmp_path / "journal")} == set(found)


# --- the results and the page ---------------------------------------------------------------------------


def row(right: int, **more: Any) -> dict[str, Any]:
    blank = {field.name: None for field in dataclasses.fields(SceneMeasures)}
    return {
        **blank,
        "reasons": (),
        "right": right == 4,
        "right_at_end": True,
        "semantic": right / 4,
        "semantic_at_end": 1.0,
        "seam_excess": 0.1,
        "contrast_drift": 0.0,
        "past_frames": 2.0,
        "cache_bytes": 1e6,
        "dummies": 0,
        **more,
    }


@pytest.fixture
def results(table, plans):
    """Two lengths, four pairs: the window is as good as dense, all else is not."""
    lengths = [Length(s, 16 * s, tuple(benchmark_scenes(4))) for s in (5, 60)]
    found = {}
    for length in lengths:
        for name in table:
            right = 4 if name in ("dense", "window 1+1") else 2
            for start in (0, 2):
                found[length.seconds, start, name] = {"rows": [row(right), row(right)]}
    found[60, 2, "dense"] = {"rows": [row(4), row(3)]}
    del found[5, 2, "dummy"]  # then these pairs do not count at 5 s
    times = {name: {"chunk_ms": {"5": 10.0, "60": 20.0}} for name in table}
    return {
        "command": "python",
        "commit": "abc",
        "date": "2026-01-02",
        "device": "a machine",
        "versions": {"torch": "2"},
        "calibrated_on": 3,
        "policies": policies.described(table, times),
        "lengths": policies.summarise(lengths, table, found),
    }


def test_pairs_that_a_policy_lacks_do_not_count(results):
    assert [run["videos"] for run in results["lengths"].values()] == [2, 4]
    assert results["lengths"]["60"]["policies"]["dense"]["right"] == {"whole": "4443", "end": "3333"}
    assert results["lengths"]["60"]["policies"]["dummy"]["right"]["whole"] == "2222"


def test_the_page_has_the_table_and_the_verdict(results):
    text = section(json.loads(json.dumps(results)))
    assert "**The default is `window 1+1`**, at every length." in text
    assert "- 5 s, left by the rule, the simplest first: `window 1+1` (the whole interval holds)." in text
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert all(line.count(" | ") == len(HEADER) - 1 for line in lines)
    dummy = next(line for line in lines if line.startswith("| dummy |"))
    assert "| -50.0 (-50.0 to -50.0) |" in dummy
    assert "-50.0 points (whole)" in dummy
    assert "| 10.0 |" in dummy
    assert section(results) in page({"policies": results})


def test_without_results_there_is_no_section():
    assert "Which policy is the default" not in page({})


@pytest.mark.slow
def test_a_run_goes_on_and_ends_with_the_table(folder, tmp_path, monkeypatch, capsys):
    def run(*more: str) -> None:
        given = ["--model", str(folder), "--workers", "1", "--seconds", "1", "2", "--count", "2", "1"]
        given += ["--batch", "2", "--calibrated-on", "1", "--work", str(tmp_path / "work")]
        monkeypatch.setattr(sys, "argv", ["policies", *given, "--output", str(tmp_path / "out.json"), *more])
        benchmark.main()

    with pytest.raises(SystemExit, match="1 of 1 jobs are left"):
        run("--minutes", "0")
    assert not (tmp_path / "out.json").exists()
    run()
    results = json.loads((tmp_path / "out.json").read_text())
    assert {name: run["videos"] for name, run in results["lengths"].items()} == {"1": 2, "2": 1}
    for about in results["policies"].values():
        assert set(about["chunk_ms"]) == {"1", "2"}
        assert min(about["chunk_ms"].values()) > 0
    assert section(results) in capsys.readouterr().out

    def never(*args: Any) -> Any:
        raise AssertionError("all is done")

    monkeypatch.setattr(policies, "make_videos", never)
    run("--minutes", "0")  # everything is in the journals: no process starts
    again = json.loads((tmp_path / "out.json").read_text())
    assert again["lengths"] == results["lengths"]
    (work,) = (tmp_path / "work").iterdir()
    assert work.name == f"random-{benchmark.digest(folder)}"


def test_another_model_of_the_same_name_has_a_folder_of_its_own(tmp_path):
    digests = set()
    for weights in (b"one", b"two"):
        (tmp_path / "weights").write_bytes(weights)
        digests.add(benchmark.digest(tmp_path))
    assert len(digests) == 2
    assert ModelFiles.open("tiny").folder is not None
