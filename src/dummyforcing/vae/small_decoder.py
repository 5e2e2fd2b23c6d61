"""A small decoder in place of the VAE's own: many times faster, with less detail.

    decoder = load_small_decoder(Path("taew2_1.pth"), load_vae(folder / "vae"))

The layout is that of TAEHV (github.com/madebyollin/taehv, MIT), in the size for Wan 2.1: 2D convolutions, of
which some also see the features of the frame before. It reads latents as the transformer makes them,
normalised; what it gives for the first latent frame but the last pixel frame is left out.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dummyforcing.vae.codec import DecoderStream, StreamState, VideoDecoder

WIDTHS = (256, 128, 64, 64)
"""Channels of the three stages and of the last layer."""
GROWTH = (1, 2, 2)
"""Frames that a stage makes of each."""
LATENTS, RANGE = 16, 3.0
"""Channels of the latents, and the size that they are softly limited to."""


class SoftLimit(nn.Module):
    """Keeps latents within the range."""

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, h, w)` to the same."""
        return torch.tanh(x / RANGE) * RANGE


class MemoryBlock(nn.Module):
    """Three convolutions over a frame and the one before it, beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = (2 * width, width, width, width)
        layers = [nn.Conv2d(before, after, 3, padding=1) for before, after in pairwise(sizes)]
        self.conv = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """Frames and those before them, `(N, C, H, W)`."""
        result: Tensor = self.conv(torch.cat([x, before], 1))
        return F.relu(result + x)


class Grow(nn.Module):
    """Makes several frames of each."""

    def __init__(self, width: int, frames: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, frames * width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` to `(N * frames, C, H, W)`, in channels-last."""
        count, channels, height, width = x.shape
        pixels: Tensor = self.conv(x).permute(0, 2, 3, 1).reshape(count, height, width, -1, channels)
        return pixels.permute(0, 3, 1, 2, 4).reshape(-1, height, width, channels).permute(0, 3, 1, 2)


class SmallLayers(nn.Module):
    """The layers, under the names that they have in files."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [SoftLimit(), nn.Conv2d(LATENTS, WIDTHS[0], 3, padding=1), nn.ReLU()]
        for width, after, frames in zip(WIDTHS, WIDTHS[1:], GROWTH, strict=False):
            layers += [MemoryBlock(width) for _ in range(3)]
            layers += [nn.Upsample(scale_factor=2), Grow(width, frames)]
            layers += [nn.Conv2d(width, after, 3, padding=1, bias=False)]
        layers += [nn.ReLU(), nn.Conv2d(WIDTHS[-1], 3, 3, padding=1)]
        self.decoder = nn.Sequential(*layers)


class SmallDecoder(VideoDecoder):
    """Decodes with a small decoder; encodes with the VAE, since the two have the same latents."""

    def __init__(self, layers: SmallLayers, vae: VideoDecoder) -> None:
        """Put a small decoder before a VAE.

        Args:
            layers: On the VAE's device, in evaluation mode, in whatever dtype it shall run.
            vae: Encodes.
        """
        super().__init__(vae.vae, vae.device, vae.offload)
        self.layers = layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def at(self, device: torch.device, dtype: torch.dtype) -> "SmallDecoder":
        """The same decoder elsewhere; see `VideoDecoder`."""
        return SmallDecoder(self.layers.to(device, dtype), super().at(device, dtype))

    def stream(self, tiles: int | None = None) -> "SmallDecoderStream":
        """Begin a new video; it is decoded in one piece, whatever is asked for."""
        return SmallDecoderStream(self)


class SmallDecoderStream(DecoderStream):
    """One video that is being decoded; holds what the memory blocks saw of its last frame."""

    def __init__(self, decoder: SmallDecoder) -> None:
        super().__init__(decoder)
        self._layers = decoder.layers.decoder
        self._before: dict[nn.Module, Tensor] = {}

    @torch.inference_mode()
    def decode_float(self, latents: Tensor) -> Tensor:
        """See `DecoderStream`; in float32, splits into calls differ by rounding only."""
        batch, frames = latents.shape[:2]
        weight = next(self._layers.parameters())
        x = latents.to(weight.device, weight.dtype).flatten(0, 1)
        x = x.contiguous(memory_format=torch.channels_last)
        for layer in self._layers:
            x = layer(x, self._shift(layer, x, batch)) if isinstance(layer, MemoryBlock) else layer(x)
        first = self.frames == 0
        self.frames += frames
        self._note(x)
        pixels: Tensor = x.view(batch, -1, *x.shape[1:])[:, 3 if first else 0 :]
        return pixels.permute(0, 1, 3, 4, 2).float().clamp(0, 1)

    def state(self) -> StreamState:
        """Give the state; it shares memory with this stream."""
        names = {layer: name for name, layer in self._layers.named_modules()}
        return StreamState(self.frames, None, {names[layer]: past for layer, past in self._before.items()})

    def load_state(self, state: StreamState, height: int) -> None:
        """Go on from what `state` gave; copies it."""
        layers = dict(self._layers.named_modules())
        device = next(self._layers.parameters()).device
        self.frames = state.frames
        self._before = {layers[name]: past.to(device, copy=True) for name, past in state.features.items()}

    def _shift(self, layer: nn.Module, x: Tensor, batch: int) -> Tensor:
        """The frames before those of `x (B * T, C, H, W)`; before the first one all is zero."""
        size = (batch, -1, *x.shape[1:])
        shifted = torch.empty_like(x)  # in channels-last, as x
        frames, places = x.view(size), shifted.view(size)
        places[:, 0] = self._before.get(layer, 0)
        places[:, 1:] = frames[:, :-1]
        self._before[layer] = frames[:, -1].clone()
        return shifted
