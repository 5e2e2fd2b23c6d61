"""Files appear whole or not at all."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dummyforcing.errors import UserError
from dummyforcing.files.writing import new_folder, replacing


def write(path: Path, text: str, error: BaseException | None = None) -> None:
    with replacing(path) as part:
        part.write_text(text)
        if error:
            raise error


def test_a_new_file_takes_the_place_of_the_old(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write(path, "older")
    write(path, "newer")
    assert path.read_text() == "newer"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            UserError,
            "cannot write .*No space left on device",
        ),
        (OSError("odd"), UserError, "cannot write .*odd"),
        (RuntimeError("other"), RuntimeError, "other"),
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
    ],
)
def test_an_error_leaves_the_old_file(
    tmp_path: Path, error: BaseException, raised: type[BaseException], message: str
) -> None:
    path = tmp_path / "a"
    write(path, "older")
    with pytest.raises(raised, match=message):
        write(path, "newer", error)
    assert path.read_text() == "older"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize(("name", "message"), [("missing/a", "does not exist"), (".", "it is a folder")])
def test_hopeless_targets(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        write(tmp_path / name, "text")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["a" * 300, "a\0b", ""])
def test_names_that_no_file_can_have(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="cannot write"):
        write(Path(name), "text")
    with pytest.raises(UserError, match="cannot write"), new_folder(Path(name)):
        pass
    assert os.listdir(tmp_path) == []


def test_what_killed_processes_left_goes(tmp_path: Path) -> None:
    """What others that still run are writing stays, and so do files of other names."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / f".a.{ended.pid}.part").write_text("half")
    (tmp_path / f".b.{ended.pid}.part").mkdir()
    (tmp_path / f".b.{ended.pid}.part" / "file").write_text("half")
    others = {f".a.{os.getppid()}.part", f".ab.{ended.pid}.part", f".a.x{ended.pid}.part", "a.part"}
    for name in others:
        (tmp_path / name).write_text("of others")
    write(tmp_path / "a", "whole")
    with new_folder(tmp_path / "b"):
        pass
    assert set(os.listdir(tmp_path)) == {*others, "a", "b"}


def test_what_is_no_file_stays(tmp_path: Path) -> None:
    """A device or a pipe would be replaced by a file: for root, /dev/null too."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="it is no file"):
        write(tmp_path / "pipe", "text")
    assert (tmp_path / "pipe").is_fifo()
    assert os.listdir(tmp_path) == ["pipe"]
