"""The sampler of a request: the preset's loop, with the options that this loop has."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dummyforcing.models.wan import CausalWan, fingerprint
from dummyforcing.pipeline.request import Request
from dummyforcing.presets.preset import Preset, ScheduleArgs
from dummyforcing.runtime.fused import FusedWan
from dummyforcing.runtime.ranks import Ranks
from dummyforcing.sampling.passes import Observer
from dummyforcing.sampling.sampler import Sampler
from dummyforcing.sampling.samplers import SAMPLERS
from dummyforcing.sampling.schedule import COMMIT_TIMESTEP, Schedule, make_schedule
from dummyforcing.sampling.teacache import Calibration, skip_table
from dummyforcing.vae.codec import VideoDecoder


def sampler_maker(
    preset: Preset,
    model: CausalWan,
    request: Request,
    stride: int,
    *,
    source: Tensor | None = None,
    first_latent: Callable[[], Tensor] | None = None,
    fused: FusedWan | None = None,
    observer: Observer | None = None,
    ranks: Ranks | None = None,
) -> Callable[..., Sampler]:
    """Prepare the sampler of a request.

    Args:
        preset: Of the model.
        model: The transformer.
        request: What is asked for.
        stride: Pixels per latent, in height and in width.
        source: Latents of the video that this one is made from.
        first_latent: See `RecomputeSampler`.
        fused: The model arranged for speed.
        observer: Is shown every self-attention.
        ranks: The GPUs that share the passes.

    Returns:
        Makes it: `maker(prompt_embeds=..., seeds=...)`.
    """
    height, width = (side // stride for side in request.size)
    frames = request.frames
    if preset.overlap_frames and preset.max_frames:
        frames = preset.max_frames if frames is None else min(frames, preset.max_frames)
    options: dict[str, Any] = {}
    if preset.sampler == "block":
        options = {
            "first_schedule": _first_schedule(preset, request),
            "skips": find_skips(preset, model, request),
            "guard": request.guard,
            "recache_frames": preset.recache_frames,
            "global_sink": preset.global_sink,
            "source": source,
        }
    elif preset.sampler == "recompute":
        first = None if preset.keep_first_frame else first_latent
        options = {"context_frames": preset.context_frames, "first_latent": first, "source": source}
    return partial(
        SAMPLERS[preset.sampler],
        model,
        policy=request.policy,
        schedule=_schedule(preset.schedule, request.strength),
        latent_shape=(len(request.prompts), model.config.in_dim, height, width),
        chunk_frames=preset.chunk_frames,
        plan=request.plans or None,
        frames=frames,
        local_attention_size=preset.local_attention_size,
        fused=fused,
        observer=observer,
        ranks=ranks,
        **options,
    )


def find_skips(preset: Preset, model: CausalWan, request: Request) -> tuple[bool, ...] | None:
    """Find the calls of a chunk that TeaCache leaves out, denoising steps and commit pass; None: no TeaCache.

    Raises:
        BadRequest: If a table was measured with other weights.
    """
    if request.teacache is None:
        return None
    timesteps = [*_schedule(preset.schedule, request.strength).timesteps, COMMIT_TIMESTEP]
    steps = request.teacache
    if isinstance(steps, Calibration):
        steps.require_weights(fingerprint(model))
        steps = steps.steps
    if isinstance(steps, tuple):
        return tuple(step in steps for step in range(len(timesteps)))
    device = model.patch_embedding.weight.device
    with torch.inference_mode():
        embeddings = [model.embed_time(torch.tensor([[t]], device=device)) for t in timesteps]
        return skip_table(embeddings, timesteps, steps)


def encode_pixels(vae: VideoDecoder, pixels: NDArray[np.uint8], batch: int) -> Tensor:
    """Latents of `pixels (n, H, W, 3)` for every sample, `(B, F, C, h, w)`."""
    latents: Tensor = vae.encode(torch.from_numpy(pixels)[None])
    return latents.expand(batch, -1, -1, -1, -1)


def _first_schedule(preset: Preset, request: Request) -> Schedule | None:
    """Steps of the first chunk by themselves, all of which run: the preset's, or for the sake of a table."""
    if preset.first_schedule is not None:
        return _schedule(preset.first_schedule)
    return _schedule(preset.schedule) if isinstance(request.teacache, Calibration) else None


def _schedule(args: ScheduleArgs, strength: float = 1.0) -> Schedule:
    """The steps of a chunk; with a lower strength they start from less noise."""
    steps = args.steps if strength == 1 else [int(step * strength) for step in args.steps]
    return make_schedule(steps, args.shift, args.warp)
