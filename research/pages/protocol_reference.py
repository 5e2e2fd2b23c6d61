"""Write docs/reference/realtime.md, the live protocol, from the messages of the server.

python -m research.pages.protocol_reference [--check]
"""

from collections.abc import Mapping
from inspect import getdoc
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from dummyforcing.server.fields import VideoFields
from dummyforcing.server.live.messages import (
    ChunkMeasures,
    ChunkTimings,
    ClientMessage,
    ServerMessage,
    TrackInfo,
)
from research.pages.making import ROOT, main, table

PATH = ROOT / "docs" / "reference" / "realtime.md"
INTRODUCTION = """# The live protocol

Written by `python -m research.pages.protocol_reference` from `server/live/messages.py`.

A WebSocket at `/v1/realtime`. Messages are JSON text with a `type`; fields that are not known are refused,
those that are not given have their defaults. After every `chunk` the server sends one binary message: its
segment, a fragmented mp4 (`ftyp`, `moov`, `moof`, `mdat`; H.264) that is playable by itself and knows its
time in the track. In a browser, append it to a `SourceBuffer` of the `codec` that `ready` tells; anywhere
else, give it to FFmpeg.

## A conversation

```text
client  {"type": "start", "prompt": "a red ball bounces on a green floor", "seed": 3}
server  {"type": "ready", "session": "...", "size": [160, 160], "fps": 16, "codec": "video/mp4; ...", ...}
server  {"type": "chunk", "number": 1, "index": 0, "first_frame": 0, "frames": 9, ...}   + segment
server  {"type": "chunk", "number": 2, "index": 1, "first_frame": 9, "frames": 12, ...}  + segment
client  {"type": "ack", "chunk": 0}                     # the picture is in chunk 0
client  {"type": "prompt", "prompt": "a blue star spins"}
server  {"type": "chunk", ..., "index": 2, "prompt": "a blue star spins", ...}            + segment
server  {"type": "prompt_active", "track": 0, "chunk": 2, "prompt": "a blue star spins", "seconds": 0.8}
client  {"type": "branch", "chunk": 1, "prompt": "a red ball grows"}
server  {"type": "branched", "track": 1, "parent": 0, "chunk": 1, ...}
client  {"type": "stop"}
server  {"type": "done", "reason": "stopped"}
```

## Rules

- **Pace.** A track is made at most `ahead` chunks beyond the one that was acknowledged last, so a client
  sets the pace, and a slow one slows nobody else down. Acknowledge a chunk when it begins to be shown.
- **Beside others** the first two chunks come together, since the second one may be late. Play slower while
  there is little in your buffer, as the page does, and a video of a busy server does not stop.
- **Chunks are replaced.** A chunk with the `index` of one that is there takes its place, and what came
  after that is given up: that is how a new prompt comes soon although chunks were made ahead.
- **A new prompt** shows from the second chunk after the one that was acknowledged when it was asked for.
- **Lost connections.** Connect again within the server's `resume` seconds and send `start` with `session`
  and `last`, the `number` of the last chunk that came of each track: `ready` comes with `is_back`, and then
  all chunks with a larger number. Meanwhile the video is made as far ahead as it may be.
- **A full server** answers `start` with `queued` and, when it is your turn, `ready`. `stop` gives the place
  up.
- **Errors** leave everything as it was; a `done` without a track ends the session.
- **Keys**, if the server wants them: `Authorization: Bearer KEY`, or the page's cookie.

Downloads, while the session lasts and for a while after: `GET /v1/realtime/SESSION/TRACK/video.mp4`
(`?first=CHUNK` and `last=CHUNK` for a part), `story.yaml` (for `dummyforcing generate --story`) and
`plan.json` (for `--plan`)."""


def kinds(union: Any) -> list[type[BaseModel]]:
    """The messages of a union."""
    return list(get_args(get_args(union)[0]))


def of_type(hint: Any) -> str:
    """A type as a reader of JSON knows it."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(map(of_type, args))
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in args)
    if origin is dict:
        return f"object of {of_type(args[1])} by {of_type(args[0])}"
    if origin in (list, tuple):
        return f"list of {of_type(args[0])}"
    words: dict[Any, str] = {
        NoneType: "null",
        str: "text",
        int: "whole number",
        float: "number",
        bool: "true or false",
    }
    return words.get(hint) or str(hint.__name__)


def section(kind: type[BaseModel]) -> str:
    """A message with its fields."""
    rows = []
    for name, field in kind.model_fields.items():
        if name == "type" or (name in VideoFields.model_fields and issubclass(kind, VideoFields)):
            continue
        default = "required" if field.is_required() else f"`{field.get_default(call_default_factory=True)!r}`"
        about = " ".join((field.description or "").split()).replace("|", "\\|")
        rows.append([f"`{name}`", of_type(field.annotation), default.replace("None", "null"), about])
    name = kind.model_fields["type"].default
    text = f"### `{name}`\n\n{getdoc(kind)}\n"
    if rows:
        text += f"\n{table(['field', 'type', 'default', 'what it is'], rows)}\n"
    if issubclass(kind, VideoFields):
        names = ", ".join(f"`{name}`" for name in VideoFields.model_fields)
        text += f"\nAnd what the video shall be, as [options](options.md#of-a-video): {names}.\n"
    return text


def part(kind: type[BaseModel]) -> str:
    """What messages consist of."""
    rows = [
        [f"`{name}`", of_type(field.annotation), " ".join((field.description or "").split())]
        for name, field in kind.model_fields.items()
    ]
    return f"### {kind.__name__}\n\n{getdoc(kind)}\n\n{table(['field', 'type', 'what it is'], rows)}\n"


def made() -> Mapping[Path, str]:
    """The page by its path."""
    parts = [INTRODUCTION, "## What a client says\n", *map(section, kinds(ClientMessage))]
    parts += ["## What the server says\n", *map(section, kinds(ServerMessage))]
    parts += ["## Parts of them\n", *(part(kind) for kind in (TrackInfo, ChunkTimings, ChunkMeasures))]
    return {PATH: "\n".join(parts)}


if __name__ == "__main__":
    main(made, __doc__)
