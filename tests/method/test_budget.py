"""The budget of policy `long`: an exact solver, budgets in words, and caches that keep them."""

import dataclasses
import itertools
from collections.abc import Mapping
from fractions import Fraction

import av
import pytest
import torch
from PIL import Image

from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.cli import main
from dummyforcing.errors import UserError
from dummyforcing.method.budget import fit_heads, past_within
from dummyforcing.method.criteria import Role
from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.method.policy import Policy, parse_policy
from dummyforcing.method.programming import make_plan
from dummyforcing.pipeline.pipeline import load
from dummyforcing.pipeline.request import make_request

PROMPT = "a red ball bounces"


def roles_of(policy: Policy) -> Mapping[str, HeadContext]:
    assert policy.roles is not None
    return policy.roles


def frames_seen(context: HeadContext) -> int:
    assert context.total is not None
    return context.total


def brute_force(scores, cap, past):
    """Try every context and every set of dummy heads: the longest context, then the least cost, then ties."""
    mass = scores.double().flatten(0, 1)
    shares = (mass / mass.sum(0))[:, :2].tolist()
    total = len(shares)
    best = None
    for recent in range(1, cap + 1):
        for dummies in itertools.product([False, True], repeat=total):
            roles = [
                Role.DUMMY if is_dummy else (Role.NEIGHBOR if p0 < p1 else Role.SINK)
                for is_dummy, (p0, p1) in zip(dummies, shares, strict=True)
            ]
            if sum(recent if role is Role.NEIGHBOR else 1 for role in roles) > past:
                continue
            can_look_back = Role.NEIGHBOR in roles or all(p0 >= p1 for p0, p1 in shares)
            cost = sum(max(pair) for pair, is_dummy in zip(shares, dummies, strict=True) if is_dummy)
            ties = [head for head in range(total) if dummies[head]]
            key = (not can_look_back, -recent, round(cost, 12), ties)
            if best is None or key < best[0]:
                best = (key, roles, recent)
    assert best is not None
    return best[1:]


@pytest.mark.parametrize("seed", range(12))
def test_the_solver_is_exact(seed):
    generator = torch.Generator().manual_seed(seed)
    layers, heads = (2, 4) if seed % 2 else (3, 2)
    scores = torch.rand(layers, heads, 3, generator=generator, dtype=torch.float64)
    if seed >= 6:  # many ties
        scores = scores.mul(2).round() / 4 + 0.25
    for cap, extra in itertools.product((1, 2, 4), (0, 1, 2, 3, 5, 8, 40)):
        past = layers * heads + extra
        roles, recent = fit_heads(scores, cap, past)
        expected, longest = brute_force(scores, cap, past)
        assert [role for row in roles for role in row] == expected
        assert recent == longest


def test_what_is_left_is_less_than_one_more_neighbor_head():
    scores = torch.rand(8, 12, 3, generator=torch.Generator().manual_seed(0))
    for past in range(96, 1000, 37):
        roles, recent = fit_heads(scores, 60, past)
        found = [role for row in roles for role in row]
        used = sum(recent if role is Role.NEIGHBOR else 1 for role in found)
        assert used <= past
        if Role.DUMMY in found:
            assert past - used < recent - 1
    with pytest.raises(UserError, match="95 past frames are too few for 96 heads"):
        fit_heads(scores, 60, 95)


def test_the_cost_of_a_window_pays_for_the_long_heads_of_the_paper():
    """360 heads at 12 frames: 48 see 60 past frames, as in 4 (360 - n) + 63 n <= 12 * 360."""
    scores = torch.rand(30, 12, 3, generator=torch.Generator().manual_seed(0))
    scores[..., 0] = 0.01 * scores[..., 1]  # ... and so nearly all are neighbors
    scores[0, 0, 0] = 1
    plan = make_plan(parse_policy("long"), scores, chunk=1)
    assert plan.counts == {"dummy": 311, "sink": 1, "neighbor": 48}
    assert plan.num_dummy == 311
    assert plan.table["neighbor"] == HeadContext(0, 60)
    assert sum(frames_seen(context) + 3 for row in plan.contexts for context in row) <= 12 * 360


def test_a_short_budget_shortens_the_context():
    scores = torch.tensor([[[0.1, 0.5, 0.4], [0.0, 0.7, 0.3], [0.8, 0.1, 0.1]]])
    policy = dataclasses.replace(parse_policy("long:60"), budget=Fraction(3))
    plan = make_plan(policy, scores, chunk=1)
    assert plan.roles == (("dummy", "neighbor", "sink"),)
    assert plan.table["neighbor"] == HeadContext(0, 7)


def test_budgets_in_words():
    assert past_within("window:12", 3, 100, 300) == 9
    assert past_within("2GB", 3, 10**8, 3 * 10**8) == 17
    assert past_within("1.5mb", 3, 10**5, 350_000) == Fraction(23, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("window:3", "take window:4 or more"),
        ("1.2MB", r"take 1\.3MB or more"),
        ("window", "write window:N"),
        ("2 GB", "write window:N"),
        ("-1GB", "write window:N"),
        ("", "write window:N"),
    ],
)
def test_bad_budgets(text, message):
    with pytest.raises(UserError, match=message):
        past_within(text, 3, 310_000, 930_001)


def test_the_least_that_an_error_names_works():
    for frame_bytes, fixed in ((310_000, 930_001), (999_999, 1), (1, 1), (25_000, 75_000)):
        with pytest.raises(UserError) as caught:
            past_within("0MB", 3, frame_bytes, fixed)
        assert past_within(str(caught.value).split("take ")[1].split(" or")[0], 3, frame_bytes, fixed) >= 1


@pytest.mark.parametrize(
    "changes",
    [
        {"budget": Fraction(1, 2)},
        {"criterion": "current"},
        {"roles": parse_policy("anchored").roles},
        {"roles": {**roles_of(parse_policy("dummy")), Role.NEIGHBOR: HeadContext(0, None)}},
        {"roles": {**roles_of(parse_policy("dummy")), Role.NEIGHBOR: HeadContext(0, 0)}},
        {"roles": None},
    ],
)
def test_policies_that_no_budget_suits(changes):
    with pytest.raises(UserError, match="1 past frame per head or more"):
        dataclasses.replace(parse_policy("long"), **changes)


def test_a_name_gets_the_sizes_of_model_and_video():
    files = ModelFiles.open("tiny")

    def neighbor(policy, **options):
        return roles_of(make_request(files, PROMPT, policy=policy, **options).policy)[Role.NEIGHBOR].recent

    assert neighbor("long") == 18  # 21 frames but for the newest chunk
    assert neighbor("long", num_frames=9) == 1
    assert neighbor("long", num_frames=957) == 60
    assert neighbor("long:100") == 100  # to the letter
    request = make_request(files, PROMPT, policy="long:100", num_frames=957, budget="window:20")
    assert request.policy.budget == 17
    assert request.cache_frames() == 20
    # 8 layers of 384 channels, 100 tokens, keys and values
    nbytes = 8 * 384 * 100 * 2 * 2 * 20
    bf16 = {"cache_dtype": torch.bfloat16}
    assert make_request(files, PROMPT, policy="long", budget=f"{nbytes / 1e6}MB", **bf16).policy.budget == 17
    own = dataclasses.replace(parse_policy("long:5"), budget=Fraction(2))
    assert make_request(files, PROMPT, policy=own).policy.budget == 2


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("tiny", {"policy": "dummy", "budget": "2GB"}, "the policy is 'dummy'"),
        ("tiny", {"budget": "2GB", "plan": Plan.uniform(8, 12, HeadContext(0, 1))}, "a plan is given"),
        ("tiny", {"dummy_fraction": 0.5}, "finds it from its budget"),
        ("tiny", {"policy": "long:0"}, "1 past frame per head"),
        ("longlive-infinite", {"policy": "long:60"}, "take long:9 or less"),
        ("krea-realtime", {"policy": "long:60"}, "take long:3 or less"),
        ("rolling-forcing", {}, "take window:16 or more"),
    ],
)
def test_what_long_cannot_do(model, options, message):
    with pytest.raises(UserError, match=message):
        make_request(ModelFiles.open(model), PROMPT, **{"policy": "long", **options})


@pytest.mark.slow
@pytest.mark.parametrize("local_attention_size", [None, 12])
@pytest.mark.parametrize("frames", [4, 5.5, 6, 9, 12])
@pytest.mark.parametrize("in_bytes", [False, True])
def test_the_cache_keeps_its_budget_for_any_length(model_folder, frames, local_attention_size, in_bytes):
    pipeline = load(model_folder, device="cpu", torch_dtype="bfloat16")
    preset = dataclasses.replace(pipeline.files.preset, local_attention_size=local_attention_size)
    pipeline.files = dataclasses.replace(pipeline.files, preset=preset)
    pipeline.parts = dataclasses.replace(pipeline.parts, preset=preset)
    frame_bytes = 3 * 48 * 6 * 2 * 2  # layers, channels, tokens, keys and values, bytes
    copies = frame_bytes // 2 if local_attention_size else 0  # of the keys of pinned frames
    most = int(frames) * frame_bytes + copies
    if in_bytes:
        most = int(frames * frame_bytes) + copies
    budget = f"{most / 1e6:.6f}MB" if in_bytes else f"window:{int(frames)}"
    request = make_request(
        pipeline.files, PROMPT, policy="long:9", num_frames=93, budget=budget, cache_dtype=torch.bfloat16
    )
    sampler = pipeline.rollout(request).sampler
    sizes = []
    for _ in sampler:
        sizes.append(sampler.cache.nbytes)
    plan = sampler.plan
    assert len(set(sizes[2:])) == 1
    assert sizes[-1] <= most
    if plan.counts["dummy"]:  # then there was no room for one more neighbor head
        longest = plan.table["neighbor"].recent
        assert longest is not None
        assert sizes[-1] > most - copies - (longest - 1) * frame_bytes / 12


def test_commands(model_folder, tmp_path, capsys):
    """What the commands find keeps to the budget, and leaves no room for one more neighbor head."""
    picture, saved, video = tmp_path / "heads.png", tmp_path / "plan.json", tmp_path / "a.mp4"
    asked = [PROMPT, "--model", str(model_folder), "--device", "cpu", "--policy", "long:30"]
    asked += ["--save-plan", str(saved)]

    main(["heads", *asked, "--budget", "window:10", "-o", str(picture)])
    spent = head_frames(Plan.load(saved))
    assert 12 * 10 - 29 < spent <= 12 * 10
    assert Image.open(picture).convert("RGB").getcolors() is None, "more than 256 colors: something is drawn"
    printed = capsys.readouterr().out
    assert all(role in printed for role in ("dummy", "sink", "neighbor"))

    main(["generate", *asked, "--frames", "33", "--budget", "0.1MB", "-o", str(video)])
    plan = Plan.load(saved)
    head_bytes = 6 * 12 * 2 * 4  # of a frame: tokens, channels of a head, keys and values, bytes
    spent = head_frames(plan) * head_bytes
    assert 100_000 - 29 * head_bytes < spent <= 100_000
    with av.open(str(video)) as opened:
        shapes = [frame.to_ndarray(format="rgb24").shape for frame in opened.decode(video=0)]
    assert shapes == [(32, 48, 3)] * 33
    printed = capsys.readouterr().out
    assert "0.1 MB" in printed

    assert main(["generate", *asked, "--budget", "window:3", "-o", str(tmp_path / "b.mp4")]) == 2
    assert "take window:4 or more" in capsys.readouterr().err
    assert not (tmp_path / "b.mp4").exists()


def head_frames(plan):
    """The frames that all heads see, the current ones included; neighbor heads see 30 past ones."""
    assert plan.policy == "long"
    assert plan.table == {
        "dummy": HeadContext(0, 1),
        "sink": HeadContext(1, 0),
        "neighbor": HeadContext(0, 30),
    }
    assert plan.chunk == 1
    assert plan.counts["neighbor"] > 0
    assert plan.counts["dummy"] > 0
    return sum(frames_seen(context) + 3 for row in plan.contexts for context in row)
