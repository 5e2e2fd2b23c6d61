"""What can be asked of a model, complete; and the device and precision that it is computed in."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from dummyforcing.errors import UserError
from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.method.policy import Policy
from dummyforcing.presets.preset import PIXEL_FRAMES_PER_FRAME, Preset
from dummyforcing.sampling.classifier import Guard, recalled_context
from dummyforcing.sampling.teacache import Calibration

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Options(TypedDict, total=False):
    """What can be chosen for a video besides its prompt; the defaults are those of `ModelFiles.request`."""

    frames: int
    """Pixel frames; 81 by default."""
    size: tuple[int, int] | str | None
    """Height and width in pixels, multiples of 16, or `480p`, `720p`, `1080p` or `WIDTHxHEIGHT`; the preset's
    size by default."""
    seed: int
    """Seeds the noise; sample i of a batch uses `seed + i`. 0 by default."""
    policy: str | Policy
    """`dummy` by default; `anchored`, `dense`, `native` (what the model was trained for),
    `window:SINK,RECENT`, `long`, `official`, or a policy of your own."""
    dummy_fraction: float | None
    """Share of the heads that become dummy; the preset's by default."""
    budget: str | None
    """What policy `long` may cost: `window:N`, as much as if every head saw N frames, the chunk included, or
    the size of a video's KV cache, such as `2GB`. `window:12` by default."""
    plan: Plan | Literal["shipped"] | None
    """Used from the first chunk on, nothing is classified then; `shipped`: the one that the model brings."""
    guard: Guard | None
    """Watches over a very long video whether the plan still fits, and has the heads classified anew where it
    does not. None by default: they are classified once."""
    image: str | Path | None
    """Image file that the video begins with, on models that can."""
    video: str | Path | None
    """Video file whose first frames the video begins with, or that it is made from, as the model has it."""
    strength: float | None
    """How much of `video` is made anew where it is not the beginning, above 0 and up to 1; 0.7 by default."""
    switches: Sequence[tuple[float, str]]
    """Changes of the prompt: seconds from the start of the video, and the prompt from then on."""
    fade: int
    """Chunks over which a prompt fades into the next; 1 by default."""
    teacache: float | str | Sequence[int] | Calibration | None
    """TeaCache: the expected error below which a denoising step is left out, 0.2 in the public code; or a
    table of `calibration.calibrate`, as such or as `FILE` or `FILE:ERROR` (`shipped`: the file that the model
    brings); or the numbers of the steps to leave out, from 0. None by default: all steps run."""


@dataclass(frozen=True)
class Switch:
    """A change of the prompt."""

    frame: int
    """The latent frame that the first chunk with the new prompt begins with."""
    prompt: str


@dataclass(frozen=True)
class Request:
    """One video, or a batch of them, complete and checked."""

    prompts: tuple[str, ...]
    frames: int
    """Latent frames."""
    chunks: int
    size: tuple[int, int]
    """Height and width in pixels."""
    seed: int
    policy: Policy
    plan: Plan | None
    current: int
    """Latent frames that are denoised at a time."""
    past: int | None = None
    """Past frames that there is room for in heads that see all of them; None: the whole video."""
    start: NDArray[np.uint8] | None = None
    """Pixel frames that the video begins with, `(n, H, W, 3)`; whole chunks."""
    source: NDArray[np.uint8] | None = None
    """Pixel frames of a video to make this one from, `(n, H, W, 3)`; of the same length."""
    strength: float = 1.0
    """How much of `source` is made anew: the first noise level over the highest."""
    switches: tuple[Switch, ...] = ()
    fade: int = 1
    """Chunks over which a prompt fades into the next."""
    teacache: float | tuple[int, ...] | Calibration | None = None
    """Expected error below which a denoising step is left out, the steps to leave out, or a table that says
    which; None: all run."""
    guard: Guard | None = None
    """Has heads classified anew where they look elsewhere; None: they are classified once."""

    @property
    def has_roles(self) -> bool:
        """Whether heads have roles, given or to be found."""
        return self.plan is not None or self.policy.roles is not None

    @property
    def has_plan(self) -> bool:
        """Whether the video ends with a plan: given, or found on the way."""
        return self.plan is not None or (
            self.policy.roles is not None and self.chunks > self.policy.classify_at_chunk
        )

    @property
    def scenes(self) -> tuple[tuple[int, str], ...]:
        """The pixel frame that each prompt begins with, and the prompt (the first one, of a batch)."""
        later = [(1 + PIXEL_FRAMES_PER_FRAME * (s.frame - 1), s.prompt) for s in self.switches]
        return ((0, self.prompts[0]), *later)

    def cache_frames(self) -> float:
        """Latent frames that the cache holds at most, mean over heads; exact if nothing is classified."""
        chunk = self.frames // self.chunks
        most = self.frames if self.past is None else self.past + self.current

        def held(context: HeadContext, most: int = most) -> int:
            return most if context.total is None else context.total + self.current

        if self.plan is not None:
            counts = self.plan.counts
            heads = sum(counts.values())
            found = sum(held(context) * counts[role] for role, context in self.plan.table.items()) / heads
            return max(found, held(recalled_context(self.policy, chunk))) if self.guard else found
        if self.policy.roles is None:
            return held(self.policy.initial)
        classified = self.policy.classify_at_chunk * chunk + self.current
        before = held(self.policy.initial, min(most, classified))
        if not self.has_plan:
            return before
        if self.guard:
            before = max(before, held(recalled_context(self.policy, chunk)))
        if self.policy.budget is not None:
            return max(before, float(self.policy.budget + self.current))
        return max(before, *(held(context) for context in self.policy.roles.values()))


class Begin(TypedDict, total=False):
    """The fields of a `Request` that say how a video begins."""

    start: NDArray[np.uint8]
    source: NDArray[np.uint8]
    strength: float


def read_begin(
    preset: Preset,
    image: str | Path | None,
    video: str | Path | None,
    strength: float | None,
    frames: int,
    size: tuple[int, int],
) -> Begin:
    """Read what a video is to begin with, or to be made from.

    Args:
        preset: Of the model; says which of it the model can do.
        image: Image file.
        video: Video file.
        strength: How much of `video` is made anew.
        frames: Latent frames of the video to make.
        size: Its height and width in pixels.

    Returns:
        The fields of a `Request` that say so.

    Raises:
        UserError: If the model cannot do that, or a file cannot be read.
    """
    if strength is not None and (video is None or preset.start != "chunk"):
        raise UserError("--strength goes with --video on a model that is made from a video; leave it out.")
    if image is None and video is None:
        return {}
    if preset.start is None:
        raise UserError(
            f"Model '{preset.name}' starts from a prompt alone; leave out --image and --video, or take "
            f"another model, such as causal-forcing-frame."
        )
    if image is not None and video is not None:
        raise UserError("--image and --video both say how the video begins; give one of them.")
    if image is not None and preset.start == "clip":
        raise UserError(
            f"Model '{preset.name}' goes on from a clip of {preset.pixel_frames(preset.chunk_frames)} "
            "pixel frames, not from an image; give --video, or take model causal-forcing-frame."
        )
    from dummyforcing.media.video import read_image, read_video

    chunk = preset.pixel_frames(preset.chunk_frames)
    if image is not None:
        return {"start": read_image(image, size).repeat(chunk, 0)}
    assert video is not None
    if preset.start != "chunk":
        return {"start": read_video(video, chunk, size, preset.fps)}
    if strength is not None and not 0 < strength <= 1:
        raise UserError(f"A strength of {strength:g} is out of range; take more than 0, and 1 at most.")
    source = read_video(video, preset.pixel_frames(frames), size, preset.fps)
    return {"source": source, "strength": 0.7 if strength is None else strength}


def place_switches(
    preset: Preset, switches: Sequence[tuple[float, str]], fade: int, frames: int
) -> tuple[Switch, ...]:
    """Place changes of the prompt, the earliest first, at latent frames.

    Args:
        preset: Of the model.
        switches: Seconds from the start of the video, and the prompt from then on.
        fade: Chunks that each of them takes.
        frames: Latent frames of the video.

    Raises:
        UserError: If one comes too late to be seen, or has no prompt, or two come in the same chunk.
    """
    found: dict[int, Switch] = {}
    chunk = preset.chunk_frames
    if fade < 1:
        raise UserError(f"A prompt cannot fade over {fade} chunks; take 1 or more.")
    for seconds, prompt in sorted(switches, key=lambda switch: switch[0]):
        last = max(preset.pixel_frames(frames - chunk), 0) / preset.fps
        if not prompt.strip():
            raise UserError("The prompt to change to is empty; say what the video shall show then.")
        if not 0 < seconds <= last:
            raise UserError(
                f"The prompt cannot change at {seconds:g} s; the last chunk of this video begins at "
                f"{last:.1f} s."
            )
        earliest = math.ceil((seconds * preset.fps - 1) / PIXEL_FRAMES_PER_FRAME) + 1
        frame = math.ceil(earliest / chunk) * chunk
        if frame in found:
            raise UserError(
                f"The prompts '{found[frame].prompt}' and '{prompt}' would begin in the same chunk; leave "
                f"{chunk * PIXEL_FRAMES_PER_FRAME / preset.fps:g} s between them."
            )
        found[frame] = Switch(frame, prompt)
    return tuple(found.values())


def choose_device(device: str | torch.device) -> torch.device:
    """The device of a name; `auto` is a GPU if there is one.

    Raises:
        UserError: If there is no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"There is no device '{device}'; take auto, cpu or cuda.") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UserError(f"There is no GPU '{device}' that torch can use; take device 'cpu' or 'auto'.")
    return chosen


def choose_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The dtype of a name; None: bfloat16 on a GPU, else float32.

    Raises:
        UserError: If the name is none of `DTYPES`.
    """
    if dtype is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise UserError(f"There is no dtype '{dtype}'; take {' or '.join(DTYPES)}.")
    return DTYPES[dtype]
