"""Few-step denoising of one chunk, from noise to clean latents."""

from collections.abc import Sequence

from torch import Tensor

from dummyforcing.method.scoring import HeadScorer
from dummyforcing.sampling.sampler import Sampler
from dummyforcing.sampling.schedule import Schedule, renoise, x0_from_velocity


def denoise_chunk(
    sampler: Sampler,
    schedule: Schedule,
    scorer: HeadScorer | None = None,
    source: Tensor | None = None,
    skips: Sequence[bool] = (),
) -> Tensor:
    """Denoise the next chunk in all steps.

    Args:
        sampler: Has the noise, the prompt and the passes.
        schedule: The steps.
        scorer: Scores the heads meanwhile, if it watches denoising steps.
        source: Clean latents of a video to make this one from, `(B, F, C, h, w)`: the first step gets them
            with noise of its own level, in place of noise alone.
        skips: For each step, whether it is left out: its blocks are taken to add what those of the last step
            that ran did (TeaCache). Empty: all run.

    Returns:
        Clean latents, `(B, chunk_frames, C, h, w)` float32.
    """
    passes, text, frames = sampler.passes, sampler.prompts.text, sampler.chunk_frames
    x = sampler.draw()
    if source is not None:
        latents = source[:, sampler.frames : sampler.frames + frames].to(x.device)
        x = renoise(latents, x, schedule.sigmas[0])
    x0, residual = x, None
    for step, (timestep, sigma) in enumerate(zip(schedule.timesteps, schedule.sigmas, strict=True)):
        if step:
            x = renoise(x0, sampler.draw(), sigma)
        time, tokens = passes.time([timestep], frames), passes.tokens(x)
        if residual is not None and skips[step]:
            hidden = tokens + residual
        else:
            hidden = passes.transform(tokens, time, text, sampler.call(step), scorer)
            residual = hidden - tokens if any(skips) else None
        x0 = x0_from_velocity(x, passes.velocity(hidden, time), sigma)
    return x0
