"""The head plan of a video as an image."""

from io import BytesIO

import numpy as np
from comfy_api.latest import io
from PIL import Image

from dummyforcing.method.plan import Plan

from .make import as_tensor
from .schema import CATEGORY, HeadPlan


class ShowHeads(io.ComfyNode):
    """Draws which role each attention head has."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """A plan in, an image out."""
        return io.Schema(
            node_id="DummyForcingHeadMap",
            display_name="Head Map",
            category=CATEGORY,
            description="A map of layers x heads: which role each attention head has, and what it sees.",
            inputs=[HeadPlan.Input("plan")],
            outputs=[io.Image.Output(display_name="map")],
        )

    @classmethod
    def execute(cls, plan: Plan) -> io.NodeOutput:
        """Draw it."""
        from dummyforcing.analysis.plots import head_map

        png = BytesIO()
        head_map(plan).savefig(png, format="png", dpi=150)
        return io.NodeOutput(as_tensor(np.array(Image.open(png).convert("RGB")))[None])
