"""`dummyforcing generate`: a video from a prompt."""

import warnings
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from dummyforcing.cli.common import (
    FP8,
    Base,
    BudgetText,
    DecoderFile,
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
    parse_switches,
    progress,
    read_plan,
)
from dummyforcing.errors import UserError

if TYPE_CHECKING:
    from dummyforcing.method.plan import Plan
    from dummyforcing.pipeline.pipeline import Chunk


def generate(
    prompt: Annotated[
        Positional[str | None], arg(metavar="PROMPT", help_behavior_hint="(or give --story)")
    ] = None,
    output: Annotated[Path, arg(aliases=["-o"], metavar="FILE.mp4")] = Path("video.mp4"),
    model: Model = "tiny",
    weights: Weights = None,
    base: Base = None,
    lora: LoRAFiles = (),
    frames: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 81)")] = None,
    seconds: Annotated[
        float | None, arg(metavar="S", help_behavior_hint="(default: --frames decides)")
    ] = None,
    size: Size = None,
    seed: int = 0,
    image: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: none)")] = None,
    video: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: none)")] = None,
    strength: Annotated[float | None, arg(metavar="0..1", help_behavior_hint="(default: 0.7)")] = None,
    switch: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="SECONDS:PROMPT")] = (),
    fade: Annotated[int | None, arg(metavar="CHUNKS", help_behavior_hint="(default: 1)")] = None,
    story: Annotated[Path | None, arg(metavar="FILE.yaml", help_behavior_hint="(default: PROMPT)")] = None,
    sheet: Annotated[Path | None, arg(metavar="FILE.png", help_behavior_hint="(default: none)")] = None,
    policy: PolicyName = "dummy",
    dummy_fraction: Fraction = None,
    budget: BudgetText = None,
    plan: PlanFile = None,
    save_plan: NewPlanFile = None,
    reclassify: Annotated[
        float | None, arg(metavar="BAND", help_behavior_hint="(default: heads are classified once)")
    ] = None,
    fp8: FP8 = "none",
    teacache: Annotated[
        str | None, arg(metavar="X|FILE.json[:ERROR]|shipped", help_behavior_hint="(default: all steps run)")
    ] = None,
    compare: FlagCreatePairsOff[bool] = False,
    device: Device = "auto",
    dtype: DType = None,
    offload: FlagCreatePairsOff[bool] = False,
    vae: DecoderFile = None,
) -> None:
    """Make a video from a prompt.

    See what Dummy Forcing saves; ball-compare.mp4 shows both videos side by side:
      dummyforcing generate "a red ball bounces on a green floor" -o ball.mp4 --compare

    Ten seconds, with other noise:
      dummyforcing generate "a yellow star spins" -o star.mp4 --seconds 10 --seed 7

    Classify the heads once, then start with the small cache:
      dummyforcing generate "a red ball bounces on a blue floor" -o a.mp4 --save-plan plan.json
      dummyforcing generate "a blue star spins" -o b.mp4 --plan plan.json

    A story, a YAML file of prompts and the seconds at which they begin, and a picture of all of it:
      dummyforcing generate --story story.yaml -o story.mp4 --sheet story.png

      seconds: 30
      fade: 1
      scenes:
        - prompt: a red ball bounces on a green floor
        - at: 6
          prompt: a red ball moves in a circle on a green floor

    Change the prompt on the way; go on from a clip:
      dummyforcing generate "a red ball bounces" -o c.mp4 --seconds 8 --switch "4:a blue star spins"
      dummyforcing generate "a red ball bounces" -o d.mp4 --video ball.mp4

    A very long video whose heads are classified anew when they look elsewhere than they did:
      dummyforcing generate "a red ball bounces" --seconds 60 --switch "30:a star spins" --reclassify 0.01

    A long memory in some heads, at the cost of a window of 12 frames, or in a cache of 15 MB:
      dummyforcing generate "a yellow star spins" --seconds 30 --policy long --budget window:12
      dummyforcing generate "a yellow star spins" --seconds 30 --policy long --budget 15MB

    Leave out the denoising steps that the model can do without, by measurement:
      dummyforcing generate "a yellow star spins" --teacache shipped

    A public model, fetched from the Hugging Face Hub or read from files of your own, on a small GPU:
      dummyforcing generate "a yellow star spins" --model self-forcing --offload
      dummyforcing generate "a yellow star spins" --model self-forcing --weights FILE.pt --base FOLDER

    Args:
        prompt: What the video shows.
        output: The mp4 to write; an older one is replaced.
        model: A model of `dummyforcing models`, a folder in the layout of the bundled one, or a preset file.
        weights: Transformer's weights to use instead of the model's own and its LoRA.
        base: Where to find text encoder, tokenizer and VAE instead.
        lora: LoRA to merge into the transformer; may be given several times.
        frames: Pixel frames; must fill whole chunks: 9, 21, 33, ... 81, ... with 3 latent frames a chunk.
        seconds: Length of the video instead of --frames; the nearest length that fills whole chunks is taken.
        size: Width and height in pixels, multiples of 16, or a name: 480p is 832x480, 720p 1280x720, 1080p
            1920x1088. A model is at its best at its own size.
        seed: Of the noise; the same seed gives the same video.
        image: Image that the video begins with, on models that can: see `dummyforcing models`.
        video: Video that the new one goes on from: its first 9 pixel frames with 3 latent frames a chunk.
            Krea Realtime makes the whole video anew from it instead.
        strength: How much of --video is made anew then.
        switch: From this second on, the prompt is another one; may be given several times.
        fade: Chunks over which a prompt fades into the next.
        story: Story to tell instead of PROMPT. It has its own length, prompts and fade, so --frames,
            --seconds, --switch and --fade cannot be given.
        sheet: Picture of the video to write: a row of frames for every prompt, beginning with those around
            the change to it.
        policy: Which past frames the heads see: dummy (Dummy Forcing: by their roles), anchored (by their
            roles, one frame more each), dense (all) or native (as the model was trained). Also
            window:SINK,RECENT (so many first and last ones), long (by their roles, some of them far back, the
            others one frame, within --budget; long:CAP: CAP frames back) and official (as the public code).
        dummy_fraction: Share of all heads that become dummy.
        budget: What policy long may cost: window:12, as much as if every head saw 12 latent frames, the chunk
            included; or the size of the KV cache, such as 500MB or 2GB.
        plan: Head plan to use from the first chunk on; shipped: the one that comes with the model.
        save_plan: Where to write the head plan that was found.
        reclassify: Look every 20 chunks which share of their attention dummy heads spend on the chunk itself;
            if it has moved by more than this since the first look, classify all heads anew at the next chunk,
            and tell so. With the bundled model 0.01 is more than chance, but its videos did not gain by it.
        fp8: What is computed in float8, for speed at some error: none, linear (the linear layers) or all
            (attention, too). For GPUs of compute capability 8.9 or later; a CPU emulates it, slowly.
        teacache: Leave out denoising steps, faster at some cost in quality; which ones is printed. A number:
            those whose expected error is below it (TeaCache; 0.2 in the public code). A file: those that
            'dummyforcing teacache calibrate' found; shipped: the file that comes with the model.
        compare: Also make the video with policy native, which is dense for most, from the same noise.
            Tells speed-up, cache ratio and PSNR, and puts both videos side by side into FILE-compare.mp4.
        device: Where to compute; auto takes a GPU if there is one.
        dtype: Precision of the computation.
        offload: Spare the GPU's memory: the text encoder runs in the main memory, the VAE's weights come from
            there only to decode. A 1.3B model then fits into 12 GB.
        vae: Small decoder of TAEHV (taew2_1.pth) to use on models of Wan 2.1: faster, with less detail.
    """
    comparison = output.with_name(f"{output.stem}-compare.mp4")
    for path, suffix in (
        (output, ".mp4"),
        (comparison if compare else None, ".mp4"),
        (save_plan, ".json"),
        (sheet, ".png"),
    ):
        check_output(path, suffix)
    if (prompt is None) == (story is None):
        raise UserError("Give either a prompt, or --story with a file of them.")
    if frames is not None and seconds is not None:
        raise UserError("--frames and --seconds both set the length; give one of them.")
    if story is not None and (switch or [frames, seconds, fade] != [None, None, None]):
        raise UserError(
            "A story has its own length, prompts and fade; leave out --frames, --seconds, --switch, --fade."
        )

    from dummyforcing.media.story import Course, Story

    told = None if story is None else Story.load(story)

    from dummyforcing.checkpoints.model_files import ModelFiles
    from dummyforcing.cli.report import (
        print_comparison,
        print_plans,
        print_results,
        print_scenes,
        print_skips,
    )
    from dummyforcing.pipeline.choices import choose_policy
    from dummyforcing.sampling.classifier import Guard
    from dummyforcing.sampling.teacache import Calibration

    files = ModelFiles.open(model, weights=weights, base=base, lora=lora)
    preset = files.preset
    if told is not None:
        prompt, course = told.prompt, told.options(preset)
    else:
        if frames is None:
            frames = 81 if seconds is None else preset.pixel_frames_for(seconds)
        course = Course(frames=frames, switches=parse_switches(switch), fade=1 if fade is None else fade)
    assert prompt is not None
    request = files.request(
        prompt,
        **course,
        size=size,
        seed=seed,
        policy=policy,
        dummy_fraction=dummy_fraction,
        budget=budget,
        cache_dtype=cache_dtype(device, dtype, fp8),
        plan=read_plan(plan, files),
        guard=None if reclassify is None else Guard(band=reclassify),
        image=image,
        video=video,
        strength=strength,
        teacache=teacache,
    )
    frames, scenes = preset.pixel_frames(request.frames), request.scenes
    native_policy = choose_policy(preset, "native")
    native = replace(request, policy=native_policy, plan=None, guard=None, teacache=None)
    if save_plan and not request.has_plan:
        raise UserError(
            f"There would be no head plan to save: policy '{request.policy.name}' finds none in {frames} "
            "pixel frames; take policy 'dummy' and more frames."
        )
    pipeline = load_for(files, native if compare else request, device, dtype, offload, vae, fp8)
    if teacache is not None:
        is_table = isinstance(request.teacache, Calibration)
        print_skips(pipeline.skipped_steps(request), len(preset.schedule.steps), but_first=is_table)
    if len(scenes) > 1:
        print_scenes(scenes, preset.fps)

    from dummyforcing.media.sheet import SceneSheet
    from dummyforcing.media.video import VideoWriter, side_by_side

    chunks: deque[Chunk] = deque(
        maxlen=None if compare else 1
    )  # alone, a video may be longer than the memory
    plans: list[tuple[float, Plan]] = [(0.0, request.plan)] if request.plan else []
    picture = SceneSheet(scenes, frames, preset.fps) if sheet else None
    label = request.plan.policy if request.plan else request.policy.name
    with VideoWriter(output, preset.fps) as writer:
        for chunk in progress(pipeline.run(request), frames, label):
            writer.write(chunk.frames[0])
            if picture:
                picture.add(chunk.frames[0])
            chunks.append(chunk)
            now = chunk.plans[0]
            if now.chunk is not None and (not plans or now != plans[-1][1]):
                plans.append((chunk.timings.pixel_frames / preset.fps, now))
    if sheet and picture:
        picture.save(sheet)
    if save_plan:
        chunks[-1].plans[0].save(save_plan)
    if reclassify is not None:
        print_plans(plans)
    if not compare:
        print_results({label: chunks[-1]}, preset.fps)
        return

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # all was said about the first video
        stream = pipeline.run(native)
    against = native.policy.name
    reference = list(progress(stream, frames, against))
    with VideoWriter(comparison, preset.fps) as writer:
        for mine, theirs in zip(chunks, reference, strict=True):
            writer.write(side_by_side([mine.frames[0], theirs.frames[0]], [label, against]))
    print_results({label: chunks[-1], against: reference[-1]}, preset.fps)
    print_comparison(chunks, reference, against)
