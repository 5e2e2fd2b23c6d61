"""`dummyforcing heads`: what every head is, in one video or measured over many."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import FlagCreatePairsOff, Positional, arg

from dummyforcing.cli.common import (
    Base,
    BudgetText,
    Device,
    DType,
    Fraction,
    LoRAFiles,
    Model,
    NewPlanFile,
    PlanFile,
    PolicyName,
    Size,
    Weights,
    cache_dtype,
    check_output,
    load_for,
    parse_list,
    read_plan,
)
from dummyforcing.errors import UserError
from dummyforcing.files.writing import read_prompts

if TYPE_CHECKING:
    from dummyforcing.analysis.atlas import Atlas
    from dummyforcing.pipeline.pipeline import Pipeline
    from dummyforcing.pipeline.request import Request

Some = Annotated[str | None, arg(metavar="all|LIST", help_behavior_hint="(default: all)")]


def heads(
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
    weights: Weights = None,
    base: Base = None,
    lora: LoRAFiles = (),
    prompts: Annotated[Path | None, arg(metavar="FILE.txt", help_behavior_hint="(default: PROMPT)")] = None,
    steps: Some = None,
    chunks: Some = None,
    seeds: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 1)")] = None,
    frames: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 81)")] = None,
    save: Annotated[Path | None, arg(metavar="FILE.npz", help_behavior_hint="(default: do not)")] = None,
    atlas: Annotated[Path | None, arg(metavar="FILE.npz", help_behavior_hint="(default: measure)")] = None,
    size: Size = None,
    seed: int = 0,
    policy: PolicyName = "dummy",
    dummy_fraction: Fraction = None,
    budget: BudgetText = None,
    plan: PlanFile = None,
    save_plan: NewPlanFile = None,
    device: Device = "auto",
    dtype: DType = None,
    offload: FlagCreatePairsOff[bool] = False,
) -> None:
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

    Args:
        prompt: What the video shows in which the heads are watched.
        output: The picture of the plan (.png) or the report of the atlas (.html); an older one is replaced.
        model: A model of `dummyforcing models`, a folder in the layout of the bundled one, or a preset file.
        weights: Transformer's weights to use instead of the model's own and its LoRA.
        base: Where to find text encoder, tokenizer and VAE instead.
        lora: LoRA to merge into the transformer; may be given several times.
        prompts: For an atlas: text file with one prompt per line; a video is made of each.
        steps: For an atlas: the denoising steps to watch, such as 0,3,commit; commit is the clean pass at the
            end of a chunk, which the public code scores.
        chunks: For an atlas: the chunks to watch, such as 1,2,6; chunk 0 has no past.
        seeds: For an atlas: how many videos to make of each prompt, with the seeds from --seed on.
        frames: For an atlas: pixel frames per video.
        save: For an atlas: where to write the measurements.
        atlas: Measurements to show instead of making some.
        size: Width and height in pixels, multiples of 16, or a name: 480p is 832x480, 720p 1280x720, 1080p
            1920x1088. A model is at its best at its own size.
        seed: Of the noise.
        policy: A policy that classifies heads: dummy, anchored, long or official. For a plan of long videos
            give long:CAP, so many past frames for neighbor heads: long alone suits a video of --frames.
        dummy_fraction: Share of all heads that become dummy.
        budget: What policy long may cost: window:12, as much as if every head saw 12 latent frames, the chunk
            included; or the size of the KV cache, such as 500MB or 2GB.
        plan: Head plan to show instead of finding one; shipped: the one that comes with the model.
        save_plan: Where to write the plan that was found.
        device: Where to compute; auto takes a GPU if there is one.
        dtype: Precision of the computation.
        offload: Spare the GPU's memory, as for `dummyforcing generate`.
    """
    asked = (prompts, steps, chunks, seeds, frames, save, atlas)
    is_report = output is not None and output.suffix.lower() == ".html"
    is_atlas = is_report or any(option is not None for option in asked)
    output = output or Path("heads.html" if is_atlas else "heads.png")
    check_output(output, ".png", ".html")
    check_output(save, ".npz")
    check_output(save_plan, ".json")
    if [prompt, prompts, plan, atlas].count(None) != 3:
        raise UserError(
            "Give either a prompt or --prompts, to watch the heads, --plan, to show a head plan, or --atlas, "
            "to show measurements."
        )
    if plan is not None and is_atlas:
        raise UserError("A head plan can be drawn as .png only; leave out what asks for an atlas.")
    if seeds is not None and seeds < 1:
        raise UserError(f"{seeds} seeds make no video; take 1 or more.")
    watched, passes = parse_list(chunks, "--chunks"), parse_list(steps, "--steps", "commit")
    texts = read_prompts(prompts) if prompts else [str(prompt)]

    from dummyforcing.analysis.plots import print_head_map, save_head_map
    from dummyforcing.checkpoints.model_files import ModelFiles

    files = ModelFiles.open(model, weights=weights, base=base, lora=lora)
    length = frames or 81
    request = files.request(
        texts[0],
        frames=length,
        size=size,
        seed=seed,
        policy=policy,
        dummy_fraction=dummy_fraction,
        budget=budget,
        cache_dtype=cache_dtype(device, dtype),
    )
    if not is_atlas:
        shown = read_plan(plan, files) or load_for(files, request, device, dtype, offload).find_plan(request)
    else:
        from dummyforcing.analysis.atlas import Atlas
        from dummyforcing.analysis.report import write_report
        from dummyforcing.cli.report import print_atlas

        if atlas is not None:
            measured = Atlas.load(atlas)
            if measured.settings.model != files.preset.name:
                raise UserError(
                    f"{atlas} is of model '{measured.settings.model}'; give that model as --model."
                )
        else:
            native = files.request(texts[0], frames=length, size=size, policy="native")
            measured = _measure(
                load_for(files, native, device, dtype, offload),
                request,
                texts,
                range(seed, seed + (seeds or 1)),
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
    print_head_map(shown)


def _measure(
    pipeline: "Pipeline",
    request: "Request",
    prompts: list[str],
    seeds: range,
    chunks: list[int] | None,
    calls: list[int | None] | None,
) -> "Atlas":
    """Record an atlas of videos like that of `request`, with a bar that counts the chunks."""
    from tqdm import tqdm

    from dummyforcing.analysis.recorder import record
    from dummyforcing.evaluation.results import provenance

    last = max(chunks or [request.chunks - 1])
    with tqdm(desc="watching", total=len(prompts) * len(seeds) * (last + 1), unit="chunk") as bar:
        atlas = record(
            pipeline,
            prompts,
            request.policy,
            chunks=chunks,
            calls=calls,
            seeds=seeds,
            frames=pipeline.files.preset.pixel_frames(request.frames),
            size=request.size,
            on_chunk=bar.update,
        )
    made = {**provenance(pipeline.device), "command": shlex.join(["dummyforcing", *sys.argv[1:]])}
    return replace(atlas, settings=replace(atlas.settings, made=made))
