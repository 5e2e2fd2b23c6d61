"""The student's own videos as training data: each chunk is made as it will be, and corrected as it is made.

As in Self-Forcing, chunks are denoised in the student's few steps with a KV cache of what it made before, and
the gradient of a chunk goes through one of its steps. No critic judges it: the world is rendered, what
follows from the first chunks is known exactly, and is the target. So a student learns to mend what it drifts
by, at any place of a video of up to 30 s, and to remember what left the picture: half of the videos are of
objects that go away, under prompts that need not name them, and come back.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dummyforcing.evaluation.world.scene import COLORS, FLOORS, SHAPES
from dummyforcing.models.wan import Attention, CausalWan
from research.detectors.recall import AFTER, RecallStory, make_recall_story
from research.training.data import tell_many
from research.training.networks import predict
from research.training.run import CHUNK, TOKENS, Run, autocast
from research.training.vae import Encoder
from research.world.world import pick

LENGTHS = (10, 20, 40)
"""Chunks of a video: 7, 15 and 30 s."""
GIVEN = 2
"""Chunks that are given at least, so that all that follows is determined."""
OWN = 6
"""Chunks that are the student's own: further on, an angle that is off by a little makes the mean of all
angles the best answer, and a spinning star learns to be a disc."""


class GrowingCache:
    """Keys and values of all chunks so far, for every layer, and the attention over them."""

    def __init__(
        self, model: CausalWan, batch: int, chunks: int, device: torch.device, frame_tokens: int = TOKENS
    ) -> None:
        config = model.config
        shape = (batch, config.num_heads, chunks * CHUNK * frame_tokens, config.head_dim)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.k, self.v = (
            [torch.empty(shape, device=device, dtype=dtype) for _ in range(config.num_layers)] for _ in "kv"
        )
        self.length = 0

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of the chunk in the making, which is not kept."""
        past_k, past_v = (t[layer][:, :, : self.length] for t in (self.k, self.v))
        q, k, v = (t.transpose(1, 2).to(past_k.dtype) for t in (q, k, v))
        both_k, both_v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
        return F.scaled_dot_product_attention(q, both_k, both_v).transpose(1, 2)

    def keep(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The same in a commit pass: the chunk's keys and values stay."""
        end = self.length + k.shape[1]
        for kept, new in ((self.k[layer], k), (self.v[layer], v)):
            kept[:, :, self.length : end] = new.transpose(1, 2)
        q = q.transpose(1, 2).to(self.k[layer].dtype)
        return F.scaled_dot_product_attention(
            q, self.k[layer][:, :, :end], self.v[layer][:, :, :end]
        ).transpose(1, 2)


class OnPolicy:
    """Videos in the making, one batch after the other; every call makes and corrects a chunk."""

    def __init__(self, run: Run, encoder: Encoder, model: CausalWan, sigmas: Sequence[float]) -> None:
        self.run, self.encoder, self.sigmas = run, encoder, sigmas
        # Not compiled: its attention grows from chunk to chunk. The parameters are the student's own.
        self.model = CausalWan(model.config).to(run.device)
        for module, own in zip(model.modules(), self.model.modules(), strict=True):
            own._parameters.update(module._parameters)
        self.rng = run.rng("on-policy")
        # All processes wait for each other after every chunk, so they go back equally far.
        self.places = np.random.default_rng(run.data)
        self.batch = run.share(48)
        self.videos = self._videos()
        self.current = self._roll()

    def next_loss(self) -> Tensor:
        """Make the next chunk; how far one step of it is from what really follows."""
        try:
            return next(self.current)
        except StopIteration:
            self.current = self._roll()
            return next(self.current)

    def _videos(self) -> "itertools.cycle[tuple[Tensor, Tensor, list[Tensor]]]":
        """Latents, prompt embeddings, and for each chunk which prompt it has, `(B,)`."""
        lengths = LENGTHS if not self.run.small else (4, 5)
        batches = []
        for number in range(12 if not self.run.small else 3):
            chunks = lengths[number % len(lengths)]
            if number % 2 or self.run.small:
                batches.append(self._recall(max(chunks, 18) if not self.run.small else 12))
                continue
            batches.append(self._usual(number, chunks))
        self.run.log(f"{len(batches)} batches of {self.batch} videos to follow")
        return itertools.cycle(batches)

    def _usual(self, number: int, chunks: int) -> tuple[Tensor, Tensor, list[Tensor]]:
        """A batch of the usual world."""
        told = tell_many((*self.run.seed("own"), number), self.batch)
        latents = torch.cat(
            [
                self.encoder.encode([one.scene for one in told[i : i + 4]], chunks * CHUNK)
                for i in range(0, self.batch, 4)
            ]
        )
        text = self.encoder.reader.embed([one.scene.prompt for one in told])
        return latents, text[None], [torch.zeros(self.batch, dtype=torch.long)] * chunks

    def _recall(self, chunks: int) -> tuple[Tensor, Tensor, list[Tensor]]:
        """A batch of objects that leave and come back at the end."""
        kinds = list(itertools.product(COLORS, SHAPES))
        stories: list[RecallStory] = []
        for _ in range(self.batch):
            returns, enters = chunks - AFTER, self.rng.random() < 0.5
            leaves = int(self.rng.integers(4, max(5, returns - 5)))
            floor = pick(tuple(FLOORS), self.rng) if self.rng.random() < 0.4 else None
            stories.append(make_recall_story(pick(kinds, self.rng), self.rng, leaves, returns, enters, floor))
        latents = torch.cat(
            [
                self.encoder.encode([story.scene for story in stories[i : i + 4]], chunks * CHUNK)
                for i in range(0, self.batch, 4)
            ]
        )
        prompts = [[prompt for _, prompt in story.prompts] for story in stories]
        text = torch.stack([self.encoder.reader.embed(list(of)) for of in zip(*prompts, strict=True)])
        begins = torch.tensor([[chunk for chunk, _ in story.prompts] for story in stories])
        phases = [(begins <= chunk).sum(1) - 1 for chunk in range(chunks)]
        return latents, text, phases

    def _roll(self) -> Iterator[Tensor]:
        """The losses of a batch of videos, chunk by chunk."""
        latents, texts, phases = next(self.videos)
        device, batch = self.run.device, len(latents)
        chunks = latents.shape[1] // CHUNK
        cache = GrowingCache(self.model, batch, chunks, device)
        rows = torch.arange(batch)
        latest = max(GIVEN, chunks - OWN)
        begin = latest if len(texts) > 1 else int(self.places.integers(GIVEN, latest + 1))
        for chunk in range(min(begin + OWN, chunks)):
            truth = latents[:, CHUNK * chunk : CHUNK * (chunk + 1)].float()
            text = texts[phases[chunk], rows].float()
            frames = tuple(range(CHUNK * chunk, CHUNK * (chunk + 1)))
            made = truth
            if chunk >= begin:
                states, made = self._denoise(truth, text, frames, cache)
                level = int(self.rng.integers(len(self.sigmas)))
                sigma = self.sigmas[level]
                out = self._velocity(states[level], sigma, text, frames, cache.attend)
                yield (states[level] - sigma * out - truth).square().mean()
            with torch.no_grad():
                self._velocity(made, 0.0, text, frames, cache.keep)
            cache.length += CHUNK * TOKENS

    @torch.no_grad()
    def _denoise(
        self, like: Tensor, text: Tensor, frames: tuple[int, ...], cache: GrowingCache
    ) -> tuple[list[Tensor], Tensor]:
        """The noisy chunk before each step, and the finished one."""
        x, states = torch.randn_like(like), []
        made = x
        for sigma, later in itertools.zip_longest(self.sigmas, self.sigmas[1:]):
            states.append(x)
            made = x - sigma * self._velocity(x, sigma, text, frames, cache.attend)
            if later is not None:
                x = (1 - later) * made + later * torch.randn_like(made)
        return states, made

    def _velocity(
        self, x: Tensor, sigma: float, text: Tensor, frames: tuple[int, ...], attention: Attention
    ) -> Tensor:
        timesteps = torch.full((1, 1), 1000 * sigma, device=x.device)
        with autocast(self.run):
            return predict(self.model, x, timesteps, text, frames, attention)
