"""Key frames: which are chosen, and that heads see them, against lists and masks."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dummyforcing.cache.key_frames import FrameLooks, with_key
from dummyforcing.errors import BadRequest
from dummyforcing.kernels.rope import apply_rope
from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.method.policy import parse_policy
from dummyforcing.sampling.block import BlockSampler
from tests.cache.test_kv_cache import Both, make_cache
from tests.oracles import (
    SCHEDULE,
    SHAPE,
    CheckedCache,
    KeepEverything,
    random_plan,
    small_model,
    small_prompt,
    watched,
)

CONTEXTS = [
    HeadContext(1, 4, 2),
    HeadContext(1, 6),
    HeadContext(0, 1, 1),
    HeadContext(2, 3, 4),
    HeadContext(0, 5),
    HeadContext(1, 0, 1),
]


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 12), most=st.integers(1, 4), pinned=st.integers(0, 2))
def test_of_the_closest_pair_the_newer_goes(seed, count, most, pinned):
    looks = torch.randn(pinned + count, 3, generator=torch.Generator().manual_seed(seed))
    keys: tuple[int, ...] = ()
    for frame in range(pinned, pinned + count):
        before, keys = keys, with_key(keys, frame, most, range(pinned), looks.__getitem__)
        assert len(keys) == min(most, len(before) + 1)
        if len(before) < most:
            assert keys == (*before, frame)
            continue
        pairs = itertools.combinations([*range(pinned), *sorted(before), frame], 2)
        _, gone = min(((looks[a] - looks[b]).norm().item(), b) for a, b in pairs if b >= pinned)
        assert set(keys) == {*before, frame} - {gone}
        moved = [(old, new) for old, new in zip(before, keys, strict=True) if old != new]
        assert moved == ([] if gone == frame else [(gone, frame)])  # nobody else changes the slot


def test_an_object_that_was_there_long_ago_is_kept():
    """An empty scene for ever but for two frames, one in the other shape of the other: both stay."""
    looks = torch.zeros(60, 8) + 0.01 * torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    looks[7, :3] += 1
    looks[8, 4:] += 1
    keys: tuple[int, ...] = ()
    for frame in range(1, 60):
        keys = with_key(keys, frame, 3, range(1), looks.__getitem__)
    assert {7, 8} <= set(keys)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 3),
    heads=st.integers(1, 5),
    chunk=st.integers(1, 4),
    tokens=st.integers(1, 2),
)
def test_heads_see_them(seed, batch, heads, chunk, tokens):
    plans = [random_plan(2, heads, seed + i, CONTEXTS) for i in range(batch)]
    both = Both(plans, tokens, chunk, has_keys=True)
    for _ in range(9):
        both.make(chunk)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    chunk=st.integers(1, 3),
    steps=st.lists(
        st.sampled_from(["chunk", "chunk", "short", "again", "reset", "apply", "copy", "file"]), max_size=16
    ),
    window=st.integers(1, 4),
)
def test_in_any_order_of_steps(seed, chunk, steps, window):
    """Chunks, rewritten frames, fresh starts, other plans, copies and saved states."""
    both = Both([random_plan(2, 4, seed + i, CONTEXTS) for i in range(2)], 2, chunk, has_keys=True)
    for number, step in enumerate(["chunk", *steps, "chunk", "chunk"]):
        if step == "reset":
            both.reset()
        elif step == "apply":
            without_first = [HeadContext(0, 3, 2), HeadContext(0, 4)]
            both.apply([random_plan(2, 4, seed + number + i, without_first) for i in range(2)])
        elif step == "copy":
            both.cache = both.cache.copy()
        elif step == "file":
            state, both.cache = (
                both.cache.state(),
                make_cache([Plan.uniform(2, 4, HeadContext(0, 1))] * 2, 2, chunk, has_keys=True),
            )
            both.cache.load_state(state)
        elif step == "again":
            both.write_again(min(window * chunk, both.cache.frames))
        else:
            both.make(1 if step == "short" else chunk)


def test_a_dense_past_gives_key_frames():
    """A plan with key frames chooses them from all that heads saw before."""
    both = Both([Plan.uniform(1, 3, HeadContext(0, None))], has_keys=True)
    for _ in range(5):
        both.run(3)
        both.commit(3)
    both.apply([Plan.uniform(1, 3, HeadContext(1, 4, 3))])
    (slots,) = set(both.cache.layers[0].rows[0])
    assert len(slots.keys) == 3
    for _ in range(4):
        both.run(3)
        both.commit(3)


def test_memory_is_constant_and_in_its_place():
    both = Both([Plan.uniform(1, 3, HeadContext(1, 4, 3))], has_keys=True)
    sizes = set()
    for _ in range(30):
        both.cache.write(0, *torch.zeros(2, 1, 3, 3, 8))
        group = both.cache.layers[0].groups[0]
        sizes.add((both.cache.nbytes, group.k.data_ptr(), both.cache.layout))
        assert group.is_plain
        both.cache.commit(3, torch.randn(1, 3, 2, 1, 1))
        assert both.cache._looks is not None
        assert len(both.cache._looks.state()) <= 1 + 4 + 3
    assert len(sizes) == 1


def test_a_video_is_dense_attention_with_a_mask():
    """The whole rollout, one plan for each sample of a batch; a fork goes on alike."""
    model = small_model()
    sampler = BlockSampler(
        model, small_prompt(model, 2), parse_policy("keyframes:1,2,2"), SCHEDULE, (2, *SHAPE), seeds=[0, 1]
    )
    cache = sampler.cache
    cache.__class__ = CheckedCache
    assert isinstance(cache, CheckedCache)
    cache.oracle = KeepEverything(sampler.plans, 6, 3, grid=(2, 3))
    compared = 0

    def watch(seen):
        nonlocal compared
        q, k = (unturned(x, seen) for x in (seen.q, seen.k))
        expected = cache.oracle.attend(seen.layer, q, k, seen.v)
        torch.testing.assert_close(seen.out, expected, atol=2e-5, rtol=0)
        compared += 1

    watched(sampler, watch)
    for _ in range(6):
        sampler.next_chunk()
    assert compared == 6 * 5 * 2
    chosen = {slots.keys for row in sampler.cache.layers[0].rows for slots in row}
    assert len(chosen) == 2  # each sample has its own


def unturned(x, seen):
    """`x` before RoPE."""
    cos, sin = seen.angles
    return apply_rope(x, cos, -sin)


def test_what_cannot_be():
    with pytest.raises(BadRequest, match="no 2 key frames"):
        HeadContext(0, None, 2)
    with pytest.raises(BadRequest, match="-1 key"):
        HeadContext(0, 1, -1)
    with pytest.raises(BadRequest, match="cannot keep key frames"):
        make_cache([Plan.uniform(1, 2, HeadContext(1, 3, 2))], local_attention_size=12, has_keys=True)


def test_a_plan_file_has_them(tmp_path):
    plan = Plan.uniform(2, 3, HeadContext(1, 4, 3))
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert '"keys": 3' in (tmp_path / "plan.json").read_text()
    Plan.uniform(2, 3, HeadContext(1, 4)).save(tmp_path / "plain.json")
    assert "keys" not in (tmp_path / "plain.json").read_text()


def test_looks_are_kept_on_the_host():
    looks = FrameLooks()
    latents = torch.randn(2, 3, 2, 2, 2)
    looks.add(4, latents)
    assert torch.equal(looks.of(1)(5), latents[1, 1].flatten())
    looks.keep({5})
    ((frame, there),) = FrameLooks.from_state(looks.state()).state()
    assert frame == 5
    assert torch.equal(there, latents[:, 1].flatten(1))


def test_large_frames_are_compared_by_areas():
    looks = FrameLooks()
    latents = torch.randn(2, 3, 4, 68, 120)
    looks.add(0, latents)
    found = looks.of(1)(2).view(4, 32, 32)
    rows, columns = (
        [slice(i * size // 32, -(-(i + 1) * size // 32)) for i in range(32)] for size in latents.shape[-2:]
    )
    expected = [[latents[1, 2, :, row, column].mean((1, 2)) for column in columns] for row in rows]
    torch.testing.assert_close(found, torch.stack([torch.stack(row, 1) for row in expected], 1))
