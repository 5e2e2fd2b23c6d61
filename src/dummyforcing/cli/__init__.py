"""The command line: `dummyforcing generate`, `serve`, `heads`, `eval`, `bench` and others.

What is heavy is imported by the command that needs it, after the cheap checks, so that `--help` is instant.
"""

import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from io import TextIOWrapper

import tyro

from dummyforcing.cli import models, teacache
from dummyforcing.cli.attach import attach
from dummyforcing.cli.bench import bench
from dummyforcing.cli.endings import (
    ending_at_signals,
    interrupted,
    is_out_of_memory,
    last_words,
    refuse_little_address_space,
    refuse_nothing,
    unread,
)
from dummyforcing.cli.env import env
from dummyforcing.cli.eval import compare, eval
from dummyforcing.cli.flags import told
from dummyforcing.cli.generate import generate
from dummyforcing.cli.heads import heads
from dummyforcing.cli.plans import calibrate, import_heads
from dummyforcing.cli.serve import serve
from dummyforcing.cli.terminal import say_warning
from dummyforcing.errors import NotEnoughMemory, PictureWarning, RequestWarning, UserError

DESCRIPTION = """Make videos with autoregressive diffusion models, with a small cache (Dummy Forcing).

A first video, and what Dummy Forcing saves on it:
  dummyforcing generate "a red ball bounces on a green floor" -o ball.mp4 --compare

Version, and completion by the Tab key (bash, zsh, fish or tcsh):
  dummyforcing --version
  dummyforcing --tyro-write-completion bash ~/.local/share/bash-completion/completions/dummyforcing"""


@dataclass(frozen=True)
class Group:
    """A command with commands of its own."""

    summary: str
    description: str
    commands: Mapping[str, Callable[..., None]]
    default: str
    """Which of them is meant if none is named."""


COMMANDS: dict[str, Callable[..., None] | Group] = {
    "generate": generate,
    "serve": serve,
    "heads": heads,
    "heads import": import_heads,
    "heads calibrate": calibrate,
    "eval": eval,
    "eval compare": compare,
    "bench": bench,
    "teacache": Group(
        "Find the denoising steps that a model can do without.",
        teacache.DESCRIPTION,
        {"calibrate": teacache.calibrate, "show": teacache.show},
        default="show",
    ),
    "models": Group(
        "List, show, check and convert models.",
        models.DESCRIPTION,
        {
            "list": models.list_models,
            "show": models.show,
            "check": models.check,
            "convert": models.convert,
        },
        default="list",
    ),
    "attach": attach,
    "env": env,
}


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: What follows the program's name; None: as the program was called.

    Returns:
        The exit code: 0, 2 for bad input, 130 after Ctrl-C (143 after SIGTERM, 129 after SIGHUP), 141 if
        nobody reads what is printed any more.
    """
    if isinstance(sys.stdout, TextIOWrapper):  # what a terminal or a log cannot show is shown escaped
        sys.stdout.reconfigure(errors="backslashreplace")
    args = _joined(sys.argv[1:] if args is None else args)
    if "--version" in args:
        print(f"dummyforcing {version('dummyforcing')}")
        return 0
    try:
        with warnings.catch_warnings(), ending_at_signals():
            warnings.simplefilter("ignore")
            for kind in (PictureWarning, RequestWarning):
                warnings.simplefilter("always", kind)
            warnings.showwarning = say_warning
            try:
                refuse_nothing(args)
                if not {"-h", "--help"} & set(args):
                    refuse_little_address_space()
                _run("dummyforcing", DESCRIPTION, COMMANDS, args)
            finally:
                sys.stdout.flush()
    except UserError as error:
        return _refused(error, args)
    except KeyboardInterrupt as error:
        return interrupted(error)
    except BrokenPipeError:
        return unread()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0] or type(error).__name__
        remedy = "take a smaller size or fewer frames, or raise the limit of memory (ulimit -v)"
        return _refused(NotEnoughMemory(f"The memory has run out ({reason})", remedy), args)
    return 0


def _refused(error: UserError, args: Sequence[str]) -> int:
    """Say what cannot be done, and give the exit code."""
    last_words(f"Error: {told(error, getattr(_called(COMMANDS, args), 'flags', {}))}")
    return 2


def _joined(args: Sequence[str]) -> Sequence[str]:
    """The arguments, with a name of two words as one."""
    name = " ".join(args[:2])
    return [name, *args[2:]] if name in COMMANDS else args


def _called(commands: Mapping[str, Callable[..., None] | Group], args: Sequence[str]) -> object:
    """The command that `args` begins with; None: there is none."""
    found = commands.get(args[0]) if args else None
    return _called(found.commands, args[1:] or [found.default]) if isinstance(found, Group) else found


def _run(
    prog: str, description: str, commands: Mapping[str, Callable[..., None] | Group], args: Sequence[str]
) -> None:
    """Run the command that `args` begins with."""
    group = commands.get(args[0]) if args else None
    if isinstance(group, Group):
        _run(f"{prog} {args[0]}", group.description, group.commands, args[1:] or [group.default])
        return
    tyro._experimental_options["ansi_codes"] = not os.environ.get("NO_COLOR")
    _app(commands, args).cli(prog=prog, description=description, args=args)


def _app(
    commands: Mapping[str, Callable[..., None] | Group], args: Sequence[str]
) -> tyro.extras.SubcommandApp:
    """A parser of commands; those of groups are only listed, but for shell completion."""
    app = tyro.extras.SubcommandApp()
    completes = any(arg.startswith("--tyro-") for arg in args[:1])
    for name, command in commands.items():
        if isinstance(command, Group) and completes:
            app.command(_app(command.commands, args), name=name, help=command.summary)
        elif isinstance(command, Group):
            app.command(name=name, help=command.summary)(lambda: None)  # `_run` goes on to its commands
        else:
            # A summary in the list of commands; a command's own help has its whole docstring.
            summary = None if name in args[:1] else str(command.__doc__).partition("\n")[0]
            app.command(name=name, help=summary)(command)
    return app
