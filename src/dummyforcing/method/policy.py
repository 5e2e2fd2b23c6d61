"""Policies: how the roles of heads are found, and which past frames each role sees.

policy = parse_policy("dummy")     # built in, or of an installed package
policy = as_policy(KeepTwo())      # any object that has `roles` and `assign`
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from importlib.metadata import EntryPoint, entry_points
from inspect import signature
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from dummyforcing.errors import BadRequest
from dummyforcing.files.records import nearest
from dummyforcing.method.criteria import CRITERIA, Criterion, Role
from dummyforcing.method.own import explained
from dummyforcing.method.plan import HeadContext, require_roles

GROUP = "dummyforcing.policies"
"""The group of entry points by which installed packages add policies."""

Assign = Callable[[Tensor], Sequence[Sequence[str]]]
"""`assign(scores) -> roles`: the role of each head, layer by layer, of `scores (layers, heads, 3)` float32,
the attention mass of each head on first, middle and current frames."""
ALL_PAST = HeadContext(0, None)

LONG_CONTEXT = 60
"""Past frames of a neighbor head under policy `long`: 237 pixel frames."""


@dataclass(frozen=True)
class Policy:
    """A rule: how the roles of heads are found, and which past each role sees."""

    name: str
    initial: HeadContext = ALL_PAST
    """What every head sees while there is no plan."""
    roles: Mapping[str, HeadContext] | None = None
    """What each role sees; None: heads have no roles and keep `initial`. Names are free where there is
    `assign`; else they are those of `Role`."""
    assign: Assign | None = None
    """Gives each head its role; None: heads chosen by `criterion` are dummy, and the others sink or neighbor
    by where they look more."""
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
    criterion: str | Criterion = "dhp"
    """How the dummy heads are chosen: a name of `criteria.CRITERIA`, or a function like those there."""
    rows: int | Fraction | None = 256
    """Query rows per scoring call, drawn with replacement: a number, a share, or None for every row once."""
    seed: int = 0
    """Seeds the draw of rows, and of heads where the criterion is `random`."""
    sha256: str | None = None
    """Of the file that it is from, in hexadecimal; None: it is no file of the user's own."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise BadRequest(f"A policy cannot be called {self.name!r}", "give it a name")
        self._require_roles()
        for name in ("classify_at_chunk", "first_frames", "last_frames", "seed"):
            if not isinstance(value := getattr(self, name), int):
                raise BadRequest(f"Policy '{self.name}' has {name}={value!r}", "give a whole number")
        if self.rows is not None and not (isinstance(self.rows, int | Fraction) and self.rows > 0):
            raise BadRequest(
                f"Policy '{self.name}' cannot score {self.rows!r} rows",
                "take a number, a Fraction of all, or None for all of them",
            )
        if self.score_pass not in ("denoise", "commit"):
            raise BadRequest(
                f"Policy '{self.name}' cannot score pass {self.score_pass!r}", "take 'denoise' or 'commit'"
            )
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
        if not callable(self.criterion) and self.criterion not in CRITERIA:
            raise BadRequest(
                f"There is no criterion {self.criterion!r}",
                f"the criteria are {', '.join(CRITERIA)}; or give a function",
            )
        if self.budget is not None and not self._suits_budget():
            raise BadRequest(
                "This policy cannot keep to a budget",
                "a budget is 1 past frame per head or more, and goes with criterion dhp, dummy and sink "
                "heads that see one past frame, and neighbor heads that see 1 recent one or more",
            )

    def _require_roles(self) -> None:
        if not isinstance(self.initial, HeadContext):
            raise BadRequest(
                f"Before there is a plan, heads cannot see {self.initial!r} under policy '{self.name}'",
                "give initial=HeadContext(sink, recent)",
            )
        if self.roles is None:
            if self.assign is not None:
                raise BadRequest(
                    f"Policy '{self.name}' assigns roles, and says nothing of what they see",
                    "give roles={name: HeadContext(sink, recent), ...}",
                )
            return
        require_roles(self.roles, f"Policy '{self.name}'")
        if self.assign is None and not self.roles.keys() >= set(Role):
            raise BadRequest(
                f"Policy '{self.name}' has roles {', '.join(self.roles)}, and nothing that gives them",
                f"give assign=FUNCTION, or the roles {', '.join(Role)}",
            )

    def _suits_budget(self) -> bool:
        assert self.budget is not None
        if self.assign is not None:
            return False
        recent = (self.roles[Role.NEIGHBOR].recent if self.roles else None) or 0
        return recent > 0 and self.roles == _roles(recent) and self.budget >= 1 and self.criterion == "dhp"

    @property
    def contexts(self) -> tuple[HeadContext, ...]:
        """What heads see once there is a plan: what each role does, or all of them if there are no roles."""
        return (self.initial,) if self.roles is None else tuple(self.roles.values())

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


@runtime_checkable
class OwnPolicy(Protocol):
    """What an object needs to be a policy; other fields of `Policy` that it has count, too."""

    @property
    def roles(self) -> Mapping[str, HeadContext]:
        """What each role sees: any number of roles, of any names."""

    def assign(self, scores: Tensor) -> Sequence[Sequence[str]]:
        """Give each head its role: see `Assign`."""


def as_policy(given: object, name: str | None = None, sha256: str | None = None) -> Policy:
    """Make a policy of what the user gives for one.

    Args:
        given: A policy, an object that has `roles` and `assign` (see `OwnPolicy`), or a function or class
            that makes one without arguments.
        name: What it is called; None: as it says itself.
        sha256: Of its file.

    Raises:
        BadRequest: If it is something else, or making it fails.
    """
    what = f"Policy '{name or getattr(given, '__name__', type(given).__name__)}'"
    if isinstance(given, type) or (callable(given) and not isinstance(given, Policy | OwnPolicy)):
        name = name or getattr(given, "__name__", None)
        with explained(what):
            given = given()
    if isinstance(given, Policy):
        return replace(given, name=name or given.name, sha256=sha256 or given.sha256)
    if not isinstance(given, OwnPolicy):
        raise BadRequest(
            f"{what} is no policy but {type(given).__name__}",
            "give a name, a Policy, or an object that has roles and assign(scores)",
            "policy",
        )
    said = {field.name: getattr(given, field.name) for field in fields(Policy) if hasattr(given, field.name)}
    named = {"name": name or said.get("name") or type(given).__name__, "sha256": sha256}
    with explained(what):
        return Policy(**{**said, **named})


def dense() -> Policy:
    """Every head sees the whole past."""
    return Policy("dense", ALL_PAST)


def window(sink: int, recent: int) -> Policy:
    """Every head sees the first `sink` and the last `recent` frames: the native window of LongLive."""
    return Policy("window", HeadContext(sink, recent))


def keyframes(sink: int = 1, keys: int = 4, recent: int = 4) -> Policy:
    """Every head sees the first `sink` frames, `keys` key frames of the past, and the last `recent` frames.

    It costs as much as a window of as many frames, and what left the picture can come back as it was.
    """
    return Policy("keyframes", HeadContext(sink, recent, keys))


def dummy(neighbor: int = 3) -> Policy:
    """Dummy Forcing, scored while denoising over the whole past; neighbor heads see `neighbor` frames."""
    roles = _roles(neighbor)
    return Policy("dummy", ALL_PAST, roles)


def anchored(neighbor: int = 3) -> Policy:
    """Dummy Forcing in which every head also sees what its role leaves out, at one frame more per head.

    Sink heads also see the last frame and neighbor heads also the first one; dummy heads see two frames, so
    that they still share an attention call with the sink heads.
    """
    roles: Mapping[str, HeadContext] = {
        Role.DUMMY: HeadContext(0, 2),
        Role.SINK: HeadContext(1, 1),
        Role.NEIGHBOR: HeadContext(1, neighbor),
    }
    return Policy("anchored", ALL_PAST, roles)


def long(cap: int = LONG_CONTEXT) -> Policy:
    """Dummy Forcing at the cost of a window of 12 frames: few neighbor heads see `cap` frames.

    `budget` has that cost for chunks of 3 frames.
    """
    return Policy("long", ALL_PAST, _roles(cap), budget=Fraction(9))


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


def _roles(neighbor: int) -> Mapping[str, HeadContext]:
    return {
        Role.DUMMY: HeadContext(0, 1),
        Role.SINK: HeadContext(1, 0),
        Role.NEIGHBOR: HeadContext(0, neighbor),
    }


POLICIES: dict[str, Callable[..., Policy]] = {
    "dense": dense,
    "window": window,
    "keyframes": keyframes,
    "dummy": dummy,
    "anchored": anchored,
    "long": long,
    "official": official,
}


def installed() -> dict[str, EntryPoint]:
    """The policies that installed packages add, by name; built-in names stay as they are."""
    return {found.name: found for found in entry_points(group=GROUP) if found.name not in POLICIES}


def parse_policy(text: str) -> Policy:
    """Read a policy such as `dummy`, `window:3,6` or `official:2,1`.

    Args:
        text: A name of `POLICIES` or of an installed package, then optionally a colon and whole numbers, the
            arguments of that entry.

    Returns:
        The policy.

    Raises:
        BadRequest: If the name is unknown or the numbers do not fit it.
    """
    name, _, numbers = text.partition(":")
    if name in POLICIES:
        made: Policy = called(text, name, POLICIES[name], numbers)
        return made
    added = installed()
    if name not in added:
        known = [*POLICIES, *added, "native"]
        raise BadRequest(f"There is no policy {text!r}", nearest(name, known), "policy")
    with explained(f"Policy '{name}' of an installed package"):
        found = added[name].load()
    return as_policy(called(text, name, found, numbers), text)


def called(text: str, name: str, build: object, numbers: str) -> Any:
    """What a function or class makes of whole numbers; what is a policy already stays as it is.

    Args:
        text: What was asked for, for messages.
        name: The part of it before the numbers.
        build: The function, class or policy.
        numbers: Separated by commas; empty: none.

    Raises:
        BadRequest: If it takes no such numbers, or fails.
    """
    if not isinstance(build, type) and (not callable(build) or isinstance(build, Policy | OwnPolicy)):
        if numbers:
            raise BadRequest(f"Policy {text!r} cannot be read", f"write {name} without numbers", "policy")
        return build
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
    with explained(f"Policy '{text}'"):
        return build(*call.args)
