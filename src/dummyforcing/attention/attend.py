"""Attention of the current chunk to what its heads may see: the only place where a kernel is chosen.

`research/benchmarks/attention.py` compares them in the shapes of this method. On an H200 FlashAttention-4
beats cuDNN, and cuDNN beats one launch over heads of all lengths in Triton; so the first of `flash4` and
`cudnn` that is there is the default on such a GPU. `fp8` is faster still, and an option, for its error.

A few heads with a long past would keep a few processors of a GPU busy while all others wait. So their keys
are cut into parts that are attended to side by side, and the parts' results are merged (`attend_parts`).
"""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dummyforcing.cache.head_group import Segment
from dummyforcing.errors import UserError
from dummyforcing.kernels.ops import FP8, FP8_MAX, merge_parts


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
PART_KERNELS: dict[str, PartKernel] = {
    "reference": reference_part,
    "cudnn": cudnn_part,
    "flash4": flash4_part,
}
"""Of the backends that can attend to parts of the keys."""

ROWS = 128
"""Queries that one processor of a GPU takes at a time."""
LEAST_KEYS = 4096
"""No part has fewer keys: what is gained by more of them goes into merging."""


@cache
def default_backend(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """The fastest backend that is there.

    Args:
        device: Where the attention runs.
        dtype: Of queries, keys and values.
        head_dim: Channels of one head.
    """
    if dtype == FP8:
        return "fp8"
    if (
        device.type != "cuda"
        or dtype not in (torch.bfloat16, torch.float16)
        or head_dim % 8
        or head_dim > 128
    ):
        return "sdpa"
    capability = torch.cuda.get_device_capability(device)
    if capability >= (9, 0) and _has_flash4():
        return "flash4"
    return "cudnn" if capability >= (8, 0) else "sdpa"


def _has_flash4() -> bool:
    """Whether it can be imported: other versions of the package have a part of it, or lack what it needs."""
    try:
        import flash_attn.cute.interface  # noqa: F401
    except Exception:  # what its compiler raises where it finds no GPU or driver that it knows
        return False
    return True


def attend(q: Tensor, segments: Sequence[Segment], backend: str | None = None) -> Tensor:
    """Let every head attend to its segment.

    Args:
        q: Queries of the current chunk, RoPE applied, `(B, L, H, D)`.
        segments: From the cache; together they hold every head of every sample once.
        backend: A name of `BACKENDS`; None: the fastest that is there.

    Returns:
        `(B, L, H, D)`, in the dtype of `q`.
    """
    kernel = BACKENDS[backend or default_backend(q.device, q.dtype, q.shape[-1])]
    if segments[0].is_whole:
        return kernel(q, *_as(q, segments[0]))
    out = torch.empty_like(q)
    for segment in segments:
        segment.scatter(out, kernel(segment.select(q), *_as(q, segment)))
    return out


def _as(q: Tensor, segment: Segment) -> tuple[Tensor, Tensor]:
    """Keys and values in the dtype of the queries: a float8 cache serves wider ones, too."""
    return segment.k.to(q.dtype), segment.v.to(q.dtype)


def attend_grouped(q: Tensor, segments: Sequence[Segment], out: Tensor, backend: str) -> None:
    """`attend` for queries whose heads stand in the order of the segments: nothing is copied.

    Args:
        q: `(B, L, H, D)`, heads grouped by segment.
        segments: Of whole batches.
        out: Receives the result, likewise grouped.
        backend: A name of `BACKENDS`.
    """
    first, groups = 0, []
    for segment in segments:
        heads = slice(first, first + segment.k.shape[2])
        groups.append((q[:, :, heads], segment.k, segment.v, out[:, :, heads]))
        first = heads.stop
    groups.sort(key=lambda group: -group[1].shape[1])  # the longest first: what is short fills the gaps
    if not q.is_cuda:
        for group in groups:
            BACKENDS[backend](*group)
        return
    parts = [1] * len(groups)
    if backend in PART_KERNELS and len(q) == 1:
        shapes = tuple((k.shape[1], k.shape[2]) for _, k, _, _ in groups)
        parts = choose_parts(q.shape[1], shapes, _processors(q.device))
    # Side by side: a few heads alone leave most of the GPU idle.
    main = torch.cuda.current_stream(q.device)
    streams = [main, *(_side_stream(q.device, number) for number in range(len(groups) - 1))][::-1]
    for stream, group, count in zip(streams, groups, parts, strict=True):
        if stream != main:
            stream.wait_stream(main)
        with torch.cuda.stream(stream):
            if count > 1:
                attend_parts(*group, PART_KERNELS[backend], count)
            else:
                BACKENDS[backend](*group)
    for stream in streams[:-1]:
        main.wait_stream(stream)


@cache
def choose_parts(length: int, shapes: tuple[tuple[int, int], ...], processors: int) -> list[int]:
    """Tell into how many parts to cut the keys of groups of heads that attend side by side on a GPU.

    No part should take longer than half of the time that all the work takes if it is spread evenly, so that
    the parts find their gaps. Only few heads with many keys exceed that.

    Args:
        length: Queries.
        shapes: Keys and heads of each group.
        processors: Of the GPU.

    Returns:
        A number for each group that divides its keys evenly; 1: they stay whole.
    """
    tiles = -(-length // ROWS)
    even = sum(keys * heads for keys, heads in shapes) * tiles / processors
    found = []
    for keys, _ in shapes:
        choice = [n for n in range(1, max(1, keys // LEAST_KEYS) + 1) if keys % n == 0]
        found.append(next((n for n in choice if n >= 2 * keys / even), choice[-1]))
    return found


def attend_parts(q: Tensor, k: Tensor, v: Tensor, out: Tensor, kernel: PartKernel, parts: int) -> None:
    """Attend to parts of the keys side by side, as samples of a batch, and merge the results: exact.

    Args:
        q: `(1, L, H, D)`.
        k: `(1, S, H, D)`.
        v: Likewise.
        out: Receives the result, like `q`.
        kernel: Attends to a part.
        parts: Divides `S`.

    Source: Flash-Decoding (https://pytorch.org/blog/flash-decoding).
    """
    keys, values = (t[0].view(parts, -1, *t.shape[2:]) for t in (k, v))
    merge_parts(*kernel(q.repeat(parts, 1, 1, 1), keys, values), out[0])


def require(backend: str) -> None:
    """Refuse a backend whose package is not installed.

    Raises:
        UserError: If it is missing.
    """
    package = {"flash4": ("flash_attn", "flash-attn-4"), "fp8": ("cudnn", "nvidia-cudnn-frontend")}.get(
        backend
    )
    if package and not find_spec(package[0]):
        raise UserError(f"Attention backend '{backend}' needs a package: pip install {package[1]}.")


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def _side_stream(device: torch.device, number: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
