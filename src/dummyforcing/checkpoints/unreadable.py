"""Why a file holds no weights that can be read: a sentence for each of the ways in which downloads go wrong.

raise unreadable(path, "what its reader said")
"""

import json
import re
import zipfile
from pathlib import Path

from dummyforcing.errors import BadFile
from dummyforcing.files.reading import instead_of_a_file

ZIP = b"PK\x03\x04"
"""How files begin that `torch.save` writes."""

UNFINISHED = (".incomplete", ".part", ".partial", ".crdownload", ".download", ".aria2", ".tmp", ".opdownload")
"""What browsers and downloaders put behind the name of a file until it is whole."""

FORMATS = {
    b"GGUF": (
        "a GGUF file, whose weights are quantised",
        "take the model as .safetensors, in bfloat16 or float8",
    ),
    b"\x1f\x8b": ("packed with gzip", "unpack it"),
    b"7z\xbc\xaf\x27\x1c": ("packed with 7-Zip", "unpack it"),
    b"Rar!": ("packed with RAR", "unpack it"),
    b"\x28\xb5\x2f\xfd": ("packed with Zstandard", "unpack it"),
    b"\x89HDF": ("an HDF5 file, as Keras writes them", "take the model as .safetensors"),
    b"\x89PNG": ("a picture", "take a file of weights"),
}
"""How other files begin, what they are and what to do."""

AGAIN = "download it again"


def unfinished(path: Path) -> Path | None:
    """What a download that goes on, or was given up, has put beside a file that is not there yet."""
    found = (path.with_name(path.name + ending) for ending in UNFINISHED)
    return next((part for part in found if part.exists()), None)


def no_file(path: Path) -> BadFile:
    """The error for a file that is not there."""
    if part := unfinished(path):
        return BadFile(f"There is no file {path} yet, only {part.name}", "let the download finish")
    return BadFile(f"There is no file {path}", "give one that holds weights")


def unreadable(path: Path, reason: object = "") -> BadFile:
    """The error for a file that is there.

    Args:
        path: The file.
        reason: What its reader said.
    """
    try:
        with path.open("rb") as file:
            begin = file.read(4096)
    except OSError as error:
        return BadFile(f"{path} cannot be read ({error.strerror})", "see to it that you may read it")
    if path.suffix.lower() in UNFINISHED:
        return BadFile(f"{path} is a download that has not finished", "let it finish, or download it again")
    if not begin:
        return BadFile(f"{path} is empty, it has 0 bytes", AGAIN)
    if what := instead_of_a_file(begin):
        return BadFile(f"{path} is {what} instead of weights", "download the file itself")
    for mark, (what, remedy) in FORMATS.items():
        if begin.startswith(mark):
            return BadFile(f"{path} is {what}", remedy)
    if begin.startswith(ZIP):
        return _unreadable_zip(path, reason)
    if not any(begin):
        return BadFile(f"{path} begins with zeros, as a download that has not finished", AGAIN)
    if path.name.endswith(".index.json"):
        return BadFile(f"{path} lists weights and holds none", f"give its folder, {path.parent}")
    if is_safetensors(begin) and (sizes := _sizes(path)):
        return BadFile(f"{path} ends early: it has {sizes[0]:,} of {sizes[1]:,} bytes", AGAIN)
    if _is_text(begin):
        return BadFile(f"{path} is text instead of weights", "download the file itself")
    return BadFile(
        f"{path} is damaged, incomplete or no file of weights" + (f" ({reason})" if reason else ""), AGAIN
    )


def unsafe(path: Path, message: str) -> BadFile:
    """The error for a pickle that torch does not read, for it could run code, or has another author.

    Args:
        path: The file.
        message: Torch's.
    """
    found = re.search(r"GLOBAL ([\w.]+)", message)
    if not found:
        return unreadable(path, "a pickle that torch did not write")
    return BadFile(
        f"{path} holds Python objects besides weights, {found[1]}, and reading them could run anything",
        "save its tensors alone, as .safetensors, where you trust it",
    )


def is_safetensors(begin: bytes) -> bool:
    """Whether a file begins as safetensors do: the length of a table in eight bytes, and the table."""
    return begin[8:9] == b"{" and int.from_bytes(begin[:8], "little") < 10**8


def _sizes(path: Path) -> tuple[int, int] | None:
    """How many bytes safetensors have, and how many they should have if these are more."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size >= 8 + length:
            try:
                table = json.loads(file.read(length))
                ends = [entry["data_offsets"][1] for name, entry in table.items() if name != "__metadata__"]
                length += max(ends, default=0)
            except (ValueError, LookupError, TypeError, AttributeError):
                return None
    return (size, 8 + length) if size < 8 + length else None


def _unreadable_zip(path: Path, reason: object) -> BadFile:
    if not zipfile.is_zipfile(path):
        return BadFile(f"{path} ends early: the list of what is in it, at its end, is missing", AGAIN)
    try:
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
    except zipfile.BadZipFile:
        names = [""]
    if any(name.endswith("/constants.pkl") for name in names):
        return BadFile(f"{path} is a TorchScript program", "take a file of tensors alone, as .safetensors")
    if not any(name.endswith("data.pkl") for name in names):
        return BadFile(f"{path} is an archive of {names[0] or 'nothing'}", "unpack it")
    return BadFile(f"{path} is damaged ({reason})", AGAIN)


def _is_text(begin: bytes) -> bool:
    try:
        text = begin[:-4].decode()  # the last character may be cut
    except UnicodeDecodeError:
        return False
    return bool(text) and all(letter.isprintable() or letter.isspace() for letter in text)
