"""Head classification in a rollout: when heads are scored, and the plans that follow."""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass

from torch import Tensor

from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.method.policy import Policy
from dummyforcing.method.programming import make_plan, require_finite_scores
from dummyforcing.method.scoring import HeadScorer, row_sampler
from dummyforcing.models.wan import ModelConfig
from dummyforcing.sampling.guard import Guard, dummy_share


@dataclass(frozen=True)
class ClassifierState:
    """The state of a head classifier: its plans, and when heads are scored again."""

    plans: tuple[Plan, ...]
    is_planned: bool
    classify_at: int | None
    probe_at: int | None
    reference: tuple[float, ...] | None
    probe: tuple[float, ...] | None


class HeadClassifier:
    """Scores the heads of a rollout where that is due, and plans what they see from then on."""

    def __init__(
        self,
        config: ModelConfig,
        policy: Policy,
        plan: Plan | Sequence[Plan] | None,
        guard: Guard | None,
        *,
        batch: int,
        chunk_frames: int,
        first_frames: int,
        fingerprint: str | None,
        total: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Set what the heads see at first, and when they are scored.

        Args:
            config: Sizes of the model.
            policy: How heads get their contexts.
            plan: A given one, or one per sample: nothing is classified then.
            guard: Watches whether the plan still fits; None: nobody does.
            batch: How many samples there are.
            chunk_frames: Latent frames per chunk.
            first_frames: How many of the oldest visible frames count as first when heads are scored.
            fingerprint: Of the model, see `wan.fingerprint`; None if it cannot be told.
            total: Adds up a tensor over the GPUs that score some heads each; None: there is one.

        Raises:
            BadRequest: If the plan is of another model, or there is nothing to guard.
        """
        given = (plan,) * batch if isinstance(plan, Plan) else tuple(plan or ())
        for one in given:
            one.require(config.num_layers, config.num_heads, fingerprint)
        if guard is not None:
            for known in given or (None,):
                guard.require(policy, known)
        self.policy, self.guard = policy, guard
        self._config, self._fingerprint = config, fingerprint
        self._batch, self._chunk_frames, self._first_frames = batch, chunk_frames, first_frames
        self._total = total
        self.plans: tuple[Plan, ...] = given or (self.everyone(policy.initial),) * batch
        """What the heads of every sample see at present."""
        self.is_planned = bool(given)
        """Whether these are plans that were found, or given."""
        self._classify_at = None if given or not policy.roles else policy.classify_at_chunk
        self._probe_at = guard.every if guard and given else None
        self._reference: tuple[float, ...] | None = None
        self.probe: tuple[float, ...] | None = None
        """The newest probe: the dummy heads' share of attention on the current chunk, one per sample."""

    @property
    def classify_at(self) -> int | None:
        """The chunk at which heads are classified next; None: they are not, as far as is known."""
        return self._classify_at

    def classifies(self, frames: int) -> bool:
        """Whether the chunk that follows `frames` finished latent frames is to classify the heads."""
        return self._is_due(self._classify_at, frames)

    def is_due(self, frames: int) -> bool:
        """Whether heads are scored in the chunk that follows `frames` finished latent frames."""
        return self.classifies(frames) or self._is_due(self._probe_at, frames)

    def scorer(self, frames: int) -> HeadScorer | None:
        """Make the scorer of the chunk after `frames` latent frames; None: heads are not scored in it."""
        if not self.is_due(frames):
            return None
        return HeadScorer(
            self._batch,
            self._config.num_layers,
            self._config.num_heads,
            self._first_frames,
            row_sampler(self.policy),
            self.policy.last_frames,
            self.policy.score_pass,
            self._total,
        )

    def plan(self, scorer: HeadScorer, frames: int) -> tuple[Plan, ...] | None:
        """Plan what heads see from now on; None: as before, the scores were but a probe.

        A probe is compared with the first one; if any sample has left the tolerance, all are classified again
        at the next chunk.

        Args:
            scorer: Has seen the chunk.
            frames: Finished latent frames before it.

        Raises:
            NotFinite: If a score is NaN or infinite.
        """
        chunk, scores = frames // self._chunk_frames, scorer.scores()
        classifies = self.classifies(frames)
        if classifies:
            self.plans = tuple(make_plan(self.policy, s, chunk, self._fingerprint) for s in scores)
            self.is_planned, self._classify_at, self._reference = True, None, None
        elif self.guard:
            require_finite_scores(scores, chunk)
            self.probe = tuple(dummy_share(s, plan) for s, plan in zip(scores, self.plans, strict=True))
            self._reference = self._reference or self.probe
            moved = [abs(now - then) for now, then in zip(self.probe, self._reference, strict=True)]
            self._classify_at = chunk + 1 if max(moved) > self.guard.tolerance else None
        self._probe_at = chunk + self.guard.every if self.guard else None
        return self.plans if classifies else None

    def take_over(self, other: "HeadClassifier", chunks: int) -> None:
        """Go on with what another classifier found.

        Args:
            other: Of the chunks before.
            chunks: The number in its video of this one's chunk 0.
        """
        self.load_state(other.state())
        self._classify_at, self._probe_at = (
            at and max(at - chunks, 1) for at in (self._classify_at, self._probe_at)
        )

    def forget(self, context: HeadContext) -> Sequence[Plan]:
        """Give all heads the same context, in which they are to be classified again."""
        self.plans = (self.everyone(context),) * self._batch
        return self.plans

    def everyone(self, context: HeadContext) -> Plan:
        """The plan of heads that have no roles yet."""
        return Plan.uniform(self._config.num_layers, self._config.num_heads, context, self.policy.name)

    def _is_due(self, chunk: int | None, frames: int) -> bool:
        return chunk is not None and frames >= chunk * self._chunk_frames

    def state(self) -> ClassifierState:
        """The state of a head classifier: its plans, and when heads are scored again."""
        return ClassifierState(
            self.plans, self.is_planned, self._classify_at, self._probe_at, self._reference, self.probe
        )

    def load_state(self, state: ClassifierState) -> None:
        """Go on from what `state` gave."""
        self.plans, self.is_planned, self.probe = state.plans, state.is_planned, state.probe
        self._classify_at, self._probe_at = state.classify_at, state.probe_at
        self._reference = state.reference

    def copy(self) -> "HeadClassifier":
        """Another one that goes on from here."""
        return copy(self)
