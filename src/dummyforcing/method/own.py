"""Code of the user's own: objects of files and modules by name, and a sentence for what goes wrong in them.

code = find_code("mine.py:keep_two:3")  # code.made is what `keep_two` is in mine.py, code.numbers is "3"
"""

import hashlib
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module, invalidate_caches
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from dummyforcing.errors import BadRequest, UserError
from dummyforcing.files.records import nearest

_PACKAGE = Path(__file__).parents[1]
_PLACE = re.compile(r"(?P<place>.+?\.py|[A-Za-z_][\w.]*):(?P<name>[A-Za-z_]\w*)(?::(?P<numbers>.*))?")


@dataclass(frozen=True)
class Code:
    """What a text such as `mine.py:keep_two:3` names."""

    made: object
    """The object of that name."""
    name: str
    """The text, without the folder of the file."""
    numbers: str
    """What follows the name; empty: nothing."""
    sha256: str
    """Of the file, in hexadecimal."""


def find_code(text: str) -> Code:
    """Import what a text names; its code runs.

    Args:
        text: `FILE.py:NAME` or `MODULE:NAME`, then optionally a colon and numbers. Files may import what lies
            beside them; modules are also looked for in the current folder.

    Raises:
        BadRequest: If there is no such file, module or name, or importing it fails; says where.
    """
    found = _PLACE.fullmatch(text)
    if found is None:
        raise BadRequest(
            f"'{text}' does not name a policy of your own",
            "write FILE.py:NAME or MODULE:NAME, such as mine.py:keep_two",
            "policy",
        )
    place, name = found["place"], found["name"]
    module = _run_file(Path(place)) if place.endswith(".py") else _import(place)
    if not hasattr(module, name):
        own = [key for key, one in vars(module).items() if getattr(one, "__module__", "") == module.__name__]
        raise BadRequest(f"There is no '{name}' in {place}", nearest(name, own or [*vars(module)]), "policy")
    file = getattr(module, "__file__", None)
    return Code(
        getattr(module, name),
        f"{Path(place).name}{text[len(place) :]}",
        found["numbers"] or "",
        hashlib.sha256(Path(file).read_bytes() if file else b"").hexdigest(),
    )


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


def _run_file(path: Path) -> ModuleType:
    """A file as a module, run each time."""
    spec = spec_from_file_location(f"own_policy_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise BadRequest(f"There is no file {path}", "name one that is there", "policy")
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    with explained(f"File {path.name}"), _found_in(path.resolve().parent):
        spec.loader.exec_module(module)
    return module


def _import(name: str) -> ModuleType:
    invalidate_caches()
    with explained(f"Module {name}"), _found_in(Path.cwd()):
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # it is there, and misses another one
            raise BadRequest(
                f"There is no module '{name}'", "install it, or name a file: FILE.py:NAME", "policy"
            ) from error


@contextmanager
def _found_in(folder: Path) -> Iterator[None]:
    """Let imports find modules in a folder, after all others."""
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
