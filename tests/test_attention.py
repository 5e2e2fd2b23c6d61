"""Every backend against attention written out in float64."""

import pytest
import torch

from dummyforcing.attention import attend
from dummyforcing.buffers import Segment
from oracles import softmax_attention

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


def segment(samples, heads, batch, total_heads, keys, head_dim, dtype):
    rows = batch if samples is None else len(samples)
    columns = total_heads if heads is None else len(heads)
    k, v = torch.randn(2, rows, keys, columns, head_dim, dtype=dtype)
    frames = (tuple(range(keys)),) * columns
    return Segment(*(None if i is None else torch.tensor(i) for i in (samples, heads)), k, v, frames)


LAYOUTS = {
    "whole": [(None, None, 7)],
    "one permuted segment": [(None, [2, 0, 1], 7)],
    "two groups of heads": [(None, [0, 2], 5), (None, [1], 9)],
    "samples apart": [([0], None, 4), ([1, 2], None, 6)],
    "samples and heads apart": [([0, 2], [1, 0], 4), ([0, 2], [2], 9), ([1], [0, 1, 2], 6)],
}


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("head_dim", [4, 24, 32])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_backends_equal_the_definition(backend, layout, head_dim, dtype):
    torch.manual_seed(0)
    q = torch.randn(3, 6, 3, head_dim, dtype=dtype)
    segments = [segment(s, h, 3, 3, keys, head_dim, dtype) for s, h, keys in LAYOUTS[layout]]
    out = attend(q, segments, backend)
    assert out.dtype == dtype
    for part in segments:
        samples = range(3) if part.samples is None else part.samples.tolist()
        heads = range(3) if part.heads is None else part.heads.tolist()
        for i, sample in enumerate(samples):
            for j, head in enumerate(heads):
                one = softmax_attention(
                    q[sample, None, :, head, None], part.k[i, None, :, j, None], part.v[i, None, :, j, None]
                )
                torch.testing.assert_close(
                    out[sample, :, head], one[0, :, 0], atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
                )
