"""Compare ways to let heads with contexts of two lengths attend, in the shapes of Dummy Forcing. Needs a GPU.

python -m research.benchmarks.attention --output benchmarks/results/attention.json

A layer has so many packed heads (one past frame and the chunk) and so many neighbor heads, which see 6
frames, or 120 as under policy `long`. Each way runs 20 layers in a CUDA graph, over four sets of inputs in
turn so that they don't stay in the caches; times are medians of replays. Ways whose package is missing are
left out.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch
import triton
import triton.language as tl
from torch import Tensor

from dummyforcing.attention.attend import attend_side_by_side
from dummyforcing.attention.backends import BACKENDS, FP8_OUT_SCALE
from dummyforcing.evaluation.results import write_results
from dummyforcing.kernels.constants import FP8
from dummyforcing.pipeline.devices import choose_device

TOKENS = {"480p": 1560, "720p": 3600, "1080p": 8160}
"""Of one latent frame."""
LAYERS = ((9, 3, 6), (11, 1, 6), (6, 6, 6), (11, 1, 120), (10, 2, 120))
"""Packed heads, neighbor heads, and the frames that the latter see."""
CHUNK, WIDTH, SETS, INNER = 3, 128, 4, 20

Way = Callable[[int], None]
"""Attends with the inputs of one set."""


class Layer:
    """Random inputs: queries side by side, keys and values of either group of heads."""

    coarse: list[Tensor]
    """Results in float8, one per set."""
    ragged: Tensor
    """Result of heads that are sequences."""

    def __init__(self, tokens: int, packed: int, neighbor: int, frames: int, device: torch.device) -> None:
        self.groups = [(neighbor, frames * tokens), (packed, 4 * tokens)]
        self.length, self.heads = CHUNK * tokens, packed + neighbor
        draw = partial(torch.randn, device=device, dtype=torch.bfloat16)
        self.q = [draw(1, self.length, self.heads, WIDTH) for _ in range(SETS)]
        self.out = [torch.empty_like(q) for q in self.q]
        self.kv = [
            [(draw(1, keys, heads, WIDTH), draw(1, keys, heads, WIDTH)) for heads, keys in self.groups]
            for _ in range(SETS)
        ]
        self.flops = sum(4 * heads * self.length * keys * WIDTH for heads, keys in self.groups)

    def parts(self, number: int) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Queries, keys, values and result of either group, the longer one first."""
        first, found = 0, []
        for (heads, _), (k, v) in zip(self.groups, self.kv[number], strict=True):
            cut = slice(first, first + heads)
            found.append((self.q[number][:, :, cut], k, v, self.out[number][:, :, cut]))
            first += heads
        return found


def one_by_one(layer: Layer, backend: str) -> Way:
    """A call for each group."""

    def way(number: int) -> None:
        for part in layer.parts(number):
            BACKENDS[backend](*part)

    return way


def side_by_side(layer: Layer, backend: str) -> Way:
    """As the library does it: a stream for each group."""

    def way(number: int) -> None:
        attend_side_by_side(layer.parts(number), backend)

    return way


def float8(layer: Layer) -> Way:
    """As the library does it in float8."""
    coarse = Layer.__new__(Layer)
    coarse.__dict__ = {**layer.__dict__}
    to = partial(Tensor.to, dtype=FP8)
    coarse.q, coarse.out = [to(q) for q in layer.q], [to(q) for q in layer.q]
    coarse.kv = [[(to(k), to(v)) for k, v in groups] for groups in layer.kv]
    layer.coarse = coarse.out
    return side_by_side(coarse, "fp8")


def ragged_flash4(layer: Layer) -> Way:
    """One call of FlashAttention-4, each head a sequence of its own length."""
    from flash_attn.cute.interface import _flash_attn_fwd

    device = layer.q[0].device
    lengths = [keys for heads, keys in layer.groups for _ in range(heads)]
    starts = [
        torch.tensor(sizes, device=device).cumsum(0) for sizes in ([layer.length] * layer.heads, lengths)
    ]
    cu_q, cu_k = (torch.cat([s.new_zeros(1), s]).int() for s in starts)
    q = [q[0].transpose(0, 1).reshape(-1, 1, WIDTH) for q in layer.q]
    k, v = (
        [torch.cat([kv[i][0].transpose(0, 1).reshape(-1, 1, WIDTH) for kv in groups]) for groups in layer.kv]
        for i in range(2)
    )

    def way(number: int) -> None:
        options = {"max_seqlen_q": layer.length, "max_seqlen_k": max(lengths)}
        found = _flash_attn_fwd(
            q[number], k[number], v[number], cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, **options
        )[0]
        layer.ragged = found.view(layer.heads, layer.length, WIDTH).transpose(0, 1)[None]

    return way


@triton.jit  # type: ignore[untyped-decorator]
def _ragged_kernel(  # type: ignore[no-untyped-def]
    q, keys, values, strides, lengths, out, length, scale,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(length, ROWS)
    head, first = tl.program_id(0) // tiles, (tl.program_id(0) % tiles) * ROWS
    count, stride = tl.load(lengths + head).to(tl.int32), tl.load(strides + head)
    k = tl.load(keys + head).to(tl.pointer_type(tl.bfloat16))
    v = tl.load(values + head).to(tl.pointer_type(tl.bfloat16))
    k_tiles = tl.make_tensor_descriptor(k, [count, WIDTH], [stride, 1], [COLUMNS, WIDTH])
    v_tiles = tl.make_tensor_descriptor(v, [count, WIDTH], [stride, 1], [COLUMNS, WIDTH])
    rows, channel = first + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    place = head * WIDTH + rows[:, None] * (HEADS * WIDTH) + channel[None, :]
    queries = tl.load(q + place, mask=rows[:, None] < length, other=0.0)
    top = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    result = tl.zeros([ROWS, WIDTH], tl.float32)
    for start in tl.range(0, count, COLUMNS, num_stages=3):
        logits = tl.dot(queries, k_tiles.load([start, 0]).T) * scale
        if start + COLUMNS > count:
            logits = tl.where((start + tl.arange(0, COLUMNS))[None, :] < count, logits, -float("inf"))
        higher = tl.maximum(top, tl.max(logits, 1))
        weights = tl.exp2(logits - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(weights, 1)
        result = tl.dot(weights.to(tl.bfloat16), v_tiles.load([start, 0]), result * shrink[:, None])
        top = higher
    tl.store(out + place, (result / total[:, None]).to(tl.bfloat16), mask=rows[:, None] < length)


def ragged_triton(layer: Layer) -> Way:
    """One launch over all heads in Triton, the longest first."""
    device = layer.q[0].device
    triton.set_allocator(lambda size, *_: torch.empty(size, dtype=torch.int8, device=device))

    def table(number: int) -> list[Tensor]:
        groups = list(zip(layer.groups, layer.kv[number], strict=True))
        rows = [
            (k[:, :, head:].data_ptr(), v[:, :, head:].data_ptr(), k.stride(1), keys)
            for (heads, keys), (k, v) in groups
            for head in range(heads)
        ]
        return [torch.tensor(column, device=device) for column in zip(*rows, strict=True)]

    tables = [table(number) for number in range(SETS)]
    grid = (triton.cdiv(layer.length, 128) * layer.heads,)
    scale = WIDTH**-0.5 * 1.4426950408889634

    def way(number: int) -> None:
        _ragged_kernel[grid](
            layer.q[number], *tables[number], layer.out[number], layer.length, scale,
            layer.heads, WIDTH, 128, 64, num_warps=8,
        )  # fmt: skip

    return way


WAYS: dict[str, Callable[[Layer], Way]] = {
    "cudnn, one by one": partial(one_by_one, backend="cudnn"),
    "cudnn, side by side": partial(side_by_side, backend="cudnn"),
    "flash4, one by one": partial(one_by_one, backend="flash4"),
    "flash4, side by side": partial(side_by_side, backend="flash4"),
    "flash4, heads as sequences": ragged_flash4,
    "triton, one launch": ragged_triton,
    "sdpa, one by one": partial(one_by_one, backend="sdpa"),
    "fp8, side by side": float8,
}


def milliseconds(way: Way) -> float:
    """Of one layer."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(side):  # warm up
        for number in range(2):
            way(number)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    times: list[float] = []
    with torch.cuda.graph(graph):
        for number in range(INNER):
            way(number % SETS)
    for _ in range(6):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
        events[0].record()
        graph.replay()
        events[1].record()
        torch.cuda.synchronize()
        times.append(events[0].elapsed_time(events[1]) / INNER)
    return median(times[1:])


def result_of(layer: Layer, name: str) -> Tensor:
    """What a way wrote for the first set, float32."""
    if name.startswith("fp8"):
        return layer.coarse[0].float() / FP8_OUT_SCALE
    return (layer.ragged if name.endswith("sequences") else layer.out[0]).float()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=TOKENS, default=list(TOKENS))
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args(arguments)
    device = choose_device("cuda")
    rows = []
    for size in args.sizes:
        for packed, neighbor, frames in LAYERS if size == "480p" else LAYERS[:1]:
            layer = Layer(TOKENS[size], packed, neighbor, frames, device)
            one_by_one(layer, "sdpa")(0)
            truth = layer.out[0].float()
            for name, make in WAYS.items():
                shape = {"size": size, "packed": packed, "neighbor": neighbor, "frames": frames}
                row: dict[str, object] = {**shape, "way": name}
                try:
                    layer.out[0].fill_(float("nan"))
                    way = make(layer)
                    way(0)
                    found = result_of(layer, name)
                    row["error"] = float(f"{float((found - truth).norm() / truth.norm()):.3g}")
                    row["ms"] = float(f"{milliseconds(way):.4g}")
                    row["tflops"] = float(f"{layer.flops / row['ms'] / 1e9:.4g}")  # type: ignore[operator]
                except ImportError as error:
                    row["missing"] = str(error)
                rows.append(row)
                print(
                    *(f"{value!s:>26}" if key == "way" else value for key, value in row.items()), flush=True
                )
            del layer
            torch.cuda.empty_cache()
    write_results(args.output, {"chunk": CHUNK, "rows": rows}, device)


if __name__ == "__main__":
    main()
