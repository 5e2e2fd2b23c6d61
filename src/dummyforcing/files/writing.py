"""Files appear whole or not at all; and the reader of prompt files."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dummyforcing.errors import BadFile


@contextmanager
def explaining(path: Path) -> Iterator[None]:
    """Turn an `OSError` of the block (no permission, disk full) into a `UserError` about `path`."""
    try:
        yield
    except OSError as error:
        raise BadFile(f"cannot write {path}: {error.strerror or error}", "choose another place") from error


def temporary(path: Path) -> Path:
    """Create an empty file beside `path`, to be renamed once it is complete.

    Made before the work begins, it shows at once whether the target is hopeless.

    Raises:
        UserError: If `path` is a folder, or its folder is missing or not writable.
    """
    if path.is_dir():
        raise BadFile(f"cannot write {path}: it is a folder", "give a file name")
    if not path.parent.is_dir():
        raise BadFile(f"cannot write {path}: the folder {path.parent} does not exist", "create it first")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with explaining(path):
        part.touch()
    return part


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write to the temporary path that this gives; it becomes `path` if the block succeeds, else it goes.

    An older `path` stays as it is until then. The block should do nothing but write: its `OSError`s are taken
    for trouble with the file.

    Raises:
        UserError: If the file cannot be written.
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
        UserError: If `path` exists, or cannot be written.
    """
    if path.exists():
        raise BadFile(f"cannot write {path}: it exists already", "give the name of a new folder")
    if not path.parent.is_dir():
        raise BadFile(f"cannot write {path}: the folder {path.parent} does not exist", "create it first")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with explaining(path):
            part.mkdir()
            yield part
            part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def split_number(text: str, number: str, file: str) -> tuple[str, float | None]:
    """Read `FILE` or `FILE:NUMBER`.

    Args:
        text: What was given; if there is a file of this very name, it is meant.
        number: What the number is, for the error message.
        file: What the file is, likewise.

    Returns:
        The file, and the number if there is one.

    Raises:
        UserError: If what follows the last colon is no number.
    """
    if Path(text).exists() or ":" not in text:
        return text, None
    path, _, digits = text.rpartition(":")
    try:
        return path, float(digits)
    except ValueError:
        raise BadFile(
            f"The {number} of {file} '{text}' is no number", f"write FILE:{number.upper()}"
        ) from None


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, one per line; empty lines do not count.

    Raises:
        UserError: If it cannot be read, or holds none.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").split("\n")]
    except OSError as error:
        reason = f"{path} cannot be read ({error.strerror})"
        raise BadFile(f"cannot read the prompts: {reason}", "give a text file") from error
    except UnicodeDecodeError as error:
        raise BadFile(f"The prompts {path} are no text", "write one prompt per line, in UTF-8") from error
    if not (prompts := [line for line in lines if line]):
        raise BadFile(f"{path} holds no prompts", "write one per line")
    return prompts
