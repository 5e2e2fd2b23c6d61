"""Policies of other papers: heads see what these say, and the files work as a user's own do."""

from pathlib import Path

import pytest
import torch

from dummyforcing.method.loading import load_policy
from dummyforcing.method.plan import HeadContext
from dummyforcing.method.programming import make_plan
from dummyforcing.method.scoring import frame_regions
from dummyforcing.pipeline.pipeline import load
from research.policies.deep_sinks import deep_sinks
from tests.conftest import write_model

FOLDER = Path(__file__).parents[2] / "research" / "policies"
DEEP, STATIC = f"{FOLDER}/deep_sinks.py:deep_sinks", f"{FOLDER}/forcing_kv.py:ForcingKV"


def test_deep_sinks_are_half_of_the_window() -> None:
    assert load_policy(DEEP).initial == HeadContext(10, 8)  # of Self-Forcing's 21 frames
    assert load_policy(f"{DEEP}:7").initial == HeadContext(3, 1)
    assert load_policy(f"{DEEP}:12,3").initial == HeadContext(6, 3)
    for window in range(6, 30):
        context = deep_sinks(window, 3).initial
        assert context.total is not None
        assert context.total + 3 == window
        assert 0.4 <= context.sink / window <= 0.6


def attention(layers: int, heads: int, frames: int) -> torch.Tensor:
    """A made-up attention of each head on each frame, from nearly all on the newest to spread out."""
    generator = torch.Generator().manual_seed(0)
    sharpness = torch.rand(layers, heads, 1, generator=generator)
    return (
        sharpness * torch.arange(frames) + torch.rand(layers, heads, frames, generator=generator)
    ).softmax(-1)


def test_static_heads_are_those_of_forcing_kv() -> None:
    policy = load_policy(STATIC)
    past = policy.classify_at_chunk * 3
    mass = attention(4, 6, past + 3)
    regions = frame_regions(torch.arange(past + 3)[None], 3, policy.first_frames, policy.last_frames)[0]
    scores = torch.stack([mass[..., regions == region].sum(-1) for region in range(3)], -1)

    plan = make_plan(policy, scores, policy.classify_at_chunk)
    # The chunk and the frame before it, the first three frames left out of the count.
    expected = mass[..., past - 1 :].sum(-1) / mass[..., 3:].sum(-1) >= 0.8
    assert 3 < expected[1:].sum() < 15, "both kinds must be there"
    for layer, row in enumerate(plan.contexts):
        for head, context in enumerate(row):
            if layer == 0:
                assert context == HeadContext(0, None)
            else:
                assert context == (HeadContext(1, 1) if expected[layer, head] else HeadContext(3, 6))


def test_numbers_say_what_dynamic_heads_and_the_first_layer_see() -> None:
    policy = load_policy(f"{STATIC}:1,3,9")
    assert policy.roles == {
        "static": HeadContext(1, 1),
        "dynamic": HeadContext(1, 3),
        "whole": HeadContext(1, 9),
    }


@pytest.mark.parametrize("text", [f"{DEEP}:7", f"{STATIC}:1,3,2"])
def test_videos_are_made_with_them(text: str, tmp_path: Path) -> None:
    write_model(tmp_path / "random", size=(32, 32))
    policy = load_policy(text)
    video = load(tmp_path / "random", device="cpu").generate("a red ball", num_frames=57, policy=policy)
    assert {context for row in video.plan.contexts for context in row} <= set(policy.contexts)
    if policy.roles:
        assert {role for role in video.plan.roles[0]} == {"whole"}
        assert "whole" not in {role for row in video.plan.roles[1:] for role in row}
        assert video.plan.chunk == 3
