"""Changes of the prompt on the way: read, and placed where a chunk begins."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dummyforcing.errors import BadRequest
from dummyforcing.files.text import whole_prompt
from dummyforcing.presets.preset import PIXEL_FRAMES_PER_FRAME, Preset


@dataclass(frozen=True)
class Switch:
    """A change of the prompt."""

    frame: int
    """The latent frame that the first chunk with the new prompt begins with."""
    prompt: str


def read_switches(switches: Sequence[tuple[float, str] | str]) -> list[tuple[float, str]]:
    """Changes of the prompt, each a pair or the text SECONDS:PROMPT.

    Raises:
        BadRequest: If a text is something else.
    """
    found = []
    for switch in switches:
        if not isinstance(switch, str):
            found.append((switch[0], switch[1]))
            continue
        seconds, _, prompt = switch.partition(":")
        try:
            found.append((float(seconds), prompt.strip()))
        except ValueError:
            raise BadRequest(
                f"The change of prompt '{switch}' cannot be read",
                "write SECONDS:PROMPT, such as '2.5:a ball'",
                "switches",
            ) from None
    return found


def place_switches(
    preset: Preset, switches: Sequence[tuple[float, str]], fade: int, frames: int | None
) -> tuple[Switch, ...]:
    """Place changes of the prompt, the earliest first, at latent frames.

    Args:
        preset: Of the model.
        switches: Seconds from the start of the video, and the prompt from then on.
        fade: Chunks that each of them takes.
        frames: Latent frames of the video.

    Raises:
        BadRequest: If one comes too late to be seen, or has no prompt, two come in the same chunk, or the
            fade is longer than the video.
    """
    found: dict[int, Switch] = {}
    chunk = preset.chunk_frames
    if switches and frames is not None and fade * chunk > frames:
        raise BadRequest(
            f"A fade of {fade} chunks is longer than the video", f"take {frames // chunk} or less", "fade"
        )
    for seconds, prompt in sorted(switches, key=lambda switch: switch[0]):
        last = math.inf if frames is None else max(preset.pixel_frames(frames - chunk), 0) / preset.fps
        if not prompt.strip():
            raise BadRequest(
                "The prompt to change to is empty", "say what the video shall show then", "switches"
            )
        prompt = whole_prompt(prompt, "switches")
        if not (0 < seconds <= last and math.isfinite(seconds)):
            limit = (
                "more than 0 s" if frames is None else f"the last chunk of this video begins at {last:.2f} s"
            )
            raise BadRequest(f"The prompt cannot change at {seconds:g} s", limit, "switches")
        earliest = math.ceil((seconds * preset.fps - 1) / PIXEL_FRAMES_PER_FRAME) + 1
        frame = math.ceil(earliest / chunk) * chunk
        if frame in found:
            raise BadRequest(
                f"The prompts '{found[frame].prompt}' and '{prompt}' would begin in the same chunk",
                f"leave {preset.chunk_pixel_frames / preset.fps:g} s between them",
                "switches",
            )
        found[frame] = Switch(frame, prompt)
    return tuple(found.values())
