"""Jobs: their queue, their errors, and that nothing is lost when the server ends, however it does."""

import asyncio
import contextlib
import errno
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from dummyforcing.errors import BadFile, NotFinite
from dummyforcing.media.clips import read_mp4
from dummyforcing.media.video import write_mp4
from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from dummyforcing.server.jobs.film import Film
from dummyforcing.server.replicas.host import ModelHost
from dummyforcing.server.storage.store import Store
from tests.server.serving import Serving, serving

PROMPT = "a red ball bounces on a green floor"
pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")


def client_of(url: str) -> openai.OpenAI:
    http = openai.DefaultHttpxClient(trust_env=False)
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=http)


def create(client: openai.OpenAI, num_frames: int = 9, **options: Any) -> str:
    return client.videos.create(prompt=PROMPT, extra_body={"num_frames": num_frames, **options}).id


def wait(client: openai.OpenAI, id: str, status: str, *, progress: int = 0) -> Any:
    deadline = time.monotonic() + 120
    while True:
        video = client.videos.retrieve(id)
        if video.status == status and video.progress >= progress:
            return video
        assert video.status in ("queued", "in_progress"), video.error
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def limited(pipeline: DummyForcingPipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(pipeline, data=tmp_path_factory.mktemp("jobs"), max_jobs=2) as running:
        yield running


def test_a_full_queue_says_when_to_come_back(limited: Serving) -> None:
    client = client_of(limited.url)
    ids = [create(client, 4797), create(client)]
    with pytest.raises(openai.RateLimitError, match="The queue is full") as caught:
        create(client)
    assert caught.value.code == "queue_full"
    assert int(caught.value.response.headers["retry-after"]) > 0
    for id in ids:
        client.videos.delete(id)
    assert wait(client, create(client), "completed")


def full(self: object, *_: Any) -> None:
    raise BadFile("cannot write /data/x.mp4: No space left on device", "x") from OSError(
        errno.ENOSPC, "No space left on device"
    )


def not_finite(self: object, number: int) -> None:
    raise NotFinite("Chunk 1 has NaN", "take float32")


def broken(self: object, number: int) -> None:
    raise RuntimeError("/secret/path")


@pytest.mark.parametrize(
    ("place", "name", "fault", "code", "message"),
    [
        (Film, "begin", full, "storage", "The server could not write the video (No space left on device)."),
        (Film, "write", full, "storage", "The server could not write the video (No space left on device)."),
        (Film, "finish", full, "storage", "The server could not write the video (No space left on device)."),
        (ModelHost, "make", not_finite, "not_finite", "Chunk 1 has NaN; take float32."),
        (ModelHost, "make", broken, "server_error", "Something went wrong in the server; its log says what."),
    ],
)
def test_what_fails_says_why_and_the_next_one_runs(
    limited: Serving,
    monkeypatch: pytest.MonkeyPatch,
    place: type,
    name: str,
    fault: Callable[..., None],
    code: str,
    message: str,
) -> None:
    client, parts = client_of(limited.url), limited.parts
    monkeypatch.setattr(place, name, fault)
    video = wait(client, create(client), "failed")
    monkeypatch.undo()
    assert (video.error.code, video.error.message) == (code, message)
    with pytest.raises(openai.NotFoundError, match="The video failed"):
        client.videos.download_content(video.id)
    assert not [path for path in parts.store.videos.iterdir() if video.id in path.name]
    assert wait(client, create(client), "completed")
    assert not limited.engine.streams
    assert not limited.engine._claims


def test_a_server_that_ends_keeps_its_jobs(pipeline: DummyForcingPipeline, tmp_path: Path) -> None:
    with serving(pipeline, data=tmp_path) as running:
        client = client_of(running.url)
        first, second = create(client, 4797), create(client)
        wait(client, first, "in_progress", progress=1)
        began = time.monotonic()
    assert time.monotonic() - began < 10
    store = Store(tmp_path)
    states = [tuple(row) for row in store._database.execute("SELECT id, status FROM videos ORDER BY number")]
    assert states == [(first, "queued"), (second, "queued")]
    assert not list(store.videos.iterdir())
    asyncio.run(store.change_video(first, {"model": "another"}))
    store.close()

    with serving(pipeline, data=tmp_path) as running:
        client = client_of(running.url)
        assert wait(client, second, "completed")
        assert wait(client, first, "failed").error.message == (
            "The model 'another' is loaded no longer; ask for the video again."
        )


# --- in a process of its own, which can be killed -----------------------------------------------------------

SERVER = """
import sys, time
from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from tests.server.serving import serving
with serving(DummyForcingPipeline.from_pretrained("tiny"), data=sys.argv[1]) as running:
    print(running.url, flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def process(folder: Path) -> Iterator[tuple[subprocess.Popen[str], openai.OpenAI]]:
    command = [sys.executable, "-c", SERVER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            yield running, client_of(running.stdout.readline().strip())
        finally:
            running.kill()


@pytest.mark.slow
def test_a_server_that_is_killed_loses_nothing(bundled: DummyForcingPipeline, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with process(data) as (running, client):
        finished = create(client)
        wait(client, finished, "completed")
        content = client.videos.download_content(finished).read()
        hit, waiting = create(client, 117, seed=7), create(client, seed=8)
        wait(client, hit, "in_progress", progress=5)
        running.send_signal(signal.SIGKILL)
        running.wait()
    assert [path.name for path in (data / "videos").glob(".*.part")]  # it was in the middle of a file

    with process(data) as (_, client):
        assert client.videos.retrieve(finished).status == "completed"
        assert client.videos.download_content(finished).read() == content
        assert [video.id for video in client.videos.list(order="asc")] == [finished, hit, waiting]
        for id, seed, count in ((hit, 7, 117), (waiting, 8, 9)):
            wait(client, id, "completed")
            (tmp_path / "made.mp4").write_bytes(client.videos.download_content(id).read())
            expected = bundled.generate(PROMPT, num_frames=count, seed=seed).frames
            write_mp4(tmp_path / "expected.mp4", expected, 16)
            made = read_mp4(tmp_path / "made.mp4")
            assert np.array_equal(made, read_mp4(tmp_path / "expected.mp4"))
            assert np.abs(made.astype(int) - expected).mean() < 3
        assert not list((data / "videos").glob(".*"))


@pytest.mark.slow
def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """Files of the server may not grow beyond 1 KB for a while."""
    with process(tmp_path) as (running, client):
        kept = create(client)
        wait(client, kept, "completed")
        hit = create(client, 117)
        wait(client, hit, "in_progress", progress=5)
        limits = resource.prlimit(running.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(running.pid, resource.RLIMIT_FSIZE, (1000, limits[1]))
        for call in (
            lambda: create(client),
            lambda: client.videos.delete(kept),
            lambda: client.files.create(file=bytes(2000), purpose="vision"),
        ):
            with pytest.raises(openai.InternalServerError) as caught:
                call()
            assert (caught.value.status_code, caught.value.code) == (503, "storage")
        assert client.videos.download_content(kept).read()
        deadline = time.monotonic() + 60
        while list((tmp_path / "videos").glob(f".{hit}*")):  # its file is given up
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert client.videos.retrieve(hit).status != "completed"

        resource.prlimit(running.pid, resource.RLIMIT_FSIZE, limits)
        error = wait(client, hit, "failed").error
        assert error.code == "storage"
        assert wait(client, create(client), "completed")
        assert client.videos.delete(kept).deleted
