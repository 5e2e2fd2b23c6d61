"""`dummyforcing generate`: a video from a prompt."""

import warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import FlagCreatePairsOff, Positional, arg

from dummyforcing.cli.common import (
    LOAD,
    Model,
    NewPlanFile,
    cache_dtype,
    check_output,
    load_for,
    open_files,
    progress,
)
from dummyforcing.cli.flags import FlagsOf, Found, Given, command
from dummyforcing.cli.prompt_set import Ray, generate_all
from dummyforcing.cli.terminal import say, tell, wrote, wrote_video
from dummyforcing.errors import BadRequest, PictureWarning, UserError
from dummyforcing.pipeline.expander import PromptExpander
from dummyforcing.pipeline.options import VideoOptions

if TYPE_CHECKING:
    from dummyforcing.method.plan import Plan


@command(load=LOAD, video=FlagsOf(VideoOptions))
def generate(
    *,
    prompt: Annotated[
        Positional[str | None], arg(metavar="PROMPT", help_behavior_hint="(or give --story or --prompts)")
    ] = None,
    output: Annotated[
        Path | None,
        arg(aliases=["-o"], metavar="FILE.mp4|FOLDER", help_behavior_hint="(default: video.mp4)"),
    ] = None,
    model: Model = "tiny",
    load: Given,
    video: Given,
    story: Annotated[Path | None, arg(metavar="FILE.yaml", help_behavior_hint="(default: PROMPT)")] = None,
    prompts: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: PROMPT)")] = None,
    ray: Ray = None,
    expand: Annotated[str | None, arg(metavar="URL", help_behavior_hint="(default: PROMPT as it is)")] = None,
    expand_model: Annotated[str, arg(metavar="NAME")] = "default",
    sheet: Annotated[Path | None, arg(metavar="FILE.png", help_behavior_hint="(default: none)")] = None,
    save_plan: NewPlanFile = None,
    with_clip: FlagCreatePairsOff[bool] = False,
    compare: FlagCreatePairsOff[bool] = False,
) -> Found:
    """Make a video from a prompt.

    See what Dummy Forcing saves; ball-compare.mp4 shows both videos side by side:
      dummyforcing generate "a red ball bounces on a green floor" -o ball.mp4 --compare

    Ten seconds, with other noise:
      dummyforcing generate "a yellow star spins" -o star.mp4 --seconds 10 --seed 7

    Classify the heads once, then start with the small cache:
      dummyforcing generate "a red ball bounces on a blue floor" -o a.mp4 --save-plan plan.json
      dummyforcing generate "a blue star spins" -o b.mp4 --plan plan.json

    A story, and a picture of all of it:
      dummyforcing generate --story story.yaml -o story.mp4 --sheet story.png

    Its file has prompts, and the seconds at which they begin:
      seconds: 30
      fade: 1
      scenes:
        - prompt: a red ball bounces on a green floor
        - at: 6
          prompt: a red ball moves in a circle on a green floor

    A video of every prompt of a file, on all GPUs of this machine (extra ray); the same command goes on:
      dummyforcing generate --prompts prompts.txt -o many --ray local

    Change the prompt on the way; go on from a clip:
      dummyforcing generate "a red ball bounces" -o c.mp4 --seconds 8 --switch "4:a blue star spins"
      dummyforcing generate "a red ball bounces" -o d.mp4 --video ball.mp4 --with-clip

    A very long video whose heads are classified again when they look elsewhere than they did:
      dummyforcing generate "a red ball bounces" --seconds 60 --switch "30:a star spins" --reclassify 0.01

    A long memory in some heads, at the cost of a window of 12 frames, or in a cache of 15 MB:
      dummyforcing generate "a yellow star spins" --seconds 30 --policy long --budget window:12
      dummyforcing generate "a yellow star spins" --seconds 30 --policy long --budget 15MB

    A policy of your own, an object, class or function in a file (or MODULE:NAME):
      dummyforcing generate "a yellow star spins" --policy mine.py:keep_two

    Leave out the denoising steps that the model can do without, by measurement:
      dummyforcing generate "a yellow star spins" --teacache shipped

    A public model, fetched from the Hugging Face Hub or read from files of your own, on a small GPU:
      dummyforcing generate "a yellow star spins" --model self-forcing --offload
      dummyforcing generate "a yellow star spins" --model self-forcing --weights FILE.pt --base FOLDER

    Have a language model write the prompt out, such as one that ollama serves:
      dummyforcing generate "a red ball" --model longlive --expand http://127.0.0.1:11434/v1

    Args:
        prompt: What the video shows.
        output: The mp4 to write, or the folder for the videos of --prompts; an older file is replaced. Ctrl-C
            keeps the frames so far, in FILE.part.mp4 if there is an older one.
        model: A model of `dummyforcing models`, a folder in the layout of the bundled one, or a preset file.
        load: Flags of the model.
        video: Flags of the video.
        story: Story to tell instead of PROMPT. It has its own length, prompts and fade, so --frames,
            --seconds, --switch and --fade cannot be given.
        prompts: Make a video of every prompt of a file or table, as eval reads them, in FOLDER/videos. The
            folder is one of eval's, which measures it with --samples 1.
        ray: Have Ray make them, as in eval: local, auto or HOST:PORT.
        expand: OpenAI-compatible endpoint, such as http://127.0.0.1:11434/v1, whose language model writes
            PROMPT out; the public models want long ones. A key for it goes into DUMMYFORCING_EXPAND_KEY.
        expand_model: The language model to ask for there.
        sheet: Picture of the video to write: a row of frames for every prompt, beginning with those around
            the change to it.
        save_plan: Where to write the head plan that was found.
        with_clip: Put the clip of --video before what goes on from it, as large and as fast as the new video.
            Times that are told count from where it goes on; --sheet and FILE-compare.mp4 show that alone.
        compare: Also make the video with policy native, which is dense for most, from the same noise, both in
            turns. Tells speed-up, cache ratio and PSNR, and puts both side by side into FILE-compare.mp4.
    """
    if prompts is not None:
        for_one = {
            "PROMPT": prompt,
            "--story": story,
            "--expand": expand,
            "--sheet": sheet,
            "--save-plan": save_plan,
            "--with-clip": with_clip,
            "--compare": compare,
        }
        if others := [name for name, value in for_one.items() if value]:
            raise BadRequest(
                f"--prompts makes many videos, and {others[0]} is for one", "leave out one of them"
            )
        return generate_all(prompts, output, model, load, video, ray)
    if ray is not None:
        raise BadRequest("Ray shares out many prompts", "give --prompts, or leave out --ray")
    output = output or Path("video.mp4")
    comparison = output.parent / f"{output.stem}-compare.mp4"
    for path, suffix in (
        (output, ".mp4"),
        (comparison if compare else None, ".mp4"),
        (save_plan, ".json"),
        (sheet, ".png"),
    ):
        check_output(path, suffix)
    if (prompt is None) == (story is None):
        raise BadRequest(
            "A video has either a prompt or a story", "give a prompt, or --story with a file of them"
        )
    if story is not None and {"num_frames", "seconds", "switches", "fade"} & video.keys():
        raise BadRequest(
            "A story has its own length, prompts and fade", "leave out --frames, --seconds, --switch, --fade"
        )
    if story is not None and expand is not None:
        raise BadRequest("The prompts of a story are taken as they are", "leave out --expand")

    if prompt is not None and expand is not None:
        prompt = _written_out(prompt, PromptExpander(expand, expand_model))

    from dummyforcing.media.story import Story

    told = None if story is None else Story.load(story)

    from dummyforcing.cli.comparison import Comparison, made
    from dummyforcing.cli.report import print_plans, print_results, print_scenes, print_skips
    from dummyforcing.pipeline.choices import choose_policy
    from dummyforcing.pipeline.request import make_request
    from dummyforcing.pipeline.switches import read_switches
    from dummyforcing.sampling.teacache import Calibration

    files = open_files(model, load)
    preset = files.preset
    options: dict[str, Any] = dict(video)
    if told is not None:
        prompt = told.prompt
        options |= told.options(preset)
    request = make_request(files, prompt, cache_dtype=cache_dtype(load), **options)
    frames, scenes = preset.pixel_frames(request.length), request.scenes
    asked = [0.0, *sorted(seconds for seconds, _ in read_switches(options.get("switches", ())))]
    native_policy = choose_policy(preset, "native")
    native = replace(request, policy=native_policy, plans=(), guard=None, teacache=None)
    if save_plan and not request.has_plan:
        raise BadRequest(
            f"There would be no head plan to save: policy '{request.policy.name}' finds none in {frames} "
            "pixel frames",
            "take policy 'dummy' and more frames",
        )
    if options.get("video") is not None and output.exists() and output.samefile(options["video"]):
        raise BadRequest(f"{output} is the clip itself", "give the new video another name")
    if with_clip and request.start is None:
        raise BadRequest(
            "There is no clip that the video goes on from", "give --video, with a model that goes on from one"
        )
    if with_clip and (options.get("video") is None or options.get("video_from", "end") != "end"):
        raise BadRequest(
            "Only a clip that the video goes on from at its end can come before it",
            "give --video without --video-from start",
        )
    if with_clip and not Path(options["video"]).is_file():
        raise BadRequest(
            f"--with-clip reads {options['video']} twice, which is no plain file", "copy it into one"
        )
    requests = [request, native] if compare else [request]
    pipeline = load_for(files, request, load, beside=requests[1:])
    skipped = pipeline.skipped_steps(request)
    if request.teacache is not None:
        is_table = isinstance(request.teacache, Calibration)
        print_skips(skipped, len(preset.schedule.steps), but_first=is_table)
    if len(scenes) > 1:
        print_scenes(scenes, asked, preset.fps)

    from dummyforcing.media.clips import read_before_last
    from dummyforcing.media.montage import side_by_side
    from dummyforcing.media.sheet import SceneSheet
    from dummyforcing.media.video import VideoWriter

    plans: list[tuple[float, Plan]] = [(0.0, request.plan)] if request.plan else []
    picture = SceneSheet(scenes, frames, preset.fps) if sheet else None
    labels = [request.plan.policy if request.plan else request.policy.name, native.policy.name]
    compared = Comparison(request, native, preset) if compare else None
    turns = pipeline.in_turns(requests) if compare else ((chunk,) for chunk in pipeline.run(request))
    with (
        VideoWriter(comparison, preset.fps) if compare else nullcontext() as both,
        VideoWriter(output, preset.fps) as writer,
    ):
        clip_frames = 0
        if with_clip:
            given = preset.pixel_frames(preset.chunk_frames)
            with warnings.catch_warnings(action="ignore", category=PictureWarning):  # they were said
                for frame in read_before_last(options["video"], given, request.size, preset.fps):
                    writer.write(frame)
            clip_frames = writer.frames
        for chunks in progress(turns, frames, " and ".join(labels[: len(requests)])):
            chunk = chunks[0]
            writer.write(chunk.frames[0])
            if both and compared:
                both.write(side_by_side([one.frames[0] for one in chunks], labels))
                compared.see(*chunks)
            if picture:
                picture.add(chunk.frames[0])
            now = chunk.plans[0]
            if now.chunk is not None and (not plans or now != plans[-1][1]):
                plans.append((chunk.timings.pixel_frames / preset.fps, now))
    if sheet and picture:
        picture.save(sheet)
    if save_plan:
        chunk.plans[0].save(save_plan)
    if request.guard is not None:
        print_plans(plans)
    print_results(dict(zip(labels, chunks, strict=False)), preset.fps)
    if compared:
        compared.tell()
    wrote_video(output, writer.frames, preset.fps)
    if compare:
        wrote_video(comparison, frames, preset.fps)
    for path in (sheet, save_plan):
        if path is not None:
            wrote(path)
    return {
        "model": preset.name,
        "prompts": [
            {"prompt": text, "asked_for_at": at, "from": start / preset.fps}
            for at, (start, text) in zip(asked, scenes, strict=True)
        ],
        "size": list(request.size),
        "seed": request.seed,
        "clip_frames": clip_frames,
        "skipped_steps": list(skipped),
        **made(labels[0], chunk),
        "compared": compared and compared.found(),
    }


def _written_out(prompt: str, expander: PromptExpander) -> str:
    """A prompt as a language model writes it out; as it is, if that fails."""
    try:
        text = expander.expand(prompt)
    except UserError as error:
        say(f"Warning: {error} The prompt is taken as it is.")
        return prompt
    tell(f"Prompt: {text}")
    return text
