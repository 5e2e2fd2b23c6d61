"""Free rollouts of many variants, jobs that go on after an interruption, and the page's verdicts."""

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.evaluation.world.measures import SceneMeasures
from dummyforcing.method.criteria import choose_dummies
from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.method.policy import parse_policy
from dummyforcing.pipeline.pipeline import load
from research.studies import study
from research.studies.damage import damage_jobs
from research.studies.jobs import Job, Workers, read_journal
from research.world.world import prompt_scene
from tests.conftest import write_model

ROOT = Path(__file__).parents[2]
PLANS = {"measured plan": Plan.uniform(3, 4, HeadContext(0, 2), "measured")}
SCENES = tuple(
    prompt_scene(kind, np.random.default_rng(0))
    for kind in (("red", "ball", "bounce"), ("blue", "ball", "bounce"))
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The small model, with square videos."""
    folder = tmp_path_factory.mktemp("study") / "random"
    write_model(folder, size=(32, 32))
    return folder


@pytest.fixture(scope="module")
def pipeline(folder):
    return load(folder, device="cpu")


def run_of(*names):
    return study.Run("test", 33, SCENES, 2, names, PLANS, batch=2)


@pytest.fixture(scope="module")
def rows(pipeline):
    """Every variant, of one video of three chunks."""
    run = run_of(*study.variants(pipeline.files, PLANS))
    found = json.loads(json.dumps(study.make_rows(SCENES[:1], 0, run, pipeline)))
    assert found["first"] == 0
    return {name: row for name, (row,) in found["rows"].items()}


@pytest.mark.slow
def test_every_variant_keeps_the_frames_that_it_says(rows):
    """6 past frames in the last chunk, 12 heads, of which 6 are dummy."""
    expected = {
        "dense": 6,
        "window 3+6": 6,
        "window 1+1": 2,
        "window 0+2": 2,
        "removal": 3,
        "removal, packed": 3.5,
        "measured plan": 2,
        "chunk 3": 6,
    }
    assert {name: rows[name]["past_frames"] for name in expected} == expected
    for name, row in rows.items():
        no_roles = name.startswith(("dense", "window", "measured")) or name == "chunk 3"
        if name != "current > 80%":
            assert row["dummies"] == {"25% dummy": 3, "75% dummy": 9}.get(name, 0 if no_roles else 6), name
    assert rows["dummy"]["past_frames"] - rows["roles, not packed"]["past_frames"] == 0.5
    assert rows["anchored"]["past_frames"] - rows["dummy"]["past_frames"] == 1
    assert rows["neighbor 9"]["past_frames"] > rows["neighbor 3"]["past_frames"]


def test_variants_differ_from_dense_and_from_each_other(rows):
    assert rows["dense"]["psnr"] is None
    values = {name: row["psnr"] for name, row in rows.items() if name != "dense"}
    # With three chunks these see all that dense sees.
    assert values.pop("window 3+6") == values.pop("chunk 2") == values.pop("chunk 3") == 100
    assert max(values.values()) < 100
    assert len(set(values.values())) >= len(values) - 5  # six frames are as good as nine, and the like


def test_random_heads_change_with_the_batch_and_have_the_right_number(pipeline):
    plans = []
    for seed in (0, 4):
        options = study.variants(pipeline.files, PLANS, seed)["random heads"].options
        video = pipeline.generate(SCENES[0].prompt, num_frames=33, seed=0, **options)
        plans.append(video.plan)
        dummies = [i for i, role in enumerate(r for row in video.plan.roles for r in row) if role == "dummy"]
        assert dummies == sorted(choose_dummies(torch.tensor(video.plan.scores), 6, "random", seed))
    assert plans[0].roles != plans[1].roles


def test_past_frames_of_a_plan():
    table = {"a": HeadContext(1, 2), "b": HeadContext(0, None), "c": HeadContext(0, 0)}
    plan = Plan(roles=(("a", "b"), ("c", "c")), table=table, policy="test")
    assert study.past_frames(plan, 10) == 13 / 4
    assert study.past_frames(plan, 2) == 4 / 4


def test_pairs_are_scenes_in_turns_and_seeds_in_order():
    jobs = study.study_jobs(dataclasses.replace(run_of("dense"), repeats=3, batch=4))
    given = [job.work.args for job in jobs if isinstance(job.work, partial)]
    assert len(given) == len(jobs)
    scenes = [scene for args in given for scene in args[0]]
    assert scenes == list(SCENES) * 3
    assert [args[1] for args in given] == [0, 4]
    assert len({job.name for job in jobs}) == 2


def test_summary_pairs_videos_and_counts_prompts_once():
    blank = {field.name: None for field in dataclasses.fields(SceneMeasures)}

    def row(semantic, seam):
        extra = {"psnr": None, "ssim": None, "past_frames": 2.0, "cache_bytes": 1.0, "dummies": 0}
        return {**blank, "reasons": (), "semantic": semantic, "seam_excess": seam, **extra}

    run = dataclasses.replace(run_of("dense", "dummy"), repeats=2)
    late = {"dense": [row(1.0, 1.0), row(0.5, 3.0)], "dummy": [row(1.0, 2.0), row(1.0, 5.0)]}
    early = {"dense": [row(0.5, 1.0), row(0.5, 3.0)], "dummy": [row(0.5, 4.0), row(0.5, 3.0)]}
    results = [{"first": 2, "rows": late}, {"first": 0, "rows": early}]  # as the processes finish

    found = study.summarise_run(run, results, ModelFiles.open("tiny"))["variants"]
    assert found["dense"]["measures"]["semantic"]["mean"] == 0.625
    assert found["dummy"]["measures"]["semantic"]["n"] == 2
    assert found["dummy"]["against_dense"]["seam_excess"]["mean"] == (2.0 + 1.0) / 2
    assert found["dense"]["against_dummy"]["semantic"]["mean"] == -0.125


@pytest.mark.slow
def test_jobs_go_on_where_they_stopped(pipeline, folder, tmp_path):
    """The first job is done, the second was cut off while its line was written."""
    jobs = damage_jobs(["a red ball"] * 3, parse_policy("dummy"), (1,))
    kept, cut, last = (job.name for job in jobs)
    journal = tmp_path / "journal.jsonl"
    journal.write_text(f'{{"job": "{kept}", "result": "kept"}}\n{{"job": "{cut}", "resu')
    with Workers(str(folder), ["cpu"], 1) as workers:
        found: dict[str, Any] = dict(workers.run(jobs, journal))
    assert found[kept] == "kept"
    for job in jobs[1:]:
        assert np.array(found[job.name]["damage"]) == pytest.approx(
            np.array(job.work(pipeline)["damage"]), rel=1e-3
        )
    assert dict(read_journal(journal)) == found
    assert last in found


def test_finished_jobs_need_no_process(tmp_path):
    (tmp_path / "journal.jsonl").write_text('{"job": "a", "result": 1}\n{"job": "other", "result": 2}\n')
    jobs = [Job("a", partial(print))]  # type: ignore[arg-type]
    with Workers("no-such-model", ["cpu"], 1) as workers:
        found: list[tuple[str, Any]] = list(workers.run(jobs, tmp_path / "journal.jsonl"))
    assert found == [("a", 1)]


def test_verdicts_follow_the_intervals():
    from research.pages import verdicts

    def estimate(low, high):
        return {"mean": (low + high) / 2, "interval": [low, high], "n": 9}

    assert verdicts.exceeds(estimate(1.1, 2), 1) == "agrees"
    assert verdicts.exceeds(estimate(0.9, 2), 1) == "open"
    assert verdicts.exceeds(estimate(0.2, 0.9), 1) == "does not agree"
    assert verdicts.no_loss(estimate(-0.004, 0.02)) == "agrees"
    assert verdicts.no_loss(estimate(-0.02, 0.02)) == "open"
    assert verdicts.no_loss(estimate(-0.04, -0.01)) == "does not agree"
    assert verdicts.negated(estimate(1, 3)) == {"mean": -2, "interval": [-3, -1]}
    assert verdicts.worst("agrees", "open") == "open"
    assert verdicts.worst("open", "does not agree", "agrees") == "does not agree"
    assert verdicts.number(estimate(0.1, 0.3), 100) == "20.0 (10.0 to 30.0)"


def test_what_was_not_run_is_said_to_be_not_measured():
    from research.pages.claims import CLAIMS

    assert {claim.row({})[1] for claim in CLAIMS} == {"not measured"}
