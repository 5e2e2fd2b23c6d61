"""Short texts that name files, and files of prompts."""

from pathlib import Path

from dummyforcing.errors import BadFile, BadRequest
from dummyforcing.files.reading import instead_of_a_file, read_text, whole


def split_number(text: str, number: str, file: str) -> tuple[str, float | None]:
    """Read `FILE` or `FILE:NUMBER`.

    Args:
        text: What was given; if there is a file of this very name, it is meant.
        number: What the number is, for the error message.
        file: What the file is, likewise.

    Returns:
        The file, and the number if there is one.

    Raises:
        BadRequest: If what follows the last colon is no number.
    """
    if Path(text).exists() or ":" not in text:
        return text, None
    path, _, digits = text.rpartition(":")
    try:
        return path, float(digits)
    except ValueError:
        raise BadRequest(
            f"The {number} of {file} '{text}' is no number", f"write FILE:{number.upper()}"
        ) from None


def whole_prompt(prompt: str, param: str) -> str:
    """A prompt whose surrogate pairs are single characters.

    Args:
        prompt: It.
        param: The option that it is given by.

    Raises:
        BadRequest: If a character of it is not whole, as where bytes were read in another encoding.
    """
    try:
        return whole(prompt)
    except ValueError:
        raise BadRequest(
            f"The prompt {prompt!a} has a part of a character", "write it again", param
        ) from None


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, one per line; empty lines do not count.

    Raises:
        BadFile: If it cannot be read, or holds none.
    """
    prompts = [line for line in map(str.strip, read_prompt_file(path).split("\n")) if line]
    if not prompts:
        raise BadFile(f"{path} holds no prompts", "write one per line")
    return prompts


def read_prompt_file(path: Path) -> str:
    """The text of a file of prompts in any format.

    Raises:
        BadFile: If it cannot be read, or is what a download left in place of it.
    """
    try:
        text = read_text(path)
    except OSError as error:
        raise BadFile(f"The prompts {path} cannot be read ({error.strerror})", "give a text file") from error
    except ValueError as error:
        raise BadFile(
            f"The prompts {path} are no text ({error})", "write one prompt per line, in UTF-8"
        ) from error
    if instead := instead_of_a_file(text.encode(errors="replace")):
        raise BadFile(f"{path} is {instead} instead of prompts", "download the file itself")
    return text
