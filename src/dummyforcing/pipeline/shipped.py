"""Head plans and TeaCache tables by name: files, or those that come with a model."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.errors import BadRequest
from dummyforcing.files.text import split_number
from dummyforcing.method.plan import Plan
from dummyforcing.sampling.teacache import Calibration


def read_plan(files: ModelFiles, plan: Plan | str | Path | None) -> Plan | None:
    """The head plan that is meant: one that is there, the model's own (`shipped`), or a file.

    Raises:
        UserError: If there is none.
    """
    if plan is None or isinstance(plan, Plan):
        return plan
    if str(plan) == "shipped":
        maker = "find_plan()"
        return Plan.load(_shipped(files, "plan.json", "head plan", maker, "plan"))
    return Plan.load(plan)


def read_plans(
    files: ModelFiles, plan: Plan | Sequence[Plan] | str | Path | None, batch: int
) -> tuple[Plan, ...]:
    """The head plan of each video of a batch; empty: none is given.

    Args:
        files: The model.
        plan: One for all of them, see `read_plan`, or one for each.
        batch: How many videos there are.

    Raises:
        UserError: If there is no such plan, or not one for each video.
    """
    if not isinstance(plan, Sequence) or isinstance(plan, str):
        found = read_plan(files, plan)
        return () if found is None else (found,) * batch
    if len(plan) != batch:
        raise BadRequest(
            f"{len(plan)} head plans cannot be those of {batch} video{'s' * (batch > 1)}",
            "give one for all of them, or a list of one for each",
            "plan",
        )
    return tuple(plan)


def teacache_table(files: ModelFiles, text: str) -> Calibration:
    """Read the calibrated TeaCache table of `FILE` or `FILE:ERROR`; `shipped` is the model's own file.

    Raises:
        UserError: If there is none.
    """
    path, error = split_number(text, "error", "TeaCache table")
    if path == "shipped":
        maker = "calibrate()"
        path = str(_shipped(files, "teacache.json", "TeaCache table", maker, "teacache"))
    table = Calibration.load(path)
    return table if error is None else table.at(error)


def read_teacache(
    files: ModelFiles, teacache: float | str | Sequence[int] | Calibration | None
) -> float | Sequence[int] | Calibration | None:
    """What TeaCache is to do: as it is, or a text read as a threshold or the name of a table.

    Raises:
        UserError: If there is no such table.
    """
    if not isinstance(teacache, str):
        return teacache
    with suppress(ValueError):  # else it names a table
        return float(teacache)
    return teacache_table(files, teacache)


def _shipped(files: ModelFiles, name: str, what: str, maker: str, option: str) -> Path:
    path = files.shipped(name)
    if path is None:
        raise BadRequest(
            f"Model '{files.preset.name}' ships no {what}",
            f"leave it out, or make one with {maker}",
            option,
        )
    return path
