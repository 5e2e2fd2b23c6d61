"""Files and folders that appear whole or not at all."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dummyforcing.errors import BadFile


@contextmanager
def explaining(path: Path) -> Iterator[None]:
    """Turn an `OSError` of the block (no permission, disk full) into a `BadFile` about `path`."""
    try:
        yield
    except OSError as error:
        raise BadFile(f"cannot write {path}: {error.strerror or error}", "choose another place") from error


def temporary(path: Path) -> Path:
    """Create an empty file beside `path`, to be renamed once it is complete.

    Made before the work begins, it shows at once whether the target is hopeless.

    Raises:
        BadFile: If `path` is a folder or a device, or its folder is missing or not writable.
    """
    with explaining(path):
        if path.is_dir():
            raise BadFile(f"cannot write {path}: it is a folder", "give a file name")
        # A device or a pipe would be replaced by a file.
        if path.exists() and not path.is_file():
            raise BadFile(f"cannot write {path}: it is no file", "give another name")
        part = _beside(path)
        part.touch()
    return part


def _beside(path: Path) -> Path:
    """The temporary name of a new file or folder; what a killed process left of the same one goes."""
    if "\0" in str(path):
        raise BadFile(f"cannot write {str(path)!r}: its name has a zero character", "give another name")
    if not path.parent.is_dir():
        raise BadFile(f"cannot write {path}: the folder {path.parent} does not exist", "create it first")
    for found in path.parent.iterdir():
        of = re.fullmatch(rf"\.{re.escape(path.name)}\.(\d+)\.part", found.name)
        if of and not _is_running(int(of[1])):
            shutil.rmtree(found) if found.is_dir() else found.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def _is_running(process: int) -> bool:
    """Whether there is a process of this number on this machine, as far as one can tell."""
    if os.name != "posix":  # elsewhere the question would be a signal
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is somebody else's
        return True
    return True


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write to the temporary path that this gives; it becomes `path` if the block succeeds, else it goes.

    An older `path` stays as it is until then. The block should do nothing but write: its `OSError`s are taken
    for trouble with the file.

    Raises:
        BadFile: If the file cannot be written.
    """
    part = temporary(path)
    try:
        with explaining(path):
            yield part
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Fill the temporary folder that this gives; it becomes `path` if the block succeeds, else it goes.

    Raises:
        BadFile: If `path` exists, or cannot be written.
    """
    with explaining(path):
        if path.exists():
            raise BadFile(f"cannot write {path}: it exists already", "give the name of a new folder")
        part = _beside(path)
    try:
        with explaining(path):
            part.mkdir()
            yield part
            part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
