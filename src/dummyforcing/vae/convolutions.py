"""The convolutions of a Wan VAE's decoder on its device: our kernel or the library, float8 if wanted."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import WanDecoder3d, WanResidualBlock, WanRMS_norm
from torch import Tensor, nn

from dummyforcing.kernels.choice import has_triton
from dummyforcing.kernels.constants import FP8, FP8_MAX, MARGIN, TINIEST
from dummyforcing.kernels.conv import (
    Weights,
    convolve,
    convolve_norm,
    empty_maps,
    in_pairs,
    norms_at_once,
    sum_neighbors,
    to_float8,
    weights_by_neighbor,
    weights_of,
    weights_to_double,
)
from dummyforcing.kernels.vae import add_norm, upsample

FEW = 16
"""So many output channels take no time of the tensor cores: there is nothing to be won with float8."""


@dataclass(frozen=True)
class Sum:
    """Feature maps that are not added up yet: what reads them does it on the way."""

    x: Tensor
    """`(B, T, H, W, C)`, contiguous; free to be overwritten."""
    bias: Tensor | None = None
    """`(C,)`."""
    residual: Tensor | None = None
    """Like `x`; not to be changed."""

    @property
    def is_added_up(self) -> bool:
        """Whether `x` is all."""
        return self.bias is None and self.residual is None

    def crop(self, first: int, end: int) -> "Sum":
        """A copy of some rows."""
        residual = None if self.residual is None else self.residual[:, :, first:end].contiguous()
        x = self.x[:, :, first:end].clone(memory_format=torch.contiguous_format)
        return Sum(x, self.bias, residual)


class Form(NamedTuple):
    """What a convolution in time takes."""

    channels: int
    """Of the layer."""
    width: int
    """Channels with those that are added, all zero."""
    dtype: torch.dtype
    margin: tuple[int, int] = (0, 0)
    """Rows below and columns beside a frame, all zero."""
    gain: float = 1.0
    """What values are multiplied with."""

    def empty(self, x: Tensor, frames: int) -> Tensor:
        """Memory for the form of so many frames like those of `x (B, T, H, W, C)`."""
        if self.margin == MARGIN:
            return empty_maps(x, frames, self.width, self.dtype)
        return x.new_empty(len(x), frames, *x.shape[2:4], self.width, dtype=self.dtype)

    def take(self, x: Tensor) -> Tensor:
        """Bring features into this form."""
        below, beside = self.margin
        more = (0, self.width - x.shape[-1], 0, beside, 0, below)
        return F.pad(x.float() * self.gain, more).to(self.dtype)

    def give(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """What `take` was given, which it may have rounded; without need no copy."""
        if self.dtype != dtype:
            x = (x.float() / self.gain).to(dtype)
        height, width = (side - more for side, more in zip(x.shape[2:4], self.margin, strict=True))
        return x[:, :, :height, :width, : self.channels].contiguous()


class Convolutions:
    """Computes the convolutions of a decoder; holds their weights as they are computed with, made once.

    In float8 (e4m3) are those after a normalisation: its result is at most the root of the number of channels
    times the largest gain, so that one factor for all videos uses the range and never leaves it. The
    convolution that makes pixels stays out of it.
    """

    def __init__(
        self, decoder: WanDecoder3d, device: torch.device, dtype: torch.dtype, fp8: bool = False
    ) -> None:
        """Look at a decoder, without its weights.

        Args:
            decoder: With weights in channels-last layout. It is not changed.
            device: Where it runs.
            dtype: Of its weights.
            fp8: Whether to compute in float8; a CPU emulates it.
        """
        layers: Any = decoder
        blocks = [block for block in decoder.modules() if isinstance(block, WanResidualBlock)]
        self.norms: dict[nn.Module, WanRMS_norm] = {layers.conv_out: layers.norm_out}
        """The normalisation before a convolution, if there is one; SiLU follows it."""
        for block in blocks:
            self.norms |= {block.conv1: block.norm1, block.conv2: block.norm2}
        self.device, self.dtype, self.fp8 = device, dtype, fp8
        self.in_one_kernel = dtype.itemsize == 2 and has_tensor_memory_accelerator(device)
        """Whether our kernel computes, where the layer's sizes suit it; else the library."""
        self._weights: dict[nn.Module | tuple[nn.Module, bool], Weights] = {}
        self._forms: dict[nn.Module, Form] = {}

    def is_ours(self, conv: Any) -> bool:
        """Whether a convolution runs in our kernel."""
        return (self.in_one_kernel and conv.in_channels % 16 == 0) or self._is_float8(conv)

    def form(self, conv: Any) -> Form:
        """What a convolution in time takes."""
        if conv not in self._forms:
            self._forms[conv] = self._choose(conv)
        return self._forms[conv]

    def __call__(self, conv: Any, window: Tensor, residual: Tensor | None = None) -> Sum:
        """Convolve in time and space.

        Args:
            conv: A layer of the decoder.
            window: Feature maps `(B, kt - 1 + T, H, W, width)`, in the layer's form.
            residual: To be added, `(B, T, H, W, N)`.
        """
        if self.is_ours(conv) and conv.out_channels <= FEW:
            parts = convolve(window, weights_by_neighbor(conv.weight), torch.float32)
            return Sum(sum_neighbors(parts, conv.bias, self.dtype), None, residual)
        if self.is_ours(conv):
            weights = self._prepare(conv, window.shape[3])
            return Sum(convolve(window, weights, self.dtype, conv.bias, residual))
        inside, later = _biases(conv)
        padding = (0, *(side // 2 for side in conv.kernel_size[1:]))
        x, weight = window.permute(0, 4, 1, 2, 3), self._widen(conv, window.shape[-1])
        out = F.conv3d(x, weight, inside, conv.stride, padding, conv.dilation, conv.groups)
        # Contiguous it is already, where the library keeps layouts.
        return Sum(out.permute(0, 2, 3, 4, 1).contiguous(), later, residual)

    def norms_at_once(self, conv: Any, width: int) -> bool:
        """Whether `with_norm` can be asked of a convolution, for rows of so many pixels with their margin."""
        return self.is_ours(conv) and norms_at_once(len(self._prepare(conv, width).matrix))

    def with_norm(self, conv: Any, window: Tensor, then: Any, out: Tensor) -> None:
        """Convolve, and bring the result into the form of the convolution that follows.

        Args:
            conv: A layer of the decoder.
            window: See `__call__`.
            then: The layer that follows.
            out: Where that reads, `(B, T, H + 1, W + 2, width)`.
        """
        weights, gamma = self._prepare(conv, window.shape[3]), self.norms[then].gamma.flatten()
        convolve_norm(window, weights, conv.bias, gamma, self.form(then).gain, out)

    def after_repetition(self, conv: Any, x: Sum, frames: int) -> Sum:
        """Repeat every pixel in height and width, and convolve each frame.

        Args:
            conv: A layer of the decoder, 3x3.
            x: Feature maps `(B, T, H, W, frames * C)`.
            frames: How many frames the channels hold, one after the other.
        """
        if self.is_ours(conv):
            if conv not in self._weights:
                self._weights[conv] = weights_to_double(conv.weight)
            small = empty_maps(x.x, x.x.shape[1], x.x.shape[-1], self.dtype)
            add_norm(x.x, x.bias, x.residual, small)
            return Sum(convolve(small, self._weights[conv], self.dtype, conv.bias, None, frames))
        large = upsample(x.x, x.bias, x.residual, frames)
        inside, later = _biases(conv)
        images = large.flatten(0, 1).permute(0, 3, 1, 2)
        out = F.conv2d(images, conv.weight, inside, conv.stride, conv.padding, conv.dilation, conv.groups)
        return Sum(out.permute(0, 2, 3, 1).contiguous().view(*large.shape[:4], -1), later)

    def _is_float8(self, conv: Any) -> bool:
        is_fit = self.fp8 and conv in self.norms and conv.out_channels > FEW
        return is_fit and (self.device.type == "cpu" or (self.in_one_kernel and conv.in_channels % 32 == 0))

    def _choose(self, conv: Any) -> Form:
        if self._is_float8(conv):
            return Form(conv.in_channels, conv.in_channels, FP8, MARGIN, _gain(self.norms[conv]))
        if self.is_ours(conv):
            return Form(conv.in_channels, conv.in_channels, self.dtype, MARGIN)
        return Form(conv.in_channels, fast_width(conv.in_channels, self.device), self.dtype)

    def _prepare(self, conv: Any, width: int) -> Weights:
        """Weights for our kernel, for rows of so many pixels with their margin."""
        pairs = conv.out_channels <= 96 and conv.kernel_size[2] == 3 and width % 2 == 0
        if not pairs and not self._is_float8(conv):
            return weights_of(conv.weight)  # not kept, as it shares the layer's memory
        if (conv, pairs) not in self._weights:
            weights = weights_of(conv.weight)
            weights = to_float8(weights, self.form(conv).gain) if self._is_float8(conv) else weights
            self._weights[conv, pairs] = in_pairs(weights) if pairs else weights
        return self._weights[conv, pairs]

    def _widen(self, conv: Any, width: int) -> Tensor:
        """Weights for the library, for an input that has more channels, all zero."""
        missing = width - conv.weight.shape[1]
        if missing and conv not in self._weights:
            weight = F.pad(conv.weight, (0, 0, 0, 0, 0, 0, 0, missing))
            self._weights[conv] = Weights(
                weight.contiguous(memory_format=torch.channels_last_3d), conv.kernel_size
            )
        weight = self._weights[conv].matrix if missing else conv.weight
        return weight


def has_tensor_memory_accelerator(device: torch.device) -> bool:
    """Whether our kernel for convolutions is made for a device."""
    return device.type == "cuda" and has_triton() and torch.cuda.get_device_capability(device) >= (9, 0)


def fast_width(channels: int, device: torch.device) -> int:
    """Choose how many channels a convolution in time gets from the library, those added all zero.

    cuDNN has its fast kernel for multiples of 64 only: on an H200 128 channels take two thirds of the time of
    96.
    """
    return -(-channels // 64) * 64 if device.type == "cuda" and channels > 64 else channels


def _gain(norm: Any) -> float:
    """The largest power of two that keeps what a normalisation gives in the range of float8."""
    most = len(norm.gamma) ** 0.5 * norm.gamma.detach().abs().max().item()
    return 2.0 ** math.floor(math.log2(FP8_MAX / max(most, TINIEST))) if math.isfinite(most) else 1.0


def _biases(conv: Any) -> tuple[Tensor | None, Tensor | None]:
    """Split a bias into what the convolution adds itself and what the reader of its output adds.

    On a GPU torch adds the bias in a pass of its own over the output, oneDNN does it for nothing.
    """
    return (None, conv.bias) if conv.bias.is_cuda else (conv.bias, None)
