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

POLICY_TIP = (
    "Which past frames the attention heads see. dummy: by their roles (Dummy Forcing); anchored: one frame "
    "more each; long: some of them far back; keyframes: those least like each other; official: as the public "
    "code; dense: all; native: as the model was trained."
)
PLAN_TIP = "A head plan to use from the first chunk on. Without one, the policy finds it on the way."


def policy_names() -> list[str]:
    """The policies that need no numbers, the usual one first."""
    others = (name for name in [*POLICIES, "native", *installed()] if name not in ("dummy", "window"))
    return ["dummy", *others]


def tip(kind: type[object], name: str) -> str:
    """The documentation of an option of the library, as a tooltip."""
    return one_option(kind, name).help
