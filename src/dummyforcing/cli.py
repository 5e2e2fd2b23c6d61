"""The command line: `dummyforcing generate`, `heads` and `models`.

What is heavy is imported by the command that needs it, after the cheap checks, so that `--help` is instant.
"""

import os
import sys
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TextIO

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

from dummyforcing.errors import UnknownWordsWarning, UserError
from dummyforcing.files import temporary

if TYPE_CHECKING:
    from dummyforcing.pipeline import Chunk, Pipeline
    from dummyforcing.request import ModelFolder, Request

DESCRIPTION = """Make videos with autoregressive diffusion models, with a small cache (Dummy Forcing).

A first video, and what Dummy Forcing saves on it:
  dummyforcing generate "a red ball bounces on a green floor" -o ball.mp4 --compare"""

Prompt = Annotated[Positional[str], arg(metavar="PROMPT")]
Model = Annotated[str, arg(metavar="NAME|FOLDER")]
Size = Annotated[str | None, arg(metavar="WxH", help_behavior_hint="(default: the model's own)")]
Fraction = Annotated[float | None, arg(metavar="0..1", help_behavior_hint="(default: the model's own)")]
PolicyName = Annotated[str, arg(metavar="NAME")]
PlanFile = Annotated[Path | None, arg(metavar="FILE.json", help_behavior_hint="(default: find one)")]
NewPlanFile = Annotated[Path | None, arg(metavar="FILE.json", help_behavior_hint="(default: do not)")]
Device = Literal["auto", "cpu", "cuda"]
DType = Annotated[
    Literal["float32", "bfloat16"] | None,
    arg(metavar="{float32,bfloat16}", help_behavior_hint="(default: bfloat16 on a GPU, float32 elsewhere)"),
]


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: What follows the program's name; None: as the program was called.

    Returns:
        The exit code: 0, 2 for bad input, 130 after Ctrl-C, 141 if nobody reads what is printed any more.
    """
    # libgomp's threads spin for milliseconds before they sleep: beside one other busy process on two cores
    # that made a chunk take 35 s in place of 2 s. Not to spin at all costs 40% on an idle machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    args = sys.argv[1:] if args is None else args
    app = tyro.extras.SubcommandApp()
    for command in (generate, heads, models):
        # A summary in the list of commands; a command's own help has its whole docstring.
        chosen = command.__name__ in args[:1]
        app.command(help=None if chosen else str(command.__doc__).partition("\n")[0])(command)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", UnknownWordsWarning)
            warnings.showwarning = _print_warning
            try:
                app.cli(prog="dummyforcing", description=DESCRIPTION, args=args)
            finally:
                sys.stdout.flush()
    except UserError as error:
        text = str(error)
        print(f"Error: {text[0].upper()}{text[1:]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has enough, such as `| head`; Python would complain again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


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
            Also window:SINK,RECENT (so many first and last ones) and official (as the public code).
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
        _check_output(path, suffix)
    if frames is not None and seconds is not None:
        raise UserError("--frames and --seconds both set the length; give one of them.")

    from dummyforcing.plan import Plan
    from dummyforcing.report import print_comparison, print_results
    from dummyforcing.request import ModelFolder

    folder = ModelFolder.open(model)
    if frames is None:
        frames = 81 if seconds is None else folder.preset.pixel_frames_for(seconds)
    request = folder.request(
        prompt,
        frames=frames,
        size=_parse_size(size),
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
    pipeline = _load(folder, dense if compare else request, device, dtype)

    from dummyforcing.video import VideoWriter, side_by_side

    chunks: deque[Chunk] = deque(
        maxlen=None if compare else 1
    )  # alone, a video may be longer than the memory
    label = request.plan.policy if request.plan else request.policy.name
    with VideoWriter(output, folder.preset.fps) as writer:
        for chunk in _progress(pipeline.run(request), request.chunks, label):
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
    reference = list(_progress(stream, dense.chunks, "dense"))
    with VideoWriter(comparison, folder.preset.fps) as writer:
        for mine, theirs in zip(chunks, reference, strict=True):
            writer.write(side_by_side([mine.frames[0], theirs.frames[0]], [label, "dense"]))
    print_results({label: chunks[-1], "dense": reference[-1]})
    print_comparison(chunks, reference)


def heads(
    prompt: Annotated[
        Positional[str | None], arg(metavar="PROMPT", help_behavior_hint="(or give --plan)")
    ] = None,
    output: Annotated[Path, arg(aliases=["-o"], metavar="FILE.png")] = Path("heads.png"),
    model: Model = "tiny",
    size: Size = None,
    seed: int = 0,
    policy: PolicyName = "dummy",
    dummy_fraction: Fraction = None,
    plan: PlanFile = None,
    save_plan: NewPlanFile = None,
    device: Device = "auto",
    dtype: DType = None,
) -> None:
    """Show what every head is: print a head plan, and draw it as a map of layers x heads.

    Find the plan by making the first chunks of a video, and keep it:
      dummyforcing heads "a red ball bounces on a green floor" -o heads.png --save-plan plan.json

    Draw one that was found before:
      dummyforcing heads --plan plan.json -o heads.png

    Args:
        prompt: What the video shows in which the heads are watched.
        output: The PNG to write; an older one is replaced.
        model: A model of `dummyforcing models`, or a folder in the layout of the bundled one.
        size: Width and height in pixels, multiples of 16; a model is at its best at its own size.
        seed: Of the noise.
        policy: A policy that classifies heads: dummy or official.
        dummy_fraction: Share of all heads that become dummy.
        plan: Head plan to show instead of finding one.
        save_plan: Where to write the plan that was found.
        device: Where to compute; auto takes a GPU if there is one.
        dtype: Precision of the computation.
    """
    _check_output(output, ".png")
    _check_output(save_plan, ".json")
    if (prompt is None) == (plan is None):
        raise UserError("Give either a prompt, to find a head plan, or --plan, to show one.")

    from dummyforcing.plan import Plan
    from dummyforcing.plots import print_head_map, save_head_map
    from dummyforcing.request import ModelFolder

    if plan is not None:
        shown = Plan.load(plan)
    else:
        folder = ModelFolder.open(model)
        request = folder.request(
            str(prompt), size=_parse_size(size), seed=seed, policy=policy, dummy_fraction=dummy_fraction
        )
        shown = _load(folder, request, device, dtype).find_plan(request)
    if save_plan is not None:
        shown.save(save_plan)
    save_head_map(output, shown)
    print_head_map(shown)


def models() -> None:
    """List the models: those that come along, and the public ones with their licences."""
    from dummyforcing.report import print_models

    print_models()


def _load(folder: "ModelFolder", request: "Request", device: str, dtype: str | None) -> "Pipeline":
    """Load a model for a request that fits into the memory."""
    from dummyforcing.memory import require_memory
    from dummyforcing.request import choose_device, choose_dtype

    where = choose_device(device)
    require_memory(folder.estimate(request, choose_dtype(dtype, where)), where)

    from dummyforcing.pipeline import load

    return load(folder.path, device=where, dtype=dtype)


def _progress(chunks: "Iterator[Chunk]", total: int, label: str) -> "Iterator[Chunk]":
    """Pass chunks on, with a bar that counts them and tells the pixel frames per second so far."""
    from tqdm import tqdm

    with tqdm(chunks, desc=label, total=total, unit="chunk") as bar:
        for chunk in bar:
            bar.set_postfix_str(f"{chunk.timings.fps:.1f} FPS")
            yield chunk


def _parse_size(text: str | None) -> tuple[int, int] | None:
    """Turn `WxH` into height and width."""
    if text is None:
        return None
    width, x, height = text.lower().partition("x")
    if not (x and width.isdecimal() and height.isdecimal()):
        raise UserError(f"Size '{text}' cannot be read; write width x height in pixels, such as 160x160.")
    return int(height), int(width)


def _check_output(path: Path | None, suffix: str) -> None:
    """Refuse a file that could not be written, before any work is done for it."""
    if path is None:
        return
    if path.suffix.lower() != suffix:
        raise UserError(f"Cannot write {path}: give a file name that ends in {suffix}.")
    temporary(path).unlink()


def _print_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"Warning: {message}", file=sys.stderr)
