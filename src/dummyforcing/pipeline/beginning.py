"""The picture or clip that a video begins with, or is made from."""

from pathlib import Path
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from dummyforcing.errors import BadRequest
from dummyforcing.presets.preset import Preset


class Begin(TypedDict, total=False):
    """The fields of a `Request` that say how a video begins."""

    start: NDArray[np.uint8]
    source: NDArray[np.uint8]
    strength: float


def read_begin(
    preset: Preset,
    image: str | Path | None,
    video: str | Path | None,
    video_from: Literal["end", "start"],
    strength: float | None,
    frames: int | None,
    size: tuple[int, int],
) -> Begin:
    """Read what a video is to begin with, or to be made from.

    Args:
        preset: Of the model; says which of it the model can do.
        image: Image file.
        video: Video file.
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
    from dummyforcing.media.clips import read_video
    from dummyforcing.media.images import read_image

    chunk = preset.pixel_frames(preset.chunk_frames)
    if preset.start != "chunk" and frames is not None and frames <= preset.chunk_frames:
        raise BadRequest(
            f"A video of {preset.pixel_frames(frames)} pixel frames has nothing new: it begins with as many "
            "that are given",
            f"take {preset.pixel_frames(2 * preset.chunk_frames)} or more",
            "num_frames",
        )
    if image is not None:
        return {"start": read_image(image, size).repeat(chunk, 0)}
    assert video is not None
    if preset.start != "chunk":
        return {"start": read_video(video, chunk, size, preset.fps, from_end=video_from == "end")}
    if frames is None:
        raise BadRequest("A video without end cannot be made from another", "give num_frames", "num_frames")
    if preset.sampler == "rolling":
        raise BadRequest(
            f"Model '{preset.name}' has sampler 'rolling', which makes no video from another",
            "leave the video out",
            "video",
        )
    source = read_video(video, preset.pixel_frames(frames), size, preset.fps)
    return {"source": source, "strength": 0.7 if strength is None else strength}
