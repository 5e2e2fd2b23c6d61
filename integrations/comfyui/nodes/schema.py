"""What the nodes share: the types that pass between them, the names of policies, and texts of the options."""

from comfy_api.latest import io

from dummyforcing.method.policy import POLICIES, installed
from dummyforcing.pipeline.option import one_option

CATEGORY = "Dummy Forcing"

Model = io.Custom("DF_MODEL")
"""A loaded `DummyForcingPipeline`."""
HeadPlan = io.Custom("DF_PLAN")
"""A `Plan`."""
HeadPolicy = io.Custom("DF_POLICY")
"""Keyword arguments of a video: `policy`, and what goes with it."""


def policy_names() -> list[str]:
    """The policies that need no numbers."""
    return ["dummy", *(name for name in [*POLICIES, *installed()] if name not in ("dummy", "window"))]


def tip(kind: type[object], name: str) -> str:
    """The documentation of an option of the library, as a tooltip."""
    return one_option(kind, name).help
