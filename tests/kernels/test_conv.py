"""The convolution kernel against torch's own convolutions: on a GPU, else in Triton's interpreter."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dummyforcing.kernels.constants import FP8
from dummyforcing.kernels.conv import (
    Weights,
    empty_maps,
    in_pairs,
    reference_convolve,
    reference_sum_neighbors,
    to_float8,
    weights_by_neighbor,
    weights_of,
    weights_to_double,
)
from dummyforcing.kernels.vae import reference_add_norm
from tests.interpreter import INTERPRETED, run_interpreted

HAS_TRITON = importlib.util.find_spec("triton") is not None
DEVICE = "cpu" if INTERPRETED or not torch.cuda.is_available() else "cuda"
pytestmark = pytest.mark.usefixtures("exact_float32")

kernels = pytest.mark.skipif(
    not HAS_TRITON or not (INTERPRETED or torch.cuda.is_available()), reason="there is no GPU"
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def conv3d(x: Tensor, weight: Tensor, padding: tuple[int, int, int]) -> Tensor:
    """torch's, of `(B, T, H, W, C)`, in float64."""
    out = F.conv3d(x.double().permute(0, 4, 1, 2, 3), weight.double(), padding=padding)
    return out.permute(0, 2, 3, 4, 1)


def with_margin(x: Tensor) -> Tensor:
    """In memory as `empty_maps` gives it: a row and two columns of zeros more."""
    maps = empty_maps(x, x.shape[1], x.shape[-1], x.dtype)
    return maps.copy_(F.pad(x.float(), (0, 0, 0, 2, 0, 1)))


def relative(ours: Tensor, expected: Tensor) -> float:
    return float((ours.double() - expected.double()).norm() / expected.double().norm())


def test_the_reference_is_torchs_convolution() -> None:
    x, weight = normal(2, 5, 7, 9, 12), normal(10, 12, 3, 3, 3, seed=1)
    bias, residual = normal(10, seed=2), normal(2, 3, 7, 9, 10, seed=3)
    ours = reference_convolve(with_margin(x), weights_of(weight), torch.float32, bias, residual)
    expected = conv3d(x, weight, (0, 1, 1)) + bias + residual
    torch.testing.assert_close(ours, expected.float(), atol=1e-4, rtol=1e-4)


def test_four_small_convolutions_are_one_after_repetition() -> None:
    """Against torch's own upsampling and convolution."""
    x, weight = normal(1, 2, 5, 6, 2 * 12), normal(10, 12, 3, 3, seed=1)
    frames = torch.cat([part[:, [t]] for t in range(2) for part in x.chunk(2, -1)], 1)
    large = frames.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = conv3d(large, weight[:, :, None], (0, 1, 1))
    ours = reference_convolve(with_margin(x), weights_to_double(weight), torch.float32, frames=2)
    assert ours.shape == (1, 4, 10, 12, 10)
    torch.testing.assert_close(ours, expected.float(), atol=1e-4, rtol=1e-4)


def test_pairs_see_what_pixels_see() -> None:
    """In the order in which the kernel takes them: four pixels beside each other for each pair."""
    x, weight = normal(1, 3, 4, 8, 6), normal(5, 6, 3, 3, 3, seed=1)
    weights = in_pairs(weights_of(weight))
    assert weights.kernel == (3, 3, 4)
    four = F.pad(x, (0, 0, 1, 1)).unfold(3, 4, 2)  # (1, 3, 4, 4 pairs, 6, 4)
    columns = four.permute(0, 3, 1, 2, 5, 4)  # (1, pairs, 3, 4, 4, 6)
    rows = F.pad(columns, (0, 0, 0, 0, 1, 1)).unfold(3, 3, 1)  # (1, pairs, 3, 4 rows, 4, 6, 3)
    pairs = rows.permute(0, 3, 1, 2, 6, 4, 5).flatten(3) @ weights.matrix.T  # (1, 4 rows, pairs, 10)
    ours = pairs.reshape(1, 1, 4, 8, 5)
    torch.testing.assert_close(ours, conv3d(x, weight, (0, 1, 1)).float(), atol=1e-4, rtol=1e-4)
    taken = reference_convolve(with_margin(x), weights, torch.float32)
    torch.testing.assert_close(taken, ours, atol=1e-4, rtol=1e-4)


def test_what_neighbors_give_is_a_convolution() -> None:
    x, weight, bias = normal(2, 5, 7, 9, 12), normal(3, 12, 3, 3, 3, seed=1), normal(3, seed=2)
    parts = reference_convolve(with_margin(x), weights_by_neighbor(weight), torch.float32)
    assert parts.shape == (2, 3, 7, 9, 27)
    ours = reference_sum_neighbors(parts, bias, torch.float32)
    torch.testing.assert_close(ours, (conv3d(x, weight, (0, 1, 1)) + bias).float(), atol=1e-4, rtol=1e-4)


@pytest.mark.gpu
@kernels
@pytest.mark.parametrize("n", [3, 12])
def test_sum_neighbors(n: int) -> None:
    from dummyforcing.kernels import conv_triton

    parts, bias = normal(2, 3, 5, 7, 9 * n), normal(n, seed=1)
    expected = reference_sum_neighbors(parts, bias, torch.float16)
    ours = conv_triton.sum_neighbors(parts, bias, torch.float16)
    torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-3)


def test_float8_rounds_weights_to_a_sixteenth() -> None:
    """Three bits of mantissa: each weight is off by at most 1/16 of itself, or a step of the smallest."""
    weights = weights_of(normal(8, 16, 3, 3, 3))
    small = to_float8(weights, 4.0)
    assert small.matrix.dtype == FP8
    assert small.scale is not None
    back = small.matrix.float() * small.scale[:, None] * 4
    step = weights.matrix.abs().amax(1, keepdim=True) / 448 * 2**-9
    assert ((back - weights.matrix).abs() <= weights.matrix.abs() / 16 + step).all()


CASES = {
    "96": (96, 96, (3, 3, 3), 1),
    "32 to 3": (32, 3, (3, 3, 3), 1),
    "64 to 192": (64, 192, (3, 3, 3), 1),
    "96 in pairs": (96, 96, (3, 3, 4), 1),
    "32 in pairs to 48": (32, 48, (1, 3, 4), 1),
    "in time": (32, 64, (3, 1, 1), 1),
    "double": (64, 32, (1, 2, 2), 1),
    "double two frames": (32, 96, (1, 2, 2), 2),
    "double two frames of no power of two": (96, 24, (1, 2, 2), 2),
    "160 to 48": (160, 48, (1, 3, 3), 1),
}


@pytest.mark.gpu
@kernels
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, FP8])
def test_convolve(case: str, dtype: torch.dtype) -> None:
    from dummyforcing.kernels import conv_triton

    if INTERPRETED and dtype == torch.bfloat16:
        return  # the interpreter multiplies its bits as integers
    channels, n, kernel, frames = CASES[case]
    copies = 4 if kernel[1] == 2 else 1
    taps = kernel[0] * kernel[1] * kernel[2]
    x = with_margin(normal(2, 1 + kernel[0], 5, 26, channels * frames).to(dtype))
    weights = Weights(normal(copies * n, taps * channels, seed=1), kernel)
    if kernel[2] == 4:
        matrix = normal(n, taps * channels * 3 // 4, seed=1)
        weights = in_pairs(Weights(matrix, (kernel[0], 3, 3)))
    if dtype == FP8:
        weights = to_float8(weights, 2.0)._replace(scale=normal(n, seed=5))
    else:
        weights = weights._replace(matrix=weights.matrix.to(dtype))
    expected = reference_convolve(x, weights, torch.float32, frames=frames)
    bias, residual = (None, None) if channels == 64 else (normal(n, seed=2), normal(*expected.shape, seed=3))
    for part in (bias, residual):
        expected = expected if part is None else expected + part
    ours = conv_triton.convolve(x, *weights, torch.bfloat16, bias, residual, frames)
    assert ours.shape == expected.shape
    # The tensor cores add up float8 with fewer bits than float32.
    assert relative(ours, expected) < 4e-3


@pytest.mark.gpu
@kernels
@pytest.mark.parametrize("case", ["96 in pairs", "32 in pairs to 48", "64 to 192"])
@pytest.mark.parametrize("dtype", [torch.float16, FP8])
def test_convolve_norm(case: str, dtype: torch.dtype) -> None:
    """All of what is written, margins and what is beside it included."""
    from dummyforcing.kernels import conv_triton

    channels, n, kernel, _ = CASES[case]
    x = with_margin(normal(2, 1 + kernel[0], 5, 26, channels).to(dtype))
    matrix = normal(n, kernel[0] * kernel[1] * 3 * channels, seed=1) / 16
    weights = Weights(matrix, (kernel[0], kernel[1], 3))
    weights = to_float8(weights, 2.0) if dtype == FP8 else weights._replace(matrix=matrix.to(dtype))
    weights = in_pairs(weights) if kernel[2] == 4 else weights
    bias, gamma = normal(n, seed=2), normal(n, seed=3)
    total = reference_convolve(x, weights, torch.float32, bias)
    expected, ours = (torch.full((2, 4, 6, 28, n), 9.0, device=DEVICE, dtype=torch.float16) for _ in range(2))
    reference_add_norm(total, None, None, expected[:, 2:], gamma=gamma, silu=True, gain=4.0)
    conv_triton.convolve_norm(x, *weights, bias, gamma, 4.0, ours[:, 2:])
    assert relative(ours, expected) < 4e-3
    torch.testing.assert_close(ours[:, :2], expected[:, :2], atol=0, rtol=0)
    assert torch.equal(ours == 0, expected == 0)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
@pytest.mark.skipif(torch.cuda.is_available() or INTERPRETED, reason="the kernels run here")
def test_in_the_interpreter() -> None:
    assert "skipped" not in run_interpreted(__file__, "-k", "test_convolve or test_sum_neighbors")
