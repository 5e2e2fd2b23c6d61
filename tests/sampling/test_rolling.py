"""The rolling loop's own rules."""

import pytest
import torch
from torch import Tensor

from dummyforcing.method.policy import dense
from dummyforcing.sampling.noise import seeded_noise
from dummyforcing.sampling.schedule import renoise, x0_from_velocity
from tests.oracles import SHAPE, checked, small_model, small_prompt, softmax_attention
from tests.sampling.loops import THREE, start


@pytest.mark.parametrize("chunks", [1, 2, 3, 5])
def test_rolling_equals_whole_passes_without_a_cache(chunks):
    """Chunk c is at step t - c in pass t; every pass over all clean frames and the window, with a mask.

    Also for fewer chunks than steps, where the window shrinks before it is full.
    """
    model, batch = small_model(), 2
    prompt = small_prompt(model, batch)
    text = model.embed_text(prompt)
    draw = seeded_noise([4, 5])
    noisy: dict[int, Tensor] = {}
    clean: dict[int, Tensor] = {}
    for t in range(chunks + 2):
        members = [c for c in range(chunks) if 0 <= t - c <= 2]
        if t < chunks:
            noisy[t] = draw((batch, 3, *SHAPE))
        latents = torch.cat([*clean.values(), *(noisy[c] for c in members)], 1)
        levels = [0.0] * len(clean) + [THREE.timesteps[t - c] for c in members]
        group = torch.tensor([*range(len(clean)), *[len(clean)] * len(members)]).repeat_interleave(18)
        mask = group[:, None] >= group[None]
        velocity = model(
            latents,
            model.embed_time(torch.tensor(levels).repeat_interleave(3)[None]),
            text,
            torch.arange(latents.shape[1]),
            lambda layer, q, k, v, mask=mask: softmax_attention(q, k, v, mask),
        )
        for place, c in enumerate(members, start=len(clean)):
            part = slice(3 * place, 3 * place + 3)
            x0 = x0_from_velocity(latents[:, part], velocity[:, part], THREE.sigmas[t - c])
            noisy[c] = x0
        for c in members:
            if t - c < 2:
                noisy[c] = renoise(noisy[c], draw((batch, 3, *SHAPE)), THREE.sigmas[t - c + 1])
            else:
                clean[c] = noisy[c]
    sampler = start("rolling", model, dense(), [4, 5], prompt, frames=3 * chunks, local_attention_size=None)
    torch.testing.assert_close(
        torch.cat(list(sampler), 1), torch.cat([*clean.values()], 1), atol=2e-5, rtol=0
    )
    with pytest.raises(ValueError, match="complete"):
        sampler.next_chunk()


def test_rolling_classifies_when_there_is_a_middle():
    """First is the anchor, middle the work frames, current the whole window."""
    model = small_model(heads=4)
    scores, frames = torch.zeros(2, 4, 3), set()

    def look(call, layer, q, groups):
        if call.chunk == 2 and call.step is not None:
            (group,) = groups
            frames.add(group.frames[0])
            weights = torch.einsum("blhd,bshd->hls", q, group.k).div(8**0.5).softmax(-1).mean(1)
            for slot, frame in enumerate(group.frames[0]):
                region = 0 if frame < 3 else 1 if frame < 6 else 2
                scores[layer, :, region] += weights[:, 6 * slot : 6 * slot + 6].sum(1)

    sampler = start("rolling", model, "dummy", observer=look)
    for _ in range(2):
        sampler.next_chunk()
        assert sampler.plan.scores is None
    sampler.next_chunk()
    assert [sorted(f) for f in frames] == [list(range(15))]
    assert sampler.plan.chunk == 2
    torch.testing.assert_close(torch.tensor(sampler.plan.scores), scores, atol=1e-5, rtol=0)


def test_rolling_runs_as_many_windows_as_needed():
    calls = []
    sampler = start(
        "rolling",
        small_model(),
        frames=12,
        observer=lambda call, layer, q, _: calls.append((call, q.shape[1] // 6)),
    )
    seen = []
    for _ in sampler:
        seen.append([(c.chunk, c.step, frames) for c, frames in calls[::2]])
        calls.clear()
    assert seen == [
        [(0, 0, 3), (0, 1, 6), (0, 2, 9), (0, None, 3)],
        [(1, 2, 9), (1, None, 3)],
        [(2, 2, 6), (2, None, 3)],
        [(3, 2, 3), (3, None, 3)],
    ]


def test_a_new_prompt_holds_for_all_chunks_of_the_window():
    """The past stays as it is: no pass is made for it, and the commit pass after it hears the new prompt."""
    model = small_model(layers=1)
    old, new = (model.embed_text(small_prompt(model, seed=seed))[0][0] for seed in (1, 9))
    heard: list[tuple[int, int | None, int, list[bool]]] = []

    def listen(call, layer, q, groups):
        text = sampler.prompts.text[0][0]
        heard.append((call.chunk, call.step, q.shape[1] // 6, [torch.equal(text, t) for t in (old, new)]))

    sampler = start("rolling", model, observer=listen)
    checked(sampler)
    for chunk in range(6):
        if chunk == 4:
            sampler.set_prompt(small_prompt(model, seed=9))
        heard.clear()
        sampler.next_chunk()
        if chunk > 0:
            is_new = [chunk < 4, chunk >= 4]
            assert heard == [(chunk, 2, 9, is_new), (chunk, None, 3, is_new)]
