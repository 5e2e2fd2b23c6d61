"""When a session scores its heads, and what follows: a plan, or a look at whether it still fits.

    session = Session(model, prompt_embeds, parse_policy("dummy"), schedule, shape, guard=Guard())

Heads are classified once, early in a video. A very long one may come to a point where they look elsewhere
than they did: a `Guard` notices, and has them classified anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

import torch
from torch import Tensor

from dummyforcing.errors import UserError
from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.method.policy import HeadScorer, Policy, Role, make_plan, row_sampler
from dummyforcing.models.wan import CausalWan
from dummyforcing.sampling.snapshot import Resumable

RECALLED_CHUNKS = 2
"""At least so many of the newest chunks are written again before heads are classified anew."""


@dataclass(frozen=True)
class Guard:
    """Watches whether a plan still fits, and has the heads classified anew where it does not.

    What is watched is the mean share of attention that dummy heads spend on the current chunk: it made them
    dummy, and the small cache shows it, too. One chunk in `every` is scored for it (a probe); the first one
    after a plan was found, or given, sets the reference. A probe changes nothing in the video, but for
    rounding where the fused passes of a GPU make way for it. On a GPU its score is waited for: once in
    `every` chunks.
    """

    every: int = 20
    """Chunks from one probe to the next."""
    band: float = 0.01
    """How far the share may move from the reference, up or down, as a part of all attention.

    By default more than it moved by itself in a minute of one scene with the bundled model, and less than a
    new prompt moved it. Being classified anew did not make that model's videos better, they drifted more
    (docs/reproduction.md).
    """

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UserError(f"Heads cannot be probed every {self.every} chunks; take 1 or more.")
        if not 0 <= self.band <= 1:
            raise UserError(f"A band of {self.band:g} is out of range; take 0 to 1, such as 0.01.")

    def require(self, policy: Policy, plan: Plan | None) -> None:
        """Refuse what has nothing to watch, or cannot be classified anew.

        Args:
            policy: How heads are classified anew.
            plan: A given one to begin with.

        Raises:
            UserError: If there are no roles or no dummy heads, or a role keeps the whole past.
        """
        if policy.roles is None:
            raise UserError(
                f"Heads are not classified under policy '{policy.name}', so they cannot be anew; take policy "
                "dummy, or no guard."
            )
        none = policy.num_dummy == 0 or (policy.num_dummy is None and policy.dummy_fraction == 0)
        if none if plan is None else not plan.counts.get(Role.DUMMY):
            raise UserError("A guard watches dummy heads, and there are none; ask for some, or for no guard.")
        if any(context.recent is None for context in policy.roles.values()):
            raise UserError(
                "Heads that see the whole past would lose it if they were classified anew; give their role "
                "a number of recent frames, or take no guard."
            )


def recalled_context(policy: Policy, chunk_frames: int) -> HeadContext:
    """What all heads see while they are classified anew: first frames, and as many recent ones as roles see.

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


class Classified(Resumable):
    """What of a session decides when its heads are scored, and draws conclusions."""

    model: CausalWan
    policy: Policy
    guard: Guard | None
    latent_shape: tuple[int, int, int, int]
    chunk_frames: int
    frames: int
    _first_frames: int
    _is_planned: bool
    _tail: Tensor

    def _start_plan(self, policy: Policy, plan: Plan | None, guard: Guard | None) -> None:
        """Set what the heads see at first, and when they are scored."""
        config, batch = self.model.config, self.latent_shape[0]
        self.policy, self.guard = policy, guard
        if plan is not None:
            plan.require(config.num_layers, config.num_heads, self._fingerprint)
        if guard is not None:
            guard.require(policy, plan)
        self.plans = [plan or self._everyone(policy.initial)] * batch
        self._classify_at = None if plan or not policy.roles else policy.classify_at_chunk
        self._first_frames = policy.first_frames
        self._is_planned = plan is not None
        self._scorer: HeadScorer | None = None
        self._probe_at = guard.every if guard and plan else None
        self._reference: Sequence[float] | None = None
        self.probe: Sequence[float] | None = None
        """The newest probe: the dummy heads' share of attention on the current chunk, one per sample."""

    @property
    def classifies_next(self) -> bool:
        """Whether the next chunk is to classify the heads."""
        return self._is_due(self._classify_at)

    @property
    def scores_next(self) -> bool:
        """Whether heads are scored in the next chunk; a GPU's scores are waited for then."""
        return self.classifies_next or self._is_due(self._probe_at)

    def _is_due(self, chunk: int | None) -> bool:
        return chunk is not None and self.frames >= chunk * self.chunk_frames

    def _everyone(self, context: HeadContext) -> Plan:
        """The plan of heads that have no roles yet."""
        return Plan.uniform(
            self.model.config.num_layers, self.model.config.num_heads, context, self.policy.name
        )

    def _recall(self) -> None:
        """If heads with roles are to be classified anew, write again what all of them must see for it.

        These are the video's first frames, in passes like the first time, and the newest ones after them, all
        at their own positions and under the prompt of the next chunk.
        """
        if not (self._is_planned and self.classifies_next):
            return
        past, size = self.cache.frames, self.chunk_frames
        self.plans = [self._everyone(recalled_context(self.policy, size))] * len(self.plans)
        self.cache.reset()
        self.cache.apply(self.plans)
        for latents in torch.split(self._beginning, size, dim=1):
            self._commit(latents)
        newest = min(self._tail.shape[1], past - self.cache.frames)
        if newest:
            self.cache.jump(past - newest)
            for latents in torch.split(self._tail[:, -newest:], size, dim=1):
                self._commit(latents)

    def _scorer_of(self, step: int | None) -> HeadScorer | None:
        """What scores the heads in a denoising step or a commit pass."""
        return self._scorer if (step is None) == (self.policy.score_pass == "commit") else None

    def _new_scorer(self) -> HeadScorer | None:
        """What scores the heads while a chunk to classify at, or to probe, is made; None for other chunks."""
        if not self.scores_next:
            return None
        config, policy = self.model.config, self.policy
        return HeadScorer(
            self.latent_shape[0],
            config.num_layers,
            config.num_heads,
            self._first_frames,
            row_sampler(policy),
            policy.last_frames,
        )

    def _apply_scores(self) -> None:
        """Once the heads are scored, plan what they see from now on, and let the cache shrink.

        A probe is compared with the first one; if any sample has left the band, all are classified anew.
        """
        if self._scorer is None:
            return
        chunk, scores, self._scorer = self.frames // self.chunk_frames, self._scorer.scores(), None
        if self.classifies_next:
            self.plans = [make_plan(self.policy, s, chunk, self._fingerprint) for s in scores]
            self.cache.apply(self.plans)
            self._is_planned, self._classify_at, self._reference = True, None, None
        elif self.guard:
            self.probe = [dummy_share(s, plan) for s, plan in zip(scores, self.plans, strict=True)]
            self._reference = self._reference or self.probe
            moved = [abs(now - then) for now, then in zip(self.probe, self._reference, strict=True)]
            self._classify_at = chunk + 1 if max(moved) > self.guard.band else None
        self._probe_at = chunk + self.guard.every if self.guard else None

    def _remember_beginning(self, x0: Tensor) -> None:
        """Keep the latents of the first chunks, as far as `_recall` needs them."""
        if self.guard and self._beginning.shape[1] < recalled_context(self.policy, self.chunk_frames).sink:
            self._beginning = torch.cat([self._beginning, x0], 1)

    def _commit(self, x0: Tensor) -> None:
        raise NotImplementedError
