"""Dummy Forcing in ComfyUI: autoregressive video whose attention heads keep only the past that they use.

ComfyUI imports this folder from `custom_nodes/` and calls `comfy_entrypoint`.
"""

from comfy_api.latest import ComfyExtension, io

from .nodes.head_map import ShowHeads
from .nodes.load import LoadModel, add_model_folder
from .nodes.make import MakeVideo
from .nodes.patch import PatchModel
from .nodes.plan_files import LoadPlan, SavePlan
from .nodes.policy import MakePolicy


class DummyForcingNodes(ComfyExtension):
    """The nodes of this pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All of them, in the order of the menu."""
        return [LoadModel, MakeVideo, MakePolicy, ShowHeads, LoadPlan, SavePlan, PatchModel]


async def comfy_entrypoint() -> ComfyExtension:
    """What ComfyUI asks for when it starts."""
    add_model_folder()
    return DummyForcingNodes()
