"""`dummyforcing bench`: how fast videos are made, and what that takes."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import FlagCreatePairsOff, arg

from dummyforcing.cli.common import FP8, bar, check_output, open_files
from dummyforcing.cli.flags import FlagsOf, Found, Given, command
from dummyforcing.cli.terminal import tell, wrote
from dummyforcing.cli.viewers import Audience, one_each
from dummyforcing.errors import BadRequest
from dummyforcing.pipeline.options import LoadOptions

if TYPE_CHECKING:
    from dummyforcing.bench.run import Report

LOAD = FlagsOf(LoadOptions, only=("weights", "base", "lora", "device", "torch_dtype"))


@command(load=LOAD)
def bench(
    *,
    model: Annotated[
        str | None,
        arg(metavar="NAME|FOLDER|FILE", help_behavior_hint="(default: self-forcing on a GPU, else tiny)"),
    ] = None,
    load: Given,
    size: Annotated[
        tuple[str, ...],
        arg(name="sizes", metavar="480p|720p|1080p|WxH ...", help_behavior_hint="(default: the model's own)"),
    ] = (),
    policy: Annotated[
        tuple[str, ...],
        arg(name="policies", metavar="NAME ...", help_behavior_hint="(default: dummy, or --plan alone)"),
    ] = (),
    plan: Annotated[
        tuple[str, ...], arg(metavar="FILE.json|shipped ...", help_behavior_hint="(default: none)")
    ] = (),
    fp8: Annotated[tuple[FP8, ...], arg(metavar="none|vae|linear|all ...")] = ("none",),
    gpus: Annotated[tuple[int, ...], arg(metavar="N ...")] = (1,),
    batch: Annotated[tuple[int, ...], arg(metavar="N ...")] = (1,),
    teacache: Annotated[
        tuple[int, ...], arg(name="skip-steps", metavar="N ...", help_behavior_hint="(default: none)")
    ] = (),
    num_frames: Annotated[int, arg(name="frames", metavar="N")] = 81,
    viewers: Annotated[tuple[int, ...], arg(metavar="N ...", help_behavior_hint="(default: none)")] = (),
    seconds: Annotated[float, arg(metavar="S")] = 60.0,
    compare: FlagCreatePairsOff[bool] = False,
    vae: bool = True,
    repeats: int = 3,
    warm_up_chunks: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all)")] = None,
    output: Annotated[
        Path | None, arg(aliases=["-o"], metavar="FILE.json", help_behavior_hint="(default: print only)")
    ] = None,
) -> Found:
    """Measure how fast videos are made, with and without the VAE, and how much memory that takes.

    Every combination of size, policy or plan, and FP8 mode is measured; those of a size take turns, video by
    video.
    A public model has random weights unless --weights gives its own: speed and memory are the same, and
    nothing is downloaded.

    What this machine does, and what Dummy Forcing brings over the dense cache:
      dummyforcing bench --compare

    The real-time table of a GPU; the third denoising step is left out in a variant:
      dummyforcing bench --sizes 480p 720p --fp8 none linear --skip-steps 2 --compare -o bench.json

    Latency of a long video: dense, LongLive's window, and 24 heads that see 117 past frames:
      dummyforcing bench --frames 957 --policies dense window:3,6 dummy long:24,117 --repeats 1 --no-vae

    Head plans, with the spread over the layers that they have, such as those of 'heads import':
      dummyforcing bench --model self-forcing --plan plan.json --compare

    What it brings to make four videos together, each with a head plan of its own:
      dummyforcing bench --model self-forcing --batch 4

    How many viewers the live server has time for (extra 'server'): all are let in, each for half a minute:
      dummyforcing bench --viewers 1 2 3 --seconds 30

    What a second GPU brings:
      dummyforcing bench --model self-forcing --sizes 480p 720p 1080p --gpus 1 2

    Args:
        model: A model of `dummyforcing models`, a folder in the layout of the bundled one, or a preset file.
        load: Flags of the model; weights, base and LoRA as for generate.
        size: Sizes of the videos: 832x480, 1280x720, 1920x1088, or any multiples of 16.
        policy: As for generate, but dummy has a fixed plan from the first chunk on: half of the heads are
            dummy, a quarter sink, a quarter neighbor. long:N,CAP: N neighbor heads see CAP past frames
            (long:N: all of them).
        plan: Head plans to measure like policies, from the first chunk on; shipped: the one that comes with
            the model. With random weights any plan of the model's size will do.
        fp8: none, vae (the decoder in FP8), linear (linear maps, too) or all (attention, too).
        gpus: How many GPUs make each video together: 1, another number, or both, in turns.
        batch: How many videos are made together in one pass; where a policy has roles, each has a plan of its
            own. Several are also made one after another, in turns with the batch.
        teacache: Every policy but dense also without these denoising steps, from 0, as TeaCache leaves them
            out. Which ones it would is up to the weights; 'generate --teacache' tells.
        num_frames: Pixel frames of every video.
        viewers: Start the live server, and let so many viewers watch at once, one number after the other, in
            place of all else: of one size, FP8 mode, number of GPUs and policy, with the VAE.
        seconds: How long viewers watch.
        compare: Also measure the dense cache, in turns with the others, and print how much faster they are.
        vae: Also measure whole videos: decoded, with the pixel frames on the host.
        repeats: Videos of every configuration and kind; medians are taken.
        warm_up_chunks: Chunks of the video before that does not count.
        output: JSON file to write, with versions, command and commit.
    """
    check_output(output, ".json")

    from dummyforcing.bench.report import benchmark_report, viewers_report
    from dummyforcing.evaluation.results import write_results
    from dummyforcing.pipeline.devices import choose_device

    where = choose_device(load.get("device", "auto"))
    files = open_files(model or ("self-forcing" if where.type == "cuda" else "tiny"), load)
    is_random = files.folder is None and "weights" not in load
    if not 0 < seconds < math.inf:
        raise BadRequest(f"Nobody can watch for {seconds:g} s", "take more than 0", "seconds")
    if viewers:
        if plan or teacache or compare or not vae or batch != (1,):
            raise BadRequest(
                "Viewers watch videos that are made one by one, with the VAE", "leave the rest out", "viewers"
            )
        one_kind = one_each(size=size, policy=policy, fp8=fp8, gpus=gpus)
        audience = Audience(files, load, is_random, viewers, seconds, **one_kind)
        with _counting(len(viewers) + 1, "run") as report:
            results = audience.measure(report)
        tell(*viewers_report(results))
    else:
        from dummyforcing.bench.run import Benchmark, Settings
        from dummyforcing.pipeline.devices import choose_dtype
        from dummyforcing.pipeline.shipped import read_plan
        from dummyforcing.presets.preset import parse_size

        settings = Settings(
            sizes=tuple(map(parse_size, size)) or (files.preset.size,),
            policies=policy or (() if plan else ("dummy",)),
            plans={text: found for text in plan if (found := read_plan(files, text))},
            fp8=fp8,
            gpus=gpus,
            batch=batch,
            skip_steps=teacache,
            frames=num_frames,
            compare=compare,
            vae=vae,
            repeats=repeats,
            warm_up_chunks=warm_up_chunks,
        )
        benchmark = Benchmark(files, settings, where, choose_dtype(load.get("torch_dtype"), where), is_random)
        with _counting(benchmark.videos, "video") as report:
            results = benchmark.run(report)
        tell(*benchmark_report(results))
    if output is not None:
        write_results(output, results, where)
        wrote(output)
    return results


@contextmanager
def _counting(total: int, unit: str) -> "Iterator[Report]":
    """A progress bar that counts what is done and tells what comes next."""
    with bar(total=total, unit=unit) as shown:
        begun = count()

        def report(text: str) -> None:
            shown.update(min(next(begun), 1))  # what was before is done, if there is anything
            shown.set_description(text)

        yield report
        shown.update(1)
