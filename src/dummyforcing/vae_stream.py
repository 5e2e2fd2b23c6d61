"""The decoder of a Wan VAE over the frames of a video as they come, with its state outside of it.

The layers and weights are those of diffusers' `AutoencoderKLWan.decoder`. All frames of a call go through in
one pass, as feature maps `(B, T, H, W, C)`; every convolution in time sees the last two frames of the calls
before, zeros at first.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanAttentionBlock,
    WanCausalConv3d,
    WanDecoder3d,
    WanResample,
    WanResidualBlock,
    WanResidualUpBlock,
    WanRMS_norm,
    WanUpBlock,
)
from torch import Tensor, nn

from dummyforcing.kernels.vae import add_norm, upsample

HISTORY = 2
"""Past frames that a convolution in time sees."""


@dataclass(frozen=True)
class Sum:
    """Feature maps that are not added up yet: what reads them does it on the way."""

    x: Tensor
    """`(B, T, H, W, C)`, contiguous; free to be overwritten."""
    bias: Tensor | None = None
    """`(C,)`."""
    residual: Tensor | None = None
    """Like `x`; not to be changed."""


class StreamedDecoder:
    """One video on its way through a decoder; the state is two frames of features for each convolution.

    A video begins with a single latent frame, which the layers that double the frames leave alone and keep no
    trace of; so the first call is for that one.
    """

    def __init__(self, decoder: WanDecoder3d) -> None:
        """Begin a video.

        Args:
            decoder: With weights in channels-last layout. It is not changed.
        """
        self._layers: Any = decoder
        self._history: dict[nn.Module, Tensor] = {}
        self._widened: dict[nn.Module, Tensor] = {}
        self._is_first = True

    def __call__(self, z: Tensor) -> Tensor:
        """Decode the next latent frames.

        Args:
            z: After the VAE's `post_quant_conv`, `(B, T, h, w, C)`; T = 1 in the first call.

        Returns:
            What the decoder gives, `(B, n, H, W, out_channels)`; n = 1 in the first call, else 4 T.
        """
        layers, middle = self._layers, self._layers.mid_block
        x = self._convolve(layers.conv_in, Sum(z.contiguous()))
        x = self._residual_block(middle.resnets[0], x)
        for attention, block in zip(middle.attentions, middle.resnets[1:], strict=True):
            x = self._residual_block(block, self._attend(attention, x))
        for block in layers.up_blocks:
            x = self._up_block(block, x)
        x = self._convolve(layers.conv_out, x, layers.norm_out)
        self._is_first = False
        pixels: Tensor = x.x if x.bias is None else x.x + x.bias
        return pixels

    def _convolve(
        self, conv: WanCausalConv3d, x: Sum, norm: WanRMS_norm | None = None, keep: bool = False
    ) -> Sum:
        """Convolve in time and space, after normalisation and SiLU if a norm is given.

        With `keep`, the sum is in `x.x` afterwards.
        """
        batch, frames, height, width, channels = x.x.shape
        size = height, width, fast_width(channels, x.x.device)
        window = x.x.new_empty(batch, HISTORY + frames, *size)
        history = self._history.get(conv)
        if history is None:
            history = self._history[conv] = x.x.new_zeros(batch, HISTORY, *size)
        window[:, :HISTORY] = history
        gamma = None if norm is None else norm.gamma.flatten()
        place = window[:, HISTORY:]
        add_norm(x.x, x.bias, x.residual, place, gamma=gamma, silu=norm is not None, keep=keep)
        history.copy_(window[:, frames:])
        inside, later = _biases(conv)
        padding = (0, *(side // 2 for side in conv.kernel_size[1:]))
        out = F.conv3d(
            window.permute(0, 4, 1, 2, 3),
            self._weight(conv, size[-1]),
            inside,
            conv.stride,
            padding,
            conv.dilation,
            conv.groups,
        )
        return Sum(out.permute(0, 2, 3, 4, 1).contiguous(), later)  # it is, where the library keeps layouts

    def _weight(self, conv: WanCausalConv3d, width: int) -> Tensor:
        """Weights of a convolution whose input has more channels, all zero."""
        missing = width - conv.weight.shape[1]
        if missing and conv not in self._widened:
            weight = F.pad(conv.weight, (0, 0, 0, 0, 0, 0, 0, missing))
            self._widened[conv] = weight.contiguous(memory_format=torch.channels_last_3d)
        return self._widened[conv] if missing else conv.weight

    def _residual_block(self, block: WanResidualBlock, x: Sum) -> Sum:
        """Two convolutions beside a shortcut; the sum of its input is in `x.x` afterwards."""
        inner = self._convolve(block.conv1, x, block.norm1, keep=True)
        inner = self._convolve(block.conv2, inner, block.norm2)
        shortcut = block.conv_shortcut
        is_same = isinstance(shortcut, nn.Identity)
        return Sum(inner.x, inner.bias, x.x if is_same else _mix(shortcut, x.x))

    def _attend(self, block: WanAttentionBlock, x: Sum) -> Sum:
        """Attention of one head between the pixels of each frame."""
        normed = torch.empty_like(x.x)
        add_norm(x.x, x.bias, x.residual, normed, gamma=block.norm.gamma.flatten(), keep=True)
        batch, frames, height, width, channels = x.x.shape
        tokens = normed.view(batch * frames, 1, height * width, channels)
        q, k, v = _mix(block.to_qkv, tokens).chunk(3, dim=-1)
        seen = F.scaled_dot_product_attention(q, k, v)
        return Sum(_mix(block.proj, seen).view(x.x.shape), residual=x.x)

    def _up_block(self, block: WanUpBlock | WanResidualUpBlock, x: Sum) -> Sum:
        begin = x
        for resnet in block.resnets:
            x = self._residual_block(resnet, x)
        if not isinstance(block, WanResidualUpBlock):
            return self._resample(block.upsamplers[0], x) if block.upsamplers else x
        if block.upsampler is None:
            return x
        x = self._resample(block.upsampler, x)
        shortcut = block.avg_shortcut(begin.x.permute(0, 4, 1, 2, 3), first_chunk=self._is_first)
        return Sum(x.x, x.bias, shortcut.permute(0, 2, 3, 4, 1).contiguous())

    def _resample(self, module: WanResample, x: Sum) -> Sum:
        """Double height and width, and the number of frames except of the first one."""
        doubles = module.mode == "upsample3d" and not self._is_first
        if doubles:
            x = self._convolve(module.time_conv, x)
        large = upsample(x.x, x.bias, x.residual, frames=2 if doubles else 1)
        conv = module.resample[1]
        inside, later = _biases(conv)
        images = large.flatten(0, 1).permute(0, 3, 1, 2)
        out = F.conv2d(images, conv.weight, inside, conv.stride, conv.padding, conv.dilation, conv.groups)
        return Sum(out.permute(0, 2, 3, 1).contiguous().view(*large.shape[:4], -1), later)


def fast_width(channels: int, device: torch.device) -> int:
    """How many channels a convolution in time gets, the others zero.

    cuDNN has its fast kernel for multiples of 64 only: on an H200 128 channels take two thirds of the time of
    96.
    """
    return -(-channels // 64) * 64 if device.type == "cuda" and channels > 64 else channels


def _biases(conv: Any) -> tuple[Tensor | None, Tensor | None]:
    """What a convolution adds itself, and what is added by the reader of its output.

    On a GPU torch adds the bias in a pass of its own over the output, oneDNN does it for nothing.
    """
    return (None, conv.bias) if conv.bias.is_cuda else (conv.bias, None)


def _mix(conv: Any, x: Tensor) -> Tensor:
    """A convolution of one pixel is a linear layer over the channels, which come last here."""
    return F.linear(x, conv.weight.flatten(1), conv.bias)
