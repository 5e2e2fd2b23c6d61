"""What a video took, and what it saved against the model's native policy: for `generate --compare`."""

from dataclasses import asdict
from math import inf, isfinite, log10
from typing import Any

import numpy as np

from dummyforcing.cli.terminal import tell
from dummyforcing.pipeline.outputs import Chunk
from dummyforcing.pipeline.request import Request
from dummyforcing.presets.preset import Preset


def made(policy: str, last: Chunk) -> dict[str, Any]:
    """What a video took and what its heads saw, ready for JSON.

    Args:
        policy: Its name.
        last: The last chunk of the video.
    """
    timings = last.timings
    return {
        "policy": policy,
        "timings": {**asdict(timings), "fps": timings.fps, "fps_without_vae": timings.fps_without_vae},
        "cache_bytes": last.cache_bytes,
        "plan": last.plans[0].counts,
        "measures": asdict(last.measures[0]),
    }


class Comparison:
    """A video and another one of the native policy, from the same noise, as both are made."""

    def __init__(self, request: Request, native: Request, preset: Preset) -> None:
        """Begin.

        Args:
            request: Of the video.
            native: Of the other one, of equal length.
            preset: Of the model.
        """
        self.policy = native.policy.name
        """Of the other video."""
        self.too_short = _too_short(request, native, preset)
        """Why there is nothing to compare; empty: there is something."""
        self._error, self._values = 0.0, 0

    def see(self, mine: Chunk, theirs: Chunk) -> None:
        """Take the next piece of each."""
        self._mine, self._theirs = mine, theirs
        difference = mine.frames.astype(np.float32) - theirs.frames
        self._error += float(np.square(difference).sum(dtype=np.float64))
        self._values += difference.size

    def found(self) -> dict[str, Any]:
        """All about it, ready for JSON; without the figures if they would say nothing."""
        mine, theirs = self._mine, self._theirs
        found = made(self.policy, theirs)
        if self.too_short:
            return {**found, "too_short": self.too_short}
        psnr = 10 * log10(255**2 * self._values / self._error) if self._error else inf
        return {
            **found,
            "speed_up": mine.timings.fps / theirs.timings.fps,
            "speed_up_without_vae": mine.timings.fps_without_vae / theirs.timings.fps_without_vae,
            "cache_ratio": theirs.cache_bytes / mine.cache_bytes,
            "psnr": psnr if isfinite(psnr) else None,
        }

    def tell(self) -> None:
        """Print what the video saved, and how far the two differ."""
        if self.too_short:
            tell(self.too_short)
            return
        found = self.found()
        psnr = "inf" if found["psnr"] is None else f"{found['psnr']:.1f}"
        tell(
            f"Against policy {self.policy}: speed-up {found['speed_up_without_vae']:.2f}x without VAE, "
            f"{found['speed_up']:.2f}x with VAE; cache {found['cache_ratio']:.2f}x smaller; PSNR {psnr} dB."
        )


def _too_short(request: Request, native: Request, preset: Preset) -> str:
    policy, chunk = request.policy, request.chunk_frames
    least = policy.classify_at_chunk + 2  # the plan that is found in a chunk holds from the next one on
    is_classified_later = request.plan is None and policy.roles is not None
    if not is_classified_later or policy.initial != native.policy.initial or request.length >= least * chunk:
        return ""
    return (
        f"{preset.pixel_frames(request.length)} pixel frames are too few to compare: until its heads are "
        f"classified, policy {policy.name} is {native.policy.name}; take "
        f"{preset.pixel_frames(least * chunk)} or more."
    )
