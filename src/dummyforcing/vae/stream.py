"""The decoder of a Wan VAE over the frames of a video as they come, with its state outside of it.

The layers and weights are those of diffusers' `AutoencoderKLWan.decoder`. Several frames go through in one
pass, as feature maps `(B, T, H, W, C)`; every convolution in time sees the last two frames of the passes
before, zeros at first.
"""

from collections.abc import Mapping, Sequence
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
    WanUpBlock,
)
from torch import Tensor, nn

from dummyforcing.kernels.vae import add_norm
from dummyforcing.vae.convolutions import Convolutions, Sum
from dummyforcing.vae.tiles import History, Ranks, Rows, Tile, split_rows, upsampler_of

HISTORY = 2
"""Past frames that a convolution in time sees."""


class StreamedDecoder:
    """One video on its way through a decoder; the state is two frames of features for each convolution.

    A video begins with a single latent frame, which the layers that double the frames leave alone and keep no
    trace of; so the first pass is for that one. The up blocks work on one tile of rows after the other, and
    the state of the others is in the main memory meanwhile.
    """

    def __init__(
        self,
        decoder: WanDecoder3d,
        convolutions: Convolutions,
        height: int,
        tiles: int = 1,
        ranks: Ranks | None = None,
    ) -> None:
        """Begin a video.

        Args:
            decoder: It is not changed.
            convolutions: Compute those of this decoder.
            height: Rows of its latents.
            tiles: How many; `height` at most.
            ranks: GPUs that share them; None: there is one.
        """
        self._layers: Any = decoder
        self._convolutions = convolutions
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
        self._history, self._is_first = self._middle, True
        self._begins = True
        """Whether the first latent frame of the video comes next."""

    def features(self) -> dict[str, Tensor]:
        """Give the features that convolutions keep of the last frames, by layer name; may share memory.

        Waits until the histories of tiles have come to the main memory. Of several GPUs, rank 0 gets those of
        all.
        """
        for past in self._middle.values():
            if past.is_cuda and len(self._tiles) > 1:
                torch.cuda.current_stream(past.device).synchronize()
        names = {layer: name for name, layer in self._layers.named_modules()}
        tiles = zip(self._numbers, self._tiles, strict=True)
        parts = {"middle": self._middle} | {str(number): tile.history for number, tile in tiles}
        form, dtype = self._convolutions.form, self._convolutions.dtype
        found = {
            f"{part} {names[layer]}": form(layer).give(past, dtype)
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
            layer = layers[name]
            past = self._convolutions.form(layer).take(past)
            if part == "middle":
                self._middle[layer] = past.to(device, copy=True)
            elif int(part) in self._numbers:
                tile = self._tiles[self._numbers.index(int(part))]
                if len(self._tiles) == 1:
                    tile.history[layer] = past.to(device, copy=True)
                else:
                    tile.keep(layer, past, device)

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
        x = self._convolve(layers.conv_out, x)
        self._is_first = False
        pixels: Tensor = x.x if x.bias is None else x.x + x.bias
        first, end = needed[-1]
        return pixels[:, :, first - place : end - place]

    def _convolve(self, conv: WanCausalConv3d, x: Sum) -> Sum:
        """Convolve in time and space, after normalisation and SiLU if they belong to it."""
        return self._convolutions(conv, self._window(conv, x))

    def _window(self, conv: WanCausalConv3d, x: Sum, keep: bool = False) -> Tensor:
        """What a convolution in time reads of the past and of `x`, in its form.

        With `keep`, the sum is in `x.x` afterwards.
        """
        norm = self._convolutions.norms.get(conv)
        window = self._past(conv, x.x)
        add_norm(
            x.x,
            x.bias,
            x.residual,
            window[:, HISTORY:],
            gamma=None if norm is None else norm.gamma.flatten(),
            silu=norm is not None,
            keep=keep and not x.is_added_up,
            gain=self._convolutions.form(conv).gain,
        )
        self._remember(conv, window)
        return window

    def _past(self, conv: WanCausalConv3d, x: Tensor) -> Tensor:
        """A window with the past in it, and room for as many frames as `x` has."""
        form = self._convolutions.form(conv)
        window = form.empty(x, HISTORY + x.shape[1])
        history = self._history.get(conv)
        if history is None:
            history = self._history[conv] = form.empty(x, HISTORY).zero_()
        window[:, :HISTORY] = history
        return window

    def _remember(self, conv: WanCausalConv3d, window: Tensor) -> None:
        """Keep the last frames of a window."""
        self._history[conv].copy_(window[:, -HISTORY:])

    def _residual_block(self, block: WanResidualBlock, x: Sum) -> Sum:
        """Two convolutions beside a shortcut; the sum of its input is in `x.x` afterwards."""
        convolutions, window = self._convolutions, self._window(block.conv1, x, keep=True)
        shortcut = block.conv_shortcut
        beside = x.x if isinstance(shortcut, nn.Identity) else _mix(shortcut, x.x)
        if convolutions.norms_at_once(block.conv1, window.shape[3]):
            inner = self._past(block.conv2, x.x)
            convolutions.with_norm(block.conv1, window, block.conv2, inner[:, HISTORY:])
            self._remember(block.conv2, inner)
        else:
            inner = self._window(block.conv2, convolutions(block.conv1, window))
        return convolutions(block.conv2, inner, beside)

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
        return self._convolutions.after_repetition(module.resample[1], x, 2 if doubles else 1)


def _mix(conv: Any, x: Tensor) -> Tensor:
    """A convolution of one pixel is a linear layer over the channels, which come last here."""
    return F.linear(x, conv.weight.flatten(1), conv.bias)
