"""`dummyforcing heads import` and `heads calibrate`: head plans that others found, or that are measured."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, Positional, arg

from dummyforcing.cli.common import LOAD, Model, bar, check_output, load_for, open_files, parse_list
from dummyforcing.cli.flags import FlagsOf, Found, Given, command
from dummyforcing.cli.terminal import VOICE, say, tell, wrote
from dummyforcing.errors import BadFile, BadRequest
from dummyforcing.files.text import read_prompts
from dummyforcing.pipeline.options import VideoOptions

Context = Annotated[str, arg(metavar="FIRST,LAST")]
SAMPLE = 0.1
"""Share of a call after which its time is estimated."""
Output = Annotated[Path, arg(aliases=["-o"], metavar="FILE.json")]


@command()
def import_heads(
    *,
    lists: Annotated[Positional[Path], arg(metavar="LISTS.json")],
    output: Output = Path("plan.json"),
    static: Context = "1,1",
    dynamic: Context = "3,6",
    first_layer_whole: FlagCreatePairsOff[bool] = False,
) -> Found:
    """Make a head plan of lists of static and dynamic heads, as Forcing-KV publishes them.

    Forcing-KV calls a head static that looks almost only at the current chunk and the one before. It brings
    such lists for Self-Forcing, LongLive and Krea Realtime (its folder configs_head). As a plan:
      dummyforcing heads import forcingkv_heads_longlive.json -o plan.json
      dummyforcing generate "a yellow star spins" --model longlive --plan plan.json

    How fast a model is with it, its spread over the layers included:
      dummyforcing bench --model longlive --plan plan.json --compare

    Args:
        lists: The file.
        output: The plan to write; an older one is replaced.
        static: How many first and last latent frames static heads see.
        dynamic: The same for dynamic heads.
        first_layer_whole: All heads of the first layer see the whole past.
    """
    check_output(output, ".json")
    if output.exists() and lists.exists() and output.samefile(lists):
        raise BadFile(f"{output} holds the lists", "give the plan another name (--output)")

    from dummyforcing.analysis.plots import head_map_text
    from dummyforcing.method.head_lists import HeadLists
    from dummyforcing.method.plan import HeadContext

    def context(text: str, option: str) -> HeadContext:
        if not re.fullmatch(r"[0-9]{1,6},[0-9]{1,6}", text):
            raise BadRequest(
                f"A context of '{text}' cannot be read", "write first and last frames, such as 1,1", option
            )
        first, last = text.split(",")
        return HeadContext(int(first), int(last))

    contexts = context(static, "static"), context(dynamic, "dynamic")
    plan = HeadLists.load(lists).plan(*contexts, first_layer_whole)
    plan.save(output)
    tell(head_map_text(plan))
    wrote(output)
    return {"policy": plan.policy, "plan": plan.counts, "source": plan.found}


@command(load=LOAD, video=FlagsOf(VideoOptions, only=("size", "seed", "policy", "dummy_fraction")))
def calibrate(
    *,
    prompts: Annotated[Path, arg(metavar="FILE.txt")],
    output: Output = Path("plan.json"),
    model: Model = "tiny",
    load: Given,
    video: Given,
    chunks: Annotated[
        str | None, arg(metavar="LIST", help_behavior_hint="(default: the first after 12 latent frames)")
    ] = None,
    seeds: Annotated[int, arg(metavar="N")] = 1,
) -> Found:
    """Measure what each head's past is worth, and make the plan of a policy by that.

    Every denoising call of a chunk is asked again, once per head: the same noisy latents, the same history,
    but that one head sees nothing of the past. The damage is the mean squared change of the model's answer
    over its variance. The heads of least damage become dummy, in place of those that look least at the past;
    the others get their roles by where they look.

    On prompts of your own, some ten of them:
      dummyforcing heads calibrate --prompts prompts.txt -o plan.json
      dummyforcing generate "a yellow star spins" --plan plan.json

    A public model, on a GPU; the command says how long it will take:
      dummyforcing heads calibrate --prompts prompts.txt --model self-forcing -o plan.json

    What was measured is kept beside the plan, in plan.json.measured, after each call: an interrupted command
    goes on when it is given again, and with more prompts or another number of dummy heads only what is
    missing is measured:
      dummyforcing heads calibrate --prompts prompts.txt --dummy-fraction 0.25 -o plan.json

    Args:
        prompts: Text file with one prompt per line; a video is made of each, as far as it is measured.
        output: The plan to write; an older one is replaced.
        model: A model of `dummyforcing models`, a folder in the layout of the bundled one, or a preset file.
        load: Flags of the model.
        video: Flags of the videos; the policy is one that has dummy heads.
        chunks: The chunks to measure, such as 1,4; chunk 0 has no past.
        seeds: How many videos to make of each prompt, with the seeds from --seed on.
    """
    kept = output.with_name(f"{output.name}.measured")
    check_output(output, ".json")
    check_output(kept, ".measured")
    if seeds < 1:
        raise BadRequest(f"{seeds} seeds make no video", "take 1 or more", "seeds")
    asked = parse_list(chunks, "--chunks")
    if chunks == "all":
        raise BadRequest("A video has chunks without end", "write a list such as 1,4", "chunks")
    texts = list(dict.fromkeys(read_prompts(prompts)))

    from dummyforcing.analysis.head_damage import (
        HeadDamage,
        chosen_chunks,
        damage_request,
        measure_damage,
        require_criterion,
    )
    from dummyforcing.analysis.plots import head_map_text
    from dummyforcing.evaluation.results import provenance
    from dummyforcing.method.programming import make_plan
    from dummyforcing.pipeline.request import make_request

    files = open_files(model, load)
    request = make_request(files, texts, **video)
    policy, every = request.policy, range(request.seed, request.seed + seeds)
    require_criterion(policy)
    measured = chosen_chunks(files.preset, None if asked is None else [int(chunk) for chunk in asked])
    pipeline = load_for(files, damage_request(files, texts[:1], measured, request.size), load)
    total = len(texts) * seeds * len(measured) * len(files.preset.schedule.steps)
    done = HeadDamage.load(kept).calls(texts, every) if kept.exists() else 0
    with _calls(total, done) as advance:
        try:
            damage = measure_damage(
                pipeline,
                texts,
                policy,
                chunks=measured,
                seeds=every,
                size=request.size,
                kept=kept,
                on_head=advance,
            )
        except KeyboardInterrupt as error:
            if kept.exists():
                error.add_note(f"What was measured is in {kept}; the same command goes on.")
            raise
    plan = damage.plan(policy)
    replace(plan, found={**plan.found, "made": provenance(pipeline.device)}).save(output)
    usual = make_plan(policy, damage.scores, measured[0])
    sums = {"calibrated": damage.of_dummies(plan), "by_attention": damage.of_dummies(usual)}
    tell(
        head_map_text(plan),
        f"The dummy heads' damages add up to {sums['calibrated']:.2%} of the variance; of those that policy "
        f"'{policy.name}' would choose by attention, to {sums['by_attention']:.2%}.",
    )
    for path in (output, kept):
        wrote(path)
    return {"model": files.preset.name, "policy": plan.policy, "plan": plan.counts, "damage": sums}


@contextmanager
def _calls(total: int, done: int) -> "Iterator[Callable[[float], None]]":
    """A progress bar of calls, of which shares are told; says soon how long it will take.

    Args:
        total: All calls.
        done: Those of them that were measured before.
    """
    form = "{l_bar}{bar}| {elapsed}<{remaining}"
    with bar(desc="measuring", total=total, initial=done, bar_format=form) as shown:
        began, passed = perf_counter(), 0.0

        def advance(share: float) -> None:
            nonlocal passed
            shown.update(share)
            before, passed = passed, passed + share
            if before < SAMPLE <= passed and VOICE.get().shows_progress:
                minutes = (perf_counter() - began) * (total - done - passed) / passed / 60
                say(f"{total - done} calls, a pass for each head: about {max(1, round(minutes))} min.")

        yield advance
