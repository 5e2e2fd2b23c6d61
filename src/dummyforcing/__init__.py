"""Dummy Forcing: autoregressive video diffusion whose attention heads keep only the past that they use.

    import dummyforcing

    pipeline = dummyforcing.load("tiny")
    video = pipeline.generate("a red ball bounces on a green floor")
    video.save("ball.mp4")

The names below are imported when they are first used, so `import dummyforcing` alone loads no library.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dummyforcing.classify import Guard
    from dummyforcing.errors import UnknownWordsWarning, UserError
    from dummyforcing.heads import Policy
    from dummyforcing.monitor import Measures
    from dummyforcing.pipeline import Chunk, Pipeline, Timings, Video, load
    from dummyforcing.plan import HeadContext, Plan

__version__ = "0.1.0"

__all__ = [
    "Chunk",
    "Guard",
    "HeadContext",
    "Measures",
    "Pipeline",
    "Plan",
    "Policy",
    "Timings",
    "UnknownWordsWarning",
    "UserError",
    "Video",
    "load",
]

_HOMES = {
    "Guard": "classify",
    "HeadContext": "plan",
    "Measures": "monitor",
    "Plan": "plan",
    "Policy": "heads",
    "UnknownWordsWarning": "errors",
    "UserError": "errors",
}
"""Modules of the names that are not in `pipeline`."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'dummyforcing' has no attribute '{name}'")
    return getattr(import_module(f"dummyforcing.{_HOMES.get(name, 'pipeline')}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
