"""What `POST /v1/videos` asks for: the fields of OpenAI's clients, and those of this library beside them."""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dummyforcing.files.reading import parse_json
from dummyforcing.presets.preset import Preset
from dummyforcing.server.fields import VideoFields, options_of
from dummyforcing.server.web.problems import Problem
from dummyforcing.server.web.refusals import refusal_of

MAX_SCENES = 64
MAX_FPS = 120


class Scene(BaseModel):
    """One prompt of a story."""

    model_config = ConfigDict(extra="forbid")

    at: float = Field(0.0, ge=0)
    """Second of the video at which it begins; the first one may begin at 0, in place of `prompt`."""
    prompt: str = Field(min_length=1)


class Reference(BaseModel):
    """An image or a clip that a video begins with."""

    model_config = ConfigDict(extra="forbid")

    file_id: str | None = None
    """Of an upload."""
    image_url: str | None = None
    """The image itself, as `data:image/png;base64,...`; nothing is fetched from elsewhere."""


class VideoRequest(VideoFields):
    """A video that is asked for. What is not given is up to the model."""

    model_config = ConfigDict(extra="forbid")

    prompt: str | None = Field(None, min_length=1, description="What the video shows.")
    model: str | None = Field(None, description="The model that is loaded; see `/v1/models`.")
    seconds: float | Annotated[str, Field(pattern=r"^[0-9]{1,9}(\.[0-9]{1,9})?$")] | None = Field(  # type: ignore[assignment]
        None, description="Length of the video; the nearest length that fills whole chunks is made."
    )
    fps: int | None = Field(
        None,
        ge=1,
        le=MAX_FPS,
        description="Frames per second of the file: other than the model's, it is in slow or fast motion.",
    )
    scenes: list[Scene] | None = Field(
        None,
        max_length=MAX_SCENES,
        description="What the video shows later: from a second on, another prompt.",
    )
    fade: int | None = Field(
        None, ge=1, le=1000, description="Chunks over which a prompt fades into the next."
    )
    expand: bool = Field(
        False, description="Have the server's language model write the prompt out, if it has one."
    )
    input_reference: Reference | None = Field(
        None, description="What the video begins with; in a form, a file too."
    )
    image_reference: Reference | None = Field(None, description="The same by another name.")

    @property
    def reference(self) -> Reference | None:
        """What it begins with."""
        return self.input_reference or self.image_reference

    def rate(self, preset: Preset) -> int:
        """Frames per second of the file."""
        return self.fps or preset.fps

    def first_prompt(self) -> str:
        """What the video shows first.

        Raises:
            Problem: If nothing says so, or two fields do.
        """
        opening = self.scenes[0].prompt if self.scenes and self.scenes[0].at == 0 else None
        if opening is not None and self.prompt not in (None, opening):
            raise Problem(
                400, "bad_request", "The prompt and the scene at 0 s differ; leave out one of them.", "scenes"
            )
        prompt = opening or self.prompt
        if prompt is None:
            raise Problem(
                400, "bad_request", "The prompt is missing; say what the video shall show.", "prompt"
            )
        return prompt

    def options(self, preset: Preset) -> dict[str, Any]:
        """Options of the video, by name, but for what it begins with; times become the model's."""
        given = options_of(self)
        stretch = self.rate(preset) / preset.fps
        if self.seconds is not None:
            given["seconds"] = float(self.seconds) * stretch
        if self.scenes:
            later = self.scenes[1:] if self.scenes[0].at == 0 else self.scenes
            given["switches"] = [(scene.at * stretch, scene.prompt) for scene in later]
        if self.fade is not None:
            given["fade"] = self.fade
        return given

    def with_first_prompt(self, prompt: str) -> "VideoRequest":
        """The same with another first prompt."""
        later = [scene for scene in self.scenes or () if scene.at > 0]
        return self.model_copy(update={"prompt": prompt, "scenes": later or None})

    def texts(self) -> list[str]:
        """All prompts."""
        return [*([self.prompt] if self.prompt else []), *(scene.prompt for scene in self.scenes or ())]


def of_json(body: bytes) -> VideoRequest:
    """Read a request in JSON.

    Raises:
        Problem: If it is none.
    """
    try:
        return VideoRequest.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise refusal_of(error.errors()) from error


def of_form(items: Iterable[tuple[str, str]]) -> VideoRequest:
    """Read a request from the fields of a form, nested ones as OpenAI's clients write them.

    `scenes[][at]=2`, `scenes[][prompt]=a ball`, `input_reference[file_id]=...`; JSON does as well.

    Raises:
        Problem: If it is none.
    """
    try:
        return VideoRequest.model_validate(_nested(items))
    except ValidationError as error:
        raise refusal_of(error.errors()) from error


def _nested(items: Iterable[tuple[str, str]]) -> Mapping[str, Any]:
    fields: dict[str, Any] = {}
    scenes: dict[str, list[str]] = {"at": [], "prompt": []}
    for name, value in items:
        if scene := re.fullmatch(r"scenes\[\d*\]\[(at|prompt)\]", name):
            scenes[scene[1]].append(value)
        elif inner := re.fullmatch(r"(input_reference|image_reference)\[(\w+)\]", name):
            inside = fields.setdefault(inner[1], {})
            if not isinstance(inside, dict) or inner[2] in inside:
                raise _twice(inner[1])
            inside[inner[2]] = value
        elif name in fields:
            raise _twice(name)
        elif name in ("scenes", "input_reference", "image_reference"):
            fields[name] = _json(name, value)
        else:
            fields[name] = value
    if scenes["prompt"] or scenes["at"]:
        missing = len(scenes["prompt"]) - len(scenes["at"])
        if missing not in (0, 1):
            raise Problem(400, "bad_request", "Every scene but the first needs an 'at'; give it.", "scenes")
        times = ["0"] * missing + scenes["at"]
        fields["scenes"] = [
            {"at": at, "prompt": prompt} for at, prompt in zip(times, scenes["prompt"], strict=True)
        ]
    return fields


def _twice(name: str) -> Problem:
    return Problem(400, "bad_request", f"The field '{name}' is there twice; give it once.", name)


def _json(name: str, value: str) -> Any:
    try:
        return parse_json(value)
    except ValueError as error:
        raise Problem(400, "bad_request", f"The field '{name}' cannot be read; give JSON.", name) from error
