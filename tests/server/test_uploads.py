"""Uploads: what they become, and what is refused; `/v1/files` as the `openai` client speaks it."""

import asyncio
import io
import json
import subprocess
import sys
import wave
import zlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np
import openai
import pytest
from PIL import Image
from starlette.datastructures import UploadFile

from dummyforcing.media.clips import read_video
from dummyforcing.media.images import read_image
from dummyforcing.media.video import write_mp4
from dummyforcing.server.settings import read_settings
from dummyforcing.server.storage.decoding import Wanted, Work
from dummyforcing.server.storage.store import Store
from dummyforcing.server.storage.uploads import Uploads
from dummyforcing.server.web.problems import Problem
from tests.footage import numbered
from tests.server.serving import Serving

Result = TypeVar("Result")


@pytest.fixture
def uploads(tmp_path: Path) -> Iterator[Uploads]:
    settings = read_settings({"data": tmp_path / "data", "max_clip": 60, "max_image_pixels": 1_000_000})
    store = Store(settings.data)
    yield Uploads(settings, store)
    assert not [path for path in store.uploads.iterdir() if "." in path.name]
    store.close()


def do(waiting: Awaitable[Result]) -> Result:
    async def wait() -> Result:
        return await waiting

    return asyncio.run(wait())


async def add(uploads: Uploads, data: bytes) -> str:
    file = await uploads.add("me", UploadFile(io.BytesIO(data), filename="../a.png"), "vision")
    return file.id


def png(size: tuple[int, int] = (48, 32)) -> bytes:
    rng = np.random.default_rng(0)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def clip(folder: Path) -> bytes:
    path = folder / "source.mp4"
    write_mp4(path, numbered(12), 16)
    return path.read_bytes()


def test_a_model_is_given_what_a_file_shows(uploads: Uploads, tmp_path: Path) -> None:
    async def look() -> None:
        image, video = await add(uploads, png()), await add(uploads, clip(tmp_path))
        (tmp_path / "image").write_bytes(png())
        async with uploads.prepared("me", image, Wanted((32, 32))) as path:
            assert np.array_equal(np.asarray(Image.open(path)), read_image(tmp_path / "image", (32, 32))[0])
        assert not path.exists()
        async with uploads.prepared("me", video, Wanted((32, 48), count=9, fps=24)) as path:
            expected = read_video(tmp_path / "source.mp4", 9, (32, 48), 24)
            assert np.array_equal(read_video(path, 9, (32, 48), 24), expected)
        with pytest.raises(Problem, match=r"^There is no file"):
            async with uploads.prepared("you", image, Wanted((32, 32))):
                pass
        with pytest.raises(Problem, match=r"^The file is no image; give an image\.$"):
            async with uploads.prepared("me", video, Wanted((32, 32), "image")):
                pass
        with pytest.raises(Problem, match=r"^The file is too short"):
            async with uploads.prepared("me", video, Wanted((32, 48), count=90)):
                pass

    do(look())


def bomb(folder: Path) -> bytes:
    """A PNG of 100 000 x 100 000 black pixels."""
    head = b"\x00\x01\x86\xa0" * 2 + b"\x01\x00\x00\x00\x00"
    data = zlib.compress(bytes(12_501) * 1000, 9)

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")
        )

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def ten_hours(folder: Path) -> bytes:
    path = folder / "long.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for time in (0, 36_000):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()


def large_frames(folder: Path) -> bytes:
    path = folder / "large.mp4"
    write_mp4(path, np.zeros((1, 1600, 1600, 3), np.uint8), 16)
    return path.read_bytes()


def sound(folder: Path) -> bytes:
    with wave.open(str(folder / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16000))
    return (folder / "a.wav").read_bytes()


def playlist(folder: Path) -> bytes:
    """Names another file of the server that is a video."""
    clip(folder)
    return f"ffconcat version 1.0\nfile '{folder / 'source.mp4'}'\n".encode()


def hls(folder: Path) -> bytes:
    clip(folder)
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{folder / 'source.mp4'}\n".encode()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (bomb, "100000x100000 pixels; give one of 1000000"),
        (lambda _: png((1001, 1000)), "1001x1000 pixels"),
        (lambda _: png()[:-100], "cannot be read as an image"),
        (lambda _: png()[:60], "cannot be read"),
        (ten_hours, "lasts 36000 s; give a clip of 60 s at most"),
        (large_frames, "1600x1600 pixels"),
        (lambda folder: clip(folder)[:1500], "no image, and no video|cannot be read|no frames"),
        (lambda folder: clip(folder)[1500:], "no image, and no video"),
        (sound, "no image, and no video"),
        (playlist, "no image, and no video"),
        (hls, "no image, and no video"),
        (lambda _: b"text", "no image, and no video"),
        (lambda _: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image, and no video"),
        (lambda _: bytes(100_000), "no image, and no video"),
        (lambda _: b"", "empty"),
    ],
)
def test_what_cannot_be_read_is_refused(
    uploads: Uploads, tmp_path: Path, make: Callable[[Path], bytes], message: str
) -> None:
    with pytest.raises(Problem, match=message) as caught:
        do(add(uploads, make(tmp_path)))
    assert caught.value.status == 400
    assert str(tmp_path) not in caught.value.message


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(Problem, match="too large; give one of 1000 bytes at most") as caught:
        do(add(Uploads(read_settings({"max_body": "1KB"}), store), png()))
    assert caught.value.status == 413
    assert not list(store.uploads.iterdir())
    store.close()


def test_decoding_has_an_end(uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Work, "seconds", 0)
    with pytest.raises(Problem, match="takes too long or too much memory"):
        do(add(uploads, png()))


def test_decoding_has_no_more_memory_than_it_may(tmp_path: Path) -> None:
    """Of a process with 600 MB, 250 of which Python and the libraries take."""
    path = tmp_path / "image.png"
    Image.new("RGB", (12_000, 12_000)).save(path)
    work = Work(str(path), 10**9, 60, str(tmp_path / "target"), Wanted((32, 32)))
    code = "import dummyforcing.server.storage.decoding as d; d.Work.memory = 600 * 10**6; d.main()"
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(asdict(work)), capture_output=True, text=True
    )
    assert "too much memory" in json.loads(done.stdout)["problem"]


def test_files_as_openai_has_them(server: Serving, tmp_path: Path) -> None:
    http = openai.DefaultHttpxClient(trust_env=False)
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, http_client=http)
    file = client.files.create(file=("bild ü.png", png()), purpose="vision")
    extra: Any = file.model_extra
    assert (file.object, file.bytes, file.filename, file.purpose) == (
        "file",
        len(png()),
        "bild ü.png",
        "vision",
    )
    assert (file.status, extra["kind"]) == ("processed", "image")
    assert client.files.retrieve(file.id).id == file.id
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError, match="There is no file"):
        client.files.retrieve(file.id)
    with pytest.raises(openai.BadRequestError, match="no image, and no video") as caught:
        client.files.create(file=b"text", purpose="vision")
    assert caught.value.param == "file"
