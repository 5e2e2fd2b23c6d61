"""The loops over chunks: what holds for all, prompts that change, given frames."""

from typing import Any

import pytest
import torch

from dummyforcing.errors import UserError
from dummyforcing.method.plan import HeadContext
from dummyforcing.method.policy import dense, window
from dummyforcing.sampling.guard import Guard
from dummyforcing.sampling.noise import seeded_noise
from dummyforcing.sampling.samplers import SAMPLERS
from dummyforcing.sampling.schedule import make_schedule
from tests.oracles import SHAPE, checked, random_plan, small_model, small_prompt, softmax_attention, watched
from tests.sampling.loops import THREE, TWO, start, video


@pytest.mark.parametrize("policy", ["native", "dummy"])
@pytest.mark.parametrize("loop", SAMPLERS)
def test_same_seed_same_video_and_rollouts_do_not_meet(loop, policy):
    model = small_model(heads=4)
    prompts = small_prompt(model, seed=1), small_prompt(model, seed=2)
    expected = [video(loop, model, policy, [i], prompt) for i, prompt in enumerate(prompts)]
    samplers = [start(loop, model, policy, [i], prompt, frames=24) for i, prompt in enumerate(prompts)]
    for chunks in zip(*samplers, strict=True):
        for whole, chunk, sampler in zip(expected, chunks, samplers, strict=True):
            assert torch.equal(whole[:, sampler.frames - 3 : sampler.frames], chunk)
    assert (expected[0] - expected[1]).abs().max() > 0.1


@pytest.mark.parametrize("policy", ["native", "dummy"])
@pytest.mark.parametrize("loop", SAMPLERS)
def test_a_batch_equals_its_samples(loop, policy):
    model = small_model(layers=3, heads=4)
    prompt = small_prompt(model, 3)
    batched = start(loop, model, policy, [1, 2, 3], prompt, frames=18)
    together = torch.cat(list(batched), 1)
    for i, seed in enumerate((1, 2, 3)):
        single = start(loop, model, policy, [seed], prompt[i : i + 1], frames=18)
        alone = torch.cat(list(single), 1)
        assert batched.plans[i].roles == single.plan.roles
        torch.testing.assert_close(together[i : i + 1], alone, atol=2e-5, rtol=0)
    assert len({plan.roles for plan in batched.plans}) == (1 if policy == "native" else 3)


@pytest.mark.parametrize("policy", ["native", "dummy", "plan"])
@pytest.mark.parametrize("loop", SAMPLERS)
def test_every_attention_is_dense_attention_with_a_mask(loop, policy):
    model = small_model(heads=4)
    options: dict[str, Any] = {"frames": 30}
    if policy == "plan":
        contexts = [HeadContext(0, 1), HeadContext(1, 0), HeadContext(0, 4), HeadContext(2, 2)]
        policy, options["plan"] = "native", random_plan(2, 4, 0, contexts)
    sampler = checked(start(loop, model, policy, [0, 1], small_prompt(model, 2), **options))
    list(sampler)
    assert sampler.frames == 30
    if policy == "dummy":
        assert sampler.plan.counts["dummy"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["native", "dummy"])
@pytest.mark.parametrize("loop", SAMPLERS)
def test_no_end_and_constant_memory(loop, policy):
    """Past frame 1024, where tables of positions would end."""
    sampler = start(loop, small_model(layers=1, heads=2), policy, schedule=make_schedule([1000], 5.0))
    sizes = set()
    for chunk in range(400):
        latents = sampler.next_chunk()
        if chunk > 5:
            sizes.add(sampler.cache.nbytes)
    assert sampler.frames == 1200
    assert len(sizes) == 1
    assert latents.isfinite().all()
    assert 0.1 < latents.std() < 10


class RelativeWindow:
    """LongLive's infinite variant as it is described: un-rotated keys in a list, at positions 0, 1, ..."""

    def __init__(self, model, sink, recent):
        self.model, self.sink, self.recent, self.past = model, sink, recent, []

    def attend(self, layer, q, k, v):
        frames = q.shape[1] // 6
        keys = torch.cat([*(k for k, _ in self.past), k], 1)
        values = torch.cat([*(v for _, v in self.past), v], 1)
        positions = torch.arange(keys.shape[1] // 6)
        turned_q = rotate(q, self.model.rope(positions[-frames:], *SHAPE[1:]))
        return softmax_attention(turned_q, rotate(keys, self.model.rope(positions, *SHAPE[1:])), values)

    def commit(self, k, v):
        self.past += zip(k.split(6, 1), v.split(6, 1), strict=True)
        if len(self.past) > self.sink + self.recent:
            self.past = self.past[: self.sink] + self.past[-self.recent :]


def rotate(x, angles):
    """RoPE as complex numbers in float64."""
    cos, sin = (part.double()[:, None] for part in angles)
    turned = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous()) * torch.complex(cos, sin)
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


def test_a_local_attention_size_is_positions_relative_to_the_window():
    """400 frames against a list of raw keys at positions 0 to 11, call by call."""
    model = small_model(layers=1)
    sampler = start("block", model, window(3, 6), schedule=TWO, local_attention_size=12, frames=402)
    oracle, compared = RelativeWindow(model, 3, 6), []

    def compare(seen):
        cos, sin = seen.angles
        plain_q, plain_k = (rotate(x, (cos, -sin)) for x in (seen.q, seen.k))
        expected = oracle.attend(seen.layer, plain_q, plain_k, seen.v)
        torch.testing.assert_close(seen.out, expected, atol=2e-5, rtol=0)
        compared.append(seen.call)
        if seen.call.step is None:
            oracle.commit(plain_k, seen.v)

    watched(sampler, compare)
    assert sum(chunk.shape[1] for chunk in sampler) == 402
    assert len(compared) == 134 * 3


# ---- prompts


def prompts_heard(loop, chunks):
    """The prompt of every pass, as `(chunk, step or None, share of the new prompt)`."""
    model = small_model(layers=1)
    old, new = small_prompt(model), small_prompt(model, seed=9)
    heard: list[tuple[int, int | None, list[bool]]] = []

    def listen(call, layer, q, groups):
        text = sampler.prompts.text[0][0]
        shares = [torch.lerp(old, new, share) for share in (0.0, 0.5, 1.0)]
        heard.append((call.chunk, call.step, [torch.equal(text, model.embed_text(t)[0][0]) for t in shares]))

    sampler = start(loop, model, prompt=old, schedule=TWO, observer=listen)
    sampler.next_chunk()
    sampler.set_prompt(new, chunks=chunks)
    for _ in range(3):
        sampler.next_chunk()
    return [(chunk, step, match.index(True) / 2) for chunk, step, match in heard if step != 1]


def test_a_prompt_holds_from_the_next_chunk_on():
    at_once = [
        (0, 0, 0),
        (0, None, 0),
        (1, 0, 1),
        (1, None, 1),
        (2, 0, 1),
        (2, None, 1),
        (3, 0, 1),
        (3, None, 1),
    ]
    assert prompts_heard("block", 1) == at_once
    fading = [share for chunk, step, share in prompts_heard("block", 2) if step == 0]
    assert fading == [0, 0.5, 1, 1]


def test_the_recomputed_context_hears_a_new_prompt_one_chunk_late():
    heard = prompts_heard("recompute", 1)
    assert [share for chunk, step, share in heard if step == 0] == [0, 1, 1, 1]
    assert [(chunk, share) for chunk, step, share in heard if step is None][:2] == [(1, 0), (2, 1)]


@pytest.mark.parametrize("global_sink", [True, False])
@pytest.mark.parametrize("policy", ["native", "dummy", "plan"])
@pytest.mark.parametrize("most", [12, 30])
def test_rewritten_frames_are_those_that_heads_see(most, policy, global_sink):
    """All of a video that is no longer than they are, so that its first frames hear the prompt, too."""
    model = small_model(heads=4)
    calls, rewritten = [], []
    options = {"plan": random_plan(2, 4, 0, [HeadContext(0, 4), HeadContext(1, 0), HeadContext(2, 1)])}
    sampler = start(
        "block", model, "dummy" if policy == "dummy" else "native",
        recache_frames=most, global_sink=global_sink,
        observer=lambda call, layer, q, _: calls.append((call, q.shape[1] // 6)),
        **options if policy == "plan" else {},
    )  # fmt: skip
    checked(sampler)
    for chunk in range(8):
        if chunk in (1, 5, 6):
            sampler.set_prompt(small_prompt(model, seed=chunk))
        calls.clear()
        sampler.next_chunk()
        if chunk in (1, 5, 6):
            call, frames = calls[0]
            assert call.step is None
            unseen = global_sink and most < 3 * chunk
            assert frames == min(3 * chunk, most, sampler.cache.room(99) if unseen else 99)
            rewritten.append(frames)
    if policy == "plan" and global_sink and most == 12:
        assert rewritten == [3, 7, 7], "four past frames and three current ones"
    assert sampler.frames == 24
    assert sampler.passes.origin + sampler.cache.frames == 24


def test_a_new_prompt_needs_no_past():
    model = small_model()
    new = small_prompt(model, seed=9)
    sampler = start("block", model, recache_frames=9)
    sampler.set_prompt(new)
    assert torch.equal(sampler.next_chunk(), video("block", model, prompt=new, frames=3))
    with pytest.raises(ValueError, match="text for 2 samples"):
        sampler.set_prompt(small_prompt(model, 2))


# ---- given frames, first steps


@pytest.mark.parametrize("loop", ["block", "rolling"])
def test_given_frames_are_past_like_made_ones(loop):
    """What a sampler made, given to another one, is followed by the same frames."""
    model = small_model()
    options = {"schedule": make_schedule([1000], 5.0), "local_attention_size": None, "frames": 6}
    chunks = list(start(loop, model, dense(), **options))
    draws = seeded_noise([0])
    draws((1, 3, *SHAPE))  # was the first chunk's
    sampler = start(loop, model, dense(), draws, **options)
    sampler.extend(chunks[0])
    (second,) = sampler
    torch.testing.assert_close(second, chunks[1], atol=2e-5, rtol=0)
    with pytest.raises(UserError, match="take a multiple of 3"):
        sampler.extend(chunks[0][:, :1])


def test_rolling_takes_given_frames_only_at_the_start():
    sampler = start("rolling", small_model())
    sampler.next_chunk()
    with pytest.raises(ValueError, match="in progress"):
        sampler.extend(torch.zeros(1, 3, *SHAPE))


@pytest.mark.parametrize("given", [0, 2])
def test_the_first_made_chunk_can_have_other_steps(given):
    calls = []
    sampler = start(
        "block", small_model(layers=1), dense(), schedule=TWO, first_schedule=THREE, chunk_frames=1,
        observer=lambda call, *_: calls.append((call.chunk, call.step)),
    )  # fmt: skip
    if given:
        sampler.extend(torch.randn(1, given, *SHAPE))
    first, second = sampler.next_chunk(), sampler.next_chunk()
    passes: list[tuple[int, int | None]] = [(chunk, None) for chunk in range(given)]
    passes += [(given, step) for step in (0, 1, 2, None)] + [(given + 1, step) for step in (0, 1, None)]
    assert calls == passes
    assert not torch.equal(first, second)


def test_other_first_steps_are_all_run():
    calls = []
    sampler = start(
        "block", small_model(layers=1), schedule=TWO, first_schedule=THREE, skips=[False, True, False],
        observer=lambda call, *_: calls.append((call.chunk, call.step)),
    )  # fmt: skip
    sampler.next_chunk()
    sampler.next_chunk()
    assert calls == [(0, 0), (0, 1), (0, 2), (0, None), (1, 0), (1, None)]


def test_given_frames_hear_a_prompt_that_was_set_before_them():
    model, given = small_model(), torch.randn(1, 6, *SHAPE)
    new = small_prompt(model, seed=9)
    changed, plain = start("block", model), start("block", model, prompt=new)
    changed.set_prompt(new)
    for sampler in (changed, plain):
        sampler.extend(given)
    assert torch.equal(changed.next_chunk(), plain.next_chunk())


def test_given_frames_do_not_put_off_the_classification():
    sampler = start("block", small_model(heads=4), "dummy")
    sampler.extend(torch.randn(1, 9, *SHAPE))
    sampler.next_chunk()
    assert sampler.plan.chunk == 3


@pytest.mark.parametrize("loop", ["rolling", "recompute"])
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("skips", [False] * 4),
        ("first_schedule", TWO),
        ("recache_frames", 3),
        ("global_sink", False),
        ("guard", Guard()),
    ],
)
def test_options_of_the_block_loop_are_refused_by_others(loop, option, value):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{option}'"):
        start(loop, small_model(), "dummy", **{option: value})


@pytest.mark.parametrize(
    ("loop", "option", "value"),
    [
        ("block", "context_frames", 3),
        ("block", "first_latent", None),
        ("rolling", "context_frames", 3),
        ("rolling", "first_latent", None),
        ("rolling", "source", torch.zeros(1, 3, *SHAPE)),
    ],
)
def test_other_options_of_other_loops_are_refused(loop, option, value):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{option}'"):
        start(loop, small_model(), **{option: value})


@pytest.mark.parametrize("loop", ["rolling", "recompute"])
def test_forks_of_other_loops_leave_nothing_out(loop):
    sampler = start(loop, small_model())
    with pytest.raises(TypeError, match="unexpected keyword argument 'skips'"):
        sampler.fork(skips=[False, True, False, False, False])
