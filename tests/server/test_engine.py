"""Who is let in, by the memory and the time that videos take."""

import asyncio
from itertools import count

import pytest
import torch

from dummyforcing.errors import NotEnoughMemory
from dummyforcing.pipeline.memory import estimates
from dummyforcing.pipeline.options import VideoOptions, choose
from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from dummyforcing.pipeline.request import Request
from dummyforcing.server.allowed import require_allowed
from dummyforcing.server.costs import Claim, Costs
from dummyforcing.server.engine import FULL, Engine
from dummyforcing.server.replicas.replica import LocalReplica
from dummyforcing.server.settings import read_settings
from dummyforcing.server.web.metrics import Metrics
from dummyforcing.server.web.problems import Problem


@pytest.fixture
def engine(pipeline: DummyForcingPipeline) -> Engine:
    async def make() -> Engine:
        replica = LocalReplica(pipeline)
        return Engine(replica, Costs(replica.facts), Metrics(), count())

    return asyncio.run(make())


def request_of(pipeline: DummyForcingPipeline, **options: object) -> Request:
    return pipeline.request("a red ball", choose(VideoOptions, options, pipeline.option_defaults))


def test_memory_is_a_sum_and_what_is_shared_counts_once(engine: Engine) -> None:
    engine.capacity = 100.0
    assert engine.has_room(Claim(60, 40, 0))
    assert not engine.has_room(Claim(61, 40, 0))
    engine.reserve("a", Claim(30, 40, 0))
    assert engine.has_room(Claim(30, 20, 0))
    assert engine.has_room(Claim(30, 40, 0))
    assert not engine.has_room(Claim(31, 20, 0))
    assert not engine.has_room(Claim(30, 41, 0))
    engine.release("a")
    assert engine.has_room(Claim(60, 40, 0))


def test_live_videos_are_let_in_as_long_as_there_is_time(engine: Engine) -> None:
    assert engine.has_room(Claim(0, 0, 3.0))  # alone it may be slower than it is shown
    engine.reserve("a", Claim(0, 0, 0.5))
    assert engine.has_room(Claim(0, 0, FULL - 0.5))
    assert not engine.has_room(Claim(0, 0, FULL - 0.49))
    assert engine.has_room(Claim(0, 0, 0.0))  # a job takes what is left
    engine.release("a")
    engine.reserve("job", Claim(0, 0, 0.0))
    assert engine.has_room(Claim(0, 0, 3.0))


def test_tracks_of_a_session_count_once_for_the_time(engine: Engine) -> None:
    assert Claim.of_all([Claim(1, 5, 0.4), Claim(2, 7, 0.9)]) == Claim(3, 7, 0.4)


def test_a_claim_is_the_estimate_and_what_is_held(engine: Engine, pipeline: DummyForcingPipeline) -> None:
    request = request_of(pipeline, num_frames=45)
    engine.costs.learn(request.size, 0.3)
    least = min(estimates(pipeline.files, request, torch.float32, loaded=True), key=lambda need: need.total)
    plain = engine.costs.claim(request)
    assert plain.memory + plain.shared == pytest.approx(max(least.total, plain.memory))
    assert plain.load == pytest.approx(0.3 / (12 / 16))
    assert engine.costs.claim(request, is_live=False).load == 0
    assert plain.memory > least.cache
    for room, held in ((0.0, 2), (3.5 * plain.memory, 3), (99 * plain.memory, 5)):
        claim = engine.costs.claim(request, room=room, least=2, most=5)
        assert claim.held == held
        assert claim.memory == pytest.approx((held + 1) * plain.memory)


def test_what_can_never_fit_is_refused(engine: Engine, pipeline: DummyForcingPipeline) -> None:
    request = request_of(pipeline, num_frames=45)
    needed = engine.costs.claim(request)
    engine.costs.capacity = needed.memory + needed.shared
    assert engine.costs.claim(request) == needed
    engine.costs.capacity *= 0.99
    with pytest.raises(NotEnoughMemory, match="take a smaller size"):
        engine.costs.claim(request)


def test_the_pace_of_a_size_that_was_not_made_yet_follows_its_pixels(engine: Engine) -> None:
    assert engine.costs.pace((32, 48)) == 0
    engine.costs.learn((32, 48), 0.2)
    assert engine.costs.pace((32, 48)) == pytest.approx(0.2)
    assert engine.costs.pace((64, 96)) == pytest.approx(0.8)
    engine.costs.learn((64, 96), 1.0)
    assert engine.costs.pace((64, 96)) == 1.0


def test_a_busy_hour_refuses_nothing_for_ever(engine: Engine, pipeline: DummyForcingPipeline) -> None:
    request, settings = request_of(pipeline, num_frames=45), read_settings({"max_chunk": 1})
    engine.costs.learn(request.size, 0.5)
    for _ in range(50):
        engine.costs.learn(request.size, 5.0)
    assert engine.costs.pace(request.size) > 4
    require_allowed(settings, engine.costs, request)
    engine.costs._fastest.clear()
    engine.costs.learn(request.size, 1.5)
    with pytest.raises(Problem, match="take a smaller size"):
        require_allowed(settings, engine.costs, request)


def test_a_cache_in_another_precision_has_its_own_size(pipeline: DummyForcingPipeline) -> None:
    full = pipeline.files.frame_bytes((32, 48), torch.float32)
    assert full == 2 * (2 * 3) * pipeline.files.config.num_layers * pipeline.files.config.dim * 4
    assert pipeline.files.frame_bytes((32, 48), torch.bfloat16) == full / 2
    dense = request_of(pipeline, num_frames=45, policy="dense")
    (first, *_) = estimates(pipeline.files, dense, torch.float32, loaded=True)
    assert first.cache == 12 * full
