"""The cache against keeping every key for ever and masking."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dummyforcing.attention.attend import attend
from dummyforcing.cache.kv_cache import KVCache
from dummyforcing.errors import UserError
from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.method.policy import official
from tests.oracles import KeepEverything, random_plan

HEAD_DIM = 8


def make_cache(plans, tokens=1, chunk=3, frames=None, local_attention_size=None, has_keys=False):
    return KVCache(
        plans,
        head_dim=HEAD_DIM,
        tokens_per_frame=tokens,
        chunk_frames=chunk,
        frames=frames,
        local_attention_size=local_attention_size,
        has_keys=has_keys,
    )


class Both:
    """The cache and the oracle, driven alike."""

    def __init__(self, plans, tokens=1, chunk=3, local_attention_size=None, frames=None, has_keys=False):
        torch.manual_seed(0)
        self.cache = make_cache(plans, tokens, chunk, frames, local_attention_size, has_keys)
        self.oracle = KeepEverything(plans, tokens, chunk, local_attention_size)
        self.layers, self.heads = len(plans[0].contexts), len(plans[0].contexts[0])

    def run(self, frames, pinned=True):
        """One pass; all that the cache hands out is compared."""
        assert self.cache.frames == self.oracle.past
        new = torch.arange(self.oracle.past, self.oracle.past + frames)
        for layer in range(self.layers):
            shape = (self.cache.sizes.batch, frames * self.oracle.tokens, self.heads, HEAD_DIM)
            q, k, v = torch.randn(3, *shape)
            q_turned, k_turned = (self.oracle.rotated(x, new) for x in (q, k))
            groups = self.cache.write(layer, k_turned, v, pinned)
            expected = self.oracle.attend(layer, q, k, v, pinned)
            torch.testing.assert_close(attend(q_turned, groups), expected, atol=2e-5, rtol=0)

    def commit(self, frames):
        latents = torch.randn(self.cache.sizes.batch, frames, 2, 1, 2)  # nobody's are as far apart as others'
        self.cache.commit(frames, latents)
        self.oracle.commit(frames, latents)

    def apply(self, plans):
        self.cache.apply(plans)
        self.oracle.apply(plans)

    def rewind(self, frames):
        self.cache.rewind(frames)
        self.oracle.rewind(frames)

    def jump(self, frame):
        self.cache.jump(frame)
        self.oracle.jump(frame)

    def reset(self):
        self.cache.reset()
        self.oracle.reset()

    def make(self, frames):
        """Two passes over new frames, which are past then."""
        self.run(frames)
        self.run(frames)
        self.commit(frames)

    def write_again(self, frames):
        """Rewrite the newest frames in one pass."""
        self.rewind(frames)
        if frames:
            self.run(frames)
            self.commit(frames)


def run_both(plans, applied, at, chunks, tokens, chunk, frames=None, local_attention_size=None):
    """Compare cache and oracle over `chunks` chunks; plans change to `applied` after chunk `at`."""
    both = Both(plans, tokens, chunk, local_attention_size, frames)
    for number in range(chunks):
        both.make(chunk)
        if number == at:
            both.apply(applied)
    return both


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 3),
    heads=st.integers(1, 5),
    chunk=st.integers(1, 4),
    tokens=st.integers(1, 3),
    known_length=st.booleans(),
    same_plan=st.booleans(),
)
def test_any_plan_is_dense_attention_with_a_mask(seed, batch, heads, chunk, tokens, known_length, same_plan):
    plans = [random_plan(2, heads, seed + (0 if same_plan else i)) for i in range(batch)]
    frames = 5 * chunk if known_length else None
    run_both(plans, plans, None, 5, tokens, chunk, frames=frames)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 3),
    heads=st.integers(1, 5),
    chunk=st.integers(1, 4),
    at=st.integers(0, 3),
    initial=st.sampled_from(
        [HeadContext(0, None), HeadContext(2, 4), HeadContext(3, 1), HeadContext(2, None)]
    ),
    local_attention_size=st.sampled_from([None, None, 7, 11]),
)
def test_plans_are_applied_in_place(seed, batch, heads, chunk, at, initial, local_attention_size):
    if local_attention_size:  # what left the local attention cannot be pinned later
        initial = HeadContext(max(2, initial.sink), initial.recent)
    before = [Plan.uniform(2, heads, initial)] * batch
    contexts = [
        HeadContext(0, 1),
        HeadContext(1, 0),
        HeadContext(0, 3),
        HeadContext(2, 2),
        HeadContext(0, None),
    ]
    after = [random_plan(2, heads, seed + i, contexts) for i in range(batch)]
    run_both(before, after, at, at + 5, 2, chunk, local_attention_size=local_attention_size)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 2),
    tokens=st.integers(1, 2),
    chunk=st.integers(1, 3),
    in_progress=st.integers(2, 4),
    more=st.none() | st.integers(0, 9),
    pinned=st.booleans(),
)
def test_windows_of_many_chunks_of_which_one_is_committed(
    seed, batch, tokens, chunk, in_progress, more, pinned
):
    """Rolling Forcing's passes: a window grows and shrinks, its first chunk is committed on its own."""
    local_attention_size = None if more is None else in_progress * chunk + 2 + more
    plans = [random_plan(2, 4, seed + i) for i in range(batch)]
    if not pinned:  # then visible frames depend on the sink, and no plan mixes heads
        plans = [Plan.uniform(2, 4, HeadContext(2, None if more is None else local_attention_size))] * batch
    both = Both(plans, tokens, in_progress * chunk, local_attention_size)
    for chunks in [*range(1, in_progress), *[in_progress] * 5, *range(in_progress - 1, 0, -1)]:
        both.run(chunks * chunk)
        if chunks == in_progress or both.cache.frames:
            both.run(chunk, pinned)
            both.commit(chunk)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    chunk=st.integers(1, 3),
    steps=st.lists(
        st.sampled_from(["chunk", "chunk", "short", "again", "reset", "apply", "jump"]), max_size=14
    ),
    local_attention_size=st.sampled_from([None, 9, 12]),
    window=st.integers(1, 4),
)
@example(
    seed=0, chunk=3, steps=["short", "chunk", "chunk", "chunk", "again"], local_attention_size=9, window=4
)
def test_the_past_is_written_again(seed, chunk, steps, local_attention_size, window):
    """Passes of any length, rewritten frames, frames left out and fresh starts in any order."""
    contexts = [HeadContext(0, 1), HeadContext(1, 0), HeadContext(0, 3), HeadContext(2, 2), HeadContext(3, 5)]
    both = Both([random_plan(2, 4, seed, contexts)] * 2, 2, chunk, local_attention_size)
    for number, step in enumerate(["chunk", *steps, "chunk"]):
        if step == "reset":
            both.reset()
        elif step == "apply" and both.cache.frames:
            # Frames that no head pins any more cannot be pinned again.
            both.apply([random_plan(2, 4, seed + number, contexts[:1] + contexts[2:3])] * 2)
        elif step == "jump":
            if both.cache.frames >= 3:  # all that is pinned is there
                both.jump(both.cache.frames + number % 8)
                both.run(chunk)
                both.commit(chunk)
        elif step == "again":
            both.write_again(min(window * chunk, both.cache.frames))
        else:
            both.make(1 if step == "short" else chunk)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 2),
    chunk=st.integers(1, 3),
    past=st.integers(4, 9),
    recent=st.integers(1, 3),
    local_attention_size=st.sampled_from([None, 9, 12]),
)
def test_a_past_that_all_heads_see_is_written_again(seed, batch, chunk, past, recent, local_attention_size):
    """From the first chunk and the newest ones; then plans are applied to it."""
    contexts = [HeadContext(0, 1), HeadContext(1, 0), HeadContext(0, 4), HeadContext(1, 2)]
    both = Both([random_plan(2, 4, seed + i, contexts) for i in range(batch)], 2, chunk, local_attention_size)
    for _ in range(past):
        both.run(chunk)
        both.commit(chunk)
    both.reset()
    both.apply([Plan.uniform(2, 4, HeadContext(1, recent * chunk))] * batch)
    both.run(chunk)
    both.commit(chunk)
    both.jump((past - recent) * chunk)
    for _ in range(recent):
        both.run(chunk)
        both.commit(chunk)
    both.run(chunk)
    seen = {frozenset(f) for b in both.cache.layers[0].groups for f in b.visible.frames}
    newest = range((past - recent) * chunk, (past + 1) * chunk)
    if local_attention_size is None:
        assert seen == {frozenset({0, *newest})}
    both.commit(chunk)
    both.apply([random_plan(2, 4, seed + 9 + i, contexts) for i in range(batch)])
    for _ in range(3):
        both.run(chunk)
        both.commit(chunk)


@pytest.mark.parametrize(("frames", "in_place"), [(6, True), (3, False)])
def test_frames_are_written_again_in_the_same_memory(frames, in_place):
    """So what was recorded of a pass stays valid; unless heads of one group would see unlike numbers."""
    both = Both([random_plan(2, 4, 0, [HeadContext(0, 3), HeadContext(2, 1), HeadContext(3, 0)])])
    for _ in range(5):
        both.run(3)
        both.commit(3)

    def memory():
        return both.cache.layout, [
            group.k.data_ptr() for layer in both.cache.layers for group in layer.groups
        ]

    before = memory()
    both.rewind(frames)
    both.run(frames)
    both.commit(frames)
    assert (memory() == before) == in_place
    both.run(3)


def test_pinned_frames_move_with_the_video_for_ever():
    """After many chunks the keys are exact: each turn starts from the key as it was made."""
    plan = random_plan(1, 4, 3, [HeadContext(3, 6), HeadContext(1, 0), HeadContext(0, 1)])
    both = Both([plan], local_attention_size=12)
    sizes = set()
    for _ in range(340):
        both.cache.write(0, *torch.zeros(2, 1, 3, 4, HEAD_DIM)) if both.cache.frames > 9 else both.run(3)
        both.commit(3)
        sizes.add(both.cache.nbytes)
    assert len(sizes) == 1
    both.oracle.k[0], both.oracle.v[0] = (
        torch.cat([x[0][:, :12], torch.zeros(1, 3 * 340 - 12, 4, HEAD_DIM)], 1)
        for x in (both.oracle.k, both.oracle.v)
    )
    both.run(3)


def test_pinned_frames_and_current_ones_must_fit_into_the_local_attention():
    make_cache([Plan.uniform(1, 2, HeadContext(6, 3))], chunk=15, local_attention_size=21)
    with pytest.raises(UserError, match="cannot keep 7 first frames"):
        make_cache([Plan.uniform(1, 2, HeadContext(7, 3))], chunk=15, local_attention_size=21)


def test_a_longer_context_does_not_bring_frames_back():
    cache = make_cache([Plan.uniform(1, 2, HeadContext(1, 6))])
    for context in (HeadContext(1, 3), HeadContext(1, 5)):
        cache.write(0, *torch.randn(2, 1, 3, 2, HEAD_DIM))
        cache.commit()
        cache.apply([Plan.uniform(1, 2, context)])
    (group,) = cache.write(0, *torch.randn(2, 1, 3, 2, HEAD_DIM))
    assert sorted(group.frames[0]) == [0, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("chunk", [1, 2, 3])
@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("ar_start", [1, 2, 3, 4])
def test_official_policy_sees_the_frames_of_the_public_code(ar_start, m, chunk):
    """Replays the public code's concatenations of frame lists (tests/golden/README.md, dummy_forcing)."""
    policy = official(ar_start, m, chunk)
    assert policy.roles is not None
    table = {str(role): context for role, context in policy.roles.items()}
    plan = Plan(roles=(("sink", "dummy", "neighbor"),), table=table, policy="official")
    cache = make_cache([Plan.uniform(1, 3, policy.initial)], chunk=chunk)
    sink: list[int] = []
    local: list[int] = []
    seen: list[list[int]] = [[], [], []]
    for number in range(8):
        current = list(range(number * chunk, (number + 1) * chunk))
        k = torch.randn(1, chunk, 3, HEAD_DIM)
        for group in cache.write(0, k, k):
            heads = [0, 1, 2] if group.heads is None else group.heads
            for head, frames in zip(heads, group.frames, strict=True):
                seen[head] = sorted(frames)
        if number <= ar_start:
            assert seen == [sink + local + current] * 3
            everything = sink + local + current
            sink = everything[:1]
            local = everything[-chunk * m :] if number > m - 1 else everything[1:]
            dummy, neighbor = local[-1:], local
        else:
            assert seen == [sink + current, dummy + current, neighbor + current]
            dummy = current[-1:]
            neighbor = (neighbor + current)[-chunk * m :]
        cache.commit()
        if number == ar_start:
            cache.apply([plan])


def test_head_groups_hold_prefixes_of_static_slots():
    plan = random_plan(1, 4, 3, [HeadContext(0, 1), HeadContext(1, 0), HeadContext(0, 6)])
    cache = make_cache([plan], tokens=2)
    places = None
    for _ in range(6):
        groups = cache.write(0, *torch.randn(2, 1, 6, 4, HEAD_DIM))
        now = [(g.k.data_ptr(), g.v.data_ptr()) for g in groups]
        assert now == [(b.k.data_ptr(), b.v.data_ptr()) for b in cache.layers[0].groups]
        assert places in (None, now)
        places = now
        cache.commit()


def test_roles_with_equally_many_frames_share_one_head_group():
    table = {"dummy": HeadContext(0, 1), "sink": HeadContext(1, 0), "neighbor": HeadContext(0, 3)}
    plan = Plan(roles=(("dummy", "sink", "neighbor", "dummy"),), table=table, policy="test")
    cache = make_cache([plan])
    cache.write(0, *torch.randn(2, 1, 3, 4, HEAD_DIM))
    cache.commit()
    groups = cache.write(0, *torch.randn(2, 1, 3, 4, HEAD_DIM))
    assert [sorted(g.heads) for g in groups] == [[0, 1, 3], [2]]
    assert [g.k.shape[1] for g in groups] == [4, 6]


def test_equal_plans_share_storage():
    one, other = (random_plan(2, 3, seed, [HeadContext(0, 1), HeadContext(1, 2)]) for seed in (0, 1))
    assert len(make_cache([one, one]).layers[0].groups) == len(make_cache([one]).layers[0].groups)
    assert len(make_cache([one, other]).layers[0].groups) > len(make_cache([one]).layers[0].groups)


def test_nbytes_is_constant_once_the_rings_are_full():
    contexts = [HeadContext(0, 1), HeadContext(1, 0), HeadContext(0, 6), HeadContext(3, 6)]
    cache = make_cache([random_plan(3, 4, 0, contexts)], tokens=2)
    expected = sum(
        (c.total + 3) * 2 * HEAD_DIM * 2 * 4 for row in cache.layers[0].rows for c in [s.context for s in row]
    )
    sizes = set()
    for _ in range(30):
        for layer in range(3):
            cache.write(layer, *torch.randn(2, 1, 6, 4, HEAD_DIM))
        cache.commit()
        sizes.add(cache.nbytes)
    assert len(sizes) == 1
    assert sum(b.k.nbytes + b.v.nbytes for b in cache.layers[0].groups) == expected


def test_the_whole_past_grows_by_one_chunk_or_not_at_all():
    plan = Plan.uniform(1, 2, HeadContext(0, None))
    frame = 2 * HEAD_DIM * 2 * 4
    growing, known = make_cache([plan]), make_cache([plan], frames=12)
    for chunk in range(4):
        for cache in (growing, known):
            cache.write(0, *torch.randn(2, 1, 3, 2, HEAD_DIM))
            cache.commit()
        assert growing.nbytes == (chunk + 1) * 3 * frame
        assert known.nbytes == 12 * frame


def test_frames_that_are_gone_cannot_be_pinned():
    cache = make_cache([Plan.uniform(1, 2, HeadContext(0, 3))])
    for _ in range(2):
        cache.write(0, *torch.randn(2, 1, 3, 2, HEAD_DIM))
        cache.commit()
    with pytest.raises(ValueError, match="no longer"):
        cache.apply([Plan.uniform(1, 2, HeadContext(1, 0))])
