"""Several replicas behind one address, which are lost in the middle of what they do.

What clients get is compared, bit by bit, with the video that the pipeline makes in one go.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from dummyforcing.client import Live, LiveChunk, LiveError, connect
from dummyforcing.media.clips import read_mp4
from dummyforcing.media.fragments import fragment
from dummyforcing.media.video import write_mp4
from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from dummyforcing.server.engine import Engine
from dummyforcing.server.fleet import TRIES
from dummyforcing.server.live.messages import PromptActive, Queued, Warned
from dummyforcing.server.live.session import Session
from dummyforcing.server.replicas.host import ModelHost
from tests.server.mortal import Mortal, Mortals
from tests.server.serving import Serving, serving
from tests.server.test_sessions import BLUE, RED, bare, hear, say

pytestmark = pytest.mark.filterwarnings("ignore:The process that made this video is gone")
GREEN = "a green ball on a red floor"


@contextmanager
def several(pipeline: DummyForcingPipeline, count: int, **settings: Any) -> Iterator[tuple[Serving, Mortals]]:
    """A server of so many replicas, all of them warm."""
    replicas = Mortals(pipeline, count)
    with serving(replicas, **{"resume": 5, **settings}) as server:
        until(lambda: all(one.is_ready for one in server.parts.fleet.engines))
        yield server, replicas


def until(holds: Callable[[], Any], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def watching(server: Serving) -> Iterator[Live]:
    """A client that does not wait for ever."""
    with connect(server.url) as live:
        live.receive = partial(live.receive, 20)  # type: ignore[method-assign]
        yield live


def session_of(server: Serving, live: Live) -> Session:
    assert live.ready is not None
    return server.parts.sessions.all[live.ready.session]


def engine_of(server: Serving, live: Live) -> Engine:
    """Who makes what a client watches."""
    return session_of(server, live).engine


def replica_of(server: Serving, live: Live) -> Mortal:
    replica = engine_of(server, live).replica
    assert isinstance(replica, Mortal)
    return replica


def check(chunks: list[LiveChunk], frames: np.ndarray) -> None:
    """Whether chunks are those of a video, in their order."""
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert [chunk.about.number for chunk in chunks] == list(range(1, len(chunks) + 1))
    for chunk in chunks:
        first = chunk.about.first_frame
        assert chunk.segment == fragment(frames[first : first + chunk.about.frames], first, 16), chunk.index
    assert sum(chunk.about.frames for chunk in chunks) == len(frames)


def warnings_of(live: Live) -> list[Warned]:
    return [message for message in live.messages if isinstance(message, Warned)]


# --- live sessions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("snapshot", "kept"), [(1, "chunk"), (3, "chunk"), (100, "its beginning")])
def test_a_video_goes_on_where_its_replica_was_lost(
    pipeline: DummyForcingPipeline, snapshot: int, kept: str
) -> None:
    """Twice, and the viewer gets each chunk once: what was made before is made again, and not sent."""
    with several(pipeline, 3, snapshot=snapshot) as (server, replicas), watching(server) as live:
        chunks = []
        for chunk in live.start(RED, num_frames=141, seed=3):
            chunks.append(chunk)
            if chunk.index in (5, 8):
                (track,) = session_of(server, live).tracks.values()
                until(lambda: engine_of(server, live) in server.parts.fleet.engines)
                until(lambda: snapshot == 100 or track.kept)  # noqa: B023
                replicas.kill(replica_of(server, live))
        check(chunks, pipeline.generate(RED, num_frames=141, seed=3).frames)
        told = warnings_of(live)
        assert [one.code for one in told] == ["replica_lost"] * 2
        assert all(f"another one goes on from {kept}" in one.message for one in told)
        assert len(server.parts.fleet.engines) == 1
        assert any(one.snapshots for one in replicas.all) == (snapshot < 100)


def test_a_snapshot_of_chunks_whose_pixels_were_lost(pipeline: DummyForcingPipeline) -> None:
    """A replica is ahead of what was recorded: a newer snapshot than that would leave out a chunk."""
    with several(pipeline, 2, snapshot=1) as (server, replicas), watching(server) as live:
        for replica in replicas.all:
            replica.holds_from = 5
        chunks = []
        for chunk in live.start(RED, num_frames=93, seed=6):
            chunks.append(chunk)
            if chunk.index == 4:
                (track,) = session_of(server, live).tracks.values()
                until(lambda: track.snapshots and track.snapshots[-1].index > 5)  # noqa: B023
                replica = replica_of(server, live)
                for other in replicas.all:
                    other.holds_from = 5 if other is replica else sys.maxsize
                replicas.kill(replica)
        check(chunks, pipeline.generate(RED, num_frames=93, seed=6).frames)


@pytest.mark.parametrize("snapshot", [1, 4, 100])
def test_prompts_are_those_that_were_asked_for(pipeline: DummyForcingPipeline, snapshot: int) -> None:
    """Before the loss, at the very time of it, and right after it, where chunks are still made again."""
    with several(pipeline, 2, snapshot=snapshot) as (server, replicas), watching(server) as live:
        chunks: dict[int, LiveChunk] = {}
        for chunk in live.start(RED, num_frames=141, seed=4):
            chunks = {index: one for index, one in chunks.items() if index < chunk.index}
            chunks[chunk.index] = chunk
            if chunk.index == 2:
                live.prompt(BLUE, fade=2)
            elif chunk.index == 6 and len(server.parts.fleet.engines) == 2:
                replicas.kill(replica_of(server, live))
                live.prompt(GREEN)
        made = [chunks[index] for index in sorted(chunks)]
        starts = [n for n, one in enumerate(made) if n and one.prompt != made[n - 1].prompt]
        assert [made[n].prompt for n in (0, *starts)] == [RED, BLUE, GREEN]
        switches = [(made[n].about.first_frame / 16, made[n].prompt) for n in starts]
        whole = pipeline.generate(RED, num_frames=141, seed=4, switches=switches[:1], fade=2).frames
        for one in made[: starts[1]]:  # a video has one length of fades
            part = whole[one.about.first_frame : one.about.first_frame + one.about.frames]
            assert one.segment == fragment(part, one.about.first_frame, 16)
        active = [message for message in live.messages if isinstance(message, PromptActive)]
        assert [message.chunk for message in active] == starts


def test_branches_and_ways_back_outlive_a_loss(pipeline: DummyForcingPipeline) -> None:
    """What was given up stays given up, whatever snapshots there were of it."""
    with several(pipeline, 2, snapshot=1) as (server, replicas), watching(server) as live:
        tracks: dict[int, dict[int, LiveChunk]] = {0: {}, 1: {}}
        step = 0
        for chunk in live.start(RED, num_frames=105, seed=5, tracks=(0, 1)):
            track = tracks[chunk.track]
            tracks[chunk.track] = {n: one for n, one in track.items() if n < chunk.index} | {
                chunk.index: chunk
            }
            if step == 0 and chunk.index == 4:
                step = 1
                live.prompt(BLUE)
            elif step == 1 and chunk.prompt == BLUE:
                step = 2
                live.rewind(3)
            elif step == 2 and chunk.index == 4 and chunk.prompt == RED:
                step = 3
                assert live.branch(4, GREEN) == 1
                replicas.kill(replica_of(server, live))
        assert step == 3
        plain = pipeline.generate(RED, num_frames=105, seed=5).frames
        other = pipeline.generate(RED, num_frames=105, seed=5, switches=[(57 / 16, GREEN)]).frames
        for number, frames in ((0, plain), (1, other)):
            own = tracks[number]
            assert sorted(own) == list(range(0 if number == 0 else 5, 9))
            for chunk in own.values():
                first = chunk.about.first_frame
                assert chunk.segment == fragment(frames[first : first + chunk.about.frames], first, 16)


@pytest.mark.parametrize("is_done", [False, True], ids=["going", "done"])
@pytest.mark.parametrize("what", ["branch", "rewind"])
def test_one_can_go_back_right_after_a_loss(pipeline: DummyForcingPipeline, what: str, is_done: bool) -> None:
    """To any chunk after the snapshot: it is made again first, though the video rests."""
    with several(pipeline, 2, snapshot=3) as (server, replicas), watching(server) as live:
        chunks: dict[int, LiveChunk] = {}
        start, back, length = live.start(RED, num_frames=105, seed=5), 7, 9
        for chunk in start:
            chunks[chunk.index] = chunk
            if chunk.index == 7 and not is_done:
                live.pause()
                break
        assert len(chunks) == (length if is_done else 8)
        (track,) = session_of(server, live).tracks.values()
        until(lambda: track.kept and track.keeping is None)
        lost = replica_of(server, live)
        replicas.kill(lost)
        if what == "branch":
            assert live.branch(back, GREEN) == 1
        else:
            live.rewind(back)
        live.resume()
        number = 1 if what == "branch" else 0
        again = {chunk.index: chunk for chunk in live.chunks((number,)) if chunk.track == number}
        assert replica_of(server, live) is not lost
        assert sorted(again) == [8]
        switches = [(93 / 16, GREEN)] if what == "branch" else []
        frames = pipeline.generate(RED, num_frames=105, seed=5, switches=switches).frames
        assert again[8].segment == fragment(frames[93:105], 93, 16)


def test_several_are_lost_at_once(pipeline: DummyForcingPipeline) -> None:
    """A video and a job on each of them; all go on where there is a replica left."""
    with several(pipeline, 3, snapshot=2) as (server, replicas), watching(server) as live:
        ids = [create(server, num_frames=141, seed=seed) for seed in (1, 2)]
        chunks = []
        for chunk in live.start(RED, num_frames=69, seed=6):
            chunks.append(chunk)
            if chunk.index == 2:
                mine = replica_of(server, live)
                other = next(one for one in replicas.all if one is not mine)
                replicas.kill(mine, other)
        check(chunks, pipeline.generate(RED, num_frames=69, seed=6).frames)
        until(lambda: all(state(server, id)["status"] == "completed" for id in ids), 60)
        assert len(server.parts.fleet.engines) == 1
        assert "dummyforcing_lost_replicas_total 2.0" in httpx2.get(f"{server.url}/metrics").text


def test_who_leaves_a_replica_that_hangs_is_not_kept(pipeline: DummyForcingPipeline) -> None:
    """A client who stops, a job that is deleted: neither waits until the loss is noticed."""
    with several(pipeline, 1, max_sessions=1) as (server, replicas), bare(server) as socket:
        id = create(server, num_frames=4797)
        until(lambda: id in server.parts.jobs._running and server.parts.jobs._running[id].job)
        say(socket, type="start", prompt=RED)
        hear(socket, "chunk")
        replicas.hang(replicas.all[0])
        start = time.monotonic()
        say(socket, type="stop")
        assert hear(socket, "done")["reason"] == "stopped"
        assert httpx2.delete(f"{server.url}/v1/videos/{id}").status_code == 200
        assert time.monotonic() - start < 5
        until(lambda: not server.parts.fleet.engines[0].users)
        replicas.kill(replicas.all[0])
        replicas.add()
        say(socket, type="start", prompt=RED)
        assert hear(socket, "chunk")["index"] == 0


def test_a_server_ends_though_a_replica_hangs(pipeline: DummyForcingPipeline) -> None:
    with several(pipeline, 1) as (server, replicas), bare(server) as socket:
        say(socket, type="start", prompt=RED)
        hear(socket, "chunk")
        replicas.hang(replicas.all[0])
        say(socket, type="ack", chunk=0)
        time.sleep(0.5)
        start = time.monotonic()
        server.stop()
        assert hear(socket, "done")["reason"] == "shutdown"
    assert time.monotonic() - start < 15


def test_a_loss_while_nothing_is_made_is_noticed(pipeline: DummyForcingPipeline) -> None:
    with several(pipeline, 2, snapshot=2) as (server, replicas), watching(server) as live:
        chunks = []
        for chunk in live.start(RED, num_frames=69, seed=6):
            chunks.append(chunk)
            if chunk.index == 2:
                live.pause()
                lost = replica_of(server, live)
                time.sleep(0.2)
                replicas.kill(lost)
                until(lambda: replica_of(server, live) is not lost)  # noqa: B023
                live.resume()
        check(chunks, pipeline.generate(RED, num_frames=69, seed=6).frames)


def test_a_client_that_comes_back_finds_its_replica(pipeline: DummyForcingPipeline) -> None:
    with several(pipeline, 2) as (server, _), watching(server) as live:
        chunks = []
        for chunk in live.start(RED, num_frames=69, seed=7):
            chunks.append(chunk)
            if chunk.index in (1, 3):
                before = engine_of(server, live)
                live._socket.socket.close()  # as a network that breaks
            elif chunk.index in (2, 4):
                assert live.ready is not None
                assert live.ready.is_back
                assert engine_of(server, live) is before
        check(chunks, pipeline.generate(RED, num_frames=69, seed=7).frames)


def test_a_client_that_is_away_when_its_replica_is_lost(pipeline: DummyForcingPipeline) -> None:
    with several(pipeline, 2, snapshot=2) as (server, replicas), bare(server) as socket:
        say(socket, type="start", prompt=RED, seed=8, num_frames=45)
        name = hear(socket, "ready")["session"]
        first = hear(socket, "chunk")
        socket.close()
        session = server.parts.sessions.all[name]
        lost = session.engine
        assert isinstance(lost.replica, Mortal)
        replicas.kill(lost.replica)
        until(lambda: session.engine is not lost)
        with bare(server) as again:
            say(again, type="start", session=name, last={0: first["number"]})
            assert hear(again, "ready")["is_back"]
            assert [hear(again, "chunk")["index"] for _ in range(2)] == [1, 2]


def test_a_client_that_comes_back_while_it_waits_for_a_replica(pipeline: DummyForcingPipeline) -> None:
    with several(pipeline, 1, snapshot=2) as (server, replicas), bare(server) as socket:
        say(socket, type="start", prompt=RED, seed=8, num_frames=45)
        name = hear(socket, "ready")["session"]
        first = hear(socket, "chunk")
        replicas.kill(replicas.all[0])
        assert hear(socket, "queued")["place"] == 1
        socket.close()
        with bare(server) as again:
            say(again, type="start", session=name, last={0: first["number"]})
            assert hear(again, "ready")["is_back"]
            assert hear(again, "queued")["place"] == 1
            replicas.add()
            assert [hear(again, "chunk")["index"] for _ in range(2)] == [1, 2]


def test_who_has_no_replica_waits_for_one_and_goes_first(pipeline: DummyForcingPipeline) -> None:
    with several(pipeline, 1, snapshot=2) as (server, replicas), watching(server) as live:
        chunks = []
        for chunk in live.start(RED, num_frames=69, seed=9):
            chunks.append(chunk)
            if chunk.index == 2:
                replicas.kill(replica_of(server, live))
                until(lambda: server.parts.fleet.engines == [])
                assert httpx2.get(f"{server.url}/ready").status_code == 503
                assert httpx2.get(f"{server.url}/health").status_code == 200
                with bare(server) as socket:  # behind the one that has begun
                    say(socket, type="start", prompt=RED)
                    assert hear(socket, "queued")["place"] == 2
                    replicas.add()
        check(chunks, pipeline.generate(RED, num_frames=69, seed=9).frames)
        assert Queued(place=1) in live.messages


def test_what_kills_again_and_again_is_given_up(
    pipeline: DummyForcingPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that makes processes die must not take all of them."""
    with several(pipeline, TRIES + 1, snapshot=1) as (server, replicas), watching(server) as live:
        begin = ModelHost.resume

        def deadly(host: ModelHost, *args: Any) -> Any:
            replica = next(one for one in replicas.all if one.host is host)
            replicas.kill(replica)
            time.sleep(0.05)
            return begin(host, *args)

        monkeypatch.setattr(ModelHost, "resume", deadly)
        next(chunk for chunk in live.start(RED) if chunk.index == 3)
        replicas.kill(replica_of(server, live))
        with pytest.raises(LiveError, match="ended again and again"):
            list(live.chunks())
        assert len(server.parts.fleet.engines) == 1
        assert server.parts.fleet.engines[0].users == 0


def test_sessions_go_where_there_is_least_to_do(pipeline: DummyForcingPipeline) -> None:
    with several(pipeline, 3) as (server, _), bare(server) as one, bare(server) as two, bare(server) as three:
        for socket in (one, two, three):
            say(socket, type="start", prompt=RED)
            hear(socket, "ready")
        assert [engine.users for engine in server.parts.fleet.engines] == [1, 1, 1]
        say(two, type="stop")
        hear(two, "done")
        until(lambda: sorted(engine.users for engine in server.parts.fleet.engines) == [0, 1, 1])
        (free,) = [engine for engine in server.parts.fleet.engines if not engine.users]
        say(two, type="start", prompt=BLUE)
        name = hear(two, "ready")["session"]
        assert server.parts.sessions.all[name].engine is free


# --- jobs ---------------------------------------------------------------------------------------------------


def create(server: Serving, **request: Any) -> str:
    answer = httpx2.post(f"{server.url}/v1/videos", json={"prompt": RED, **request})
    assert answer.status_code == 200, answer.text
    id: str = answer.json()["id"]
    return id


def state(server: Serving, id: str) -> Any:
    return httpx2.get(f"{server.url}/v1/videos/{id}").json()


def test_jobs_go_to_free_replicas_one_to_each(pipeline: DummyForcingPipeline) -> None:
    with several(pipeline, 3) as (server, _), watching(server) as live:
        next(live.start(RED))
        watched = engine_of(server, live)
        running, ids = server.parts.jobs._running, [create(server, num_frames=4797)]
        until(lambda: ids[0] in running and running[ids[0]].engine)
        assert running[ids[0]].engine is not watched
        ids += [create(server, num_frames=4797) for _ in range(3)]
        until(lambda: len(running) == 3 and all(one.engine for one in running.values()))
        assert len({one.engine for one in running.values()}) == 3
        assert running[ids[2]].engine is watched  # it is the last one that is left
        assert state(server, ids[3])["status"] == "queued"
        for id in ids:
            httpx2.delete(f"{server.url}/v1/videos/{id}")
        until(lambda: not running)


def test_jobs_in_hand_are_made_again(pipeline: DummyForcingPipeline, tmp_path: Path) -> None:
    with several(pipeline, 2, data=tmp_path) as (server, replicas):
        running = server.parts.jobs._running
        ids = [create(server, num_frames=285, seed=seed) for seed in (1, 2, 3)]
        until(lambda: ids[0] in running and running[ids[0]].progress > 10)
        engine = running[ids[0]].engine
        assert engine is not None
        assert isinstance(engine.replica, Mortal)
        replicas.kill(engine.replica)
        until(lambda: all(state(server, id)["status"] == "completed" for id in ids), 60)
        for seed, id in enumerate(ids, start=1):
            expected = tmp_path / "expected.mp4"
            write_mp4(expected, pipeline.generate(RED, num_frames=285, seed=seed).frames, 16)
            assert np.array_equal(read_mp4(server.parts.store.video_file(id)), read_mp4(expected))
        metrics = httpx2.get(f"{server.url}/metrics").text
        assert 'dummyforcing_replicas{state="ready"} 1.0' in metrics
        assert "dummyforcing_lost_replicas_total 1.0" in metrics


def test_a_job_that_kills_again_and_again_fails(
    pipeline: DummyForcingPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    with several(pipeline, TRIES + 1) as (server, replicas):

        def deadly(host: ModelHost, *_: Any) -> Any:
            replicas.kill(next(one for one in replicas.all if one.host is host))
            time.sleep(0.05)

        monkeypatch.setattr(ModelHost, "begin", deadly)
        id = create(server, num_frames=21)
        until(lambda: state(server, id)["status"] == "failed")
        error = state(server, id)["error"]
        assert error["code"] == "replica_lost"
        assert len(server.parts.fleet.engines) == 1
        monkeypatch.undo()
        again = create(server, num_frames=21)
        until(lambda: state(server, again)["status"] == "completed")


def test_nothing_is_left_of_starts_that_are_given_up(pipeline: DummyForcingPipeline) -> None:
    """Their tracks would keep the memory of a replica for ever."""
    with several(pipeline, 1, resume=0) as (server, replicas):
        for _ in range(5):
            with bare(server) as socket:
                say(socket, type="start", prompt=RED, beside="dense")
                time.sleep(0.01)
        (replica,) = replicas.all
        until(lambda: not replica.host._tracks and not server.parts.fleet.engines[0].users)
