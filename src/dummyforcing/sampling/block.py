"""The block loop: a chunk goes through all denoising steps, then through a commit pass that makes it past.

    sampler = BlockSampler(model, prompt_embeds, parse_policy("dummy"), schedule, shape, seeds=[0])
    for latents in sampler: ...

The whole method is in `next_chunk`: score -> plan -> cache -> attend.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, Unpack

import torch
from torch import Tensor

from dummyforcing.method.policy import Policy
from dummyforcing.method.scoring import HeadScorer
from dummyforcing.models.wan import CausalWan
from dummyforcing.sampling.denoise import denoise_chunk
from dummyforcing.sampling.guard import Guard, recalled_context
from dummyforcing.sampling.sampler import LoopNeeds, Received, Sampler, SamplerOptions, SamplerState
from dummyforcing.sampling.schedule import Schedule


@dataclass(frozen=True)
class BlockState(SamplerState):
    """The state of a block sampler."""

    is_first: bool
    """Whether no chunk was made yet."""


class BlockSampler(Sampler):
    """Makes a video chunk by chunk, each with a commit pass.

    For the classification of heads, first frames are the oldest visible ones, current is the chunk, and what
    lies between is the middle.
    """

    def __init__(
        self,
        model: CausalWan,
        prompt_embeds: Tensor,
        policy: Policy,
        schedule: Schedule,
        latent_shape: tuple[int, int, int, int],
        *,
        first_schedule: Schedule | None = None,
        skips: Sequence[bool] | None = None,
        guard: Guard | None = None,
        recache_frames: int = 0,
        global_sink: bool = True,
        source: Tensor | None = None,
        **options: Unpack[SamplerOptions],
    ) -> None:
        """Start a rollout.

        Args:
            model: On its device, in its dtype.
            prompt_embeds: Text encoder output, zero in padded rows, `(B, text_len, text_dim)`.
            policy: How heads get their contexts.
            schedule: The denoising steps of every chunk.
            latent_shape: `(B, C, h, w)` of one latent frame of every sample.
            first_schedule: The steps of the first chunk that is made, none of which is left out; None: as
                of the others.
            skips: From `teacache.skip_table`, for the chunks of `schedule`.
            guard: Watches whether the plan still fits, and has the heads classified again where it does not;
                of a batch, one sample is enough. None: they are classified once.
            recache_frames: After a change of the prompt, write so many of the newest frames again, as far as
                heads see them; 0: the past stays as it is.
            global_sink: Whether the first frames stay pinned then; else the first rewritten ones take over.
            source: Clean latents of a video to make this one from, `(B, F, C, h, w)`: the first step of each
                chunk gets them with noise of its own level, in place of noise alone.
            **options: See `SamplerOptions`.

        Raises:
            BadRequest: If the length is no multiple of a chunk, the plan is of another model, or there is
                nothing to guard.
            ValueError: If `prompt_embeds` are not for this batch, or `skips` has the wrong length.
        """
        chunk_frames = options.get("chunk_frames", 3)
        recalled = recalled_context(policy, chunk_frames) if guard and policy.roles else None
        sink, recent = (recalled.sink, recalled.recent or 0) if recalled else (0, 0)
        needs = LoopNeeds(
            guard=guard,
            timesteps=first_schedule.timesteps if first_schedule else (),
            kept_frames=(sink, max(recache_frames, recent)),
        )
        super().__init__(model, prompt_embeds, policy, schedule, latent_shape, needs, **options)
        self.first_schedule = first_schedule
        self._recache_frames, self._global_sink, self._source = recache_frames, global_sink, source
        self._skips = self._every_call(skips or ())
        self._is_first = True

    @torch.inference_mode()
    def next_chunk(self, received: Received | None = None) -> Tensor:
        """Make the next chunk; see `Sampler`."""
        self._advance_prompt()
        self._recall()
        # Score: in a chunk that classifies the heads, where each of them looks. None in all other chunks.
        score = self.heads.scorer(self.frames)
        x0 = self._denoise(score)
        if received is not None:
            received(x0)
        self._commit(x0, score)
        if score is not None:
            # Plan: the roles of all heads, and so the past frames that each of them sees from now on.
            plan = self.heads.plan(score, self.frames)
            if plan is not None:
                # Cache: the slots of every head become as many as its context asks for.
                self.cache.apply(plan)
        # Attend: in every pass (`Passes`), heads attend to what the cache shows them: attend(q, groups).
        return self._finish(x0)

    def _denoise(self, score: HeadScorer | None) -> Tensor:
        """Make one chunk of fresh noise, `(B, chunk_frames, C, h, w)` float32."""
        steps, skips = self.schedule, self._skips
        if self._is_first and self.first_schedule:
            steps, skips = self.first_schedule, ()
        self._is_first = False
        return denoise_chunk(self, steps, score, self._source, skips)

    def _commit(self, x0: Tensor, score: HeadScorer | None = None) -> None:
        """Make clean latents past, under the present prompt."""
        self.passes.commit(x0, self.prompts.text, self.call(None), score)

    @torch.inference_mode()
    def extend(self, latents: Tensor) -> None:
        """Go on from frames that are there already; see `Sampler`."""
        for x0 in self._chunks_of(latents):
            self._advance_prompt()
            self._commit(x0)
            self._finish(x0)

    def fork(self, skips: Sequence[bool] | None = None) -> Self:
        """Make another sampler that goes on from here; see `Sampler`.

        Args:
            skips: What the fork leaves out of its chunks, as at the start; None: the same as this one.

        Raises:
            ValueError: If `skips` has the wrong length.
        """
        other = super().fork()
        if skips is not None:
            other._skips = self._every_call(skips)
        return other

    def state(self) -> BlockState:
        """Give the state; see `Sampler`."""
        return BlockState(**vars(super().state()), is_first=self._is_first)

    def load_state(self, state: SamplerState) -> None:
        """Go on from what `state` gave."""
        assert isinstance(state, BlockState)
        super().load_state(state)
        self._is_first = state.is_first

    def _advance_prompt(self) -> None:
        """Take the next prompt, if there is one, and write again what must be seen under it."""
        if not (self.prompts.advance() and self._recache_frames and self.frames):
            return
        count = min(self._recache_frames, self.frames)
        if self._global_sink and count < self.frames:
            count = self.cache.room(count)  # of what is pinned nothing is written again
        latents = self.history.newest[:, -count:]
        if self._global_sink:
            self.cache.rewind(latents.shape[1])
        else:
            self.passes.restart(latents.shape[1])
            self.history.begin_with(latents)
        self._commit(latents)

    def _recall(self) -> None:
        """If heads with roles are to be classified again, write again what all of them must see for it.

        These are the video's first frames, in passes like the first time, and the newest ones after them, all
        at their own positions and under the prompt of the next chunk.
        """
        if not (self.heads.is_planned and self.heads.classifies(self.frames)):
            return
        past, size = self.cache.frames, self.chunk_frames
        plans = self.heads.forget(recalled_context(self.heads.policy, size))
        self.cache.reset()
        self.cache.apply(plans)
        for latents in torch.split(self.history.first, size, dim=1):
            self._commit(latents)
        newest = min(self.history.newest.shape[1], past - self.cache.frames)
        if newest:
            self.cache.jump(past - newest)
            for latents in torch.split(self.history.newest[:, -newest:], size, dim=1):
                self._commit(latents)

    def _every_call(self, skips: Sequence[bool]) -> tuple[bool, ...]:
        """Check what is left out of a chunk, call by call; empty: nothing."""
        calls = len(self.schedule.timesteps) + 1
        if len(skips) not in (0, calls):
            raise ValueError(f"skips must cover {calls} calls: the denoising steps and the commit pass")
        return tuple(skips)
