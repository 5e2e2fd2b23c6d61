"""How large, long and slow a video may be that a stranger asks for."""

from dummyforcing.pipeline.request import Request
from dummyforcing.presets.preset import parse_size
from dummyforcing.server.costs import Costs
from dummyforcing.server.settings import Settings
from dummyforcing.server.web.problems import Problem

LONGEST_SIDE = 8192
"""Pixels; of H.264 at its highest level."""


def require_allowed(settings: Settings, costs: Costs, request: Request) -> None:
    """Refuse a video that is larger or longer than the server makes, or takes too long.

    Raises:
        Problem: If it is.
    """
    preset, (height, width) = costs.facts.preset, request.size
    largest = parse_size(settings.max_size)
    if height * width > largest[0] * largest[1]:
        most = settings.max_size
        message = f"The size {width}x{height} is too large; take as many pixels as {most} at most."
        raise Problem(400, "too_large", message, "size")
    if max(height, width) > LONGEST_SIDE:
        message = f"A side of {max(height, width)} pixels is too long; take {LONGEST_SIDE} at most."
        raise Problem(400, "too_large", message, "size")
    seconds = costs.fastest(request.size)
    if seconds > settings.max_chunk:
        message = f"A chunk of {width}x{height} would take about {seconds:.0f} s here; take a smaller size."
        raise Problem(400, "too_slow", message, "size")
    frames = 0 if request.frames is None else preset.pixel_frames(request.frames)
    if frames > settings.max_frames:
        message = f"{frames} pixel frames are too many; take {settings.max_frames} at most"
        raise Problem(400, "too_long", message, "num_frames")
