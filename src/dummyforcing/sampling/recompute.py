"""The recompute loop: the cache is built again before every chunk, from the clean latents of a few frames.

Source: Krea Realtime 14B (huggingface.co/krea/krea-realtime-video).
"""

from collections.abc import Callable
from typing import Self, Unpack

import torch
from torch import Tensor

from dummyforcing.errors import BadRequest
from dummyforcing.method.policy import Policy
from dummyforcing.models.wan import CausalWan
from dummyforcing.sampling.denoise import denoise_chunk
from dummyforcing.sampling.sampler import LoopNeeds, Received, Sampler, SamplerOptions
from dummyforcing.sampling.schedule import Schedule


class RecomputeSampler(Sampler):
    """Builds the cache again before every chunk, from a few frames at positions 0, 1, ...

    So there is no commit pass after a chunk, positions never grow, and neither does memory. The context is a
    first frame and the newest ones. The groups of the context attend to themselves and earlier ones.

    For the classification of heads, first is the context's first frame, middle the others, current the chunk.
    Contexts of a plan count the frames of the context. A new prompt holds from the denoising steps of the
    next chunk on; its context is still written with the old one.
    """

    def __init__(
        self,
        model: CausalWan,
        prompt_embeds: Tensor,
        policy: Policy,
        schedule: Schedule,
        latent_shape: tuple[int, int, int, int],
        *,
        context_frames: int,
        first_latent: Callable[[], Tensor] | None = None,
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
            context_frames: Latent frames of the context.
            first_latent: Gives the context's first frame, `(B, 1, C, h, w)`, as soon as the video has a whole
                context beside its first chunk: the oldest of the last `1 + 4 * (context_frames - 1)` pixel
                frames, encoded as an image. None: the video's first latent frame stays.
            source: Clean latents of a video to make this one from, see `BlockSampler`.
            **options: See `SamplerOptions`.

        Raises:
            BadRequest: If the policy scores commit passes, the length is no multiple of a chunk, or the plan
                is of another model.
            ValueError: If `prompt_embeds` are not for this batch.
        """
        if policy.roles and policy.score_pass == "commit" and not options.get("plan"):
            raise BadRequest(
                f"Policy '{policy.name}' scores commit passes, and this model has none",
                "take 'dummy'",
                "policy",
            )
        needs = LoopNeeds(
            cached_frames=context_frames + options.get("chunk_frames", 3),
            kept_frames=(1, context_frames - 1),
        )
        super().__init__(model, prompt_embeds, policy, schedule, latent_shape, needs, **options)
        self.context_frames = context_frames
        self.first_latent = first_latent
        """Gives the context's first frame; see the arguments."""
        self._source = source

    @torch.inference_mode()
    def next_chunk(self, received: Received | None = None) -> Tensor:
        """Make the next chunk, `(B, chunk_frames, C, h, w)` float32, after its context."""
        if self.frames:
            self.cache.reset()
            for group in torch.split(self._context(), self.chunk_frames, dim=1):
                self.passes.commit(group, self.prompts.text, self.call(None))
        self.prompts.advance()
        score = self.heads.scorer(self.frames)
        x0 = denoise_chunk(self, self.schedule, score, self._source)
        if received is not None:
            received(x0)
        if score is not None and (plan := self.heads.plan(score, self.frames)):
            self.cache.apply(plan)
        return self._finish(x0)

    @torch.inference_mode()
    def extend(self, latents: Tensor) -> None:
        """Go on from frames that are there already; no pass is needed; see `Sampler`."""
        for x0 in self._chunks_of(latents):
            self._finish(x0)

    def _context(self) -> Tensor:
        """The frames to build the cache from, `(B, F, C, h, w)`."""
        others = min(self.context_frames, self.frames) - 1
        first, newest = self.history.first[:, :1], self.history.newest
        if self.first_latent is not None and self.frames - self.chunk_frames >= self.context_frames:
            first = self.first_latent().to(self.passes.device, torch.float32)
        return torch.cat([first, newest[:, newest.shape[1] - others :]], 1)

    def fork(self, first_latent: Callable[[], Tensor] | None = None) -> Self:
        """Make another sampler that goes on from here; see `Sampler`.

        Args:
            first_latent: The fork's own, where this sampler has one: it decodes other videos from now on.

        Raises:
            ValueError: If there is none, but this sampler has one.
        """
        if (self.first_latent is None) != (first_latent is None):
            raise ValueError("a fork needs a first_latent of its own if, and only if, this sampler has one")
        other = super().fork()
        other.first_latent = first_latent
        return other
