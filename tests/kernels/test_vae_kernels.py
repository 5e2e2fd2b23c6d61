"""The decoder's Triton kernels against their references: on a GPU, else in Triton's interpreter."""

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor

from dummyforcing.kernels.vae import reference_add_norm, reference_upsample
from tests.interpreter import INTERPRETED, run_interpreted

HAS_TRITON = importlib.util.find_spec("triton") is not None
DEVICE = "cpu" if INTERPRETED else "cuda"

kernels = pytest.mark.skipif(
    not HAS_TRITON or not (INTERPRETED or torch.cuda.is_available()), reason="there is no GPU"
)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


def maps(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def assert_near(ours: Tensor, reference: Tensor) -> None:
    """Equal but for the last bit of the dtype."""
    torch.testing.assert_close(ours, reference, atol=1e-5, rtol=max(1e-5, torch.finfo(ours.dtype).eps))


@pytest.mark.gpu
@kernels
@DTYPES
@pytest.mark.parametrize("channels", [24, 96])
@pytest.mark.parametrize("parts", ["", "bias", "residual", "bias residual"])
@pytest.mark.parametrize("then", ["", "norm", "norm silu"])
def test_add_norm(dtype: torch.dtype, channels: int, parts: str, then: str) -> None:
    from dummyforcing.kernels import vae_triton

    shape = (2, 3, 5, 7, channels)
    x = maps(*shape, dtype=dtype)
    x[0, 0, 0, 0] = 0  # a pixel that has no direction
    bias = maps(channels, dtype=dtype, seed=1) if "bias" in parts else None
    residual = maps(*shape, dtype=dtype, seed=2) if "residual" in parts else None
    gamma = maps(channels, dtype=dtype, seed=3) if then else None
    for keep in (False, True):
        results = []
        for function in (vae_triton.add_norm, reference_add_norm):
            more = 32 * (channels > 64)  # channels of the result that nothing is computed for
            total, window = x.clone(), maps(2, 5, *shape[2:-1], channels + more, dtype=dtype, seed=4)
            options: dict[str, Any] = {"gamma": gamma, "silu": "silu" in then, "keep": keep}
            function(total, bias, residual, window[:, 2:], **options)
            results.append((window, total))
        (ours, our_total), (expected, expected_total) = results
        assert_near(ours, expected)  # what is beside the result, too
        if keep:
            assert_near(our_total, expected_total)


@pytest.mark.gpu
@kernels
@DTYPES
@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("parts", ["", "bias", "bias residual"])
def test_upsample(dtype: torch.dtype, frames: int, parts: str) -> None:
    from dummyforcing.kernels import vae_triton

    shape = (2, 3, 5, 7, 24 * frames)
    bias = maps(shape[-1], dtype=dtype, seed=1) if "bias" in parts else None
    residual = maps(*shape, dtype=dtype, seed=2) if "residual" in parts else None
    ours, expected = (
        function(maps(*shape, dtype=dtype), bias, residual, frames)
        for function in (vae_triton.upsample, reference_upsample)
    )
    assert ours.shape == (2, 3 * frames, 10, 14, 24)
    assert_near(ours, expected)


@DTYPES
def test_the_reference_normalises_and_activates(dtype: torch.dtype) -> None:
    """Against the formula in float64; the rest of the references is tested through the whole decoder."""
    x, bias, residual = (torch.randn(s).to(dtype) for s in ((2, 3, 5, 7, 24), (24,), (2, 3, 5, 7, 24)))
    gamma, out = torch.randn(24).to(dtype), torch.empty_like(x)
    total = x.double() + bias.double() + residual.double()
    y = torch.nn.functional.normalize(total, dim=-1) * 24**0.5 * gamma.double()
    reference_add_norm(x, bias, residual, out, gamma=gamma, silu=True, keep=True)
    tolerance = max(1e-5, torch.finfo(dtype).eps)
    torch.testing.assert_close(out.double(), y * torch.sigmoid(y), atol=1e-5, rtol=tolerance)
    torch.testing.assert_close(x.double(), total, atol=1e-5, rtol=tolerance)


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
@pytest.mark.skipif(torch.cuda.is_available() or INTERPRETED, reason="the kernels run here")
@pytest.mark.slow
def test_in_the_interpreter() -> None:
    assert "skipped" not in run_interpreted(__file__, "-k", "add_norm or upsample")
