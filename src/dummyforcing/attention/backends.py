"""Attention kernels: every backend is a function, and a row of `BACKENDS`.

`research/benchmarks/attention.py` compares them in the shapes of this method. On an H200 FlashAttention-4
beats cuDNN, and cuDNN beats one launch over heads of all lengths in Triton; so the first of `flash4` and
`cudnn` that is there is the default on such a GPU. `fp8` is faster still, and an option, for its error.
"""

import logging
from functools import cache
from importlib.util import find_spec
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dummyforcing.errors import BadRequest
from dummyforcing.kernels.constants import FP8, FP8_MAX

logger = logging.getLogger(__name__)


class Kernel(Protocol):
    """Attention without a mask."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor | None = None) -> Tensor:
        """Attend from `q (B, L, H, D)` to `k` and `v (B, S, H, D)`; any strides but contiguous channels.

        Returns:
            `out`, or a new tensor like it, `(B, L, H, D)`.
        """


class PartKernel(Protocol):
    """Attention without a mask to some of the keys, which can be merged with that to the others."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Attend from `q (B, L, H, D)` to `k` and `v (B, S, H, D)`.

        Returns:
            The result, `(B, L, H, D)`, and the logarithm of each row's summed exponentials, `(B, H, L)`
            float32.
        """


FP8_OUT_SCALE = 16.0
"""What float8 outputs are multiplied with: they are means of values, hence small, and float8 ends at 2^-9."""


def reference(q: Tensor, k: Tensor, v: Tensor, out: Tensor | None = None) -> Tensor:
    """Softmax attention written out, in float64."""
    q64, k64, v64 = (t.double().transpose(1, 2) for t in (q, k, v))
    weights = torch.softmax(q64 @ k64.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)
    return _into(out, (weights @ v64).transpose(1, 2).to(v.dtype))


def reference_part(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`reference` with the logarithm of the summed exponentials."""
    logits = torch.einsum("blhd,bshd->bhls", q.double(), k.double()) * q.shape[-1] ** -0.5
    return reference(q, k, v), logits.logsumexp(-1).float()


def sdpa(q: Tensor, k: Tensor, v: Tensor, out: Tensor | None = None) -> Tensor:
    """PyTorch's fused attention, whichever kernel it prefers."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return _into(out, F.scaled_dot_product_attention(q, k, v).transpose(1, 2))


def cudnn(q: Tensor, k: Tensor, v: Tensor, out: Tensor | None = None) -> Tensor:
    """CuDNN's attention through PyTorch, which by itself would take the slower FlashAttention-2."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return sdpa(q, k, v, out)


def cudnn_part(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`cudnn` with the logarithm of the summed exponentials."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)
    return out.transpose(1, 2), lse.view(q.shape[:3])


def flash4(q: Tensor, k: Tensor, v: Tensor, out: Tensor | None = None) -> Tensor:
    """FlashAttention-4 (package `flash-attn-4`)."""
    from flash_attn.cute.interface import _flash_attn_fwd

    result: Tensor = _flash_attn_fwd(q, k, v, out=out)[0]
    return result


def flash4_part(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`flash4` with the logarithm of the summed exponentials."""
    from flash_attn.cute.interface import _flash_attn_fwd

    out, lse, *_ = _flash_attn_fwd(q, k, v, return_lse=True)
    return out, lse


def fp8(q: Tensor, k: Tensor, v: Tensor, out: Tensor | None = None) -> Tensor:
    """CuDNN's float8 attention (package `nvidia-cudnn-frontend`), its definition on other devices.

    All tensors are float8_e4m3fn; the result comes times `FP8_OUT_SCALE`.
    """
    if not q.is_cuda:
        return _into(out, (sdpa(q.float(), k.float(), v.float()) * FP8_OUT_SCALE).to(FP8))
    from dummyforcing.kernels.cudnn_fp8 import attention

    out = torch.empty_like(q) if out is None else out
    attention(q, k, v, out, FP8_MAX, FP8_OUT_SCALE)  # weights lie in [0, 1]
    return out


def _into(out: Tensor | None, result: Tensor) -> Tensor:
    return result if out is None else out.copy_(result)


BACKENDS: dict[str, Kernel] = {
    "reference": reference,
    "sdpa": sdpa,
    "cudnn": cudnn,
    "flash4": flash4,
    "fp8": fp8,
}
FASTEST = ("fp8", "flash4", "cudnn", "sdpa")
"""The backends by speed, those for tests left out."""
PART_KERNELS: dict[str, PartKernel] = {
    "reference": reference_part,
    "cudnn": cudnn_part,
    "flash4": flash4_part,
}
"""Of the backends that can attend to parts of the keys."""


@cache
def default_backend(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """The fastest backend that is there.

    Args:
        device: Where the attention runs.
        dtype: Of queries, keys and values.
        head_dim: Channels of one head.
    """
    backend = next(name for name in FASTEST if why_not(name, device, dtype, head_dim) is None)
    logger.info("attention backend %s on %s in %s", backend, device, str(dtype).removeprefix("torch."))
    return backend


def why_not(backend: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Tell what keeps a backend from being used; None: nothing.

    Args:
        backend: A name of `BACKENDS`.
        device: Where the attention runs.
        dtype: Of queries, keys and values.
        head_dim: Channels of one head.
    """
    if (dtype == FP8) != (backend == "fp8"):
        return "float8 has a backend of its own"
    if backend in ("reference", "sdpa", "fp8"):
        return None
    if device.type != "cuda":
        return "it needs a GPU"
    if dtype not in (torch.bfloat16, torch.float16):
        return "it needs bfloat16 or float16"
    if head_dim % 8 or head_dim > 128:
        return f"it has no kernel for heads of {head_dim} channels"
    needed = (9, 0) if backend == "flash4" else (8, 0)
    if torch.cuda.get_device_capability(device) < needed:
        return f"it needs compute capability {needed[0]}.{needed[1]}"
    return _why_no_flash4() if backend == "flash4" else None


@cache
def _why_no_flash4() -> str | None:
    """Why it cannot be imported: other versions of the package have a part of it, or lack what it needs."""
    try:
        import flash_attn.cute.interface  # noqa: F401
    except Exception as error:  # what its compiler raises where it finds no GPU or driver that it knows
        return f"package flash-attn-4 cannot be imported ({type(error).__name__}: {error})"
    return None


def require(backend: str) -> None:
    """Refuse a backend whose package is not installed.

    Raises:
        BadRequest: If it is missing.
    """
    package = {"flash4": ("flash_attn", "flash-attn-4"), "fp8": ("cudnn", "nvidia-cudnn-frontend")}.get(
        backend
    )
    if package and not find_spec(package[0]):
        raise BadRequest(f"Attention backend '{backend}' needs a package", f"pip install {package[1]}")
