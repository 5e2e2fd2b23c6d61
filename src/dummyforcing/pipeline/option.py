"""One option: all that is known of it, and the check of its values.

Types and documentation are read as they are written, so that nothing is imported for them.
"""

import ast
import inspect
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

from dummyforcing.errors import BadRequest


@dataclass(frozen=True)
class About:
    """Facts of an option besides its name, its default and its documentation."""

    kind: type = str
    """What the text of a flag is read as: `str`, `int`, `float` or `bool`."""
    flag: str | None = None
    """The flag, where it is not called like the option."""
    is_flag: bool = True
    """Whether the command line has it: objects cannot be typed."""
    is_repeated: bool = False
    """Whether the flag may be given several times."""
    choices: tuple[str, ...] = ()
    """All that a text may be."""
    metavar: str | None = None
    """What stands for the value in the help."""
    hint: str = ""
    """What happens without the option, in words; empty: its default says it."""
    unit: str = ""
    """Of a number."""
    least: float | None = None
    """The least number allowed."""
    above: float | None = None
    """A number must be greater than this."""
    most: float | None = None
    """The greatest number allowed."""
    instead_of: tuple[str, ...] = ()
    """Options that say the same in other words: they cannot be given beside this one."""


@dataclass(frozen=True)
class Documented:
    """An option with all that is known of it."""

    name: str
    default: Any
    about: About
    text: str
    """Its documentation."""
    annotation: ast.expr
    """Its type, as it is written."""

    @property
    def flag(self) -> str:
        """Its flag, without the dashes before it."""
        return self.about.flag or self.name.replace("_", "-")

    @property
    def help(self) -> str:
        """Its documentation for those who do not write Python."""
        return self.text.partition(" In Python")[0]

    def checked(self, value: Any) -> Any:
        """A value of it, with numbers of numpy and PyTorch as Python's.

        Raises:
            BadRequest: If it has another type, or is out of bounds.
        """
        value = _plain(value)
        if isinstance(value, str) and self.about.choices and value not in self.about.choices:
            choices = ", ".join(self.about.choices)
            raise BadRequest(f"There is no {self.name} '{value}'", f"take {choices}", self.name)
        if not _fits(self.annotation, value):
            what = {int: "whole number", float: "number"}.get(self.about.kind, "value for it")
            remedy = ast.unparse(self.annotation) if what == "value for it" else f"a {what}"
            raise BadRequest(f"{self.name}={shorten(value)} is no {what}", f"give {remedy}", self.name)
        if self.about.kind in (int, float) and isinstance(value, int | float):
            self._require_bounds(value)
        return value

    def _require_bounds(self, value: float) -> None:
        about = self.about
        below = about.least is not None and not value >= about.least
        not_above = about.above is not None and not value > about.above
        beyond = about.most is not None and not value <= about.most
        if below or not_above or beyond:
            bounds = [f"{about.least} or more"] if about.least is not None else []
            bounds += [f"more than {about.above}"] if about.above is not None else []
            bounds += [f"{about.most} at most"] if about.most is not None else []
            unit = f" {about.unit}" if about.unit else ""
            problem = f"{self.name}={shorten(value)} is out of range"
            raise BadRequest(problem, f"take {' and '.join(bounds)}{unit}", self.name)


def option(default: Any, **about: Any) -> Any:
    """A field of an options class: its default, and fields of `About`."""
    return field(default=default, metadata={"about": About(**about)})


def documented(kind: type[object]) -> Iterator[Documented]:
    """The options of a class, in order."""
    written = {name: told for base in reversed(kind.__mro__) for name, told in _written(base).items()}
    for one in fields(kind):  # type: ignore[arg-type]
        yield Documented(one.name, one.default, one.metadata["about"], *written[one.name])


def one_option(kind: type[object], name: str) -> Documented:
    """An option of a class by its name."""
    return next(one for one in documented(kind) if one.name == name)


@cache
def _written(kind: type[object]) -> Mapping[str, tuple[str, ast.expr]]:
    """The documentation below each field of a class, and its annotation."""
    if "__dataclass_fields__" not in vars(kind):
        return {}
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for before, after in zip(body.body, body.body[1:], strict=False):
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name) and is_text:
            annotation = before.annotation
            if isinstance(annotation, ast.Constant):  # in quotes, as what it names is not imported
                annotation = ast.parse(str(annotation.value), mode="eval").body
            text = " ".join(str(after.value.value).split())  # type: ignore[attr-defined]
            found[before.target.id] = text, annotation
    return found


def shorten(value: object) -> str:
    """What a message shows of a value."""
    try:
        return textwrap.shorten(repr(value), 60, placeholder="...") or "..."
    except ValueError:  # a whole number of thousands of digits
        return "..."


def _plain(value: Any) -> Any:
    """Numbers as Python's own, those in lists and pairs too."""
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value
    is_number = getattr(value, "ndim", None) == 0 and hasattr(value, "item")
    return value.item() if is_number else value


def _fits(annotation: ast.expr, value: Any) -> bool:
    """Whether a value has a type, as it is written. By names, so that nothing is imported for it."""
    match annotation:
        case ast.BinOp(left, ast.BitOr(), right):
            return _fits(left, value) or _fits(right, value)
        case ast.Constant(None):
            return value is None
        case ast.Subscript(ast.Name("Literal"), ast.Tuple(choices)):
            return any(isinstance(one, ast.Constant) and one.value == value for one in choices)
        case ast.Subscript(ast.Name("Sequence"), item):
            is_row = isinstance(value, Sequence) and not isinstance(value, str)
            return is_row and all(_fits(item, one) for one in value)
        case ast.Subscript(ast.Name("tuple"), ast.Tuple(items)):
            is_row = isinstance(value, list | tuple) and len(value) == len(items)
            return is_row and all(map(_fits, items, value))
        case ast.Subscript(ast.Name("Callable"), _):
            return callable(value)
        case ast.Name("int"):
            return isinstance(value, int) and not isinstance(value, bool)
        case ast.Name("float"):
            return isinstance(value, int | float) and not isinstance(value, bool)
        case ast.Name("OwnPolicy"):  # anything of that form
            return hasattr(value, "roles") and hasattr(value, "assign")
        case ast.Name("Path"):
            return isinstance(value, os.PathLike)
        case ast.Attribute(ast.Name(package), name):
            classes = [one for one in type(value).__mro__ if one.__module__.partition(".")[0] == package]
            return any(one.__name__ == name for one in classes)
        case ast.Name(name):
            return any(one.__name__ == name for one in type(value).__mro__)
    raise AssertionError(f"annotations such as {ast.unparse(annotation)} are not read yet")
