"""Optimisation for `train_tiny.py`: Muon for matrices and convolutions, AdamW else, on any number of GPUs.

Source of Muon: Keller Jordan, https://kellerjordan.github.io/posts/muon/; the update's scale follows "Muon is
Scalable for LLM Training" (arXiv:2502.16982), so that both optimisers share one learning rate.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from research.training.run import Run, Span

T = TypeVar("T")


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration towards the nearest orthogonal matrices, `(n, a, b)`; on GPUs in bfloat16."""
    x: Tensor = matrices.bfloat16() if matrices.is_cuda else matrices
    if tall := x.shape[1] > x.shape[2]:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


class Optimizer:
    """Steps all parameters of some modules; gradients live in one flat buffer, averaged over processes.

    Nothing is read back from the device, so a step can be recorded in a CUDA graph: set `rate` before it.
    """

    def __init__(self, modules: list[nn.Module], lr: float, matrices: set[int], weight_decay: float = 0.01):
        params = [p for module in modules for p in module.parameters() if p.requires_grad]
        self.lr, self.weight_decay = lr, weight_decay
        device = params[0].device
        self.rate = torch.zeros((), device=device)
        """Of the learning rate, now; a scalar on the device."""
        self.buffer = torch.zeros(sum(p.numel() for p in params), device=device)
        offset = 0
        for p in params:
            p.grad = self.buffer.as_strided(p.shape, p.stride(), offset)
            offset += p.numel()
        groups: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for p in params:
            if id(p) in matrices:
                groups[p.shape].append(p)
        self.groups = [
            (g, torch.zeros(len(g), len(g[0]), g[0].numel() // len(g[0]), device=device))
            for g in groups.values()
        ]
        rest = [p for p in params if id(p) not in matrices]
        self.adam = torch.optim.AdamW(
            rest, lr=torch.zeros((), device=device), betas=(0.9, 0.95), weight_decay=0.0, eps=1e-10,
            fused=rest[0].is_cuda, capturable=rest[0].is_cuda,
        )  # fmt: skip

    @torch.no_grad()
    def step(self) -> None:
        """Average gradients over processes, update with `rate * lr`, clear the gradients."""
        if dist.is_initialized():
            dist.all_reduce(self.buffer)
            self.buffer.div_(dist.get_world_size())
        norm = self.buffer.norm()
        self.buffer.mul_((1.0 / norm.clamp(min=1.0)).nan_to_num(0.0)).nan_to_num_(0.0)
        rate = self.lr * self.rate
        self.adam.param_groups[0]["lr"].copy_(0.5 * rate)
        self.adam.step()
        for params, momentum in self.groups:
            grad = torch.stack([p.grad.flatten(1) for p in params])  # type: ignore[union-attr]
            momentum.mul_(0.95).add_(grad)
            update = orthogonalize(grad + 0.95 * momentum).float()
            update = update * (-rate * 0.2 * max(momentum.shape[1:]) ** 0.5)
            torch._foreach_mul_(params, 1 - rate * self.weight_decay)
            torch._foreach_add_(params, [u.view(p.shape) for p, u in zip(params, update, strict=True)])
        self.buffer.zero_()


class Recorder:
    """Records work on fixed tensors as CUDA graphs: replaying them saves thousands of launches.

    All graphs of a recorder share their memory, so what one leaves on the device is gone after the next. On a
    CPU the work is done as it is.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.pool = torch.cuda.graph_pool_handle() if self.on_gpu else None

    def __call__(self, work: Callable[[], T]) -> Callable[[], T]:
        """The same work, recorded."""
        if not self.on_gpu:
            return work
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                work()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            out = work()
        return Recorded(graph, work, out).replay


@dataclass(frozen=True)
class Recorded(Generic[T]):
    """A recorded piece of work, and the work itself: the graph reads its tensors and does not keep them."""

    graph: torch.cuda.CUDAGraph
    work: Callable[[], T]
    out: T

    def replay(self) -> T:
        """Do it once more; what it gives is in the same place every time."""
        self.graph.replay()
        return self.out


def timed_steps(run: Run, span: Span, decay: float = 0.4) -> Iterator[tuple[int, float, float]]:
    """Count steps until the time is up; yields `(step, rate, progress)`.

    Progress is that of the stage's schedule, which several calls may share. The rate is 1 and falls to 0 over
    its last part. It rises at the beginning of each call, as no optimiser keeps its state from call to call:
    that costs a hundredth of the steps, and averages over the last 20 steps are soon what they were.

    All processes agree on the progress (the slowest one's clock counts).

    Args:
        run: Its limit may shorten the span.
        span: Time and part of the schedule.
        decay: Share of the whole schedule in which the rate falls.
    """
    seconds, start, step, over = run.within(span.seconds), time.monotonic(), 0, 0.0
    while over < 1.0:
        progress = span.begin + (span.end - span.begin) * over
        yield step, min(1.0, (over + 1e-3) / 0.02, (1.0 - progress) / decay), progress
        step += 1
        if step % 10 == 0 or seconds < 5:
            if run.device.type == "cuda":
                torch.cuda.synchronize()  # else a thousand recorded steps would be asked for ahead of time
            over = (time.monotonic() - start) / seconds
            if dist.is_initialized():
                shared = torch.tensor(over, device=run.device)
                dist.all_reduce(shared, op=dist.ReduceOp.MAX)
                over = shared.item()
