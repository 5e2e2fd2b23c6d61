"""The decoder of a Wan VAE over the frames of a video as they come, with its state outside of it.

The layers and weights are those of diffusers' `AutoencoderKLWan.decoder`. Several frames go through in one
pass, as feature maps `(B, T, H, W, C)`; every convolution in time sees the last two frames of the passes
before, zeros at first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
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
from dummyforcing.vae.tiles import History, Ranks, Rows, Tile, split_rows, upsampler_of

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

    def crop(self, first: int, end: int) -> "Sum":
        """A copy of some rows."""
        residual = None if self.residual is None else self.residual[:, :, first:end].contiguous()
        x = self.x[:, :, first:end].clone(memory_format=torch.contiguous_format)
        return Sum(x, self.bias, residual)


class StreamedDecoder:
    """One video on its way through a decoder; the state is two frames of features for each convolution.

    A video begins with a single latent frame, which the layers that double the frames leave alone and keep no
    trace of; so the first pass is for that one. The up blocks work on one tile of rows after the other, and
    the state of the others is in the main memory meanwhile.
    """

    def __init__(
        self, decoder: WanDecoder3d, height: int, tiles: int = 1, ranks: Ranks | None = None
    ) -> None:
        """Begin a video.

        Args:
            decoder: With weights in channels-last layout. It is not changed.
            height: Rows of its latents.
            tiles: How many; `height` at most.
            ranks: GPUs that share them; None: there is one.
        """
        self._layers: Any = decoder
        self._middle: History = {}
        self._ranks = ranks
        cut = split_rows(height, tiles)
        size, rank = (ranks.size, ranks.rank) if ranks else (1, 0)
        shares = [range(i * tiles // size, (i + 1) * tiles // size) for i in range(size)]
        self._numbers = shares[rank]
        """Of the tiles that are decoded here."""
        self._tiles = [Tile(decoder, cut[number], height) for number in self._numbers]
        self._crops = tiles > 1
        self._scale = 2 ** sum(upsampler_of(block) is not None for block in decoder.up_blocks)
        self._heights = [self._scale * sum(cut[n][1] - cut[n][0] for n in share) for share in shares]
        """Rows of pixels that each GPU decodes."""
        self._widened: dict[nn.Module, Tensor] = {}
        self._history, self._is_first = self._middle, True
        self._begins = True
        """Whether the first latent frame of the video comes next."""

    def features(self) -> dict[str, Tensor]:
        """Give the features that convolutions keep of the last frames, by layer name; shares memory.

        Waits until the histories of tiles have come to the main memory. Of several GPUs, rank 0 gets those of
        all.
        """
        for past in self._middle.values():
            if past.is_cuda and len(self._tiles) > 1:
                torch.cuda.current_stream(past.device).synchronize()
        names = {layer: name for name, layer in self._layers.named_modules()}
        tiles = zip(self._numbers, self._tiles, strict=True)
        parts = {"middle": self._middle} | {str(number): tile.history for number, tile in tiles}
        found = {
            f"{part} {names[layer]}": past
            for part, history in parts.items()
            for layer, past in history.items()
        }
        if self._ranks is None:
            return found
        everywhere = self._ranks.collect({name: past.cpu() for name, past in found.items()})
        return {name: past for features in everywhere or [found] for name, past in features.items()}

    def load_features(self, features: Mapping[str, Tensor], device: torch.device) -> None:
        """Go on from what `features` gave; copies it.

        Args:
            features: Of a video that was decoded in as many tiles.
            device: Where the decoder works.
        """
        layers, self._begins = dict(self._layers.named_modules()), False
        for key, past in features.items():
            part, name = key.split(" ")
            if part == "middle":
                self._middle[layers[name]] = past.to(device, copy=True)
            elif int(part) in self._numbers:
                tile = self._tiles[self._numbers.index(int(part))]
                if len(self._tiles) == 1:
                    tile.history[layers[name]] = past.to(device, copy=True)
                else:
                    tile.keep(layers[name], past, device)

    def __call__(self, z: Tensor, passes: Sequence[int]) -> Tensor:
        """Decode the next latent frames.

        Args:
            z: After the VAE's `post_quant_conv`, `(B, T, h, w, C)`.
            passes: Where the passes over them begin, and the end; the first one of all has one frame.

        Returns:
            What the decoder gives, `(B, n, H, W, out_channels)`; n = 4 T, less 3 in the first call.
        """
        self._history = self._middle
        middles = [self._begin(z[:, first:end]) for first, end in pairwise(passes)]
        pixels = []
        for tile in self._tiles:
            self._is_first = not tile.history
            self._history = tile.history if len(self._tiles) == 1 else tile.bring(z.device)
            pixels.append(torch.cat([self._finish(x, tile.rows) for x in middles], dim=1))
            if len(self._tiles) > 1:
                tile.put_away(self._history)
        self._history = self._middle
        if not pixels:  # a video that was begun in fewer tiles
            frames = 4 * z.shape[1] - (3 if self._begins else 0)
            width = self._layers.conv_out.out_channels
            pixels = [z.new_empty(len(z), frames, 0, z.shape[3] * self._scale, width)]
        self._begins = False
        whole = torch.cat(pixels, dim=2)
        return self._ranks.gather(whole, self._heights, 2, beside=True) if self._ranks else whole

    def _begin(self, z: Tensor) -> Sum:
        """The layers that see whole frames; what they give is not added up yet."""
        layers, middle = self._layers, self._layers.mid_block
        x = self._convolve(layers.conv_in, Sum(z.contiguous()))
        x = self._residual_block(middle.resnets[0], x)
        for attention, block in zip(middle.attentions, middle.resnets[1:], strict=True):
            x = self._residual_block(block, self._attend(attention, x))
        return x

    def _finish(self, x: Sum, needed: Sequence[Rows]) -> Tensor:
        """The up blocks and what follows, for a tile; `needed` is of `vae_tiles.rows_needed`."""
        layers, place = self._layers, 0  # where the first row of `x` is in the frame
        for block, (first, end) in zip(layers.up_blocks, needed, strict=False):
            if self._crops:
                x = x.crop(first - place, end - place)
            x = self._up_block(block, x)
            place = first if upsampler_of(block) is None else 2 * first
        x = self._convolve(layers.conv_out, x, layers.norm_out)
        self._is_first = False
        pixels: Tensor = x.x if x.bias is None else x.x + x.bias
        first, end = needed[-1]
        return pixels[:, :, first - place : end - place]

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
        upsampler = upsampler_of(block)
        if upsampler is None:
            return x
        x = self._resample(upsampler, x)
        if not isinstance(block, WanResidualUpBlock):
            return x
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
    """Choose how many channels a convolution in time gets, those added all zero.

    cuDNN has its fast kernel for multiples of 64 only: on an H200 128 channels take two thirds of the time of
    96.
    """
    return -(-channels // 64) * 64 if device.type == "cuda" and channels > 64 else channels


def _biases(conv: Any) -> tuple[Tensor | None, Tensor | None]:
    """Split a bias into what the convolution adds itself and what the reader of its output adds.

    On a GPU torch adds the bias in a pass of its own over the output, oneDNN does it for nothing.
    """
    return (None, conv.bias) if conv.bias.is_cuda else (conv.bias, None)


def _mix(conv: Any, x: Tensor) -> Tensor:
    """A convolution of one pixel is a linear layer over the channels, which come last here."""
    return F.linear(x, conv.weight.flatten(1), conv.bias)
