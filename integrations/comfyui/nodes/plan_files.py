"""Head plans as files, to make further videos with the same heads."""

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from dummyforcing.errors import BadRequest
from dummyforcing.method.plan import Plan

from .schema import CATEGORY, HeadPlan


def _path(name: str) -> Path:
    """A path; one that is not absolute is below ComfyUI's folder of outputs."""
    return Path(folder_paths.get_output_directory(), name)


class LoadPlan(io.ComfyNode):
    """Reads a head plan."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """A file in, a plan out."""
        return io.Schema(
            node_id="DummyForcingLoadPlan",
            display_name="Load Head Plan",
            category=CATEGORY,
            description="Reads a head plan that Save Head Plan or `dummyforcing heads` wrote.",
            inputs=[
                io.String.Input(
                    "file",
                    default="plan.json",
                    tooltip="A file below ComfyUI's output folder, or a whole path.",
                )
            ],
            outputs=[HeadPlan.Output(display_name="plan")],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str) -> int:
        """Changes when the file does, so that it is read again then."""
        path = _path(file)
        return path.stat().st_mtime_ns if path.is_file() else 0

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        """Read it."""
        return io.NodeOutput(Plan.load(_path(file)))


class SavePlan(io.ComfyNode):
    """Writes a head plan."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """A plan and a name in, a file out."""
        return io.Schema(
            node_id="DummyForcingSavePlan",
            display_name="Save Head Plan",
            category=CATEGORY,
            description="Writes a head plan, as text that a person can read, into ComfyUI's output folder.",
            inputs=[
                HeadPlan.Input("plan"),
                io.String.Input(
                    "file", default="plan.json", tooltip="Its name there; a file of that name is replaced."
                ),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, plan: Plan, file: str) -> io.NodeOutput:
        """Write it.

        Raises:
            UserError: If the name leads out of that folder, or the file cannot be written.
        """
        path, folder = _path(file).resolve(), Path(folder_paths.get_output_directory()).resolve()
        if not path.is_relative_to(folder) or path == folder:
            raise BadRequest(
                f"'{file}' is no file in ComfyUI's output folder", "give a name such as plan.json"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        plan.save(path)
        return io.NodeOutput()
