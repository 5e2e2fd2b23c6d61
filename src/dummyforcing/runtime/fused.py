"""The fused transformer: that of `models/wan.py` in fewer, larger operations; the same function.

    fused = FusedWan(model)                  # once per model; fp8="linear" for float8 matrix products
    sampler = BlockSampler(model, ..., fused=fused)

What lies between two matrix products is one kernel (`kernels/ops.py`), and queries, keys and values are one
product whose result goes straight to where attention reads it. `FusedWan.transform` is the hot path; it
reads no value back from the GPU, so that `cuda_graphs.py` can capture it.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from dummyforcing.attention.backends import FP8_OUT_SCALE, cudnn, default_backend, require, sdpa
from dummyforcing.errors import BadRequest, NoSuchDevice
from dummyforcing.kernels.constants import FP8
from dummyforcing.kernels.ops import Rows, quantize_rows, residual_norm, rms_norm
from dummyforcing.models.wan import Block, CausalWan, TextKV

logger = logging.getLogger(__name__)

Fp8 = Literal["none", "vae", "linear", "all"]
"""What runs in float8: nothing, the decoder, the blocks' linear layers, too, or attention, too."""

LINEAR, CONVOLUTIONS = (8, 9), (9, 0)
"""The compute capability that float8 needs in linear layers, and in the decoder's convolutions."""


class Linear(NamedTuple):
    """A linear layer, in the model's dtype or in float8 with one scale per output channel."""

    weight: Tensor
    """`(N, K)`."""
    bias: Tensor
    """`(N,)`, in the model's dtype."""
    scale: Tensor | None = None
    """`(1, N)` float32, of a float8 weight."""

    def __call__(self, x: Tensor | Rows) -> Tensor:
        """Apply it to `x (M, K)`, of the weight's kind."""
        if self.scale is None:
            assert isinstance(x, Tensor)
            return F.linear(x, self.weight, self.bias)
        assert isinstance(x, Rows)
        if x.values.is_cuda:
            return torch._scaled_mm(
                x.values, self.weight.t(), x.scale, self.scale, self.bias, None, self.bias.dtype, True
            )
        product = x.values.float() @ self.weight.float().t() * x.scale * self.scale
        return (product + self.bias).to(self.bias.dtype)

    def gelu(self, x: Tensor | Rows) -> Tensor | Rows:
        """Apply it, then GELU (tanh); the result is of the kind of `x`."""
        if isinstance(x, Rows):
            return quantize_rows(self(x), gelu=True)
        if x.is_cuda:  # in the epilogue of the product; elsewhere this call means the other GELU
            return torch._addmm_activation(self.bias, x, self.weight.t(), use_gelu=True)
        return F.gelu(self(x), approximate="tanh")


@dataclass(frozen=True)
class FusedBlock:
    """The weights of one block; those that stay in the model's dtype are the model's own."""

    qkv: Linear
    gains: tuple[Tensor, Tensor]
    """Of the normalisation of queries and keys."""
    out: Linear
    norm3: tuple[Tensor, Tensor]
    """Gain and bias of the norm before cross-attention, each `(1, dim)`."""
    cross_q: Linear
    cross_gain: Tensor
    cross_out: Linear
    ffn: tuple[Linear, Linear]

    @property
    def fp8(self) -> bool:
        """Whether the linear layers are in float8."""
        return self.qkv.scale is not None


class Layer(NamedTuple):
    """What answers one layer's self-attention in a pass."""

    attend: Callable[[Tensor, FusedBlock, bool], Tensor | None]
    """`attend(qkv, block, kv_only)`: from queries, keys and values of the current tokens,
    `(B * L, 3 * H * D)`, to what they attend to, `(B, L, H, D)`; None with `kv_only`."""
    out: Linear
    """The output projection, for heads in the order in which they come."""


class FusedWan:
    """The blocks of a `CausalWan` for inference. It holds no state of any rollout."""

    def __init__(self, model: CausalWan, fp8: Fp8 = "none", keep: Collection[int] = ()) -> None:
        """Arrange the weights.

        Queries', keys' and values' weights of each layer become parts of one matrix, in the model, too, so
        that there is one copy; float8 weights come in addition to the model's.

        Args:
            model: On its device, in its dtype.
            fp8: What runs in float8 (e4m3), the decoder aside: weights with a scale per output channel,
                activations with a scale per token, attention unscaled (its queries and keys are normalised).
            keep: Blocks whose linear layers stay in the model's dtype, if they bear float8 badly.

        Raises:
            BadRequest: If there is no such mode, a GPU computes in another dtype than bfloat16, or a package
                is missing.
            NoSuchDevice: If the GPU has no float8.
        """
        weight = model.patch_embedding.weight
        require_fp8(fp8, weight)
        self.fp8, self.config = fp8, model.config
        self.attention_dtype = FP8 if fp8 == "all" else weight.dtype
        """Of queries, and of the cache's keys and values."""
        # Triton looks at the current device, not at that of tensors.
        with torch.cuda.device_of(weight):  # type: ignore[no-untyped-call]
            self.blocks = [
                self._arrange(block, fp8 in ("linear", "all") and number not in keep)  # type: ignore[arg-type]
                for number, block in enumerate(model.blocks)
            ]
        with torch.no_grad():
            base = torch.cat([block.modulation for block in model.blocks]).float()  # type: ignore[misc]
        base[:, [1, 4]] += 1  # scales are factors
        self.modulation = base[:, None]
        """What every block adds to the time embedding, `(layers, 1, 6, dim)` float32; 1 more for scales."""

    def _arrange(self, block: Block, fp8: bool) -> FusedBlock:
        attention, cross, ffn = block.self_attn, block.cross_attn, block.ffn
        parts = (attention.q, attention.k, attention.v)
        joined = _joined([part.weight.detach() for part in parts])
        for part, own in zip(parts, joined.chunk(3), strict=True):
            part.weight.data = own
        bias = torch.cat([part.bias.detach() for part in parts])
        linear = partial(_linear, fp8=fp8)
        return FusedBlock(
            linear(joined, bias),
            (attention.norm_q.weight.detach(), attention.norm_k.weight.detach()),
            linear(attention.o.weight, attention.o.bias),
            (block.norm3.weight.detach()[None], block.norm3.bias.detach()[None]),
            linear(cross.q.weight, cross.q.bias),
            cross.norm_q.weight.detach(),
            linear(cross.o.weight, cross.o.bias),
            (linear(ffn[0].weight, ffn[0].bias), linear(ffn[2].weight, ffn[2].bias)),  # type: ignore[arg-type]
        )

    def backend(self, device: torch.device) -> str:
        """The attention backend for self-attention."""
        return default_backend(device, self.attention_dtype, self.config.head_dim)

    def transform(
        self,
        x: Tensor,
        modulation: Tensor,
        text: TextKV,
        layers: Sequence[Layer],
        frames: int,
        kv_only: bool = False,
    ) -> None:
        """Run all blocks.

        Args:
            x: Tokens, `(B, L, dim)`, contiguous; becomes the residual stream after the last block.
            modulation: Time embedding of the frames with `self.modulation` added, `(layers, F or 1, 6, dim)`.
            text: Cross-attention keys and values, per block.
            layers: What answers the self-attention, per block.
            frames: How many the tokens are of.
            kv_only: Stop when the last keys and values are in the cache (the commit pass).
        """
        heads, eps = self.config.num_heads, self.config.eps
        batch, length, dim = x.shape
        flat, shape = x.view(-1, dim), (batch, length, heads, dim // heads)
        tokens = length // frames

        def then(
            delta: Tensor | None,
            gate: Tensor | None,
            norm: tuple[Tensor, Tensor] | None,
            reader: FusedBlock,
        ) -> Tensor | Rows:
            y = residual_norm(flat, delta, gate, norm, tokens=tokens, eps=eps, fp8=reader.fp8)
            return flat if y is None else y

        # FlashAttention-4 is slower than cuDNN where there are few keys.
        text_attention = cudnn if x.is_cuda and x.dtype != torch.float32 else sdpa
        y = then(None, None, (modulation[0, :, 1], modulation[0, :, 0]), self.blocks[0])
        for number, (block, layer, now) in enumerate(zip(self.blocks, layers, modulation, strict=True)):
            is_last = number == len(self.blocks) - 1
            attended = layer.attend(block.qkv(y), block, kv_only and is_last)
            if attended is None:
                return
            y = then(layer.out(self._heads(attended, block)), now[:, 2], block.norm3, block)

            q_text = rms_norm(block.cross_q(y), block.cross_gain, eps).view(shape)
            seen = text_attention(q_text, *text[number])
            y = then(block.cross_out(self._heads(seen, block)), None, (now[:, 4], now[:, 3]), block)

            first, second = block.ffn
            hidden = first.gelu(y)
            after = block if is_last else self.blocks[number + 1]
            norm = None if is_last else (modulation[number + 1, :, 1], modulation[number + 1, :, 0])
            y = then(second(hidden), now[:, 5], norm, after)

    def _heads(self, attended: Tensor, reader: FusedBlock) -> Tensor | Rows:
        """Prepare heads `(B, L, H, D)` for the projection that reads them."""
        flat = attended.reshape(-1, self.config.dim)
        if attended.dtype != FP8:
            return quantize_rows(flat) if reader.fp8 else flat
        if not reader.fp8:
            return flat.to(reader.out.weight.dtype) / FP8_OUT_SCALE
        return Rows(flat, torch.full((len(flat), 1), 1 / FP8_OUT_SCALE, device=flat.device))


def require_fp8(fp8: Fp8, weight: Tensor) -> None:
    """Refuse a float8 mode that there is not, or that does not go with a model.

    Args:
        fp8: See `FusedWan`.
        weight: One of the model.

    Raises:
        BadRequest: If there is no such mode, a GPU computes in another dtype than bfloat16, or a package is
            missing.
        NoSuchDevice: If the GPU has no float8.
    """
    if fp8 not in get_args(Fp8):
        raise BadRequest(
            f"There is no float8 mode {fp8!r}", f"the modes are {', '.join(get_args(Fp8))}", "fp8"
        )
    if fp8 == "none" or not weight.is_cuda:
        return
    least = CONVOLUTIONS if fp8 == "vae" else LINEAR
    if not has_float8(weight.device, least):
        what = "This GPU has no float8 for the decoder" if fp8 == "vae" else "This GPU has no float8"
        raise NoSuchDevice(
            f"{what}, which needs compute capability {least[0]}.{least[1]}", "leave fp8 off", "fp8"
        )
    if weight.dtype != torch.bfloat16:
        raise BadRequest(
            "On a GPU float8 goes with bfloat16", 'take torch_dtype="bfloat16" or fp8="none"', "fp8"
        )
    if fp8 == "all":
        require("fp8")


def has_float8(device: torch.device, least: tuple[int, int] = LINEAR) -> bool:
    """Whether a device computes in float8 itself, with so much compute capability at least."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= least


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Matrices below each other; where they stand like that in memory already, nothing is copied."""
    first, rows = parts[0], sum(len(part) for part in parts)
    starts = [first.storage_offset() + number * first.numel() for number in range(len(parts))]
    storages = {part.untyped_storage().data_ptr() for part in parts}
    in_place = all(part.is_contiguous() and part.shape == first.shape for part in parts)
    if len(storages) == 1 and in_place and [part.storage_offset() for part in parts] == starts:
        return first.as_strided((rows, first.shape[1]), first.stride())
    return torch.cat(list(parts))


def _linear(weight: Tensor, bias: Tensor, fp8: bool) -> Linear:
    weight, bias = weight.detach(), bias.detach()
    if not fp8:
        return Linear(weight, bias)
    rows = quantize_rows(weight)
    return Linear(rows.values, bias, rows.scale.t())


def arrange(model: CausalWan, fp8: Fp8 = "none") -> FusedWan | None:
    """Arrange a model for speed where that pays: on GPUs that have Triton, and wherever float8 is asked for.

    Args:
        model: On its device, in its dtype.
        fp8: See `FusedWan`.

    Returns:
        None where the plain model is as fast, or its heads do not fit the kernels.

    Raises:
        UserError: If float8 was asked for in vain; see `FusedWan`.
    """
    device = model.patch_embedding.weight.device
    reason = why_not_fused(device, model.config.head_dim)
    if reason is None or fp8 in ("linear", "all"):
        return FusedWan(model, fp8)
    if device.type == "cuda":
        logger.info("the fused path is left: %s", reason)
    return None


def why_not_fused(device: torch.device, head_dim: int) -> str | None:
    """Tell why the fused path is not the default for a device and heads of a width; None: it is."""
    if device.type != "cuda":
        return "on a CPU the plain model is as fast"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs compute capability 8.0"
    if find_spec("triton") is None:
        return "package triton is not installed"
    if head_dim & (head_dim - 1):
        return f"its kernels take heads of 2, 4, 8, ... channels, not {head_dim}"
    return None
