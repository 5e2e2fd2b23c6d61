"""`dummyforcing teacache`: which denoising steps a model can do without, measured."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from dummyforcing.cli.common import LOAD, Model, bar, check_output, load_for, open_files
from dummyforcing.cli.flags import FlagsOf, Found, Given, command
from dummyforcing.cli.terminal import wrote
from dummyforcing.errors import BadRequest
from dummyforcing.files.text import read_prompts
from dummyforcing.pipeline.options import VideoOptions

if TYPE_CHECKING:
    from dummyforcing.sampling.teacache import Calibration

VIDEO = ("policy", "num_frames", "size")

DESCRIPTION = """Find the denoising steps that a model can do without; without a command, show what was found.

TeaCache leaves out steps and reuses what the step before did. Which ones it may leave out differs from model
to model. Measure it, then use the table:
  dummyforcing teacache calibrate prompts.txt --error 0.01 -o table.json
  dummyforcing generate "a yellow star spins" --teacache table.json

The bundled model brings one:
  dummyforcing generate "a yellow star spins" --teacache shipped"""


@command(load=LOAD, video=FlagsOf(VideoOptions, only=VIDEO, defaults={"policy": "native"}))
def calibrate(
    *,
    prompts: Annotated[
        Positional[tuple[str, ...]], arg(metavar="PROMPTS.txt|PROMPT ...", help_behavior_hint="")
    ],
    output: Annotated[Path, arg(aliases=["-o"], metavar="FILE.json")] = Path("teacache.json"),
    error: Annotated[float, arg(metavar="E")] = 0.01,
    model: Model = "tiny",
    load: Given,
    video: Given,
    seeds: Annotated[int, arg(metavar="N")] = 1,
) -> Found:
    """Measure what it does to leave out denoising steps, and write a table for generate --teacache.

    Every set of steps is left out of every chunk of some videos in turn, from the same noise and after the
    same past. The error is the mean squared change of the chunk's latents over their variance: 0.01 is a
    hundredth of it. The most steps within --error are left out.

    On prompts of your own, as many as there is time for; a video takes about seven times as long as usual:
      dummyforcing teacache calibrate "a red ball bounces" "a blue star spins" -o table.json
      dummyforcing teacache calibrate prompts.txt --model self-forcing --error 0.02 -o table.json

    Use the table; with another error, nothing is measured again:
      dummyforcing generate "a yellow star spins" --teacache table.json
      dummyforcing generate "a yellow star spins" --teacache table.json:0.005

    Args:
        prompts: What the videos show; the lines of a file that ends in .txt, or prompts.
        output: The table to write; an older one is replaced.
        error: The highest error that is accepted, mean over all chunks but the first of a video, whose steps
            all run.
        model: A model of `dummyforcing models`, a folder in the layout of the bundled one, or a preset file.
        load: Flags of the model.
        video: Flags of the videos.
        seeds: How many videos to make of each prompt, with the seeds from 0 on.
    """
    check_output(output, ".json")
    if seeds < 1:
        raise BadRequest(f"{seeds} seeds make no video", "take 1 or more", "seeds")
    texts = [line for text in prompts for line in _prompts(text)]
    if not texts:
        raise BadRequest(
            "There are no prompts to measure with", "give some, or a file of prompts that ends in .txt"
        )

    from dummyforcing.pipeline.choices import check_teacache
    from dummyforcing.pipeline.request import make_request

    files = open_files(model, load)
    check_teacache(files.preset, [1])
    request = make_request(files, texts[0], **video)
    pipeline = load_for(files, request, load)

    from dummyforcing.analysis.calibration import calibrate as measure
    from dummyforcing.analysis.calibration import sweeps
    from dummyforcing.cli.report import print_calibration

    chunks = request.length // request.chunk_frames
    total = len(texts) * seeds * chunks * sweeps(len(files.preset.schedule.steps))
    with bar(desc="measuring", total=total, unit="chunk") as shown:
        table = measure(
            pipeline,
            texts,
            error,
            policy=video["policy"],
            seeds=range(seeds),
            num_frames=files.preset.pixel_frames(request.length),
            size=request.size,
            on_chunk=shown.update,
        )
    table.save(output)
    print_calibration(table)
    wrote(output)
    return _found(table)


@command()
def show(
    *,
    table: Annotated[Positional[str], arg(metavar="FILE.json[:ERROR]|shipped[:ERROR]")] = "shipped",
    model: Model = "tiny",
) -> Found:
    """Show a table: what was measured of each set of steps, and which of them is left out.

    The table that the bundled model brings, and what it would do at another error:
      dummyforcing teacache show
      dummyforcing teacache show shipped:0.3

    Args:
        table: The file, or shipped: the one that comes with the model; after a colon, another error to
            accept.
        model: The model that brings the table.
    """
    from dummyforcing.cli.report import print_calibration
    from dummyforcing.pipeline.shipped import teacache_table

    found = teacache_table(open_files(model, {}), table)
    print_calibration(found)
    return _found(found)


def _found(table: "Calibration") -> Found:
    """A table, ready for JSON, with the steps that are left out."""
    return {**asdict(table), "steps": list(table.steps), "speed_up": table.speed_up(table.steps)}


def _prompts(text: str) -> list[str]:
    """The lines of a file of prompts, or the prompt itself."""
    return read_prompts(Path(text)) if text.endswith(".txt") else [text]
