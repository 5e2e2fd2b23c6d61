"""Dummy Forcing for ComfyUI's own AR sampler."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io

import dummyforcing
from dummyforcing.method.plan import Plan

from .schema import CATEGORY, PLAN_TIP, POLICY_TIP, HeadPlan, policy_names

if TYPE_CHECKING:
    from dummyforcing.integrations.attach.handle import Attachment

KEY = "dummyforcing"
logger = logging.getLogger(__name__)


class PatchModel(io.ComfyNode):
    """Gives a copy of a model that samples with Dummy Forcing.

    ComfyUI's copies of a model share the transformer. So that the others stay as they are, its attention is
    replaced only while this copy samples.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        """A model in, a model out, as ComfyUI's own patches have it."""
        return io.Schema(
            node_id="DummyForcingPatch",
            display_name="Dummy Forcing (patch)",
            category=CATEGORY,
            description=(
                "Gives an AR video model of ComfyUI's own loaders Dummy Forcing: heads keep only the past "
                "that they use. For SamplerARVideo."
            ),
            inputs=[
                io.Model.Input("model", tooltip="An AR video model, such as Causal-Forcing or Self-Forcing."),
                io.Combo.Input("policy", options=policy_names(), tooltip=POLICY_TIP),
                HeadPlan.Input("plan", optional=True, tooltip=PLAN_TIP),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, model: Any, policy: str, plan: Plan | None = None) -> io.NodeOutput:
        """Wrap the sampling of a copy; a patch that it had before is replaced.

        Raises:
            BadRequest: If it is no AR model, or the plan is for one of other sizes.
        """
        transformer = model.model.diffusion_model

        def attached() -> "Attachment":
            return dummyforcing.attach(transformer, policy, plan=plan)

        attached().detach()  # what cannot be done is said before anything is sampled
        patched = model.clone()
        patched.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
        patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, sampling(attached))
        return io.NodeOutput(patched)


def sampling(attached: "Callable[[], Attachment]") -> Callable[..., Any]:
    """A wrapper of ComfyUI's sampling, during which something is attached."""

    def sample(executor: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with attached() as attachment:
            result = executor(*args, **kwargs)
            logger.info("KV cache of the AR model: %.0f MB", attachment.cache_bytes / 1e6)
            return result

    return sample
