import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.errors import NoSuchDevice, TrainedLengthWarning, UnknownWordsWarning, UserError
from dummyforcing.media.monitor import Monitor
from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.pipeline.devices import choose_device, choose_dtype
from dummyforcing.pipeline.memory import estimate, estimates
from dummyforcing.pipeline.pipeline import DummyForcingPipeline, load
from dummyforcing.pipeline.request import make_request
from dummyforcing.sampling.guard import Guard
from dummyforcing.vae.codec import DecoderStream
from tests.conftest import write_model

CPU = torch.device("cpu")
PROMPT = "a red ball bounces on a green floor"


@pytest.fixture(scope="module")
def pipeline(model_folder: Path) -> DummyForcingPipeline:
    return load(model_folder, device="cpu")


def test_generate(pipeline: DummyForcingPipeline) -> None:
    video = pipeline.generate(PROMPT)
    assert video.frames.shape == (81, 32, 48, 3)
    assert video.frames.dtype == np.uint8
    assert video.frames.std() > 1
    assert video.fps == 16
    assert video.plan.counts["dummy"] == 6
    assert video.timings.pixel_frames == 81
    assert 0 < video.timings.fps < video.timings.fps_without_vae
    parts = video.timings.diffusion + video.timings.decode
    assert 0 < video.timings.first_frame < parts


def test_stream_is_generate(pipeline: DummyForcingPipeline) -> None:
    video = pipeline.generate(PROMPT, num_frames=33)
    chunks = list(pipeline.stream(PROMPT, num_frames=33))
    assert [chunk.frames.shape for chunk in chunks] == [(1, n, 32, 48, 3) for n in (1, 8, 12, 12)]
    assert np.array_equal(np.concatenate([chunk.frames[0] for chunk in chunks]), video.frames)
    assert chunks[-1].plans == (video.plan,)
    assert [chunk.timings.pixel_frames for chunk in chunks] == [1, 9, 21, 33]


def test_a_plan_for_each_video_of_a_batch(pipeline: DummyForcingPipeline) -> None:
    layers, heads = pipeline.files.config.num_layers, pipeline.files.config.num_heads
    plans = [Plan.uniform(layers, heads, context) for context in (HeadContext(0, 1), HeadContext(1, 3))]
    options: dict[str, Any] = {"num_frames": 21, "output_type": "latent"}
    together = pipeline([PROMPT] * 2, plan=plans, seed=5, **options)
    assert list(together.plans) == plans
    for number, plan in enumerate(plans):
        alone = pipeline(PROMPT, plan=plan, seed=5 + number, **options)
        torch.testing.assert_close(together.frames[number], alone.frames[0], rtol=2e-5, atol=2e-5)
    with pytest.raises(UserError, match="2 head plans cannot be those of 3 videos; give one for all"):
        make_request(pipeline.files, [PROMPT] * 3, plan=plans)
    with pytest.raises(UserError, match="0 head plans cannot be those of 1 video; give one"):
        make_request(pipeline.files, PROMPT, plan=[])
    assert make_request(pipeline.files, [PROMPT] * 2, plan=plans[1]).plans == (plans[1],) * 2
    held = [make_request(pipeline.files, PROMPT, plan=plan).cache_frames() for plan in plans]
    assert make_request(pipeline.files, [PROMPT] * 2, plan=plans).cache_frames() == sum(held) / 2


def test_every_chunk_has_the_measures_of_each_video(pipeline: DummyForcingPipeline) -> None:
    chunks = list(pipeline.stream([PROMPT, "a blue cube spins"], num_frames=45))
    for video in range(2):
        monitor = Monitor(pipeline.files.preset.fps, 12)
        for chunk in chunks:
            assert chunk.measures[video] == monitor.see(chunk.frames[video])
    assert chunks[-1].measures[0] != chunks[-1].measures[1]
    assert chunks[-1].measures[0].motion > 0


def test_a_guard_shows_in_the_plans(pipeline: DummyForcingPipeline) -> None:
    guards = None, Guard(every=1, tolerance=0), Guard(every=1, tolerance=1)
    chunks = [list(pipeline.stream(PROMPT, num_frames=69, guard=guard)) for guard in guards]
    found = [[chunk.plans[0].chunk for chunk in stream] for stream in chunks]
    assert found == [[None, None, 1, 1, 1, last, last] for last in (1, 4, 1)]
    for plain, anew, probed in zip(*chunks, strict=True):
        assert np.array_equal(plain.frames, probed.frames)
        assert anew.timings.pixel_frames == plain.timings.pixel_frames
    assert not np.array_equal(chunks[0][-1].frames, chunks[1][-1].frames)


def test_guards_need_roles_and_the_block_loop(pipeline: DummyForcingPipeline) -> None:
    with pytest.raises(UserError, match="take policy dummy, or no guard"):
        pipeline.stream(PROMPT, policy="dense", guard=Guard())
    for name in ("rolling-forcing", "krea-realtime"):
        with pytest.raises(UserError, match="or a model of sampler 'block'"):
            make_request(ModelFiles.open(name), PROMPT, num_frames=81, guard=Guard())


def test_estimate_of_the_cache_of_a_guarded_video(pipeline: DummyForcingPipeline) -> None:
    """Heads that are classified anew all see seven past frames."""
    policy = replace(make_request(pipeline.files, PROMPT).policy, initial=HeadContext(1, 1))
    plain, guarded = (
        make_request(pipeline.files, PROMPT, num_frames=57, policy=policy, guard=guard)
        for guard in (None, Guard())
    )
    assert [plain.cache_frames(), guarded.cache_frames()] == [3 + 3, 7 + 3]
    plan = pipeline.find_plan(plain)
    plain, guarded = (
        make_request(pipeline.files, PROMPT, num_frames=57, plan=plan, guard=guard)
        for guard in (None, Guard())
    )
    assert plain.cache_frames() < guarded.cache_frames() == 10


def test_seed_and_interleaved_streams(pipeline: DummyForcingPipeline) -> None:
    first, second = (pipeline.stream(PROMPT, num_frames=21, seed=seed) for seed in (0, 1))
    frames = [(a.frames[0], b.frames[0]) for a, b in zip(first, second, strict=True)]
    for seed, stream in enumerate(zip(*frames, strict=True)):
        assert np.array_equal(
            np.concatenate(stream), pipeline.generate(PROMPT, num_frames=21, seed=seed).frames
        )
    assert not np.array_equal(frames[0][0], frames[0][1])


@pytest.mark.parametrize("policy", ["dummy", "window:1,2"])
def test_batch_is_its_singles(pipeline: DummyForcingPipeline, policy: str) -> None:
    prompts = [PROMPT, "a blue cube spins", PROMPT]
    videos = pipeline.generate(prompts, num_frames=45, seed=5, policy=policy)
    assert len(videos) == 3
    for i, (prompt, video) in enumerate(zip(prompts, videos, strict=True)):
        single = pipeline.generate(prompt, num_frames=45, seed=5 + i, policy=policy)
        assert single.plan.roles == video.plan.roles
        # Matrix products of other shapes round differently.
        assert np.abs(single.frames.astype(int) - video.frames).max() <= 1
        assert video.timings.pixel_frames == 3 * 45


def test_shipped_plan(pipeline: DummyForcingPipeline, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ships no head plan"):
        make_request(pipeline.files, PROMPT, plan="shipped")
    folder = Path(shutil.copytree(str(pipeline.files.folder), tmp_path / "random"))
    plan = pipeline.find_plan(make_request(pipeline.files, PROMPT, seed=9))
    plan.save(folder / "plan.json")
    one = load(folder, device="cpu").generate(PROMPT, num_frames=21, plan="shipped")
    assert one.plan == plan
    assert np.array_equal(one.frames, pipeline.generate(PROMPT, num_frames=21, plan=plan).frames)
    plan = replace(plan, fingerprint="other")
    plan.save(folder / "plan.json")
    with pytest.raises(UserError, match="made with model other"):
        load(folder, device="cpu").generate(PROMPT, num_frames=21, plan="shipped")


def test_given_plan_is_small_from_the_first_chunk(pipeline: DummyForcingPipeline) -> None:
    plan = pipeline.find_plan(make_request(pipeline.files, PROMPT))
    assert plan == pipeline.generate(PROMPT, num_frames=33).plan
    found = [chunk.cache_bytes for chunk in pipeline.stream(PROMPT, num_frames=45)]
    given = [chunk.cache_bytes for chunk in pipeline.stream(PROMPT, num_frames=45, plan=plan)]
    dense = [chunk.cache_bytes for chunk in pipeline.stream(PROMPT, num_frames=45, policy="dense")]
    assert given == [given[0]] * 5  # the first chunk comes in two parts
    assert found[2:] == given[2:]
    assert found[0] <= 2 * dense[-1] / 4
    assert given[0] < dense[-1]


def test_plan_of_another_model(pipeline: DummyForcingPipeline, tmp_path: Path) -> None:
    write_model(tmp_path / "other", seed=1)
    plan = load(tmp_path / "other", device="cpu").generate(PROMPT, num_frames=21).plan
    with pytest.raises(UserError, match="made with model"):
        pipeline.generate(PROMPT, plan=plan)
    with pytest.raises(UserError, match="2 layers with 4 heads"):
        pipeline.stream(PROMPT, plan=Plan.uniform(2, 4, HeadContext(0, 1)))


def test_find_plan_needs_roles(pipeline: DummyForcingPipeline) -> None:
    with pytest.raises(UserError, match="does not classify"):
        pipeline.find_plan(make_request(pipeline.files, PROMPT, policy="dense"))


def test_policy_defaults_are_the_presets(model_folder: Path) -> None:
    files = ModelFiles.open(model_folder)
    defaults = replace(files.preset.dummy, classify_at_chunk=2, neighbor_frames=6, dummy_fraction=0.25)
    files = replace(files, preset=replace(files.preset, dummy=defaults))
    policy = make_request(files, PROMPT).policy
    assert policy.roles is not None
    assert (policy.classify_at_chunk, policy.dummy_fraction) == (2, 0.25)
    assert HeadContext(0, 6) in policy.roles.values()
    assert make_request(files, PROMPT, dummy_fraction=0.75).policy.dummy_fraction == 0.75
    assert make_request(files, PROMPT, policy="official").policy.classify_at_chunk == 2
    assert not make_request(files, PROMPT, num_frames=21).has_plan
    assert make_request(files, PROMPT, num_frames=33).has_plan


def test_frame_wise_model(model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "frame-wise"))
    preset = json.loads((folder / "preset.json").read_text())
    preset |= {"chunk_frames": 1, "dummy": {"classify_at_chunk": 3}}
    (folder / "preset.json").write_text(json.dumps(preset))
    chunks = list(load(folder, device="cpu").stream(PROMPT, num_frames=25))
    assert [chunk.frames.shape[1] for chunk in chunks] == [1, 4, 4, 4, 4, 4, 4]
    assert "dummy" not in chunks[2].plans[0].counts
    assert chunks[3].plans[0].counts["dummy"] == 6


def test_bfloat16(model_folder: Path) -> None:
    pipeline = load(model_folder, device="cpu", torch_dtype="bfloat16")
    assert pipeline.dtype == torch.bfloat16
    assert pipeline.generate(PROMPT, num_frames=9).frames.shape == (9, 32, 48, 3)


def test_save(pipeline: DummyForcingPipeline, tmp_path: Path) -> None:
    pipeline.generate(PROMPT, num_frames=9).save(tmp_path / "ball.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["ball.mp4"]


def test_unknown_words(pipeline: DummyForcingPipeline) -> None:
    with pytest.warns(UnknownWordsWarning, match=r"does not know the words purple, cat; it knows a, ball, "):
        pipeline.stream(["a purple ball", "a purple cat"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline.stream(PROMPT)


def test_many_known_words_are_not_listed(
    pipeline: DummyForcingPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dummyforcing.pipeline.remarks.LISTED", 3)
    with pytest.warns(UnknownWordsWarning, match="the words Redd, cat; the nearest that it knows: red.$"):
        pipeline.stream("a Redd cat")
    with pytest.warns(UnknownWordsWarning, match="the word qqq; say it in other words.$"):
        pipeline.stream("a qqq")


def test_longer_than_trained_for(pipeline: DummyForcingPipeline) -> None:
    preset = replace(pipeline.files.preset, max_frames=6)
    trained = DummyForcingPipeline.from_parts(
        replace(pipeline.files, preset=preset), pipeline.model, pipeline.text, pipeline.vae
    )
    with pytest.warns(TrainedLengthWarning, match=r"trained for videos of 21 pixel frames; a longer one"):
        trained.stream(PROMPT, num_frames=33)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained.stream(PROMPT, num_frames=21)


def test_library_is_silent(model_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(model_folder, device="cpu").generate(PROMPT, num_frames=9)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 80}, r"80 pixel frames .* take 69 or 81\."),
        ({"size": (100, 50)}, r"Size 50x100 .* nearest is 48x96\."),
        ({"size": (0, 16)}, r"nearest is 16x16\."),
        ({"seed": -1}, r"seed=-1 is out of range; take 0 or more and 9223372036854775807 at most\.$"),
        (
            {"policy": "sparse"},
            "no policy 'sparse'; take dense, window, keyframes, dummy, anchored, long, official, native",
        ),
        ({"policy": "dense", "dummy_fraction": 0.5}, "policy 'dense' has no dummy heads"),
        ({"plan": Plan.uniform(3, 4, HeadContext(0, 1)), "dummy_fraction": 0.5}, "a plan is given"),
        ({"dummy_fraction": 1.5}, r"dummy_fraction=1\.5 is out of range; take 0 or more and 1 at most\.$"),
        ({"size": (2**16, 2**16)}, r"needs about [\d.]+ GB of memory \([\d.]+ GB KV cache, [\d.]+ GB act"),
    ],
)
def test_bad_requests(pipeline: DummyForcingPipeline, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pipeline.stream(PROMPT, **options)


@pytest.mark.parametrize("prompt", ["", "  \n", [], ["a red ball", ""]])
def test_empty_prompt(pipeline: DummyForcingPipeline, prompt: str | list[str]) -> None:
    with pytest.raises(UserError, match="prompt is empty"):
        pipeline.stream(prompt)


@pytest.mark.parametrize("policy", ["dense", "window:1,2", "keyframes:1,2,3", "plan"])
def test_estimate_of_the_cache_is_exact(pipeline: DummyForcingPipeline, policy: str) -> None:
    plan = pipeline.generate(PROMPT, num_frames=21).plan if policy == "plan" else None
    request = make_request(
        pipeline.files, PROMPT, num_frames=57, policy="dummy" if plan else policy, plan=plan
    )
    chunks = list(pipeline.run(request))
    assert estimate(pipeline.files, request, torch.float32).cache == chunks[-1].cache_bytes
    assert estimate(pipeline.files, request, torch.bfloat16).cache == chunks[-1].cache_bytes / 2


def test_estimate_bounds_the_cache_of_a_classified_video(pipeline: DummyForcingPipeline) -> None:
    request = make_request(pipeline.files, PROMPT, num_frames=57)
    largest = max(chunk.cache_bytes for chunk in pipeline.run(request))
    dense = make_request(pipeline.files, PROMPT, num_frames=57, policy="dense")
    most, all_of_it = (estimate(pipeline.files, asked, torch.float32).cache for asked in (request, dense))
    assert largest <= most < all_of_it


def test_estimate_of_weights(pipeline: DummyForcingPipeline, model_folder: Path) -> None:
    on_disk = sum(path.stat().st_size for path in model_folder.rglob("*.safetensors"))
    request = make_request(pipeline.files, PROMPT)
    weights = estimate(pipeline.files, request, torch.float32).weights
    assert 0.8 * on_disk < weights <= on_disk


def test_what_fits_only_in_tiles(pipeline: DummyForcingPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    request = make_request(pipeline.files, PROMPT, num_frames=21, size=(320, 320))
    expected = np.concatenate([chunk.frames for chunk in pipeline.run(request)], 1)
    needs = [need.total for need in estimates(pipeline.files, request, torch.float32, loaded=True)]
    assert needs[0] > needs[1] > needs[2]
    asked: list[int] = []
    begin = pipeline.vae.stream

    def noting(tiles: int) -> DecoderStream:
        asked.append(tiles)
        return begin(tiles)

    monkeypatch.setattr("dummyforcing.pipeline.memory.available_memory", lambda device: needs[2])
    monkeypatch.setattr(pipeline.vae, "stream", noting)
    frames = np.concatenate([chunk.frames for chunk in pipeline.run(request)], 1)
    assert asked == [3]
    assert np.abs(frames.astype(int) - expected).max() <= 1
    monkeypatch.setattr("dummyforcing.pipeline.memory.available_memory", lambda device: min(needs) - 1)
    with pytest.raises(UserError, match=r"only .* are free"):
        pipeline.run(request)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(model_folder: Path) -> None:
    with pytest.raises(UserError, match="no GPU 'cuda'"):
        load(model_folder, device="cuda")
    assert choose_device("auto") == CPU
    with pytest.raises(UserError, match="no device 'abacus'"):
        choose_device("abacus")


def test_dtype() -> None:
    assert choose_dtype(None, CPU) == torch.float32
    assert choose_dtype(None, torch.device("cuda")) == torch.bfloat16
    with pytest.raises(UserError, match="no dtype 'int4'; take float32 or bfloat16"):
        choose_dtype("int4", CPU)
    with pytest.raises(UserError, match=r"Nothing is computed in torch\.int8; take float32 or bfloat16"):
        choose_dtype(torch.int8, CPU)


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "vae", "tokenizer"])
def test_incomplete_folder(model_folder: Path, tmp_path: Path, part: str) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    shutil.rmtree(folder / part)
    with pytest.raises(UserError, match=part):
        load(folder, device="cpu")


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "vae"])
@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_bad_config_of_a_component(model_folder: Path, tmp_path: Path, part: str, text: str | None) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    config = folder / part / "config.json"
    config.unlink()
    if text is not None:
        config.write_text(text)
    with pytest.raises(UserError, match=part):
        load(folder, device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_several_gpus_are_not_taken_to_be_a_cpu() -> None:
    with pytest.raises(NoSuchDevice, match="2 GPUs are asked for, and this machine has none"):
        load("tiny", gpus=2)
