"""Every backend against attention written out in float64."""

import pytest
import torch

from dummyforcing.attention.attend import attend
from dummyforcing.attention.backends import PART_KERNELS
from dummyforcing.attention.split_keys import LEAST_KEYS, attend_parts, choose_parts
from dummyforcing.cache.head_group import HeadGroup
from tests.oracles import softmax_attention

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


def group(samples, heads, batch, total_heads, keys, head_dim, dtype):
    rows = batch if samples is None else len(samples)
    columns = total_heads if heads is None else len(heads)
    k, v = torch.randn(2, rows, keys, columns, head_dim, dtype=dtype)
    frames = (tuple(range(keys)),) * columns
    which_samples, which_heads = (None if i is None else tuple(i) for i in (samples, heads))
    return HeadGroup(which_samples, which_heads, k, v, frames)


LAYOUTS: dict[str, list[tuple[list[int] | None, list[int] | None, int]]] = {
    "whole": [(None, None, 7)],
    "one permuted group": [(None, [2, 0, 1], 7)],
    "two groups of heads": [(None, [0, 2], 5), (None, [1], 9)],
    "samples apart": [([0], None, 4), ([1, 2], None, 6)],
    "runs of samples": [([0], [2, 0, 1], 4), ([1, 2], [1, 0], 6), ([1, 2], [2], 5)],
    "samples and heads apart": [([0, 2], [1, 0], 4), ([0, 2], [2], 9), ([1], [0, 1, 2], 6)],
}


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("head_dim", [4, 24, 32])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_backends_equal_the_definition(backend, layout, head_dim, dtype):
    torch.manual_seed(0)
    q = torch.randn(3, 6, 3, head_dim, dtype=dtype)
    groups = [group(s, h, 3, 3, keys, head_dim, dtype) for s, h, keys in LAYOUTS[layout]]
    out = attend(q, groups, backend)
    assert out.dtype == dtype
    for part in groups:
        samples = range(3) if part.samples is None else part.samples
        heads = range(3) if part.heads is None else part.heads
        for i, sample in enumerate(samples):
            for j, head in enumerate(heads):
                one = softmax_attention(
                    q[sample, None, :, head, None], part.k[i, None, :, j, None], part.v[i, None, :, j, None]
                )
                torch.testing.assert_close(
                    out[sample, :, head], one[0, :, 0], atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
                )


@pytest.mark.parametrize("parts", [2, 3, 6])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_keys_in_parts_equal_whole_keys(parts, dtype):
    """Heads are a slice of wider tensors, and keys the beginning of a longer buffer, as in the cache."""
    torch.manual_seed(0)
    q, out = torch.randn(1, 5, 4, 8, dtype=dtype), torch.full((1, 5, 4, 8), float("nan"), dtype=dtype)
    k, v = (3 * torch.randn(1, 20, 3, 8, dtype=dtype)[:, :12] for _ in "kv")
    heads = slice(1, 4)
    attend_parts(q[:, :, heads], k, v, out[:, :, heads], PART_KERNELS["reference"], parts)
    expected = softmax_attention(q[:, :, heads], k, v)
    torch.testing.assert_close(out[:, :, heads], expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    assert out[:, :, 0].isnan().all()


def test_only_few_heads_with_many_keys_are_cut():
    """On 132 processors, at 480p: as many queries as 37 tiles a head."""
    tokens = 1560
    length = 3 * tokens

    def choose(*groups: tuple[int, int]) -> list[int]:
        return choose_parts(length, tuple((frames * tokens, heads) for frames, heads in groups), 132)

    assert choose((12, 12)) == choose((240, 12)) == [1]
    assert choose((6, 1), (4, 11)) == [1, 1]
    for heads in (1, 2):
        parts, whole = choose((120, heads), (4, 12 - heads))
        assert whole == 1
        even = (120 * heads + 4 * (12 - heads)) * 37 / 132
        assert 120 / parts <= even / 2 < 120 / max(1, parts - 2)
        assert 120 * tokens % parts == 0


def test_parts_are_not_small_and_divide_the_keys():
    assert choose_parts(128, ((2 * LEAST_KEYS - 2, 1),), 132) == [1]
    assert choose_parts(128, ((2 * LEAST_KEYS, 1),), 4) == [2]
    prime = 81_919
    assert choose_parts(128, ((prime, 1),), 4) == [1]
