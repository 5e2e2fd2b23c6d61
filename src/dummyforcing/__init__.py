"""Dummy Forcing: autoregressive video diffusion whose attention heads keep only the past that they use.

    from dummyforcing.pipeline.pipeline import DummyForcingPipeline

    pipe = DummyForcingPipeline.from_pretrained("tiny")
    out = pipe("a red ball bounces on a green floor", policy="dummy")
    out.save("ball.mp4")

The names below are imported when they are first used, so `import dummyforcing` alone loads no library.
"""

import logging
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from dummyforcing.runtime.threads import spin_briefly

if TYPE_CHECKING:
    from dummyforcing.errors import (
        BadFile,
        BadRequest,
        NoSuchDevice,
        NotEnoughMemory,
        NotFinite,
        PictureWarning,
        RequestWarning,
        TrainedLengthWarning,
        TrainedSizeWarning,
        UnknownWordsWarning,
        UserError,
    )
    from dummyforcing.integrations.attach.handle import Attachment, attach
    from dummyforcing.media.monitor import Measures
    from dummyforcing.method.plan import HeadContext, Plan
    from dummyforcing.method.policy import Policy
    from dummyforcing.pipeline.outputs import Chunk, Timings, Video, VideoOutput
    from dummyforcing.pipeline.pipeline import DummyForcingPipeline, load
    from dummyforcing.pipeline.rollout import Rollout
    from dummyforcing.sampling.guard import Guard

__version__ = "0.2.0.dev0"

_HOMES = {
    "Attachment": "integrations.attach.handle",
    "BadFile": "errors",
    "BadRequest": "errors",
    "Chunk": "pipeline.outputs",
    "DummyForcingPipeline": "pipeline.pipeline",
    "Guard": "sampling.guard",
    "HeadContext": "method.plan",
    "Measures": "media.monitor",
    "NoSuchDevice": "errors",
    "NotEnoughMemory": "errors",
    "NotFinite": "errors",
    "PictureWarning": "errors",
    "Plan": "method.plan",
    "Policy": "method.policy",
    "RequestWarning": "errors",
    "Rollout": "pipeline.rollout",
    "Timings": "pipeline.outputs",
    "TrainedLengthWarning": "errors",
    "TrainedSizeWarning": "errors",
    "UnknownWordsWarning": "errors",
    "UserError": "errors",
    "Video": "pipeline.outputs",
    "VideoOutput": "pipeline.outputs",
    "attach": "integrations.attach.handle",
    "load": "pipeline.pipeline",
}
"""The module of each public name."""

__all__ = [
    "Attachment",
    "BadFile",
    "BadRequest",
    "Chunk",
    "DummyForcingPipeline",
    "Guard",
    "HeadContext",
    "Measures",
    "NoSuchDevice",
    "NotEnoughMemory",
    "NotFinite",
    "PictureWarning",
    "Plan",
    "Policy",
    "RequestWarning",
    "Rollout",
    "Timings",
    "TrainedLengthWarning",
    "TrainedSizeWarning",
    "UnknownWordsWarning",
    "UserError",
    "Video",
    "VideoOutput",
    "attach",
    "load",
]

logging.getLogger(__name__).addHandler(logging.NullHandler())
if "torch" not in sys.modules:  # else it is too late
    spin_briefly()


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'dummyforcing' has no attribute '{name}'")
    return getattr(import_module(f"dummyforcing.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
