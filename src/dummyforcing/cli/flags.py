"""Flags from options: every option of the library is a flag, with its documentation, by no other words.

    @command(load=FlagsOf(LoadOptions), video=FlagsOf(VideoOptions))
    def generate(*, prompt: str, load: Given, video: Given) -> None: ...

`load` and `video` then hold what was given on the command line, by the options' Python names.
"""

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, make_dataclass
from functools import wraps
from inspect import Parameter, Signature, getdoc, signature
from typing import Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from dummyforcing.cli.terminal import telling
from dummyforcing.errors import UserError
from dummyforcing.files.records import to_json
from dummyforcing.pipeline.option import Documented, documented
from dummyforcing.pipeline.options import LoadOptions, VideoOptions

Given = Mapping[str, Any]
"""Options that were given on the command line, by their Python names."""


@dataclass(frozen=True)
class FlagsOf:
    """The options of a class that a command has."""

    kind: type[object]
    only: tuple[str, ...] = ()
    """Python names; empty: all that can be flags."""
    without: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Defaults of this command alone, by Python name."""

    def options(self) -> list[Documented]:
        """The options."""
        return [
            one
            for one in documented(self.kind)
            if one.about.is_flag and one.name not in self.without and (not self.only or one.name in self.only)
        ]

    def flags(self) -> type[Any]:
        """A class that the parser of the command line makes: a field for each flag, None where not given."""
        made = [self._field(one) for one in self.options()]
        return make_dataclass("Flags", made, frozen=True, namespace={"__doc__": ""})

    def given(self, flags: Any) -> dict[str, Any]:
        """Collect the options that were given, by Python name."""
        values = {one.name: getattr(flags, one.flag.replace("-", "_")) for one in self.options()}
        found = {
            name: value
            for name, value in values.items()
            if not (value is None or value is False or value == ())
        }
        if re.search(r"[:.]", found.get("policy", "")):  # a name alone needs no library yet
            from dummyforcing.method.loading import policy_of

            found["policy"] = policy_of(found["policy"])
        return {**self.defaults, **found}

    def _field(self, one: Documented) -> tuple[str, Any, Any]:
        about, kind = one.about, one.about.kind
        hint = self.defaults.get(one.name, about.hint or one.default)
        details: dict[str, Any] = {"help": one.help, "metavar": about.metavar}
        if kind is not bool and not about.is_repeated:
            details["help_behavior_hint"] = f"(default: {hint})"
        if about.is_repeated:
            hinted: Any = UseAppendAction[tuple[kind, ...]]  # type: ignore[valid-type]
        elif kind is bool:
            hinted = FlagCreatePairsOff[bool]
        else:
            hinted = (Literal[about.choices] if about.choices else kind) | None
            details["metavar"] = about.metavar or (
                f"{{{','.join(about.choices)}}}" if about.choices else None
            )
        default = () if about.is_repeated else (False if kind is bool else None)
        return one.flag.replace("-", "_"), Annotated[hinted, arg(**details)], field(default=default)


Verbose = Annotated[
    FlagCreatePairsOff[bool],
    arg(
        aliases=["-v"],
        help="Tell which attention backend was chosen, and why a fast path was left.",
    ),
]
Quiet = Annotated[
    FlagCreatePairsOff[bool],
    arg(aliases=["-q"], help="Say nothing but warnings and errors; show no progress."),
]
Json = Annotated[
    FlagCreatePairsOff[bool],
    arg(name="json", help="Print one JSON object in place of text: what was found, and the files written."),
]

Found = Mapping[str, Any]
"""What a command has found, ready for JSON."""


def command(**sets: FlagsOf) -> Callable[[Callable[..., Found | None]], Callable[..., None]]:
    """Make a command of a function: its arguments of these names get flags, and it gets -v and -q.

    If it returns what it has found, it gets --json, too.
    """

    def decorate(function: Callable[..., Found | None]) -> Callable[..., None]:
        made = {name: flags.flags() for name, flags in sets.items()}
        finds = signature(function).return_annotation is not None

        @wraps(function)
        def run(
            *, verbose: bool = False, quiet: bool = False, as_json: bool = False, **arguments: Any
        ) -> None:
            given = {name: flags.given(arguments.pop(name)) for name, flags in sets.items()}
            with telling(verbose=verbose, quiet=quiet, as_json=as_json) as voice:
                found = function(**arguments, **given)
                if as_json:
                    print(to_json({**(found or {}), "written": voice.written}, indent=1))

        parameters, hints = [], dict(function.__annotations__)
        for name, parameter in signature(function).parameters.items():
            changed = parameter
            if name in made:
                hints[name] = Annotated[made[name], arg(name="")]
                changed = parameter.replace(annotation=hints[name], default=made[name]())
            parameters.append(changed.replace(kind=Parameter.KEYWORD_ONLY))
        for name, hint in (("verbose", Verbose), ("quiet", Quiet), *([("as_json", Json)] if finds else [])):
            hints[name] = hint
            parameters.append(Parameter(name, Parameter.KEYWORD_ONLY, default=False, annotation=hint))
        run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {**hints, "return": None}
        del run.__wrapped__  # the parser would read its signature
        summary, args, rest = str(getdoc(function)).partition("\nArgs:\n")
        run.__doc__ = summary + args + re.sub(r"\n {8,}", " ", rest)  # the help keeps the breaks of lines
        own = {name: hint for name, hint in function.__annotations__.items() if name not in {*sets, "return"}}
        run.flags = {  # type: ignore[attr-defined]
            **{one.name: f"--{one.flag}" for flags in sets.values() for one in flags.options()},
            **{name: flag for name, hint in own.items() if (flag := _own_flag(name, hint))},
        }
        return run

    return decorate


def _own_flag(name: str, hint: Any) -> str | None:
    """The flag of an argument of a command; None: it stands by itself, without a flag."""
    settings = getattr(hint, "__metadata__", ())
    if Positional in settings:
        return None
    renamed = next((one.name for one in settings if getattr(one, "name", None)), name)
    return f"--{renamed.replace('_', '-')}"


COMMAND_OF = {
    "calibrate()": "'dummyforcing teacache calibrate'",
    "find_plan()": "'dummyforcing heads --save-plan'",
    "record()": "'dummyforcing heads --save'",
}
"""Functions that messages of the library name, and the commands that call them."""
EVERY_FLAG = {
    one.name: f"--{one.flag}" for kind in (LoadOptions, VideoOptions) for one in FlagsOf(kind).options()
} | {"model": "--model"}
"""The flags of all options by their Python names."""


def in_flags(text: str, own: Mapping[str, str] = EVERY_FLAG) -> str:
    """Say in flags what a message of the library says in Python: `num_frames=41` becomes `--frames 41`.

    Args:
        text: The message.
        own: The flags of a command by the Python names of the options; for others, those that most have.
    """
    for function, command_line in COMMAND_OF.items():
        text = text.replace(function, command_line)
    flags = {**EVERY_FLAG, **own}

    def flag(found: re.Match[str]) -> str:
        name, value = found[1], found[2].strip("'\"")
        if name not in flags:
            return found[0]
        return flags[name] if value in ("", "True") else f"{flags[name]} {shlex.quote(value)}"

    return re.sub(r"\b([a-z][a-z0-9_]*)=(\"[^\"]*\"|'[^']*'|(?:[\w.:/+-]*[\w/+])?)", flag, text)


def told(error: UserError, flags: Mapping[str, str]) -> str:
    """Say on the command line what is wrong: in flags, and with the flag that is to blame.

    Args:
        error: From the library.
        flags: The flags of the command by the Python names of the options.
    """
    text, flag = in_flags(str(error), flags), flags.get(error.option or "")
    if flag and not re.search(rf"{flag}(?![\w-])", text):
        text = f"{text.removesuffix('.')} ({flag})."
    if text.partition(" ")[0].isalpha():  # else it is a flag, or a path, which is spelt as it is
        text = text[0].upper() + text[1:]
    return text
