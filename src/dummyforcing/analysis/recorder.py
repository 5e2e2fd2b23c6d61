"""Recording: make videos as the model was trained to, and watch every attention call."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dummyforcing.analysis.atlas import Atlas, Settings
from dummyforcing.cache.head_group import HeadGroup
from dummyforcing.errors import BadRequest
from dummyforcing.method.policy import Policy
from dummyforcing.method.scoring import RowSampler, frame_regions, region_mass, row_sampler
from dummyforcing.models.wan import fingerprint
from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from dummyforcing.pipeline.request import make_request
from dummyforcing.sampling.passes import Call

MOST_DISTANCES = 32
"""Frames farther back than this share one bin."""


def record(
    pipeline: DummyForcingPipeline,
    prompts: Sequence[str],
    policy: Policy,
    *,
    chunks: Sequence[int] | None = None,
    calls: Sequence[int | None] | None = None,
    seeds: Sequence[int] = (0,),
    num_frames: int = 81,
    size: tuple[int, int] | None = None,
    on_chunk: Callable[[], object] = lambda: None,
) -> Atlas:
    """Make a video of every prompt with every seed, not decoded, and measure where all heads look.

    The videos see what the model was trained to see (its native policy), so that every head can show what it
    would use.

    Args:
        pipeline: The model.
        prompts: What the videos show.
        policy: Says which query rows are sampled, and how many frames count as the first ones.
        chunks: Which chunks to watch, from 1; None: all of them.
        calls: Which denoising steps to watch, from 0, and None for the commit pass; None: all of these.
        seeds: Of the noise.
        num_frames: Pixel frames per video.
        size: Height and width in pixels; None: the model's own.
        on_chunk: Called after every chunk.

    Returns:
        The atlas, without `Settings.made`.

    Raises:
        UserError: If anything of it cannot be done.
    """
    files, config = pipeline.files, pipeline.model.config
    whole = make_request(files, prompts, num_frames=num_frames, size=size, policy="native")
    chunks = _checked("chunks", "chunk", range(1, whole.length // whole.chunk_frames), chunks)
    steps = range(len(files.preset.schedule.steps))
    asked = None if calls is None else [call for call in calls if call is not None]
    watched: tuple[int | None, ...] = _checked("calls", "denoising step", steps, asked)
    if calls is None or None in calls:
        watched = (*watched, None)
    if not watched or not chunks:
        raise BadRequest("There is nothing to watch", "ask for one step and one chunk at least")
    pipeline.warn_of(whole)

    past = chunks[-1] * files.preset.chunk_frames
    bins = 2 + max(1, min(past - policy.first_frames, MOST_DISTANCES))
    shape = (len(chunks), len(watched), config.num_layers, config.num_heads, bins)
    mass = np.empty((len(prompts), len(seeds), *shape), np.float32)
    # One video at a time: batches are no faster, and the memory stays that of one video.
    for number, prompt in enumerate(whole.prompts):
        for column, seed in enumerate(seeds):
            request = make_request(
                files, prompt, num_frames=num_frames, size=size, seed=seed, policy="native"
            )
            watcher = _Watcher(chunks, watched, policy, shape, pipeline.device)
            rollout = pipeline.rollout(request, watcher)
            for _ in range(chunks[-1] + 1):
                rollout.next_latents()
                on_chunk()
            rollout.require_finite()
            mass[number, column] = watcher.mass.cpu().numpy()
    settings = Settings(
        prompts=whole.prompts,
        seeds=tuple(seeds),
        chunks=chunks,
        calls=watched,
        first_frames=policy.first_frames,
        rows="all" if policy.rows is None else str(policy.rows),
        row_seed=policy.seed,
        model=files.preset.name,
        fingerprint=fingerprint(pipeline.model),
        native=files.preset.native,
        chunk_frames=files.preset.chunk_frames,
        size=whole.size,
        device=str(pipeline.device.type),
        dtype=str(pipeline.dtype).removeprefix("torch."),
    )
    return Atlas(mass, settings)


class _Watcher:
    """An observer that keeps the mass per frame of one rollout, on the device, until it is asked for."""

    def __init__(
        self,
        chunks: Sequence[int],
        calls: Sequence[int | None],
        policy: Policy,
        shape: tuple[int, ...],
        device: torch.device,
    ) -> None:
        self._places = {
            Call(chunk, call): (i, j) for i, chunk in enumerate(chunks) for j, call in enumerate(calls)
        }
        self._rows: RowSampler = row_sampler(policy)
        self._bins = shape[-1]
        self._label = partial(frame_bins, first=policy.first_frames, bins=self._bins)
        self.mass = torch.full(shape, torch.nan, device=device)

    def __call__(self, call: Call, layer: int, q: Tensor, groups: Sequence[HeadGroup]) -> None:
        if (place := self._places.get(call)) is None:
            return
        rows = self._rows(layer, q.shape[1])
        found = region_mass(q, groups, rows, self._label, self._bins)
        (group,) = groups  # all heads see the same in the native window
        slots = len(group.frames[0])
        labels = self._label(torch.tensor(group.frames[:1]), q.shape[1] * slots // group.k.shape[1])
        for there in set(labels[0].tolist()):
            self.mass[(*place, layer, slice(None), there)] = found[0, :, there]


def frame_bins(frames: Tensor, current: int, first: int, bins: int) -> Tensor:
    """Tell for each frame slot the bin of `Atlas.mass` that it belongs to.

    Args:
        frames: Absolute frame number in each slot, `(H, slots)` int64, in any order.
        current: How many frames, the newest ones, are the current chunk.
        first: How many of the oldest past frames count as first.
        bins: How many bins there are.

    Returns:
        `(H, slots)` int64: 0 current, `bins - 1` first, else how many frames back, up to `bins - 2`.
    """
    regions = frame_regions(frames, current, first)
    back = frames.amax(1, keepdim=True) - current + 1 - frames
    back = back.clamp(0, bins - 2)
    return back.masked_fill(regions == 0, bins - 1)


def _checked(option: str, what: str, allowed: range, asked: Sequence[int] | None) -> tuple[int, ...]:
    """The numbers that were asked for by an option, sorted; None: all that are allowed."""
    if wrong := sorted(set(asked or ()) - set(allowed)):
        choice = f"{allowed[0]} to {allowed[-1]}" if allowed else "none, make the video longer"
        raise BadRequest(f"There is no {what} {wrong[0]} to watch", f"there are {choice}", option)
    if not allowed:
        raise BadRequest(
            f"There is no {what} to watch: the video has one chunk only", "make it longer", "num_frames"
        )
    return tuple(sorted(set(asked))) if asked is not None else tuple(allowed)
