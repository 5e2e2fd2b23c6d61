"""The recompute loop's own rules."""

import pytest
import torch

from dummyforcing.errors import UserError
from dummyforcing.method.policy import dense, official
from dummyforcing.sampling.recompute import RecomputeSampler
from tests.oracles import SHAPE, checked, random_plan, small_model, small_prompt
from tests.sampling.loops import TWO, committed, start


def test_recompute_takes_its_context_from_the_frames_it_should():
    model = small_model()
    asked = []

    def first_latent():
        asked.append(sampler.frames)
        return torch.full((1, 1, *SHAPE), float(sampler.frames))

    sampler = RecomputeSampler(
        model, small_prompt(model), dense(), TWO, (1, *SHAPE), context_frames=5, first_latent=first_latent
    )
    contexts = committed(sampler)
    made = torch.cat([sampler.next_chunk() for _ in range(5)], 1)
    assert asked == [9, 12], "from the first time that a whole context lies behind the first chunk"
    first = made[:, :1], made[:, :1], torch.full((1, 1, *SHAPE), 9.0), torch.full((1, 1, *SHAPE), 12.0)
    newest = made[:, 1:3], made[:, 2:6], made[:, 5:9], made[:, 8:12]
    assert list(contexts) == [1, 2, 3, 4]
    for context, start_, rest in zip(contexts.values(), first, newest, strict=True):
        assert torch.equal(torch.cat(context, 1), torch.cat([start_, rest], 1))
    assert [[part.shape[1] for part in context] for context in contexts.values()] == [
        [3],
        [3, 2],
        [3, 2],
        [3, 2],
    ]


def test_recompute_goes_on_from_given_frames_without_a_pass():
    model = small_model()
    calls = []
    sampler = start("recompute", model, observer=lambda call, *_: calls.append(call))
    given = torch.randn(1, 3, *SHAPE)
    sampler.extend(given)
    assert calls == []
    assert sampler.frames == 3
    sampler.next_chunk()
    assert [call.step for call in calls[::2]] == [None, 0, 1, 2]
    assert {call.chunk for call in calls} == {1}
    contexts = committed(sampler)
    sampler.next_chunk()
    assert torch.equal(torch.cat(contexts[2], 1)[:, :3], given)


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_contexts_that_are_no_whole_chunks(frames):
    sampler = start("recompute", small_model(), context_frames=frames)
    size = sampler.cache.nbytes
    checked(sampler)
    for _ in range(4):
        sampler.next_chunk()
    assert sampler.cache.nbytes == size, "room for a context and a chunk from the start"
    assert sampler.cache.frames == frames


def test_recompute_refuses_to_score_commit_passes():
    with pytest.raises(UserError, match="take 'dummy'"):
        start("recompute", small_model(), official())
    start("recompute", small_model(), official(), plan=random_plan(2, 3, 0))
