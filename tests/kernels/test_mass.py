"""The kernel of attention mass against a softmax in float64: on a GPU, else in Triton's interpreter."""

import importlib.util

import pytest
import torch
from torch import Tensor

from dummyforcing.kernels.constants import FP8
from dummyforcing.kernels.mass import log_mass
from tests.interpreter import INTERPRETED, run_interpreted

HAS_TRITON = importlib.util.find_spec("triton") is not None
DEVICE = "cpu" if INTERPRETED or not torch.cuda.is_available() else "cuda"


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.mark.gpu
@pytest.mark.skipif(
    not HAS_TRITON or not (INTERPRETED or torch.cuda.is_available()), reason="there is no GPU"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, FP8])
@pytest.mark.parametrize("width", [8, 64])
def test_the_kernel(dtype: torch.dtype, width: int) -> None:
    from dummyforcing.kernels import mass_triton

    if INTERPRETED and dtype == torch.bfloat16:
        return  # the interpreter multiplies its bits as integers
    q = (4 * normal(2, 70, 3, width)).to(dtype)
    k = (4 * normal(2, 5 * 150, 4, width, seed=1)).to(dtype)[:, :, 1:]  # not contiguous
    logits = torch.einsum("brhd,bshd->bhrs", q.double(), k.double()) * width**-0.5
    expected = logits.unflatten(-1, (5, 150)).logsumexp(-1)
    ours = mass_triton.log_mass(q, k, 5)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected.float(), atol=1e-4, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu_logits_are_held_nowhere() -> None:
    q, k = normal(1, 256, 4, 64).bfloat16(), normal(1, 8 * 1000, 4, 64, seed=1).bfloat16()
    log_mass(q, k, 8)
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    log_mass(q, k, 8)
    assert torch.cuda.max_memory_allocated() - held < 2**20


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
@pytest.mark.skipif(torch.cuda.is_available() or INTERPRETED, reason="the kernels run here")
def test_in_the_interpreter() -> None:
    assert "skipped" not in run_interpreted(__file__, "-k", "test_the_kernel")
