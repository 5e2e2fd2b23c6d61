"""Stories: the prompts of a long video, and when each of them begins, as a YAML file.

seconds: 30
scenes:
  - prompt: a red ball bounces on a green floor
  - at: 6
    prompt: a red ball moves in a circle on a green floor

story = Story.load("story.yaml")
video = pipeline.generate(story.prompt, **story.options(pipeline.files.preset))
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypedDict

from dummyforcing.errors import BadFile, BadRequest
from dummyforcing.files.reading import read_yaml
from dummyforcing.files.records import build
from dummyforcing.presets.preset import Preset


class Course(TypedDict):
    """Those of the `VideoOptions` that say how long a video is, and what it shows when."""

    num_frames: int
    switches: list[tuple[float, str]]
    fade: int


@dataclass(frozen=True)
class Scene:
    """One prompt of a story."""

    prompt: str
    at: float = 0.0
    """Seconds from the start of the video to the prompt's beginning."""


@dataclass(frozen=True)
class Story:
    """The prompts of one video; the fields are those of the file."""

    seconds: float
    """Length of the video; the nearest length that fills whole chunks is made."""
    scenes: tuple[Scene, ...]
    fade: int = 1
    """Chunks over which a prompt fades into the next."""

    def __post_init__(self) -> None:
        """Refuse what cannot be told.

        Raises:
            BadRequest: If there are no scenes, the first does not begin at 0, or one not after the one
                before.
        """
        if not self.scenes:
            raise BadRequest("A story without scenes shows nothing", "give one, with its prompt")
        if self.scenes[0].at != 0:
            raise BadRequest(
                f"The first scene of a story begins at {self.scenes[0].at:g} s",
                "let it begin at 0, or leave 'at' out",
            )
        for number, (before, scene) in enumerate(pairwise(self.scenes), start=2):
            if not scene.at > before.at:
                raise BadRequest(
                    f"Scene {number} of a story begins at {scene.at:g} s, the one before at {before.at:g} s",
                    "give every scene but the first an 'at' later than the one before",
                )

    @classmethod
    def load(cls, path: str | Path) -> "Story":
        """Read a story.

        Raises:
            BadFile: If the file is missing or no story.
        """
        try:
            data = read_yaml(path)
        except OSError as error:
            raise BadFile(f"{path} cannot be read ({error.strerror})", "give a story as YAML") from error
        except ValueError as error:
            raise BadFile(f"{path} is not a story, it is no YAML ({error})", "mend it there") from error
        return build(cls, data, str(path))

    @property
    def prompt(self) -> str:
        """The prompt that the video begins with."""
        return self.scenes[0].prompt

    def options(self, preset: Preset) -> Course:
        """Length and changes of prompt, for `generate` and `stream` of a model with this preset."""
        return {
            "num_frames": preset.pixel_frames_for(self.seconds),
            "switches": [(scene.at, scene.prompt) for scene in self.scenes[1:]],
            "fade": self.fade,
        }
