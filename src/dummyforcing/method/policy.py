"""Policies: how the roles of heads are found, and which past frames each role sees.

policy = parse_policy("dummy")
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from inspect import signature
from typing import Literal

from dummyforcing.errors import BadRequest
from dummyforcing.files.records import nearest
from dummyforcing.method.criteria import CRITERIA, Role
from dummyforcing.method.plan import HeadContext

LONG_CONTEXT = 60
"""Past frames of a neighbor head under policy `long`: 237 pixel frames."""


@dataclass(frozen=True)
class Policy:
    """A rule: how the roles of heads are found, and which past each role sees."""

    name: str
    initial: HeadContext
    """What every head sees while there is no plan."""
    roles: Mapping[Role, HeadContext] | None = None
    """What each role sees; None: heads have no roles and keep `initial`."""
    dummy_fraction: float = 0.5
    """Share of all heads that become dummy."""
    num_dummy: int | None = None
    """Number of dummy heads; wins over `dummy_fraction`."""
    budget: Fraction | None = None
    """Past frames, mean over heads, that all of them may see together once there is a plan: decides the
    number of dummy heads, and shortens the neighbor heads' context if it must (see `budget.fit_heads`)."""
    classify_at_chunk: int = 1
    """The chunk whose attention is scored; the plan holds from the next one on."""
    score_pass: Literal["denoise", "commit"] = "denoise"
    """Score all denoising steps of that chunk, or its commit pass."""
    first_frames: int = 1
    """How many of the oldest visible past frames count as the first ones."""
    last_frames: int = 0
    """How many of the newest past frames count as current."""
    criterion: str = "dhp"
    """How the dummy heads are chosen: a name of `criteria.CRITERIA`."""
    rows: int | Fraction | None = 256
    """Query rows per scoring call, drawn with replacement: a number, a share, or None for every row once."""
    seed: int = 0
    """Seeds the draw of rows, and of heads where the criterion is `random`."""

    def __post_init__(self) -> None:
        if not 0 <= self.dummy_fraction <= 1:
            raise BadRequest(
                f"A dummy fraction of {self.dummy_fraction} is out of range", "take 0 to 1", "dummy_fraction"
            )
        if self.num_dummy is not None and self.num_dummy < 0:
            raise BadRequest(f"There cannot be {self.num_dummy} dummy heads", "take 0 or more")
        if self.roles is not None and self.classify_at_chunk < 1:
            raise BadRequest(
                "Heads cannot be classified at chunk 0, which has no past to look at",
                "take chunk 1 or a later one",
            )
        if self.criterion not in CRITERIA:
            raise BadRequest(
                f"There is no criterion {self.criterion!r}", f"the criteria are {', '.join(CRITERIA)}"
            )
        if self.budget is not None and not self._suits_budget():
            raise BadRequest(
                "This policy cannot keep to a budget",
                "a budget is 1 past frame per head or more, and goes with criterion dhp, dummy and sink "
                "heads that see one past frame, and neighbor heads that see 1 recent one or more",
            )

    def _suits_budget(self) -> bool:
        assert self.budget is not None
        recent = (self.roles[Role.NEIGHBOR].recent if self.roles else None) or 0
        return recent > 0 and self.roles == _roles(recent) and self.budget >= 1 and self.criterion == "dhp"

    def dummy_heads(self, total: int) -> int:
        """Number of dummy heads among `total`.

        Raises:
            BadRequest: If more dummy heads were asked for than there are heads.
        """
        if self.num_dummy is None:
            return round(self.dummy_fraction * total)
        if self.num_dummy > total:
            raise BadRequest(
                f"{self.num_dummy} dummy heads were asked for, but the model has {total} heads",
                f"take {total} at most",
            )
        return self.num_dummy


def dense() -> Policy:
    """Every head sees the whole past."""
    return Policy("dense", HeadContext(0, None))


def window(sink: int, recent: int) -> Policy:
    """Every head sees the first `sink` and the last `recent` frames: the native window of LongLive."""
    return Policy("window", HeadContext(sink, recent))


def dummy(neighbor: int = 3) -> Policy:
    """Dummy Forcing, scored while denoising over the whole past; neighbor heads see `neighbor` frames."""
    roles = _roles(neighbor)
    return Policy("dummy", HeadContext(0, None), roles)


def anchored(neighbor: int = 3) -> Policy:
    """Dummy Forcing in which every head also sees what its role leaves out, at one frame more per head.

    Sink heads also see the last frame and neighbor heads also the first one; dummy heads see two frames, so
    that they still share an attention call with the sink heads.
    """
    roles = {
        Role.DUMMY: HeadContext(0, 2),
        Role.SINK: HeadContext(1, 1),
        Role.NEIGHBOR: HeadContext(1, neighbor),
    }
    return Policy("anchored", HeadContext(0, None), roles)


def long(cap: int = LONG_CONTEXT) -> Policy:
    """Dummy Forcing at the cost of a window of 12 frames: few neighbor heads see `cap` frames.

    `budget` has that cost for chunks of 3 frames.
    """
    return Policy("long", HeadContext(0, None), _roles(cap), budget=Fraction(9))


def official(ar_start: int = 1, m: int = 1, chunk: int = 3) -> Policy:
    """Dummy Forcing as the public code has it, to the letter, quirks included.

    Args:
        ar_start: The chunk whose commit pass is scored.
        m: `local_context_length`, in chunks.
        chunk: Frames per chunk.

    Returns:
        The policy. The context is short from the start; the first chunk counts as first unless `ar_start` is
        1, even where it makes frames count as first that are not; a third of the first frames' number of rows
        is scored.

    Raises:
        BadRequest: If chunks, or the local context, have no frames.
    """
    if m < 1 or chunk < 1:
        raise BadRequest(
            f"Policy 'official' cannot have m={m} and chunks of {chunk}", "take 1 or more of each", "policy"
        )
    first = 1 if ar_start == 1 else chunk
    return Policy(
        "official",
        HeadContext(1, m * chunk),
        _roles(m * chunk),
        classify_at_chunk=ar_start,
        score_pass="commit",
        first_frames=first,
        rows=Fraction(first, 3 * chunk),
    )


def _roles(neighbor: int) -> Mapping[Role, HeadContext]:
    return {
        Role.DUMMY: HeadContext(0, 1),
        Role.SINK: HeadContext(1, 0),
        Role.NEIGHBOR: HeadContext(0, neighbor),
    }


POLICIES: dict[str, Callable[..., Policy]] = {
    "dense": dense,
    "window": window,
    "dummy": dummy,
    "anchored": anchored,
    "long": long,
    "official": official,
}


def parse_policy(text: str) -> Policy:
    """Read a policy such as `dummy`, `window:3,6` or `official:2,1`.

    Args:
        text: A name of `POLICIES`, then optionally a colon and whole numbers, the arguments of that entry.

    Returns:
        The policy.

    Raises:
        BadRequest: If the name is unknown or the numbers do not fit it.
    """
    name, _, numbers = text.partition(":")
    if name not in POLICIES:
        raise BadRequest(f"There is no policy {name!r}", nearest(name, [*POLICIES, "native"]), "policy")
    build = POLICIES[name]
    try:
        call = signature(build).bind(*(int(n) for n in numbers.split(",") if numbers))
    except (TypeError, ValueError):
        usage = ",".join(p.upper() for p in signature(build).parameters)
        raise BadRequest(
            f"Policy {text!r} cannot be read",
            f"write {name}{':' if usage else ''}{usage}"
            f"{' with whole numbers' if usage else ' without numbers'}",
            "policy",
        ) from None
    return build(*call.args)
