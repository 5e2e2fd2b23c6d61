"""`dummyforcing heads`: what every head is, in one video or measured over many."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from dummyforcing.cli.common import (
    LOAD,
    Model,
    NewPlanFile,
    bar,
    cache_dtype,
    check_output,
    load_for,
    open_files,
    parse_list,
)
from dummyforcing.cli.flags import FlagsOf, Found, Given, command
from dummyforcing.cli.terminal import tell, wrote
from dummyforcing.errors import BadRequest
from dummyforcing.files.text import read_prompts
from dummyforcing.pipeline.options import VideoOptions

if TYPE_CHECKING:
    from dummyforcing.analysis.atlas import Atlas
    from dummyforcing.pipeline.pipeline import DummyForcingPipeline
    from dummyforcing.pipeline.request import Request

Some = Annotated[str | None, arg(metavar="all|LIST", help_behavior_hint="(default: all)")]
VIDEO = ("num_frames", "size", "seed", "policy", "dummy_fraction", "budget", "plan")


@command(load=LOAD, video=FlagsOf(VideoOptions, only=VIDEO))
def heads(
    *,
    prompt: Annotated[
        Positional[str | None],
        arg(metavar="PROMPT", help_behavior_hint="(or give --prompts, --plan or --atlas)"),
    ] = None,
    output: Annotated[
        Path | None,
        arg(
            aliases=["-o"],
            metavar="FILE.png|FILE.html",
            help_behavior_hint="(default: heads.png; heads.html if an atlas is made)",
        ),
    ] = None,
    model: Model = "tiny",
    load: Given,
    prompts: Annotated[Path | None, arg(metavar="FILE.txt", help_behavior_hint="(default: PROMPT)")] = None,
    calls: Annotated[Some, arg(name="steps")] = None,
    chunks: Some = None,
    seeds: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 1)")] = None,
    save: Annotated[Path | None, arg(metavar="FILE.npz", help_behavior_hint="(default: do not)")] = None,
    atlas: Annotated[Path | None, arg(metavar="FILE.npz", help_behavior_hint="(default: measure)")] = None,
    video: Given,
    save_plan: NewPlanFile = None,
) -> Found:
    """Show what every head is: print a head plan, and draw it; or measure an atlas of heads.

    Find the plan as a video does, in its first chunks, draw it as a map of layers x heads, and keep it:
      dummyforcing heads "a red ball bounces on a green floor" -o heads.png --save-plan plan.json

    Draw one that was found before, or the one that comes with the model:
      dummyforcing heads --plan plan.json -o heads.png
      dummyforcing heads --plan shipped

    Measure an atlas: where all heads look, over many videos, steps and chunks. The report tells how many of
    them hardly use the past, and whether these are the same everywhere; the plan is one for all videos:
      dummyforcing heads --prompts prompts.txt --steps all --chunks all -o atlas.html --save-plan plan.json

    Keep the measurements, and look at them again with another number of dummy heads:
      dummyforcing heads --prompts prompts.txt --seeds 2 --save atlas.npz
      dummyforcing heads --atlas atlas.npz --dummy-fraction 0.25 -o quarter.html

    A plan of --plan is shown, not used. For an atlas, --frames are those of every video, and --seed begins
    the --seeds. For a plan of long videos give policy long:CAP, so many past frames for neighbor heads: long
    alone suits a video of --frames.

    Args:
        prompt: What the video shows in which the heads are watched.
        output: The picture of the plan (.png) or the report of the atlas (.html); an older one is replaced.
        model: A model of `dummyforcing models`, a folder in the layout of the bundled one, or a preset file.
        load: Flags of the model.
        prompts: For an atlas: text file with one prompt per line; a video is made of each.
        calls: For an atlas: the denoising steps to watch, such as 0,3,commit; commit is the clean pass at the
            end of a chunk, which the public code scores.
        chunks: For an atlas: the chunks to watch, such as 1,2,6; chunk 0 has no past.
        seeds: For an atlas: how many videos to make of each prompt, with the seeds from --seed on.
        save: For an atlas: where to write the measurements.
        atlas: Measurements to show instead of making some.
        video: Flags of the video.
        save_plan: Where to write the plan that was found.
    """
    asked = (prompts, calls, chunks, seeds, save, atlas, video.get("num_frames"))
    is_report = output is not None and output.suffix.lower() == ".html"
    is_atlas = is_report or any(option is not None for option in asked)
    output = output or Path("heads.html" if is_atlas else "heads.png")
    check_output(output, ".png", ".html")
    check_output(save, ".npz")
    check_output(save_plan, ".json")
    if [prompt, prompts, video.get("plan"), atlas].count(None) != 3:
        raise BadRequest(
            "There is either too little or too much to show",
            "give a prompt or --prompts, to watch the heads, --plan, to show a head plan, or --atlas, to "
            "show measurements",
        )
    if "plan" in video and is_atlas:
        raise BadRequest("A head plan can be drawn as .png only", "leave out what asks for an atlas")
    if seeds is not None and seeds < 1:
        raise BadRequest(f"{seeds} seeds make no video", "take 1 or more", "seeds")
    watched, passes = parse_list(chunks, "--chunks"), parse_list(calls, "--steps", "commit")
    texts = read_prompts(prompts) if prompts else [str(prompt)]

    from dummyforcing.analysis.plots import head_map_text, save_head_map
    from dummyforcing.pipeline.request import make_request
    from dummyforcing.pipeline.shipped import read_plan

    files = open_files(model, load)
    given = read_plan(files, video.get("plan"))
    options = {name: value for name, value in video.items() if name != "plan"}
    request = make_request(files, texts[0], cache_dtype=cache_dtype(load), **options)
    if not is_atlas:
        shown = given or load_for(files, request, load).find_plan(request)
    else:
        from dummyforcing.analysis.atlas import Atlas
        from dummyforcing.analysis.report import write_report
        from dummyforcing.cli.report import print_atlas

        if atlas is not None:
            measured = Atlas.load(atlas)
            if measured.settings.model != files.preset.name:
                raise BadRequest(
                    f"{atlas} is of model '{measured.settings.model}'", "give that model as --model"
                )
        else:
            kept = {name: options[name] for name in ("num_frames", "size") if name in options}
            native = make_request(files, texts[0], policy="native", **kept)
            measured = _measure(
                load_for(files, native, load),
                request,
                texts,
                range(request.seed, request.seed + (seeds or 1)),
                None if watched is None else [int(chunk) for chunk in watched],
                None if passes is None else [None if step == "commit" else int(step) for step in passes],
            )
        shown = measured.plan(request.policy)
        if save is not None:
            measured.save(save)
        if output.suffix.lower() == ".html":
            write_report(output, measured, request.policy)
        print_atlas(measured, request.policy)
    if save_plan is not None:
        shown.save(save_plan)
    if output.suffix.lower() == ".png":
        save_head_map(output, shown)
    tell(head_map_text(shown))
    for path in (output, save, save_plan):
        if path is not None:
            wrote(path)
    return {"model": files.preset.name, "policy": shown.policy, "plan": shown.counts}


def _measure(
    pipeline: "DummyForcingPipeline",
    request: "Request",
    prompts: list[str],
    seeds: range,
    chunks: list[int] | None,
    calls: list[int | None] | None,
) -> "Atlas":
    """Record an atlas of videos like that of `request`, with a bar that counts the chunks."""
    from dummyforcing.analysis.recorder import record
    from dummyforcing.evaluation.results import provenance

    last = max(chunks or [request.length // request.chunk_frames - 1])
    count = len(prompts) * len(seeds) * (last + 1)
    with bar(desc="watching", total=count, unit="chunk") as shown:
        atlas = record(
            pipeline,
            prompts,
            request.policy,
            chunks=chunks,
            calls=calls,
            seeds=seeds,
            num_frames=pipeline.files.preset.pixel_frames(request.length),
            size=request.size,
            on_chunk=shown.update,
        )
    return replace(atlas, settings=replace(atlas.settings, made=provenance(pipeline.device)))
