"""Time one video after another, with and without the VAE."""

import gc
import time
from dataclasses import dataclass, field
from itertools import islice

import torch

from dummyforcing.bench.candidates import Candidate
from dummyforcing.method.plan import Plan
from dummyforcing.pipeline.request import Request
from dummyforcing.runtime.streams import Event, seconds_between


@dataclass(frozen=True)
class Diffusion:
    """A video without the VAE."""

    seconds: tuple[float, ...]
    """Of every chunk, on the device."""
    plans: tuple[tuple[Plan, ...], ...]
    """What the heads saw in every chunk, one plan for each video of a batch."""
    past: tuple[int, ...]
    """Frames that every chunk had before it."""
    cache_bytes: int
    """At the end."""
    peak_bytes: int | None
    """The most that was allocated on the GPU, besides what was there before."""
    growth_bytes: int | None
    """How much of that came after chunk 2, which is when all buffers of a steady state are there."""


@dataclass(frozen=True)
class EndToEnd:
    """A video with the VAE, until its pixel frames are on the host."""

    arrivals: tuple[float, ...]
    """Seconds from the start until pixel frames were there: those of a chunk, or of a part of the first."""
    pixel_frames: tuple[int, ...]
    """How many of each video of a batch came each time."""
    first_frame: float
    """Seconds until the first pixel frame was there."""
    peak_bytes: int | None


@dataclass
class Record:
    """Measurements of one configuration."""

    warm_up_s: float
    peak_bytes: int | None
    """As of a video, but in the warm-up, when buffers are made that later videos find."""
    reserved_bytes: int | None
    """The most that torch held of the GPU's memory then, having begun with nothing in stock."""
    diffusion: list[Diffusion] = field(default_factory=list)
    end_to_end: list[EndToEnd] = field(default_factory=list)
    alone: list[Diffusion] = field(default_factory=list)
    """The videos of a batch one after another, as often as `diffusion` has the batch."""
    alone_end_to_end: list[EndToEnd] = field(default_factory=list)
    """Likewise, as `end_to_end`."""


class Memory:
    """Peak of the GPU's memory since this was made, besides what was allocated then; None on a CPU."""

    def __init__(self, device: torch.device) -> None:
        gc.collect()  # what remains of the video before
        self._device, self._before = device, 0
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)

    def peak(self) -> int | None:
        """Bytes, so far."""
        if self._device.type != "cuda":
            return None
        return torch.cuda.max_memory_allocated(self._device) - self._before


def warm_up(candidate: Candidate, request: Request, chunks: int | None, with_vae: bool) -> Record:
    """Make a video, or its first chunks, that does not count: kernels are built, graphs are captured."""
    total = request.length // request.chunk_frames
    device, count = candidate.pipeline.device, min(chunks or total, total)
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
    memory, start = Memory(device), time.perf_counter()
    if with_vae:
        stream = candidate.pipeline.run(request)
        for _ in islice(stream, count):
            pass
        del stream
    else:
        rollout = candidate.pipeline.rollout(request)
        for _ in range(count):
            rollout.next_latents()
    if device.type != "cuda":
        return Record(time.perf_counter() - start, None, None)
    torch.cuda.synchronize(device)
    return Record(time.perf_counter() - start, memory.peak(), torch.cuda.max_memory_reserved(device))


def diffuse(candidate: Candidate, request: Request) -> Diffusion:
    """Make the latents of a video and time its chunks; nothing waits for the device before the end."""
    device = candidate.pipeline.device
    memory = Memory(device)
    rollout, total = candidate.pipeline.rollout(request), request.length // request.chunk_frames
    plans, past, early, events = [], [], None, [Event(device)]
    for chunk in range(total):
        plans.append(rollout.sampler.plans)
        latents = rollout.next_latents()
        events.append(Event(device))
        past.append(rollout.sampler.frames - latents.shape[1])
        if chunk == min(2, total - 1):
            early = memory.peak()
    seconds, peak = seconds_between(events), memory.peak()
    rollout.require_finite()
    growth = None if peak is None or early is None else peak - early
    cache_bytes = rollout.sampler.cache.nbytes
    return Diffusion(tuple(seconds), tuple(plans), tuple(past), cache_bytes, peak, growth)


def make_video(candidate: Candidate, request: Request) -> EndToEnd:
    """Make a video as `dummyforcing generate` does, up to its pixel frames on the host."""
    memory, start = Memory(candidate.pipeline.device), time.perf_counter()
    arrivals, pixel_frames, first_frame = [], [], 0.0
    for chunk in candidate.pipeline.run(request):
        arrivals.append(time.perf_counter() - start)
        pixel_frames.append(chunk.frames.shape[1])
        first_frame = chunk.timings.first_frame
    return EndToEnd(tuple(arrivals), tuple(pixel_frames), first_frame, memory.peak())
