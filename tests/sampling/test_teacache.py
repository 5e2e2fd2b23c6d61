"""The skip table against a plain replay of TeaCache's rule."""

import pytest
import torch

from dummyforcing.models.wan import TimeEmbedding
from dummyforcing.sampling.schedule import make_schedule
from dummyforcing.sampling.teacache import COEFFICIENTS, skip_table
from tests.oracles import SCHEDULE, small_model


def embeddings_with_changes(changes):
    """Embeddings of which each differs from the one before by the given relative L1 change."""
    blocks = [torch.ones(1, 1, 6, 4)]
    for change in changes:
        blocks.append(blocks[-1] * (1 + change))
    return [TimeEmbedding(b[..., 0, :], b) for b in blocks]


def test_error_adds_up_until_a_call_runs():
    changes = [0.1, 0.1, 0.1, 0.1, 0.1]
    timesteps = [1000.0, 900.0, 800.0, 700.0, 600.0, 0.0]
    linear = (1.0, 0.0)
    table = skip_table(embeddings_with_changes(changes), timesteps, threshold=0.25, coefficients=linear)
    assert table == (False, True, True, False, True, False)
    assert skip_table(embeddings_with_changes(changes), timesteps, 0.0, linear) == (False,) * 6


def test_a_negative_polynomial_allows_more_skips():
    changes = [0.25, 0.05, 0.05, 0.05]
    table = skip_table(embeddings_with_changes(changes), [1000.0, 900.0, 800.0, 700.0, 0.0], 0.2)
    assert sum(c * 0.25**p for c, p in zip(COEFFICIENTS, (4, 3, 2, 1, 0), strict=True)) < 0
    assert table == (False, True, True, True, False)


@pytest.mark.parametrize("steps", [[1000, 750, 500, 250], [1000, 500], [900, 600, 0], [1000]])
def test_first_step_and_commit_always_run(steps):
    schedule = make_schedule(steps, 5.0)
    timesteps = [*schedule.timesteps, 0.0]
    model = small_model()
    embeddings = [model.embed_time(torch.tensor([[t]])) for t in timesteps]
    table = skip_table(embeddings, timesteps, threshold=1e9)
    assert not table[0]
    assert not table[-1]
    assert [not skipped for skipped in table[1:-1]] == [t == 0 for t in timesteps[1:-1]]


def test_the_table_does_not_depend_on_how_often_the_embedding_is_repeated():
    timesteps = [*SCHEDULE.timesteps, 0.0]
    model = small_model()
    tables = [
        skip_table([model.embed_time(torch.full(shape, t)) for t in timesteps], timesteps)
        for shape in ((1, 1), (2, 3))
    ]
    assert tables[0] == tables[1]
