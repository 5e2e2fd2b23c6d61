"""Calibrated TeaCache: the denoising steps to leave out, by the error that this was measured to make.

    table = calibrate(pipeline, ["a red ball bounces", "a blue star spins"], error=0.01)
    table.steps  # the most steps within that error
    pipeline.generate("a green ring grows", teacache=table)

The public rule expects an error from the timestep embedding, by a polynomial fitted to one model. Here every
set of steps is left out of the very chunks that a video consists of, and the results are compared.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations

import torch
from torch import Tensor

from dummyforcing.errors import BadRequest, NotFinite
from dummyforcing.method.policy import Policy
from dummyforcing.models.wan import fingerprint
from dummyforcing.pipeline.choices import check_teacache
from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from dummyforcing.pipeline.request import Request, make_request
from dummyforcing.sampling.block import BlockSampler
from dummyforcing.sampling.teacache import Calibration, SkipSet, Steps

MOST_ENUMERATED = 6
"""Denoising steps up to which every set of them is measured."""
DEFAULT_ERROR = 0.01


def calibrate(
    pipeline: DummyForcingPipeline,
    prompts: Sequence[str],
    error: float = DEFAULT_ERROR,
    *,
    policy: str | Policy = "native",
    seeds: Sequence[int] = (0,),
    num_frames: int = 81,
    size: tuple[int, int] | None = None,
    on_chunk: Callable[[], object] = lambda: None,
) -> Calibration:
    """Measure what it does to leave out denoising steps, on videos that are not decoded.

    Up to `MOST_ENUMERATED` steps, every set of them is measured; of more, always the set before and one more
    step, the one that adds the least error.

    Args:
        pipeline: The model.
        prompts: What the videos show.
        error: The highest error that is accepted; see `SkipSet`.
        policy: Which past frames the heads see.
        seeds: Of the videos of each prompt.
        num_frames: Pixel frames per video; a model of several rollouts makes the first one only.
        size: Height and width in pixels; None: the model's own.
        on_chunk: Called after every chunk.

    Returns:
        The table. Two KV caches are in memory at a time.

    Raises:
        UserError: If the model's steps cannot be left out, or anything else of it cannot be done.
    """
    preset = pipeline.files.preset
    check_teacache(preset, [1])
    ask = partial(make_request, pipeline.files, num_frames=num_frames, size=size, policy=policy)
    whole = ask(prompts)
    table = Calibration(
        model=preset.name,
        fingerprint=fingerprint(pipeline.model),
        schedule=preset.schedule,
        policy=preset.native if policy == "native" else getattr(policy, "name", str(policy)),
        frames=num_frames,
        size=whole.size,
        prompts=whole.prompts,
        seeds=tuple(seeds),
        error=error,
        sets=(),
    )
    if whole.length < 2 * whole.chunk_frames:
        raise BadRequest(
            f"{num_frames} pixel frames have no later chunks to measure", "take more of them", "num_frames"
        )
    pipeline.warn_of(whole)
    requests = [ask(prompt, seed=seed) for prompt in whole.prompts for seed in seeds]
    later = range(1, len(preset.schedule.steps))
    if len(later) < MOST_ENUMERATED:
        every = [steps for count in later for steps in combinations(later, count)]
        return replace(table, sets=tuple(_measure(pipeline, requests, every, on_chunk)))
    sets: list[SkipSet] = []
    kept: Steps = ()
    for _ in later:
        longer = [tuple(sorted({*kept, step})) for step in later if step not in kept]
        found = _measure(pipeline, requests, longer, on_chunk)
        kept = min(found, key=lambda one: one.error).steps
        sets += found
    return replace(table, sets=tuple(sets))


def sweeps(steps: int) -> int:
    """Count how many times `calibrate` makes every video of a model with so many denoising steps."""
    return 1 if steps <= MOST_ENUMERATED else steps - 1


def _measure(
    pipeline: DummyForcingPipeline,
    requests: Sequence[Request],
    sets: Sequence[Steps],
    on_chunk: Callable[[], object],
) -> list[SkipSet]:
    """Measure sets of steps on one video per request."""
    first: list[list[float]] = []
    later: list[list[list[float]]] = []
    for request in requests:
        sampler = pipeline.rollout(request).sampler
        assert isinstance(sampler, BlockSampler)
        if sampler.first_schedule:
            sampler.next_chunk()
        else:
            first.append(chunk_errors(sampler, sets).tolist())
        on_chunk()
        chunks = []
        while sampler.frames != sampler.total_frames:
            chunks.append(chunk_errors(sampler, sets))
            on_chunk()
        later.append(torch.stack(chunks, 1).tolist())
    return [
        SkipSet(
            steps,
            tuple(_short(video[number]) for video in first),
            tuple(tuple(map(_short, video[number])) for video in later),
        )
        for number, steps in enumerate(sets)
    ]


def _short(error: float) -> float:
    """Rounded to the digits that mean something.

    Raises:
        NotFinite: If it is NaN or infinite.
    """
    if not math.isfinite(error):
        raise NotFinite(
            "The error of leaving out steps cannot be measured: the model makes NaN or infinite numbers, or "
            "latents that are all alike",
            'load the model with torch_dtype="float32"',
        )
    return float(f"{error:.4g}")


def chunk_errors(sampler: BlockSampler, sets: Sequence[Steps]) -> Tensor:
    """Make the next chunk, and tell how far off it would be with steps left out.

    Every set is left out of the same chunk: of the same noise, after the same past. Whole videos would be no
    measure, since they go apart by whatever sets them apart.

    Args:
        sampler: Leaves out nothing itself; it goes on as if nobody had asked.
        sets: The steps of each try.

    Returns:
        Mean squared change of the finished latents over their variance, `(sets,)` float64, on the device.
    """
    calls = range(len(sampler.schedule.timesteps) + 1)
    tries = [sampler.fork([call in steps for call in calls]).next_chunk() for steps in sets]
    x0 = sampler.next_chunk().double()
    changes = [(found - x0).square().mean() for found in tries]
    return torch.stack(changes) / x0.var(correction=0)
