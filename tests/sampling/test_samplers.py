"""The loops over chunks: what holds for all, each one's own rules, prompts that change, given frames."""

import dataclasses

import pytest
import torch

from dummyforcing.errors import UserError
from dummyforcing.method.plan import HeadContext
from dummyforcing.method.policy import dense, dummy, official, window
from dummyforcing.sampling import schedule as sampling
from dummyforcing.sampling.recompute import RecomputeSampler
from dummyforcing.sampling.samplers import SAMPLERS
from dummyforcing.sampling.schedule import make_schedule
from oracles import SHAPE, checked, random_plan, small_model, small_prompt, softmax_attention

TWO, THREE = (make_schedule(steps, shift=5.0) for steps in ([1000, 500], [1000, 600, 300]))
NATIVE = {
    "block": (window(3, 3), {"local_attention_size": 9}),
    "rolling": (window(3, 12), {"local_attention_size": 15}),
    "recompute": (dense(), {"context_frames": 6}),
}


def start(sampler, model, policy="native", seeds=(0,), prompt=None, schedule=THREE, **options):
    native, rules = NATIVE[sampler]
    if policy == "native":
        policy = native
    elif policy == "dummy":
        policy = dataclasses.replace(dummy(), initial=native.initial, rows=None)
    batch = 1 if callable(seeds) else len(seeds)
    prompt = small_prompt(model, batch) if prompt is None else prompt
    shape = (batch, *SHAPE)
    return SAMPLERS[sampler](model, prompt, policy, schedule, shape, seeds=seeds, **rules | options)


def video(*args, frames=24, **options):
    return torch.cat(list(start(*args, frames=frames, **options)), 1)


@pytest.mark.parametrize("policy", ["native", "dummy"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_same_seed_same_video_and_sessions_do_not_meet(sampler, policy):
    model = small_model(heads=4)
    prompts = small_prompt(model, seed=1), small_prompt(model, seed=2)
    expected = [video(sampler, model, policy, [i], prompt) for i, prompt in enumerate(prompts)]
    sessions = [start(sampler, model, policy, [i], prompt, frames=24) for i, prompt in enumerate(prompts)]
    for chunks in zip(*sessions, strict=True):
        for whole, chunk, session in zip(expected, chunks, sessions, strict=True):
            assert torch.equal(whole[:, session.frames - 3 : session.frames], chunk)
    assert (expected[0] - expected[1]).abs().max() > 0.1


@pytest.mark.parametrize("policy", ["native", "dummy"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_batch_equals_its_samples(sampler, policy):
    model = small_model(layers=3, heads=4)
    prompt = small_prompt(model, 3)
    batched = start(sampler, model, policy, [1, 2, 3], prompt, frames=18)
    together = torch.cat(list(batched), 1)
    for i, seed in enumerate((1, 2, 3)):
        single = start(sampler, model, policy, [seed], prompt[i : i + 1], frames=18)
        alone = torch.cat(list(single), 1)
        assert batched.plans[i].roles == single.plan.roles
        torch.testing.assert_close(together[i : i + 1], alone, atol=2e-5, rtol=0)
    assert len({plan.roles for plan in batched.plans}) == (1 if policy == "native" else 3)


@pytest.mark.parametrize("policy", ["native", "dummy", "plan"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_attention_is_dense_attention_with_a_mask(sampler, policy):
    model = small_model(heads=4)
    options = {"frames": 30}
    if policy == "plan":
        contexts = [HeadContext(0, 1), HeadContext(1, 0), HeadContext(0, 4), HeadContext(2, 2)]
        policy, options["plan"] = "native", random_plan(2, 4, 0, contexts)
    session = checked(start(sampler, model, policy, [0, 1], small_prompt(model, 2), **options))
    list(session)
    assert session.frames == 30
    if policy == "dummy":
        assert session.plan.counts["dummy"] == 4


@pytest.mark.parametrize("policy", ["native", "dummy"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_end_and_constant_memory(sampler, policy):
    """Past frame 1024, where tables of positions would end."""
    session = start(sampler, small_model(layers=1, heads=2), policy, schedule=make_schedule([1000], 5.0))
    sizes = set()
    for chunk in range(400):
        latents = session.next_chunk()
        if chunk > 5:
            sizes.add(session.cache.nbytes)
    assert session.frames == 1200
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


def test_a_reach_is_positions_relative_to_the_window():
    """400 frames against a list of raw keys at positions 0 to 11, call by call."""
    model = small_model(layers=1)
    session = start("block", model, window(3, 6), schedule=TWO, local_attention_size=12, frames=402)
    oracle, inner = RelativeWindow(model, 3, 6), session._attention

    def make(step, kv_only=False):
        fast = inner(step)

        def attention(layer, q, k, v):
            cos, sin = model.rope(session._positions(3), *SHAPE[1:])
            plain_q, plain_k = (rotate(x, (cos, -sin)) for x in (q, k))
            out = fast(layer, q, k, v)
            torch.testing.assert_close(out, oracle.attend(layer, plain_q, plain_k, v), atol=2e-5, rtol=0)
            if step is None:
                oracle.commit(plain_k, v)
            return out

        return attention

    session._attention = make
    assert sum(chunk.shape[1] for chunk in session) == 402


# ---- rolling


@pytest.mark.parametrize("chunks", [1, 2, 3, 5])
def test_rolling_equals_whole_passes_without_a_cache(chunks):
    """Chunk c is at step t - c in pass t; every pass over all clean frames and the window, with a mask.

    Also for fewer chunks than steps, where the window shrinks before it is full.
    """
    model, batch = small_model(), 2
    prompt = small_prompt(model, batch)
    text = model.embed_text(prompt)
    draw = sampling.seeded_noise([4, 5])
    noisy, clean = {}, {}
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
            x0 = sampling.x0_from_velocity(latents[:, part], velocity[:, part], THREE.sigmas[t - c])
            noisy[c] = x0
        for c in members:
            if t - c < 2:
                noisy[c] = sampling.renoise(noisy[c], draw((batch, 3, *SHAPE)), THREE.sigmas[t - c + 1])
            else:
                clean[c] = noisy[c]
    session = start("rolling", model, dense(), [4, 5], prompt, frames=3 * chunks, local_attention_size=None)
    torch.testing.assert_close(
        torch.cat(list(session), 1), torch.cat([*clean.values()], 1), atol=2e-5, rtol=0
    )
    with pytest.raises(ValueError, match="complete"):
        session.next_chunk()


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

    session = start("rolling", model, "dummy", observer=look)
    for _ in range(2):
        session.next_chunk()
        assert session.plan.scores is None
    session.next_chunk()
    assert [sorted(f) for f in frames] == [list(range(15))]
    assert session.plan.chunk == 2
    torch.testing.assert_close(torch.tensor(session.plan.scores), scores, atol=1e-5, rtol=0)


def test_rolling_runs_as_many_windows_as_needed():
    calls = []
    session = start(
        "rolling",
        small_model(),
        frames=12,
        observer=lambda call, layer, q, _: calls.append((call, q.shape[1] // 6)),
    )
    seen = []
    for _ in session:
        seen.append([(c.chunk, c.step, frames) for c, frames in calls[::2]])
        calls.clear()
    assert seen == [
        [(0, 0, 3), (0, 1, 6), (0, 2, 9), (0, None, 3)],
        [(1, 2, 9), (1, None, 3)],
        [(2, 2, 6), (2, None, 3)],
        [(3, 2, 3), (3, None, 3)],
    ]


# ---- recompute


def test_recompute_takes_its_context_from_the_frames_it_should():
    model = small_model()
    contexts, asked = [], []

    class Recorder(RecomputeSampler):
        def _context(self):
            contexts.append(super()._context())
            return contexts[-1]

    def first_latent():
        asked.append(session.frames)
        return torch.full((1, 1, *SHAPE), float(session.frames))

    session = Recorder(
        model, small_prompt(model), dense(), TWO, (1, *SHAPE), context_frames=5, first_latent=first_latent
    )
    made = torch.cat([session.next_chunk() for _ in range(5)], 1)
    assert asked == [9, 12], "from the first time that a whole context lies behind the first chunk"
    first = made[:, :1], made[:, :1], torch.full((1, 1, *SHAPE), 9.0), torch.full((1, 1, *SHAPE), 12.0)
    newest = made[:, 1:3], made[:, 2:6], made[:, 5:9], made[:, 8:12]
    for context, start_, rest in zip(contexts, first, newest, strict=True):
        assert torch.equal(context, torch.cat([start_, rest], 1))


def test_recompute_goes_on_from_given_frames_without_a_pass():
    model = small_model()
    calls = []
    session = start("recompute", model, observer=lambda call, *_: calls.append(call))
    given = torch.randn(1, 3, *SHAPE)
    session.extend(given)
    assert calls == []
    assert session.frames == 3
    session.next_chunk()
    assert [call.step for call in calls[::2]] == [None, 0, 1, 2]
    assert {call.chunk for call in calls} == {1}
    assert torch.equal(session._context()[:, :3], given)


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_contexts_that_are_no_whole_chunks(frames):
    session = start("recompute", small_model(), context_frames=frames)
    size = session.cache.nbytes
    checked(session)
    for _ in range(4):
        session.next_chunk()
    assert session.cache.nbytes == size, "room for a context and a chunk from the start"
    assert session.cache.frames == frames


def test_recompute_refuses_to_score_commit_passes():
    with pytest.raises(UserError, match="take 'dummy'"):
        start("recompute", small_model(), official())
    start("recompute", small_model(), official(), plan=random_plan(2, 3, 0))


# ---- prompts


def prompts_heard(sampler, chunks):
    """The prompt of every pass, as `(chunk, step or None, share of the new prompt)`."""
    model = small_model(layers=1)
    old, new = small_prompt(model), small_prompt(model, seed=9)
    heard = []

    def listen(call, layer, q, groups):
        text = session._text[0][0]
        shares = [torch.lerp(old, new, share) for share in (0.0, 0.5, 1.0)]
        heard.append((call.chunk, call.step, [torch.equal(text, model.embed_text(t)[0][0]) for t in shares]))

    session = start(sampler, model, prompt=old, schedule=TWO, observer=listen)
    session.next_chunk()
    session.set_prompt(new, chunks=chunks)
    for _ in range(3):
        session.next_chunk()
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
    fading = [share for chunk, step, share in prompts_heard("block", 3) if step == 0]
    assert fading == [0, 0, 0.5, 1]


def test_the_recomputed_context_hears_a_new_prompt_one_chunk_late():
    heard = prompts_heard("recompute", 1)
    assert [share for chunk, step, share in heard if step == 0] == [0, 1, 1, 1]
    assert [(chunk, share) for chunk, step, share in heard if step is None][:2] == [(1, 0), (2, 1)]


@pytest.mark.parametrize("global_sink", [True, False])
@pytest.mark.parametrize("sampler", ["block", "rolling"])
@pytest.mark.parametrize("policy", ["native", "dummy", "plan"])
def test_rewritten_frames_are_those_that_heads_see(sampler, policy, global_sink):
    model = small_model(heads=4)
    calls, rewritten = [], []
    options = {"plan": random_plan(2, 4, 0, [HeadContext(0, 4), HeadContext(1, 0), HeadContext(2, 1)])}
    session = start(
        sampler, model, "dummy" if policy == "dummy" else "native",
        recache_frames=30, global_sink=global_sink,
        observer=lambda call, layer, q, _: calls.append((call, q.shape[1] // 6)),
        **options if policy == "plan" else {},
    )  # fmt: skip
    checked(session)
    for chunk in range(8):
        if chunk in (1, 5, 6):
            session.set_prompt(small_prompt(model, seed=chunk))
        calls.clear()
        session.next_chunk()
        if chunk in (1, 5, 6):
            call, frames = calls[0]
            assert call.step is None
            assert frames == min(3 * chunk, session.cache.slots)
            rewritten.append(frames)
    if (sampler, policy) == ("block", "plan"):
        assert rewritten == [3, 7, 7], "four past frames and three current ones"
    assert session.frames == 24
    assert session._positions(1).item() == 24


def test_a_new_prompt_needs_no_past():
    model = small_model()
    new = small_prompt(model, seed=9)
    session = start("block", model, recache_frames=9)
    session.set_prompt(new)
    assert torch.equal(session.next_chunk(), video("block", model, prompt=new, frames=3))
    with pytest.raises(ValueError, match="text for 2 samples"):
        session.set_prompt(small_prompt(model, 2))


# ---- given frames, first steps


@pytest.mark.parametrize("sampler", ["block", "rolling"])
def test_given_frames_are_past_like_made_ones(sampler):
    """What a session made, given to another one, is followed by the same frames."""
    model = small_model()
    options = {"schedule": make_schedule([1000], 5.0), "local_attention_size": None, "frames": 6}
    chunks = list(start(sampler, model, dense(), **options))
    draws = sampling.seeded_noise([0])
    draws((1, 3, *SHAPE))  # was the first chunk's
    session = start(sampler, model, dense(), draws, **options)
    session.extend(chunks[0])
    (second,) = session
    torch.testing.assert_close(second, chunks[1], atol=2e-5, rtol=0)
    with pytest.raises(UserError, match="take a multiple of 3"):
        session.extend(chunks[0][:, :1])


def test_rolling_takes_given_frames_only_at_the_start():
    session = start("rolling", small_model())
    session.next_chunk()
    with pytest.raises(ValueError, match="in progress"):
        session.extend(torch.zeros(1, 3, *SHAPE))


@pytest.mark.parametrize("given", [0, 2])
def test_the_first_made_chunk_can_have_other_steps(given):
    calls = []
    session = start(
        "block", small_model(layers=1), dense(), schedule=TWO, first_schedule=THREE, chunk_frames=1,
        observer=lambda call, *_: calls.append((call.chunk, call.step)),
    )  # fmt: skip
    if given:
        session.extend(torch.randn(1, given, *SHAPE))
    first, second = session.next_chunk(), session.next_chunk()
    passes = [(chunk, None) for chunk in range(given)]
    passes += [(given, step) for step in (0, 1, 2, None)] + [(given + 1, step) for step in (0, 1, None)]
    assert calls == passes
    assert not torch.equal(first, second)


def test_other_first_steps_are_all_run():
    calls = []
    session = start(
        "block", small_model(layers=1), schedule=TWO, first_schedule=THREE, skips=[False, True, False],
        observer=lambda call, *_: calls.append((call.chunk, call.step)),
    )  # fmt: skip
    session.next_chunk()
    session.next_chunk()
    assert calls == [(0, 0), (0, 1), (0, 2), (0, None), (1, 0), (1, None)]


def test_given_frames_hear_a_prompt_that_was_set_before_them():
    model, given = small_model(), torch.randn(1, 6, *SHAPE)
    new = small_prompt(model, seed=9)
    changed, plain = start("block", model), start("block", model, prompt=new)
    changed.set_prompt(new)
    for session in (changed, plain):
        session.extend(given)
    assert torch.equal(changed.next_chunk(), plain.next_chunk())


def test_given_frames_do_not_put_off_the_classification():
    session = start("block", small_model(heads=4), "dummy")
    session.extend(torch.randn(1, 9, *SHAPE))
    session.next_chunk()
    assert session.plan.chunk == 3


@pytest.mark.parametrize("option", ["skips", "first_schedule", "recache_frames"])
def test_options_of_other_loops_are_refused(option):
    value = {"skips": [False] * 4, "first_schedule": TWO, "recache_frames": 3}[option]
    if option != "recache_frames":
        with pytest.raises(ValueError, match="window"):
            start("rolling", small_model(), **{option: value})
    if option != "first_schedule":
        with pytest.raises(ValueError, match="anew"):
            start("recompute", small_model(), **{option: value})


@pytest.mark.parametrize("sampler", ["rolling", "recompute"])
def test_forks_of_other_loops_leave_nothing_out(sampler):
    session = start(sampler, small_model())
    with pytest.raises(ValueError, match="no calls to skip"):
        session.fork([False, True, False, False, False])
