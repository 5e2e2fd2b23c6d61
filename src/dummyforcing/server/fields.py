"""The fields of a request for a video: those of `VideoOptions` that a stranger may set, by the same names."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field, create_model

from dummyforcing.pipeline.option import Documented, documented
from dummyforcing.pipeline.options import VideoOptions

OFFERED = ("num_frames", "seconds", "size", "seed", "policy", "dummy_fraction", "budget", "guard", "strength")
"""Not those that are objects of Python, or name files of the server."""
MOST = {"num_frames": 10**6, "seconds": 10.0**5}
"""No server makes longer ones, whatever its own limits."""
LONGEST_TEXT = 100
"""Characters of what is no prompt."""
TYPES: Mapping[str, Any] = {"size": str, "policy": str, "budget": str, "guard": float}


def _field(one: Documented) -> tuple[Any, Any]:
    about = one.about
    kind = TYPES.get(one.name, about.kind)
    most = about.most or MOST.get(one.name)
    longest = LONGEST_TEXT if kind is str else None
    limits: dict[str, Any] = {"ge": about.least, "gt": about.above, "le": most, "max_length": longest}
    return kind | None, Field(None, description=one.help, **limits)


if TYPE_CHECKING:

    class VideoFields(BaseModel):
        """What a video shall be besides its prompt; None: the server's or the model's own."""

        num_frames: int | None
        seconds: float | None
        size: str | None
        seed: int | None
        policy: str | None
        dummy_fraction: float | None
        budget: str | None
        guard: float | None
        strength: float | None
        plan: Literal["shipped"] | None
        teacache: float | Literal["shipped"] | None
else:
    VideoFields = create_model(
        "VideoFields",
        __doc__="What a video shall be besides its prompt; None: the server's or the model's own.",
        **{one.name: _field(one) for one in documented(VideoOptions) if one.name in OFFERED},
        plan=(Literal["shipped"] | None, Field(None, description="The head plan that comes with the model.")),
        teacache=(
            float | Literal["shipped"] | None,
            Field(
                None, description="Leave out denoising steps below this error, or by the model's own table."
            ),
        ),
    )


def options_of(fields: VideoFields) -> dict[str, Any]:
    """The options of a video that were given, by name, for `DummyForcingPipeline.start`."""
    names = VideoFields.model_fields
    return {name: value for name in names if (value := getattr(fields, name)) is not None}
