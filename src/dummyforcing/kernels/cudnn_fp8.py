"""cuDNN's float8 attention, which PyTorch has no call for: one cuDNN graph per shape, built once."""

from functools import cache
from typing import Any

import cudnn
import torch
from torch import Tensor


class _Plan:
    """A built cuDNN graph for one shape."""

    def __init__(self, handle: Any, shapes: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]) -> None:
        fp8, fp32 = cudnn.data_type.FP8_E4M3, cudnn.data_type.FLOAT
        self.graph = cudnn.pygraph(
            handle=handle, io_data_type=fp8, intermediate_data_type=fp32, compute_data_type=fp32
        )
        q, k, v = (
            self.graph.tensor(dim=list(size), stride=list(stride), data_type=fp8)
            for size, stride in shapes[:3]
        )
        scales = {
            name: self.graph.tensor(dim=[1, 1, 1, 1], stride=[1, 1, 1, 1], data_type=fp32)
            for name in ("descale_q", "descale_k", "descale_v", "descale_s", "scale_s", "scale_o")
        }
        out, _, *peaks = self.graph.sdpa_fp8(
            q=q, k=k, v=v, **scales, generate_stats=False, attn_scale=shapes[0][0][-1] ** -0.5
        )
        size, stride = shapes[3]
        out.set_output(True).set_dim(list(size)).set_stride(list(stride)).set_data_type(fp8)
        for peak in peaks:  # the largest weight and output, which cuDNN reports for delayed scaling
            peak.set_output(True).set_dim([1, 1, 1, 1]).set_stride([1, 1, 1, 1]).set_data_type(fp32)
        self.graph.validate()
        self.graph.build_operation_graph()
        self.graph.create_execution_plans([cudnn.heur_mode.A])
        self.graph.check_support()
        self.graph.build_plans()
        self.tensors, self.scales, self.peaks = (q, k, v, out), scales, peaks


@cache
def _plan(device: torch.device, shapes: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]) -> _Plan:
    return _Plan(_handle(device), shapes)


@cache
def _handle(device: torch.device) -> Any:
    with torch.cuda.device(device):
        return cudnn.create_handle()


@cache
def _constant(device: torch.device, value: float) -> Tensor:
    return torch.full((1, 1, 1, 1), value, device=device)


def attention(q: Tensor, k: Tensor, v: Tensor, out: Tensor, weight_scale: float, out_scale: float) -> None:
    """Softmax attention without a mask, in float8_e4m3fn.

    Args:
        q: Queries, `(B, L, H, D)`, contiguous channels.
        k: Keys, `(B, S, H, D)`.
        v: Values, likewise.
        out: Receives the result times `out_scale`, like `q`.
        weight_scale: What attention weights are multiplied with before they become float8.
        out_scale: What outputs are multiplied with.
    """
    tensors = [t.transpose(1, 2) for t in (q, k, v, out)]
    plan = _plan(q.device, tuple((tuple(t.shape), t.stride()) for t in tensors))
    pack: dict[Any, Tensor] = dict(zip(plan.tensors, tensors, strict=True))
    values = {"descale_s": 1 / weight_scale, "scale_s": weight_scale, "scale_o": out_scale}
    for name, tensor in plan.scales.items():
        pack[tensor] = _constant(q.device, values.get(name, 1.0))
    for peak in plan.peaks:
        pack[peak] = torch.empty(1, 1, 1, 1, device=q.device)
    workspace = torch.empty(max(1, plan.graph.get_workspace_size()), dtype=torch.uint8, device=q.device)
    handle = _handle(q.device)
    cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream(q.device).cuda_stream)
    plan.graph.execute(pack, workspace, handle=handle)
