"""Criteria that choose the dummy heads, and the policies that build on them."""

import dataclasses

import pytest
import torch

from dummyforcing.cache.head_group import HeadGroup
from dummyforcing.cache.kv_cache import KVCache
from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.errors import UserError
from dummyforcing.method.criteria import CRITERIA, Role, choose_dummies
from dummyforcing.method.plan import HeadContext
from dummyforcing.method.policy import parse_policy
from dummyforcing.method.programming import assign_roles, make_plan
from dummyforcing.method.scoring import HeadScorer
from dummyforcing.pipeline.request import make_request

SCORES = torch.tensor(
    [  # first, middle, current
        [[0.05, 0.60, 0.35], [0.02, 0.03, 0.95]],
        [[0.40, 0.40, 0.20], [0.12, 0.01, 0.87]],
    ]
)
"""Sums: 0.59 first, 1.04 middle; so the costs are 0.58, 0.03, 0.68 and 0.20."""


@pytest.mark.parametrize(
    ("criterion", "chosen"),
    [("dhp", [1, 3]), ("current", [1, 3]), ("dearest", [2, 0]), ("threshold", [1, 3])],
)
def test_heads_chosen_by_hand(criterion, chosen):
    assert choose_dummies(SCORES, 2, criterion) == chosen
    assert choose_dummies(SCORES, 1, criterion) == (chosen if criterion == "threshold" else chosen[:1])


def test_current_mass_and_dhp_differ_where_one_region_is_rare():
    scores = torch.tensor([[[0.02, 0.08, 0.90], [0.00, 0.15, 0.85], [0.01, 0.90, 0.09]]])
    assert choose_dummies(scores, 1, "current") == [0]  # most current mass
    assert choose_dummies(scores, 1, "dhp") == [1]  # but two thirds of all that is spent on first frames


def test_random_heads_are_seeded_nested_and_distinct():
    draws = [choose_dummies(torch.rand(8, 12, 3), n, "random", seed=4) for n in (10, 50, 96)]
    assert draws[2][:50] == draws[1]
    assert draws[1][:10] == draws[0]
    assert sorted(draws[2]) == list(range(96))
    assert choose_dummies(SCORES, 4, "random", 5) != choose_dummies(SCORES, 4, "random", 6)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_heads_that_stay_are_sorted_alike(criterion):
    roles = assign_roles(SCORES, 2, criterion, seed=1)
    dummies = choose_dummies(SCORES, 2, criterion, seed=1)
    expected = ["neighbor", "sink", "sink", "sink"]  # by first / 0.59 < middle / 1.04
    for head, role in enumerate(role for row in roles for role in row):
        assert role == ("dummy" if head in dummies else expected[head])


def test_a_plan_says_how_many_dummies_the_threshold_found():
    policy = dataclasses.replace(parse_policy("dummy"), criterion="threshold", num_dummy=1)
    plan = make_plan(policy, SCORES, 1)
    assert plan.num_dummy == plan.counts["dummy"] == 2


def test_unknown_criterion():
    with pytest.raises(UserError, match="the criteria are dhp, current"):
        dataclasses.replace(parse_policy("dummy"), criterion="magic")


def test_last_frames_count_as_current():
    """A head that looks at the last past frame only: middle mass, or current mass."""
    k = torch.zeros(1, 6, 1, 4)
    k[0, 2] = 50.0
    group = HeadGroup(None, None, k, k, (tuple(range(6)),))
    for last, expected in ((0, [0.0, 1.0, 0.0]), (1, [0.0, 0.0, 1.0])):
        scorer = HeadScorer(1, 1, 1, 1, lambda layer, length: torch.arange(length), last)
        scorer.observe(0, torch.ones(1, 3, 1, 4), [group])
        torch.testing.assert_close(scorer.scores()[0, 0, 0], torch.tensor(expected))


def test_anchored_roles_see_both_ends_in_two_attention_calls():
    policy = parse_policy("anchored:4")
    plan = make_plan(policy, SCORES, 1)
    cache = KVCache([plan], head_dim=4, tokens_per_frame=2, chunk_frames=3)
    for _ in range(4):
        for layer in range(2):
            groups = cache.write(layer, torch.zeros(1, 6, 2, 4), torch.zeros(1, 6, 2, 4))
        cache.commit()
    assert len(groups) == 1, "sink and dummy share a call"
    frames = {
        str(plan.roles[1][head]): [frame for frame in sorted(row) if frame < 9]
        for group in groups
        for head, row in enumerate(group.frames)
    }
    assert frames == {"sink": [0, 8], "dummy": [7, 8]}
    assert policy.roles is not None
    assert policy.roles[Role.NEIGHBOR] == HeadContext(1, 4)


def test_anchored_takes_the_settings_of_the_model():
    files = ModelFiles.open("tiny")
    chosen = make_request(files, "a red ball", policy="anchored").policy
    assert chosen.roles is not None
    assert chosen.roles[Role.NEIGHBOR] == HeadContext(1, files.preset.dummy.neighbor_frames)
    assert chosen.dummy_fraction == files.preset.dummy.dummy_fraction
