"""Make a video, chunk by chunk: progress and a preview after each, and a stop where the user asks for one."""

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import comfy.model_management as management
import numpy as np
import torch
from comfy_api.latest import ComfyAPISync, InputImpl, Types, io
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dummyforcing.method.plan import Plan
from dummyforcing.pipeline.options import VideoOptions, choose

from .memory import device, give_back, make_room
from .schema import CATEGORY, PLAN_TIP, POLICY_TIP, HeadPlan, HeadPolicy, Model, policy_names, tip

if TYPE_CHECKING:
    from dummyforcing.pipeline.outputs import Chunk
    from dummyforcing.pipeline.pipeline import DummyForcingPipeline
    from dummyforcing.pipeline.request import Request

ZERO = " 0: the model's own."


class MakeVideo(io.ComfyNode):
    """Makes a video with a loaded model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The inputs are options of the library."""
        return io.Schema(
            node_id="DummyForcingMakeVideo",
            display_name="Make AR Video",
            category=CATEGORY,
            description=(
                "Makes a video chunk by chunk and shows each as it is finished. Stop ends it after the chunk "
                "that is in work."
            ),
            inputs=[
                Model.Input("model"),
                io.String.Input("prompt", multiline=True, tooltip="What the video shows."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=True,
                    tooltip="Of the noise; the same seed gives the same video.",
                ),
                io.Float.Input(
                    "seconds",
                    default=5.0,
                    min=0.1,
                    max=100000.0,
                    step=0.25,
                    tooltip="Length of the video; the nearest one that fills whole chunks is taken.",
                ),
                io.Int.Input(
                    "num_frames",
                    default=0,
                    min=0,
                    max=1000000,
                    tooltip="Pixel frames instead of seconds: 9, 21, 33, ... 81, ... with 3 latent frames a "
                    "chunk. 0: the seconds decide.",
                ),
                io.Int.Input(
                    "width", default=0, min=0, max=16384, step=16, tooltip=tip(VideoOptions, "width") + ZERO
                ),
                io.Int.Input(
                    "height", default=0, min=0, max=16384, step=16, tooltip=tip(VideoOptions, "height") + ZERO
                ),
                io.Combo.Input(
                    "policy",
                    options=policy_names(),
                    tooltip=POLICY_TIP + " For others, connect Head Policy.",
                ),
                io.String.Input(
                    "changes",
                    multiline=True,
                    default="",
                    tooltip="Later prompts, one a line, each after its second and a colon, such as 2.5: a "
                    "blue star spins. A change takes effect where a chunk begins.",
                ),
                io.Int.Input("fade", default=1, min=1, max=100, tooltip=tip(VideoOptions, "fade")),
                io.String.Input(
                    "teacache",
                    default="",
                    tooltip=tip(VideoOptions, "teacache") + " Empty: all steps run.",
                ),
                io.Float.Input(
                    "strength",
                    default=0.7,
                    min=0.05,
                    max=1.0,
                    step=0.05,
                    tooltip="Of models that make a video from a whole clip (Krea Realtime): how much of it "
                    "is changed.",
                ),
                io.Boolean.Input(
                    "keep_loaded",
                    default=True,
                    tooltip="Whether the model stays in the GPU's memory afterwards. Else it waits in the "
                    "main memory, and other nodes have the GPU to themselves.",
                ),
                io.Image.Input(
                    "start",
                    optional=True,
                    tooltip="What the video begins with: one image, or the frames of a clip, of which the "
                    "last ones are taken. Which of the two a model can do, the message says when it cannot.",
                ),
                HeadPlan.Input("plan", optional=True, tooltip=PLAN_TIP),
                HeadPolicy.Input(
                    "custom_policy", optional=True, tooltip="Is used instead of the policy above."
                ),
            ],
            outputs=[
                io.Image.Output(display_name="frames"),
                io.Video.Output(display_name="video"),
                HeadPlan.Output(display_name="plan", tooltip="What the heads saw in the end."),
                io.String.Output(
                    display_name="summary", tooltip="Length, speed, size of the KV cache, roles."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: "DummyForcingPipeline",
        prompt: str,
        seed: int,
        seconds: float,
        num_frames: int,
        width: int,
        height: int,
        policy: str,
        changes: str,
        fade: int,
        teacache: str,
        strength: float,
        keep_loaded: bool,
        start: Tensor | None = None,
        plan: Plan | None = None,
        custom_policy: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        """Check it, make room for it, and make it."""
        given: dict[str, Any] = {
            "seed": seed,
            "width": width or None,
            "height": height or None,
            "switches": [line for line in changes.splitlines() if line.strip()],
            "fade": fade,
            "teacache": teacache or None,
            "plan": plan,
            **({"num_frames": num_frames} if num_frames else {"seconds": seconds}),
            **(custom_policy or {"policy": policy}),
        }
        if start is not None and len(start) == 1:
            given["image"] = as_images(start)[0]
        elif start is not None:
            given["video"] = as_images(start)
            if model.files.preset.start == "chunk":
                given["strength"] = strength
        request = model.request(prompt, choose(VideoOptions, given, model.option_defaults))
        try:
            video = make(model.to(device()), request)
        finally:
            if not keep_loaded:
                model.to("cpu")
                give_back()
        frames, fps = as_tensor(video.frames[0]), model.files.preset.fps
        parts = Types.VideoComponents(images=frames, audio=None, frame_rate=Fraction(fps))
        return io.NodeOutput(
            frames, InputImpl.VideoFromComponents(parts), video.plans[0], summary(video, fps)
        )


def make(model: "DummyForcingPipeline", request: "Request") -> "Chunk":
    """Make a video, telling ComfyUI how far it is.

    Raises:
        NotEnoughMemory: If it does not fit even when ComfyUI's own models are unloaded.
        InterruptProcessingException: If the user stops it.
    """
    from dummyforcing.pipeline.memory import estimates
    from dummyforcing.pipeline.outputs import join

    needs = estimates(model.files, request, model.dtype, loaded=True, offload=model.vae.moves)
    make_room(needs[0].on_gpu().total)
    progress = ComfyAPISync().execution.set_progress
    total = model.files.preset.pixel_frames(request.length)
    pieces: list[Chunk] = []
    done = 0
    for piece in model.run(request):
        management.throw_exception_if_processing_interrupted()
        pieces.append(piece)
        done += piece.frames.shape[1]
        progress(done, total, preview_image=Image.fromarray(piece.frames[0, -1]))
    return join(pieces)


def as_images(frames: Tensor) -> list[Image.Image]:
    """Frames of ComfyUI, float `(F, H, W, C)` in [0, 1] of 3 or 4 channels, as images in 8 bits."""
    pixels = (frames * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    return [Image.fromarray(frame) for frame in pixels]


def as_tensor(frames: NDArray[np.uint8]) -> Tensor:
    """Pixel frames `(F, H, W, 3)` as ComfyUI has them: float32 in [0, 1]."""
    return torch.from_numpy(frames).float() / 255


def summary(video: "Chunk", fps: int) -> str:
    """What is to be told of a finished video, on one line."""
    _, count, height, width, _ = video.frames.shape
    timings, heads = video.timings, video.plans[0].counts
    roles = ", ".join(f"{number} {role}" for role, number in heads.items())
    return (
        f"{count} frames of {width}x{height} ({count / fps:.1f} s), made at {timings.fps:.1f} FPS; KV cache "
        f"{video.cache_bytes / 1e6:.0f} MB; heads: {roles}"
    )
