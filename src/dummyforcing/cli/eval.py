"""`dummyforcing eval`: videos of a whole prompt set, and what they measure."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import FlagCreatePairsOff, Positional, arg

from dummyforcing.cli.common import LOAD, Model, open_files
from dummyforcing.cli.flags import FlagsOf, Found, Given, command
from dummyforcing.cli.prompt_set import (
    SETTINGS,
    Ray,
    fill,
    maker,
    require_own_seeds,
    require_packages,
    settings_of,
    tell_prompts,
)
from dummyforcing.cli.terminal import tell, wrote
from dummyforcing.errors import BadRequest
from dummyforcing.pipeline.options import VideoOptions

TextFile = Annotated[Path | None, arg(metavar="FILE.txt", help_behavior_hint="(default: none)")]
JsonFile = Annotated[Path | None, arg(metavar="FILE.json", help_behavior_hint="(default: none)")]
DENSE: dict[str, Any] = {"policy": "dense", "dummy_fraction": None, "plan": None}
"""What others are judged against."""


@command(load=LOAD, video=FlagsOf(VideoOptions, only=(*SETTINGS, "seed")))
def eval(
    *,
    prompts: Annotated[
        Positional[Path | None], arg(metavar="PROMPTS", help_behavior_hint="(or give --scores)")
    ] = None,
    output: Annotated[Path, arg(aliases=["-o"], metavar="FOLDER")] = Path("eval"),
    model: Model = "tiny",
    load: Given,
    video: Given,
    samples: Annotated[int, arg(metavar="N")] = 5,
    shard: Annotated[str, arg(metavar="I/N")] = "0/1",
    ray: Ray = None,
    extended: TextFile = None,
    vbench_info: JsonFile = None,
    dimension: Annotated[
        tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="(default: all 16)")
    ] = (),
    download_networks: FlagCreatePairsOff[bool] = False,
    vbench_python: Annotated[
        Path | None, arg(metavar="PATH", help_behavior_hint="(default: this environment's)")
    ] = None,
    scores: Annotated[
        Path | None, arg(metavar="FILE|FOLDER", help_behavior_hint="(default: make videos)")
    ] = None,
    judge: FlagCreatePairsOff[bool] = False,
) -> Found:
    """Make the videos of a prompt set and measure them, with VBench where it is installed.

    Five videos of each line of prompts.txt in eval/videos, their measures in eval/metrics.json:
      dummyforcing eval prompts.txt -o eval

    After an interruption the same command goes on. Two processes (or machines) share the work:
      dummyforcing eval prompts.txt -o eval --shard 0/2
      dummyforcing eval prompts.txt -o eval --shard 1/2

    All GPUs of this machine, or of a cluster of Ray (extra ray), each with the model loaded once:
      dummyforcing eval prompts.txt -o eval --ray local
      dummyforcing eval prompts.txt -o eval --ray 10.0.0.1:6379

    Judge a policy of your own: what is worse than with the dense cache, from the same noise, in words:
      dummyforcing eval prompts.txt -o mine --policy mine.py:keep_two --judge

    Two finished folders, pair by pair:
      dummyforcing eval compare mine eval

    The protocol of VBench, for a model that wants long prompts:
      dummyforcing eval all_dimension.txt --extended all_dimension_longer.txt -o vbench
        --vbench-info VBench_full_info.json --vbench-python vbench-env/bin/python

    Quality, semantic and total score of what VBench has written elsewhere:
      dummyforcing eval --scores evaluation_results

    Args:
        prompts: One prompt per line; they name the videos. Or a table, .csv, .jsonl or .json, with a column
            prompt, and perhaps id, which names the videos then, and seed.
        output: Folder for videos and measures; it keeps to one setting.
        model: A model of `dummyforcing models`, a folder in the layout of the bundled one, or a preset file.
        load: Flags of the model.
        video: Flags of the videos.
        samples: Videos per prompt; sample i has the seed --seed + i.
        shard: Make only part I (counted from 0) of N.
        ray: Have Ray make the videos, one process for each GPU, or for 4 cores where there is none: local, on
            this machine; auto, on the cluster that runs here or that RAY_ADDRESS names; or HOST:PORT of one.
            A process or machine that dies costs the video in hand alone, which is made again.
        extended: What the model gets in place of each prompt: one long version per line, in the same order.
        vbench_info: VBench's VBench_full_info.json, which says what prompts a dimension has.
        dimension: Only these dimensions of VBench, and only the videos of their prompts.
            With temporal_flickering, its prompts get 25 videos, for VBench's static filter to choose from.
        download_networks: Let VBench download the networks that it lacks.
        vbench_python: Interpreter of the environment that VBench is installed in: what it needs (numpy 1,
            transformers 4.33) breaks others.
        scores: Only sum up existing scores: a JSON file, or the folder that VBench wrote into.
        judge: Also make every video with the dense cache, from the same noise, in FOLDER/dense, and say in
            words what is worse than there. Where prompts are of the bundled models' world, exact detectors
            tell whether objects are what the prompt says and do it.
    """
    if (prompts is None) == (scores is None):
        raise BadRequest(
            "There is either too little or too much to do",
            "give a file of prompts, to make videos, or --scores, to sum up existing ones",
        )
    from dummyforcing.cli.scores import print_detectors, print_judgement, print_measures, print_vbench
    from dummyforcing.evaluation.judge import judge as judge_videos
    from dummyforcing.evaluation.suite import differences
    from dummyforcing.evaluation.vbench import (
        DIMENSIONS,
        FLICKER,
        SAMPLES,
        STATIC_FILTER_SAMPLES,
        read_info,
        read_results,
        require_dimensions,
    )
    from dummyforcing.evaluation.vbench import scores as sum_up
    from dummyforcing.evaluation.vbench_package import Outcome, VBenchPackage

    require_packages(ray)
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
    if vbench_python is not None and vbench_info is None:
        raise BadRequest("VBench needs to know what prompts a dimension has", "give --vbench-info")

    from dummyforcing.evaluation.generate import VideoFolder, parse_shard, request, summarize
    from dummyforcing.evaluation.prompts import PromptSet
    from dummyforcing.evaluation.results import write_results
    from dummyforcing.pipeline.devices import choose_device
    from dummyforcing.presets.preset import parse_size

    part, parts = parse_shard(shard)
    members = read_info(vbench_info) if vbench_info else {}
    chosen = PromptSet.read(prompts, extended)
    if vbench_info is not None:
        wanted = {prompt for name in dimension or DIMENSIONS for prompt in members[name]}
        if not (of_vbench := chosen.only(wanted)).prompts:
            raise BadRequest(
                f"No prompt of {prompts} belongs to {', '.join(dimension) or 'VBench'}",
                "take VBench's own, which name the videos; long versions of them are for --extended",
            )
        chosen = of_vbench if dimension else chosen
    require_own_seeds(chosen, prompts, video)
    package = VBenchPackage.find(vbench_python)
    more = dict.fromkeys(members[FLICKER], STATIC_FILTER_SAMPLES) if FLICKER in dimension else {}
    jobs = chosen.jobs(samples, video.get("seed", 0), more)
    tell_prompts(chosen, prompts)

    files = open_files(model, load)
    options = {name: video.get(name, default) for name, default in SETTINGS.items()}
    options["size"] = parse_size(video["size"]) if "size" in video else files.preset.size
    dense = {**options, **DENSE}
    first = request(jobs[0], files, options)
    if judge and first.plan is None and first.policy.name == "dense":  # that of policy native, too
        raise BadRequest("Videos with the dense cache cannot be worse than themselves", "take another policy")
    for asked in (options, dense) if judge else (options,):
        for job in (*(job for job in jobs if job.index == 0), jobs[-1]):  # refuses now what cannot be made
            request(job, files, asked)
    where = choose_device(load.get("device", "auto") if ray is None else "auto")
    fixed = {
        "samples": samples,
        "seeds": sorted({job.seed for job in jobs}),
        "dimensions": sorted(dimension),
        **chosen.hashes,
    }
    with maker(ray, files, load) as made_by:
        settings, about = settings_of(files, first, options, load, made_by.device, fixed)
        dense_settings, _ = settings_of(files, first, dense, load, made_by.device, fixed)
        videos = VideoFolder.open(output, settings, where)
        reference = VideoFolder.open(output / "dense", dense_settings, where) if judge else None
        videos.name_prompts(chosen, jobs)
        fill(videos, jobs[part::parts], made_by, partial(request, folder=files, options=options))
        if reference is not None:
            fill(reference, jobs[part::parts], made_by, partial(request, folder=files, options=dense))

    folders = [videos] if reference is None else [videos, reference]
    done = {folder: sum(map(folder.is_done, jobs)) for folder in folders}
    if sum(done.values()) < len(jobs) * len(folders):
        tell(
            f"{sum(done.values())} of {len(jobs) * len(folders)} videos are there. Run the command once more "
            "without --shard when all shards are finished: it makes what is missing and sums up."
        )
        for folder, count in done.items():
            wrote(folder.videos, f"{count} of {len(jobs)} videos", videos=count)
        return {"settings": settings, "videos": len(jobs)}
    names = dimension or tuple(DIMENSIONS)
    outcome = package.evaluate(
        videos.videos, vbench_info, output / "vbench", chosen.names, names, str(where), download_networks
    )
    flicker = [job for job in jobs if job.prompt in members.get(FLICKER, chosen.names)]
    measured = summarize(videos, jobs, flicker, outcome)
    found: dict[str, object] = {"settings": settings, **about, **measured}
    if reference is not None:
        rows, dense_rows = videos.read_measures(jobs), reference.read_measures(jobs)
        judgement = judge_videos(rows, dense_rows, [job.prompt for job in jobs])
        found["against_dense"] = differences(rows, dense_rows, groups=[job.prompt for job in jobs])
        found["judgement"] = asdict(judgement)
        nothing = Outcome({}, dict.fromkeys(DIMENSIONS, "these videos are only compared with"))
        beside = {"settings": dense_settings, "plan": None, **summarize(reference, jobs, flicker, nothing)}
        write_results(reference.path / "metrics.json", beside, where)
    write_results(output / "metrics.json", found, where)
    print_measures(measured["measures"], len(jobs))
    print_vbench(outcome)
    if FLICKER in outcome.raw:
        tell(f"{FLICKER} is of the first {SAMPLES} samples; VBench's static_filter.py was not run on them.")
    if reference is not None:
        print_detectors(files.preset, [job for job in jobs if job.index == 0])
        print_judgement(judgement)
    for folder, count in done.items():
        wrote(folder.videos, f"{count} video{'s' * (count != 1)}", videos=count)
    wrote(output / "metrics.json", "all measures, with those of every video")
    return found


@command()
def compare(
    *,
    first: Annotated[Positional[Path], arg(metavar="FOLDER_A")],
    second: Annotated[Positional[Path], arg(metavar="FOLDER_B")],
) -> Found:
    """Compare two folders of dummyforcing eval pair by pair: the videos of the same prompts and noise.

    What the first has and the second has not, with intervals, and what is worse, in words:
      dummyforcing eval compare mine eval

    Args:
        first: A folder that is finished.
        second: Another one, to compare with.
    """
    from dummyforcing.cli.scores import print_differences, print_judgement
    from dummyforcing.evaluation.generate import read_folder
    from dummyforcing.evaluation.judge import judge
    from dummyforcing.evaluation.suite import differences

    (settings, rows), (theirs, others) = read_folder(first), read_folder(second)
    names = [name for name in rows if name in others]
    if not names:
        raise BadRequest(
            f"{first} and {second} have no video of the same name", "give folders of the same prompts"
        )
    seeds = [list(some.get("seeds", []))[:1] for some in (settings, theirs)]  # of sample 0
    if seeds[0] != seeds[1]:
        raise BadRequest(
            f"The videos of {first} and {second} are not made of the same noise",
            "take the same seed for both",
        )
    prompts = [name.rpartition("-")[0] for name in names]
    pairs = [rows[name] for name in names], [others[name] for name in names]
    if len(names) < max(len(rows), len(others)):
        tell(f"Of {len(rows)} and {len(others)} videos, {len(names)} are in both.")
    for name in {**settings, **theirs}:
        if settings.get(name) != theirs.get(name):
            tell(f"{name}: {settings.get(name)} in {first}, {theirs.get(name)} in {second}")
    print_differences(*pairs, prompts, (str(first), str(second)))
    judgement = judge(*pairs, prompts, str(second))
    print_judgement(judgement, str(second))
    found = differences(*pairs, groups=prompts)
    return {"videos": len(names), "differences": found, "judgement": asdict(judgement)}
