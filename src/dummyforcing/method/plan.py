"""The result of the method: which past frames every head sees. Frozen data to print, save and reuse."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dummyforcing.errors import BadFile, BadRequest
from dummyforcing.files.reading import read_json
from dummyforcing.files.records import as_text, build
from dummyforcing.files.writing import replacing

FORMAT = "dummyforcing plan 1"

AS_THEY_ARE = ("policy", "chunk", "seed", "num_dummy", "scores", "fingerprint")
"""Fields that files have by the same names."""

Scores = tuple[tuple[tuple[float, ...], ...], ...]


@dataclass(frozen=True)
class HeadContext:
    """The past that a head sees: so many first, most recent, and key frames.

    The current chunk is always visible and does not count.
    """

    sink: int
    recent: int | None
    """None: all of them."""
    keys: int = 0
    """So many of the frames between the first and the most recent ones: those least like each other, see
    `cache/key_frames.py`."""

    def __post_init__(self) -> None:
        counts = [self.sink, self.keys, *([] if self.recent is None else [self.recent])]
        if any(not isinstance(count, int) or count < 0 for count in counts):
            raise BadRequest(
                f"A head cannot see {self.sink} first, {self.keys} key and {self.recent} recent frames",
                "take whole numbers, 0 or more",
            )
        if self.keys and self.recent is None:
            raise BadRequest(
                f"A head that sees all past frames has no {self.keys} key frames", "say how many recent ones"
            )

    @property
    def total(self) -> int | None:
        """The most past frames that the head ever sees; None: no bound."""
        return None if self.recent is None else self.sink + self.keys + self.recent


def context_fields(context: HeadContext) -> dict[str, int | None]:
    """A context as data for JSON; key frames are named where there are any."""
    keys = {"keys": context.keys} if context.keys else {}
    return {"sink": context.sink, "recent": context.recent, **keys}


def require_roles(table: Mapping[str, HeadContext], owner: str) -> None:
    """Refuse roles that no plan can have.

    Args:
        table: What each role sees.
        owner: Who has them; begins the sentence.

    Raises:
        BadRequest: If it is no such table, is empty, a name is not one word, or what a role sees is no
            `HeadContext`.
    """
    if not isinstance(table, Mapping) or not table:
        raise BadRequest(f"{owner} has no roles", "give roles={name: HeadContext(sink, recent), ...}")
    for role, context in table.items():
        if not isinstance(role, str) or len(role.split()) != 1 or role != role.strip():
            raise BadRequest(f"{owner} calls a role {role!r}", "name each in one word")
        if not isinstance(context, HeadContext):
            raise BadRequest(
                f"{owner} has role '{role}', which sees {context!r}", "give HeadContext(sink, recent)"
            )


@dataclass(frozen=True)
class Plan:
    """The role and the context of every head, and how they were found."""

    roles: tuple[tuple[str, ...], ...]
    """Of each head, layer by layer: names of `table`."""
    table: Mapping[str, HeadContext]
    """What each role sees."""
    policy: str
    """Name of the policy."""
    chunk: int | None = None
    """The chunk that was scored; None: nothing was, or several were."""
    score_pass: str | None = None
    """`denoise` or `commit`: the pass that was scored."""
    seed: int | None = None
    """Of the draw of query rows."""
    num_dummy: int = 0
    scores: Scores | None = None
    """Attention mass on first, middle and current frames, per layer and head."""
    fingerprint: str | None = None
    """Of the model that the plan was made with; None: fits any model of the same size."""
    found: Mapping[str, Any] = field(default_factory=dict)
    """How it was found, where the fields above do not say it; ready for JSON."""

    def __post_init__(self) -> None:
        require_roles(self.table, f"A plan of policy '{self.policy}'")
        named = {role for row in self.roles for role in row}
        if not named <= set(self.table):
            raise ValueError(f"roles without a context: {sorted(named - set(self.table))}")
        if len({len(row) for row in self.roles}) != 1 or not self.roles[0]:
            raise ValueError("a plan needs the same number of heads in every layer")
        if self.scores is not None:
            rows = [[len(head) for head in row] for row in self.scores]
            if rows != [[3] * len(row) for row in self.roles]:
                raise ValueError("a plan needs three scores for each head")

    @classmethod
    def uniform(cls, layers: int, heads: int, context: HeadContext, policy: str = "uniform") -> "Plan":
        """Give every head the same context."""
        return cls(roles=(("uniform",) * heads,) * layers, table={"uniform": context}, policy=policy)

    @property
    def contexts(self) -> tuple[tuple[HeadContext, ...], ...]:
        """The context of each head, layer by layer."""
        return tuple(tuple(self.table[role] for role in row) for row in self.roles)

    @property
    def counts(self) -> dict[str, int]:
        """Number of heads of each role of the table."""
        found = Counter(role for row in self.roles for role in row)
        return {str(role): found[role] for role in self.table}

    def require(self, layers: int, heads: int, fingerprint: str | None = None) -> None:
        """Refuse a model that the plan was not made for.

        Args:
            layers: Of the model.
            heads: Of the model, per layer.
            fingerprint: Of the model; None: compare the sizes only.

        Raises:
            BadRequest: If the sizes or the fingerprints differ.
        """
        mine = (len(self.roles), len(self.roles[0]))
        if mine != (layers, heads):
            raise BadRequest(
                f"This head plan is for {mine[0]} layers with {mine[1]} heads, "
                f"but the model has {layers} layers with {heads} heads",
                "make a plan with this model",
                "plan",
            )
        if fingerprint and self.fingerprint and fingerprint != self.fingerprint:
            raise BadRequest(
                f"This head plan was made with model {self.fingerprint}, but this model is {fingerprint}",
                "make a plan with this model",
                "plan",
            )

    def to_fields(self) -> dict[str, object]:
        """The plan as data for JSON."""
        return {
            "format": FORMAT,
            "policy": self.policy,
            "chunk": self.chunk,
            "pass": self.score_pass,
            "seed": self.seed,
            "num_dummy": self.num_dummy,
            "fingerprint": self.fingerprint,
            "contexts": {role: context_fields(context) for role, context in self.table.items()},
            "roles": [" ".join(row) for row in self.roles],
            "scores": self.scores,
            "found": dict(self.found),
        }

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "Plan":
        """The plan that `to_fields` gave.

        Raises:
            KeyError, TypeError, ValueError: If the data are something else.
        """
        if fields["format"] != FORMAT:
            raise ValueError(f"its format is {fields['format']!r}")
        named = {
            "roles": [row.split() for row in fields["roles"]],
            "table": fields["contexts"],
            "score_pass": fields["pass"],
            **{name: fields[name] for name in AS_THEY_ARE},
            "found": fields.get("found", {}),
        }
        return build(cls, named, "the plan")

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON that a person can read; the file appears whole or not at all.

        Args:
            path: The file; its folder must exist.

        Raises:
            BadFile: If it cannot be written.
        """
        with replacing(Path(path)) as part:
            part.write_text(as_text(self.to_fields()), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path, fingerprint: str | None = None) -> "Plan":
        """Read a plan that `save` wrote.

        Args:
            path: The file.
            fingerprint: Of the model that the plan is for; None: not compared.

        Returns:
            The plan.

        Raises:
            BadFile: If there is no readable plan.
            BadRequest: If it was made with another model.
        """
        try:
            plan = cls.from_fields(read_json(path))
        except OSError as error:
            raise BadFile(
                f"The head plan {path} cannot be read ({error.strerror})", "give another file"
            ) from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BadFile(f"{path} is not a head plan ({error})", "make one with find_plan()") from error
        plan.require(len(plan.roles), len(plan.roles[0]), fingerprint)
        return plan
