"""Outputs of a pipeline: chunks while a video is made, and finished videos."""

import base64
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dummyforcing.errors import BadRequest, NotFinite
from dummyforcing.media.monitor import Measures
from dummyforcing.media.video import write_mp4
from dummyforcing.method.plan import Plan

OutputType = Literal["np", "pt", "pil", "latent"]


@dataclass(frozen=True)
class Timings:
    """Times of a video, or of a batch of them, since its start (or since it was resumed)."""

    pixel_frames: int = 0
    """Of all videos of the batch."""
    first_frame: float = 0.0
    """Seconds until the first pixel frames were there, encoding of the prompt included."""
    diffusion: float = 0.0
    """Seconds in the transformer. On a GPU, as its own clock has it, from the beginning to the end of each
    chunk; both this and `decode` are longer while the two share the GPU."""
    decode: float = 0.0
    """Seconds in the VAE and on the way to the main memory, likewise."""
    wall: float = 0.0
    """Seconds from the start of the first chunk until the pixel frames were there. On a CPU, the sum of
    `diffusion` and `decode`. On a GPU by the clock, and with what the caller does between chunks, since the
    GPU goes on meanwhile."""

    @property
    def fps(self) -> float:
        """Pixel frames per second of `wall`, diffusion and decoding together."""
        return self.pixel_frames / self.wall

    @property
    def fps_without_vae(self) -> float:
        """Pixel frames per second of `diffusion`."""
        return self.pixel_frames / self.diffusion


@dataclass(frozen=True)
class Chunk:
    """Some finished frames of a video, or of each video of a batch: a chunk, or a part of the first one."""

    frames: NDArray[np.uint8] = field(repr=False)
    """Pixel frames, RGB, `(B, n, H, W, 3)`."""
    timings: Timings
    """From the start of the video to the end of this chunk."""
    plans: tuple[Plan, ...] = field(repr=False)
    """What the heads see in the next chunk, one plan per video."""
    cache_bytes: int
    """Size of the KV cache of the whole batch."""
    measures: tuple[Measures, ...]
    """How each video has fared so far: drift, repetition, motion."""


@dataclass(frozen=True)
class Video:
    """A finished video."""

    frames: NDArray[np.uint8]
    """Pixel frames, RGB, `(F, H, W, 3)`."""
    fps: int
    """Pixel frames per second at which it is to be shown."""
    timings: Timings
    """Of the batch that the video was made in."""
    plan: Plan
    """What the heads saw at the end."""
    cache_bytes: int
    """Size of the batch's KV cache at the end."""

    def save(self, path: str | Path) -> None:
        """Write an mp4.

        Raises:
            BadFile: If the file cannot be written.
        """
        write_mp4(path, self.frames, self.fps)

    def __repr__(self) -> str:
        count, height, width, _ = self.frames.shape
        size = f"{count} frames of {width}x{height}, {count / self.fps:.1f} s"
        return f"Video({size}, made at {_rate(self.timings)})"

    def _repr_html_(self) -> str:
        """The video itself, in a notebook."""
        return _player(self.frames, self.fps)


@dataclass(frozen=True)
class VideoOutput:
    """The videos of one call of a pipeline."""

    frames: Any
    """As `output_type` says: float32 `(B, F, H, W, 3)` or `(B, F, 3, H, W)` in [0, 1], lists of PIL images,
    or latents `(B, F, C, h, w)`."""
    fps: int
    """Pixel frames per second at which they are to be shown."""
    plans: tuple[Plan, ...]
    """What the heads of each video saw at the end."""
    timings: Timings
    """Of the batch."""
    cache_bytes: int
    """Size of the batch's KV cache at the end."""

    def save(self, path: str | Path, index: int = 0) -> None:
        """Write one of the videos as an mp4.

        Raises:
            BadFile: If the file cannot be written.
            NotFinite: If frames hold NaN or infinite numbers.
            BadRequest: If these are latents.
        """
        write_mp4(path, self.pixels(index), self.fps)

    def pixels(self, index: int = 0) -> NDArray[np.uint8]:
        """The pixel frames of one of the videos, RGB, `(F, H, W, 3)`.

        Raises:
            NotFinite: If they hold NaN or infinite numbers.
            BadRequest: If these are latents.
        """
        video = self.frames[index]
        if isinstance(video, list):
            return np.stack([np.asarray(image) for image in video])
        if isinstance(video, torch.Tensor):
            if video.shape[1] != 3:
                raise BadRequest("Latents are no pixel frames", "take another output_type", "output_type")
            video = video.permute(0, 2, 3, 1).cpu().numpy()
        if not np.isfinite(video).all():
            raise NotFinite(
                "These frames cannot be shown: they hold NaN or infinite numbers", "look at what changed them"
            )
        pixels: NDArray[np.uint8] = np.rint(video * 255).astype(np.uint8)
        return pixels

    def __repr__(self) -> str:
        shape = getattr(self.frames, "shape", None)
        what = f"{len(self.frames)} x {len(self.frames[0])} images" if shape is None else f"{tuple(shape)}"
        return f"VideoOutput(frames: {what}, made at {_rate(self.timings)})"

    def _repr_html_(self) -> str:
        """The videos themselves, in a notebook."""
        if isinstance(self.frames, torch.Tensor) and self.frames.shape[2] != 3:
            return f"<code>{self!r}</code>"
        return "".join(_player(self.pixels(index), self.fps) for index in range(len(self.frames)))


def as_output(frames: NDArray[np.uint8], kind: OutputType) -> Any:
    """Pixel frames `(B, F, H, W, 3)` as diffusers' pipelines give them.

    Args:
        frames: RGB.
        kind: `np`, `pt` or `pil`; see `VideoOutput.frames`.
    """
    if kind == "pil":
        from PIL import Image

        return [[Image.fromarray(frame) for frame in video] for video in frames]
    floats = frames.astype(np.float32) / 255
    return torch.from_numpy(floats).permute(0, 1, 4, 2, 3).contiguous() if kind == "pt" else floats


def join(pieces: Sequence[Chunk]) -> Chunk:
    """Several pieces of a video as one."""
    last = pieces[-1]
    frames = np.concatenate([piece.frames for piece in pieces], axis=1)
    return Chunk(frames, last.timings, last.plans, last.cache_bytes, last.measures)


def _rate(timings: Timings) -> str:
    return f"{timings.fps:.1f} FPS" if timings.wall else "unknown speed"


def _player(frames: NDArray[np.uint8], fps: int) -> str:
    """An HTML element that plays a video, which is in it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write_mp4(path, frames, fps)
        data = base64.b64encode(path.read_bytes()).decode()
    width = frames.shape[2]
    return f'<video controls loop autoplay muted width="{width}" src="data:video/mp4;base64,{data}"></video>'
