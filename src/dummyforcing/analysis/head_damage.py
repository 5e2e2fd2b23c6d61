"""Plans by measurement: what each head's past is worth, over many videos, and the plan that follows.

    damage = measure_damage(pipeline, ["a red ball bounces", "a blue star spins"], policy)
    damage.plan(policy).save("plan.json")

The heads that policy makes dummy are those whose removal alone does least (`removal.py`), in place of those
that look least at the past; the others get their roles by where they look, as ever.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from dummyforcing.analysis.removal import chunk_damages
from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.errors import BadRequest, NotFinite
from dummyforcing.files.finite import all_finite
from dummyforcing.files.state import read_state, write_state
from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.method.policy import Policy
from dummyforcing.method.programming import make_plan
from dummyforcing.method.scoring import HeadScorer, row_sampler
from dummyforcing.models.wan import fingerprint
from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from dummyforcing.pipeline.request import Request, make_request
from dummyforcing.presets.preset import Preset, ScheduleArgs
from dummyforcing.sampling.block import BlockSampler

KIND, VERSION = "measurement of heads", "1"
NOTHING = HeadContext(0, 0)
"""What a head that was removed still sees of the past."""
PAST_FRAMES = 12
"""Latent frames of the past that heads are measured with, if nothing else is asked for: with few of them, as
in chunk 1, heads that look far back seem to be worth little."""


@dataclass(frozen=True)
class Settings:
    """The conditions of a measurement."""

    model: str
    fingerprint: str
    """Of the model, as in a plan."""
    schedule: ScheduleArgs
    native: str
    """The policy that the videos are made with."""
    size: tuple[int, int]
    """Height and width in pixels."""
    dtype: str
    chunks: tuple[int, ...]
    """The chunks whose calls are asked again."""
    first_frames: int
    """This and the next three: how heads are scored, see `Policy`."""
    last_frames: int
    rows: str
    row_seed: int


@dataclass(frozen=True)
class MeasuredVideo:
    """What was measured on one video, so far."""

    prompt: str
    seed: int
    damages: tuple[Tensor, ...] = ()
    """Of each denoising call of the chunks in turn, `(layers, heads)` float64."""
    scores: Tensor | None = None
    """Where the heads look in these chunks, `(layers, heads, 3)` float32; None: there are calls left."""


@dataclass(frozen=True)
class HeadDamage:
    """What it does to take the past away from each head, one at a time, on some videos."""

    settings: Settings
    videos: tuple[MeasuredVideo, ...]

    @property
    def damage(self) -> Tensor:
        """Squared change of x0 over its variance, mean over videos and calls, `(layers, heads)` float64."""
        return torch.stack([torch.stack(video.damages).mean(0) for video in self.videos]).mean(0)

    @property
    def scores(self) -> Tensor:
        """Mean over videos, `(layers, heads, 3)`: attention mass on first, middle and current frames."""
        return torch.stack([video.scores for video in self.videos if video.scores is not None]).mean(0)

    def calls(self, prompts: Sequence[str], seeds: Sequence[int]) -> int:
        """Count the calls that were measured on the videos of these prompts and seeds."""
        asked = {(prompt, seed) for prompt in prompts for seed in seeds}
        return sum(len(video.damages) for video in self.videos if (video.prompt, video.seed) in asked)

    def plan(self, policy: Policy) -> Plan:
        """Make the plan of a policy whose dummy heads are those of least damage.

        Raises:
            BadRequest: If the policy chooses no dummy heads by a criterion.
        """
        require_criterion(policy)
        settings, damage = self.settings, self.damage
        order = damage.flatten().argsort(stable=True).tolist()

        def least_damage(mass: Tensor, count: int, seed: int) -> list[int]:
            return order[:count]

        chosen = replace(policy, criterion=least_damage)
        plan = make_plan(chosen, self.scores, settings.chunks[0], settings.fingerprint)
        return replace(
            plan,
            policy=f"calibrated {policy.name}",
            chunk=settings.chunks[0] if len(settings.chunks) == 1 else None,
            found={
                "by": "damage of each head's removal alone",
                "model": settings.model,
                "size": list(settings.size),
                "dtype": settings.dtype,
                "chunks": list(settings.chunks),
                "videos": [[video.prompt, video.seed] for video in self.videos],
                "damage": [[float(f"{x:.4g}") for x in row] for row in damage.tolist()],
            },
        )

    def of_dummies(self, plan: Plan) -> float:
        """The sum of the damages of a plan's dummy heads, as if these added up."""
        is_dummy = torch.tensor([[role == "dummy" for role in row] for row in plan.roles])
        return float(self.damage[is_dummy].sum())

    def of(self, settings: Settings, path: Path) -> "HeadDamage":
        """The same, if it was measured under these conditions.

        Args:
            settings: What is asked for now.
            path: Where it is from.

        Raises:
            BadRequest: If it was measured under other ones.
        """
        for name in (field.name for field in fields(Settings)):
            before, now = getattr(self.settings, name), getattr(settings, name)
            if before != now:
                raise BadRequest(
                    f"{path} was measured under other conditions: its {name.replace('_', ' ')} was {before}, "
                    f"and would be {now} now",
                    "remove it, or take another file",
                )
        return self

    def save(self, path: str | Path) -> None:
        """Write everything into a file that appears whole or not at all.

        Raises:
            BadFile: If it cannot be written.
        """
        write_state(Path(path), KIND, VERSION, self)

    @classmethod
    def load(cls, path: str | Path) -> "HeadDamage":
        """Read what `save` wrote.

        Raises:
            BadFile: If it is not there, damaged or something else.
        """
        return read_state(Path(path), KIND, VERSION, cls)


def require_criterion(policy: Policy) -> None:
    """Refuse a policy in which no damage can decide which heads become dummy.

    Raises:
        BadRequest: If it has no roles, or finds them by other means.
    """
    if policy.roles is None:
        why = "does not classify heads"
    elif policy.assign is not None:
        why = "gives heads their roles itself"
    elif policy.budget is not None:
        why = "chooses heads by attention, within its budget"
    elif policy.score_pass == "commit":
        why = "scores commit passes, and here denoising calls are measured"
    else:
        return
    raise BadRequest(f"Policy '{policy.name}' {why}", "take 'dummy' or 'anchored'", "policy")


def measure_damage(
    pipeline: DummyForcingPipeline,
    prompts: Sequence[str],
    policy: Policy,
    *,
    chunks: Sequence[int] | None = None,
    seeds: Sequence[int] = (0,),
    size: tuple[int, int] | None = None,
    kept: Path | None = None,
    on_head: Callable[[float], object] = lambda share: None,
) -> HeadDamage:
    """Measure what each head's past is worth, on a video of every prompt with every seed, not decoded.

    The videos see what the model was trained to see (its native policy). A head costs a pass for each call,
    on average through half of the layers; the memory is that of making a video.

    Args:
        pipeline: The model.
        prompts: What the videos show; those that are there twice count once.
        policy: Says how heads are scored.
        chunks: The chunks to measure, from 1; None: the first with `PAST_FRAMES` before it.
        seeds: Of the noise.
        size: Height and width in pixels; None: the model's own.
        kept: A file in which everything is kept after each call; what it holds already is not measured again,
            and stays there. None: nothing is kept.
        on_head: Is told after each head which share of a call's work that was.

    Returns:
        The measurement of these videos.

    Raises:
        UserError: If anything of it cannot be done.
    """
    require_criterion(policy)
    preset, config = pipeline.files.preset, pipeline.model.config
    chosen = chosen_chunks(preset, chunks)
    request = damage_request(pipeline.files, prompts, chosen, size)
    settings = Settings(
        model=preset.name,
        fingerprint=fingerprint(pipeline.model),
        schedule=preset.schedule,
        native=preset.native,
        size=request.size,
        dtype=str(pipeline.dtype).removeprefix("torch."),
        chunks=chosen,
        first_frames=policy.first_frames,
        last_frames=policy.last_frames,
        rows="all" if policy.rows is None else str(policy.rows),
        row_seed=policy.seed,
    )
    before = HeadDamage.load(kept).of(settings, kept) if kept and kept.exists() else None
    known = {(video.prompt, video.seed): video for video in (before.videos if before else ())}

    def learn(video: MeasuredVideo) -> None:
        known[video.prompt, video.seed] = video
        if kept:
            HeadDamage(settings, tuple(known.values())).save(kept)

    pipeline.warn_of(request)
    asked = [(prompt, seed) for prompt in dict.fromkeys(request.prompts) for seed in seeds]
    for prompt, seed in asked:
        video = known.get((prompt, seed), MeasuredVideo(prompt, seed))
        if video.scores is not None:
            continue
        sampler = pipeline.rollout(replace(request, prompts=(prompt,), seed=seed)).sampler
        assert isinstance(sampler, BlockSampler)
        scorer = HeadScorer(
            1,
            config.num_layers,
            config.num_heads,
            policy.first_frames,
            row_sampler(policy),
            policy.last_frames,
        )
        for damage in _calls(sampler, chosen, scorer, len(video.damages), on_head):
            _require_finite(damage)
            video = replace(video, damages=(*video.damages, damage))
            learn(video)
        learn(replace(video, scores=scorer.scores()[0]))
    return HeadDamage(settings, tuple(known[one] for one in asked))


def chosen_chunks(preset: Preset, chunks: Sequence[int] | None) -> tuple[int, ...]:
    """The chunks to measure: those that were asked for, or the first that has `PAST_FRAMES` before it.

    Raises:
        BadRequest: If one of them has no past.
    """
    found = tuple(sorted(set(chunks if chunks is not None else [-(-PAST_FRAMES // preset.chunk_frames)])))
    if not found or found[0] < 1:
        raise BadRequest("There is no past to take away in chunk 0", "give chunks from 1 on", "chunks")
    return found


def damage_request(
    files: ModelFiles, prompts: Sequence[str], chunks: Sequence[int], size: tuple[int, int] | None
) -> Request:
    """The videos that are measured up to the last of some chunks, as one request.

    Raises:
        BadRequest: If the model makes no videos chunk by chunk, or none so long.
    """
    preset = files.preset
    if preset.sampler != "block":
        raise BadRequest(
            f"Model '{preset.name}' has sampler '{preset.sampler}', whose calls cannot be asked again",
            "take a model of sampler 'block', such as self-forcing",
        )
    frames = preset.pixel_frames((chunks[-1] + 1) * preset.chunk_frames)
    return make_request(files, prompts, num_frames=frames, size=size, policy="native")


def _calls(
    sampler: BlockSampler,
    chunks: Sequence[int],
    scorer: HeadScorer,
    known: int,
    on_head: Callable[[float], object],
) -> Iterator[Tensor]:
    """Make a video up to the last of some chunks; yields what their calls find, but for the first `known`."""
    steps = len(sampler.schedule.sigmas)
    for chunk in range(chunks[-1] + 1):
        if chunk not in chunks:
            sampler.next_chunk()
            continue
        left = known - chunks.index(chunk) * steps
        skipped = range(max(0, min(left, steps)))
        yield from chunk_damages(sampler, NOTHING, scorer, known=skipped, on_head=on_head)


def _require_finite(damage: Tensor) -> None:
    if not all_finite(damage):
        raise NotFinite(
            "The damage of removing heads cannot be measured: the model makes NaN or infinite numbers, or "
            "latents that are all alike",
            'load the model with torch_dtype="float32"',
        )
