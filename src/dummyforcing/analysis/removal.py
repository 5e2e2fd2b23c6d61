"""What it does to take the past away from one head at a time, on the path of an undisturbed video.

Free rollouts go apart by whatever sets them apart, so their errors say little. Here a video is made as ever,
and each denoising call of a chunk is asked again, once per head: the same noisy latents, the same history,
but that one head has lost its past. The damage is the mean squared change of x0 over the variance of x0.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dummyforcing.attention.attend import attend
from dummyforcing.cache.head_group import HeadGroup
from dummyforcing.method.plan import HeadContext
from dummyforcing.method.scoring import HeadScorer
from dummyforcing.models.wan import Attention, TimeEmbedding
from dummyforcing.sampling.block import BlockSampler
from dummyforcing.sampling.schedule import renoise, x0_from_velocity


@torch.inference_mode()
def chunk_damages(
    sampler: BlockSampler,
    left: HeadContext,
    scorer: HeadScorer | None = None,
    *,
    known: Collection[int] = (),
    on_head: Callable[[float], object] = lambda share: None,
) -> Iterator[Tensor]:
    """Make the next chunk as ever, and measure what each head's removal does to each of its calls.

    Args:
        sampler: Of one video in which every head sees the same; it is past its first chunk.
        left: What a head that was removed still sees of the past.
        scorer: Is shown every call as it is, with nothing removed.
        known: Steps whose calls are not asked again: nothing is yielded for them.
        on_head: Is told after each head which share of its call's work that was.

    Yields:
        For each call the damage by each head's removal alone, `(layers, heads)` float64, on the CPU.
    """
    passes, schedule = sampler.passes, sampler.schedule
    x = x0 = sampler.draw()
    frames = torch.arange(sampler.frames, sampler.frames + x.shape[1])
    rope = passes.model.rope(frames, *x.shape[-2:])
    for step, (timestep, sigma) in enumerate(zip(schedule.timesteps, schedule.sigmas, strict=True)):
        if step:
            x = renoise(x0, sampler.draw(), sigma)
        call = _Call(sampler, step, x, passes.time([timestep], sampler.chunk_frames), sigma, rope)
        x0 = call.answer(scorer)
        if step not in known:
            yield call.damages(x0, left, on_head)
    sampler.extend(x0)


@dataclass(frozen=True)
class _Call:
    """A denoising call that can be asked again."""

    sampler: BlockSampler
    step: int
    x: Tensor
    """Noisy latents, `(1, F, C, h, w)`."""
    time: TimeEmbedding
    sigma: float
    rope: tuple[Tensor, Tensor]

    def answer(self, scorer: HeadScorer | None) -> Tensor:
        """The model's x0 with nothing removed."""
        return self._x0(0, self.sampler.passes.tokens(self.x), self._attention(scorer))

    def damages(self, x0: Tensor, left: HeadContext, on_head: Callable[[float], object]) -> Tensor:
        """What each head's removal does to that answer, see `chunk_damages`.

        The layers before a head's do not know of its removal: the pass begins at its own. And there is one
        pass at a time, over the cache of the video: no more memory is needed than to make it.
        """
        passes, past = self.sampler.passes, self.sampler.frames
        layers, heads = passes.model.config.num_layers, passes.model.config.num_heads
        hidden, unchanged = passes.tokens(self.x), self._attention(None)
        attended: list[Tensor] = []

        def with_and_without(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            groups = passes.cache.write(layer, k, v)
            without = [_shortened(group, left, past) for group in groups]
            attended[:] = attend(q, groups), attend(q, without)
            return attended[0]

        def removed(layer: int, head: int) -> Attention:
            changed = attended[0].clone()
            changed[:, :, head] = attended[1][:, :, head]
            return lambda at, q, k, v: changed if at == layer else unchanged(at, q, k, v)

        errors = []
        for layer in range(layers):
            after = self._block(layer, hidden, with_and_without)
            for head in range(heads):
                change = self._x0(layer, hidden, removed(layer, head)) - x0
                errors.append(change.double().square().mean())
                on_head((layers - layer) / (heads * layers * (layers + 1) / 2))
            hidden = after
        found = torch.stack(errors) / x0.double().var(correction=0)
        return found.view(layers, heads).cpu()  # the GPU is waited for here alone

    def _attention(self, scorer: HeadScorer | None) -> Attention:
        return self.sampler.passes.attention(self.sampler.call(self.step), scorer, True, False)

    def _block(self, layer: int, hidden: Tensor, attention: Attention) -> Tensor:
        model, text = self.sampler.passes.model, self.sampler.prompts.text[layer]
        after: Tensor = model.blocks[layer](hidden, self.time.blocks, text, self.rope, attention)
        return after

    def _x0(self, layer: int, hidden: Tensor, attention: Attention) -> Tensor:
        """The answer from what enters a layer."""
        passes = self.sampler.passes
        for number in range(layer, passes.model.config.num_layers):
            hidden = self._block(number, hidden, attention)
        return x0_from_velocity(self.x, passes.velocity(hidden, self.time), self.sigma)


def _shortened(group: HeadGroup, left: HeadContext, past: int) -> HeadGroup:
    """A group of heads that see the same, with no more of its past than `left`.

    Args:
        group: With the current frames.
        left: What stays.
        past: The first current frame.
    """
    frames = group.frames[0]
    held = sorted(frame for frame in frames if frame < past)
    recent = len(held) if left.recent is None else min(left.recent, len(held))
    stays = {*held[: left.sink], *held[len(held) - recent :]}
    slots = torch.tensor([slot for slot, frame in enumerate(frames) if frame >= past or frame in stays])
    size = group.k.shape[1] // len(frames)
    tokens = (slots[:, None] * size + torch.arange(size)).flatten().to(group.k.device)
    return replace(
        group,
        k=group.k.index_select(1, tokens),
        v=group.v.index_select(1, tokens),
        frames=tuple(tuple(row[slot] for slot in slots) for row in group.frames),
    )
