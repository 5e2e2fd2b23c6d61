"""What is measured, against loops written by hand, and what is chosen, against brute force."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dummyforcing.analysis import calibration
from dummyforcing.analysis.calibration import calibrate, chunk_errors, sweeps
from dummyforcing.attention.attend import attend
from dummyforcing.errors import UserError
from dummyforcing.method.policy import parse_policy
from dummyforcing.method.scoring import HeadScorer, row_sampler
from dummyforcing.models.wan import CausalWan, fingerprint
from dummyforcing.pipeline.pipeline import DummyForcingPipeline, load
from dummyforcing.pipeline.request import make_request
from dummyforcing.presets.preset import ScheduleArgs
from dummyforcing.sampling.block import BlockSampler
from dummyforcing.sampling.noise import seeded_noise
from dummyforcing.sampling.schedule import renoise, x0_from_velocity
from dummyforcing.sampling.teacache import Calibration
from tests.conftest import write_model
from tests.oracles import SCHEDULE, SHAPE, checked, small_model, small_prompt, small_text

POLICIES = ["dense", "window:1,2", "dummy", "anchored", "long:12"]
PROMPTS = ["a red ball bounces", "a blue cube spins"]
FOUR = ScheduleArgs((1000, 750, 500, 250), 5)
EVERY_SET = [(1,), (2,), (3,), (1, 2), (1, 3), (2, 3), (1, 2, 3)]


def start(model: CausalWan, policy: str, **options: Any) -> BlockSampler:
    return BlockSampler(model, small_prompt(model), parse_policy(policy), SCHEDULE, (1, *SHAPE), **options)


def mask(steps: tuple[int, ...]) -> list[bool]:
    return [call in steps for call in range(5)]


@pytest.fixture(scope="module")
def pipeline(model_folder: Path) -> DummyForcingPipeline:
    return with_preset(load(model_folder, device="cpu"), schedule=FOUR)


def with_preset(pipeline: DummyForcingPipeline, **changes: Any) -> DummyForcingPipeline:
    """The same weights under another preset."""
    files = replace(pipeline.files, preset=replace(pipeline.files.preset, **changes))
    return DummyForcingPipeline.from_parts(files, pipeline.model, pipeline.text, pipeline.vae)


@pytest.fixture(scope="module")
def table(pipeline: DummyForcingPipeline) -> Calibration:
    return calibrate(pipeline, PROMPTS, policy="dummy", seeds=(0, 3), num_frames=33)


def by_hand(model: CausalWan, policy: str, chunk: int, steps: tuple[int, ...]) -> Tensor:
    """A chunk with steps left out, after a past with none left out: step by step, without a fork."""
    sampler, text = start(model, policy), small_text(model)
    draw = seeded_noise([0])
    for _ in range(chunk):
        sampler.next_chunk()
        for _ in SCHEDULE.sigmas:
            draw((1, 3, *SHAPE))
    rope = model.rope(torch.arange(3 * chunk, 3 * chunk + 3), *SHAPE[1:])
    x = draw((1, 3, *SHAPE))

    def attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, sampler.cache.write(layer, k, v))

    with torch.inference_mode():
        for step, (timestep, sigma) in enumerate(zip(SCHEDULE.timesteps, SCHEDULE.sigmas, strict=True)):
            tokens, time = model.patchify(x), model.embed_time(torch.tensor([[timestep]]))
            if step not in steps:
                residual = model.transform(tokens, time, text, rope, attention) - tokens
            x0 = x0_from_velocity(x, model.unpatchify(tokens + residual, time, *SHAPE[1:]), sigma)
            if step < 3:
                x = renoise(x0, draw((1, 3, *SHAPE)), SCHEDULE.sigmas[step + 1])
    return x0


@pytest.mark.parametrize("policy", POLICIES)
def test_the_error_is_that_of_a_loop_by_hand(policy: str) -> None:
    """Also in the chunk that classifies the heads; and the sampler goes on as if nobody had asked."""
    model = small_model()
    sampler, plain = start(model, policy), start(model, policy)
    for chunk in range(3):
        errors = chunk_errors(sampler, EVERY_SET)
        full = by_hand(model, policy, chunk, ()).double()
        torch.testing.assert_close(full, plain.next_chunk().double(), atol=1e-5, rtol=0)
        for steps, error in zip(EVERY_SET, errors, strict=True):
            change = np.mean((by_hand(model, policy, chunk, steps).double() - full).numpy() ** 2)
            assert error.item() == pytest.approx(change / np.var(full.numpy()), rel=1e-4)
            assert error > 1e-4
    assert sampler.plan == plain.plan
    assert torch.equal(sampler.next_chunk(), plain.next_chunk())


@pytest.mark.parametrize("policy", POLICIES)
def test_attention_is_right_where_steps_are_left_out(policy: str) -> None:
    """Every attention of a rollout against the per-head oracle, while heads are classified and after that."""
    sampler = checked(start(small_model(heads=4), policy, skips=mask((1, 2)), frames=15))
    assert torch.cat(list(sampler), 1).isfinite().all()


@pytest.mark.parametrize("policy", ["dummy", "anchored", "long:12"])
def test_heads_are_scored_in_the_steps_that_run(policy: str) -> None:
    model, chosen, seen = small_model(heads=4), parse_policy(policy), []
    config = model.config
    scorer = HeadScorer(
        1, config.num_layers, config.num_heads, chosen.first_frames, row_sampler(chosen), chosen.last_frames
    )

    def observer(call, layer, q, groups):
        if call.chunk == 1 and call.step is not None:
            seen.append(call.step)
            scorer.observe(layer, q, groups)

    sampler = start(model, policy, skips=mask((1, 2)), observer=observer)
    sampler.next_chunk()
    sampler.next_chunk()
    assert set(seen) == {0, 3}
    assert sampler.plan.chunk == 1
    assert sampler.plan.scores is not None
    np.testing.assert_allclose(sampler.plan.scores, scorer.scores()[0], rtol=1e-5)


def test_every_set_is_measured_on_later_chunks(pipeline: DummyForcingPipeline, table: Calibration) -> None:
    assert [found.steps for found in table.sets] == EVERY_SET
    assert (table.model, table.fingerprint) == ("random", fingerprint(pipeline.model))
    assert (table.schedule, table.policy, table.frames, table.seeds) == (FOUR, "dummy", 33, (0, 3))
    videos = [(prompt, seed) for prompt in PROMPTS for seed in (0, 3)]
    for number, (prompt, seed) in enumerate(videos):
        request = make_request(pipeline.files, prompt, num_frames=33, seed=seed, policy="dummy")
        sampler = pipeline.rollout(request).sampler
        assert isinstance(sampler, BlockSampler)
        expected = torch.stack([chunk_errors(sampler, EVERY_SET) for _ in range(3)], 1)
        for found, errors in zip(table.sets, expected.tolist(), strict=True):
            assert [found.first[number], *found.later[number]] == pytest.approx(errors, rel=1e-3)


def test_the_choice_is_the_best_of_all_sets(table: Calibration) -> None:
    errors = {found.steps: float(np.mean(found.later)) for found in table.sets}
    chosen = set()
    for error in (min(errors.values()) / 2, *(value * 1.0001 for value in errors.values())):
        best: tuple[int, ...] = ()
        for count in range(4):
            allowed = [steps for steps in combinations((1, 2, 3), count) if errors.get(steps, 0) <= error]
            best = min(allowed, key=lambda steps: errors.get(steps, 0)) if allowed else best
        assert table.at(error).steps == best
        chosen.add(best)
    assert {(), (1, 2, 3)} < chosen
    assert len(chosen) > 3
    for found in table.sets:
        assert found.spread == pytest.approx(np.std([np.mean(video) for video in found.later], ddof=1))
    assert [table.speed_up(steps) for steps in ((), (1,), (1, 2, 3))] == [1, 1.25, 2.5]


def test_with_many_steps_the_best_one_is_added(
    pipeline: DummyForcingPipeline, table: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "MOST_ENUMERATED", 3)
    chunks: list[None] = []
    greedy = calibrate(
        pipeline, PROMPTS, policy="dummy", seeds=(0, 3), num_frames=33, on_chunk=lambda: chunks.append(None)
    )
    assert len(chunks) == 4 * 3 * sweeps(4) == 36
    by_steps = {found.steps: found for found in table.sets}
    assert all(found == by_steps[found.steps] for found in greedy.sets)
    assert [len(found.steps) for found in greedy.sets] == [1, 1, 1, 2, 2, 3]
    first = min(greedy.sets[:3], key=lambda found: found.error)
    second = min(greedy.sets[3:5], key=lambda found: found.error)
    assert all(set(first.steps) < set(found.steps) for found in greedy.sets[3:5])
    assert set(second.steps) < set(greedy.sets[5].steps)


def test_steps_of_the_first_chunk_alone_are_not_measured(pipeline: DummyForcingPipeline) -> None:
    one = with_preset(pipeline, first_schedule=ScheduleArgs((1000, 500), 5))
    found = calibrate(one, PROMPTS[:1], num_frames=33)
    assert found.policy == "dense"
    assert all(one.first == () and len(one.later[0]) == 2 for one in found.sets)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_table_spares_the_first_chunk(
    pipeline: DummyForcingPipeline, table: Calibration, policy: str
) -> None:
    """Its videos are the plain first chunk, and then that of a fork that leaves out the steps."""
    loose = table.at(1e9)
    assert loose.steps == (1, 2, 3)
    request = make_request(pipeline.files, PROMPTS[0], num_frames=33, policy=policy, teacache=loose)
    assert pipeline.skipped_steps(request) == (1, 2, 3)
    plain = pipeline.rollout(replace(request, teacache=None)).sampler
    assert isinstance(plain, BlockSampler)
    expected = [plain.next_chunk()]
    fork = plain.fork(mask((1, 2, 3)))
    expected += [fork.next_chunk(), fork.next_chunk()]
    sampler = pipeline.rollout(request).sampler
    assert torch.equal(torch.cat(list(sampler), 1), torch.cat(expected, 1))
    assert not torch.equal(expected[1], plain.next_chunk())


def test_save_and_load(table: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    table.at(0.25).save(path)
    assert Calibration.load(path) == table.at(0.25) != table
    assert [p.name for p in tmp_path.iterdir()] == ["table.json"]


def test_files_and_errors_as_text(pipeline: DummyForcingPipeline, table: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "teacache.json"
    table.save(path)
    files = replace(pipeline.files, folder=tmp_path)
    for text in (str(path), "shipped"):
        assert make_request(files, "a", teacache=text).teacache == table
        assert make_request(files, "a", teacache=f"{text}:0.5").teacache == table.at(0.5)
    assert make_request(files, "a", teacache="0.2").teacache == 0.2
    with pytest.raises(UserError, match=r"The error of TeaCache table .* is no number; write FILE:ERROR"):
        make_request(files, "a", teacache=f"{path}:much")
    with pytest.raises(UserError, match="error of 0 cannot be kept to; take more than 0"):
        make_request(files, "a", teacache="shipped:0")
    with pytest.raises(UserError, match="'random' ships no TeaCache table; leave it out, or make one"):
        make_request(pipeline.files, "a", teacache="shipped")


def test_other_models_and_steps_are_refused(
    pipeline: DummyForcingPipeline, table: Calibration, tmp_path: Path
) -> None:
    write_model(tmp_path / "random", seed=1)
    other = with_preset(load(tmp_path / "random", device="cpu"), schedule=FOUR)
    with pytest.raises(UserError, match=f"measured with model {table.fingerprint}, but this model is"):
        other.generate(PROMPTS[0], num_frames=9, teacache=table)
    files = with_preset(pipeline, schedule=replace(FOUR, shift=3)).files
    with pytest.raises(UserError, match=r"1000 750 500 250 with shift 5, but model 'random' has .* shift 3;"):
        make_request(files, "a", teacache=table)
    with pytest.raises(UserError, match="made from another"):
        table.require(pipeline.files.preset, strength=0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "{", "is not a TeaCache table"),
        (lambda text: "[1]", "is not a TeaCache table"),
        (lambda text: text.replace("teacache 1", "teacache 2"), "is not a TeaCache table"),
        (lambda text: text.replace('"policy"', '"polcy"'), "no field 'polcy'; the nearest is 'policy'"),
        (lambda text: text.replace('"steps": [3]', '"steps": [4]'), r"steps \[4\] of 4 have no errors"),
        (lambda text: text.replace('"error": 0.01', '"error": 0'), "take more than 0"),
    ],
)
def test_damaged_tables_are_refused(table: Calibration, tmp_path: Path, change, message: str) -> None:
    path = tmp_path / "table.json"
    table.save(path)
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=message):
        Calibration.load(path)
    with pytest.raises(UserError, match=r"cannot be read \(No such file or directory\)"):
        Calibration.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"sampler": "rolling"}, {}, "take a model of sampler 'block'"),
        ({"schedule": ScheduleArgs((1000,), 5)}, {}, "there is no other step"),
        ({}, {"num_frames": 9}, "no later chunks to measure"),
        ({}, {"error": 0.0}, "take more than 0"),
        ({}, {"policy": "sparse"}, "no policy .sparse."),
    ],
)
def test_what_cannot_be_measured_is_refused(
    pipeline: DummyForcingPipeline, changes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        calibrate(with_preset(pipeline, **changes), PROMPTS, **options)


def test_sets_up_to_six_steps_are_all_measured() -> None:
    assert [sweeps(count) for count in (2, 6, 7)] == [1, 1, 6]
