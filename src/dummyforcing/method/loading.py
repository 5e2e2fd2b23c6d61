"""Policies of files and modules: code that runs because who runs the program named it.

policy = load_policy("mine.py:keep_two:3")     # what `keep_two` in mine.py makes of 3
"""

import hashlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module, invalidate_caches
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from dummyforcing.errors import BadRequest
from dummyforcing.files.records import nearest
from dummyforcing.method.own import explained
from dummyforcing.method.policy import POLICIES, Policy, as_policy, called, installed, parse_policy

OWN = "own_policy_"
"""Begins the names of modules that are files of the user's own."""
_PLACE = re.compile(r"(?P<place>.+?\.py|[A-Za-z_][\w.]*):(?P<name>[A-Za-z_]\w*)(?::(?P<numbers>.*))?")


def load_policy(text: str) -> Policy:
    """Read a policy by name, or run a file or module of your own that has one.

    Args:
        text: As for `parse_policy`; or `FILE.py:NAME` or `MODULE:NAME`, then optionally a colon and whole
            numbers. NAME is a policy, an object as `as_policy` takes it, or a function or class that makes
            one of the numbers.

    Raises:
        BadRequest: If there is no such policy, or its code fails; says where.
    """
    if text.partition(":")[0] in (*POLICIES, *installed()):
        return parse_policy(text)
    code = find_code(text)
    before = text.removesuffix(f":{code.numbers}") if code.numbers else text
    return as_policy(called(text, before, code.made, code.numbers), code.name, code.sha256)


def is_code(text: str) -> bool:
    """Whether a text names code, `FILE.py:NAME` or `MODULE:NAME`, and not a policy by its name."""
    return bool(re.search(r"\.py(:|$)|:[A-Za-z_]", text))


def policy_of(text: str) -> str | Policy:
    """A policy as who runs this program writes it: code is loaded, names stay as they are.

    What others write must not come here, as the code runs: `choose_policy` takes names alone.

    Raises:
        BadRequest: If there is no such code, or it fails.
    """
    return load_policy(text) if is_code(text) else text


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


def own_modules() -> list[ModuleType]:
    """The files of the user's own that were run: other processes cannot import them by name."""
    return [module for name, module in sys.modules.items() if name.startswith(OWN)]


def _run_file(path: Path) -> ModuleType:
    """A file as a module, run each time."""
    spec = spec_from_file_location(f"{OWN}{path.stem}", path)
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
