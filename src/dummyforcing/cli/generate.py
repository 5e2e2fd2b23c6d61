"""`dummyforcing generate`: a video from a prompt."""

import warnings
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import FlagCreatePairsOff, arg

from dummyforcing.cli.common import (
    Device,
    DType,
    Fraction,
    Model,
    NewPlanFile,
    PlanFile,
    PolicyName,
    Prompt,
    Size,
    check_output,
    load_for,
    parse_size,
    progress,
)
from dummyforcing.errors import UserError

if TYPE_CHECKING:
    from dummyforcing.pipeline import Chunk


def generate(
    prompt: Prompt,
    output: Annotated[Path, arg(aliases=["-o"], metavar="FILE.mp4")] = Path("video.mp4"),
    model: Model = "tiny",
    frames: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 81)")] = None,
    seconds: Annotated[
        float | None, arg(metavar="S", help_behavior_hint="(default: --frames decides)")
    ] = None,
    size: Size = None,
    seed: int = 0,
    policy: PolicyName = "dummy",
    dummy_fraction: Fraction = None,
    plan: PlanFile = None,
    save_plan: NewPlanFile = None,
    compare: FlagCreatePairsOff[bool] = False,
    device: Device = "auto",
    dtype: DType = None,
) -> None:
    """Make a video from a prompt.

    See what Dummy Forcing saves; ball-compare.mp4 shows both videos side by side:
      dummyforcing generate "a red ball bounces on a green floor" -o ball.mp4 --compare

    Ten seconds, with other noise:
      dummyforcing generate "a yellow star spins" -o star.mp4 --seconds 10 --seed 7

    Classify the heads once, then start with the small cache:
      dummyforcing generate "a red ball bounces on a blue floor" -o a.mp4 --save-plan plan.json
      dummyforcing generate "a blue star spins" -o b.mp4 --plan plan.json

    Args:
        prompt: What the video shows.
        output: The mp4 to write; an older one is replaced.
        model: A model of `dummyforcing models`, or a folder in the layout of the bundled one.
        frames: Pixel frames; must fill whole chunks: 9, 21, 33, ... 81, ... with 3 latent frames a chunk.
        seconds: Length of the video instead of --frames; the nearest length that fills whole chunks is taken.
        size: Width and height in pixels, multiples of 16; a model is at its best at its own size.
        seed: Of the noise; the same seed gives the same video.
        policy: Which past frames the heads see: dummy (Dummy Forcing: by their roles) or dense (all).
            Also anchored (by their roles, one frame more each), window:SINK,RECENT (so many first and last
            ones) and official (as the public code).
        dummy_fraction: Share of all heads that become dummy.
        plan: Head plan to use from the first chunk on.
        save_plan: Where to write the head plan that was found.
        compare: Also make the video with the dense cache, from the same noise.
            Tells speed-up, cache ratio and PSNR, and puts both videos side by side into FILE-compare.mp4.
        device: Where to compute; auto takes a GPU if there is one.
        dtype: Precision of the computation.
    """
    comparison = output.with_name(f"{output.stem}-compare.mp4")
    for path, suffix in ((output, ".mp4"), (comparison if compare else None, ".mp4"), (save_plan, ".json")):
        check_output(path, suffix)
    if frames is not None and seconds is not None:
        raise UserError("--frames and --seconds both set the length; give one of them.")

    from dummyforcing.cli.report import print_comparison, print_results
    from dummyforcing.plan import Plan
    from dummyforcing.request import ModelFolder

    folder = ModelFolder.open(model)
    if frames is None:
        frames = 81 if seconds is None else folder.preset.pixel_frames_for(seconds)
    request = folder.request(
        prompt,
        frames=frames,
        size=parse_size(size),
        seed=seed,
        policy=policy,
        dummy_fraction=dummy_fraction,
        plan=Plan.load(plan) if plan else None,
    )
    dense = folder.request(prompt, frames=frames, size=request.size, seed=seed, policy="dense")
    if save_plan and not request.has_plan:
        raise UserError(
            f"There would be no head plan to save: policy '{request.policy.name}' finds none in {frames} "
            "pixel frames; take policy 'dummy' and more frames."
        )
    pipeline = load_for(folder, dense if compare else request, device, dtype)

    from dummyforcing.video import VideoWriter, side_by_side

    chunks: deque[Chunk] = deque(
        maxlen=None if compare else 1
    )  # alone, a video may be longer than the memory
    label = request.plan.policy if request.plan else request.policy.name
    with VideoWriter(output, folder.preset.fps) as writer:
        for chunk in progress(pipeline.run(request), request.chunks, label):
            writer.write(chunk.frames[0])
            chunks.append(chunk)
    if save_plan:
        chunks[-1].plans[0].save(save_plan)
    if not compare:
        print_results({label: chunks[-1]})
        return

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # all was said about the first video
        stream = pipeline.run(dense)
    reference = list(progress(stream, dense.chunks, "dense"))
    with VideoWriter(comparison, folder.preset.fps) as writer:
        for mine, theirs in zip(chunks, reference, strict=True):
            writer.write(side_by_side([mine.frames[0], theirs.frames[0]], [label, "dense"]))
    print_results({label: chunks[-1], "dense": reference[-1]})
    print_comparison(chunks, reference)
