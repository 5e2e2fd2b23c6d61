"""The same videos on a GPU."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dummyforcing.attention.attend import attend_side_by_side
from dummyforcing.attention.backends import default_backend, reference
from dummyforcing.attention.split_keys import choose_parts
from dummyforcing.cli import main
from dummyforcing.files.state import read_state, write_state
from dummyforcing.kernels.transfers import Parcel
from dummyforcing.method.policy import parse_policy
from dummyforcing.pipeline.pipeline import load
from dummyforcing.pipeline.request import make_request
from dummyforcing.pipeline.rollout import Rollout
from dummyforcing.runtime.fused import FusedWan
from dummyforcing.sampling.block import BlockSampler, BlockState
from dummyforcing.sampling.guard import Guard
from tests.oracles import SCHEDULE, SHAPE, small_model, small_prompt

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


@pytest.mark.parametrize("policy", ["dense", "dummy"])
@pytest.mark.usefixtures("exact_float32")
def test_a_sampler_gives_what_the_cpu_gives(policy: str) -> None:
    latents, plans = [], []
    for device in ("cpu", "cuda"):
        model = small_model()
        prompt = small_prompt(model, batch=2)
        sampler = BlockSampler(
            model.to(device), prompt, parse_policy(policy), SCHEDULE, (2, *SHAPE), seeds=[0, 1], frames=15
        )
        latents.append(torch.cat(list(sampler), dim=1).cpu())
        plans.append([plan.roles for plan in sampler.plans])
    assert plans[0] == plans[1]
    assert latents[0].std() > 0.1
    torch.testing.assert_close(latents[1], latents[0], atol=1e-3, rtol=0)


@pytest.mark.parametrize("policy", ["dense", "dummy", "window:1,3", "keyframes:1,2,2"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.usefixtures("exact_float32")
def test_the_fused_path_gives_what_the_plain_one_gives(policy: str, batch: int) -> None:
    """Eight chunks: eager passes, a change of the plan, recorded graphs, a new prompt in between."""
    model = small_model(layers=3, heads=4, head_dim=16).to("cuda")
    videos = []
    for fused in (None, FusedWan(model)):
        prompt, seeds = small_prompt(model, batch), range(batch)
        sampler = BlockSampler(
            model, prompt, parse_policy(policy), SCHEDULE, (batch, *SHAPE), seeds=seeds, fused=fused
        )
        chunks = [sampler.next_chunk() for _ in range(5)]
        sampler.set_prompt(small_prompt(model, batch, seed=9))
        videos.append(torch.cat([*chunks, *(sampler.next_chunk() for _ in range(3))], dim=1).cpu())
    assert videos[0].std() > 0.1
    torch.testing.assert_close(videos[1], videos[0], atol=1e-3, rtol=0)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.usefixtures("exact_float32")
def test_heads_are_classified_again_among_recorded_graphs(batch: int) -> None:
    """Plans of chunks 1, 6 and 11, each with two probes and graphs of its own between them."""
    model = small_model(layers=3, heads=4, head_dim=16).to("cuda")
    videos = []
    for fused in (None, FusedWan(model)):
        prompt, guard = small_prompt(model, batch), Guard(every=2, tolerance=0)
        sampler = BlockSampler(
            model,
            prompt,
            parse_policy("dummy"),
            SCHEDULE,
            (batch, *SHAPE),
            seeds=range(batch),
            fused=fused,
            guard=guard,
        )
        videos.append(torch.cat([sampler.next_chunk() for _ in range(14)], dim=1).cpu())
        assert sampler.plan.chunk == 11
    assert videos[0].std() > 0.1
    torch.testing.assert_close(videos[1], videos[0], atol=1e-3, rtol=0)


@pytest.mark.parametrize("policy", ["dense", "dummy", "window:1,3", "keyframes:1,2,2"])
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_samplers_go_on_from_a_state(policy: str, fused: bool, tmp_path: Path) -> None:
    """Bit by bit, from before the classification and from among recorded graphs, new prompt included."""
    model = small_model(layers=3, heads=4, head_dim=16).to("cuda", torch.bfloat16)
    rules = parse_policy(policy), SCHEDULE, (2, *SHAPE)
    options: dict[str, Any] = {"frames": 24, "fused": FusedWan(model) if fused else None}

    def start(seeds: list[int]) -> BlockSampler:
        return BlockSampler(model, small_prompt(model, 2, seed=1 + seeds[0]), *rules, seeds=seeds, **options)

    def advance(sampler: BlockSampler, begin: int) -> torch.Tensor:
        chunks = []
        for number in range(begin, 8):
            if number == 6:
                sampler.set_prompt(small_prompt(model, 2, seed=9))
            chunks.append(sampler.next_chunk())
        return torch.cat(chunks, 1).cpu()

    for begin in (1, 5):
        sampler = start([0, 1])
        for _ in range(begin):
            sampler.next_chunk()
        write_state(tmp_path / "s", "sampler", "1", sampler.state())
        restored = start([7, 8])  # of another prompt and noise, which the state knows better
        restored.load_state(read_state(tmp_path / "s", "sampler", "1", BlockState))
        others = [sampler.fork(), restored]
        expected = advance(sampler, begin)
        assert expected.std() > 0.1
        for other in others:
            assert torch.equal(advance(other, begin), expected)
            assert other.plans == sampler.plans


def test_rollouts_go_on_from_a_file(tmp_path: Path) -> None:
    """Bit by bit, decoding beside denoising included: pixel frames that wait are saved, too."""
    pipeline = load("tiny", device="cuda")

    def start() -> Rollout:
        return pipeline.start(
            "a red ball bounces", num_frames=81, seed=3, switches=[(3.0, "a blue cube spins")]
        )

    whole = [chunk.frames for chunk in start()]
    run = start()
    begun = [run.next_chunk().frames for _ in range(3)]
    run.save(tmp_path / "ball.rollout")
    fork, resumed = run.fork(), pipeline.resume(tmp_path / "ball.rollout")
    for other in (fork, resumed, run):
        rest = [chunk.frames for chunk in other]
        assert np.array_equal(np.concatenate([*begun, *rest], 1), np.concatenate(whole, 1))


@pytest.fixture
def errors_where_the_host_waits() -> Iterator[None]:
    """Copies that wait for all work of the GPU, and questions for its numbers, are errors."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("errors_where_the_host_waits")
def test_videos_in_turns_wait_for_their_frames_alone() -> None:
    """Between two chunks a server holds the first, and goes on with another video; the GPU goes on, too."""
    pipeline = load("tiny", device="cuda")
    runs = [pipeline.start("a red ball bounces", num_frames=None, seed=seed) for seed in (0, 1)]
    for _ in range(5):  # heads are classified, graphs are recorded
        for run in runs:
            run.next_chunk()
    held = [run.fork() for run in runs]
    torch.cuda.set_sync_debug_mode("error")
    for _ in range(3):
        for run in [*runs, *held]:
            assert run.next_chunk().frames.std() > 1
            run.fork()


def test_a_chunk_does_not_wait_until_the_next_one_is_asked_for_after_a_classification() -> None:
    run = load("tiny", device="cuda").start("a red ball bounces", num_frames=None)
    asked = []
    for _ in range(4):
        run.next_chunk()
        asked.append(run.frames // run.request.chunk_frames)
    assert asked == [1, 2, 4, 5]  # heads are classified in the second chunk


def test_decoding_beside_denoising_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the same video with all work in one stream, also where a new prompt comes in between."""
    pipeline = load("tiny", device="cuda")
    request = make_request(
        pipeline.files, "a red ball bounces", num_frames=57, seed=3, switches=[(1.0, "a blue cube spins")]
    )
    beside = list(pipeline.run(request))
    assert beside[-1].timings.wall > 0
    times = [(c.timings.diffusion, c.timings.decode, c.timings.wall) for c in beside]
    assert all(a <= b for one, other in pairwise(times) for a, b in zip(one, other, strict=True))
    assert all(a < b for a, b in zip(times[0], times[-1], strict=True))
    monkeypatch.setattr(pipeline.vae, "moves", True)  # no stream of its own then
    monkeypatch.setattr(pipeline.vae, "_home", torch.device("cuda"))
    for one, other in zip(beside, pipeline.run(request), strict=True):
        assert one.plans == other.plans
        assert np.array_equal(one.frames, other.frames)


def test_the_bundled_model_in_bfloat16() -> None:
    pipeline = load("tiny", device="cuda")
    assert pipeline.dtype == torch.bfloat16
    video = pipeline.generate("a red ball bounces", num_frames=33, seed=3)
    assert video.frames.shape == (33, 160, 160, 3)
    red, green, blue = video.frames[-1].astype(int).transpose(2, 0, 1)
    assert 0.01 < ((red > 160) & (green < 90) & (blue < 90)).mean() < 0.25
    assert video.plan.counts["dummy"] == 48


def test_what_a_benchmark_tells_of_a_gpu(tmp_path: Path) -> None:
    options = ["--model", "tiny", "--frames", "33", "--repeats", "1", "--compare"]
    assert main(["bench", *options, "-o", str(tmp_path / "b.json")]) == 0
    results = json.loads((tmp_path / "b.json").read_text())
    assert results["versions"]["cuda"]
    assert results["matmul_tflops"]["plain"] > 1
    for row in results["configurations"]:
        assert row["cache_bytes"] < row["peak_bytes"] < row["peak_reserved_bytes"] + 2**30
        assert 0 <= row["memory_growth_bytes"] < row["peak_bytes"]
        assert 0 < row["floor_fraction"] < 1


@pytest.mark.parametrize("backend", ["cudnn", "flash4"])
def test_a_long_head_among_short_ones(backend: str) -> None:
    """Its keys are cut into parts; the result is what float64 gives, also from a recorded graph."""
    if backend == "flash4" and default_backend(torch.device("cuda"), torch.bfloat16, 128) != backend:
        pytest.skip("FlashAttention-4 is not installed, or not for this GPU")
    torch.manual_seed(0)
    tokens, heads, width = 640, 12, 128
    q = torch.randn(1, 3 * tokens, heads, width, device="cuda", dtype=torch.bfloat16)
    shapes = ((60 * tokens, 1), (4 * tokens, heads - 1))
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    assert choose_parts(q.shape[1], shapes, processors)[0] > 1
    out = torch.empty_like(q)
    calls, expected, first = [], [], 0
    for keys, count in shapes:
        room = torch.randn(2, 1, keys + tokens, count, width, device="cuda", dtype=torch.bfloat16)
        k, v = room[:, :, :keys]
        heads_here = slice(first, first + count)
        calls.append((q[:, :, heads_here], k, v, out[:, :, heads_here]))
        for head in range(count):
            seen = (q[:, :, [first + head]], k[:, :, [head]], v[:, :, [head]])
            expected.append(reference(*seen))
        first += count
    attend_side_by_side(calls, backend)
    torch.testing.assert_close(out, torch.cat(expected, 2), atol=4e-3, rtol=0.02)
    again, graph = out.clone(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attend_side_by_side(calls, backend)
    out.fill_(float("nan"))
    graph.replay()
    torch.testing.assert_close(out, again, atol=0, rtol=0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("fp8", ["none", "linear"])
def test_two_gpus_make_the_video_of_one(fp8: str) -> None:
    """Within what rounding to bfloat16 makes of a video."""
    videos = []
    for gpus in (1, 2):
        pipe = load("tiny", device="cuda", torch_dtype="bfloat16", fp8=fp8, gpus=gpus)
        videos.append(pipe.generate("a red ball bounces on a green floor", num_frames=45))
        pipe.close()
    assert videos[0].plan.counts == videos[1].plan.counts
    first = [video.frames[:9].astype(float) for video in videos]  # later frames diverge
    assert abs(first[0] - first[1]).mean() < 4


def test_a_parcel_brings_what_was_put_into_it() -> None:
    """Tensors of several types, more than one page of them, by way of memory that is used again at once."""
    parcel, generator = Parcel(torch.device("cuda")), torch.Generator().manual_seed(0)
    given = [
        torch.randint(-1000, 1000, (n % 7 + 1, n), generator=generator).to(dtype)
        for n, dtype in enumerate([torch.int64, torch.int32, torch.uint8] * 70, 1)
    ]
    there = [parcel.add(one) for one in given]
    parcel.send()
    assert sum(one.nbytes for one in given) > parcel.PAGE
    after = Parcel(torch.device("cuda"))
    after.add(torch.zeros(parcel.PAGE, dtype=torch.uint8))
    after.send()
    assert all(torch.equal(a, b.cpu()) for a, b in zip(given, there, strict=True))
