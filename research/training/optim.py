"""Optimisation for `train_tiny.py`: Muon for matrices and convolutions, AdamW else, on any number of GPUs.

Source of Muon: Keller Jordan, https://kellerjordan.github.io/posts/muon/; the update's scale follows "Muon is
Scalable for LLM Training" (arXiv:2502.16982), so that both optimisers share one learning rate.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration towards the nearest orthogonal matrices, `(n, a, b)`, in bfloat16."""
    x: Tensor = matrices.bfloat16()
    if tall := x.shape[1] > x.shape[2]:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


class Optimizer:
    """Steps all parameters of some modules; gradients live in one flat buffer, averaged over processes."""

    def __init__(self, modules: list[nn.Module], lr: float, matrices: set[int], weight_decay: float = 0.01):
        params = [p for module in modules for p in module.parameters() if p.requires_grad]
        self.lr, self.weight_decay = lr, weight_decay
        self.buffer = torch.zeros(sum(p.numel() for p in params), device=params[0].device)
        offset = 0
        for p in params:
            p.grad = self.buffer.as_strided(p.shape, p.stride(), offset)
            offset += p.numel()
        groups: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for p in params:
            if id(p) in matrices:
                groups[p.shape].append(p)
        self.groups = [
            (g, torch.zeros(len(g), len(g[0]), g[0].numel() // len(g[0]), device=g[0].device))
            for g in groups.values()
        ]
        rest = [p for p in params if id(p) not in matrices]
        self.adam = torch.optim.AdamW(
            rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=rest[0].is_cuda, eps=1e-10
        )

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Average gradients over processes, update with `rate * lr`, clear the gradients."""
        if dist.is_initialized():
            dist.all_reduce(self.buffer, op=dist.ReduceOp.AVG)
        norm = self.buffer.norm()
        self.buffer.mul_((1.0 / norm.clamp(min=1.0)).nan_to_num(0.0)).nan_to_num_(0.0)
        self.adam.param_groups[0]["lr"] = 0.5 * self.lr * rate
        self.adam.step()
        for params, momentum in self.groups:
            grad = torch.stack([p.grad.flatten(1) for p in params])  # type: ignore[union-attr]
            momentum.mul_(0.95).add_(grad)
            update = orthogonalize(grad + 0.95 * momentum).float()
            scale = self.lr * rate * 0.2 * max(momentum.shape[1:]) ** 0.5
            torch._foreach_mul_(params, 1 - self.lr * rate * self.weight_decay)
            for p, u in zip(params, update, strict=True):
                p.add_(u.view(p.shape), alpha=-scale)
        self.buffer.zero_()


def graphed(work: Callable[[], T]) -> Callable[[], T]:
    """Record work on fixed tensors as a CUDA graph; replaying it saves thousands of launches."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        out = work()

    def replay() -> T:
        graph.replay()
        return out

    return replay


def timed_steps(
    seconds: float, warmup: float = 0.02, decay: float = 0.4, device: torch.device | None = None
) -> Iterator[tuple[int, float]]:
    """Count steps until the time is up; yields `(step, rate)`, rate rises, stays at 1 and falls to 0.

    All processes agree on the progress (the slowest one's clock counts).
    """
    start, step, progress = time.monotonic(), 0, 0.0
    while progress < 1.0:
        yield step, min(1.0, (progress + 1e-3) / warmup, max(0.0, 1.0 - progress) / decay)
        step += 1
        if step % 10 == 0 or seconds < 5:
            progress = (time.monotonic() - start) / seconds
            if dist.is_initialized():
                shared = torch.tensor(progress, device=device)
                dist.all_reduce(shared, op=dist.ReduceOp.MAX)
                progress = shared.item()
