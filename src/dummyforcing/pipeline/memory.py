"""Memory that a video needs, and saying no before it runs out.

```python
tiles = require_memory(files, request, torch.bfloat16, torch.device("cuda"))
```
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.errors import NotEnoughMemory
from dummyforcing.pipeline.choices import choose_policy
from dummyforcing.pipeline.request import Request
from dummyforcing.presets.preset import SIZE_MULTIPLE
from dummyforcing.vae.memory import MOST_TILES, DecoderMemory, available_memory, fewest_tiles

SCRATCH = 2**28
"""Bytes that scoring and the libraries take besides, whatever the size of the video."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a generation needs at its peak, by what they are for."""

    text_encoder: float
    """Weights, as those of the next two."""
    transformer: float
    vae: float
    cache: float
    """Keys and values under the policy, when they are largest."""
    denoising: float
    """Intermediate values of the transformer."""
    decoding: float
    """Intermediate values of the VAE's decoder."""
    frames: float
    """The decoded video, which is always kept in the main memory."""
    waiting: float = 0
    """Past features of the tiles that the VAE's decoder is not working on, likewise."""
    is_on_gpu: bool = False
    is_offloaded: bool = False

    @property
    def weights(self) -> float:
        """Bytes of all weights."""
        return self.text_encoder + self.transformer + self.vae

    @property
    def activations(self) -> float:
        """Intermediate values: on a GPU the decoder runs beside the transformer, else they run in turns."""
        if self.is_on_gpu and not self.is_offloaded:
            return self.denoising + self.decoding
        return max(self.denoising, self.decoding)

    @property
    def total(self) -> float:
        """Sum of all of it."""
        return self.weights + self.cache + self.activations + self.waiting + self.frames

    def on_gpu(self) -> "MemoryEstimate":
        """The part of it in the memory of a GPU."""
        return replace(self, frames=0, waiting=0, is_on_gpu=True)

    def offloaded(self) -> "MemoryEstimate":
        """The rest if the text encoder stays in the main memory, and the VAE comes only to decode."""
        decoding = self.decoding + self.vae
        return replace(self, text_encoder=0, vae=0, decoding=decoding, is_offloaded=True)


def estimate(
    files: ModelFiles, request: Request, dtype: torch.dtype, *, loaded: bool = False, tiles: int = 1
) -> MemoryEstimate:
    """Estimate the memory that a request needs.

    Measured on an H200 (`benchmarks/results/memory.json`): where heads are scored, the transformer holds 10.3
    vectors of its width per token, and two of its FFN's.

    Args:
        files: The model.
        request: What is asked for.
        dtype: Of the computation.
        loaded: Whether the weights are in memory already.
        tiles: Of the VAE's decoder.
    """
    (height, width), batch, config = request.size, len(request.prompts), files.config
    tokens = batch * (height // SIZE_MULTIPLE) * (width // SIZE_MULTIPLE)
    transformer = request.current * tokens * (10.5 * config.dim + 2 * config.ffn_dim) * dtype.itemsize
    bytes_of = {part: 0 if loaded else n * dtype.itemsize for part, n in files.parameters.items()}
    decoder = _decoder(files, request, dtype, tiles)
    pixel_frames = 0 if request.frames is None else files.preset.pixel_frames(request.frames)
    return MemoryEstimate(
        text_encoder=bytes_of["text_encoder"],
        transformer=bytes_of["transformer"],
        vae=bytes_of["vae"],
        cache=float(request.cache_frames() * batch * files.frame_bytes(request.size, dtype)),
        denoising=transformer + SCRATCH,
        decoding=decoder.working + SCRATCH,
        frames=batch * pixel_frames * height * width * 3,
        waiting=decoder.waiting,
    )


def estimates(
    files: ModelFiles, request: Request, dtype: torch.dtype, *, loaded: bool = False, offload: bool = False
) -> list[MemoryEstimate]:
    """Estimate the memory for decoding in one tile, in two, and so on.

    Up to one for each row of latents, and `MOST_TILES` at most.
    """
    whole = estimate(files, request, dtype, loaded=loaded)
    found = [whole]
    for tiles in range(2, min(request.size[0] // files.decoder.stride, MOST_TILES) + 1):
        decoder = _decoder(files, request, dtype, tiles)
        found.append(replace(whole, decoding=decoder.working + SCRATCH, waiting=decoder.waiting))
    return [need.offloaded() if offload else need for need in found]


def _decoder(files: ModelFiles, request: Request, dtype: torch.dtype, tiles: int) -> DecoderMemory:
    stride, (height, width) = files.decoder.stride, request.size
    latents = len(request.prompts), files.preset.chunk_frames, height // stride, width // stride
    return files.decoder.memory(latents, dtype.itemsize, tiles)


def require_memory(
    files: ModelFiles,
    request: Request,
    dtype: torch.dtype,
    device: torch.device,
    *,
    beside: Sequence[Request] = (),
    loaded: bool = False,
    offload: bool = False,
    gpus: int = 1,
) -> int:
    """Refuse a request that does not fit into the memory of a device.

    Args:
        files: The model.
        request: What is asked for.
        dtype: Of the computation.
        device: Where it is needed.
        beside: Other videos that are made in turns with it.
        loaded: Whether the weights are in memory already.
        offload: Whether those of text encoder and VAE are elsewhere.
        gpus: How many GPUs share the KV cache.

    Returns:
        In how many tiles to decode it: as few as fit.

    Raises:
        NotEnoughMemory: If it does not fit in any number of tiles; breaks the least need down, and names the
            first remedy that fits.
    """
    free = available_memory(device)
    needs = (estimate(files, other, dtype) for other in beside)
    others = sum(need.cache / gpus + need.decoding for need in needs)

    def least(needs: Sequence[MemoryEstimate]) -> tuple[int, MemoryEstimate]:
        needs = [replace(need, cache=need.cache / gpus) for need in needs]
        needs = [need if device.type == "cpu" else need.on_gpu() for need in needs]
        tiles = fewest_tiles((need.total + others for need in needs), free)
        return tiles, needs[tiles - 1]

    plain = _Way("", request, dtype, offload)
    tiles, needed = least(plain.estimates(files, loaded))
    if needed.total + others <= free:
        return tiles
    parts = ", ".join(
        f"{size / 1e9:.1f} GB {what}"
        for what, size in (
            ("weights", needed.weights),
            ("KV cache", needed.cache),
            ("activations", needed.activations + needed.waiting),
            ("decoded frames", needed.frames),
            ("the videos made in turns with it", others),
        )
        if size
    )
    totals = {
        way.words: least(way.estimates(files, loaded))[1].total + others
        for way in _ways(files, plain, device, loaded)
    }
    fitting = (f"take {words} ({total / 1e9:.1f} GB)" for words, total in totals.items() if total <= free)
    nothing = "take a machine with more memory"
    if totals:
        best = min(totals, key=lambda words: totals[words])
        nothing += f", since not even {best} ({totals[best] / 1e9:.1f} GB) fits"
    raise NotEnoughMemory(
        f"This video needs about {(needed.total + others) / 1e9:.1f} GB of memory ({parts}), but only "
        f"{free / 1e9:.1f} GB are free",
        next(fitting, nothing),
    )


@dataclass(frozen=True)
class _Way:
    """A way to make about the same video."""

    words: str
    """What is to be asked for."""
    request: Request
    dtype: torch.dtype
    offload: bool

    def with_(self, words: str, **changes: Any) -> "_Way":
        return replace(self, words=f"{self.words} {words}".strip(), **changes)

    def estimates(self, files: ModelFiles, loaded: bool) -> list[MemoryEstimate]:
        return estimates(files, self.request, self.dtype, loaded=loaded, offload=self.offload)


def _ways(files: ModelFiles, plain: _Way, device: torch.device, loaded: bool) -> list[_Way]:
    """Ways that take less memory, the dearest first.

    They are another policy, offloading, another precision, several of these, a shorter or a smaller video,
    and at last all of it together.
    """
    preset, request = files.preset, plain.request
    ways = [plain]
    if not request.has_roles:
        sparse = replace(request, policy=choose_policy(preset, "dummy"), plans=())
        ways += [way.with_('policy="dummy"', request=sparse) for way in ways]
    if device.type == "cuda" and not plain.offload:
        ways += [way.with_("offload=True", offload=True) for way in ways]
    if plain.dtype == torch.float32 and not loaded:
        ways += [way.with_('torch_dtype="bfloat16"', dtype=torch.bfloat16) for way in ways]
    ways.sort(key=lambda way: len(way.words.split()))
    for way in [ways[0], *ways[1:][-1:]]:
        for divisor in (2, 4, 8):
            chunks = (request.chunks or 0) // divisor
            if chunks:
                shorter = replace(way.request, frames=chunks * preset.chunk_frames)
                count = preset.pixel_frames(chunks * preset.chunk_frames)
                ways.append(way.with_(f"num_frames={count}", request=shorter))
        for divisor in (2, 4, 8):
            height, width = (side // divisor // SIZE_MULTIPLE * SIZE_MULTIPLE for side in request.size)
            if height and width:
                smaller = replace(way.request, size=(height, width))
                ways.append(way.with_(f'size="{width}x{height}"', request=smaller))
    return ways[1:]
