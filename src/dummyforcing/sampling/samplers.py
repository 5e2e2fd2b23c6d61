"""The loops over chunks: one class each, by the names that presets use.

session = SAMPLERS[preset.sampler](model, prompt_embeds, policy, schedule, shape, ...)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Self, TypedDict, Unpack

import torch
from torch import Tensor

from dummyforcing.errors import UserError
from dummyforcing.method.plan import Plan
from dummyforcing.method.policy import HeadScorer, Policy
from dummyforcing.models.wan import CausalWan, TimeEmbedding
from dummyforcing.runtime.fused import FusedWan
from dummyforcing.runtime.streams import send
from dummyforcing.sampling.classifier import Guard
from dummyforcing.sampling.schedule import NoiseSource, Schedule, renoise, x0_from_velocity
from dummyforcing.sampling.session import Observer, Received, Session


class SessionOptions(TypedDict, total=False):
    """The optional arguments of `Session`."""

    chunk_frames: int
    seeds: Sequence[int] | NoiseSource
    plan: Plan | None
    guard: Guard | None
    skips: Sequence[bool] | None
    first_schedule: Schedule | None
    frames: int | None
    reach: int | None
    recache_frames: int
    global_sink: bool
    fused: FusedWan | None
    backend: str | None
    observer: Observer | None


class RollingSession(Session):
    """Denoises a window of chunks at a time, one noise level per chunk, the oldest one nearest to clean.

    The window grows by one chunk of noise a pass until it has a chunk for every step, then a finished chunk
    leaves whenever one enters, and at the end of the video it shrinks. A chunk that leaves is committed.
    Commit passes of the model's own window see the pinned frames only as long as these are in reach.

    For the classification of heads, first are the pinned frames, middle the frames between them and the
    window, current is the whole window. So heads are classified when there is a middle, at the earliest.

    Source: Rolling Forcing (arXiv:2509.25161).
    """

    STATE = (*Session.STATE, "_window", "_step")

    def __init__(
        self,
        model: CausalWan,
        prompt_embeds: Tensor,
        policy: Policy,
        schedule: Schedule,
        latent_shape: tuple[int, int, int, int],
        **options: Unpack[SessionOptions],
    ) -> None:
        """Start a rollout; see `Session`.

        Raises:
            ValueError: If a `first_schedule` is given: a window has all steps at once. If a guard is: what
                chunks in progress have seen cannot be written again.
        """
        if options.get("first_schedule"):
            raise ValueError("a window has chunks at all steps: no other first steps")
        if options.get("guard"):
            raise ValueError("chunks are in progress in a window: no guard can have heads classified anew")
        super().__init__(model, prompt_embeds, policy, schedule, latent_shape, **options)
        self._first_frames = max(self._first_frames, policy.initial.sink)
        self._window = self._tail  # chunks in progress, ready for their next steps, oldest first
        self._step = 0  # of the oldest one

    @torch.inference_mode()
    def next_chunk(self, received: Received | None = None) -> Tensor:
        """Run windows until the next chunk is finished: one, or at first as many as there are steps."""
        self._advance_prompt()
        self._scorer = self._new_scorer()
        last = len(self.schedule.sigmas) - 1
        while self._step < last:
            self._run_window()
            self._step += 1
        x0 = self._run_window()
        if received is not None:
            received(x0)
        self._commit(x0)
        self._apply_scores()
        return self._finish(x0)

    def _run_window(self) -> Tensor:
        """Take all chunks of the window one step further, with a new one if the video goes on.

        Returns:
            The estimate of the oldest one's clean latents.
        """
        begun = self.frames + self._window.shape[1]
        if self.total_frames is None or begun < self.total_frames:
            self._window = torch.cat([self._window, self._draw()], 1)
        elif not self._window.shape[1]:
            raise ValueError("the video is complete")
        steps = range(self._step, self._step - self._window.shape[1] // self.chunk_frames, -1)
        chunks = torch.split(self._denoise_window(self._window, steps), self.chunk_frames, dim=1)
        sigmas = self.schedule.sigmas
        ahead = [(x0, step + 1) for x0, step in zip(chunks, steps, strict=True) if step + 1 < len(sigmas)]
        again = [renoise(x0, self._draw(), sigmas[step]) for x0, step in ahead]
        self._window = torch.cat([self._window[:, :0], *again], 1)
        return chunks[0]

    def _denoise_window(self, x: Tensor, steps: range) -> Tensor:
        """Estimate the clean latents of chunks at different steps in one pass, `(B, F, C, h, w)` as `x`."""
        times = [self._times[self.schedule.timesteps[step]] for step in steps]
        time = TimeEmbedding(
            torch.cat([t.head for t in times], 1).repeat_interleave(self.chunk_frames, 1),
            torch.cat([t.blocks for t in times], 1).repeat_interleave(self.chunk_frames, 1),
        )
        sigmas = torch.tensor([self.schedule.sigmas[step] for step in steps], dtype=torch.float64)
        sigmas = send(sigmas.repeat_interleave(self.chunk_frames)[:, None, None, None], self._device)
        hidden = self._transform(self.model.patchify(x.to(self._dtype)), time, steps[0])
        velocity = self.model.unpatchify(hidden, time, self.height, self.width)
        return x0_from_velocity(x, velocity, sigmas)

    def extend(self, latents: Tensor) -> None:
        """Go on from frames that are there already; before the first chunk only.

        Raises:
            ValueError: If chunks are in progress.
        """
        if self._window.shape[1]:
            raise ValueError("chunks are in progress: nothing can come between them")
        super().extend(latents)

    def _every_call(self, skips: Sequence[bool]) -> tuple[bool, ...]:
        if skips:
            raise ValueError("a window has chunks at all steps: no calls to skip")
        return super()._every_call(skips)

    def _new_scorer(self) -> HeadScorer | None:
        return super()._new_scorer() if self.cache.frames > self.policy.initial.sink else None

    def _keeps_pinned(self, step: int | None) -> bool:
        return step is not None or self._is_planned

    @property
    def _most_current(self) -> int:
        return len(self.schedule.sigmas) * self.chunk_frames


class RecomputeSession(Session):
    """Builds the cache anew before every chunk, from the clean latents of a few frames at positions 0, 1, ...

    So there is no commit pass after a chunk, positions never grow, and neither does memory. The context is a
    first frame and the newest ones. The groups of the context attend to themselves and earlier ones.

    For the classification of heads, first is the context's first frame, middle the others, current the chunk.
    Contexts of a plan count the frames of the context. A new prompt holds from the denoising steps of the
    next chunk on; its context is still written with the old one.

    Source: Krea Realtime 14B (huggingface.co/krea/krea-realtime-video).
    """

    STATE = (*Session.STATE, "_first")
    RULES: ClassVar = {**Session.RULES, "context_frames": "number of context frames"}

    def __init__(
        self,
        model: CausalWan,
        prompt_embeds: Tensor,
        policy: Policy,
        schedule: Schedule,
        latent_shape: tuple[int, int, int, int],
        *,
        context_frames: int = 3,
        first_latent: Callable[[], Tensor] | None = None,
        **options: Unpack[SessionOptions],
    ) -> None:
        """Start a rollout; see `Session`.

        Args:
            model: See `Session`.
            prompt_embeds: See `Session`.
            policy: See `Session`.
            schedule: See `Session`.
            latent_shape: See `Session`.
            context_frames: Latent frames of the context.
            first_latent: Gives the context's first frame, `(B, 1, C, h, w)`, as soon as the video has a whole
                context beside its first chunk: the oldest of the last `1 + 4 * (context_frames - 1)` pixel
                frames, encoded as an image. None: the video's first latent frame stays.
            **options: See `Session`.

        Raises:
            UserError: If the policy scores commit passes.
            ValueError: If frames are to be rewritten or heads guarded, which fits the block loop only.
        """
        if options.get("recache_frames") or options.get("guard"):
            raise ValueError("the cache is built anew before every chunk: nothing to rewrite or to guard")
        if policy.roles and policy.score_pass == "commit" and not options.get("plan"):
            raise UserError(
                f"Policy '{policy.name}' scores commit passes, and this model has none; take 'dummy'."
            )
        self.context_frames, self._first_latent = context_frames, first_latent
        super().__init__(model, prompt_embeds, policy, schedule, latent_shape, **options)
        self._first = self._tail  # the video's first frame

    @torch.inference_mode()
    def next_chunk(self, received: Received | None = None) -> Tensor:
        """Make the next chunk, `(B, chunk_frames, C, h, w)` float32, after its context."""
        if self.frames:
            self.cache.reset()
            for group in torch.split(self._context(), self.chunk_frames, dim=1):
                self._commit(group)
        self._advance_prompt()
        self._scorer = self._new_scorer()
        x0 = self._generate()
        if received is not None:
            received(x0)
        self._apply_scores()
        return self._finish(x0)

    @torch.inference_mode()
    def extend(self, latents: Tensor) -> None:
        """Go on from frames that are there already; no pass is needed.

        Raises:
            UserError: If they are no whole chunks.
        """
        for x0 in self._chunks_of(latents):
            self._finish(x0)

    def fork(self, skips: Sequence[bool] | None = None) -> Self:
        """Make another session that goes on from here; see `Session`.

        Raises:
            UserError: If the context begins with a decoded frame: of what the fork makes, nobody decodes any.
        """
        if self._first_latent is not None:
            raise UserError(
                "A session whose context begins with a decoded frame cannot be forked; save it, and restore "
                "it with a first_latent of its own."
            )
        return super().fork(skips)

    def _every_call(self, skips: Sequence[bool]) -> tuple[bool, ...]:
        if skips:
            raise ValueError("the cache is built anew before every chunk: no calls to skip")
        return super()._every_call(skips)

    def _context(self) -> Tensor:
        """The frames to build the cache from, `(B, F, C, h, w)`."""
        others = min(self.context_frames, self.frames) - 1
        first = self._first
        if self._first_latent is not None and self.frames - self.chunk_frames >= self.context_frames:
            first = self._first_latent().to(self._device, torch.float32)
        return torch.cat([first, self._tail[:, self._tail.shape[1] - others :]], 1)

    def _finish(self, x0: Tensor) -> Tensor:
        if not self.frames:
            self._first = x0[:, :1]
        return super()._finish(x0)

    @property
    def _most_cached(self) -> int | None:
        return self.context_frames + self.chunk_frames

    @property
    def _remembered(self) -> int:
        return self.context_frames - 1


SAMPLERS: Mapping[str, Callable[..., Session]] = {
    "block": Session,
    "rolling": RollingSession,
    "recompute": RecomputeSession,
}
