"""Dummy Forcing for ComfyUI's own AR sampler."""

import logging
from collections.abc import Callable
from typing import Any

from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io

import dummyforcing

from .schema import CATEGORY, policy_names

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
                io.Combo.Input(
                    "policy",
                    options=policy_names(),
                    tooltip="Which past frames the attention heads see. dummy: by their roles (Dummy "
                    "Forcing); anchored: one frame more each; long: some of them far back; dense: all.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, model: Any, policy: str) -> io.NodeOutput:
        """Wrap the sampling of a copy; a patch that it had before is replaced."""
        patched = model.clone()
        patched.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
        patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, attached(model, policy))
        return io.NodeOutput(patched)


def attached(model: Any, policy: str) -> Callable[..., Any]:
    """A wrapper of ComfyUI's sampling, during which a model's attention is ours."""

    def sample(executor: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        handle = dummyforcing.attach(model, policy=policy)  # type: ignore[operator]
        try:
            result = executor(*args, **kwargs)
            logger.info("KV cache of the AR model: %.0f MB", handle.cache_bytes / 1e6)
            return result
        finally:
            handle.detach()

    return sample
