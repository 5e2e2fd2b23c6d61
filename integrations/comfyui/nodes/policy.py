"""A policy with numbers: which past frames the heads see."""

from comfy_api.latest import io

from dummyforcing.pipeline.options import VideoOptions

from .schema import CATEGORY, HeadPolicy, tip


class MakePolicy(io.ComfyNode):
    """Describes a policy for those who try others than the built-in ones."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The inputs are options of the library."""
        return io.Schema(
            node_id="DummyForcingPolicy",
            display_name="Head Policy",
            category=CATEGORY,
            description="Which past frames the attention heads see, with numbers. Goes into Make AR Video.",
            inputs=[
                io.String.Input("policy", default="window:1,6", tooltip=tip(VideoOptions, "policy")),
                io.Float.Input(
                    "dummy_fraction",
                    default=-1.0,
                    min=-1.0,
                    max=1.0,
                    step=0.05,
                    tooltip=tip(VideoOptions, "dummy_fraction") + " Below 0: the model's own.",
                ),
                io.String.Input("budget", default="", tooltip=tip(VideoOptions, "budget")),
            ],
            outputs=[HeadPolicy.Output(display_name="policy")],
        )

    @classmethod
    def execute(cls, policy: str, dummy_fraction: float, budget: str) -> io.NodeOutput:
        """Collect what was given; the model that it is for says whether it can be done."""
        given: dict[str, object] = {"policy": policy}
        if dummy_fraction >= 0:
            given["dummy_fraction"] = dummy_fraction
        if budget:
            given["budget"] = budget
        return io.NodeOutput(given)
