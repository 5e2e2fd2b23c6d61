"""What there is to know about a model besides its weights, as data.

A preset says all that differs between models; no code asks for a model's name. `presets.catalog` finds it.
"""

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any, Literal

from dummyforcing.errors import BadRequest

PIXEL_FRAMES_PER_FRAME = 4
SIZE_MULTIPLE = 16
"""Pixels per token and axis: 8 by the VAE, 2 by the transformer's patches."""
SIZES = {"480p": (480, 832), "720p": (720, 1280), "1080p": (1088, 1920)}
"""Height and width in pixels of sizes with a name."""


SAMPLERS_WITH = {
    "first_schedule": ("block",),
    "overlap_frames": ("block",),
    "recache_frames": ("block",),
    "global_sink": ("block",),
    "context_frames": ("recompute",),
    "keep_first_frame": ("recompute",),
}
"""Fields of presets that only some samplers have a use for, and which ones."""


MOST = 10**6
"""Frames, or chunks, that nobody has more of."""


def _require(record: object, name: str, *, at_least: int, at_most: int = MOST) -> None:
    """Refuse a number that is out of range; None is no number.

    Raises:
        BadRequest: If it is.
    """
    value = getattr(record, name)
    if value is not None and not at_least <= value <= at_most:
        raise BadRequest(f"{name} cannot be {reprlib.repr(value)}", f"take {at_least} to {at_most}")


@dataclass(frozen=True)
class ScheduleArgs:
    """Arguments of `make_schedule`, which makes the denoising steps of a chunk."""

    steps: tuple[float, ...]
    """Noise levels as in the model's own configuration, from 1000 downwards."""
    shift: float
    """Flow shift."""
    warp: bool = True
    """Whether the shift applies to `steps`, or they are timesteps already."""

    def __post_init__(self) -> None:
        falls = all(before > after for before, after in pairwise(self.steps))
        if not (self.steps and falls and self.steps[-1] >= 0 and 0 < self.steps[0] <= 1000):
            raise BadRequest(
                f"A schedule cannot have the steps {list(self.steps)}",
                "give noise levels from 1000 downwards, such as [1000, 750, 500, 250]",
            )
        if self.warp and any(step % 1 for step in self.steps):
            raise BadRequest(
                f"The steps {list(self.steps)} number entries of a table",
                "give whole numbers, or warp = false",
            )
        if not 0 < self.shift < math.inf:
            raise BadRequest(f"A schedule cannot have shift {self.shift:g}", "take more than 0, such as 5")


@dataclass(frozen=True)
class DummyDefaults:
    """The model's settings of the `dummy` policy."""

    classify_at_chunk: int = 1
    """The chunk whose denoising steps are scored; the first chunk is 0."""
    neighbor_frames: int = 3
    """Recent latent frames that a neighbor head keeps."""
    dummy_fraction: float = 0.5
    """Share of all heads that become dummy."""

    def __post_init__(self) -> None:
        _require(self, "classify_at_chunk", at_least=1)
        _require(self, "neighbor_frames", at_least=1)
        _require(self, "dummy_fraction", at_least=0, at_most=1)


@dataclass(frozen=True)
class Source:
    """The place of the transformer's weights."""

    file: str
    """File or folder in the repository; without one, a path, relative to the preset file."""
    repo: str = ""
    """Repository on the Hugging Face Hub."""
    key: str = ""
    """Entry of the file that holds the weights; empty: they are at its top, or in the only entry."""
    lora: str = ""
    """File beside, to merge into the weights; without a repository a path, too."""
    lora_scale: float = 1.0
    """Factor of the LoRA besides its own."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.lora_scale):
            raise BadRequest(f"lora_scale cannot be {self.lora_scale:g}", "give a finite number")


@dataclass(frozen=True)
class Preset:
    """A named model as data."""

    name: str
    description: str
    licence: str
    """Of the weights."""
    chunk_frames: int
    """Latent frames that become final together."""
    schedule: ScheduleArgs
    first_schedule: ScheduleArgs | None = None
    """Of the first chunk; None: as the others."""
    sampler: Literal["block", "rolling", "recompute"] = "block"
    """The loop over chunks."""
    native: str = "dense"
    """The policy that the model was trained for."""
    local_attention_size: int | None = None
    """How many latent frames attention spans, the current ones included: first frames move along with the
    video, to stay as near. None: positions are absolute."""
    max_frames: int | None = None
    """Latent frames of the longest video that the model was trained for; None: no end."""
    overlap_frames: int = 0
    """Latent frames that each further rollout of `max_frames` begins with in a longer video; 0: there is one
    rollout, however long."""
    recache_frames: int = 0
    """Recent frames whose keys and values are made again when the prompt changes."""
    global_sink: bool = False
    """Whether the first frames keep their keys and values then."""
    context_frames: int = 0
    """Finished frames that sampler `recompute` builds its cache from."""
    keep_first_frame: bool = False
    """Whether the first of them is the video's first frame, or is encoded from decoded pixels."""
    start: Literal["frame", "clip", "chunk"] | None = None
    """What a video can begin with: an image as first frame, a clip of whole chunks, or an image that fills
    the first chunk."""
    fps: int = 16
    """Pixel frames per second of video."""
    size: tuple[int, int] = (480, 832)
    """Default height and width in pixels."""
    vae_dtype: Literal["bfloat16", "float16"] | None = None
    """Of the VAE beside a bfloat16 transformer; None: the same."""
    dummy: DummyDefaults = DummyDefaults()
    architecture: Literal["1.3B", "14B"] = "1.3B"
    """Sizes of the transformer where no `config.json` lies beside its weights."""
    source: Source | None = None
    """None: the model is a folder."""
    base: str = ""
    """Folder, relative to the preset file if it is there, or Hub repository with text encoder, tokenizer and
    VAE; empty: they come with the model."""
    note: str = ""
    """What else is to be known, one sentence."""
    rendered_world: bool = False
    """Whether it shows the rendered world of the bundled models, whose objects exact detectors find."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of videos that have other defaults with this model, such as `{policy = "anchored"}`."""

    def __post_init__(self) -> None:
        for name in ("chunk_frames", "local_attention_size", "max_frames"):
            _require(self, name, at_least=1)
        _require(self, "fps", at_least=1, at_most=1000)
        for name in ("overlap_frames", "recache_frames", "context_frames"):
            _require(self, name, at_least=0)
        if min(self.size) < SIZE_MULTIPLE or any(side % SIZE_MULTIPLE for side in self.size):
            raise BadRequest(
                f"A model cannot have size {list(self.size)}", f"give multiples of {SIZE_MULTIPLE} pixels"
            )
        self._require_lengths()
        defaults = {one.name: one.default for one in fields(self)}
        for name, samplers in SAMPLERS_WITH.items():
            if self.sampler not in samplers and getattr(self, name) != defaults[name]:
                raise BadRequest(
                    f"Preset '{self.name}' has {name}, which sampler '{self.sampler}' has no use for",
                    f"leave {name} out, or take sampler '{samplers[0]}'",
                )
        if self.sampler == "recompute" and self.context_frames < 1:
            raise BadRequest(
                "Sampler 'recompute' builds its cache from context_frames, and there are none",
                "give 1 or more",
            )

    def _require_lengths(self) -> None:
        """Refuse lengths in which there is no room for what is made at a time."""
        chunk, current = self.chunk_frames, self.current_frames
        for name in ("max_frames", "local_attention_size"):
            length = getattr(self, name)
            if length is not None and length < current:
                raise BadRequest(
                    f"{name} is {length}, but {current} latent frames are made at a time",
                    f"take {current} or more, or leave it out",
                )
        if not self.overlap_frames:
            return
        if self.max_frames is None or self.overlap_frames > self.max_frames - chunk:
            raise BadRequest(
                f"Each further rollout begins with {self.overlap_frames} frames of the one before, and "
                f"max_frames is {self.max_frames}",
                f"let max_frames be {self.overlap_frames + chunk} or more",
            )
        if self.max_frames % chunk or self.overlap_frames % chunk:
            raise BadRequest(
                f"Rollouts of {self.max_frames} frames that overlap by {self.overlap_frames} do not consist "
                f"of chunks of {chunk}",
                "give multiples of chunk_frames",
            )

    @property
    def current_frames(self) -> int:
        """Latent frames that are denoised at a time: a chunk, or one chunk per noise level."""
        return self.chunk_frames * (len(self.schedule.steps) if self.sampler == "rolling" else 1)

    @property
    def chunk_pixel_frames(self) -> int:
        """Pixel frames that a chunk decodes to; the first one of a video decodes to 3 fewer."""
        return PIXEL_FRAMES_PER_FRAME * self.chunk_frames

    def past_frames(self, frames: int | None) -> int | None:
        """Past frames that there is room for in the cache of a video of `frames` (None: without end).

        None: all of them.
        """
        if self.overlap_frames and self.max_frames is not None:
            return min(frames or self.max_frames, self.max_frames) - self.current_frames
        return self.context_frames or self.local_attention_size

    def farthest(self) -> int | None:
        """The most past frames that a head can see, however long the video is; None: no limit."""
        if self.overlap_frames and self.max_frames is not None:
            return self.max_frames - self.current_frames
        return self.context_frames or (
            self.local_attention_size and self.local_attention_size - self.current_frames
        )

    def pixel_frames(self, frames: int) -> int:
        """Pixel frames that `frames` latent frames decode to: one for the first, four for each other."""
        return 1 + PIXEL_FRAMES_PER_FRAME * (frames - 1)

    def latent_frames(self, pixel_frames: int) -> int:
        """Latent frames that decode to `pixel_frames` pixel frames.

        Raises:
            BadRequest: If no number of whole chunks gives that count; names the nearest that do.
        """
        chunks = self._nearest_chunks(pixel_frames)
        nearest = [self.pixel_frames(self.chunk_frames * n) for n in chunks]
        if pixel_frames not in nearest:
            counts = " or ".join(str(count) for count in nearest)
            raise BadRequest(
                f"{pixel_frames} pixel frames cannot be made in chunks of {self.chunk_frames} latent frames "
                f"by model '{self.name}'",
                f"take {counts}",
                "num_frames",
            )
        return self.chunk_frames * chunks[nearest.index(pixel_frames)]

    def pixel_frames_for(self, seconds: float) -> int:
        """The valid number of pixel frames that comes closest to `seconds` of video.

        Raises:
            BadRequest: If `seconds` is not positive.
        """
        if not 0 < seconds < math.inf:
            raise BadRequest(f"A video cannot last {seconds:g} seconds", "take more than 0", "seconds")
        wanted = seconds * self.fps
        counts = [self.pixel_frames(self.chunk_frames * n) for n in self._nearest_chunks(wanted)]
        return min(counts, key=lambda count: abs(count - wanted))

    def _nearest_chunks(self, pixel_frames: float) -> list[int]:
        """The numbers of chunks just below and just above `pixel_frames`."""
        frames = (pixel_frames - 1) / PIXEL_FRAMES_PER_FRAME + 1
        below = int(frames // self.chunk_frames)
        return [n for n in (below, below + 1) if n > 0] or [1]


def parse_size(text: str) -> tuple[int, int]:
    """Height and width of a name of `SIZES`, or of `WxH`.

    Raises:
        BadRequest: If it is none of these.
    """
    if text in SIZES:
        return SIZES[text]
    width, x, height = text.lower().partition("x")
    if not (x and width.isdecimal() and height.isdecimal()):
        names = ", ".join(SIZES)
        raise BadRequest(
            f"Size '{text}' cannot be read", f"take {names}, or width x height such as 832x480", "size"
        )
    return int(height), int(width)
