"""A dense rollout whose denoising calls can be asked again, with less of the past for some heads.

path = open_path(pipeline, "a red ball bounces", seed=0)
for call in path.calls(chunks=7):
    path.again(call, seen)  # the same latents, the same history, but only what `seen` allows
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dummyforcing.cache.head_group import HeadGroup
from dummyforcing.method.scoring import HeadScorer
from dummyforcing.models.wan import CausalWan, TextKV
from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from dummyforcing.sampling.noise import seeded_noise
from dummyforcing.sampling.schedule import COMMIT_TIMESTEP, Schedule, make_schedule, renoise, x0_from_velocity

SCORED_CHUNK = 1

KV = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class DenseCall:
    """One denoising call of a dense rollout: its input, its history and its answer."""

    chunk: int
    step: int
    x: Tensor
    """Noisy latents, `(1, F, C, h, w)`."""
    x0: Tensor
    """What the dense model answers, likewise."""
    past: tuple[KV, ...]
    """Keys and values of the finished frames, per layer, each `(1, S, H, D)`."""


class DensePath:
    """A dense rollout whose calls can be asked again.

    The past is kept as plain tensors, oldest frame first: nothing of the cache's cleverness is needed here.
    """

    def __init__(
        self,
        model: CausalWan,
        text: TextKV,
        schedule: Schedule,
        latent_shape: tuple[int, int, int],
        *,
        chunk_frames: int = 3,
        seed: int = 0,
    ) -> None:
        """Begin a video.

        Args:
            model: On its device.
            text: From `model.embed_text`, of one prompt.
            schedule: The denoising steps of every chunk.
            latent_shape: `(C, h, w)`.
            chunk_frames: Latent frames per chunk.
            seed: Of the noise: the same as in a rollout.
        """
        self.model, self.text, self.schedule = model, text, schedule
        self.latent_shape, self.chunk_frames = latent_shape, chunk_frames
        self.device = model.patch_embedding.weight.device
        self._noise = seeded_noise([seed])
        self._times = [
            model.embed_time(torch.tensor([[t]], device=self.device))
            for t in (*schedule.timesteps, COMMIT_TIMESTEP)
        ]
        config, steps = model.config, range(len(schedule.sigmas))
        size = (1, config.num_layers, config.num_heads, 1, lambda layer, length: torch.arange(length))
        everything = frozenset[int | None](steps)
        self._scorers: dict[str, tuple[frozenset[int | None], HeadScorer]] = {
            "denoise": (everything, HeadScorer(*size)),
            **{f"step {step}": (frozenset({step}), HeadScorer(*size)) for step in steps},
            "commit": (frozenset({None}), HeadScorer(*size)),
            "denoise, last frame as current": (everything, HeadScorer(*size, last_frames=1)),
        }

    def scores(self) -> dict[str, Tensor]:
        """Where heads looked in chunk 1, by the passes that count, each `(layers, heads, 3)`."""
        return {name: scorer.scores()[0] for name, (_, scorer) in self._scorers.items()}

    def calls(self, chunks: int) -> Iterator[DenseCall]:
        """Make so many chunks; yields every denoising call."""
        past: tuple[KV, ...] = ()
        for chunk in range(chunks):
            x = x0 = self._draw()
            for step, sigma in enumerate(self.schedule.sigmas):
                if step:
                    x = renoise(x0, self._draw(), sigma)
                x0, _ = self._answer(x, chunk, step, past)
                yield DenseCall(chunk, step, x, x0, past)
            _, past = self._answer(x0, chunk, None, past)

    @torch.inference_mode()
    def again(self, call: DenseCall, seen: Tensor) -> Tensor:
        """Ask a call again, once for each of A ways to see less.

        Args:
            call: One of this path.
            seen: Whether a head sees a past frame, `(A, layers, heads, past frames)` bool.

        Returns:
            The answers for x0, `(A, F, C, h, w)`.
        """
        ways, tokens = len(seen), self._tokens_per_frame

        def attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = (
                torch.cat([old.expand(ways, -1, -1, -1), new], 1)
                for old, new in zip(call.past[layer], (k, v), strict=True)
            )
            mask = F.pad(seen[:, layer].repeat_interleave(tokens, -1), (0, k.shape[1]), value=True)
            q, keys, values = (t.transpose(1, 2) for t in (q, keys, values))
            out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask[:, :, None])
            return out.transpose(1, 2)

        text = [(k.expand(ways, -1, -1, -1), v.expand(ways, -1, -1, -1)) for k, v in self.text]
        x = call.x.expand(ways, -1, -1, -1, -1)
        velocity = self.model(x, self._times[call.step], text, self._frames(call.chunk), attention)
        return x0_from_velocity(x, velocity, self.schedule.sigmas[call.step])

    @torch.inference_mode()
    def _answer(
        self, x: Tensor, chunk: int, step: int | None, past: tuple[KV, ...]
    ) -> tuple[Tensor, tuple[KV, ...]]:
        """The dense x0 of a call (meaningless for a commit pass), and its keys and values with the past."""
        time = self._times[-1 if step is None else step]
        held: list[KV] = []
        frames = tuple(range((chunk + 1) * self.chunk_frames))

        def attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if past:
                k, v = (torch.cat(pair, 1) for pair in zip(past[layer], (k, v), strict=True))
            held.append((k, v))
            if chunk == SCORED_CHUNK:
                group = HeadGroup(None, None, k, v, (frames,) * q.shape[2])
                for steps, scorer in self._scorers.values():
                    if step in steps:
                        scorer.observe(layer, q, [group])
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

        velocity = self.model(x, time, self.text, self._frames(chunk), attention)
        sigma = self.schedule.sigmas[step or 0]
        return x0_from_velocity(x, velocity, sigma), tuple(held)

    @property
    def _tokens_per_frame(self) -> int:
        _, height, width = self.latent_shape
        _, patch_h, patch_w = self.model.config.patch_size
        return (height // patch_h) * (width // patch_w)

    def _frames(self, chunk: int) -> Tensor:
        return torch.arange(chunk * self.chunk_frames, (chunk + 1) * self.chunk_frames)

    def _draw(self) -> Tensor:
        return self._noise((1, self.chunk_frames, *self.latent_shape)).to(self.device)


def open_path(pipeline: DummyForcingPipeline, prompt: str, seed: int) -> DensePath:
    """The dense path of the video that `pipeline.generate(prompt, seed=seed, policy="dense")` makes."""
    preset, config = pipeline.files.preset, pipeline.model.config
    height, width = (side // pipeline.vae.stride for side in preset.size)
    with torch.inference_mode():
        text = pipeline.model.embed_text(pipeline.text.encode([prompt]))
    shape = (config.in_dim, height, width)
    schedule = make_schedule(preset.schedule.steps, preset.schedule.shift, preset.schedule.warp)
    return DensePath(pipeline.model, text, schedule, shape, chunk_frames=preset.chunk_frames, seed=seed)
