"""Write docs/reference/cli.md from what the commands' `--help` says.

python -m research.pages.cli_reference [--check]
"""

import io
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout, suppress
from pathlib import Path
from unittest.mock import patch

from dummyforcing.cli import COMMANDS, Group, main
from research.pages.making import ROOT, table
from research.pages.making import main as run

PATH = ROOT / "docs" / "reference" / "cli.md"
WIDTH = 92
INTRODUCTION = """# Command line

Written by `python -m research.pages.cli_reference` from `--help`.

`dummyforcing COMMAND --help` shows the same; `python -m dummyforcing` is the same program. What is wrong with
a call is said in one sentence, with exit code 2. Options of videos and models are keyword arguments in
Python, too: see [Options](options.md).

## What all commands have in common { #common }

**Output.** Results are printed to stdout, with every file that was written and its length; progress,
warnings and errors go to stderr, progress to a terminal alone. `--quiet` leaves warnings and errors.
`--json` prints one object in place of text: what was found, such as `timings` and the counts of the `plan`,
and in `written` the `path` and the length of every file. `NO_COLOR` is respected. `--version` tells the
version.

```
dummyforcing generate "a yellow star spins" --json | jq '.timings.fps, .written[].path'
```

**Interruption.** Files are written under a temporary name and replace older ones when they are complete.
Ctrl-C, SIGTERM and SIGHUP end a command in order (exit codes 130, 143, 129). `generate` then keeps the
frames that are there: under the name that was given if there is no file yet, else as `NAME.part.mp4` beside
it; it says where, and how many. What a killed process left under a temporary name is removed by the next
one that writes the same file. If nobody reads the output any more (`| head`), the exit code is 141.

**Completion** of commands and flags by the Tab key, for bash, zsh, fish and tcsh; start a new shell
afterwards:

```
mkdir -p ~/.local/share/bash-completion/completions ~/.zfunc
dummyforcing --tyro-write-completion bash ~/.local/share/bash-completion/completions/dummyforcing
dummyforcing --tyro-write-completion zsh ~/.zfunc/_dummyforcing  # fpath+=~/.zfunc before compinit in .zshrc
dummyforcing --tyro-write-completion fish ~/.config/fish/completions/dummyforcing.fish
```

## Commands { #commands }
"""


def commands() -> Iterator[tuple[str, str]]:
    """Every command, and one sentence about it."""
    for name, command in COMMANDS.items():
        if isinstance(command, Group):
            yield name, command.summary
            for below, function in command.commands.items():
                yield f"{name} {below}", _summary(function.__doc__)
        else:
            yield name, _summary(command.__doc__)


def _summary(text: str | None) -> str:
    return str(text).partition("\n\n")[0].replace("\n", " ").strip()


def help_of(command: str) -> str:
    """What `--help` of a command prints, as plain text."""
    environment = {"COLUMNS": str(WIDTH), "NO_COLOR": "1"}
    printed = io.StringIO()
    with patch.dict(os.environ, environment), redirect_stdout(printed), suppress(SystemExit):
        main([*command.split(), "--help"])
    return without_rules(printed.getvalue())


def without_rules(text: str) -> str:
    """Titles with a colon in place of a rule below them; without colors and blanks at the ends of lines."""
    lines: list[str] = []
    for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines():
        if lines and re.fullmatch(r" ?-{8,}", line.rstrip()):
            lines[-1] = f"{lines[-1].strip()}:"
        else:
            lines.append(line.rstrip())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def made() -> Mapping[Path, str]:
    """The page by its path."""
    found = list(commands())
    rows = [[f"[`{name}`](#{name.replace(' ', '-')})", text] for name, text in found]
    parts = [INTRODUCTION, table(["command", "what it does"], rows) + "\n"]
    for name, _ in found:
        parts.append(f"## `{name}` {{ #{name.replace(' ', '-')} }}\n\n```text\n{help_of(name)}\n```\n")
    return {PATH: "\n".join(parts)}


if __name__ == "__main__":
    run(made, __doc__)
