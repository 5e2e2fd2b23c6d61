"""Code of the user's own: what goes wrong in it is one sentence that says where."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dummyforcing.errors import BadRequest, UserError

_PACKAGE = Path(__file__).parents[1]


@contextmanager
def explained(what: str, option: str | None = "policy") -> Iterator[None]:
    """Say in a sentence what goes wrong in code of the user's own, and where.

    Args:
        what: Begins the sentence, such as `Policy 'mine.py:keep_two'`.
        option: To blame.

    Raises:
        BadRequest: In place of anything that is raised, but for errors that are such sentences already.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        said = " ".join(str(getattr(error, "msg", error)).split())
        raise BadRequest(
            f"{what} failed{_place(error)} ({type(error).__name__}{': ' * bool(said)}{said})",
            "mend it there",
            option,
        ) from error


def _place(error: BaseException) -> str:
    """Where the user's code was when it failed, in words; not where in a library that it called."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" in line {error.lineno} of {Path(error.filename).name}"
    frames = traceback.extract_tb(error.__traceback__)
    files = [frame.filename for frame in frames]
    theirs = [name for name in files if not (name.startswith("<") or Path(name).is_relative_to(_PACKAGE))]
    if not theirs:
        return ""
    line = [frame.lineno for frame in frames if frame.filename == theirs[0]][-1]
    return f" in line {line} of {Path(theirs[0]).name}"
