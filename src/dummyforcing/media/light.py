"""From the light of HDR, and the colours of wide screens, to those of BT.709.

FFmpeg's own conversion computes a table for five seconds, and differs from version to version.
"""

import numpy as np
from av.video.reformatter import ColorPrimaries, ColorTrc
from numpy.typing import NDArray

HDR = {ColorTrc.SMPTE2084: "PQ", ColorTrc.ARIB_STD_B67: "HLG", ColorTrc.LINEAR: "linear light"}
"""Transfers that a usual screen does not have."""

WIDE = {
    ColorPrimaries.BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    ColorPrimaries.SMPTE431: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    ColorPrimaries.SMPTE432: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
"""Chromaticities of primaries so far from those of BT.709 that everybody sees it."""

BT709 = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060))
D65 = (0.3127, 0.3290)
LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)  # of BT.2020's primaries

WHITE = 203
"""Of paper in HDR, in cd/m² (ITU-R BT.2408)."""
PQ_PEAK, HLG_PEAK = 10_000, 1000
GAMMA = 2.4
"""Of a usual screen (ITU-R BT.1886)."""

Array = NDArray[np.float32]


def to_bt709(signal: Array, transfer: int, primaries: int) -> NDArray[np.uint8]:
    """Convert pixels; what is brighter than white, or more colourful than BT.709 can be, is cut.

    Args:
        signal: R'G'B' in 0..1, channels last.
        transfer: One of `HDR`, or that of a usual screen.
        primaries: One of `WIDE`, or those of BT.709.

    Returns:
        R'G'B' of BT.709 for a usual screen, in 0..255.
    """
    if transfer == ColorTrc.SMPTE2084:
        light = _pq(signal) * (PQ_PEAK / WHITE)
    elif transfer == ColorTrc.ARIB_STD_B67:
        light = _hlg(signal) * (HLG_PEAK / WHITE)
    elif transfer == ColorTrc.LINEAR:
        light = signal
    else:
        light = signal**GAMMA
    if primaries in WIDE:
        wide = _to_xyz(WIDE[ColorPrimaries(primaries)])
        light = light @ np.linalg.solve(_to_xyz(BT709), wide).T.astype(np.float32)
    shown: NDArray[np.uint8] = (light.clip(0, 1) ** (1 / GAMMA) * 255).round().astype(np.uint8)
    return shown


def _pq(signal: Array) -> Array:
    """The light of a PQ signal (SMPTE ST 2084), in parts of its peak."""
    power = signal ** np.float32(1 / 78.84375)
    ratio = (power - 0.8359375).clip(0) / (18.8515625 - 18.6875 * power)
    light: Array = ratio ** np.float32(1 / 0.1593017578125)
    return light


def _hlg(signal: Array) -> Array:
    """The light that a screen of HLG's usual peak makes of a signal (ITU-R BT.2100), in parts of that."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12).astype(np.float32)
    light: Array = (scene @ LUMINANCE)[..., None] ** np.float32(0.2) * scene
    return light


def _to_xyz(primaries: tuple[tuple[float, float], ...]) -> NDArray[np.float64]:
    """The matrix from linear R, G, B to X, Y, Z, for a white of D65."""
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in (*primaries, D65)]).T
    scales = np.linalg.solve(columns[:, :3], columns[:, 3])
    matrix: NDArray[np.float64] = columns[:, :3] * scales
    return matrix
