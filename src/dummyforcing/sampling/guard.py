"""Guards: watch over a very long video whether its plan still fits.

Heads are classified once, early in a video. A very long one may come to a point where they look elsewhere
than they did: a `Guard` notices, and has them classified again.
"""

from dataclasses import dataclass
from statistics import mean

from torch import Tensor

from dummyforcing.errors import BadRequest
from dummyforcing.method.criteria import Role
from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.method.policy import Policy

RECALLED_CHUNKS = 2
"""At least so many of the newest chunks are written again before heads are classified again."""


@dataclass(frozen=True)
class Guard:
    """Watches whether a plan still fits, and has the heads classified again where it does not.

    What is watched is the mean share of attention that dummy heads spend on the current chunk: it made them
    dummy, and the small cache shows it, too. One chunk in `every` is scored for it (a probe); the first one
    after a plan was found, or given, sets the reference. A probe changes nothing in the video, but for
    rounding where the fused passes of a GPU make way for it. On a GPU its score is waited for: once in
    `every` chunks.
    """

    every: int = 20
    """Chunks from one probe to the next."""
    tolerance: float = 0.01
    """How far the share may move from the reference, up or down, as a part of all attention.

    By default more than it moved by itself in a minute of one scene with the bundled model, and less than a
    new prompt moved it. To classify again did not make that model's videos better, they drifted more
    (docs/reproduction.md).
    """

    def __post_init__(self) -> None:
        if self.every < 1:
            raise BadRequest(f"Heads cannot be probed every {self.every} chunks", "take 1 or more", "every")
        if not 0 <= self.tolerance <= 1:
            raise BadRequest(
                f"A tolerance of {self.tolerance:g} is out of range", "take 0 to 1, such as 0.01", "tolerance"
            )

    def require(self, policy: Policy, plan: Plan | None) -> None:
        """Refuse what has nothing to watch, or cannot be classified again.

        Args:
            policy: How heads are classified again.
            plan: A given one to begin with.

        Raises:
            BadRequest: If there are no roles or no dummy heads, or a role keeps the whole past.
        """
        if policy.roles is None:
            raise BadRequest(
                f"Heads are not classified under policy '{policy.name}', so they cannot be again",
                "take policy dummy, or no guard",
                "guard",
            )
        none = policy.num_dummy == 0 or (policy.num_dummy is None and policy.dummy_fraction == 0)
        if policy.assign is not None:
            none = Role.DUMMY not in policy.roles
        if none if plan is None else not plan.counts.get(Role.DUMMY):
            raise BadRequest(
                "A guard watches dummy heads, and there are none", "ask for some, or for no guard", "guard"
            )
        if any(context.recent is None for context in policy.roles.values()):
            raise BadRequest(
                "Heads that see the whole past would lose it if they were classified again",
                "give their role a number of recent frames, or take no guard",
                "guard",
            )


def recalled_context(policy: Policy, chunk_frames: int) -> HeadContext:
    """The context of all heads while they are classified again: first frames, and the most recent ones.

    Within a budget recent frames are fewer, if they must; long contexts fill again as the video goes on.

    Args:
        policy: With roles that see so many recent frames each.
        chunk_frames: Latent frames of a chunk.
    """
    assert policy.roles is not None
    sink = max(policy.first_frames, *(context.sink for context in policy.roles.values()))
    recent = max(context.recent or 0 for context in policy.roles.values())
    if policy.budget is not None:
        recent = min(recent, int(policy.budget) - sink)
    chunks = max(-(-recent // chunk_frames), RECALLED_CHUNKS)
    return HeadContext(sink, chunks * chunk_frames)


def dummy_share(scores: Tensor, plan: Plan) -> float:
    """The share of attention that the dummy heads of a plan spend on the current chunk, mean over them.

    Args:
        scores: Of one sample, `(layers, heads, 3)`, see `HeadScorer.scores`.
        plan: Of the sample.

    Returns:
        0 to 1; always 0 if no head is dummy.
    """
    shares = [
        share
        for row, roles in zip(scores[..., 2].tolist(), plan.roles, strict=True)
        for share, role in zip(row, roles, strict=True)
        if role == Role.DUMMY
    ]
    return mean(shares) if shares else 0.0
