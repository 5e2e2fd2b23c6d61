"""Latents to pixel frames, as they come: Wan's causal VAE (diffusers) with the state outside of it.

    decoder = load_vae(folder / "vae")
    stream = decoder.stream()
    for latents in chunks:  # (B, F, C, h, w)
        pixels = stream.decode(latents)  # uint8 (B, n, H, W, 3)

The first latent frame gives one pixel frame, each later one gives four. Streams share a decoder freely.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dummyforcing.errors import BadRequest
from dummyforcing.files.finite import all_finite
from dummyforcing.vae.convolutions import Convolutions
from dummyforcing.vae.memory import MOST_TILES, PASS_PIXELS, DecoderSizes, available_memory, fewest_tiles
from dummyforcing.vae.stream import StreamedDecoder
from dummyforcing.vae.tiles import Ranks


class OneDNNConv3d(TorchFunctionMode):
    """Inside this context, 3D convolutions (float32, CPU) run in oneDNN whatever their size.

    For small inputs torch takes a slow convolution of its own. The bundled model's VAE lies below that limit:
    oneDNN with channels-last weights makes it 3.4 times faster (2 cores). Results differ by rounding only.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Replace `F.conv3d` as `nn.Conv3d` calls it; pass everything else on."""
        if func is F.conv3d:
            x, weight, bias, stride, padding, dilation, groups = args
            return torch.ops.aten.mkldnn_convolution(x, weight, bias, padding, stride, dilation, groups)
        return func(*args, **(kwargs or {}))


def fast_convolutions(vae: AutoencoderKLWan) -> AbstractContextManager[object]:
    """The context in which a VAE runs: oneDNN on a CPU that has it, else nothing special."""
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    wanted = has_onednn and vae.device.type == "cpu" and vae.dtype == torch.float32
    return OneDNNConv3d() if wanted else nullcontext()


class VideoDecoder:
    """A Wan VAE for decoding in streams (and encoding at once).

    The VAE's own feature cache is never used, so one VAE serves any number of streams.
    """

    def __init__(
        self,
        vae: AutoencoderKLWan,
        device: torch.device | str | None = None,
        offload: bool = False,
        fp8: bool = False,
    ) -> None:
        """Wrap a loaded VAE.

        Args:
            vae: In evaluation mode, in whatever dtype it shall run. Its weights keep their values; their
                memory layout becomes channels-last, which is faster on CPU and GPU.
            device: Where it shall run; None: where it is. Else its weights come there for each call only.
            offload: Whether its weights stay in the main memory wherever it is moved to.
            fp8: Whether it decodes in float8, where its device and its layers have it; see `Convolutions`.
        """
        self.vae, self._home = vae, vae.device
        self.ranks: Ranks | None = None
        """GPUs that decode together, each with a decoder like this one; None: there is one."""
        self.device = vae.device if device is None else torch.device(device)
        for module in vae.modules():
            if isinstance(module, nn.Conv3d):
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
            elif isinstance(module, nn.Conv2d):
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
        self.moves = self.device.type != self._home.type
        """Whether its weights come to the device for each call only."""
        self.offload = offload or self.moves
        self.convolutions = Convolutions(vae.decoder, self.device, vae.dtype, fp8)
        """How it convolves when it decodes."""
        config: Any = vae.config
        shape = (1, -1, 1, 1, 1)
        self._mean = torch.tensor(config.latents_mean, device=self.device).view(shape)
        self._std = torch.tensor(config.latents_std, device=self.device).view(shape)
        self.patch_size: int = config.patch_size or 1
        self.sizes = DecoderSizes.of(config)
        self.stride = self.sizes.stride
        """Pixels per latent, in height and in width."""

    def at(self, device: torch.device, dtype: torch.dtype) -> "VideoDecoder":
        """The same VAE elsewhere, in another dtype; this one must not be used any more."""
        home = torch.device("cpu") if self.offload else device
        return VideoDecoder(self.vae.to(home, dtype), device, self.offload, self.convolutions.fp8)

    @contextmanager
    def at_work(self) -> Iterator[AutoencoderKLWan]:
        """The VAE on its device, with the fastest convolutions that this has."""
        try:
            if self.moves:
                self.vae.to(self.device)
            with fast_convolutions(self.vae):
                yield self.vae
        finally:
            if self.moves:
                self.vae.to(self._home)

    def stream(self, tiles: int | None = None) -> "DecoderStream":
        """Begin a new video.

        Args:
            tiles: In how many tiles of rows to decode, one after the other: more take less memory and more
                time, and give the same. None: in as few as fit into the free memory when decoding begins.
        """
        return DecoderStream(self, tiles)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode a whole video: `stream().decode(latents)`."""
        return self.stream().decode(latents)

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """Encode a whole video, without sampling.

        Args:
            pixels: uint8, `(B, n, H, W, 3)` with n = 1 + 4 (F - 1).

        Returns:
            Normalised latents, `(B, F, C, h, w)` float32.

        Raises:
            BadRequest: If no number of latent frames decodes to n, or if H or W is no multiple of the stride.
        """
        _, n, height, width, _ = pixels.shape
        if n % 4 != 1 or height % self.stride or width % self.stride:
            raise BadRequest(
                f"cannot encode {n} pixel frames of {width}x{height}",
                f"needed are 1, 5, 9, ... frames whose sides are multiples of {self.stride}",
            )
        video = pixels.to(self.device).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        with self.at_work() as vae:
            mean = vae.encode(video.to(vae.dtype)).latent_dist.mode().float()
        latents: Tensor = (mean - self._mean) / self._std
        return latents.transpose(1, 2)


@dataclass(frozen=True)
class StreamState:
    """Progress of the decoding of a video."""

    frames: int
    """Latent frames decoded so far."""
    tiles: int | None
    """In how many tiles of rows it is decoded; None: not decided yet."""
    features: Mapping[str, Tensor]
    """What the layers have seen of the last frames, by name."""


class DecoderStream:
    """One video that is being decoded; holds the features of its last frames."""

    def __init__(self, decoder: VideoDecoder, tiles: int | None = None) -> None:
        self._decoder = decoder
        self.tiles = tiles
        """In how many tiles of rows it is decoded; None: not decided yet."""
        self._state: StreamedDecoder | None = None
        self.frames = 0
        """Latent frames decoded so far."""
        self.is_finite: Tensor | None = None
        """Whether all pixels so far were finite, before they were clipped: a boolean on the device, which is
        not waited for; None: nothing was decoded yet."""

    def state(self) -> StreamState:
        """Give the state; it shares memory with this stream."""
        return StreamState(self.frames, self.tiles, self._state.features() if self._state else {})

    def load_state(self, state: StreamState, height: int) -> None:
        """Go on from what `state` gave; copies it.

        Args:
            state: Of a stream of the same decoder.
            height: Rows of latents.
        """
        self.frames, self.tiles = state.frames, state.tiles
        if state.features:
            decoder = self._decoder
            self._state = self._begin(height)
            self._state.load_features(state.features, decoder.device)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode the next latent frames.

        Args:
            latents: Normalised, `(B, F, C, h, w)`, any float dtype; the same B, h and w in every call.

        Returns:
            Pixel frames, `(B, n, H, W, 3)` uint8 on the VAE's device; n = 4 F, less 3 in the first call.
        """
        return (self.decode_float(latents) * 255).round().to(torch.uint8)

    @torch.inference_mode()
    def decode_float(self, latents: Tensor) -> Tensor:
        """Like `decode`, but float32 in [0, 1].

        In float32 it differs from diffusers' own decoding, between splits of a video into calls and between
        numbers of tiles, by rounding only: 1e-5 at most.

        Raises:
            BadRequest: If there are not as many rows of latents as tiles.
        """
        decoder = self._decoder
        z = latents.to(decoder.device).float().permute(0, 1, 3, 4, 2)
        z = z * decoder._std.flatten() + decoder._mean.flatten()
        with decoder.at_work() as vae:
            quant = vae.post_quant_conv
            z = F.linear(z.to(vae.dtype), quant.weight.flatten(1), quant.bias)
            if self._state is None:
                self.tiles = self._fewest_tiles(z) if self.tiles is None else self.tiles
                if decoder.ranks is not None:  # equally many for each
                    self.tiles = -(-self.tiles // decoder.ranks.size) * decoder.ranks.size
                self._state = self._begin(z.shape[2])
            pixels = self._state(z, self._passes(z))
        self.frames += z.shape[1]
        self._note(pixels)
        pixels = _unpatchify(pixels, decoder.patch_size)
        return pixels.float().clamp(-1, 1) * 0.5 + 0.5

    def _begin(self, height: int) -> StreamedDecoder:
        """Begin with the layers, for so many rows of latents."""
        decoder = self._decoder
        layers, tiles = decoder.vae.decoder, 1 if self.tiles is None else self.tiles
        return StreamedDecoder(layers, decoder.convolutions, height, tiles, decoder.ranks)

    def _note(self, pixels: Tensor) -> None:
        """Keep in mind whether pixels are finite; clipped, what is infinite would be white."""
        is_finite = all_finite(pixels)
        self.is_finite = is_finite if self.is_finite is None else self.is_finite & is_finite

    def _fewest_tiles(self, z: Tensor) -> int:
        """As few tiles as fit into the free memory of the device."""
        sizes, device = self._decoder.sizes, self._decoder.device
        counts = range(1, min(z.shape[2], MOST_TILES) + 1)
        needs = (sizes.memory(z.shape[:4], z.element_size(), tiles) for tiles in counts)
        totals = (need.working + (need.waiting if device.type == "cpu" else 0) for need in needs)
        return fewest_tiles(totals, available_memory(device))

    def _passes(self, z: Tensor) -> list[int]:
        """Split latent frames `(B, F, h, w, C)` into passes: where each begins, and the end."""
        batch, frames, height, width, _ = z.shape
        first = 1 if self.frames == 0 else 0
        step = max(PASS_PIXELS // (batch * height * width), 1)
        return [*range(first), *range(first, frames, step), frames]


def _unpatchify(x: Tensor, side: int) -> Tensor:
    """Spread channels over squares of pixels: `(B, n, H, W, 3 * side²)` to `(B, n, side H, side W, 3)`."""
    batch, frames, height, width, _ = x.shape
    x = x.view(batch, frames, height, width, 3, side, side).permute(0, 1, 2, 6, 3, 5, 4)
    return x.reshape(batch, frames, side * height, side * width, 3)
