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
    from dummyforcing.errors import UnknownWordsWarning, UserError
    from dummyforcing.media.monitor import Measures
    from dummyforcing.method.plan import HeadContext, Plan
    from dummyforcing.method.policy import Policy
    from dummyforcing.pipeline.pipeline import Chunk, Pipeline, Timings, Video, load
    from dummyforcing.sampling.classifier import Guard

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
    "Guard": "sampling.classifier",
    "HeadContext": "method.plan",
    "Measures": "media.monitor",
    "Plan": "method.plan",
    "Policy": "method.policy",
    "UnknownWordsWarning": "errors",
    "UserError": "errors",
}
"""Modules of the names that are not in `pipeline.pipeline`."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'dummyforcing' has no attribute '{name}'")
    return getattr(import_module(f"dummyforcing.{_HOMES.get(name, 'pipeline.pipeline')}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
