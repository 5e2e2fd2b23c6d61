"""The measurements: attention per frame, for every video, chunk, pass and head; saved in one file."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from dummyforcing.errors import BadFile, BadRequest
from dummyforcing.files.records import to_json
from dummyforcing.files.writing import replacing
from dummyforcing.method.criteria import Role
from dummyforcing.method.plan import Plan
from dummyforcing.method.policy import Policy
from dummyforcing.method.programming import assign_roles, make_plan

FORMAT = "dummyforcing atlas 1"
ROLES: tuple[str, ...] = tuple(Role)
"""The roles in the order of their codes in arrays; a policy's own ones follow."""


@dataclass(frozen=True)
class Settings:
    """The axes of `Atlas.mass`, and the conditions under which it was measured."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    """Of the noise; every prompt is made with every seed."""
    chunks: tuple[int, ...]
    """The chunks that were watched; chunk 0 has no past."""
    calls: tuple[int | None, ...]
    """The denoising steps that were watched, from 0; None: the commit pass."""
    first_frames: int
    """How many of the oldest visible frames count as the first ones."""
    rows: str
    """Query rows that were looked at per attention call, as `Policy.rows`."""
    row_seed: int
    model: str
    fingerprint: str
    """Of the model, as in a plan."""
    native: str
    """The policy that the videos were made with."""
    chunk_frames: int
    """Latent frames per chunk."""
    size: tuple[int, int]
    """Height and width in pixels."""
    device: str
    dtype: str
    made: Mapping[str, object] = field(default_factory=dict)
    """The command, the versions and whatever else the caller wants to keep."""


@dataclass(frozen=True, eq=False)
class Atlas:
    """The share of attention that every head spends on every frame, under every condition."""

    mass: NDArray[np.float32]
    """Mean over the sampled queries, `(prompts, seeds, chunks, calls, layers, heads, bins)`.

    Bin 0 is the current chunk, bin d the frame d frames before it (the last of them: d or more), and bin -1
    the first frames, which are in no other bin. NaN: there is no such frame in that chunk.
    """
    settings: Settings

    @property
    def regions(self) -> NDArray[np.float32]:
        """Mass on first, middle and current frames, `(prompts, seeds, chunks, calls, layers, heads, 3)`."""
        parts = self.mass[..., -1], np.nansum(self.mass[..., 1:-1], axis=-1), self.mass[..., 0]
        return np.stack(parts, axis=-1)

    @property
    def denoising(self) -> list[int]:
        """Indices of the denoising steps on the axis of calls."""
        return [i for i, call in enumerate(self.settings.calls) if call is not None]

    @property
    def commit(self) -> list[int]:
        """Index of the commit pass on the axis of calls, if it was watched."""
        return [i for i, call in enumerate(self.settings.calls) if call is None]

    def scored(self, policy: Policy) -> NDArray[np.float32]:
        """`regions` of the calls that a policy scores.

        Raises:
            BadRequest: If none of them was watched.
        """
        calls = self.commit if policy.score_pass == "commit" else self.denoising
        if not calls:
            wanted = "the commit pass" if policy.score_pass == "commit" else "denoising steps"
            raise BadRequest(
                f"Policy '{policy.name}' scores {wanted}, but none was watched", "watch all steps", "policy"
            )
        return self.regions[:, :, :, calls]

    def plan(self, policy: Policy) -> Plan:
        """Find one plan for all that was watched: `policy` applied to the mean of the scores.

        The mean and no vote of single plans: it keeps the number of dummy heads, weighs a head by how much it
        looks rather than by how often it passes a cut, and is the optimum for the average video.

        Raises:
            BadRequest: If the policy has no roles, or scores what was not watched.
        """
        if policy.roles is None:
            raise BadRequest(f"Policy '{policy.name}' does not classify heads", "take 'dummy'", "policy")
        scores = torch.from_numpy(self.scored(policy).mean((0, 1, 2, 3), dtype=np.float64))
        chunks = self.settings.chunks
        plan = make_plan(policy, scores, chunks[0], self.settings.fingerprint)
        return plan if len(chunks) == 1 else replace(plan, chunk=None)

    def save(self, path: str | Path) -> None:
        """Write everything into one `.npz` file; it appears whole or not at all.

        Raises:
            BadFile: If it cannot be written.
        """
        about = to_json({"format": FORMAT, **asdict(self.settings)})
        with replacing(Path(path)) as part, part.open("wb") as file:
            np.savez_compressed(file, mass=self.mass, settings=np.array(about))

    @classmethod
    def load(cls, path: str | Path) -> "Atlas":
        """Read what `save` wrote.

        Raises:
            BadFile: If there is no readable atlas.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                mass, fields = file["mass"], json.loads(str(file["settings"]))
            if (found := fields.pop("format")) != FORMAT:
                raise ValueError(f"its format is {found!r}")
            lists = {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}
            settings = Settings(**{**fields, **lists})
            axes = tuple(map(len, (settings.prompts, settings.seeds, settings.chunks, settings.calls)))
            if mass.ndim != 7 or mass.shape[:4] != axes:
                raise ValueError("its axes are not those of its settings")
        except OSError as error:
            raise BadFile(
                f"The atlas {path} cannot be read ({error.strerror or error})",
                "give one that record() made",
            ) from error
        except (AttributeError, KeyError, TypeError, ValueError, EOFError, BadZipFile) as error:
            raise BadFile(f"{path} is not an atlas ({error})", "give one that record() made") from error
        return cls(mass, settings)


def roles_of(policy: Policy) -> tuple[str, ...]:
    """The roles that heads can have under a policy, in the order of their codes."""
    return (*ROLES, *(role for role in policy.roles or {} if role not in ROLES))


def codes_of(roles: Sequence[Sequence[str]], known: Sequence[str]) -> NDArray[np.int16]:
    """Roles, layer by layer, as their places in `known`: `(layers, heads)`."""
    return np.array([[known.index(role) for role in row] for row in roles], dtype=np.int16)


def role_codes(scores: NDArray[np.floating], num_dummy: int) -> NDArray[np.int16]:
    """Assign roles to each of many sets of scores.

    Args:
        scores: Mass on first, middle and current frames, `(..., layers, heads, 3)`.
        num_dummy: How many heads become dummy.

    Returns:
        Indices into `ROLES`, `(..., layers, heads)`.
    """
    return _codes(scores, lambda one: codes_of(assign_roles(one, num_dummy), ROLES))


def policy_codes(scores: NDArray[np.floating], policy: Policy) -> NDArray[np.int16]:
    """Assign roles as a policy does to each of many sets of scores; as `role_codes`, into `roles_of`."""
    known = roles_of(policy)
    return _codes(scores, lambda one: codes_of(make_plan(policy, one, chunk=0).roles, known))


def _codes(
    scores: NDArray[np.floating], assign: Callable[[torch.Tensor], NDArray[np.int16]]
) -> NDArray[np.int16]:
    *many, layers, heads, _ = scores.shape
    sets = np.ascontiguousarray(scores).reshape(-1, layers, heads, 3)
    return np.array([assign(torch.from_numpy(one)) for one in sets]).reshape(*many, layers, heads)
