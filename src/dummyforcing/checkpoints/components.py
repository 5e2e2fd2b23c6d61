"""Components of transformers and diffusers: their configurations, and their chatter kept off the terminal."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers.utils.logging
import transformers.utils.logging

from dummyforcing.errors import BadFile
from dummyforcing.files.reading import read_json


@contextmanager
def quiet() -> Iterator[None]:
    """Keep progress bars, advisory logs and warnings of transformers and diffusers off the terminal.

    What the host application had set is restored at the end.
    """
    logs: tuple[Any, ...] = (transformers.utils.logging, diffusers.utils.logging)
    before = [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for log in logs:
            log.set_verbosity(log.CRITICAL)
            log.disable_progress_bar()
        try:
            yield
        finally:
            for log, (verbosity, bar) in zip(logs, before, strict=True):
                log.set_verbosity(verbosity)
                if bar:
                    log.enable_progress_bar()


def read_component_config(folder: Path) -> dict[str, Any]:
    """Read the `config.json` of a component.

    Raises:
        BadFile: If it is missing or no table.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise BadFile(f"{folder} has no config.json", "give a folder in the layout of a diffusers pipeline")
    try:
        data = read_json(path)
    except (OSError, ValueError) as error:
        raise BadFile(f"{path} is damaged ({error})", "fetch it again") from error
    if not isinstance(data, dict):
        raise BadFile(f"{path} does not describe a model, it holds no fields", "fetch it again")
    return data
