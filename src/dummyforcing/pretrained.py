"""Load a component of transformers or diffusers from a local folder: silently, strictly, offline.

Both libraries fill missing weights with random numbers and only log it; here that is an error that names the
tensors.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import diffusers.utils.logging
import torch
import transformers.utils.logging

from dummyforcing.errors import UserError

Model = TypeVar("Model", bound=torch.nn.Module)


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


def load_pretrained(kind: type[Model], folder: Path, device: torch.device | str, dtype: torch.dtype) -> Model:
    """Read a model from `config.json` and `*.safetensors` (one file, or shards with their index).

    Args:
        kind: A class with `from_pretrained`, of transformers or diffusers.
        folder: Where the files are.
        device: Where the weights go.
        dtype: What the weights become.

    Returns:
        The model in evaluation mode, without gradients.

    Raises:
        UserError: If files are missing or damaged, or if the tensors are not exactly those of the config.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json; give a folder in the layout of a diffusers pipeline.")
    from_pretrained: Any = kind.from_pretrained  # type: ignore[attr-defined]
    try:
        with quiet():
            model, report = from_pretrained(
                str(folder),
                torch_dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                low_cpu_mem_usage=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:  # a damaged file raises anything from OSError to a bare SafetensorError
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"the weights in {folder} are missing or damaged, fetch them again ({reason})."
        ) from error

    problems = [
        f"{len(names)} {what} ({', '.join(sorted(map(str, names))[:3])}{', ...' if len(names) > 3 else ''})"
        for what in ("missing", "unexpected", "mismatched")
        if (names := report[f"{what}_keys"])
    ]
    if problems:
        raise UserError(f"the tensors in {folder} are not those of its config.json: {'; '.join(problems)}.")
    loaded: Model = model.to(device).eval().requires_grad_(False)
    return loaded
