"""Fidelity of a video to a reference of the same length: PSNR and SSIM.

```python
fidelity = compare(frames, reference)  # both uint8 (T, H, W, 3)
```
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dummyforcing.evaluation.metrics import Frames, luma, require_video

EQUAL_PSNR = 100.0
"""Stands for equal videos, in dB, so that averages and JSON stay finite; no video gets more."""
_SIGMA, _RADIUS = 1.5, 5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


@dataclass(frozen=True)
class Fidelity:
    """Fidelity of a video to its reference."""

    psnr: float
    """Peak signal-to-noise ratio in dB, of the whole video; `EQUAL_PSNR` if the videos are equal."""
    ssim: float
    """Structural similarity of the brightness, mean over frames; 1 if the videos are equal."""


def compare(frames: Frames, reference: Frames) -> Fidelity:
    """Compare two videos pixel by pixel.

    Rollouts from the same noise diverge: after seconds both may be good and yet have nothing in common. So
    this tells how much a change of the method changes the video, not whether it makes it worse.

    Args:
        frames: uint8 `(T, H, W, 3)`.
        reference: Of the same shape.

    Raises:
        ValueError: If the shapes differ, or the frames are smaller than 11x11.
    """
    require_video(frames)
    require_video(reference)
    if frames.shape != reference.shape:
        raise ValueError(f"videos of {frames.shape} and {reference.shape} cannot be compared")
    alike = [ssim(a, b) for a, b in zip(frames, reference, strict=True)]
    return Fidelity(psnr(frames, reference), float(np.mean(alike)))


def psnr(frames: Frames, reference: Frames) -> float:
    """`10 log10(255^2 / MSE)` over all values of both arrays, in dB; at most `EQUAL_PSNR`."""
    pairs = zip(frames, reference, strict=True)
    squares = sum(int(np.square(a.astype(np.int64) - b).sum()) for a, b in pairs)
    if not squares:
        return EQUAL_PSNR
    return min(EQUAL_PSNR, float(10 * np.log10(255**2 * frames.size / squares)))


def ssim(frame: Frames, reference: Frames) -> float:
    """SSIM of the brightness of two frames `(H, W, 3)`, as its authors define it; -1 to 1.

    Gaussian window of 11x11 with sigma 1.5, K1 = 0.01, K2 = 0.03, range 255, mean over the places at which
    the window fits.

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity" (2004).
    """
    if min(frame.shape[:2]) < 2 * _RADIUS + 1:
        raise ValueError(f"SSIM needs frames of 11x11 pixels or more, not {frame.shape[:2]}")
    x, y = (torch.from_numpy(luma(picture)) for picture in (frame, reference))
    mean_x, mean_y, xx, yy, xy = _windowed(torch.stack([x, y, x * x, y * y, x * y]))
    covariance = xy - mean_x * mean_y
    variances = xx - mean_x**2 + yy - mean_y**2
    alike = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    return float((alike / ((mean_x**2 + mean_y**2 + _C1) * (variances + _C2))).mean(dtype=torch.float64))


def _windowed(maps: Tensor) -> Tensor:
    """Gaussian means of maps `(N, H, W)` around every place at which the window fits.

    The maps are channels of their own, for which torch has fast kernels.
    """
    ticks = torch.arange(-_RADIUS, _RADIUS + 1, dtype=torch.float32)
    weights = torch.exp(-(ticks**2) / (2 * _SIGMA**2))
    weights /= weights.sum()
    kernel = weights.view(1, 1, -1, 1).repeat(len(maps), 1, 1, 1)
    rows = F.conv2d(maps[None], kernel, groups=len(maps))
    return F.conv2d(rows, kernel.transpose(2, 3), groups=len(maps))[0]
