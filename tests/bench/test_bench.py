"""`dummyforcing bench`: counted work against what torch counts, plans, turns, and what is refused."""

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import termios
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dummyforcing.bench import run as bench_run
from dummyforcing.bench.candidates import EncodedPrompt, build_candidates, random_model
from dummyforcing.bench.flops import Flops, Work
from dummyforcing.bench.measure import Diffusion, EndToEnd, Record
from dummyforcing.bench.plans import fixture_plan, plan_of
from dummyforcing.bench.rates import matmul_rate
from dummyforcing.bench.run import Benchmark, Settings, configurations, one_by_one
from dummyforcing.bench.summary import Rates, summarise
from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.checkpoints.transformer import WAN_SIZES
from dummyforcing.cli import main
from dummyforcing.cli.serve import require_server_packages
from dummyforcing.client.viewers import measure_viewers
from dummyforcing.errors import UserError
from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.method.policy import parse_policy
from dummyforcing.pipeline.request import make_request
from dummyforcing.runtime.apart import run_apart
from dummyforcing.sampling.block import BlockSampler
from tests.oracles import SCHEDULE, SHAPE, random_plan, small_model, small_prompt

CPU = torch.device("cpu")
TOKENS = SHAPE[1] * SHAPE[2] // 4


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("local_attention_size", [None, 9])
def test_counted_work_is_what_torch_counts(seed: int, local_attention_size: int | None) -> None:
    """Of whole chunks, with a random plan; but torch also sees the last queries of the commit pass."""
    model = small_model(layers=2, heads=3)
    pool = [HeadContext(1, 0), HeadContext(0, 1), HeadContext(2, 3), HeadContext(0, None)]
    plan = random_plan(2, 3, seed, pool)
    prompt, policy = small_prompt(model), parse_policy("dense")
    sampler = BlockSampler(
        model, prompt, policy, SCHEDULE, (1, *SHAPE), plan=plan, local_attention_size=local_attention_size
    )
    work = Work(model.config, TOKENS, sampler.chunk_frames, local_attention_size)
    for past in range(0, 15, 3):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            sampler.next_chunk()
        unread = 2 * sampler.chunk_frames * TOKENS * model.config.dim**2
        assert work.chunk(plan, past, len(SCHEDULE.sigmas)).total + unread == counter.get_total_flops()


def test_self_attention_is_the_sum_over_heads_and_frames() -> None:
    """Brute force: every query with every key of every frame that is in the groups of a rollout."""
    model = small_model(layers=2, heads=3)
    seen: Counter[tuple[int, int | None]] = Counter()

    def observer(call, layer, q, groups) -> None:
        for group in groups:
            for frames in group.frames:
                seen[call.chunk, call.step] += 4 * q.shape[1] * len(frames) * TOKENS * q.shape[-1]

    plan = random_plan(2, 3, 1, [HeadContext(1, 0), HeadContext(0, 4)])
    sampler = BlockSampler(
        model, small_prompt(model), parse_policy("dense"), SCHEDULE, (1, *SHAPE), plan=plan, observer=observer
    )
    work = Work(model.config, TOKENS, 3)
    for chunk in range(4):
        sampler.next_chunk()
        assert work.forward(plan, 3 * chunk).self_attention == seen[chunk, 1]


def test_the_work_of_the_real_model_at_480p() -> None:
    """2.5 GFLOP of linear maps per token, as counted by hand; dense attention grows with the past."""
    config = WAN_SIZES["1.3B"]
    work = Work(config, 30 * 52, 3)
    dense = Plan.uniform(30, 12, HeadContext(0, None))
    assert work.forward(dense, 0).linear / (3 * 1560) == pytest.approx(2.5e9, rel=0.01)
    growth = work.forward(dense, 18).self_attention / work.forward(dense, 0).self_attention
    assert growth == 7
    fixture = work.forward(fixture_plan(30, 12), 18)
    assert fixture.self_attention == 4 * 4680 * 1560 * 128 * (270 * 4 + 90 * 6)


def test_fixture_plan() -> None:
    plan = fixture_plan(30, 12)
    assert plan.counts == {"dummy": 180, "sink": 90, "neighbor": 90}
    assert plan == fixture_plan(30, 12)
    assert {role: (c.sink, c.recent) for role, c in plan.table.items()} == {
        "dummy": (0, 1),
        "sink": (1, 0),
        "neighbor": (0, 3),
    }
    per_layer = [row.count("dummy") for row in plan.roles]
    assert min(per_layer) < 6 < max(per_layer)
    assert fixture_plan(3, 4).counts == {"dummy": 6, "sink": 3, "neighbor": 3}
    assert fixture_plan(8, 12).counts == {"dummy": 48, "sink": 24, "neighbor": 24}


def test_long_plans() -> None:
    config = WAN_SIZES["1.3B"]
    plan = plan_of("long:90,120", config)
    assert plan is not None
    assert plan.counts == fixture_plan(30, 12).counts
    assert plan.roles == fixture_plan(30, 12).roles
    assert plan.table["neighbor"] == HeadContext(0, 120)
    everything = plan_of("long:30", config)
    assert everything is not None
    assert everything.counts == {"dummy": 220, "sink": 110, "neighbor": 30}
    assert everything.table["neighbor"].recent is None
    assert plan_of("window:3,6", config) is None
    for text, message in (
        ("long", "write long:N,CAP"),
        ("long:a", "write long:N,CAP"),
        ("long:1,2,3", "write long:N,CAP"),
        ("long:361", "361 neighbor heads"),
        ("sparse", "the policies are dense, window, keyframes, dummy, anchored, long, official, native"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            plan_of(text, config)


def test_random_weights_keep_activations_in_range() -> None:
    config = small_model(layers=3, heads=4).config
    model = random_model(config, CPU, torch.float32)
    assert not any(weight.isnan().any() for weight in model.parameters())
    assert all((w == 1).all() for name, w in model.named_parameters() if "norm" in name and "weight" in name)
    again = random_model(config, CPU, torch.float32)
    assert all(map(torch.equal, model.parameters(), again.parameters()))
    sampler = BlockSampler(model, small_prompt(model), parse_policy("dense"), SCHEDULE, (1, *SHAPE))
    assert 0.1 < sampler.next_chunk().std() < 10


def test_rates_and_the_floor() -> None:
    rate = matmul_rate(CPU, torch.float32)
    assert 1e8 < rate < 1e14
    work = Flops(linear=600, self_attention=300, cross_attention=100)
    rates = Rates(plain=10, fp8=20)
    assert rates.floor(work, "none") == 100
    assert rates.floor(work, "linear") == 30 + 30 + 10
    assert rates.floor(work, "all") == 30 + 15 + 10


def test_figures_of_known_times(model_folder: Path) -> None:
    """Three chunks, two videos; the second half is the last two chunks."""
    files = ModelFiles.open(model_folder)
    (engine,) = build_candidates(files, ("none",), CPU, torch.float32, random=False).values()
    request = make_request(files, "a ball", num_frames=33, policy="dense", teacache=[1])
    plan, past = Plan.uniform(3, 4, HeadContext(0, None)), (0, 3, 6)
    record = Record(
        warm_up_s=1.5,
        peak_bytes=None,
        reserved_bytes=None,
        diffusion=[
            Diffusion(seconds, ((plan,),) * 3, past, 1000, None, None)
            for seconds in ((1.0, 0.5, 0.7), (2.0, 0.5, 0.9))
        ],
        end_to_end=[EndToEnd((2.0, 3.0, 5.0), (9, 12, 12), 1.5, None)],
    )
    figures = summarise(record, engine, request, "none", Rates(1e9))
    assert figures["chunk_ms"] == [1500, 500, 800]
    assert figures["fps"] == pytest.approx(12 / 0.65, abs=1e-3)
    assert figures["fps_video"] == pytest.approx(33 / 2.8, abs=1e-3)
    assert figures["latency_ms"] == {"p50": 600, "p99": pytest.approx(894), "chunks": 4}
    assert figures["fps_end_to_end"] == 24 / 3
    assert figures["first_frame_ms"] == 1500
    assert figures["peak_bytes"] is None
    assert (figures["steps"], figures["past_frames"]) == (1, 6)
    work = Work(files.config, 2 * 3, 3)  # 32x48 pixels, 16 per token
    chunks = [work.chunk(plan, frames, 1).total for frames in past[1:]]
    assert figures["tflops"] == pytest.approx(sum(chunks) / 1.3 / 1e12, abs=1e-6)
    assert figures["floor_fraction"] == pytest.approx(sum(chunks) / 1e9 / 1.3, abs=1e-4)


def test_figures_of_a_batch(model_folder: Path) -> None:
    """Two videos in chunks of 2 s together, of 0.5 s and 1 s by themselves, so the batch is slower."""
    files = ModelFiles.open(model_folder)
    (engine,) = build_candidates(files, ("none",), CPU, torch.float32, random=False).values()
    plans = [plan_of("dummy", files.config, seed) for seed in range(2)]
    request = make_request(files, ["a ball"] * 2, num_frames=33, plan=plans)
    alone = one_by_one(request)
    assert [(one.prompts, one.seed, one.plan) for one in alone] == [
        (("a ball",), n, plans[n]) for n in (0, 1)
    ]
    assert one_by_one(alone[0]) == []

    def video(seconds: float, samples: tuple[Plan, ...]) -> Diffusion:
        return Diffusion((seconds,) * 3, (samples,) * 3, (0, 3, 6), 1000, None, None)

    record = Record(
        warm_up_s=1.5,
        peak_bytes=None,
        reserved_bytes=None,
        diffusion=[video(2.0, request.plans)],
        end_to_end=[EndToEnd((2.0, 4.0, 8.0), (9, 12, 12), 1.5, None)],
        alone=[video(0.5, request.plans[:1]), video(1.0, request.plans[1:])],
        alone_end_to_end=[
            EndToEnd((1.0, 2.0, 3.0), (9, 12, 12), 1.0, None),  # 12 frames per second in its second half
            EndToEnd((1.0, 3.0, 5.0), (9, 12, 12), 1.0, None),  # 6
        ],
    )
    figures = summarise(record, engine, request, "none", Rates(1e9))
    assert (figures["fps"], figures["fps_video"], figures["fps_end_to_end"]) == (12, 11, 8)
    assert figures["one_after_another"] == {
        "fps": 16,
        "fps_video": pytest.approx(66 / 4.5, abs=1e-4),
        "fps_end_to_end": 8,
    }
    work = Work(files.config, 2 * 3, 3)
    assert figures["tflop_per_chunk"] == pytest.approx(
        sum(work.chunk(plan, 6, 2).total for plan in request.plans) / 1e12
    )


def test_configurations() -> None:
    size = (32, 48)
    rows = configurations(Settings((size,), ("dummy",), ("none", "linear"), (1,), compare=True))
    assert [(row.policy, row.fp8, row.skip_steps) for row in rows] == [
        ("dense", "none", ()),
        ("dummy", "none", ()),
        ("dummy", "none", (1,)),
        ("dummy", "linear", ()),
        ("dummy", "linear", (1,)),
    ]
    asked = configurations(Settings((size, size), ("dense", "dummy"), ("none", "all"), compare=True))
    assert [(row.policy, row.fp8) for row in asked] == [
        ("dense", "none"),
        ("dense", "all"),
        ("dummy", "none"),
        ("dummy", "all"),
    ]


@pytest.mark.slow
def test_videos_take_turns(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows of a size make one video each before any makes its next; the GPU's state drifts for all."""
    monkeypatch.setattr(bench_run, "matmul_rate", lambda device, dtype: 1e9)
    settings = Settings(((32, 48), (32, 32)), ("dense", "dummy"), frames=9, repeats=2, warm_up_chunks=1)
    benchmark = Benchmark(ModelFiles.open(model_folder), settings, CPU, torch.float32, random=False)
    told: list[str] = []
    results = benchmark.run(told.append)
    size, kinds = "48x32", ("diffusion", "end to end")
    turns = [f"{size}, {policy}: {kind}" for policy in ("dense", "dummy") for kind in kinds]
    warm = [f"{size}, {policy}: warm-up" for policy in ("dense", "dummy")]
    assert told == [text.replace(size, s) for s in (size, "32x32") for text in warm + 2 * turns]
    assert len(told) == benchmark.videos
    rows = results["configurations"]
    assert isinstance(rows, list)
    assert [(row["size"], row["policy"]) for row in rows] == [
        ([height, width], policy) for height, width in settings.sizes for policy in ("dense", "dummy")
    ]


def test_an_encoded_prompt() -> None:
    embeddings = torch.randn(1, 5, 4)
    encoder = EncodedPrompt(embeddings)
    assert torch.equal(encoder.encode(["a", "b"]), embeddings.expand(2, 5, 4))
    assert encoder.unknown_words("anything") == []


def test_command(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "bench.json"
    options = ["--model", str(model_folder), "--frames", "33", "--repeats", "1", "-o", str(output)]
    assert main(["bench", *options, "--skip-steps", "1", "--compare"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]
    printed = capsys.readouterr().out
    for text in ("48x32", "dense", "dummy", "steps", "of floor", "x as fast as dense", "first pixel frame"):
        assert text in printed
    results = json.loads(output.read_text())
    for key in ("command", "commit", "date", "device", "versions", "matmul_tflops", "schedule"):
        assert results[key]
    assert (results["model"], results["weights"], results["pixel_frames"]) == ("random", "real", 33)
    dense, dummy, skipping = results["configurations"]
    assert (dense["policy"], dummy["policy"], skipping["skip_steps"]) == ("dense", "dummy", [1])
    assert (dummy["steps"], skipping["steps"]) == (2, 1)
    assert dummy["heads"]["dummy"] == {"heads": 6, "sink": 0, "recent": 1}
    assert skipping["tflop_per_chunk"] < dummy["tflop_per_chunk"] < dense["tflop_per_chunk"]
    assert dummy["cache_bytes"] < dense["cache_bytes"]
    for row in results["configurations"]:
        assert len(row["chunk_ms"]) == 3
        assert all(math.isfinite(row[key]) and row[key] > 0 for key in ("fps", "fps_video", "fps_end_to_end"))
        assert row["first_frame_ms"] > 0


@pytest.mark.slow
def test_random_weights_of_a_public_model() -> None:
    """No file is read: the transformer's sizes are small ones here, the VAE's are Wan's."""
    files = ModelFiles.open("self-forcing")
    small = dataclasses.replace(small_model().config, in_dim=16, out_dim=16)
    files = dataclasses.replace(
        files, config=small, parameters={"transformer": 1, "text_encoder": 0, "vae": 1}
    )
    settings = Settings(((16, 16),), frames=9, repeats=1)
    results = Benchmark(files, settings, CPU, torch.float32, random=True).run()
    rows = results["configurations"]
    assert isinstance(rows, list)
    (row,) = rows
    assert (results["weights"], row["steps"]) == ("random", 4)
    assert row["fps"] > row["fps_end_to_end"] > 0


def test_a_batch_in_turns_with_its_videos(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_run, "matmul_rate", lambda device, dtype: 1e9)
    output = tmp_path / "b.json"
    options = ["--model", str(model_folder), "--frames", "9", "--repeats", "1", "--batch", "1", "2"]
    assert main(["bench", *options, "-o", str(output)]) == 0
    printed = capsys.readouterr().out
    one, two = json.loads(output.read_text())["configurations"]
    assert (one["batch"], two["batch"]) == (1, 2)
    assert "one_after_another" not in one
    assert set(two["one_after_another"]) == {"fps", "fps_video", "fps_end_to_end"}
    assert two["cache_bytes"] == 2 * one["cache_bytes"]
    assert two["tflop_per_chunk"] == pytest.approx(2 * one["tflop_per_chunk"], rel=1e-2)
    gain = two["fps"] / two["one_after_another"]["fps"]
    assert f"{gain:.2f}x" in printed


def test_diffusion_alone(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", str(model_folder), "--frames", "9", "--repeats", "1", "--policies", "window:1,1"]
    assert main(["bench", *options, "--no-vae", "-o", str(tmp_path / "b.json")]) == 0
    (row,) = json.loads((tmp_path / "b.json").read_text())["configurations"]
    assert "fps_end_to_end" not in row
    assert "first_frame_ms" not in row
    assert row["heads"] == {"uniform": {"heads": 12, "sink": 1, "recent": 1}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sizes", "4k"], "take 480p, 720p, 1080p, or width x height"),
        (["--sizes", "100x64"], "nearest is 96x64"),
        (["--policies", "sparse"], "There is no policy 'sparse' to measure"),
        (["--policies", "window:1"], "window:"),
        (["--frames", "80"], "take 69 or 81"),
        (["--repeats", "0"], "take 1 or more"),
        (["--warm-up-chunks", "0"], "take 1 or more"),
        (["--batch", "0"], "take 1 or more"),
        (["--skip-steps", "0"], "the first one always runs; take 1 to 1"),
        (["--skip-steps", "2"], "take 1 to 1"),
        (["--model", "krea-realtime"], "take a model of sampler 'block'"),
        (["--sizes", "99984x99984"], "GB of memory"),
    ],
)
def test_what_cannot_be_measured(
    model_folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["bench", "--model", str(model_folder), *options]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("Error: ")
    assert message in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_fp8_needs_a_gpu(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--model", str(model_folder), "--fp8", "none", "linear"]) == 2
    assert "FP8 needs a GPU" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_leaves_nothing(model_folder: Path, tmp_path: Path) -> None:
    args = ["bench", "--model", model_folder, "--frames", 9 + 12 * 50, "-o", tmp_path / "b.json"]
    command = [sys.executable, "-m", "dummyforcing", *map(str, args)]
    terminal, theirs = os.openpty()  # its progress is shown on a terminal only
    termios.tcsetwinsize(terminal, (24, 80))
    process = subprocess.Popen(command, stderr=theirs, stdout=subprocess.DEVNULL)
    os.close(theirs)
    seen = b""
    while b"diffusion" not in seen:
        seen += os.read(terminal, 4096)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    with suppress(OSError):  # the terminal ended with the process
        while part := os.read(terminal, 4096):
            seen += part
    os.close(terminal)
    assert seen.rstrip().endswith(b"Interrupted.")
    assert list(tmp_path.iterdir()) == []


def test_viewers_watch(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A server of real connections: a small model has time for two, and both see all of their seconds."""
    output = tmp_path / "v.json"
    options = [
        "--model",
        str(model_folder),
        "--viewers",
        "1",
        "2",
        "--seconds",
        "1",
        "--policies",
        "window:1,1",
    ]
    assert main(["bench", *options, "-o", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "random, 48x32, window:1,1: a chunk takes" in printed
    results = json.loads(output.read_text())
    assert (results["weights"], results["policy"], results["size"]) == ("real", "window:1,1", "48x32")
    assert [row["viewers"] for row in results["rows"]] == [1, 2]
    assert results["admits"] >= 1
    assert 0 < results["first_picture_alone_s"]["p50"] < 5
    for row in results["rows"]:
        assert 0 < row["first_picture_s"]["p50"] <= row["first_picture_s"]["max"]
        assert 0 <= row["slowed_s"]["p50"] <= row["seconds"]
        assert 0 <= row["stalled_seconds"] <= row["viewers"] * row["seconds"] + 1


def test_viewers_of_a_model_without_a_text_encoder(model_folder: Path) -> None:
    """As one of random weights is."""
    files = ModelFiles.open(model_folder)
    built = run_apart(lambda: build_candidates(files, ("none",), CPU, torch.float32, random=False))
    found = measure_viewers(built["none"].pipeline, [1], 0.1, {}, starts=1)
    assert found["rows"][0]["viewers"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--viewers", "0"], "take 1 viewer or more"),
        (["--viewers", "1", "--seconds", "0"], "take more than 0"),
        (["--viewers", "1", "--no-vae"], "made one by one, with the VAE; leave the rest out"),
        (["--viewers", "1", "--batch", "4"], "made one by one, with the VAE; leave the rest out"),
        (["--viewers", "1", "--sizes", "48x32", "64x64"], "watch videos of one kind; give one size"),
        (["--viewers", "1", "--gpus", "1", "2"], "watch videos of one kind; give one gpus"),
    ],
)
def test_what_viewers_cannot_watch(
    model_folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["bench", "--model", str(model_folder), *options]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_viewers_need_the_server(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(
        require_server_packages.__globals__, "find_spec", lambda name: None if name == "uvicorn" else name
    )
    assert main(["bench", "--model", str(model_folder), "--viewers", "1"]) == 2
    assert (
        "not installed: uvicorn; get them with pip install 'dummyforcing[server]'" in capsys.readouterr().err
    )
