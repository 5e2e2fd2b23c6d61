"""What each head's past is worth: against passes that are asked again the slow way, and the plan of it."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import pytest
import torch

from dummyforcing.analysis.head_damage import HeadDamage, chosen_chunks, measure_damage
from dummyforcing.analysis.removal import chunk_damages
from dummyforcing.errors import BadFile, BadRequest, NotFinite
from dummyforcing.method.criteria import Role
from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.method.policy import Policy, parse_policy
from dummyforcing.method.programming import assign_roles, make_plan
from dummyforcing.method.scoring import HeadScorer
from dummyforcing.pipeline.pipeline import DummyForcingPipeline, load
from dummyforcing.sampling.block import BlockSampler
from dummyforcing.sampling.schedule import make_schedule
from research.studies.dense_path import DensePath
from tests.conftest import link_model
from tests.oracles import SCHEDULE, SHAPE, small_model, small_prompt, small_text

ONE_STEP = make_schedule([1000], shift=5.0)
NOTHING = HeadContext(0, 0)
PROMPTS = ["a red ball bounces", "a blue cube spins"]


def start(policy="dense", schedule=SCHEDULE, chunks=0, **options):
    model = small_model(layers=3, heads=4)
    policy = parse_policy(policy)
    sampler = BlockSampler(model, small_prompt(model), policy, schedule, (1, *SHAPE), seeds=[3], **options)
    for _ in range(chunks):
        sampler.next_chunk()
    return sampler


@pytest.mark.parametrize("left", [NOTHING, HeadContext(0, 1), HeadContext(1, 0), HeadContext(2, 2)])
def test_damage_is_that_of_a_masked_pass(left: HeadContext) -> None:
    """Every call of chunks 1 and 2, as a dense pass with a mask over one head's past answers it."""
    sampler = start(chunks=1)
    model = sampler.passes.model
    found = [damage for _ in range(2) for damage in chunk_damages(sampler, left)]
    path = DensePath(model, small_text(model), SCHEDULE, SHAPE, seed=3)
    calls = [call for call in path.calls(3) if call.chunk]
    assert len(found) == len(calls) == 8
    for damage, call in zip(found, calls, strict=True):
        past = call.chunk * 3
        for head in range(12):
            seen = torch.ones(1, 3, 4, past, dtype=torch.bool)
            seen[0, head // 4, head % 4, left.sink : past - (left.recent or 0)] = False
            change = path.again(call, seen) - call.x0
            expected = change.double().square().mean() / call.x0.double().var(correction=0)
            assert damage[head // 4, head % 4].item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-9)
        assert left == HeadContext(2, 2) or damage.min() > 1e-6, "the past must matter"


@pytest.mark.parametrize(
    ("policy", "options"),
    [("dense", {}), ("window:1,3", {}), ("window:3,6", {"local_attention_size": 12}), ("window:0,2", {})],
)
def test_damage_is_that_of_a_sampler_with_such_a_plan(policy: str, options: dict) -> None:
    """One step per chunk: then the chunk is the answer to one call, whatever the heads see."""
    sampler = start(policy, ONE_STEP, chunks=6, **options)
    everyone = parse_policy(policy).initial
    whole = sampler.fork().next_chunk()
    expected = torch.empty(12, dtype=torch.float64)
    for head in range(12):
        roles = [["all"] * 4 for _ in range(3)]
        roles[head // 4][head % 4] = "removed"
        table = {"all": everyone, "removed": HeadContext(0, 1)}
        fork = sampler.fork()
        with torch.inference_mode():
            fork.cache.apply([Plan(tuple(map(tuple, roles)), table, "test")])
        change = fork.next_chunk() - whole
        expected[head] = change.double().square().mean() / whole.double().var(correction=0)
    (damage,) = chunk_damages(sampler, HeadContext(0, 1))
    torch.testing.assert_close(damage.flatten(), expected, rtol=1e-3, atol=1e-9)
    assert expected.min() > 1e-6


def test_the_video_goes_on_as_if_nobody_had_asked() -> None:
    asked, plain = start(chunks=1), start(chunks=1)
    scorers = [HeadScorer(1, 3, 4, 1, lambda layer, length: torch.arange(length)) for _ in range(2)]
    shares: list[float] = []
    damages = list(chunk_damages(asked, NOTHING, scorers[0], on_head=shares.append))
    plain.next_chunk()
    assert torch.equal(asked.next_chunk(), plain.next_chunk())
    assert len(shares) == 4 * 12
    assert sum(shares) == pytest.approx(4)

    again = start(chunks=1)
    assert torch.equal(
        torch.stack(list(chunk_damages(again, NOTHING, scorers[1], known=[0, 2]))),
        torch.stack([damages[1], damages[3]]),
    )
    assert torch.equal(scorers[0].scores(), scorers[1].scores())


def test_scores_are_those_of_the_policy() -> None:
    policy = dataclasses.replace(parse_policy("dummy"), rows=None)
    model = small_model(layers=3, heads=4)
    usual = BlockSampler(model, small_prompt(model), policy, SCHEDULE, (1, *SHAPE), seeds=[3])
    for _ in range(2):
        usual.next_chunk()
    scorer = HeadScorer(1, 3, 4, 1, lambda layer, length: torch.arange(length))
    list(chunk_damages(start(chunks=1), NOTHING, scorer))
    torch.testing.assert_close(scorer.scores()[0], torch.tensor(usual.plan.scores), atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def pipeline(model_folder: Path) -> DummyForcingPipeline:
    return load(model_folder, device="cpu")


@pytest.fixture(scope="module")
def damage(pipeline: DummyForcingPipeline) -> HeadDamage:
    return measure_damage(pipeline, [*PROMPTS, PROMPTS[0]], parse_policy("dummy"), seeds=(0, 1), chunks=(1,))


def test_measuring(pipeline: DummyForcingPipeline, damage: HeadDamage) -> None:
    assert [(video.prompt, video.seed) for video in damage.videos] == [
        (prompt, seed) for prompt in PROMPTS for seed in (0, 1)
    ]
    assert all(len(video.damages) == 2 for video in damage.videos)
    assert damage.damage.shape == (3, 4)
    means = [sum(video.damages) / 2 for video in damage.videos]
    torch.testing.assert_close(damage.damage, sum(means) / 4)
    assert damage.calls(PROMPTS[:1], (0, 1)) == 4
    assert damage.calls(["a green floor"], (0, 1)) == 0


@pytest.mark.parametrize("policy", ["dummy", "anchored", "dummy:5"])
@pytest.mark.parametrize("fraction", [0, 0.25, 0.5, 1])
def test_dummy_heads_are_those_of_least_damage(damage: HeadDamage, policy: str, fraction: float) -> None:
    chosen = dataclasses.replace(parse_policy(policy), dummy_fraction=fraction)
    plan = damage.plan(chosen)
    usual = [role for row in assign_roles(damage.scores, 0) for role in row]
    cost = damage.damage.flatten().tolist()
    least = sorted(range(12), key=lambda head: cost[head])[: round(12 * fraction)]
    assert [role for row in plan.roles for role in row] == [
        Role.DUMMY if head in least else usual[head] for head in range(12)
    ]
    assert plan.table == chosen.roles
    assert plan.num_dummy == len(least)
    assert plan.policy == f"calibrated {chosen.name}"
    assert damage.of_dummies(plan) == pytest.approx(sum(cost[head] for head in least))
    assert damage.of_dummies(plan) <= damage.of_dummies(make_plan(chosen, damage.scores, 1)) + 1e-12


def test_the_plan_says_how_it_was_found(
    pipeline: DummyForcingPipeline, damage: HeadDamage, tmp_path: Path
) -> None:
    plan = damage.plan(parse_policy("dummy"))
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json", damage.settings.fingerprint) == plan
    found = json.loads((tmp_path / "plan.json").read_text())["found"]
    assert found["videos"][1] == [PROMPTS[0], 1]
    torch.testing.assert_close(
        torch.tensor(found["damage"], dtype=torch.float64), damage.damage, rtol=1e-3, atol=0
    )
    video = pipeline.generate(PROMPTS[0], num_frames=21, plan=plan)
    assert video.plan == plan


def test_by_default_there_are_twelve_frames_before(pipeline: DummyForcingPipeline) -> None:
    assert measure_damage(pipeline, PROMPTS[:1], parse_policy("dummy")).settings.chunks == (4,)
    for size, chunk in ((1, 12), (2, 6), (3, 4), (5, 3), (16, 1)):
        preset = dataclasses.replace(pipeline.files.preset, chunk_frames=size)
        assert chosen_chunks(preset, None) == (chunk,)


def test_other_noise_levels_are_refused(model_folder: Path, damage: HeadDamage, tmp_path: Path) -> None:
    """The same weights under a preset of another schedule."""
    schedule = {"steps": [1000, 750, 500], "shift": 5.0}
    other = load(link_model(model_folder, tmp_path, schedule=schedule), device="cpu")
    damage.save(tmp_path / "kept")
    with pytest.raises(BadRequest, match="its schedule was "):
        measure_damage(other, PROMPTS, parse_policy("dummy"), chunks=(1,), kept=tmp_path / "kept")


def test_several_chunks(pipeline: DummyForcingPipeline) -> None:
    found = measure_damage(pipeline, PROMPTS[:1], parse_policy("dummy"), chunks=(3, 1))
    assert found.settings.chunks == (1, 3)
    assert len(found.videos[0].damages) == 4
    assert found.plan(parse_policy("dummy")).chunk is None
    first = measure_damage(pipeline, PROMPTS[:1], parse_policy("dummy"), chunks=(1,))
    torch.testing.assert_close(found.videos[0].damages[:2], first.videos[0].damages)


@pytest.mark.parametrize("heads", [12, 13, 24, 30, 90, 95])
def test_it_goes_on_where_it_was_interrupted(
    pipeline: DummyForcingPipeline, damage: HeadDamage, tmp_path: Path, heads: int
) -> None:
    """All is as if it had not been interrupted, after so many heads, and no call is asked twice."""
    kept, asked = tmp_path / "kept", []

    def interrupt(share: float) -> None:
        asked.append(share)
        if len(asked) == heads:
            raise KeyboardInterrupt

    measure = partial(
        measure_damage, pipeline, PROMPTS, parse_policy("dummy"), seeds=(0, 1), chunks=(1,), kept=kept
    )
    with pytest.raises(KeyboardInterrupt):
        measure(on_head=interrupt)
    whole = (heads - 1) // 12  # the last head's call was not finished when it was told
    assert not kept.exists() if whole == 0 else HeadDamage.load(kept).calls(PROMPTS, (0, 1)) == whole
    asked.clear()
    found = measure(on_head=asked.append)
    assert sum(asked) == pytest.approx(8 - whole)
    for one, other in zip(found.videos, damage.videos, strict=True):
        assert one.scores is not None
        assert other.scores is not None
        assert torch.equal(one.scores, other.scores)
        assert torch.equal(torch.stack(one.damages), torch.stack(other.damages))


def test_other_videos_are_measured_besides(
    pipeline: DummyForcingPipeline, damage: HeadDamage, tmp_path: Path
) -> None:
    kept, more = tmp_path / "kept", ["a red cube spins", PROMPTS[1]]
    damage.save(kept)
    asked: list[float] = []
    found = measure_damage(
        pipeline, more, parse_policy("anchored"), chunks=(1,), kept=kept, on_head=asked.append
    )
    assert [video.prompt for video in found.videos] == more
    assert sum(asked) == pytest.approx(2)
    assert len(HeadDamage.load(kept).videos) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunks": (2,)}, r"its chunks was \(1,\), and would be \(2,\) now"),
        ({"size": (32, 32)}, r"its size was \(32, 48\), and would be \(32, 32\) now"),
        (
            {"policy": Policy("dummy", roles=parse_policy("dummy").roles, rows=8)},
            "its rows was 256, and would be 8 now",
        ),
    ],
)
def test_other_conditions_are_refused(
    pipeline: DummyForcingPipeline, damage: HeadDamage, tmp_path: Path, changes: dict, message: str
) -> None:
    damage.save(tmp_path / "kept")
    options = {"policy": parse_policy("dummy"), "chunks": (1,), "kept": tmp_path / "kept", **changes}
    with pytest.raises(BadRequest, match=message):
        measure_damage(pipeline, PROMPTS, **options)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (parse_policy("dense"), "'dense' does not classify heads"),
        (parse_policy("long"), "within its budget"),
        (parse_policy("official"), "scores commit passes"),
        (
            Policy("mine", roles={"one": NOTHING}, assign=lambda scores: []),
            "'mine' gives heads their roles itself",
        ),
    ],
)
def test_policies_without_a_criterion_are_refused(
    pipeline: DummyForcingPipeline, damage: HeadDamage, policy: Policy, message: str
) -> None:
    for ask in (lambda: damage.plan(policy), lambda: measure_damage(pipeline, PROMPTS, policy)):
        with pytest.raises(BadRequest, match=message):
            ask()


@pytest.mark.parametrize("chunks", [(), (0,), (1, 0)])
def test_chunks_without_a_past_are_refused(pipeline: DummyForcingPipeline, chunks: tuple[int, ...]) -> None:
    with pytest.raises(BadRequest, match="no past to take away in chunk 0"):
        measure_damage(pipeline, PROMPTS, parse_policy("dummy"), chunks=chunks)


def test_numbers_that_are_not_finite_are_refused(model_folder: Path) -> None:
    broken = load(model_folder, device="cpu")
    broken.model.head.head.bias.fill_(torch.nan)
    with pytest.raises(NotFinite, match="damage of removing heads cannot be measured"):
        measure_damage(broken, PROMPTS, parse_policy("dummy"))


def test_files_that_hold_something_else(damage: HeadDamage, tmp_path: Path) -> None:
    file = tmp_path / "kept"
    with pytest.raises(BadFile, match="There is no file"):
        HeadDamage.load(file)
    file.write_text("{}")
    with pytest.raises(BadFile, match="damaged or no measurement of heads"):
        HeadDamage.load(file)
    damage.save(file)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(BadFile, match="damaged or no measurement of heads"):
        HeadDamage.load(file)
