"""The cache against keeping every key for ever and masking."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dummyforcing.attention import attend
from dummyforcing.cache import KVCache
from dummyforcing.heads import official
from dummyforcing.plan import HeadContext, Plan
from oracles import HeadMemory, random_plan, softmax_attention

HEAD_DIM = 4


def make_cache(plans, tokens=1, chunk=3, frames=None):
    return KVCache(plans, head_dim=HEAD_DIM, tokens_per_frame=tokens, chunk_frames=chunk, frames=frames)


class KeepEverything:
    """The oracle: all keys of all frames, and for each sample, layer and head the frames that it sees."""

    def __init__(self, plans, tokens, chunk):
        self.tokens, self.chunk, self.past = tokens, chunk, 0
        self.memory = [[[HeadMemory(c) for c in row] for row in plan.contexts] for plan in plans]
        self.k, self.v = {}, {}

    def attend(self, layer, q, k, v):
        last = self.past * self.tokens
        k = torch.cat([self.k[layer][:, :last], k], 1) if layer in self.k else k
        v = torch.cat([self.v[layer][:, :last], v], 1) if layer in self.v else v
        self.k[layer], self.v[layer] = k, v
        frame = torch.arange(k.shape[1]) // self.tokens
        mask = torch.stack(
            [
                torch.stack(
                    [
                        (frame >= self.past) | torch.isin(frame, torch.tensor([*head.visible]))
                        for head in sample
                    ]
                )
                for sample in (sample[layer] for sample in self.memory)
            ]
        )
        return softmax_attention(q, k, v, mask[:, :, None])

    def commit(self):
        new = range(self.past, self.past + self.chunk)
        self.past += self.chunk
        for head in self._heads():
            head.commit(new)

    def apply(self, plans):
        for sample, plan in zip(self.memory, plans, strict=True):
            for row, contexts in zip(sample, plan.contexts, strict=True):
                for head, context in zip(row, contexts, strict=True):
                    head.convert(context)

    def _heads(self):
        return [head for sample in self.memory for row in sample for head in row]


def run_both(plans, applied, at, chunks, tokens, chunk, heads, layers=2, frames=None):
    """Compare cache and oracle over `chunks` chunks; plans change to `applied` after chunk `at`."""
    torch.manual_seed(0)
    batch = len(plans)
    cache, oracle = make_cache(plans, tokens, chunk, frames), KeepEverything(plans, tokens, chunk)
    for number in range(chunks):
        for _ in range(2):
            for layer in range(layers):
                q, k, v = torch.randn(3, batch, chunk * tokens, heads, HEAD_DIM)
                out = attend(q, cache[layer].write(k, v))
                torch.testing.assert_close(out, oracle.attend(layer, q, k, v), atol=2e-5, rtol=0)
        cache.commit()
        oracle.commit()
        if number == at:
            cache.apply(applied)
            oracle.apply(applied)


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
    run_both(plans, plans, None, 5, tokens, chunk, heads, frames=frames)


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
)
def test_plans_are_applied_in_place(seed, batch, heads, chunk, at, initial):
    before = [Plan.uniform(2, heads, initial)] * batch
    contexts = [
        HeadContext(0, 1),
        HeadContext(1, 0),
        HeadContext(0, 3),
        HeadContext(2, 2),
        HeadContext(0, None),
    ]
    after = [random_plan(2, heads, seed + i, contexts) for i in range(batch)]
    run_both(before, after, at, at + 5, 2, chunk, heads)


def test_a_longer_context_does_not_bring_frames_back():
    cache = make_cache([Plan.uniform(1, 2, HeadContext(1, 6))])
    for context in (HeadContext(1, 3), HeadContext(1, 5)):
        cache[0].write(*torch.randn(2, 1, 3, 2, HEAD_DIM))
        cache.commit()
        cache.apply([Plan.uniform(1, 2, context)])
    (segment,) = cache[0].write(*torch.randn(2, 1, 3, 2, HEAD_DIM))
    assert sorted(segment.frames[0]) == [0, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("chunk", [1, 2, 3])
@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("ar_start", [1, 2, 3, 4])
def test_official_policy_sees_the_frames_of_the_public_code(ar_start, m, chunk):
    """Replays the public code's concatenations of frame lists (tests/golden/README.md, dummy_forcing)."""
    policy = official(ar_start, m, chunk)
    table = {str(role): context for role, context in policy.roles.items()}
    plan = Plan(roles=(("sink", "dummy", "neighbor"),), table=table, policy="official")
    cache = make_cache([Plan.uniform(1, 3, policy.initial)], chunk=chunk)
    sink, local = [], []
    seen = [[], [], []]
    for number in range(8):
        current = list(range(number * chunk, (number + 1) * chunk))
        k = torch.randn(1, chunk, 3, HEAD_DIM)
        for segment in cache[0].write(k, k):
            heads = [0, 1, 2] if segment.heads is None else segment.heads.tolist()
            for head, frames in zip(heads, segment.frames, strict=True):
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


def test_segments_hold_prefixes_of_static_buffers():
    plan = random_plan(1, 4, 3, [HeadContext(0, 1), HeadContext(1, 0), HeadContext(0, 6)])
    cache = make_cache([plan], tokens=2)
    places = None
    for _ in range(6):
        segments = cache[0].write(*torch.randn(2, 1, 6, 4, HEAD_DIM))
        now = [(s.k.data_ptr(), s.v.data_ptr()) for s in segments]
        assert places in (None, now)
        places = now
        cache.commit()


def test_roles_with_equally_many_frames_share_one_segment():
    table = {"dummy": HeadContext(0, 1), "sink": HeadContext(1, 0), "neighbor": HeadContext(0, 3)}
    plan = Plan(roles=(("dummy", "sink", "neighbor", "dummy"),), table=table, policy="test")
    cache = make_cache([plan])
    cache[0].write(*torch.randn(2, 1, 3, 4, HEAD_DIM))
    cache.commit()
    segments = cache[0].write(*torch.randn(2, 1, 3, 4, HEAD_DIM))
    assert [sorted(s.heads.tolist()) for s in segments] == [[0, 1, 3], [2]]
    assert [s.k.shape[1] for s in segments] == [4, 6]


def test_equal_plans_share_storage():
    one, other = (random_plan(2, 3, seed, [HeadContext(0, 1), HeadContext(1, 2)]) for seed in (0, 1))
    assert len(make_cache([one, one])[0].buffers) == len(make_cache([one])[0].buffers)
    assert len(make_cache([one, other])[0].buffers) > len(make_cache([one])[0].buffers)


def test_nbytes_is_constant_once_the_rings_are_full():
    contexts = [HeadContext(0, 1), HeadContext(1, 0), HeadContext(0, 6), HeadContext(3, 6)]
    cache = make_cache([random_plan(3, 4, 0, contexts)], tokens=2)
    expected = sum(
        (c.total + 3) * 2 * HEAD_DIM * 2 * 4 for row in cache[0].rows for c in [s.context for s in row]
    )
    sizes = set()
    for _ in range(30):
        for layer in range(3):
            cache[layer].write(*torch.randn(2, 1, 6, 4, HEAD_DIM))
        cache.commit()
        sizes.add(cache.nbytes)
    assert len(sizes) == 1
    assert sum(b.k.nbytes + b.v.nbytes for b in cache[0].buffers) == expected


def test_the_whole_past_grows_by_one_chunk_or_not_at_all():
    plan = Plan.uniform(1, 2, HeadContext(0, None))
    frame = 2 * HEAD_DIM * 2 * 4
    growing, known = make_cache([plan]), make_cache([plan], frames=12)
    for chunk in range(4):
        for cache in (growing, known):
            cache[0].write(*torch.randn(2, 1, 3, 2, HEAD_DIM))
            cache.commit()
        assert growing.nbytes == (chunk + 1) * 3 * frame
        assert known.nbytes == 12 * frame


def test_frames_that_are_gone_cannot_be_pinned():
    cache = make_cache([Plan.uniform(1, 2, HeadContext(0, 3))])
    for _ in range(2):
        cache[0].write(*torch.randn(2, 1, 3, 2, HEAD_DIM))
        cache.commit()
    with pytest.raises(ValueError, match="no longer"):
        cache.apply([Plan.uniform(1, 2, HeadContext(1, 0))])
