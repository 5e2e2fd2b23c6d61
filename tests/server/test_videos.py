"""`/v1/videos` as the `openai` client speaks it, against a real server."""

import base64
import io
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np
import openai
import pytest
from PIL import Image

from dummyforcing.errors import UserError
from dummyforcing.media.clips import read_mp4
from dummyforcing.media.video import write_mp4
from dummyforcing.method.plan import Plan
from dummyforcing.pipeline.expander import PromptExpander
from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from tests.server.serving import Serving, serving

PROMPT = "a red ball bounces on a green floor"
OTHER = "a blue cube spins on a red floor"
SHORT: Any = {"num_frames": 9}

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")


def client_of(server: Serving, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{server.url}/v1",
        api_key=key,
        max_retries=0,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    )


@pytest.fixture(scope="module")
def client(server: Serving) -> openai.OpenAI:
    return client_of(server)


@pytest.fixture(scope="module")
def http(server: Serving) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, trust_env=False, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def video(client: openai.OpenAI) -> Any:
    """A finished one that tests share; do not delete it."""
    return client.videos.create_and_poll(prompt=PROMPT, extra_body={"num_frames": 21, "seed": 3})


@pytest.fixture(scope="module")
def remix(client: openai.OpenAI, video: Any) -> Any:
    """Another one, made of it; do not delete it."""
    return client.videos.poll(client.videos.remix(video.id, prompt=OTHER).id)


def decoded(data: bytes, folder: Path) -> np.ndarray:
    path = folder / "downloaded.mp4"
    path.write_bytes(data)
    return read_mp4(path)


def test_a_video_is_what_the_pipeline_makes(
    client: openai.OpenAI, video: Any, pipeline: DummyForcingPipeline, tmp_path: Path
) -> None:
    assert (video.status, video.progress, video.error) == ("completed", 100, None)
    assert (video.size, video.seconds, video.model, video.prompt) == ("48x32", "1.3125", "random", PROMPT)
    assert video.object == "video"
    assert video.expires_at > video.completed_at >= video.created_at

    data = client.videos.download_content(video.id).read()
    expected = pipeline.generate(PROMPT, num_frames=21, seed=3).frames
    write_mp4(tmp_path / "expected.mp4", expected, 16)
    assert np.array_equal(decoded(data, tmp_path), read_mp4(tmp_path / "expected.mp4"))


def test_pictures_of_a_video(client: openai.OpenAI, video: Any) -> None:
    thumbnail = Image.open(io.BytesIO(client.videos.download_content(video.id, variant="thumbnail").read()))
    sheet = Image.open(io.BytesIO(client.videos.download_content(video.id, variant="spritesheet").read()))
    assert (thumbnail.format, thumbnail.size, sheet.format) == ("WEBP", (48, 32), "PNG")
    assert sheet.width == 8 * 48
    assert sheet.height > 32


def test_scenes_and_frame_rate(client: openai.OpenAI, pipeline: DummyForcingPipeline, tmp_path: Path) -> None:
    options: Any = {
        "num_frames": 21,
        "fps": 32,
        "scenes": [{"prompt": PROMPT}, {"at": 0.25, "prompt": OTHER}],
    }
    video = client.videos.create_and_poll(prompt=PROMPT, extra_body=options)
    assert (video.status, video.seconds) == ("completed", "0.65625")  # 21 frames, twice as fast as usual
    expected = pipeline.generate(PROMPT, num_frames=21, switches=[(0.5, OTHER)]).frames
    write_mp4(tmp_path / "expected.mp4", expected, 32)
    data = client.videos.download_content(video.id).read()
    assert np.array_equal(decoded(data, tmp_path), read_mp4(tmp_path / "expected.mp4"))


def test_seconds_are_those_of_the_file(client: openai.OpenAI) -> None:
    seconds: Any = "4"
    video = client.videos.create(prompt=PROMPT, seconds=seconds, size="48x32", extra_body={"fps": 8})  # type: ignore[arg-type]
    try:
        assert video.model_extra is not None
        assert video.model_extra["num_frames"] == 33
        assert video.seconds == "4.125"
    finally:
        client.videos.delete(video.id)


def test_a_remix_has_the_same_noise_and_another_prompt(
    remix: Any, client: openai.OpenAI, video: Any, pipeline: DummyForcingPipeline, tmp_path: Path
) -> None:
    assert (remix.status, remix.remixed_from_video_id, remix.prompt) == ("completed", video.id, OTHER)
    write_mp4(tmp_path / "expected.mp4", pipeline.generate(OTHER, num_frames=21, seed=3).frames, 16)
    data = client.videos.download_content(remix.id).read()
    assert np.array_equal(decoded(data, tmp_path), read_mp4(tmp_path / "expected.mp4"))


@pytest.mark.slow
def test_a_video_goes_on_from_a_clip(bundled_server: Serving, tmp_path: Path) -> None:
    """From one with a floor of another color; so does its remix, when the upload is gone."""
    client = client_of(bundled_server)
    usual, clip = (
        client.videos.download_content(
            client.videos.create_and_poll(prompt=prompt, extra_body=SHORT).id
        ).read()
        for prompt in (PROMPT, OTHER)
    )
    old, other = decoded(clip, tmp_path).astype(int), decoded(usual, tmp_path)
    file = client.files.create(file=clip, purpose="vision")
    longer = {**SHORT, "num_frames": 21}
    calls: Any = [
        {"input_reference": clip, "extra_body": longer},
        {"extra_body": {**longer, "input_reference": {"file_id": file.id}}},
    ]
    made = [client.videos.create(prompt=PROMPT, **call).id for call in calls]
    client.files.delete(file.id)
    made.append(client.videos.remix(made[0], prompt="a blue ball bounces on a green floor").id)
    for id in made:
        assert client.videos.poll(id).status == "completed"
        new = decoded(client.videos.download_content(id).read(), tmp_path)[:9]
        assert np.abs(new - old).mean() < 6  # through the VAE, and H.264 twice
        assert np.abs(new - other.astype(int)).mean() > 12


def test_list_pages_and_delete(client: openai.OpenAI, video: Any) -> None:
    made = [client.videos.create(prompt=PROMPT, extra_body=SHORT).id for _ in range(5)]
    assert [one.id for one in client.videos.list(limit=2)][:5] == made[::-1]
    ascending = [one.id for one in client.videos.list(limit=3, order="asc")]
    assert ascending[-5:] == made
    assert ascending.index(video.id) < len(ascending) - 5
    assert [one.id for one in client.videos.list(after=made[1], order="asc")] == made[2:]
    page = client.videos.list(limit=1)
    assert page.has_more
    assert page.last_id == made[-1]
    for id in made:
        assert client.videos.delete(id).deleted
    assert not set(made) & {one.id for one in client.videos.list()}
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(made[0])
    with pytest.raises(openai.NotFoundError):
        client.videos.delete(made[0])


def test_a_running_video_is_given_up(server: Serving, client: openai.OpenAI) -> None:
    video = client.videos.create(prompt=PROMPT, extra_body={"num_frames": 4797})
    deadline = time.monotonic() + 30
    while not 0 < (now := client.videos.retrieve(video.id)).progress < 100:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert now.status == "in_progress"
    with pytest.raises(openai.NotFoundError, match=r"not finished, [0-9]+% of it is made"):
        client.videos.download_content(video.id)
    client.videos.delete(video.id)
    parts = server.parts
    assert not list(parts.store.videos.glob(f"*{video.id}*"))
    assert not any(stream.turn.owner == video.id for stream in parts.fleet.engines[0].streams)
    assert client.videos.create_and_poll(prompt=PROMPT, extra_body=SHORT).status == "completed"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": "sora-2"}, "model"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x" * 4001}, "prompt"),
        ({"prompt": "&nbsp;"}, "prompt"),
        ({"num_frames": 10}, "num_frames"),
        ({"num_frames": 10**9}, "num_frames"),
        ({"seconds": "1e9"}, "seconds"),
        ({"seconds": 100000}, "seconds"),
        ({"seconds": 1, "num_frames": 9}, "seconds"),
        ({"size": "161x160"}, "size"),
        ({"size": "9600x9600"}, "size"),
        ({"size": "large"}, "size"),
        ({"seed": -1}, "seed"),
        ({"policy": "best"}, "policy"),
        ({"fps": 0}, "fps"),
        ({"fps": 1000}, "fps"),
        ({"scenes": [{"at": 1000, "prompt": "a ball"}]}, "scenes"),
        ({"scenes": [{"prompt": "another"}]}, "scenes"),
        ({"strength": 0.5}, "strength"),
        ({"guidance": 7}, "guidance"),
        ({"expand": True}, "expand"),
        ({"input_reference": {"file_id": "file-none"}}, "file_id"),
        ({"input_reference": {"image_url": "http://127.0.0.1:1/a.png"}}, "input_reference.image_url"),
        ({"input_reference": {"image_url": "file:///etc/passwd"}}, "input_reference.image_url"),
        ({"input_reference": {"image_url": "data:image/png;base64,@"}}, "input_reference.image_url"),
    ],
)
@pytest.mark.parametrize("kind", ["json", "form"])
def test_what_cannot_be_made_is_refused(
    client: openai.OpenAI, http: httpx2.Client, fields: dict[str, Any], param: str, kind: str
) -> None:
    body = {"prompt": PROMPT, **fields}
    if kind == "form":
        prompt = body.pop("prompt")
        with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as caught:
            client.videos.create(prompt=prompt, extra_body=body)
        error: Any = caught.value.body
    else:
        response = http.post("/v1/videos", json=body)
        assert response.status_code in (400, 404)
        error = response.json()["error"]
    assert error["param"] == param
    assert error["message"].endswith(".")
    assert "/" not in error["message"].replace("image/png;", "")
    assert error["type"] in ("invalid_request_error", "not_found_error")
    assert error["code"]


@pytest.mark.parametrize("which", ["server", pytest.param("bundled_server", marks=pytest.mark.slow)])
def test_an_image_is_refused_by_models_that_cannot(request: pytest.FixtureRequest, which: str) -> None:
    client = client_of(request.getfixturevalue(which))
    message = {"server": "starts from a prompt alone", "bundled_server": "goes on from a clip"}[which]
    picture = io.BytesIO()
    Image.new("RGB", (320, 200), "red").save(picture, "PNG")
    url = "data:image/png;base64," + base64.b64encode(picture.getvalue()).decode()
    calls: Any = [
        {"input_reference": ("a.png", picture.getvalue()), "extra_body": SHORT},
        {"extra_body": {**SHORT, "image_reference": {"image_url": url}}},
    ]
    for call in calls:
        with pytest.raises(openai.BadRequestError, match=message) as caught:
            client.videos.create(prompt=PROMPT, **call)
        assert caught.value.param == "input_reference"


def test_unknown_words_are_named(client: openai.OpenAI) -> None:
    video = client.videos.create(prompt="a red ball dances in Paris", extra_body=SHORT)
    client.videos.delete(video.id)
    assert video.model_extra
    assert "dances, in, Paris" in video.model_extra["warnings"][0]


def sent(kind: str, content: bytes) -> dict[str, Any]:
    return {"content": content, "headers": {"content-type": kind}}


JSON, FORM = "application/json", "multipart/form-data"


@pytest.mark.parametrize(
    ("method", "path", "options", "status"),
    [
        ("POST", "/v1/videos", sent(JSON, b"{"), 400),
        ("POST", "/v1/videos", sent(JSON, b"[1]"), 400),
        (
            "POST",
            "/v1/videos",
            {"content": b"\xff\xfe", "headers": {"content-type": "application/json"}},
            400,
        ),
        (
            "POST",
            "/v1/videos",
            {"content": b'{"prompt": "\\ud800"}', "headers": {"content-type": "application/json"}},
            400,
        ),
        ("POST", "/v1/videos", sent("text/plain", b"x"), 415),
        (
            "POST",
            "/v1/videos",
            {"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=a"}},
            400,
        ),
        ("POST", "/v1/videos", sent(FORM, b"x"), 400),
        ("POST", "/v1/videos", {"data": {"prompt": "a", "scenes": "[" * 100_000}}, 400),
        ("POST", "/v1/videos", {"files": {"other": b"x"}, "data": {"prompt": "a ball"}}, 400),
        (
            "POST",
            "/v1/videos",
            {"files": {"input_reference": b"none"}, "data": {"prompt": "a ball"}},
            400,
        ),
        ("POST", "/v1/videos", {"data": {"prompt": ["a", "b"]}}, 400),
        ("POST", "/v1/videos/video_none/remix", {"json": {"prompt": "a ball"}}, 404),
        ("GET", "/v1/videos?limit=0", {}, 400),
        ("GET", "/v1/videos?order=up", {}, 400),
        ("GET", "/v1/videos?after=video_none", {}, 404),
        ("GET", "/v1/videos/%00%ff%2e%2e%2fserver.db", {}, 404),
        ("GET", "/v1/videos/../../etc/passwd", {}, 404),
        ("GET", "/v1/nothing", {}, 404),
        ("PUT", "/v1/videos", {}, 405),
        ("PATCH", "/v1/models", {}, 405),
        ("GET", "/v1/models/sora-2", {}, 404),
    ],
)
def test_garbage_gets_an_answer(
    http: httpx2.Client, method: str, path: str, options: dict[str, Any], status: int
) -> None:
    response = http.request(method, path, **options)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_parts_of_a_file(http: httpx2.Client, video: Any) -> None:
    path = f"/v1/videos/{video.id}/content"
    whole = http.get(path)
    assert (whole.status_code, whole.headers["content-type"]) == (200, "video/mp4")
    assert whole.headers["accept-ranges"] == "bytes"
    size = len(whole.content)

    def part(text: str, **headers: str) -> httpx2.Response:
        return http.get(path, headers={"range": text, **headers})

    for text, first, last in [
        ("bytes=0-99", 0, 99),
        ("bytes=100-", 100, size - 1),
        ("bytes=-7", size - 7, size - 1),
    ]:
        response = part(text)
        assert (response.status_code, response.content) == (206, whole.content[first : last + 1])
        assert response.headers["content-range"] == f"bytes {first}-{last}/{size}"
    for text in (f"bytes={size}-", "bytes=-0"):
        response = part(text)
        assert (response.status_code, response.headers["content-range"]) == (416, f"bytes */{size}")
        assert response.json()["error"]["code"] == "no_such_range"
    for text in ("bytes=9-2", "bytes=a-b", "lines=1-2", "bytes=0-1,5-6", "bytes=" + "9" * 5000 + "-"):
        assert part(text).content == whole.content
    assert part("bytes=0-9", **{"if-range": whole.headers["etag"]}).status_code == 206
    assert part("bytes=0-9", **{"if-range": '"other"'}).status_code == 200


def test_clients_that_vanish(server: Serving, client: openai.OpenAI, video: Any) -> None:
    """In the middle of a download, and of a request."""
    host, port = urlsplit(server.url).hostname, urlsplit(server.url).port
    for text in (
        f"GET /v1/videos/{video.id}/content HTTP/1.1\r\nHost: {host}\r\n\r\n",
        f"POST /v1/videos HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        "Content-Length: 99\r\n\r\n{",
        f"POST /v1/files HTTP/1.1\r\nHost: {host}\r\nContent-Type: multipart/form-data; boundary=a\r\n"
        "Content-Length: 9999\r\n\r\n--a\r\n",
    ):
        for _ in range(5):
            with socket.create_connection((host, port)) as connection:
                connection.sendall(text.encode())
                connection.recv(10) if text.startswith("GET") else time.sleep(0.01)
    assert client.videos.retrieve(video.id).status == "completed"


def test_the_model(client: openai.OpenAI, pipeline: DummyForcingPipeline) -> None:
    (model,) = client.models.list()
    assert model.id == "random"
    assert client.models.retrieve("default").id == "random"
    extra = model.model_extra
    assert extra is not None
    assert extra["words"] == pipeline.text.known_words()
    assert {"dummy", "dense"} <= set(extra["policies"])
    assert [extra[name] for name in ("size", "fps", "chunk_frames", "start")] == [[48, 32], 16, 12, None]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("sora-2")


@pytest.mark.parametrize("which", ["server", pytest.param("bundled_server", marks=pytest.mark.slow)])
def test_heads(request: pytest.FixtureRequest, which: str) -> None:
    """Of the model, or of the newest video."""
    server = request.getfixturevalue(which)
    if which == "server":
        client_of(server).videos.create_and_poll(prompt=PROMPT, extra_body={"num_frames": 33})
    found = httpx2.get(f"{server.url}/v1/heads", trust_env=False).json()
    config = server.parts.fleet.facts.files.config
    assert (found["layers"], found["heads"]) == (config.num_layers, config.num_heads)
    assert found["source"] == {"server": "found", "bundled_server": "shipped"}[which]
    assert sum(found["counts"].values()) == config.num_layers * config.num_heads
    assert [len(row) for row in found["roles"]] == [config.num_heads] * config.num_layers
    assert Plan.from_fields(found["plan"]).roles == tuple(map(tuple, found["roles"]))


def test_a_prompt_is_written_out_and_kept(
    pipeline: DummyForcingPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a stand-in for the language model, which is tested by itself; it fails the second time."""
    answers: list[Any] = [OTHER, UserError("The language model gave no answer", "try again")]

    def expand(self: PromptExpander, prompt: str) -> str:
        assert prompt == PROMPT
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr(PromptExpander, "expand", expand)
    with serving(pipeline, data=tmp_path, expand_prompts="http://127.0.0.1:1/v1") as server:
        client = client_of(server)
        made = [client.videos.create(prompt=PROMPT, extra_body={**SHORT, "expand": True}) for _ in range(2)]
        assert [one.prompt for one in made] == [OTHER, PROMPT]
        again = [client.videos.retrieve(one.id) for one in made]
    said = [(one.model_extra or {})["warnings"] for one in again]
    assert said == [[], ["The short prompt is used: The language model gave no answer; try again."]]


def test_other_keys_see_nothing(pipeline: DummyForcingPipeline, tmp_path: Path) -> None:
    keys = [letter * 32 for letter in "ab"]
    (tmp_path / "keys").write_text("\n".join(keys))
    with serving(
        pipeline, data=tmp_path / "data", api_key_file=tmp_path / "keys", max_jobs_per_key=1
    ) as server:
        mine, other = (client_of(server, key) for key in keys)
        video = mine.videos.create_and_poll(prompt=PROMPT, extra_body=SHORT)
        picture = io.BytesIO()
        Image.new("RGB", (32, 32)).save(picture, "PNG")
        file = mine.files.create(file=picture.getvalue(), purpose="vision")
        calls: list[Any] = [
            lambda client: client.videos.retrieve(video.id),
            lambda client: client.videos.download_content(video.id),
            lambda client: client.videos.remix(video.id, prompt=PROMPT),
            lambda client: client.videos.list(after=video.id),
            lambda client: client.videos.delete(video.id),
            lambda client: client.files.retrieve(file.id),
            lambda client: client.videos.create(
                prompt=PROMPT, extra_body={"input_reference": {"file_id": file.id}}
            ),
            lambda client: client.files.delete(file.id),
        ]
        for call in calls:
            with pytest.raises(openai.NotFoundError):
                call(other)
        assert not list(other.videos.list())
        assert [one.id for one in mine.videos.list()] == [video.id]

        long = mine.videos.create(prompt=PROMPT, extra_body={"num_frames": 4797})
        with pytest.raises(openai.RateLimitError, match="you have 1 videos"):
            mine.videos.create(prompt=PROMPT, extra_body=SHORT)
        waiting = other.videos.create(prompt=PROMPT, extra_body=SHORT)
        mine.videos.delete(long.id)
        assert other.videos.poll(waiting.id).status == "completed"
