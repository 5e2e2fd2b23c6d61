"""Requests: what is asked of a model, complete and checked against it.

request = make_request(ModelFiles.open("tiny"), "a red ball bounces", num_frames=81)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.errors import BadRequest
from dummyforcing.files.finite import all_finite, faults
from dummyforcing.files.text import whole_prompt
from dummyforcing.method.budget import DEFAULT_BUDGET, past_within
from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.method.policy import Policy
from dummyforcing.pipeline.beginning import read_begin
from dummyforcing.pipeline.choices import (
    check_first_frames,
    check_guard,
    check_key_frames,
    check_teacache,
    choose_heads,
    choose_policy,
)
from dummyforcing.pipeline.devices import choose_device, choose_dtype
from dummyforcing.pipeline.option import shorten
from dummyforcing.pipeline.options import VideoOptions, choose
from dummyforcing.pipeline.shipped import read_plans, read_teacache
from dummyforcing.pipeline.switches import Switch, place_switches, read_switches
from dummyforcing.presets.preset import PIXEL_FRAMES_PER_FRAME, SIZE_MULTIPLE, Preset, parse_size
from dummyforcing.sampling.guard import Guard, recalled_context
from dummyforcing.sampling.teacache import Calibration

ENDLESS_FRAMES = 60
"""Latent frames for which the memory of a video without end is estimated, if it keeps all of them: 15 s."""


@dataclass(frozen=True)
class Request:
    """One video, or a batch of them, complete and checked."""

    prompts: tuple[str, ...]
    frames: int | None
    """Latent frames; None: the video has no end."""
    size: tuple[int, int]
    """Height and width in pixels."""
    seed: int
    """Of the first sample's noise, unless it has `generators`."""
    policy: Policy
    plans: tuple[Plan, ...]
    """Given to begin with, one per sample; empty: they are found, or there are none."""
    current: int
    """Latent frames that are denoised at a time."""
    chunk_frames: int
    """Latent frames that become final together."""
    past: int | None = None
    """Past frames that there is room for in heads that see all of them; None: the whole video."""
    start: NDArray[np.uint8] | None = None
    """Pixel frames that the video begins with, `(n, H, W, 3)`; whole chunks."""
    source: NDArray[np.uint8] | None = None
    """Pixel frames of a video to make this one from, `(n, H, W, 3)`; of the same length."""
    strength: float = 1.0
    """How much of `source` is changed: the first noise level over the highest."""
    switches: tuple[Switch, ...] = ()
    fade: int = 1
    """Chunks over which a prompt fades into the next."""
    teacache: float | tuple[int, ...] | Calibration | None = None
    """Expected error below which a denoising step is left out, the steps to leave out, or a table that says
    which; None: all run."""
    guard: Guard | None = None
    """Has heads classified again where they look elsewhere; None: they are classified once."""
    generators: tuple[torch.Generator, ...] | None = None
    """Draw the noise, one per sample; None: they are made of the seed."""
    prompt_embeds: Tensor | None = None
    """Text encoder's output, `(B, text_len, text_dim)`; None: the prompts are encoded."""

    @property
    def plan(self) -> Plan | None:
        """The given plan of the first sample."""
        return self.plans[0] if self.plans else None

    @property
    def chunks(self) -> int | None:
        """Chunks of the video; None: it has no end."""
        return None if self.frames is None else self.frames // self.chunk_frames

    @property
    def length(self) -> int:
        """Latent frames of a video that has an end.

        Raises:
            BadRequest: If it has none.
        """
        if self.frames is None:
            raise BadRequest("This needs a video that has an end", "give num_frames", "num_frames")
        return self.frames

    @property
    def has_roles(self) -> bool:
        """Whether heads have roles, given or to be found."""
        return bool(self.plans) or self.policy.roles is not None

    @property
    def has_plan(self) -> bool:
        """Whether the video ends with a plan: given, or found on the way."""
        return bool(self.plans) or (
            self.policy.roles is not None
            and (self.chunks is None or self.chunks > self.policy.classify_at_chunk)
        )

    @property
    def scenes(self) -> tuple[tuple[int, str], ...]:
        """The pixel frame that each prompt begins with, and the prompt (the first one, of a batch)."""
        later = [(1 + PIXEL_FRAMES_PER_FRAME * (s.frame - 1), s.prompt) for s in self.switches]
        return ((0, self.prompts[0]), *later)

    def cache_frames(self) -> Fraction:
        """Latent frames that the cache holds at most, mean over heads; exact if nothing is classified.

        Of a video without end that keeps all of it, as long as `ENDLESS_FRAMES` last.
        """
        chunk = self.chunk_frames
        longest = ENDLESS_FRAMES if self.frames is None else self.frames
        most = longest if self.past is None else self.past + self.current

        def held(context: HeadContext, most: int = most) -> Fraction:
            return Fraction(most if context.total is None else context.total + self.current)

        if self.plans:
            counted = [
                (held(context), plan.counts[role])
                for plan in self.plans
                for role, context in plan.table.items()
            ]
            found = sum((frames * heads for frames, heads in counted), Fraction())
            found /= sum(heads for _, heads in counted)
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
            return max(before, Fraction(self.policy.budget + self.current))
        return max(before, *(held(context) for context in self.policy.roles.values()))


def make_request(
    files: ModelFiles,
    prompt: str | Sequence[str] | None,
    *,
    cache_dtype: torch.dtype | None = None,
    **options: Any,
) -> Request:
    """Check what is asked of a model and fill in its defaults.

    Args:
        files: The model.
        prompt: One prompt, or several for a batch.
        cache_dtype: Of keys and values, for a budget in bytes; None: as models are loaded by default.
        **options: See `VideoOptions`.

    Raises:
        UserError: If anything of it cannot be done.
    """
    return check_request(files, prompt, choose(VideoOptions, options, files.preset.options), cache_dtype)


def check_request(
    files: ModelFiles,
    prompt: str | Sequence[str] | None,
    options: VideoOptions,
    cache_dtype: torch.dtype | None = None,
) -> Request:
    """`make_request` of options that are complete."""
    preset = files.preset
    prompts = _prompts(files, prompt, options.prompt_embeds)
    if options.seconds is not None:
        frames: int | None = preset.latent_frames(preset.pixel_frames_for(options.seconds))
    else:
        frames = None if options.num_frames is None else preset.latent_frames(options.num_frames)
    size = _size(preset, options)
    policy = choose_policy(preset, options.policy, frames)
    plans = read_plans(files, options.plan, len(prompts))
    plan = plans[0] if plans else None
    policy = choose_heads(policy, plan, options.dummy_fraction, options.budget)
    if policy.budget is not None and plan is None and (options.budget or isinstance(options.policy, str)):
        past = _past_within(files, options.budget or DEFAULT_BUDGET, size, cache_dtype)
        policy = replace(policy, budget=past)
    check_first_frames(preset, policy)
    check_key_frames(
        preset, [*policy.contexts, *(context for one in plans for context in one.table.values())]
    )
    for one in plans:
        one.require(files.config.num_layers, files.config.num_heads)
    guard = options.guard if not isinstance(options.guard, int | float) else Guard(tolerance=options.guard)
    begin = read_begin(
        preset, options.image, options.video, options.video_from, options.strength, frames, size
    )
    teacache = read_teacache(files, options.teacache)
    return Request(
        prompts,
        frames,
        size,
        options.seed,
        policy,
        plans,
        current=preset.current_frames,
        chunk_frames=preset.chunk_frames,
        past=preset.past_frames(frames),
        switches=place_switches(preset, read_switches(options.switches), options.fade, frames),
        fade=options.fade,
        teacache=check_teacache(preset, teacache, begin.get("strength", 1.0)),
        guard=check_guard(preset, guard, policy, plan),
        generators=_generators(options.generator, len(prompts)),
        prompt_embeds=options.prompt_embeds,
        **begin,
    )


def _prompts(files: ModelFiles, prompt: str | Sequence[str] | None, embeds: Tensor | None) -> tuple[str, ...]:
    if embeds is not None:
        if prompt is not None:
            raise BadRequest("A prompt and prompt_embeds say the same", "give one of them", "prompt_embeds")
        size = files.config.text_len, files.config.text_dim
        if embeds.ndim != 3 or not len(embeds) or tuple(embeds.shape[1:]) != size:
            raise BadRequest(
                f"prompt_embeds of shape {tuple(embeds.shape)} do not fit model '{files.preset.name}'",
                f"give (B, {size[0]}, {size[1]}), as its text encoder does",
                "prompt_embeds",
            )
        if not all_finite(embeds):
            raise BadRequest(
                f"Of prompt_embeds, {faults(embeds)}", "give what a text encoder made", "prompt_embeds"
            )
        return ("",) * len(embeds)
    return check_prompts(prompt or ())


def check_prompts(prompt: str | Sequence[str]) -> tuple[str, ...]:
    """One prompt or several as a tuple.

    Raises:
        BadRequest: If there is none, or one is empty or no text.
    """
    prompts = tuple(prompt) if isinstance(prompt, list | tuple) else (prompt,)
    if not all(isinstance(text, str) for text in prompts):
        raise BadRequest(f"prompt={shorten(prompt)} is no text", "give a str, or a list of them", "prompt")
    if not prompts or not all(text.strip() for text in prompts):
        raise BadRequest("The prompt is empty", "say what the video shall show", "prompt")
    return tuple(whole_prompt(text, "prompt") for text in prompts)


def _size(preset: Preset, options: VideoOptions) -> tuple[int, int]:
    """Height and width in pixels."""
    size = parse_size(options.size) if isinstance(options.size, str) else options.size or preset.size
    height, width = options.height or size[0], options.width or size[1]
    if min(height, width) < SIZE_MULTIPLE or height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
        nearest = [max(1, round(side / SIZE_MULTIPLE)) * SIZE_MULTIPLE for side in (width, height)]
        raise BadRequest(
            f"Size {width}x{height} (width x height) is no multiple of {SIZE_MULTIPLE} pixels",
            f"the nearest is {nearest[0]}x{nearest[1]}",
            "size",
        )
    return height, width


def _generators(
    generator: torch.Generator | Sequence[torch.Generator] | None, batch: int
) -> tuple[torch.Generator, ...] | None:
    if generator is None:
        return None
    generators = (generator,) if isinstance(generator, torch.Generator) else tuple(generator)
    if len(generators) != batch:
        raise BadRequest(
            f"{len(generators)} generators cannot draw the noise of {batch} videos",
            "give a list of one for each",
            "generator",
        )
    if any(one.device.type != "cpu" for one in generators):
        raise BadRequest(
            "Noise is drawn on the CPU, so that a seed gives the same video on every device",
            "give a generator of the CPU, such as torch.Generator().manual_seed(0)",
            "generator",
        )
    return generators


def _past_within(
    files: ModelFiles, budget: str, size: tuple[int, int], dtype: torch.dtype | None
) -> Fraction:
    """Past frames per head, mean over heads, that a budget pays for in a video of that size."""
    preset = files.preset
    frame_bytes = files.frame_bytes(size, dtype or choose_dtype(None, choose_device("auto")))
    current = preset.current_frames
    # Where pinned frames move along, sink heads keep the keys of one frame as they came, too.
    fixed_bytes = current * frame_bytes + (frame_bytes // 2 if preset.local_attention_size else 0)
    return past_within(budget, current, frame_bytes, fixed_bytes)
