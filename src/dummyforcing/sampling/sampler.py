"""The base of the loops over chunks: the parts that a rollout is made of, up to its latents.

    sampler = SAMPLERS[preset.sampler](model, prompt_embeds, policy, schedule, latent_shape, seeds=[0])
    for latents in sampler: ...

The parts are the passes over the network with their cache, the head classifier, the prompts, the history of
latents and the noise. Each has its state in one dataclass, so a rollout is saved, restored and forked part by
part. `block.py`, `rolling.py` and `recompute.py` have the loops.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Self, TypedDict

import torch
from torch import Tensor

from dummyforcing.cache.kv_cache import KVCache
from dummyforcing.errors import BadRequest
from dummyforcing.kernels.transfers import send
from dummyforcing.method.plan import Plan
from dummyforcing.method.policy import Policy
from dummyforcing.models.wan import CausalWan, fingerprint
from dummyforcing.runtime.fused import FusedWan
from dummyforcing.runtime.ranks import Ranks
from dummyforcing.sampling.classifier import ClassifierState, HeadClassifier
from dummyforcing.sampling.guard import Guard
from dummyforcing.sampling.history import HistoryState, LatentHistory
from dummyforcing.sampling.noise import NoiseSource, SeededNoise, seeded_noise
from dummyforcing.sampling.passes import Call, Observer, Passes, PassesState
from dummyforcing.sampling.prompts import PromptState, PromptTrack
from dummyforcing.sampling.schedule import Schedule

Received = Callable[[Tensor], None]
"""`received(latents)`, of a chunk, `(B, chunk_frames, C, h, w)`."""


class SamplerOptions(TypedDict, total=False):
    """The options that all loops have."""

    chunk_frames: int
    """Latent frames per chunk; 3 by default."""
    seeds: Sequence[int] | NoiseSource
    """One per sample, or a source of noise; a chunk draws its noise, then one tensor per step but the last.
    `(0,)` by default."""
    plan: Plan | Sequence[Plan] | None
    """A plan made earlier, or one per sample: nothing is classified then, and the cache is small from chunk 0
    on."""
    frames: int | None
    """Length of the video in latent frames; None, the default: no end."""
    local_attention_size: int | None
    """See `KVCache`; None, the default: keys stay at their absolute positions."""
    fused: FusedWan | None
    """The model arranged for speed; passes that it cannot do, or that somebody looks into, go through the
    model itself. None, the default: all do."""
    backend: str | None
    """A name of `BACKENDS`; None, the default: the fastest that is there."""
    observer: Observer | None
    """Is shown every self-attention."""
    ranks: Ranks | None
    """The GPUs that make the video together, each in a process that does the same. None, the default: one."""


@dataclass(frozen=True)
class SamplerState:
    """The state of a sampler: everything that changes from chunk to chunk."""

    frames: int
    passes: PassesState
    heads: ClassifierState
    prompts: PromptState
    history: HistoryState
    noise: Tensor
    """Of `SeededNoise`."""


@dataclass(frozen=True)
class LoopNeeds:
    """What a loop asks of the parts for itself, which is no option of others."""

    guard: Guard | None = None
    """See `HeadClassifier`."""
    timesteps: Collection[float] = ()
    """Of denoising steps besides those of the schedule."""
    current_frames: int | None = None
    """Most frames that are denoised at a time; None: a chunk."""
    cached_frames: int | None = None
    """How long the whole past gets in heads that see it; None: as long as the video, or until there is a
    plan."""
    region_frames: int = 0
    """At least so many of the oldest visible frames count as first for classification."""
    kept_frames: tuple[int, int] = (0, 0)
    """How many first and newest latent frames may be needed again."""


class Sampler(ABC):
    """The state of one rollout of a batch of videos up to its latents; the model holds none of it."""

    def __init__(
        self,
        model: CausalWan,
        prompt_embeds: Tensor,
        policy: Policy,
        schedule: Schedule,
        latent_shape: tuple[int, int, int, int],
        needs: LoopNeeds,
        *,
        chunk_frames: int = 3,
        seeds: Sequence[int] | NoiseSource = (0,),
        plan: Plan | Sequence[Plan] | None = None,
        frames: int | None = None,
        local_attention_size: int | None = None,
        fused: FusedWan | None = None,
        backend: str | None = None,
        observer: Observer | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """Build the parts.

        Args:
            model: On its device, in its dtype.
            prompt_embeds: Text encoder output, zero in padded rows, `(B, text_len, text_dim)`.
            policy: How heads get their contexts.
            schedule: The denoising steps of every chunk.
            latent_shape: `(B, C, h, w)` of one latent frame of every sample.
            needs: Of the loop.
            chunk_frames: This and what follows: see `SamplerOptions`.
            seeds: Likewise.
            plan: Likewise.
            frames: Likewise.
            local_attention_size: Likewise.
            fused: Likewise.
            backend: Likewise.
            observer: Likewise.
            ranks: Likewise.

        Raises:
            BadRequest: If `frames` is no multiple of `chunk_frames`, the plan is of another model, or there
                is nothing to guard.
            ValueError: If `prompt_embeds` are not for this batch.
        """
        if frames is not None and frames % chunk_frames:
            raise BadRequest(
                f"{frames} latent frames cannot be made in chunks of {chunk_frames}",
                f"take a multiple of {chunk_frames}",
            )
        batch, _, height, width = latent_shape
        config, weight = model.config, model.patch_embedding.weight
        self.schedule, self.latent_shape = schedule, latent_shape
        self.chunk_frames, self.total_frames = chunk_frames, frames
        self.frames = 0
        """Finished latent frames."""
        self.fingerprint = fingerprint(model)
        """Of the model."""
        self.heads = HeadClassifier(
            config,
            policy,
            plan,
            needs.guard,
            batch=batch,
            chunk_frames=chunk_frames,
            first_frames=max(policy.first_frames, needs.region_frames),
            fingerprint=self.fingerprint,
            total=ranks.sum if ranks else None,
        )
        cached_frames = needs.cached_frames
        if cached_frames is None:
            at = self.heads.classify_at
            cached_frames = frames if at is None else (at + 1) * chunk_frames
        given = [context for one in self.heads.plans for row in one.contexts for context in row]
        patch_height, patch_width = config.patch_size[1:]
        cache = KVCache(
            self.heads.plans,
            head_dim=config.head_dim,
            tokens_per_frame=(height // patch_height) * (width // patch_width),
            chunk_frames=needs.current_frames or chunk_frames,
            local_attention_size=local_attention_size,
            dtype=fused.attention_dtype if fused else weight.dtype,
            device=weight.device,
            frames=cached_frames,
            ranks=ranks,
            has_keys=any(context.keys for context in (*policy.contexts, *given)),
        )
        self.passes = Passes(
            model,
            cache,
            (height, width),
            {*schedule.timesteps, *needs.timesteps},
            fused=fused,
            backend=backend,
            observer=observer,
            ranks=ranks,
        )
        self.prompts = PromptTrack(model, prompt_embeds, batch)
        empty = torch.empty(batch, 0, *latent_shape[1:], device=weight.device)
        self.history = LatentHistory(empty, *needs.kept_frames)
        self.noise: NoiseSource = seeds if callable(seeds) else seeded_noise(seeds)

    @abstractmethod
    def next_chunk(self, received: Received | None = None) -> Tensor:
        """Make the next chunk.

        Args:
            received: Is given the latents before the device is asked for anything else, such as the commit
                pass, so that decoding need not wait for it.

        Returns:
            Its latents, `(B, chunk_frames, C, h, w)` float32.
        """

    @abstractmethod
    def extend(self, latents: Tensor) -> None:
        """Go on from frames that are there already, such as an image or a clip; they count as finished.

        Args:
            latents: Clean latents, `(B, F, C, h, w)`; whole chunks.

        Raises:
            BadRequest: If they are no whole chunks.
        """

    def __iter__(self) -> Iterator[Tensor]:
        """Make chunks until the video has its length."""
        while self.total_frames is None or self.frames < self.total_frames:
            yield self.next_chunk()

    @property
    def cache(self) -> KVCache:
        """Keys and values of the past."""
        return self.passes.cache

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plans of all samples at present."""
        return self.heads.plans

    @property
    def plan(self) -> Plan:
        """The plan of the first sample at present."""
        return self.heads.plans[0]

    @property
    def scores_next(self) -> bool:
        """Whether heads are scored in the next chunk; a GPU's scores are waited for then."""
        return self.heads.is_due(self.frames)

    def set_prompt(self, prompt_embeds: Tensor, *, chunks: int = 1) -> None:
        """Change the prompt, from the next chunk on; see `PromptTrack.change`."""
        self.prompts.change(prompt_embeds, chunks)

    @torch.inference_mode()
    def fork(self) -> Self:
        """Make another sampler that goes on from here; neither affects the other.

        It has a cache of its own and shares the rest of the memory. A source of noise is copied by
        `copy.deepcopy`, which a function is not: forks share it.
        """
        other = copy(self)
        other.passes, other.heads = self.passes.copy(), self.heads.copy()
        other.prompts, other.history = self.prompts.copy(), self.history.copy()
        other.noise = deepcopy(self.noise)
        return other

    def state(self) -> SamplerState:
        """Give the state between two chunks; it shares memory with this sampler.

        Raises:
            BadRequest: If the noise comes from a source whose state is not known.
        """
        if not isinstance(self.noise, SeededNoise):
            raise BadRequest("A rollout with a noise source of its own cannot be saved", "give it seeds")
        return SamplerState(
            self.frames,
            self.passes.state(),
            self.heads.state(),
            self.prompts.state(),
            self.history.state(),
            self.noise.state(),
        )

    @torch.inference_mode()
    def load_state(self, state: SamplerState) -> None:
        """Go on from the state of a sampler that was made alike; copies it."""
        self.frames = state.frames
        self.passes.load_state(state.passes)
        self.heads.load_state(state.heads)
        self.prompts.load_state(state.prompts)
        self.history.load_state(state.history)
        self.noise = SeededNoise.from_state(state.noise)

    def take_over(self, prompts: PromptTrack, heads: HeadClassifier, chunks: int, start: Tensor) -> None:
        """Go on with the prompts and the plans of another sampler, whose video this one continues.

        Args:
            prompts: Of the other sampler, a fade that is under way included.
            heads: Likewise.
            chunks: The number in its video of this one's chunk 0.
            start: The frames of that video that this one begins with again, `(B, F, C, h, w)`.
        """
        self.heads.take_over(heads, chunks)
        if self.heads.is_planned:
            self.cache.apply(self.heads.plans)
        self.prompts = prompts.standing()  # a fade took its steps for these frames when they were made
        self.extend(start)
        self.prompts = prompts

    def call(self, step: int | None) -> Call:
        """Name a pass over the present chunk."""
        return Call(self.frames // self.chunk_frames, step)

    def draw(self) -> Tensor:
        """Noise for a chunk, on the model's device."""
        batch, *size = self.latent_shape
        return send(self.noise((batch, self.chunk_frames, *size)).float(), self.passes.device)

    def _finish(self, x0: Tensor) -> Tensor:
        """Count finished frames, and keep what may be needed again."""
        self.history.add(x0)
        self.frames += x0.shape[1]
        return x0

    def _chunks_of(self, latents: Tensor) -> Sequence[Tensor]:
        """Cut given latents into chunks."""
        count, size = latents.shape[1], self.chunk_frames
        if not count or count % size:
            raise BadRequest(
                f"A video that is made in chunks of {size} latent frames cannot go on from {count}",
                f"take a multiple of {size}",
            )
        return torch.split(latents.to(self.passes.device, torch.float32), size, dim=1)
