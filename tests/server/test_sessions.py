"""The live protocol, spoken by our client and by a bare WebSocket."""

import asyncio
import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import httpx2
import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as open_socket

from dummyforcing.client import Live, LiveChunk, LiveError, connect
from dummyforcing.media.fragments import fragment
from dummyforcing.media.story import Story
from dummyforcing.media.video import write_mp4
from dummyforcing.method.plan import Plan
from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from dummyforcing.server.live.delivery import HOLD
from dummyforcing.server.live.messages import Done, Heads, PromptActive, Queued, Rewound, Warned
from dummyforcing.server.live.recording import Archive
from tests.server.serving import Serving, serving

RED = "a red ball bounces on a green floor"
BLUE = "a blue cube spins on a green floor"


@contextmanager
def bare(server: Serving) -> Iterator[ClientConnection]:
    with open_socket(f"ws{server.url.removeprefix('http')}/v1/realtime", max_size=None) as socket:
        yield socket


def say(socket: ClientConnection, **message: Any) -> None:
    socket.send(json.dumps(message))


def hear(socket: ClientConnection, kind: str, timeout: float = 20) -> dict[str, Any]:
    """The next message of a kind; others are passed over, with their segments."""
    deadline = time.monotonic() + timeout
    while True:
        text = socket.recv(max(deadline - time.monotonic(), 0.001))
        if isinstance(text, bytes):
            continue
        message: dict[str, Any] = json.loads(text)
        if message["type"] == kind:
            return message
        assert message["type"] != "error" or kind == "error", message


def take(live: Live, count: int, **start: Any) -> list[LiveChunk]:
    """The first chunks of a video."""
    made = []
    for chunk in live.start(start.pop("prompt", RED), **start):
        made.append(chunk)
        if len(made) == count:
            break
    return made


def test_what_is_seen_is_the_video_of_the_pipeline(server: Serving, pipeline: DummyForcingPipeline) -> None:
    with connect(server.url) as live:
        made = take(live, 4, seed=3)
        ready = live.ready
    assert ready is not None
    assert (ready.model, ready.size, ready.fps, ready.seed) == ("random", (48, 32), 16, 3)
    expected = pipeline.generate(RED, num_frames=45, seed=3).frames
    assert [chunk.index for chunk in made] == [0, 1, 2, 3]
    for chunk in made:
        about = chunk.about
        frames = expected[about.first_frame : about.first_frame + about.frames]
        assert chunk.segment == fragment(frames, about.first_frame, 16)
        assert chunk.frames.shape == frames.shape
        assert about.prompt == RED
        assert about.timings.fps == pytest.approx(about.frames / about.timings.seconds)
    assert made[-1].about.cache_bytes < made[-1].about.dense_bytes


def test_the_codec_is_that_of_the_segments(server: Serving) -> None:
    with connect(server.url) as live:
        (chunk,) = take(live, 1)
        assert live.ready is not None
        codec = live.ready.codec
    with av.open(BytesIO(chunk.segment), "r") as container:
        extra = container.streams.video[0].codec_context.extradata
    assert extra is not None
    assert codec == f'video/mp4; codecs="avc1.{extra[1:4].hex()}"'


def test_another_prompt_shows_within_two_chunks(server: Serving) -> None:
    with connect(server.url) as live:
        prompts: list[str] = []
        asked = False
        for chunk in live.start(RED):
            if chunk.index < len(prompts):
                del prompts[chunk.index :]
            prompts.append(chunk.prompt)
            if chunk.index == 3 and not asked:  # 2 is acknowledged; 3 is being looked at
                asked = True
                live.prompt(BLUE)
            if len(prompts) == 8:
                break
        active = [message for message in live.messages if isinstance(message, PromptActive)]
    assert [message.prompt for message in active] == [BLUE]
    first = prompts.index(BLUE)
    assert first == active[0].chunk <= 3 + 2
    assert set(prompts[:first]) == {RED}
    assert set(prompts[first:]) == {BLUE}
    assert 0 < active[0].seconds < 20


def test_branching_and_going_back(server: Serving, pipeline: DummyForcingPipeline) -> None:
    chunks: dict[int, dict[int, LiveChunk]] = {0: {}, 1: {}}
    with connect(server.url) as live:
        for chunk in live.start(RED):
            chunks[chunk.track][chunk.index] = chunk
            if chunk.track == 0 and chunk.index == 3 and not chunks[1]:
                assert live.branch(1, BLUE) == 1
            if {3, 4} <= chunks[1].keys():
                break
        first_time = chunks[0][2].segment
        live.rewind(1)
        for chunk in live.chunks():
            if chunk.track == 0 and chunk.index == 2:
                break
        assert chunk.segment == first_time
        assert any(isinstance(message, Rewound) for message in live.messages)
    frames = pipeline.generate(RED, num_frames=57, switches=[(21 / 16, BLUE)]).frames
    assert set(chunks[1]) >= {2, 3, 4}
    for number in (2, 3, 4):
        about = chunks[1][number].about
        part = frames[about.first_frame : about.first_frame + about.frames]
        assert chunks[1][number].segment == fragment(part, about.first_frame, 16)


def test_two_viewers_see_what_each_would_see_alone(server: Serving) -> None:
    alone: dict[str, list[bytes]] = {}
    for prompt in (RED, BLUE):
        with connect(server.url) as live:
            alone[prompt] = [chunk.segment for chunk in take(live, 4, prompt=prompt)]
    together: dict[str, list[bytes]] = {}

    def watch(prompt: str) -> None:
        with connect(server.url) as live:
            together[prompt] = [chunk.segment for chunk in take(live, 4, prompt=prompt)]

    threads = [threading.Thread(target=watch, args=[prompt]) for prompt in (RED, BLUE)]
    with room_for_all(server):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert together == alone


def test_dense_beside_it_has_the_same_noise_and_prompts(
    server: Serving, pipeline: DummyForcingPipeline
) -> None:
    chunks: dict[int, dict[int, LiveChunk]] = {0: {}, 1: {}}
    with connect(server.url) as live:
        for chunk in live.start(RED, beside="dense", seed=2):
            chunks[chunk.track][chunk.index] = chunk
            if chunk.index == 1 and chunk.track == 1:
                live.prompt(BLUE)
            last = min(max(of_track, default=0) for of_track in chunks.values())
            if last >= 4 and all(of_track[last].about.prompt == BLUE for of_track in chunks.values()):
                break  # chunks of before the prompt that were on their way have been replaced
        assert live.ready is not None
        assert [track.policy for track in live.ready.tracks] == ["dummy", "dense"]
        starts = {
            message.chunk: message.track for message in live.messages if isinstance(message, PromptActive)
        }
    (first,) = starts  # the same for both
    at = chunks[0][first].about.first_frame / 16
    for number, policy in ((0, "dummy"), (1, "dense")):
        length = 9 + 12 * last
        frames = pipeline.generate(
            RED, num_frames=length, seed=2, policy=policy, switches=[(at, BLUE)]
        ).frames
        for index in range(last + 1):
            about = chunks[number][index].about
            part = frames[about.first_frame : about.first_frame + about.frames]
            assert chunks[number][index].segment == fragment(part, about.first_frame, 16)
    dense = chunks[1][last].about
    assert dense.cache_bytes >= dense.dense_bytes > chunks[0][last].about.cache_bytes


def test_the_heads_are_told_when_they_are_found(server: Serving) -> None:
    with connect(server.url) as live:
        take(live, 4)
        told = [message for message in live.messages if isinstance(message, Heads)]
    assert len(told[-1].roles) == 3
    assert {len(row) for row in told[-1].roles} == {4}
    assert {role for row in told[-1].roles for role in row} <= {"dummy", "sink", "neighbor"}


@contextmanager
def room_for_all(server: Serving) -> Iterator[None]:
    """The time of this machine is for one video: let others in all the same."""
    costs = server.parts.fleet.costs
    before, learn = costs._pace, costs.learn
    costs._pace, costs.learn = {}, lambda size, seconds: None  # type: ignore[method-assign]
    yield
    costs._pace, costs.learn = before, learn  # type: ignore[method-assign]


def test_who_comes_beside_others_gets_two_chunks_before_he_plays(server: Serving) -> None:
    """The second one may come late; a video of one chunk comes at once, and a pause waits for nothing."""
    with room_for_all(server), bare(server) as first:
        say(first, type="start", prompt=RED)
        hear(first, "chunk")
        known = set(server.parts.sessions.all)
        with bare(server) as second:
            say(second, type="start", prompt=BLUE)
            hear(second, "ready")
            (name,) = set(server.parts.sessions.all) - known
            track = server.parts.sessions.all[name].tracks[0]
            assert hear(second, "chunk")["index"] == 0
            assert track.next >= 2
            began = time.monotonic()
            say(second, type="start", prompt=BLUE, num_frames=9)
            assert hear(second, "done")["reason"] == "replaced"
            assert hear(second, "done")["reason"] == "length"
            assert time.monotonic() - began < HOLD


def test_not_made_further_ahead_than_it_is_watched(server: Serving) -> None:
    with bare(server) as socket:
        say(socket, type="start", prompt=RED)
        assert [hear(socket, "chunk")["index"] for _ in range(3)] == [0, 1, 2]
        with pytest.raises(TimeoutError):
            hear(socket, "chunk", timeout=1.5)
        say(socket, type="ack", chunk=1)
        assert [hear(socket, "chunk")["index"] for _ in range(2)] == [3, 4]
        say(socket, type="pause")
        say(socket, type="ack", chunk=4)
        with pytest.raises(TimeoutError):
            hear(socket, "chunk", timeout=1.5)
        say(socket, type="resume")
        assert hear(socket, "chunk")["index"] == 5
        say(socket, type="ack", chunk=90)  # as if it were the newest one
        assert [hear(socket, "chunk")["index"] for _ in range(3)] == [6, 7, 8]


def test_who_comes_back_misses_nothing(server: Serving) -> None:
    with connect(server.url) as live:
        alone = [chunk.segment for chunk in take(live, 7)]
    with connect(server.url) as live:
        made = []
        for chunk in live.start(RED):
            made.append(chunk)
            if len(made) in (2, 5):
                live._socket.socket.close()  # as when a network goes
            if len(made) == 7:
                break
    assert [chunk.index for chunk in made] == list(range(7))
    assert [chunk.segment for chunk in made] == alone


def test_who_comes_back_gets_what_was_made_again(server: Serving) -> None:
    """Chunks that were replaced while nobody listened are sent, though there were some of their place."""
    with bare(server) as socket:
        say(socket, type="start", prompt=RED)
        session = hear(socket, "ready")["session"]
        number = [hear(socket, "chunk")["number"] for _ in range(3)][-1]
        say(socket, type="prompt", prompt=BLUE)  # the third chunk is made again
    live = server.parts.sessions.all[session].tracks[0]
    deadline = time.monotonic() + 10
    while [entry.chunk.prompt for entry in live.recording.entries] != [RED, BLUE, BLUE]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with bare(server) as socket:
        say(socket, type="start", session=session, last={0: number})
        assert hear(socket, "ready")["is_back"]
        again = [hear(socket, "chunk") for _ in range(2)]
    assert [(chunk["index"], chunk["prompt"]) for chunk in again] == [(1, BLUE), (2, BLUE)]


def test_who_stays_away_loses_the_session(pipeline: DummyForcingPipeline) -> None:
    with serving(pipeline, resume=1) as server:
        with bare(server) as socket:
            say(socket, type="start", prompt=RED)
            session = hear(socket, "ready")["session"]
        deadline = time.monotonic() + 10
        while server.parts.sessions.running or server.engine._claims:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with bare(server) as socket:
            say(socket, type="start", session=session)
            assert hear(socket, "error")["code"] == "session_over"
        assert server.engine.streams == []


def test_a_full_server_lets_one_wait(pipeline: DummyForcingPipeline) -> None:
    with serving(pipeline, max_sessions=1, max_waiting=1) as server:
        with bare(server) as first, bare(server) as second, bare(server) as third:
            say(first, type="start", prompt=RED)
            hear(first, "ready")
            say(second, type="start", prompt=BLUE)
            assert hear(second, "queued")["place"] == 1
            say(third, type="start", prompt=BLUE)
            assert hear(third, "error")["code"] == "server_full"
            say(first, type="stop")
            assert hear(first, "done")["reason"] == "stopped"
            assert hear(second, "ready")["session"]
            say(third, type="start", prompt=BLUE)
            assert hear(third, "queued")["place"] == 1
            say(third, type="stop")  # it will wait no longer
            say(third, type="start", prompt=BLUE)
            assert hear(third, "queued")["place"] == 1
        deadline = time.monotonic() + 5
        while server.parts.sessions.waiting:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.parametrize(
    ("message", "code", "words"),
    [
        ("{", "bad_message", "cannot be read"),
        ("[]", "bad_message", "cannot be read"),
        ('{"type": "dance"}', "bad_message", "cannot be read"),
        ('{"type": "start", "prompt": "a", "color": 1}', "bad_message", "cannot be read"),
        ('{"type": "start", "prompt": 5}', "bad_message", "cannot be read"),
        ('{"type": "start", "prompt": "a", "seed": -1}', "bad_message", "cannot be read"),
        ('{"type": "start", "prompt": "a", "plan": "/etc/passwd"}', "bad_message", "cannot be read"),
        ('{"type": "start", "prompt": "a", "teacache": "/etc/passwd"}', "bad_message", "cannot be read"),
        (b"\x00\x01", "bad_message", "not binary"),
        ('{"type": "start"}', "bad_request", "prompt is missing"),
        ('{"type": "start", "prompt": "  "}', "bad_request", "prompt is empty"),
        ('{"type": "start", "prompt": "a ball", "size": "17x17"}', "bad_request", "no multiple"),
        ('{"type": "start", "prompt": "a ball", "size": "9600x9600"}', "too_large", "too large"),
        ('{"type": "start", "prompt": "a ball", "num_frames": 48009}', "too_long", "too many"),
        ('{"type": "start", "prompt": "a ball", "policy": "none"}', "bad_request", "policy"),
        ('{"type": "start", "session": "abc"}', "no_such_session", "session is over"),
        ('{"type": "prompt", "prompt": "a ball"}', "not_started", "send 'start' first"),
        ('{"type": "ack", "chunk": 1}', "not_started", "send 'start' first"),
        ('{"type": "branch", "chunk": 1}', "not_started", "send 'start' first"),
        (json.dumps({"type": "start", "prompt": "a " * 4000}), "bad_request", "8000 characters"),
    ],
)
def test_what_cannot_be_done_is_said(server: Serving, message: str | bytes, code: str, words: str) -> None:
    with bare(server) as socket:
        socket.send(message)
        answer = hear(socket, "error")
        assert answer["code"] == code
        assert words in answer["message"]
        assert "Traceback" not in answer["message"]
        say(socket, type="stop")  # it still listens
        socket.send("{")
        assert hear(socket, "error")["code"] == "bad_message"


def test_what_cannot_be_done_with_a_video_leaves_it_going(server: Serving) -> None:
    with bare(server) as socket:
        say(socket, type="start", prompt=RED)
        hear(socket, "chunk")
        for message, code in (
            ({"type": "branch", "chunk": 99}, "bad_request"),
            ({"type": "rewind", "chunk": 99}, "bad_request"),
            ({"type": "prompt", "prompt": " "}, "bad_request"),
            ({"type": "prompt", "prompt": "a", "track": 7}, "no_such_track"),
            ({"type": "ack", "chunk": 0, "track": 7}, "no_such_track"),
        ):
            say(socket, **message)
            assert hear(socket, "error")["code"] == code
        say(socket, type="ack", chunk=2)
        assert hear(socket, "chunk")["index"] >= 1


@pytest.mark.filterwarnings("ignore::dummyforcing.UnknownWordsWarning")
def test_unknown_words_are_named_before_the_video(server: Serving) -> None:
    with bare(server) as socket:
        say(socket, type="start", prompt="a crimson ball bounces gracefully")
        text = socket.recv(20)
        warned = Warned.model_validate_json(text)
        assert warned.words == ["crimson", "gracefully"]
        hear(socket, "chunk")
        say(socket, type="prompt", prompt="a mauve ball")
        assert hear(socket, "warning")["words"] == ["mauve"]


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_prompt_is_refused_and_the_video_goes_on(server: Serving, text: str) -> None:
    with bare(server) as socket:
        say(socket, type="start", prompt=RED)
        hear(socket, "chunk")
        for wrong in ({"type": "prompt"}, {"type": "branch", "chunk": 0}):
            say(socket, prompt=text, **wrong)
            error = hear(socket, "error")
            assert (error["code"], error["param"]) == ("bad_request", "prompt")
        assert 1 in {len(session.tracks) for session in server.parts.sessions.running}
        say(socket, type="ack", chunk=0)
        assert hear(socket, "chunk")["index"] >= 1
        say(socket, type="stop")
        hear(socket, "done")


def test_a_branch_of_a_session_that_ends_leaves_nothing(server: Serving) -> None:
    """It is refused, or is part of the session that ends; before, it waited for ever."""

    def until(socket: ClientConnection, kind: str) -> None:
        while True:
            text = socket.recv(20)
            if isinstance(text, str) and json.loads(text)["type"] == kind:
                return

    with bare(server) as socket:
        for _ in range(20):
            say(socket, type="start", prompt=RED)
            until(socket, "chunk")
            say(socket, type="branch", chunk=0)
            say(socket, type="stop")
            until(socket, "done")
    loop = next(iter(server.parts.sessions.all.values())).delivery._task.get_loop()
    end = time.monotonic() + 10
    while waiting := [task for task in asyncio.all_tasks(loop) if "guarded" in repr(task)]:
        assert time.monotonic() < end, waiting
        time.sleep(0.05)


@pytest.mark.filterwarnings("ignore::dummyforcing.RequestWarning")
def test_what_has_no_effect_is_told(pipeline: DummyForcingPipeline, server: Serving) -> None:
    """The end of a prompt that the model does not read, and a size that it was not made for."""
    longer = " ".join([RED] * pipeline.text.text_len)
    with bare(server) as socket:
        say(socket, type="start", prompt=longer, size="96x80", num_frames=21)
        told = [Warned.model_validate_json(socket.recv(20)) for _ in range(2)]
        assert [one.code for one in told] == ["trained_size", "remark"]
        assert "96x80" in told[0].message
        assert "no effect" in told[1].message
        hear(socket, "chunk")
        say(socket, type="prompt", prompt=longer)
        assert "no effect" in hear(socket, "warning")["message"]


def test_a_video_with_an_end_can_be_gone_back_in(server: Serving) -> None:
    with connect(server.url) as live:
        made = list(live.start(RED, num_frames=33))
        assert [chunk.index for chunk in made] == [0, 1, 2]
        assert [m.reason for m in live.messages if isinstance(m, Done)] == ["length"]
        live.rewind(0)
        again = list(live.chunks())
    assert [chunk.index for chunk in again] == [1, 2]
    assert [chunk.segment for chunk in again] == [chunk.segment for chunk in made[1:]]


def test_going_back_gives_up_what_was_not_read_yet(server: Serving) -> None:
    """The video is done before its first chunk is looked at: what came of it does not come once more."""
    with connect(server.url) as live:
        chunks = live.start(RED, num_frames=33)
        first = next(chunks)
        assert live.ready is not None
        (track,) = server.parts.sessions.all[live.ready.session].tracks.values()
        until = time.monotonic() + 30
        while not track.ended and time.monotonic() < until:
            time.sleep(0.05)
        assert track.ended == "length"
        live.rewind(0)
        with pytest.raises(LiveError, match="not held"):
            live.rewind(30)
        read = list(live.chunks())
        assert [chunk.index for chunk in read] == [1, 2]
        assert sum(isinstance(message, Done) for message in live.messages) == 2
    assert first.index == 0


def test_the_longest_video_ends(pipeline: DummyForcingPipeline) -> None:
    with serving(pipeline, max_frames=33) as server, connect(server.url) as live:
        assert [chunk.index for chunk in live.start(RED)] == [0, 1, 2]


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=20) as answer:
        data: bytes = answer.read()
        return data


def test_downloads(server: Serving, tmp_path: Path) -> None:
    with connect(server.url) as live:
        made: list[LiveChunk] = []
        for chunk in live.start(RED):
            del made[chunk.index :]
            made.append(chunk)
            if chunk.index == 2:
                live.prompt(BLUE)
            if len(made) == 7:
                break
        assert live.ready is not None
        base = f"{server.url}/v1/realtime/{live.ready.session}/0"
        first = next(chunk.index for chunk in made if chunk.prompt == BLUE)
        videos = [get(f"{base}/video.mp4?last=6"), get(f"{base}/video.mp4?first={first}&last=6")]
        (tmp_path / "story.yaml").write_bytes(get(f"{base}/story.yaml"))
        (tmp_path / "plan.json").write_bytes(get(f"{base}/plan.json"))
    for data, start in zip(videos, (0, first), strict=True):
        with av.open(BytesIO(data), "r") as container:
            frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
        assert np.array_equal(frames, np.concatenate([chunk.frames for chunk in made[start:]]))
    story = Story.load(tmp_path / "story.yaml")
    assert [scene.prompt for scene in story.scenes] == [RED, BLUE]
    assert story.scenes[1].at == made[first].about.first_frame / 16
    Plan.load(tmp_path / "plan.json").require(3, 4)
    for path, code in (("9/video.mp4", 404), ("0/video.mp4?first=99", 404)):
        url = f"{base.rpartition('/')[0]}/{path}"
        with pytest.raises(urllib.error.HTTPError) as refused:
            get(url)
        assert refused.value.code == code
        assert "error" in json.loads(refused.value.read())


def test_a_full_disk_ends_the_session_with_a_sentence(
    pipeline: DummyForcingPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(archive: Archive, segment: bytes) -> int:
        raise OSError(28, "No space left on device")

    with serving(pipeline) as server, bare(server) as socket:
        monkeypatch.setattr(Archive, "append", full)
        say(socket, type="start", prompt=RED)
        assert "no room" in hear(socket, "error")["message"]
        assert hear(socket, "done")["reason"] == "failed"
        monkeypatch.undo()
        say(socket, type="start", prompt=RED)
        assert hear(socket, "chunk")["index"] == 0


def test_the_client_says_what_is_wrong(server: Serving) -> None:
    with pytest.raises(LiveError, match="no live server at"):
        connect("http://127.0.0.1:9")
    with connect(server.url) as live:
        with pytest.raises(LiveError, match="no multiple"):
            take(live, 1, size="17x17")
        assert take(live, 1)[0].index == 0  # and goes on


def test_a_server_that_ends_says_so(pipeline: DummyForcingPipeline) -> None:
    with serving(pipeline) as server, bare(server) as socket:
        say(socket, type="start", prompt=RED)
        hear(socket, "chunk")
        server.stop()
        assert hear(socket, "done")["reason"] == "shutdown"


def test_waiting_clients_are_told_their_place_as_it_changes(pipeline: DummyForcingPipeline) -> None:
    one_at_a_time = serving(pipeline, max_sessions=1)
    with one_at_a_time as server, bare(server) as first, bare(server) as second, bare(server) as third:
        say(first, type="start", prompt=RED)
        hear(first, "ready")
        say(second, type="start", prompt=RED)
        assert hear(second, "queued")["place"] == 1
        say(third, type="start", prompt=RED)
        assert hear(third, "queued")["place"] == 2
        second.close()
        assert Queued.model_validate(hear(third, "queued")).place == 1


def upload(server: Serving, path: Path) -> str:
    answer = httpx2.post(
        f"{server.url}/v1/files", files={"file": path.read_bytes()}, data={"purpose": "vision"}
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def test_a_video_goes_on_from_a_clip(pipeline: DummyForcingPipeline, tmp_path: Path) -> None:
    files = replace(pipeline.files, preset=replace(pipeline.files.preset, start="clip"))
    model = DummyForcingPipeline.from_parts(files, pipeline.model, pipeline.text, pipeline.vae)
    rng = np.random.default_rng(0)
    clip = np.repeat(rng.integers(0, 255, (3, 32, 48, 3), np.uint8), 4, 0)
    write_mp4(tmp_path / "clip.mp4", clip, 16)
    expected = model.generate(RED, num_frames=33, video=tmp_path / "clip.mp4").frames
    with serving(model) as server, connect(server.url) as live:
        made = take(live, 3, clip=upload(server, tmp_path / "clip.mp4"))
        for chunk in made:
            about = chunk.about
            part = expected[about.first_frame : about.first_frame + about.frames]
            assert chunk.segment == fragment(part, about.first_frame, 16)
        Image.fromarray(clip[0]).save(tmp_path / "image.png")
        image = upload(server, tmp_path / "image.png")
        with pytest.raises(LiveError, match="goes on from a clip"):
            take(live, 1, image=image)
        with pytest.raises(LiveError, match="There is no file"):
            take(live, 1, clip="file-nothing")


def test_a_model_without_a_beginning_says_so(server: Serving) -> None:
    with connect(server.url) as live, pytest.raises(LiveError, match="starts from a prompt alone"):
        take(live, 1, clip="file-nothing")


def test_prompts_are_written_out(pipeline: DummyForcingPipeline) -> None:
    with serving(pipeline, expand_prompts="http://127.0.0.1:9/v1") as server, connect(server.url) as live:
        take(live, 1, expand=True)
        warned = [message for message in live.messages if isinstance(message, Warned)]
        assert [message.code for message in warned] == ["expansion_failed"]
        assert live.ready is not None
        assert live.ready.prompt == RED  # the short one is used
        expander = server.parts.expander
        assert expander is not None
        expander.expand = lambda prompt: f"{prompt} on a blue floor"  # type: ignore[method-assign]
        (chunk,) = take(live, 1, expand=True)
        assert live.ready.prompt == chunk.prompt == f"{RED} on a blue floor"
    with (
        serving(pipeline) as server,
        connect(server.url) as live,
        pytest.raises(LiveError, match="writes no prompts out"),
    ):
        take(live, 1, expand=True)


# --- what broke it once -----------------------------------------------------------------------------------


def settle(server: Serving) -> None:
    """Wait until no session is left, and nothing is claimed."""
    deadline = time.monotonic() + 20
    while server.parts.sessions.running or server.engine._claims or server.parts.sessions._owners:
        assert time.monotonic() < deadline, server.engine._claims
        time.sleep(0.02)


def test_claims_of_starts_that_are_given_up_come_back(pipeline: DummyForcingPipeline) -> None:
    with serving(pipeline, resume=1) as server:
        for number in range(12):
            with bare(server) as socket:
                say(socket, type="start", prompt=RED)
                hear(socket, "ready")
                say(socket, type="start", prompt=BLUE)
                time.sleep(0.003 * number)
                say(socket, type="stop")
                if number % 2:
                    say(socket, type="stop")
                    hear(socket, "done")
        settle(server)


def test_limits_hold_when_many_begin_together(pipeline: DummyForcingPipeline) -> None:
    with serving(pipeline, max_sessions=3, max_sessions_per_key=4, resume=0) as server:
        answers: list[str] = []
        most: list[int] = []

        def begin() -> None:
            with bare(server) as socket:
                say(socket, type="start", prompt=RED)
                while True:
                    text = socket.recv(20)
                    message = json.loads(text) if isinstance(text, str) else {"type": ""}
                    if message["type"] in ("ready", "error"):
                        answers.append(message.get("code", message["type"]))
                        most.append(len(server.parts.sessions.running))
                        time.sleep(0.3)
                        return

        threads = [threading.Thread(target=begin) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert answers.count("too_many_sessions") == 4
        assert answers.count("ready") == 4
        assert max(most) <= 3


def test_a_start_that_is_refused_leaves_the_video_going(server: Serving) -> None:
    with bare(server) as socket:
        say(socket, type="start", prompt=RED)
        hear(socket, "chunk")
        for wrong in ({"size": "7x7"}, {"policy": "none"}, {"prompt": None}):
            say(socket, **{"type": "start", "prompt": RED, **wrong})
            hear(socket, "error")
        say(socket, type="ack", chunk=2)
        assert hear(socket, "chunk")["index"] >= 1


def test_the_end_is_told_to_who_comes_back(server: Serving) -> None:
    with bare(server) as socket:
        say(socket, type="start", prompt=RED, num_frames=33)
        session = hear(socket, "ready")["session"]
    live = server.parts.sessions.all[session].tracks[0]
    deadline = time.monotonic() + 10
    while not live.ended:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with bare(server) as socket:
        say(socket, type="start", session=session)
        assert hear(socket, "done")["reason"] == "length"


def test_a_prompt_too_late_is_refused_and_others_are_not_lost(server: Serving) -> None:
    with bare(server) as socket:
        say(socket, type="start", prompt=RED, num_frames=57)
        hear(socket, "ready")
        for number in range(5):
            assert hear(socket, "chunk")["index"] == number
            say(socket, type="ack", chunk=number)
        say(socket, type="prompt", prompt=BLUE)
        assert "has its length" in hear(socket, "error")["message"]


def test_the_longest_video_is_no_longer_for_going_back(pipeline: DummyForcingPipeline) -> None:
    with serving(pipeline, max_frames=33) as server, bare(server) as socket:
        say(socket, type="start", prompt=RED)
        hear(socket, "done")
        say(socket, type="rewind", chunk=2)
        assert hear(socket, "done")["reason"] == "length"
        say(socket, type="ack", chunk=2)
        with pytest.raises(TimeoutError):
            hear(socket, "chunk", timeout=1)


def test_a_branch_has_all_chunks_before_it(server: Serving) -> None:
    with connect(server.url) as live:
        for chunk in live.start(RED):
            if chunk.track == 0 and chunk.index == 2:
                live.branch(2, BLUE)
            if chunk.track == 1:
                break
        assert live.ready is not None
        session = server.parts.sessions.all[live.ready.session]
        recorded = [entry.chunk.index for entry in session.tracks[1].recording.entries]
        assert recorded == list(range(len(recorded)))
        assert set(chunk.about.held) >= {0, 1, 2}  # it can be taken back before the branch, too


def test_while_it_is_paused_a_branch_waits(server: Serving) -> None:
    with bare(server) as socket:
        say(socket, type="start", prompt=RED)
        for _ in range(3):
            hear(socket, "chunk")
        say(socket, type="pause")
        say(socket, type="branch", chunk=1)
        hear(socket, "branched")
        with pytest.raises(TimeoutError):
            hear(socket, "chunk", timeout=1)
        say(socket, type="resume")
        assert hear(socket, "chunk")["track"] == 1


def test_one_connection_has_one_session(server: Serving) -> None:
    with bare(server) as first, bare(server) as second:
        say(first, type="start", prompt=RED)
        one = hear(first, "ready")["session"]
        say(second, type="start", prompt=BLUE)
        other = hear(second, "ready")["session"]
        say(first, type="start", session=other)
        assert hear(first, "ready")["session"] == other
        assert server.parts.sessions.all[one].delivery.connection is None
        say(first, type="start", session=other)  # the same once more: nothing is closed
        assert hear(first, "ready")["session"] == other
        say(first, type="ack", chunk=1)
        hear(first, "chunk")


def test_downloads_while_it_is_made_are_right(server: Serving) -> None:
    with connect(server.url) as live:
        made: list[LiveChunk] = []
        wrong: list[int] = []
        for chunk in live.start(RED):
            made.append(chunk)
            if len(made) == 2:
                assert live.ready is not None
                base = f"{server.url}/v1/realtime/{live.ready.session}/0/video.mp4?last=1"
                expected = get(base)

                def load() -> None:
                    wrong.extend(number for number in range(15) if get(base) != expected)  # noqa: B023

                threads = [threading.Thread(target=load) for _ in range(3)]
                for thread in threads:
                    thread.start()
            if len(made) == 30:
                break
        for thread in threads:
            thread.join(60)
    assert wrong == []


def test_with_dense_beside_it_both_tracks_end(server: Serving) -> None:
    with connect(server.url) as live:
        made = [(chunk.track, chunk.index) for chunk in live.start(RED, beside="dense", num_frames=21)]
    assert sorted(made) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_the_cache_that_grows_ends_the_video_in_time(pipeline: DummyForcingPipeline) -> None:
    with serving(pipeline) as server:
        sessions, costs = server.parts.sessions, server.parts.fleet.costs
        dense, dummy = (sessions.request(RED, {"policy": policy}) for policy in ("dense", "dummy"))
        one = pipeline.files.frame_bytes(dense.size, pipeline.cache_dtype)
        costs.capacity = 4 * 5 * 60 * one  # a quarter holds 5 caches of 60 frames
        assert sessions.longest(dummy) == sessions.settings.max_frames
        assert sessions.longest(dense) == pipeline.files.preset.pixel_frames(60)


def test_old_sessions_are_forgotten(server: Serving) -> None:
    with bare(server) as socket:
        for _ in range(14):
            say(socket, type="start", prompt=RED)
            hear(socket, "ready")
        say(socket, type="stop")
        hear(socket, "done")
    over = [session for session in server.parts.sessions.all.values() if session.is_over]
    assert len(over) <= 8


def test_who_waits_is_told_his_place_however_busy_he_is(pipeline: DummyForcingPipeline) -> None:
    """A client with as much in hand as it may have is not left in the queue for good."""
    with serving(pipeline, max_sessions=1, resume=0, expand_prompts="http://127.0.0.1:9/v1") as server:
        expander, going = server.parts.expander, threading.Event()
        assert expander is not None

        def slow(prompt: str) -> str:
            going.wait(20)
            return prompt

        expander.expand = slow  # type: ignore[method-assign]
        with bare(server) as first, bare(server) as second:
            say(first, type="start", prompt=RED)
            hear(first, "ready")
            for _ in range(15):
                say(first, type="prompt", prompt=BLUE, expand=True)
            say(second, type="start", prompt=RED)
            hear(second, "queued")
            say(first, type="start", prompt=RED)  # ends its own session, and lets the second one in
            hear(second, "ready")
            assert hear(first, "queued")["place"] == 1
            going.set()
        settle(server)
        assert server.parts.sessions.waiting == []


def test_a_client_that_takes_nothing_is_sent_away(
    pipeline: DummyForcingPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have got half of a chunk: it has to come back, and so it must learn that it is out."""
    monkeypatch.setattr("dummyforcing.server.routes.realtime.PATIENCE", 0.5)
    with serving(pipeline) as server, bare(server) as socket:
        say(socket, type="start", prompt=RED)
        session = server.parts.sessions.all[hear(socket, "ready")["session"]]

        class Stuck:
            async def send_text(self, text: str) -> None:
                await asyncio.sleep(60)

        deadline = time.monotonic() + 10
        connection: Any = session.delivery.connection
        real, connection._websocket.send_text = connection._websocket.send_text, Stuck().send_text
        say(socket, type="ack", chunk=2)
        while session.delivery.connection is not None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        connection._websocket.send_text = real
        with pytest.raises(ConnectionClosed):
            hear(socket, "nothing of the kind")


def test_prompts_of_both_tracks_are_those_that_they_show(
    server: Serving, pipeline: DummyForcingPipeline
) -> None:
    """Though one of them is far ahead, and gets a second prompt before the other one had the first."""
    with bare(server) as socket:
        say(socket, type="start", prompt=RED, beside="dense", seed=4)
        session = server.parts.sessions.all[hear(socket, "ready")["session"]]
        told: list[dict[str, Any]] = []
        shown: dict[int, dict[int, str]] = {0: {}, 1: {}}
        asked = 0
        while len(shown[0]) < 12 or len(shown[1]) < 12:
            text = socket.recv(20)
            if isinstance(text, bytes):
                continue
            message = json.loads(text)
            if message["type"] == "prompt_active":
                told.append(message)
            if message["type"] != "chunk":
                continue
            shown[message["track"]][message["index"]] = message["prompt"]
            say(socket, type="ack", track=0, chunk=max(shown[0], default=0))
            if len(shown[0]) >= 12:  # until then the viewer looks at the other one
                say(socket, type="ack", track=1, chunk=max(shown[1]))
            if message["track"] == 0 and message["index"] in (3, 7) and asked < 2:
                asked += 1
                say(socket, type="prompt", prompt=(BLUE, "a green ball")[asked - 1])
        starts = {
            number: [index for index in sorted(chunks) if index and chunks[index] != chunks[index - 1]]
            for number, chunks in shown.items()
        }
        assert starts[0] == starts[1]
        assert len(starts[0]) == 2
        for number in (0, 1):
            assert [one["chunk"] for one in told if one["track"] == number] == starts[number]
        switches = [
            (session.tracks[1].recording.entries[at].chunk.first_frame / 16, shown[1][at]) for at in starts[1]
        ]
        frames = pipeline.generate(RED, num_frames=141, seed=4, policy="dense", switches=switches).frames
        for entry in session.tracks[1].recording.entries[:12]:
            part = frames[entry.chunk.first_frame : entry.chunk.first_frame + entry.chunk.frames]
            assert session.archive.read(entry) == fragment(part, entry.chunk.first_frame, 16)


def test_a_branch_claims_what_its_track_takes(server: Serving) -> None:
    with bare(server) as socket:
        say(socket, type="start", prompt=RED, beside="dense")
        name = hear(socket, "ready")["session"]
        engine, session = server.engine, server.parts.sessions.all[name]
        before = engine._claims[name].memory
        while hear(socket, "chunk")["track"] != 1:
            pass
        say(socket, type="branch", chunk=0, track=1)
        hear(socket, "branched")
        assert engine._claims[name].memory == before + session.tracks[1].claim.memory
        assert session.tracks[0].claim.memory != session.tracks[1].claim.memory


def test_all_are_told_of_the_end_though_some_take_nothing(pipeline: DummyForcingPipeline) -> None:
    async def never(*_: object) -> None:
        await asyncio.sleep(60)

    with serving(pipeline) as server, bare(server) as one, bare(server) as two, bare(server) as socket:
        for stuck in (one, two):  # waited for one after the other, they would take longer than there is time
            say(stuck, type="start", prompt=RED)
            session = server.parts.sessions.all[hear(stuck, "ready")["session"]]
            connection: Any = session.delivery.connection
            connection.send = never
        say(socket, type="start", prompt=RED)
        hear(socket, "ready")
        server.stop()
        assert hear(socket, "done")["reason"] == "shutdown"


def test_a_branch_waits_for_chunks_that_are_on_their_way(
    pipeline: DummyForcingPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(*args: Any) -> bytes:
        time.sleep(0.3)
        return fragment(*args)

    monkeypatch.setattr("dummyforcing.server.replicas.replica.fragment", slowly)
    with serving(pipeline) as server, bare(server) as socket:
        say(socket, type="start", prompt=RED)
        session = server.parts.sessions.all[hear(socket, "ready")["session"]]
        parent = session.tracks[0]
        deadline = time.monotonic() + 20
        while parent.next < 3:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert len(parent.recording) <= 2  # it is made, and not sent yet
        say(socket, type="branch", chunk=2)
        assert hear(socket, "branched")["chunk"] == 2
        recorded = [entry.chunk.index for entry in session.tracks[1].recording.entries]
        assert recorded == list(range(len(recorded)))
        assert len(recorded) >= 3
