"""One rollout: a video made chunk by chunk.

    session = Session(model, prompt_embeds, parse_policy("dummy"), schedule, shape, seeds=[0])
    for latents in session: ...

The whole method is in `next_chunk`: score -> plan -> cache -> attend. When heads are scored and what follows
is in `classify.py`, what a new prompt changes in `prompts.py`. `samplers.py` has the other loops.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dummyforcing.attention.attend import attend
from dummyforcing.cache.head_group import Segment
from dummyforcing.cache.kv_cache import KVCache
from dummyforcing.errors import UserError
from dummyforcing.method.plan import Plan
from dummyforcing.method.policy import Policy
from dummyforcing.models.wan import Attention, CausalWan, TimeEmbedding, fingerprint
from dummyforcing.runtime.cuda_graphs import Engine
from dummyforcing.runtime.fused import FusedWan
from dummyforcing.runtime.streams import send
from dummyforcing.sampling.classifier import Classified, Guard, recalled_context
from dummyforcing.sampling.prompts import Prompted
from dummyforcing.sampling.schedule import (
    COMMIT_TIMESTEP,
    NoiseSource,
    Schedule,
    renoise,
    seeded_noise,
    x0_from_velocity,
)

Received = Callable[[Tensor], None]
"""`received(latents)`, of a chunk, `(B, chunk_frames, C, h, w)`."""


@dataclass(frozen=True)
class Call:
    """One pass of the network."""

    chunk: int
    """The chunk that it works on; of several, the oldest."""
    step: int | None
    """The denoising step of that chunk; None: a commit pass."""


Observer = Callable[[Call, int, Tensor, Sequence[Segment]], None]
"""`observer(call, layer, q, segments)`: sees every self-attention, after the current frames' keys and values
are in the cache; `q (B, L, H, D)` are the queries with RoPE applied."""


class Session(Prompted, Classified):
    """The state of one rollout of a batch of videos; the model holds none of it.

    This is the block loop: a chunk goes through all denoising steps, then through a commit pass that makes it
    past. For the classification of heads, first frames are the oldest visible ones, current is the chunk, and
    what lies between is the middle.
    """

    def __init__(
        self,
        model: CausalWan,
        prompt_embeds: Tensor,
        policy: Policy,
        schedule: Schedule,
        latent_shape: tuple[int, int, int, int],
        *,
        chunk_frames: int = 3,
        seeds: Sequence[int] | NoiseSource = (0,),
        plan: Plan | None = None,
        guard: Guard | None = None,
        skips: Sequence[bool] | None = None,
        first_schedule: Schedule | None = None,
        frames: int | None = None,
        reach: int | None = None,
        recache_frames: int = 0,
        global_sink: bool = True,
        source: Tensor | None = None,
        fused: FusedWan | None = None,
        backend: str | None = None,
        observer: Observer | None = None,
    ) -> None:
        """Start a rollout.

        Args:
            model: On its device, in its dtype.
            prompt_embeds: Text encoder output, zero in padded rows, `(B, text_len, text_dim)`.
            policy: How heads get their contexts.
            schedule: The denoising steps of every chunk.
            latent_shape: `(B, C, h, w)` of one latent frame of every sample.
            chunk_frames: Latent frames per chunk.
            seeds: One per sample, or a source of noise; a chunk draws its noise, then one tensor per step
                but the last.
            plan: A plan made earlier: nothing is classified then, and the cache is small from chunk 0 on.
            guard: Watches whether the plan still fits, and has the heads classified anew where it does not;
                of a batch, one sample is enough. None: they are classified once.
            skips: From `teacache.skip_table`, for the chunks of `schedule`.
            first_schedule: The steps of the first chunk that is made, none of which is left out; None: as
                of the others.
            frames: Length of the video in latent frames; None: no end.
            reach: See `KVCache`; None: keys stay at their absolute positions.
            recache_frames: After a change of the prompt, write so many of the newest frames again, as far as
                heads see them; 0: the past stays as it is.
            global_sink: Whether the first frames stay pinned then; else the first rewritten ones take over.
            source: Clean latents of a video to make this one from, `(B, F, C, h, w)`: the first step of each
                chunk gets them with noise of its own level, in place of noise alone.
            fused: The model arranged for speed; passes that it cannot do, or that somebody looks into, go
                through the model itself. None: all do.
            backend: A name of `attention.BACKENDS`; None: the fastest that is there.
            observer: Is shown every self-attention.

        Raises:
            UserError: If `frames` is no multiple of `chunk_frames`, the plan is of another model, or there is
                nothing to guard.
            ValueError: If `prompt_embeds` are not for this batch, or `skips` has the wrong length.
        """
        if frames is not None and frames % chunk_frames:
            raise UserError(f"{frames} latent frames cannot be made in chunks of {chunk_frames}.")
        batch, _, self.height, self.width = latent_shape
        self.model, self.latent_shape = model, latent_shape
        self._fingerprint = fingerprint(model)
        self._start_plan(policy, plan, guard)
        self.schedule, self.first_schedule = schedule, first_schedule
        self.chunk_frames, self.total_frames = chunk_frames, frames
        self.frames = 0
        """Finished latent frames."""
        self._recache_frames, self._global_sink = recache_frames, global_sink
        self._source, self._backend, self._observer = source, backend, observer
        self._noise = seeds if callable(seeds) else seeded_noise(seeds)
        weight = model.patch_embedding.weight
        self._dtype, self._device = weight.dtype, weight.device
        patch_h, patch_w = model.config.patch_size[1:]
        self.cache = KVCache(
            self.plans,
            head_dim=model.config.head_dim,
            tokens_per_frame=(self.height // patch_h) * (self.width // patch_w),
            chunk_frames=self._most_current,
            reach=reach,
            dtype=fused.attention_dtype if fused else self._dtype,
            device=self._device,
            frames=self._most_cached,
        )
        self._engine = Engine(fused, self.cache, backend) if fused else None
        self._origin = 0  # the position of the cache's frame 0
        self._place = (-1, 0)  # the frames that `_angles` are of
        self._beginning = self._tail = torch.empty(batch, 0, *latent_shape[1:], device=self._device)
        self._prompts: list[Tensor] = []
        self._use_prompt(prompt_embeds)
        # All frames of a chunk have the same timestep, and so have all chunks: one embedding per step serves.
        timesteps = {*schedule.timesteps, *(first_schedule or schedule).timesteps, COMMIT_TIMESTEP}
        with torch.inference_mode():
            self._times = {t: model.embed_time(torch.tensor([[t]], device=self._device)) for t in timesteps}
        self._skips = self._every_call(skips or ())
        self._residual: Tensor | None = None
        self._is_first = True

    @property
    def plan(self) -> Plan:
        """What the heads of the first sample see at present."""
        return self.plans[0]

    def __iter__(self) -> Iterator[Tensor]:
        """Make chunks until the video has its length."""
        while self.total_frames is None or self.frames < self.total_frames:
            yield self.next_chunk()

    @torch.inference_mode()
    def next_chunk(self, received: Received | None = None) -> Tensor:
        """Make the next chunk.

        Args:
            received: Is given the latents before the device is asked for anything else, such as the commit
                pass, so that decoding need not wait for it.

        Returns:
            Its latents, `(B, chunk_frames, C, h, w)` float32.
        """
        self._advance_prompt()
        self._recall()
        self._scorer = self._new_scorer()
        x0 = self._generate()
        if received is not None:
            received(x0)
        self._commit(x0)
        self._apply_scores()
        return self._finish(x0)

    @torch.inference_mode()
    def extend(self, latents: Tensor) -> None:
        """Go on from frames that are there already, such as an image or a clip; they count as finished.

        Args:
            latents: Clean latents, `(B, F, C, h, w)`; whole chunks.

        Raises:
            UserError: If they are no whole chunks.
        """
        for x0 in self._chunks_of(latents):
            self._advance_prompt()
            self._commit(x0)
            self._finish(x0)

    @property
    def _steps(self) -> Schedule:
        """The denoising steps of the chunk that is being made."""
        return self.first_schedule if self._is_first and self.first_schedule else self.schedule

    def _generate(self) -> Tensor:
        """Denoise fresh noise in all steps, to the latents of one chunk."""
        x = self._draw()
        if self._source is not None:
            latents = self._source[:, self.frames : self.frames + self.chunk_frames].to(self._device)
            x = renoise(latents, x, self._steps.sigmas[0])
        x0 = self._denoise(x, 0)
        for step, sigma in enumerate(self._steps.sigmas[1:], start=1):
            x0 = self._denoise(renoise(x0, self._draw(), sigma), step)
        self._is_first = False
        return x0

    def _denoise(self, x: Tensor, step: int) -> Tensor:
        """Estimate the clean latents in one denoising step, `(B, F, C, h, w)` float32, as `x`."""
        return x0_from_velocity(x, self._velocity(x, step), self._steps.sigmas[step])

    def _velocity(self, x: Tensor, step: int) -> Tensor:
        """What the network predicts in a denoising step, or what TeaCache puts in its place."""
        time = self._times[self._steps.timesteps[step]]
        tokens = self.model.patchify(x.to(self._dtype))
        skip = not (self._is_first and self.first_schedule) and self._skips[step]
        if skip and self._residual is not None:
            hidden = tokens + self._residual
        else:
            hidden = self._transform(tokens, time, step)
            self._residual = hidden - tokens if any(self._skips) else None
        return self.model.unpatchify(hidden, time, self.height, self.width)

    def _commit(self, x0: Tensor) -> None:
        """Write clean latents' keys and values into the cache: these frames are past from now on."""
        time, frames = self._times[COMMIT_TIMESTEP], x0.shape[1]
        tokens = self.model.patchify(x0.to(self._dtype))
        self._transform(tokens, time, None, kv_only=True)
        self.cache.commit(frames)

    def _transform(
        self, tokens: Tensor, time: TimeEmbedding, step: int | None, kv_only: bool = False
    ) -> Tensor:
        """Run all blocks over the current frames: fused, if nobody looks at the attention of this pass."""
        rope = self._rope(tokens.shape[1] // self.cache.tokens_per_frame)
        if self._engine and self._scorer_of(step) is None and self._observer is None:
            pinned = self._keeps_pinned(step)
            hidden = self._engine.run(tokens, time, self._text, rope, pinned, kv_only)
            if hidden is not None:
                return hidden
        return self.model.transform(tokens, time, self._text, rope, self._attention(step, kv_only), kv_only)

    def _attention(self, step: int | None, kv_only: bool = False) -> Attention:
        """Self-attention of the current frames through the cache, in a denoising step or a commit pass."""
        call = Call(self.frames // self.chunk_frames, step)
        last = self.model.config.num_layers - 1
        scorer, pinned = self._scorer_of(step), self._keeps_pinned(step)

        def attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            segments = self.cache[layer].write(k, v, pinned)
            if scorer is not None:
                scorer.observe(layer, q, segments)
            if self._observer is not None:
                self._observer(call, layer, q, segments)
            if kv_only and layer == last:
                return q  # nobody reads what the last block of a commit pass attends to
            return attend(q, segments, self._backend)

        return attention

    def _finish(self, x0: Tensor) -> Tensor:
        """Count finished frames, and remember as many as are needed later."""
        self.frames += x0.shape[1]
        self._remember_beginning(x0)
        if self._remembered:
            self._tail = torch.cat([self._tail, x0], 1)[:, -self._remembered :]
        return x0

    def _chunks_of(self, latents: Tensor) -> Sequence[Tensor]:
        if not latents.shape[1] or latents.shape[1] % self.chunk_frames:
            raise UserError(
                f"A video that is made in chunks of {self.chunk_frames} latent frames cannot go on from "
                f"{latents.shape[1]}; take a multiple of {self.chunk_frames}."
            )
        return torch.split(latents.to(self._device, torch.float32), self.chunk_frames, dim=1)

    def _rope(self, frames: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the current frames; computed once for all passes at the same place."""
        place = (self._origin + self.cache.frames, frames)
        if self._place != place:
            self._place = place
            self._angles = self.model.rope(self._positions(frames), self.height, self.width)
        return self._angles

    def _positions(self, frames: int) -> Tensor:
        """Where the next `frames` frames stand in time."""
        start = self._origin + self.cache.frames
        return torch.arange(start, start + frames, device=self._device)

    def _draw(self) -> Tensor:
        batch, *size = self.latent_shape
        return send(self._noise((batch, self.chunk_frames, *size)).float(), self._device)

    def _keeps_pinned(self, step: int | None) -> bool:
        """Whether pinned frames stay visible beyond the reach in a pass."""
        return True

    @property
    def _most_current(self) -> int:
        """The most frames that are current at a time."""
        return self.chunk_frames

    @property
    def _most_cached(self) -> int | None:
        """How long the whole past gets, which is kept to the end or until there is a plan; None: no bound."""
        return self.total_frames if self._classify_at is None else (self._classify_at + 1) * self.chunk_frames

    @property
    def _remembered(self) -> int:
        """How many of the newest frames' latents are needed later."""
        recalled = recalled_context(self.policy, self.chunk_frames).recent if self.guard else None
        return max(self._recache_frames, recalled or 0)
