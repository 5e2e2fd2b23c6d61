"""One rollout: a video made chunk by chunk.

    session = Session(model, model.embed_text(prompt), parse_policy("dummy"), schedule, shape, seeds=[0])
    for latents in session: ...

The whole method is in `next_chunk`: score -> plan -> cache -> attend.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dummyforcing.attention import attend
from dummyforcing.cache import KVCache
from dummyforcing.errors import UserError
from dummyforcing.heads import HeadScorer, Policy, make_plan, row_sampler
from dummyforcing.model import Attention, CausalWan, TextKV, fingerprint
from dummyforcing.plan import Plan
from dummyforcing.sampling import (
    COMMIT_TIMESTEP,
    NoiseSource,
    Schedule,
    renoise,
    seeded_noise,
    x0_from_velocity,
)


class Session:
    """The state of one rollout of a batch of videos; the model holds none of it."""

    def __init__(
        self,
        model: CausalWan,
        text: TextKV,
        policy: Policy,
        schedule: Schedule,
        latent_shape: tuple[int, int, int, int],
        *,
        chunk_frames: int = 3,
        seeds: Sequence[int] | NoiseSource = (0,),
        plan: Plan | None = None,
        skips: Sequence[bool] | None = None,
        frames: int | None = None,
        backend: str = "sdpa",
    ) -> None:
        """Start a rollout.

        Args:
            model: On its device, in its dtype.
            text: From `model.embed_text`, for the whole batch.
            policy: How heads get their contexts.
            schedule: The denoising steps of every chunk.
            latent_shape: `(B, C, h, w)` of one latent frame of every sample.
            chunk_frames: Latent frames per chunk.
            seeds: One per sample, or a source of noise; a chunk draws its noise, then one tensor per step
                but the last.
            plan: A plan made earlier: nothing is classified then, and the cache is small from chunk 0 on.
            skips: From `teacache.skip_table`.
            frames: Length of the video in latent frames; None: no end.
            backend: A name of `attention.BACKENDS`.

        Raises:
            UserError: If `frames` is no multiple of `chunk_frames`, or the plan is of another model.
            ValueError: If `text` is not for this batch, or `skips` has the wrong length.
        """
        if frames is not None and frames % chunk_frames:
            raise UserError(f"{frames} latent frames cannot be made in chunks of {chunk_frames}.")
        batch, _, self.height, self.width = latent_shape
        if len(text[0][0]) != batch:
            raise ValueError(f"text for {len(text[0][0])} samples, latents for {batch}")
        layers, heads = model.config.num_layers, model.config.num_heads
        self._fingerprint = fingerprint(model)
        if plan is None:
            self.plans = [Plan.uniform(layers, heads, policy.initial, policy.name)] * batch
        else:
            plan.require(layers, heads, self._fingerprint)
            self.plans = [plan] * batch
        self._classify_at = None if plan or not policy.roles else policy.classify_at_chunk
        # The whole past is kept to the end, or until the plan shrinks the cache.
        kept = frames if self._classify_at is None else (self._classify_at + 1) * chunk_frames

        self.model, self.policy, self.schedule = model, policy, schedule
        self.latent_shape, self.chunk_frames, self.total_frames = latent_shape, chunk_frames, frames
        self._text, self._backend = text, backend
        self._noise = seeds if callable(seeds) else seeded_noise(seeds)
        weight = model.patch_embedding.weight
        self._dtype, self._device = weight.dtype, weight.device
        patch_h, patch_w = model.config.patch_size[1:]
        self.cache = KVCache(
            self.plans,
            head_dim=model.config.head_dim,
            tokens_per_frame=(self.height // patch_h) * (self.width // patch_w),
            chunk_frames=chunk_frames,
            dtype=self._dtype,
            device=self._device,
            frames=kept,
        )
        # All frames of a chunk have the same timestep, and so have all chunks: one embedding per step serves.
        with torch.inference_mode():
            calls = torch.tensor([*schedule.timesteps, COMMIT_TIMESTEP], device=self._device)
            self._times = [model.embed_time(timestep.reshape(1, 1)) for timestep in calls]
        self._skips = tuple(skips or [False] * len(calls))
        if len(self._skips) != len(calls):
            raise ValueError(f"skips must cover {len(calls)} calls: the denoising steps and the commit pass")
        self._residual: Tensor | None = None

    @property
    def frames(self) -> int:
        """Finished latent frames."""
        return self.cache.frames

    @property
    def plan(self) -> Plan:
        """What the heads of the first sample see at present."""
        return self.plans[0]

    def __iter__(self) -> Iterator[Tensor]:
        """Make chunks until the video has its length."""
        while self.total_frames is None or self.frames < self.total_frames:
            yield self.next_chunk()

    @torch.inference_mode()
    def next_chunk(self) -> Tensor:
        """Make the next chunk.

        Returns:
            Its latents, `(B, chunk_frames, C, h, w)` float32.
        """
        chunk = self.frames // self.chunk_frames
        scorer = self._new_scorer() if chunk == self._classify_at else None
        scored = self.policy.score_pass
        numbers = torch.arange(self.frames, self.frames + self.chunk_frames)
        self._rope = self.model.rope(numbers, self.height, self.width)

        x0 = self._denoise(self._draw(), 0, scorer if scored == "denoise" else None)
        for step, sigma in enumerate(self.schedule.sigmas[1:], start=1):
            x = renoise(x0, self._draw(), sigma)
            x0 = self._denoise(x, step, scorer if scored == "denoise" else None)
        self._commit(x0, scorer if scored == "commit" else None)

        if scorer is not None:
            self.plans = [make_plan(self.policy, s, chunk, self._fingerprint) for s in scorer.scores()]
            self.cache.apply(self.plans)
        return x0

    def _denoise(self, x: Tensor, step: int, scorer: HeadScorer | None) -> Tensor:
        """Estimate the clean latents in one denoising step, `(B, F, C, h, w)` float32, as `x`."""
        return x0_from_velocity(x, self._velocity(x, step, scorer), self.schedule.sigmas[step])

    def _velocity(self, x: Tensor, step: int, scorer: HeadScorer | None) -> Tensor:
        """What the network predicts in a denoising step, or what TeaCache puts in its place."""
        time = self._times[step]
        tokens = self.model.patchify(x.to(self._dtype))
        if self._skips[step] and self._residual is not None:
            hidden = tokens + self._residual
        else:
            attention = self._attention(scorer)
            hidden = self.model.transform(tokens, time, self._text, self._rope, attention)
            self._residual = hidden - tokens if any(self._skips) else None
        return self.model.unpatchify(hidden, time, self.height, self.width)

    def _commit(self, x0: Tensor, scorer: HeadScorer | None) -> None:
        """Write a finished chunk's clean keys and values into the cache: it is past from now on."""
        tokens = self.model.patchify(x0.to(self._dtype))
        attention = self._attention(scorer, commit=True)
        self.model.transform(tokens, self._times[-1], self._text, self._rope, attention, kv_only=True)
        self.cache.commit()

    def _attention(self, scorer: HeadScorer | None, commit: bool = False) -> Attention:
        """Self-attention of the current chunk through the cache."""
        last = self.model.config.num_layers - 1

        def attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            segments = self.cache[layer].write(k, v)
            if scorer is not None:
                scorer.observe(layer, q, segments)
            if commit and layer == last:
                return q  # nobody reads what the last block of a commit pass attends to
            return attend(q, segments, self._backend)

        return attention

    def _new_scorer(self) -> HeadScorer:
        config, policy = self.model.config, self.policy
        rows = row_sampler(policy)
        return HeadScorer(
            self.latent_shape[0],
            config.num_layers,
            config.num_heads,
            policy.first_frames,
            rows,
            policy.last_frames,
        )

    def _draw(self) -> Tensor:
        batch, *size = self.latent_shape
        return self._noise((batch, self.chunk_frames, *size)).to(self._device, torch.float32)
