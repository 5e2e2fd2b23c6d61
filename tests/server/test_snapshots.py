"""Snapshots, taken while other chunks are made: another replica goes on from them bit by bit."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from dummyforcing.pipeline.pipeline import load
from dummyforcing.server.replicas.host import ModelHost, snapshot_of
from dummyforcing.server.replicas.replica import LocalReplica

RED, BLUE = "a red ball bounces", "a blue cube spins"


ON_GPU = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=ON_GPU)])
def host(request: pytest.FixtureRequest, model_folder: Path) -> ModelHost:
    return ModelHost(load(model_folder, device=request.param))


@pytest.mark.parametrize("policy", ["dummy", "dense"])
def test_a_snapshot_goes_on(host: ModelHost, policy: str) -> None:
    facts = LocalReplica(host.pipeline).facts
    request = facts.request(RED, {"num_frames": None, "policy": policy, "seed": 7})
    host.begin(0, request, 8)
    host.set_prompt([0], BLUE, 2, 4, 0)
    made = [host.make(0) for _ in range(5)]
    newest = host.newest(0)
    assert newest is not None
    with ThreadPoolExecutor(1) as keeper:  # in the middle of a fade
        keeping = keeper.submit(snapshot_of, *newest)
        made += [host.make(0) for _ in range(4)]
        snapshot = keeping.result()
    assert (snapshot.index, snapshot.frames) == (5, 57)
    place = host.resume(1, request, 8, snapshot)
    assert (place.index, place.frames, place.asked) == (5, 57, snapshot.asked)
    assert place.prompt == BLUE
    for expected, frames, _ in made[5:]:
        again, pixels, _ = host.make(1)
        assert np.array_equal(pixels, frames)
        assert (again.index, again.first_frame, again.prompt) == (
            expected.index,
            expected.first_frame,
            BLUE,
        )
        assert again.plan.roles == expected.plan.roles
    assert host.rewind(1, 4).index == 5  # the snapshot can be gone back to
    assert np.array_equal(host.make(1)[1], made[5][1])
    host.close([0, 1, 2])
    assert host.newest(0) is None
