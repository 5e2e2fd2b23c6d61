"""The rolling loop: a window of chunks is denoised at a time, one noise level per chunk.

Source: Rolling Forcing (arXiv:2509.25161).
"""

from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from dummyforcing.kernels.transfers import send
from dummyforcing.method.policy import Policy
from dummyforcing.method.scoring import HeadScorer
from dummyforcing.models.wan import CausalWan
from dummyforcing.sampling.sampler import LoopNeeds, Received, Sampler, SamplerOptions, SamplerState
from dummyforcing.sampling.schedule import Schedule, renoise, x0_from_velocity


@dataclass(frozen=True)
class RollingState(SamplerState):
    """The state of a rolling sampler."""

    window: Tensor
    """Chunks in progress, ready for their next steps, oldest first, `(B, F, C, h, w)`."""
    step: int
    """Of the oldest one."""


class RollingSampler(Sampler):
    """Denoises a window of chunks at a time, the oldest one nearest to clean.

    The window grows by one chunk of noise a pass until it has a chunk for every step, then a finished chunk
    leaves whenever one enters, and at the end of the video it shrinks. A chunk that leaves is committed.
    Commit passes of the model's own window see the pinned frames only as long as these are within the local
    attention size.

    For the classification of heads, first are the pinned frames, middle the frames between them and the
    window, current is the whole window. So heads are classified when there is a middle, at the earliest.
    """

    def __init__(
        self,
        model: CausalWan,
        prompt_embeds: Tensor,
        policy: Policy,
        schedule: Schedule,
        latent_shape: tuple[int, int, int, int],
        **options: Unpack[SamplerOptions],
    ) -> None:
        """Start a rollout.

        Args:
            model: On its device, in its dtype.
            prompt_embeds: Text encoder output, zero in padded rows, `(B, text_len, text_dim)`.
            policy: How heads get their contexts.
            schedule: The denoising steps of every chunk.
            latent_shape: `(B, C, h, w)` of one latent frame of every sample.
            **options: See `SamplerOptions`.

        Raises:
            BadRequest: If the length is no multiple of a chunk, or the plan is of another model.
            ValueError: If `prompt_embeds` are not for this batch.
        """
        needs = LoopNeeds(
            current_frames=len(schedule.sigmas) * options.get("chunk_frames", 3),
            region_frames=policy.initial.sink,
        )
        super().__init__(model, prompt_embeds, policy, schedule, latent_shape, needs, **options)
        self._window = self.history.newest
        self._step = 0

    @torch.inference_mode()
    def next_chunk(self, received: Received | None = None) -> Tensor:
        """Run windows until the next chunk is finished: one, or at first as many as there are steps."""
        self.prompts.advance()
        has_middle = self.cache.frames > self.heads.policy.initial.sink
        score = self.heads.scorer(self.frames) if has_middle else None
        while self._step < len(self.schedule.sigmas) - 1:
            self._run_window(score)
            self._step += 1
        x0 = self._run_window(score)
        if received is not None:
            received(x0)
        self._commit(x0, score)
        if score is not None and (plan := self.heads.plan(score, self.frames)):
            self.cache.apply(plan)
        return self._finish(x0)

    def _run_window(self, score: HeadScorer | None) -> Tensor:
        """Take all chunks of the window one step further, with a new one if the video goes on.

        Returns:
            The estimate of the oldest one's clean latents.
        """
        begun = self.frames + self._window.shape[1]
        if self.total_frames is None or begun < self.total_frames:
            self._window = torch.cat([self._window, self.draw()], 1)
        elif not self._window.shape[1]:
            raise ValueError("the video is complete")
        steps = range(self._step, self._step - self._window.shape[1] // self.chunk_frames, -1)
        chunks = torch.split(self._denoise(self._window, steps, score), self.chunk_frames, dim=1)
        sigmas = self.schedule.sigmas
        ahead = [(x0, step + 1) for x0, step in zip(chunks, steps, strict=True) if step + 1 < len(sigmas)]
        again = [renoise(x0, self.draw(), sigmas[step]) for x0, step in ahead]
        self._window = torch.cat([self._window[:, :0], *again], 1)
        return chunks[0]

    def _denoise(self, x: Tensor, steps: range, score: HeadScorer | None) -> Tensor:
        """Estimate the clean latents of chunks at different steps in one pass, `(B, F, C, h, w)` as `x`."""
        passes = self.passes
        time = passes.time([self.schedule.timesteps[step] for step in steps], self.chunk_frames)
        hidden = passes.transform(passes.tokens(x), time, self.prompts.text, self.call(steps[0]), score)
        sigmas = torch.tensor([self.schedule.sigmas[step] for step in steps], dtype=torch.float64)
        sigmas = send(sigmas.repeat_interleave(self.chunk_frames)[:, None, None, None], x.device)
        return x0_from_velocity(x, passes.velocity(hidden, time), sigmas)

    def _commit(self, x0: Tensor, score: HeadScorer | None = None) -> None:
        pinned = self.heads.is_planned
        self.passes.commit(x0, self.prompts.text, self.call(None), score, pinned)

    @torch.inference_mode()
    def extend(self, latents: Tensor) -> None:
        """Go on from frames that are there already; before the first chunk only; see `Sampler`.

        Raises:
            ValueError: If chunks are in progress.
        """
        if self._window.shape[1]:
            raise ValueError("chunks are in progress: nothing can come between them")
        for x0 in self._chunks_of(latents):
            self.prompts.advance()
            self._commit(x0)
            self._finish(x0)

    def state(self) -> RollingState:
        """Give the state; see `Sampler`."""
        return RollingState(**vars(super().state()), window=self._window, step=self._step)

    def load_state(self, state: SamplerState) -> None:
        """Go on from what `state` gave."""
        assert isinstance(state, RollingState)
        super().load_state(state)
        self._window, self._step = state.window.to(self.passes.device), state.step
