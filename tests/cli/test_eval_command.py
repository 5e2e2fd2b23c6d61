"""`dummyforcing eval` on a random model: naming, shards, resuming, what is refused."""

import json
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from dummyforcing.cli import main
from dummyforcing.errors import UserError
from dummyforcing.evaluation.generate import VideoFolder, parse_shard
from dummyforcing.evaluation.metrics import changes
from dummyforcing.evaluation.suite import aggregate, measure
from dummyforcing.evaluation.vbench import DIMENSIONS, FLICKER
from dummyforcing.media.clips import read_mp4
from dummyforcing.media.video import write_mp4
from dummyforcing.pipeline.pipeline import DummyForcingPipeline, load
from tests.conftest import write_model
from tests.terminal import OnTerminal, believe_in_terminal

PROMPTS = ["a red ball bounces", "a blue cube spins", "a ball on a green floor"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join([*PROMPTS, "", ""]))
    return path


@pytest.fixture
def args(prompts: Path, model_folder: Path, tmp_path: Path) -> list[str]:
    output = tmp_path / "out"
    return ["eval", str(prompts), "-o", str(output), "--model", str(model_folder), "--frames", "21"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def count_made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Notes (prompt, seed) of every video that the pipeline is asked for."""
    made = []
    run = DummyForcingPipeline.run

    def noting(self, request):
        made.append((*request.prompts, request.seed))
        return run(self, request)

    monkeypatch.setattr(DummyForcingPipeline, "run", noting)
    return made


def test_videos_measures_and_manifest(args, tmp_path, model_folder, capsys, count_made, monkeypatch):
    believe_in_terminal(monkeypatch)
    assert main([*args, "--samples", "2", "--seed", "5"]) == 0
    out = tmp_path / "out"
    assert names(out) == ["manifest.json", "measures", "metrics.json", "videos"]
    expected = sorted(f"{prompt}-{i}.mp4" for prompt in PROMPTS for i in (0, 1))
    assert names(out / "videos") == expected
    assert sorted(count_made) == sorted((prompt, 5 + i) for prompt in PROMPTS for i in (0, 1))

    # The video is that of `generate` with its seed, and what is measured is what the file shows.
    load(model_folder, device="cpu").generate(PROMPTS[1], num_frames=21, seed=6).save(tmp_path / "same.mp4")
    assert (out / "videos" / f"{PROMPTS[1]}-1.mp4").read_bytes() == (tmp_path / "same.mp4").read_bytes()
    results = json.loads((out / "metrics.json").read_text())
    rows = {name: measure(read_mp4(out / "videos" / name)) for name in expected}
    assert results["videos"][expected[0]]["sharpness"] == rows[expected[0]].sharpness
    groups = [name[:-6] for name in results["videos"]]
    assert results["measures"] == aggregate([rows[n] for n in results["videos"]], groups=groups)
    assert results["measures"]["flicker"]["n"] == 3
    raw = np.mean([1 - changes(read_mp4(out / "videos" / name)).mean() for name in expected])
    flicker = results["temporal_flickering"]
    assert flicker["raw"] == pytest.approx(raw)
    assert flicker["normalised"] == pytest.approx((raw - 0.6293) / (1 - 0.6293))

    manifest = json.loads((out / "manifest.json").read_text())
    settings = manifest["settings"]
    assert settings["seeds"] == [5, 6]
    assert (settings["model"], settings["policy"], settings["size"]) == ("random", "dummy", [32, 48])
    assert len(settings["prompts_sha256"]) == 64
    assert {"commit", "versions", "device", "date"} <= manifest.keys()
    printed = capsys.readouterr()
    assert "VBench total" not in printed.out
    assert "not computed: all 16 dimensions" in printed.out
    assert "VBench_full_info.json was not given" in printed.out
    assert "6/6" in printed.err


def test_a_finished_folder_loads_no_model(args, capsys, count_made):
    assert main([*args, "--samples", "1"]) == 0
    made = len(count_made)
    assert main([*args, "--samples", "1"]) == 0
    assert len(count_made) == made == 3


def test_resuming_after_an_interruption(args, tmp_path, capsys, monkeypatch):
    """Interrupted while the second file is written: one video is left; a second run makes the others."""
    from dummyforcing.evaluation import generate

    calls = []

    def interrupted(path, frames, fps):
        calls.append(path)
        if len(calls) == 2:
            # As the writer does on Ctrl-C: the part under the name it was given.
            write_mp4(path, frames[:5], fps)
            raise KeyboardInterrupt
        write_mp4(path, frames, fps)

    monkeypatch.setattr(generate, "write_mp4", interrupted)
    assert main([*args, "--samples", "1"]) == 130
    out = tmp_path / "out"
    told = f"1 of 3 videos are in {out / 'videos'}; the same command goes on.\nInterrupted.\n"
    assert capsys.readouterr().err.endswith(told)
    assert names(out) == ["manifest.json", "measures", "videos"]
    assert names(out / "videos") == [f"{PROMPTS[0]}-0.mp4"]
    stamp = (out / "videos" / f"{PROMPTS[0]}-0.mp4").stat().st_mtime_ns
    assert main([*args, "--samples", "1"]) == 0
    assert len(calls) == 4
    assert {path.parent for path in calls} == {
        out
    }  # not among the videos, where a killed process would leave it
    assert (out / "videos" / f"{PROMPTS[0]}-0.mp4").stat().st_mtime_ns == stamp
    assert all(len(read_mp4(path)) == 21 for path in (out / "videos").iterdir())
    assert len(names(out / "videos")) == 3


def test_a_new_video_has_no_old_measures(args, tmp_path, monkeypatch):
    assert main([*args, "--samples", "1"]) == 0
    out = tmp_path / "out"
    (out / "videos" / f"{PROMPTS[0]}-0.mp4").unlink()

    def interrupted(self, *_):
        raise KeyboardInterrupt

    monkeypatch.setattr(VideoFolder, "measure", interrupted)
    assert main([*args, "--samples", "1"]) == 130
    assert (out / "videos" / f"{PROMPTS[0]}-0.mp4").exists()
    assert names(out / "measures") == sorted(f"{prompt}-0.mp4.json" for prompt in PROMPTS[1:])


@pytest.mark.slow
def test_a_killed_process_leaves_whole_videos(args, tmp_path):
    run = OnTerminal([sys.executable, "-m", "dummyforcing", *args, "--samples", "50"])
    run.wait_for(r" ([2-9]|[1-9]\d+)/150 ")
    run.process.send_signal(signal.SIGKILL)
    run.finish()
    videos = list((tmp_path / "out" / "videos").iterdir())
    assert 2 <= len(videos) < 150
    assert all(video.suffix == ".mp4" and len(read_mp4(video)) == 21 for video in videos)


def test_shards_share_the_work(args, tmp_path, capsys, count_made):
    parts = []
    for shard in range(3):
        count_made.clear()
        assert main([*args, "--samples", "2", "--shard", f"{shard}/3"]) == 0
        parts.append(list(count_made))
        assert (tmp_path / "out" / "metrics.json").exists() == (shard == 2)
    assert [len(part) for part in parts] == [2, 2, 2]
    assert len({job for part in parts for job in part}) == 6
    assert "2 of 6 videos are there" in capsys.readouterr().out


def test_other_settings_are_refused(args, tmp_path, capsys, prompts):
    folder = VideoFolder(tmp_path / "out")
    assert main([*args, "--samples", "1"]) == 0
    before = (folder.path / "manifest.json").read_text()
    capsys.readouterr()
    assert main([*args, "--samples", "1", "--policy", "dense", "--seed", "1"]) == 2
    message = capsys.readouterr().err
    assert 'policy was "dummy", now "dense"; seeds was [0], now [1]' in message
    prompts.write_text("another prompt")
    assert main([*args, "--samples", "1"]) == 2
    assert "prompts_sha256 was" in capsys.readouterr().err
    assert (folder.path / "manifest.json").read_text() == before
    (folder.path / "manifest.json").write_text("{}")
    assert main([*args, "--samples", "1"]) == 2


def test_extended_prompts_are_what_the_model_gets(args, tmp_path, count_made):
    longer = tmp_path / "longer.txt"
    longer.write_text("\n".join(f"{prompt} on a floor" for prompt in PROMPTS))
    assert main([*args, "--samples", "1", "--extended", str(longer)]) == 0
    assert [text for text, _ in count_made] == [f"{prompt} on a floor" for prompt in PROMPTS]
    assert names(tmp_path / "out" / "videos") == sorted(f"{prompt}-0.mp4" for prompt in PROMPTS)


def test_dimensions_choose_prompts_and_samples(args, tmp_path, prompts, count_made, capsys):
    info = tmp_path / "info.json"
    entries = [
        {"prompt_en": PROMPTS[0], "dimension": [FLICKER]},
        {"prompt_en": PROMPTS[1], "dimension": ["color", "scene"]},
        {"prompt_en": PROMPTS[2], "dimension": ["human_action"]},
    ]
    info.write_text(json.dumps(entries))
    chosen = ["--vbench-info", str(info), "--dimension", FLICKER, "scene"]
    assert main([*args, "--frames", "9", "--samples", "2", *chosen]) == 0
    assert sorted(count_made) == sorted(
        [(PROMPTS[0], i) for i in range(25)] + [(PROMPTS[1], i) for i in range(2)]
    )
    results = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert results["temporal_flickering"]["videos"] == 5
    assert "not installed" in results["vbench"]["not_computed"]["scene"]
    assert results["vbench"]["not_computed"]["color"] == "it was not asked for"
    assert results["vbench"]["total"] is None


def test_existing_scores(tmp_path, capsys):
    raw = {name: [dimension.high, []] for name, dimension in DIMENSIONS.items()}
    path = tmp_path / "all_eval_results.json"
    path.write_text(json.dumps(raw))
    assert main(["eval", "--scores", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "VBench total: 100.00" in printed
    assert "not computed" not in printed
    path.write_text(json.dumps({"scene": 0.4111}))
    assert main(["eval", "--scores", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "50.00%" in printed
    assert "VBench total: not all" in printed
    assert "subject_consistency, background_consistency" in " ".join(printed.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "either too little or too much to do; give a file of prompts"),
        (["p.txt", "--scores", "x"], "either too little or too much to do; give a file of prompts"),
        (["nothing.txt"], "prompts nothing.txt cannot be read"),
        (["p.txt", "--shard", "4/4"], "hard '4/4'"),
        (["p.txt", "--samples", "0"], "0 samples"),
        (["p.txt", "--dimension", "fun"], "no dimension 'fun'"),
        (
            ["p.txt", "--dimension", "color"],
            "--dimension needs to know what prompts a dimension has; give --vbench-info.",
        ),
        (["p.txt", "--frames", "20"], "take 9 or 21"),
        (["p.txt", "--extended", "two.txt"], "has 2 lines and p.txt 1"),
        (["two.txt", "--policy", "lazy"], "lazy"),
        (["--scores", "nothing.json"], "does not hold"),
    ],
)
def test_what_is_refused(options, message, tmp_path, monkeypatch, model_folder, capsys):
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("a ball")
    Path("two.txt").write_text("a ball\na cube")
    assert main(["eval", *options, "--model", str(model_folder)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert message in error
    assert names(tmp_path) == ["p.txt", "two.txt"]  # nothing was begun


def test_shard():
    assert parse_shard("3/4") == (3, 4)
    for text in ("", "1", "1/0", "-1/2", "a/b", "2/2"):
        with pytest.raises(UserError, match="shard"):
            parse_shard(text)


def test_damaged_files_are_named(args, tmp_path, capsys):
    assert main([*args, "--samples", "1"]) == 0
    measures = tmp_path / "out" / "measures" / f"{PROMPTS[0]}-0.mp4.json"
    measures.write_text("{")
    assert main([*args, "--samples", "1"]) == 2
    assert "delete it and run again" in capsys.readouterr().err
    measures.unlink()
    (tmp_path / "out" / "videos" / f"{PROMPTS[0]}-0.mp4").write_bytes(b"no video")
    assert main([*args, "--samples", "1"]) == 2
    assert "cannot be read as a video" in capsys.readouterr().err


def test_the_examples_of_the_help_are_in_it(capsys):
    with pytest.raises(SystemExit):
        main(["eval", "--help"])
    printed = capsys.readouterr().out
    for flag in ("samples", "shard", "extended", "vbench-info", "dimension", "scores", "download-networks"):
        assert f"--{flag} " in printed
    assert "--scores evaluation_results" in printed


def test_another_model_is_other_settings(args, tmp_path, capsys):
    assert main([*args, "--samples", "1"]) == 0
    write_model(tmp_path / "other", seed=1)
    assert main([*args, "--samples", "1", "--model", str(tmp_path / "other")]) == 2
    assert 'model was "random", now "other"' in capsys.readouterr().err
