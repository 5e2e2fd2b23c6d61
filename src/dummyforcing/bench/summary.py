"""The figures of a configuration, from the videos that were timed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import mean, median

import numpy as np
from numpy.typing import NDArray

from dummyforcing.bench.candidates import Candidate
from dummyforcing.bench.flops import Flops, Work
from dummyforcing.bench.measure import Diffusion, EndToEnd, Record
from dummyforcing.method.plan import Plan
from dummyforcing.pipeline.request import Request
from dummyforcing.presets.preset import PIXEL_FRAMES_PER_FRAME

Figures = dict[str, object]


@dataclass(frozen=True)
class Rates:
    """Operations per second that the device reaches in large matrix products."""

    plain: float
    """In the model's dtype."""
    fp8: float | None = None

    def times(self, gpus: int) -> "Rates":
        """Those of several GPUs together."""
        return Rates(self.plain * gpus, None if self.fp8 is None else self.fp8 * gpus)

    def floor(self, work: Flops, mode: str) -> float:
        """Seconds that `work` takes at these rates.

        Args:
            work: What is to be computed.
            mode: `linear`: linear maps are in FP8; `all`: self-attention too; `none`, `vae`: nothing is.
                Cross-attention never is.
        """
        fp8 = self.fp8 or self.plain
        linear, attention = (fp8 if mode in modes else self.plain for modes in (("linear", "all"), ("all",)))
        return work.linear / linear + work.self_attention / attention + work.cross_attention / self.plain


def summarise(record: Record, candidate: Candidate, request: Request, mode: str, rates: Rates) -> Figures:
    """Sum up what was measured of a configuration; docs/benchmark.md says what the figures mean.

    Args:
        record: With one video or more.
        candidate: What made them.
        request: What was asked for.
        mode: `none`, `vae`, `linear` or `all`.
        rates: Of the device.
    """
    videos: Sequence[EndToEnd | Diffusion] = record.end_to_end or record.diffusion
    peak = _most([record.peak_bytes, *(video.peak_bytes for video in videos)])
    return {
        "warm_up_s": short(record.warm_up_s),
        **_speed(record, candidate, request),
        **_end_to_end(record.end_to_end, candidate, request),
        **_one_after_another(record, candidate, request),
        "cache_bytes": record.diffusion[0].cache_bytes,
        "peak_bytes": None if peak is None else peak + candidate.weight_bytes,
        "peak_reserved_bytes": record.reserved_bytes,
        "memory_growth_bytes": _most(video.growth_bytes for video in record.diffusion),
        **_efficiency(record, candidate, request, mode, rates),
    }


def _speed(record: Record, candidate: Candidate, request: Request) -> Figures:
    """Figures of diffusion alone."""
    seconds = np.array([video.seconds for video in record.diffusion])
    latencies = 1000 * seconds[:, steady(request)].ravel()
    return {
        "chunk_ms": [short(1000 * float(s)) for s in np.median(seconds, axis=0)],
        **_fps(seconds, candidate, request),
        "latency_ms": {
            "p50": short(float(np.percentile(latencies, 50))),
            "p99": short(float(np.percentile(latencies, 99))),
            "chunks": latencies.size,
        },
    }


def _fps(seconds: NDArray[np.float64], candidate: Candidate, request: Request) -> Figures:
    """Pixel frames per second of all videos of a request, from the `seconds (n, chunks)` of n times."""
    preset, batch = candidate.pipeline.files.preset, len(request.prompts)
    typical = np.median(seconds, axis=0)
    of_chunk = batch * preset.chunk_frames * PIXEL_FRAMES_PER_FRAME
    return {
        "fps": short(of_chunk / float(np.median(typical[steady(request)]))),
        "fps_video": short(batch * preset.pixel_frames(request.length) / float(typical.sum())),
    }


def _one_after_another(record: Record, candidate: Candidate, request: Request) -> Figures:
    """Figures of the videos of a batch, each made by itself after the other; none if there is but one."""
    if not record.alone:
        return {}
    batch = len(request.prompts)
    seconds = np.array([video.seconds for video in record.alone])
    found = _fps(seconds.reshape(-1, batch, seconds.shape[1]).sum(1), candidate, request)
    videos = record.alone_end_to_end
    if videos:
        half = _pixel_frames_before(candidate, request)
        slowness = np.array([1 / _steady_fps(video, half) for video in videos]).reshape(-1, batch)
        found["fps_end_to_end"] = short(float(np.median(1 / slowness.mean(1))))
    return {"one_after_another": found}


def _end_to_end(videos: Sequence[EndToEnd], candidate: Candidate, request: Request) -> Figures:
    """Figures of whole videos, if there are any."""
    if not videos:
        return {}
    half, batch = _pixel_frames_before(candidate, request), len(request.prompts)
    return {
        "fps_end_to_end": short(batch * median(_steady_fps(video, half) for video in videos)),
        "first_frame_ms": short(1000 * median(video.first_frame for video in videos)),
    }


def _pixel_frames_before(candidate: Candidate, request: Request) -> int:
    """Pixel frames of a video before its second half."""
    preset, before = candidate.pipeline.files.preset, request.length // request.chunk_frames // 2
    return preset.pixel_frames(before * preset.chunk_frames) if before else 0


def _steady_fps(video: EndToEnd, half: int) -> float:
    """Pixel frames per second after the first `half` of them are there."""
    there = dict(zip(accumulate(video.pixel_frames), video.arrivals, strict=True))
    return (sum(video.pixel_frames) - half) / (video.arrivals[-1] - there.get(half, 0.0))


def _efficiency(record: Record, candidate: Candidate, request: Request, mode: str, rates: Rates) -> Figures:
    """Counted work in the time of the second half, against what the device could do."""
    preset, config = candidate.pipeline.files.preset, candidate.pipeline.files.config
    sides = zip(request.size, config.patch_size[1:], strict=True)
    rows, columns = (side // candidate.pipeline.vae.stride // patch for side, patch in sides)
    work = Work(config, rows * columns, preset.chunk_frames, preset.local_attention_size)
    steps = len(preset.schedule.steps) - len(candidate.pipeline.skipped_steps(request))
    plans, past = record.diffusion[0].plans, record.diffusion[0].past
    counted = [
        sum((work.chunk(plan, frames, steps) for plan in samples), Flops())
        for samples, frames in zip(plans, past, strict=True)
    ][steady(request)]
    taken = float(np.median([video.seconds for video in record.diffusion], axis=0)[steady(request)].sum())
    floor = sum(rates.floor(part, mode) for part in counted)
    return {
        "steps": steps,
        "past_frames": short(mean(_mean_past(work, plan, past[-1]) for plan in plans[-1])),
        "tflop_per_forward": short(sum(work.forward(plan, past[-1]).total for plan in plans[-1]) / 1e12),
        "tflop_per_chunk": short(counted[-1].total / 1e12),
        "attention_share": short(1 - sum(p.linear for p in counted) / sum(p.total for p in counted)),
        "tflops": short(sum(part.total for part in counted) / taken / 1e12),
        "floor_ms": short(1000 * floor / len(counted)),
        "floor_fraction": short(floor / taken),
    }


def short(x: float) -> float:
    """Six digits: more were never measured, and files stay readable."""
    return float(f"{x:.6g}")


def steady(request: Request) -> slice:
    """The chunks of the second half: by then short contexts are full."""
    return slice(request.length // request.chunk_frames // 2, None)


def _mean_past(work: Work, plan: Plan, past: int) -> float:
    """Past frames that a head sees after `past` frames, mean over heads."""
    seen = [work.visible(context, past) - work.chunk_frames for row in plan.contexts for context in row]
    return sum(seen) / len(seen)


def _most(sizes: Iterable[int | None]) -> int | None:
    return max((size for size in sizes if size is not None), default=None)
