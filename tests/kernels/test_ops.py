"""Every Triton kernel against its definition in torch: on a GPU, else in Triton's interpreter.

Triton's interpreter must be on before Triton is imported, so these tests run in a process of their own there.
"""

from importlib.util import find_spec

import pytest
import torch

from dummyforcing.kernels import ops
from dummyforcing.kernels.constants import FP8
from dummyforcing.kernels.rope import apply_rope, rope_table
from tests.interpreter import INTERPRETED, run_interpreted

pytestmark = pytest.mark.skipif(not find_spec("triton"), reason="Triton is not installed")
here = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(), reason="needs a GPU or the interpreter"
)
DEVICE = "cpu" if INTERPRETED else "cuda"
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 0.02}


@pytest.mark.skipif(INTERPRETED or torch.cuda.is_available(), reason="the kernels run here as they are")
@pytest.mark.slow
def test_kernels_in_the_interpreter():
    assert "passed" in run_interpreted(__file__)


def kernels():
    from dummyforcing.kernels import ops_triton

    return ops_triton


def tensor(*shape, dtype=torch.float32, seed=0, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) + offset).to(DEVICE, dtype)


def definition(function, *tensors, **options):
    """What `ops.py` computes on the CPU."""
    return function(*(t.cpu() if isinstance(t, torch.Tensor) else t for t in tensors), **options)


@here
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("parts", ["all", "no gate", "no delta", "no norm"])
def test_residual_norm(dtype, frames, parts):
    tokens, dim = 4, 24
    x = tensor(2 * 3 * tokens, dim, dtype=dtype, offset=3.0)
    delta = None if parts == "no delta" else tensor(*x.shape, dtype=dtype, seed=1)
    table = tensor(frames, 3, dim, seed=2)
    gate = None if parts in ("no gate", "no delta") else table[:, 0]
    norm = None if parts == "no norm" else (table[:, 1], table[:, 2])
    expected_x = x.cpu().clone()
    cpu_delta, cpu_gate = (t if t is None else t.cpu() for t in (delta, gate))
    cpu_norm = None if norm is None else (norm[0].cpu(), norm[1].cpu())
    expected = ops.residual_norm(expected_x, cpu_delta, cpu_gate, cpu_norm, tokens=tokens, eps=1e-6)
    y, scales = kernels().residual_norm(x, delta, gate, norm, tokens, 1e-6, False)
    assert scales is None
    torch.testing.assert_close(x.cpu(), expected_x, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    assert (y is None) == (expected is None)
    if y is not None:
        torch.testing.assert_close(y.cpu(), expected, atol=2 * TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@here
def test_residual_norm_with_one_affine_map_for_all_frames():
    x, delta, gate = tensor(6, 24), tensor(6, 24, seed=1), tensor(3, 24, seed=2)
    norm = tensor(1, 24, seed=3, dtype=torch.bfloat16), tensor(1, 24, seed=4, dtype=torch.bfloat16)
    expected_x = x.cpu().clone()
    expected = ops.residual_norm(
        expected_x, delta.cpu(), gate.cpu(), (norm[0].cpu(), norm[1].cpu()), tokens=2, eps=1e-6
    )
    y, _ = kernels().residual_norm(x, delta, gate, norm, 2, 1e-6, False)
    torch.testing.assert_close(y.cpu(), expected, atol=5e-6, rtol=5e-6)
    torch.testing.assert_close(x.cpu(), expected_x, atol=2e-6, rtol=2e-6)


def close_in_float8(mine, theirs, atol):
    """Within a step of float8; Triton's interpreter rounds a few values wrongly."""
    wrong = ~torch.isclose(mine, theirs, rtol=0.13, atol=atol)
    assert wrong.float().mean() <= (0.15 if INTERPRETED else 0)


def same_rows(values, scales, expected):
    torch.testing.assert_close(scales.cpu(), expected.scale, rtol=1e-5, atol=0)
    mine, theirs = values.cpu().float() * scales.cpu(), expected.values.float() * expected.scale
    close_in_float8(mine, theirs, 1e-5)
    # Between two float8 numbers, rounding may go either way.
    assert (~torch.isclose(mine, theirs, rtol=1e-4, atol=1e-7)).float().mean() < 0.05


@here
@pytest.mark.parametrize("gelu", [False, True])
def test_quantize_rows(gelu):
    x = tensor(7, 96) * torch.tensor([1e-4, 1, 3, 10, 50, 200, 0.0], device=DEVICE)[:, None]
    values, scales = kernels().quantize_rows(x, gelu)
    same_rows(values, scales, ops.quantize_rows(x.cpu(), gelu))


@here
def test_residual_norm_in_float8():
    x, scale, shift = tensor(6, 96), tensor(1, 96, seed=1), tensor(1, 96, seed=2)
    expected = ops.residual_norm(x.cpu(), norm=(scale.cpu(), shift.cpu()), tokens=2, eps=1e-6, fp8=True)
    values, scales = kernels().residual_norm(x, None, None, (scale, shift), 2, 1e-6, True)
    same_rows(values, scales, expected)


@here
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_rms_norm(dtype):
    x, gain = tensor(5, 24, dtype=dtype), tensor(24, dtype=dtype, seed=1)
    expected = ops.rms_norm(x.cpu().clone(), gain.cpu(), 1e-6)
    assert kernels().rms_norm(x, gain, 1e-6) is x
    torch.testing.assert_close(x.cpu(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


ORDERS = [[2, 0, 1], [0, 1, 2]]
"""Of each sample's queries."""
SLOTS = torch.tensor([[[1, 2], [-1, 0], [3, 0]], [[0, 3], [1, -1], [2, 3]]], dtype=torch.int32)


def places(batch, tokens, heads, width, dtype, device, with_queries=True):
    """Room for the heads of each sample: queries side by side, keys and values each in a buffer."""

    def zeros(*shape):
        return torch.zeros(shape, device=device).to(dtype)

    q = zeros(batch, 2 * tokens, heads, width)
    buffers = zeros(batch, 2, 4 * tokens, heads, width)
    rows = []
    for sample in range(batch):
        k, v = buffers[sample]
        order = ORDERS[sample]
        mine = [ops.OneHead(q[sample], order.index(head)) for head in range(heads)]
        queries = mine if with_queries else [None] * heads
        pairs = [(ops.OneHead(k, head), ops.OneHead(v, heads - 1 - head)) for head in range(heads)]
        rows.append([ops.Place(one, *pair) for one, pair in zip(queries, pairs, strict=True)])
    table = ops.Targets.table_of(rows).to(device)
    return ops.Targets(rows, table, SLOTS[:batch].contiguous().to(device)), (q, buffers)


def same_places(mine, theirs, tolerance):
    for a, b in zip(mine, theirs, strict=True):
        if tolerance is None:
            close_in_float8(a.cpu().float(), b.float(), 0.002)
        else:
            torch.testing.assert_close(a.cpu().float(), b.float(), atol=tolerance / 50, rtol=tolerance)


@here
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, FP8], ids=str)
@pytest.mark.parametrize("batch", [1, 2])
def test_place_heads(dtype, batch):
    """Three heads, each sample's in an order and at slots of its own."""
    frames, tokens, heads, width = 2, 3, 3, 8
    qkv = tensor(batch * frames * tokens, 3, heads, width, dtype=torch.bfloat16)
    gains = tuple(tensor(heads * width, seed=seed, dtype=torch.bfloat16) for seed in (1, 2))
    rope = rope_table(torch.tensor([4, 5]), 1, tokens, width)
    mine, results = places(batch, tokens, heads, width, dtype, DEVICE)
    theirs, expected = places(batch, tokens, heads, width, dtype, "cpu")
    ops.place_heads(
        qkv.cpu().unbind(1),
        theirs,
        tokens=tokens,
        gains=(gains[0].cpu(), gains[1].cpu()),
        rope=rope,
        eps=1e-6,
    )
    assert all(b.float().any() for b in expected)
    on_device = tuple(t.to(DEVICE) for t in rope)
    kernels().place_heads(
        qkv.unbind(1),
        (mine.table, mine.slots),
        dtype,
        tokens,
        tokens,
        gains,
        on_device,
        1e-6,
        with_queries=True,
    )
    same_places(results, expected, {torch.float32: 2e-6, torch.bfloat16: 0.01, FP8: None}[dtype])


@here
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("part", [2, 3])
def test_place_heads_that_come_in_parts(batch, part):
    """Five tokens a frame, the first two or three of all frames and samples, then the others: a copy."""
    frames, tokens, heads, width = 2, 5, 3, 8
    natural = tensor(batch, frames, tokens, 3, heads, width)
    parts = [natural[:, :, first : first + part].flatten(0, 2) for first in range(0, tokens, part)]
    rows = torch.cat(parts)
    _, k, v = rows.unbind(1)
    mine, results = places(batch, tokens, heads, width, torch.float32, DEVICE, with_queries=False)
    theirs, expected = places(batch, tokens, heads, width, torch.float32, "cpu", with_queries=False)
    ops.place_heads(natural.cpu().flatten(0, 2).unbind(1), theirs, tokens=tokens)
    ops.place_heads(
        (k.cpu(), k.cpu(), v.cpu()),
        theirs_in_parts := places(batch, tokens, heads, width, torch.float32, "cpu", with_queries=False)[0],
        tokens=tokens,
        part=part,
    )
    for one, other in zip(theirs.places, theirs_in_parts.places, strict=True):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a.k.rows, b.k.rows)
            assert torch.equal(a.v.rows, b.v.rows)
    targets = mine.table, mine.slots
    kernels().place_heads(
        (k, k, v), targets, torch.float32, tokens, part, None, None, 0.0, with_queries=False
    )
    same_places(results, expected, 2e-6)


@here
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("count", [2, 5])
def test_merge_parts(dtype, count):
    length, heads, width = 3, 2, 24
    parts = tensor(count, length, heads, width, dtype=dtype)
    lse = 5 * tensor(count, heads, length, seed=1)
    wide = torch.zeros(length, heads + 1, width, device=DEVICE, dtype=dtype)
    expected = torch.empty(length, heads, width, dtype=dtype)
    ops.merge_parts(parts.cpu(), lse.cpu(), expected)
    kernels().merge_parts(parts, lse, wide[:, 1:])
    torch.testing.assert_close(wide[:, 1:].cpu(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    assert not wide[:, 0].any()


@here
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("heads", [2, 3])
def test_apply_rope(dtype, heads):
    """Of heads that lie apart in memory, too."""
    x = tensor(2, 12, 3, heads, 16, dtype=dtype)[:, :, 1]
    cos, sin = (t.to(DEVICE) for t in rope_table(torch.arange(5, 7), 2, 3, 16))
    turned = kernels().apply_rope(x, cos, sin)
    expected = apply_rope(x.cpu(), cos.cpu(), sin.cpu())
    torch.testing.assert_close(turned.cpu(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
