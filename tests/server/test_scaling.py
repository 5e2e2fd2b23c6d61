"""How many replicas there are, by what there is to do; their processes are pretended, without Ray."""

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest

from dummyforcing.errors import BadRequest, NotEnoughMemory, UserError
from dummyforcing.integrations.ray import machines
from dummyforcing.integrations.ray.cluster import Node
from dummyforcing.integrations.ray.machines import Machines, Process, ProcessLost
from dummyforcing.pipeline.options import LoadOptions
from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from dummyforcing.server import ray_replicas
from dummyforcing.server.fleet import TRIES
from dummyforcing.server.ray_replicas import RayReplicas
from dummyforcing.server.web.problems import Problem
from tests.integrations.ray.test_cluster import Known
from tests.server.mortal import Mortal
from tests.server.serving import Serving, serving
from tests.server.test_replicas import create, state, until
from tests.server.test_sessions import RED, bare, hear, say

LOOK, IDLE = 0.05, 0.5


class Pretended(Process):
    """A process that is none."""

    def __init__(self, world: "World", node: Node) -> None:
        super().__init__(None, node)
        object.__setattr__(self, "world", world)

    async def call(self, name: str, *args: Any, **options: Any) -> Any:
        world: World = self.world  # type: ignore[attr-defined]
        if name == "begun":
            if self.node.id in world.busy:
                await asyncio.sleep(3600)
            return os.getpid()
        if name == "pulse":
            return await asyncio.sleep(3600 if self.node.id in world.silent else 0)
        assert name == "load"
        world.loads.append(self.node.id)
        if self.node.id in world.silent:
            await asyncio.sleep(3600)
        await asyncio.sleep(world.slow)
        if self.node.id in world.faults:
            raise world.faults[self.node.id]
        return Mortal(world.pipeline).facts

    def end(self) -> None:
        self.world.ended += 1  # type: ignore[attr-defined]


class World:
    """Machines on which processes begin, or fail to."""

    def __init__(self, pipeline: DummyForcingPipeline) -> None:
        self.pipeline = pipeline
        self.replicas: list[Mortal] = []
        self.loads: list[str] = []
        self.begun = self.ended = 0
        self.faults: dict[str, Exception] = {}
        self.busy: set[str] = set()
        self.silent: set[str] = set()
        self.slow = 0.0

    def begin(self, machines: Machines, node: Node, *args: Any) -> Process:
        self.begun += 1
        return Pretended(self, node)

    def replica(self, *_: Any) -> Mortal:
        self.replicas.append(Mortal(self.pipeline))
        return self.replicas[-1]

    def make(self, least: int, most: int, *sizes: tuple[int, int]) -> RayReplicas:
        files = self.pipeline.files
        request = Mortal(self.pipeline).facts.request("a video", {"num_frames": None})
        cluster = Known(*(sizes or [(4, 0)] * 4))
        return RayReplicas(cluster, files, LoadOptions(), (least, most), request, 5)


@pytest.fixture
def world(pipeline: DummyForcingPipeline, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(pipeline)
    monkeypatch.setattr(Machines, "begin", lambda *args: made.begin(*args))
    monkeypatch.setattr(ray_replicas, "RemoteReplica", made.replica)
    monkeypatch.setattr(ray_replicas, "LOOK", LOOK)
    monkeypatch.setattr(ray_replicas, "IDLE", IDLE)
    return made


@contextmanager
def scaled(world: World, least: int, most: int, **settings: Any) -> Iterator[Serving]:
    replicas = world.make(least, most)
    replicas.start()
    with replicas, serving(replicas, **settings) as server:
        until(lambda: len(ready(server)) == least)
        yield server
    assert world.ended >= world.begun


def ready(server: Serving) -> list[Any]:
    return [engine for engine in server.parts.fleet.engines if engine.is_ready]


def test_jobs_that_wait_have_replicas_begin_and_idle_ones_end(world: World) -> None:
    with scaled(world, 1, 3) as server:
        ids = [create(server, num_frames=4797) for _ in range(6)]
        until(lambda: len(ready(server)) == 3)
        until(lambda: sum(state(server, id)["status"] == "in_progress" for id in ids) == 3)
        time.sleep(10 * LOOK)
        assert (len(ready(server)), world.begun) == (3, 3)  # no more than the most
        for id in ids:
            httpx2.delete(f"{server.url}/v1/videos/{id}")
        until(lambda: len(ready(server)) == 1)
        time.sleep(IDLE + 10 * LOOK)
        assert len(ready(server)) == 1
        metrics = httpx2.get(f"{server.url}/metrics").text
        assert 'dummyforcing_replicas{state="ready"} 1.0' in metrics
        assert "dummyforcing_lost_replicas_total 0.0" in metrics
        assert metrics.count("dummyforcing_replica_videos{") == 1


def test_sessions_that_wait_have_replicas_begin_and_keep_theirs(world: World) -> None:
    """Each replica has time for one; the one in the middle ends, and nobody is moved for it."""
    with scaled(world, 1, 3, resume=0) as server:
        costs: Any = server.parts.fleet.costs
        costs._pace = {(32, 48): 10.0}
        costs.learn = costs.begin = lambda size, seconds: None
        with bare(server) as one, bare(server) as two, bare(server) as three, bare(server) as four:
            for socket in (one, two, three):
                say(socket, type="start", prompt=RED)
                hear(socket, "chunk")
            say(four, type="start", prompt=RED)
            assert hear(four, "queued")["place"] == 1
            before = {name: session.engine for name, session in server.parts.sessions.all.items()}
            assert len(set(before.values())) == 3
            for socket in (two, four):
                socket.close()
            assert len(ready(server)) == 3
            until(lambda: len(ready(server)) == 2, 90)
            going = {session.name: session.engine for session in server.parts.sessions.running}
            assert len(going) == 2
            assert all(before[name] is engine for name, engine in going.items())
            say(one, type="ack", chunk=1)
            assert hear(one, "chunk")


def test_as_many_as_are_asked_for(world: World) -> None:
    """One that is lost is replaced; no more begin for all the work."""
    with scaled(world, 2, 2) as server:
        ids = [create(server, num_frames=4797) for _ in range(5)]
        until(lambda: len(server.parts.jobs._running) == 2)
        world.replicas[0].loop.call_soon_threadsafe(world.replicas[0].kill)
        until(lambda: world.begun == 3 and len(ready(server)) == 2)
        for id in ids:
            httpx2.delete(f"{server.url}/v1/videos/{id}")
        time.sleep(IDLE + 10 * LOOK)
        assert (len(ready(server)), world.begun) == (2, 3)


def test_a_queue_that_cannot_be_read_ends_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether further replicas are needed is asked every second; the server outlives a full disk."""

    async def fails() -> int:
        raise Problem(503, "storage", "The database fails.")

    with scaled(world, 1, 3) as server:
        with monkeypatch.context() as failing:
            failing.setattr(server.parts.store, "queued", fails)
            failing.setattr(server.parts.store, "next_queued", fails)
            time.sleep(10 * LOOK)
        assert not server.parts.has_failed
        id = create(server, num_frames=21)
        until(lambda: state(server, id)["status"] == "completed")


def test_a_machine_where_nothing_can_be_loaded_is_left_alone(world: World) -> None:
    with scaled(world, 1, 4) as server:
        world.faults = {"1": NotEnoughMemory("It is too large", "take another one"), "2": ProcessLost("dead")}
        ids = [create(server, num_frames=4797) for _ in range(6)]
        until(lambda: len(ready(server)) == 2)
        until(lambda: world.loads.count("2") == TRIES)
        time.sleep(20 * LOOK)
        assert world.loads.count("1") == 1
        assert world.loads.count("2") == TRIES
        assert len(ready(server)) == 2
        for id in ids:
            httpx2.delete(f"{server.url}/v1/videos/{id}")


def test_the_first_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is enough that one is loaded; an error of loading is that of the command."""
    replicas = world.make(2, 2)
    world.faults = {"0": ProcessLost("dead")}
    replicas.start()
    assert replicas.facts.preset.name == world.pipeline.files.preset.name

    world.faults = {str(number): ProcessLost("dead") for number in range(4)}
    with pytest.raises(UserError, match="No process of the Ray cluster outlives to load the model: dead"):
        world.make(1, 1).start()

    world.faults = {"0": NotEnoughMemory("It is too large", "take another one")}
    with pytest.raises(NotEnoughMemory, match="It is too large"):
        world.make(1, 1).start()

    monkeypatch.setattr(ray_replicas, "GIVEN", 0.1)
    world.faults, world.busy = {}, {"0"}
    with pytest.raises(UserError, match=r"gives a replica no core of 127.0.0.1 .*; end what else uses it"):
        world.make(1, 1).start()


def test_a_process_that_hangs_while_it_loads(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is ended, and another one begins; one that answers may load for as long as it likes."""
    monkeypatch.setattr(machines, "BEAT", 0.02)
    monkeypatch.setattr(ray_replicas, "LOADING", 0.2)
    world.silent = {"0"}
    with pytest.raises(UserError, match="outlives to load the model: it has answered nothing for 0 s"):
        world.make(1, 1).start()
    assert world.ended == world.begun == TRIES

    world.silent, world.slow = set(), 0.5
    world.make(1, 1).start()


def test_where_there_is_room(world: World) -> None:
    """Of a GPU each, or of cores: fewer for each where many are asked for."""
    with pytest.raises(BadRequest, match="room for 1 replicas, a CPU core each, in place of 2"):
        world.make(2, 2, (1, 0), (0, 0))
    with pytest.raises(BadRequest, match="room for 2 replicas, a GPU each, in place of 3"):
        world.make(3, 9, (64, 2), (64, 0))
    for most, cores in ((1, 4), (2, 4), (4, 2), (8, 1), (100, 1)):
        assert world.make(1, most, (8, 0))._machines._cores == cores
