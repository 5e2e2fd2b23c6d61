"""The command line: `dummyforcing generate`, `heads`, `eval` and `models`.

What is heavy is imported by the command that needs it, after the cheap checks, so that `--help` is instant.
"""

import os
import sys
import warnings
from collections.abc import Sequence
from typing import TextIO

import tyro

from dummyforcing.cli.eval import eval
from dummyforcing.cli.generate import generate
from dummyforcing.cli.heads import heads
from dummyforcing.cli.models import models
from dummyforcing.errors import UnknownWordsWarning, UserError
from dummyforcing.threads import spin_briefly

DESCRIPTION = """Make videos with autoregressive diffusion models, with a small cache (Dummy Forcing).

A first video, and what Dummy Forcing saves on it:
  dummyforcing generate "a red ball bounces on a green floor" -o ball.mp4 --compare"""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: What follows the program's name; None: as the program was called.

    Returns:
        The exit code: 0, 2 for bad input, 130 after Ctrl-C, 141 if nobody reads what is printed any more.
    """
    spin_briefly()
    args = sys.argv[1:] if args is None else args
    app = tyro.extras.SubcommandApp()
    for command in (generate, heads, eval, models):
        # A summary in the list of commands; a command's own help has its whole docstring.
        chosen = command.__name__ in args[:1]
        app.command(help=None if chosen else str(command.__doc__).partition("\n")[0])(command)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", UnknownWordsWarning)
            warnings.showwarning = _print_warning
            try:
                app.cli(prog="dummyforcing", description=DESCRIPTION, args=args)
            finally:
                sys.stdout.flush()
    except UserError as error:
        text = str(error)
        print(f"Error: {text[0].upper()}{text[1:]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has enough, such as `| head`; Python would complain again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


def _print_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"Warning: {message}", file=sys.stderr)
