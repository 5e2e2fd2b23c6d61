"""`dummyforcing eval`: videos of a whole prompt set, and what they measure."""

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import FlagCreatePairsOff, Positional, arg

from dummyforcing.cli.common import LOAD, Model, bar, load_for, open_files
from dummyforcing.cli.flags import FlagsOf, Found, Given, command
from dummyforcing.cli.terminal import tell, wrote
from dummyforcing.errors import BadRequest, UnknownWordsWarning
from dummyforcing.pipeline.options import VideoOptions

if TYPE_CHECKING:
    from dummyforcing.checkpoints.model_files import ModelFiles
    from dummyforcing.evaluation.generate import Job, VideoFolder

TextFile = Annotated[Path | None, arg(metavar="FILE.txt", help_behavior_hint="(default: none)")]
JsonFile = Annotated[Path | None, arg(metavar="FILE.json", help_behavior_hint="(default: none)")]
SETTINGS: dict[str, Any] = {
    "num_frames": 81,
    "size": None,
    "policy": "dummy",
    "dummy_fraction": None,
    "plan": None,
}
"""Options of the videos that a folder keeps to, and their defaults."""


@command(load=LOAD, video=FlagsOf(VideoOptions, only=(*SETTINGS, "seed")))
def eval(
    *,
    prompts: Annotated[
        Positional[Path | None], arg(metavar="PROMPTS.txt", help_behavior_hint="(or give --scores)")
    ] = None,
    output: Annotated[Path, arg(aliases=["-o"], metavar="FOLDER")] = Path("eval"),
    model: Model = "tiny",
    load: Given,
    video: Given,
    samples: Annotated[int, arg(metavar="N")] = 5,
    shard: Annotated[str, arg(metavar="I/N")] = "0/1",
    extended: TextFile = None,
    vbench_info: JsonFile = None,
    dimension: Annotated[
        tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="(default: all 16)")
    ] = (),
    download_networks: FlagCreatePairsOff[bool] = False,
    scores: Annotated[
        Path | None, arg(metavar="FILE|FOLDER", help_behavior_hint="(default: make videos)")
    ] = None,
) -> Found:
    """Make the videos of a prompt set and measure them, with VBench where it is installed.

    Five videos of each line of prompts.txt in eval/videos, their measures in eval/metrics.json:
      dummyforcing eval prompts.txt -o eval

    After an interruption the same command goes on. Two processes (or machines) share the work:
      dummyforcing eval prompts.txt -o eval --shard 0/2
      dummyforcing eval prompts.txt -o eval --shard 1/2

    The protocol of VBench, for a model that wants long prompts:
      dummyforcing eval all_dimension.txt --extended all_dimension_longer.txt -o vbench
        --vbench-info VBench_full_info.json

    Quality, semantic and total score of what VBench has written elsewhere:
      dummyforcing eval --scores evaluation_results

    Args:
        prompts: One prompt per line; they name the videos.
        output: Folder for videos and measures; it keeps to one setting.
        model: A model of `dummyforcing models`, a folder in the layout of the bundled one, or a preset file.
        load: Flags of the model.
        video: Flags of the videos.
        samples: Videos per prompt; sample i has the seed --seed + i.
        shard: Make only part I (counted from 0) of N.
        extended: What the model gets in place of each prompt: one long version per line, in the same order.
        vbench_info: VBench's VBench_full_info.json, which says what prompts a dimension has.
        dimension: Only these dimensions of VBench, and only the videos of their prompts.
            With temporal_flickering, its prompts get 25 videos, for VBench's static filter to choose from.
        download_networks: Let VBench download the networks that it lacks.
        scores: Only sum up existing scores: a JSON file, or the folder that VBench wrote into.
    """
    if (prompts is None) == (scores is None):
        raise BadRequest(
            "There is either too little or too much to do",
            "give a file of prompts, to make videos, or --scores, to sum up existing ones",
        )
    from dummyforcing.cli.scores import print_measures, print_vbench
    from dummyforcing.evaluation.vbench import (
        DIMENSIONS,
        FLICKER,
        SAMPLES,
        STATIC_FILTER_SAMPLES,
        Outcome,
        evaluate,
        read_info,
        read_results,
        require_dimensions,
    )
    from dummyforcing.evaluation.vbench import scores as sum_up

    require_dimensions(dimension)
    if scores is not None:
        raw = read_results(scores)
        missing = {name: "there is no score of it" for name in DIMENSIONS if name not in raw}
        print_vbench(Outcome(raw, missing))
        return {"raw": raw, "not_computed": missing, **asdict(sum_up(raw))}
    assert prompts is not None
    if samples < 1:
        raise BadRequest(f"{samples} samples are no videos", "take 1 or more", "samples")
    if dimension and vbench_info is None:
        raise BadRequest("--dimension needs to know what prompts a dimension has", "give --vbench-info")

    from dummyforcing.evaluation.generate import (
        PromptSet,
        VideoFolder,
        file_hash,
        parse_shard,
        request,
        summarize,
    )
    from dummyforcing.evaluation.results import write_results
    from dummyforcing.pipeline.devices import choose_device, choose_dtype
    from dummyforcing.presets.preset import parse_size

    part, parts = parse_shard(shard)
    members = read_info(vbench_info) if vbench_info else {}
    chosen = PromptSet.read(prompts, extended)
    if dimension:
        chosen = chosen.only({prompt for name in dimension for prompt in members[name]})
        if not chosen.prompts:
            raise BadRequest(f"No prompt of {prompts} belongs to {', '.join(dimension)}", "take other ones")
    more = dict.fromkeys(members[FLICKER], STATIC_FILTER_SAMPLES) if FLICKER in dimension else {}
    jobs = chosen.jobs(samples, video.get("seed", 0), more)

    files = open_files(model, load)
    options = {name: video.get(name, default) for name, default in SETTINGS.items()}
    options["size"] = parse_size(video["size"]) if "size" in video else files.preset.size
    for job in (jobs[0], jobs[-1]):  # refuses now what cannot be made
        request(job, files, options)
    where, plan = choose_device(load.get("device", "auto")), video.get("plan")
    weights = load.get("weights")
    settings = {
        # Names of settings are as old as the folders that keep to them.
        "frames": options["num_frames"],
        **{name: options[name] for name in ("size", "policy", "dummy_fraction")},
        "model": files.preset.name,
        "weights": Path(weights).name if weights else None,
        "lora": [Path(text).name for text in load.get("lora", ())],
        "plan": file_hash(Path(plan)) if plan and plan != "shipped" else plan,
        "dtype": str(choose_dtype(load.get("torch_dtype"), where)),
        "samples": samples,
        "seeds": sorted({job.seed for job in jobs}),
        "dimensions": sorted(dimension),
        **chosen.hashes,
    }
    videos = VideoFolder.open(output, settings, where)
    _fill(videos, jobs[part::parts], files, options, load)

    done = sum(map(videos.is_done, jobs))
    if done < len(jobs):
        tell(
            f"{done} of {len(jobs)} videos are there. Run the command once more without --shard when all "
            "shards are finished: it makes what is missing and sums up."
        )
        wrote(videos.videos, f"{done} of {len(jobs)} videos", videos=done)
        return {"settings": settings, "videos": len(jobs)}
    names = dimension or tuple(DIMENSIONS)
    outcome = evaluate(
        videos.videos, vbench_info, output / "vbench", chosen.prompts, names, str(where), download_networks
    )
    flicker = [job for job in jobs if job.prompt in members.get(FLICKER, chosen.prompts)]
    found = summarize(videos, jobs, flicker, outcome)
    write_results(output / "metrics.json", {"settings": settings, **found}, where)
    print_measures(found["measures"], len(jobs))
    print_vbench(outcome)
    if FLICKER in outcome.raw:
        tell(f"{FLICKER} is of the first {SAMPLES} samples; VBench's static_filter.py was not run on them.")
    wrote(videos.videos, f"{done} video{'s' * (done != 1)}", videos=done)
    wrote(output / "metrics.json", "all measures, with those of every video")
    return {"settings": settings, **found}


def _fill(
    videos: "VideoFolder",
    jobs: "Sequence[Job]",
    files: "ModelFiles",
    options: Given,
    load: Given,
) -> None:
    """Make and measure the videos that are not there yet, with a bar that tells how long it takes."""
    from dummyforcing.evaluation.generate import request

    todo = [job for job in jobs if not videos.is_done(job)]
    pipeline = None
    if any(not videos.video(job).exists() for job in todo):
        pipeline = load_for(files, request(todo[0], files, options), load)
    preset = files.preset
    done, count = len(jobs) - len(todo), len(jobs)
    with warnings.catch_warnings(), bar(total=count, initial=done, unit="video") as shown:
        warnings.simplefilter("once", UnknownWordsWarning)  # not again for every sample
        try:
            for job in todo:
                if pipeline and not videos.video(job).exists():
                    videos.make(job, pipeline, options)
                videos.measure(job, preset.chunk_frames, preset.fps)
                done += 1
                shown.update()
        except KeyboardInterrupt as error:
            error.add_note(f"{done} of {count} videos are in {videos.videos}; the same command goes on.")
            raise
