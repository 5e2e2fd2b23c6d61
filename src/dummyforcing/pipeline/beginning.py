"""The picture or clip that a video begins with, or is made from."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from dummyforcing.errors import BadRequest
from dummyforcing.presets.preset import Preset

if TYPE_CHECKING:
    from PIL.Image import Image


class Begin(TypedDict, total=False):
    """The fields of a `Request` that say how a video begins."""

    start: NDArray[np.uint8]
    source: NDArray[np.uint8]
    strength: float


def read_begin(
    preset: Preset,
    image: "str | Path | Image | None",
    video: "str | Path | Sequence[Image] | None",
    video_from: Literal["end", "start"],
    strength: float | None,
    frames: int | None,
    size: tuple[int, int],
) -> Begin:
    """Read what a video is to begin with, or to be made from.

    Args:
        preset: Of the model; says which of it the model can do.
        image: Image, or its file.
        video: Frames at the preset's rate, or a video file.
        video_from: Whether to go on from its last or its first frames.
        strength: How much of `video` is changed.
        frames: Latent frames of the video to make.
        size: Its height and width in pixels.

    Returns:
        The fields of a `Request` that say so.

    Raises:
        BadRequest: If the model cannot do that.
        BadFile: If a file cannot be read.
    """
    if strength is not None and (video is None or preset.start != "chunk"):
        raise BadRequest(
            "A strength goes with a video on models that make one from it", "leave it out", "strength"
        )
    if image is None and video is None:
        return {}
    if preset.start is None:
        raise BadRequest(
            f"Model '{preset.name}' starts from a prompt alone",
            "leave out image and video, or take another model, such as "
            f"{'self-forcing' if image is None else 'causal-forcing-frame'}",
        )
    if image is not None and video is not None:
        raise BadRequest("An image and a video both say how the video begins", "give one of them")
    if image is not None and preset.start == "clip":
        raise BadRequest(
            f"Model '{preset.name}' goes on from a clip of {preset.pixel_frames(preset.chunk_frames)} "
            "pixel frames, not from an image",
            "give a video, or take model causal-forcing-frame",
            "image",
        )
    chunk = preset.pixel_frames(preset.chunk_frames)
    if preset.start != "chunk" and frames is not None and frames <= preset.chunk_frames:
        raise BadRequest(
            f"A video of {preset.pixel_frames(frames)} pixel frames has nothing new: it begins with as many "
            "that are given",
            f"take {preset.pixel_frames(2 * preset.chunk_frames)} or more",
            "num_frames",
        )
    if image is not None:
        return {"start": _picture(image, size).repeat(chunk, 0)}
    assert video is not None
    if preset.start != "chunk":
        return {"start": _frames(video, chunk, size, preset.fps, from_end=video_from == "end")}
    if frames is None:
        raise BadRequest("A video without end cannot be made from another", "give num_frames", "num_frames")
    if preset.sampler == "rolling":
        raise BadRequest(
            f"Model '{preset.name}' has sampler 'rolling', which makes no video from another",
            "leave the video out",
            "video",
        )
    source = _frames(video, preset.pixel_frames(frames), size, preset.fps)
    return {"source": source, "strength": 0.7 if strength is None else strength}


def _picture(image: "str | Path | Image", size: tuple[int, int]) -> NDArray[np.uint8]:
    """An image that covers a size, `(1, H, W, 3)`."""
    from dummyforcing.media.frames import covering, opaque
    from dummyforcing.media.images import read_image

    if isinstance(image, str | os.PathLike):
        return read_image(image, size)
    return covering(opaque(image), size)[None]


def _frames(
    video: "str | Path | Sequence[Image]", count: int, size: tuple[int, int], fps: int, from_end: bool = False
) -> NDArray[np.uint8]:
    """The first or the last frames of a video, each of which covers a size, `(count, H, W, 3)`."""
    from dummyforcing.media.clips import read_video

    if isinstance(video, str | os.PathLike):
        return read_video(video, count, size, fps, from_end=from_end)
    if len(video) < count:
        raise BadRequest(f"A video of {len(video)} frames is too short", f"give {count} or more", "video")
    chosen = video[-count:] if from_end else video[:count]
    return np.concatenate([_picture(image, size) for image in chosen])
