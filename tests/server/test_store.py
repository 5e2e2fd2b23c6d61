"""The database of jobs and uploads: what it keeps, and what it refuses to work with."""

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from dummyforcing.errors import BadFile
from dummyforcing.server.storage.store import Store, StoredFile, StoredVideo
from dummyforcing.server.web.problems import Problem

Result = TypeVar("Result")


def do(waiting: Awaitable[Result]) -> Result:
    async def wait() -> Result:
        return await waiting

    return asyncio.run(wait())


def a_video(id: str, **values: Any) -> StoredVideo:
    fields: dict[str, Any] = {
        "owner": "me",
        "created": 1.0,
        "model": "tiny",
        "prompt": "a ball; DROP TABLE videos",
        "request": {"prompt": "a ball", "seed": 3},
        "frames": 9,
        "fps": 16,
        "size": "160x160",
        "seed": 3,
        "policy": "dummy",
        "warnings": ["a warning"],
        **values,
    }
    return StoredVideo(id=id, **fields)


def add(store: Store, video: StoredVideo, most: int = 100, most_of_owner: int = 100) -> None:
    do(store.add_video(video, most=most, most_of_owner=most_of_owner))


def finish(store: Store, id: str, time: float, size: int) -> None:
    store.video_file(id).write_bytes(b"x" * size)
    do(store.change_video(id, {"status": "completed", "completed": time, "bytes": size}))


def test_what_is_stored_is_there_after_a_restart(tmp_path: Path) -> None:
    store = Store(tmp_path / "new" / "data")
    videos = [a_video("video_a"), a_video("video_b", owner="you", error={"code": "a", "message": "b"})]
    file = StoredFile(
        id="file-a", owner="me", created=2.0, name="../../a.png", purpose="vision", kind="image", bytes=4
    )
    for video in videos:
        add(store, video)
    do(store.add_file(file))
    store.upload_file("file-a").write_bytes(b"data")
    store.close()

    again = Store(tmp_path / "new" / "data")
    assert do(again.video("me", "video_a")) == videos[0]
    assert do(again.video("you", "video_b")) == videos[1]
    assert do(again.file("me", "file-a")) == file
    assert again.upload_file("file-a").read_bytes() == b"data"
    assert not any(path.stat().st_mode & 0o077 for path in again.folder.iterdir())  # it is nobody else's
    assert do(again.next_queued()) == videos[0]
    again.close()


def test_others_see_nothing_of_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    add(store, a_video("video_a"))
    assert do(store.video("you", "video_a")) is None
    assert do(store.page("you", None, 10, newest_first=True)) == []
    assert do(store.page("you", "video_a", 10, newest_first=True)) is None
    assert not do(store.remove_video("you", "video_a"))
    assert do(store.video("me", "video_a")) is not None
    store.close()


def test_the_queue_has_an_end(tmp_path: Path) -> None:
    store = Store(tmp_path)
    add(store, a_video("video_a"), 2, 1)
    with pytest.raises(Problem, match="you have 1 videos") as caught:
        add(store, a_video("video_b"), 2, 1)
    assert (caught.value.status, caught.value.headers) == (429, {"Retry-After": "10"})
    add(store, a_video("video_c", owner="you"), 2, 1)
    with pytest.raises(Problem, match="there are 2 videos"):
        add(store, a_video("video_d", owner="they"), 2, 1)
    finish(store, "video_a", 1.0, 1)
    add(store, a_video("video_e"), 2, 1)
    store.close()


def test_old_and_many_files_go_but_not_what_is_being_made(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number, id in enumerate(["video_a", "video_b", "video_c", "video_d", "video_e"]):
        add(store, a_video(id))
        if id != "video_e":
            finish(store, id, 10.0 * number, 100)
    do(store.change_video("video_e", {"status": "in_progress"}))
    store.upload_file("file-a").write_bytes(b"x" * 100)
    file = StoredFile(id="file-a", owner="me", created=15, name="a", purpose="vision", kind="clip", bytes=100)
    do(store.add_file(file))

    do(store.clean(5.0, 1000))  # a is too old
    assert not store.video_file("video_a").exists()
    do(store.clean(5.0, 250))  # there are 400 bytes: b goes, and the upload, which came next
    left = do(store.page("me", None, 10, newest_first=False))
    assert left is not None
    assert [video.id for video in left] == ["video_c", "video_d", "video_e"]
    assert do(store.file("me", "file-a")) is None
    assert not store.upload_file("file-a").exists()
    assert [path.name for path in sorted(store.videos.iterdir())] == ["video_c.mp4", "video_d.mp4"]
    store.close()


A, B, C, E = (f"video_{letter * 32}" for letter in "abce")


def test_what_was_being_made_waits_again_and_stray_files_go(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for id in (A, B, C):
        add(store, a_video(id))
    finish(store, A, 1.0, 5)
    do(store.change_video(B, {"status": "in_progress"}))
    finish(store, C, 1.0, 5)
    store.video_file(C).unlink()
    (store.videos / f".{B}.mp4.123.part").write_bytes(b"half")
    store.video_file(E).write_bytes(b"of nobody")
    (store.uploads / f"file-{'e' * 32}.part").write_bytes(b"half")
    store.close()

    again = Store(tmp_path)
    states = {id: do(again.video("me", id)) for id in (A, B, C)}
    assert [video and video.status for video in states.values()] == ["completed", "queued", "failed"]
    lost = states[C]
    assert lost is not None
    assert lost.error is not None
    assert lost.error["code"] == "file_lost"
    assert [path.name for path in again.videos.iterdir()] == [f"{A}.mp4"]
    assert not list(again.uploads.iterdir())
    again.close()


def test_a_second_server_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    code = f"from dummyforcing.server.storage.store import Store; Store({str(tmp_path)!r})"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "is in use by another server; give this one a folder of its own." in other.stderr
    with pytest.raises(BadFile, match="in use"):
        Store(tmp_path)
    store.close()
    Store(tmp_path).close()


@pytest.mark.parametrize("damage", ["text", "middle", "version", "cut"])
def test_a_damaged_database_is_refused(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    for number in range(200):
        add(store, a_video(f"video_{number}"), 1000, 1000)
    store.close()
    path = tmp_path / "server.db"
    data = bytearray(path.read_bytes())
    if damage == "text":
        path.write_bytes(b"this is no database, but it is long enough to be one" * 100)
    elif damage == "middle":
        data[len(data) // 4 : len(data) // 2] = os.urandom(len(data) // 2 - len(data) // 4)
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        database = sqlite3.connect(path)
        database.execute("PRAGMA user_version = 99")
        database.close()
    with pytest.raises(BadFile, match=r"is damaged|is of version 99"):
        Store(tmp_path)
    shutil.rmtree(tmp_path)  # nothing of it is held
    Store(tmp_path).close()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(BadFile, match="cannot be used"):
        Store(file)
    with pytest.raises(BadFile, match="cannot be used"):
        Store("/proc/none")


def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path: Path) -> None:
    store = Store(tmp_path)
    add(store, a_video("video_a"))
    pages = store._database.execute("PRAGMA page_count").fetchone()[0]
    store._database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(Problem, match="full") as caught:
        add(store, a_video("video_b", prompt="x" * 100_000))
    assert caught.value.status == 503
    store.close()
    again = Store(tmp_path)
    assert do(again.video("me", "video_a")) is not None
    assert do(again.video("me", "video_b")) is None
    again.close()


def test_a_temporary_folder_goes() -> None:
    store = Store(None)
    assert store.is_temporary
    assert store.folder.is_dir()
    store.close()
    assert not store.folder.exists()


def test_files_of_others_stay(tmp_path: Path) -> None:
    """A folder that somebody gives may have films of his own in it, and a database be new."""
    store = Store(tmp_path)
    add(store, a_video("video_" + "a" * 32))
    finish(store, "video_" + "a" * 32, 1.0, 5)
    mine = [store.videos / "holiday.mp4", store.videos / "video_.mp4", store.uploads / "photo.jpg"]
    for path in mine:
        path.write_bytes(b"mine")
    (store.videos / "folder").mkdir()
    store.close()
    Store(tmp_path).close()
    (tmp_path / "server.db").unlink()  # as its refusal says, when it is damaged
    again = Store(tmp_path)
    assert all(path.read_bytes() == b"mine" for path in mine)
    assert again.video_file("video_" + "a" * 32).is_file()
    assert (again.videos / "folder").is_dir()
    again.close()
