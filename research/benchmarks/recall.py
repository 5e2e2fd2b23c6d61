"""Does it remember? Objects of the rendered world leave for 5, 10 and 20 seconds, and come back.

python -m research.benchmarks.recall --device cuda --workers 6 --output benchmarks/results/recall.json

After the first seconds the prompts do not name the object any more. Where it `enters`, it is not there at
first, so that the first frame tells nothing of it: the first chunk is rendered then, all later ones are made.
Every variant gets the same stories and the same noise.
"""

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # one process per core; before torch is imported

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dummyforcing.cache.head_group import HeadGroup
from dummyforcing.evaluation.bootstrap import wilson
from dummyforcing.evaluation.results import write_results
from dummyforcing.evaluation.world.scene import COLORS, SHAPES
from dummyforcing.media.montage import save_contact_sheet
from dummyforcing.method.policy import long
from dummyforcing.method.programming import make_plan
from dummyforcing.method.scoring import region_mass
from dummyforcing.pipeline.pipeline import DummyForcingPipeline, load
from dummyforcing.pipeline.request import make_request
from dummyforcing.sampling.passes import Call, Observer
from dummyforcing.sampling.sampler import Sampler
from research.detectors.recall import (
    CHUNK,
    RecallStory,
    absence_chunks,
    chunk_pixels,
    judge_recall,
    make_recall_story,
    recall_stories,
)
from research.studies.jobs import Job, Record, Workers
from research.studies.study import past_frames
from research.world.render import render

CAP = 111
"""Past frames that reach from the end of the longest story to its beginning."""
SECONDS = (5, 10, 20)
KINDS = {"outside": True, "there": False}
"""Where the object is at first, and whether it enters."""
FAR = replace(long(CAP), last_frames=9, classify_at_chunk=6)
"""Policy `long`, with heads scored later and by what they give to frames beyond a window's nine."""
VARIANTS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "dense": ("every head sees the whole past", {"policy": "dense"}),
    "window 0+9": ("every head: the 9 last frames", {"policy": "window:0,9"}),
    "window 3+6": ("every head: 3 first, 6 last frames", {"policy": "window:3,6"}),
    "key frames 1+4+4": ("every head: the first frame, 4 key frames, 4 last frames", {"policy": "keyframes"}),
    "dummy": ("Dummy Forcing with the model's settings", {"policy": "dummy"}),
    "anchored": ("every role also sees what it leaves out", {"policy": "anchored"}),
    "long": ("the cost of a window of 12: 6 heads see 111 frames", {"policy": f"long:{CAP}"}),
    "long, far": ("the same, heads chosen in chunk 6 by mass beyond 9 frames", {"policy": FAR}),
}
"""What each is, and how it is made."""
WATCHED = (6, 24, 48)
"""Heads that see far back in variants whose heads were chosen by where they look when objects come back."""


def watch(pipeline: DummyForcingPipeline, count: int) -> Tensor:
    """Where heads look in the two chunks in which an object comes back, in dense videos of other stories.

    Returns:
        Attention mass on the first frame, on the other frames before the object left, and on all later ones,
        mean over videos, `(layers, heads, 3)`.
    """
    rng = np.random.default_rng(7)
    kinds = [(str(rng.choice(list(COLORS))), str(rng.choice(SHAPES))) for _ in range(count)]
    stories = [make_recall_story(kind, rng, 4, 4 + absence_chunks(5), True, None) for kind in kinds]
    returns, before = stories[0].returns, CHUNK * stories[0].leaves
    config = pipeline.model.config
    mass, calls = torch.zeros(config.num_layers, config.num_heads, 3), 0

    def label(frames: Tensor, current: int) -> Tensor:
        return torch.where(frames == 0, 0, torch.where(frames < before, 1, 2))

    def observer(call: Call, layer: int, q: Tensor, groups: Sequence[HeadGroup]) -> None:
        nonlocal calls
        if call.step is not None and call.chunk in (returns, returns + 1):
            rows = torch.arange(0, q.shape[1], 2)
            mass[layer] += region_mass(q, groups, rows, label, 3).mean(0).cpu()
            calls += layer == 0

    sampler = begin(pipeline, stories, {"policy": "dense"}, observer)
    for _ in islice(play(pipeline, sampler, stories), returns + 2):
        pass
    return mass / calls


def watched(scores: Tensor, heads: int) -> Mapping[str, Any]:
    """So many heads see far back: those that dynamic head programming picks by what was watched."""
    budget = Fraction(heads * (CAP - 1), scores[..., 0].numel()) + 1
    return {"plan": make_plan(replace(long(CAP), budget=budget), scores, chunk=0)}


def begin(
    pipeline: DummyForcingPipeline,
    stories: Sequence[RecallStory],
    options: Mapping[str, Any],
    observer: Observer | None = None,
) -> Sampler:
    """Begin the videos of a batch of stories of equal length."""
    frames = chunk_pixels(stories[0].chunks)
    request = make_request(pipeline.files, [s.scene.prompt for s in stories], num_frames=frames, **options)
    return pipeline.rollout(request, observer).sampler


def play(
    pipeline: DummyForcingPipeline, sampler: Sampler, stories: Sequence[RecallStory]
) -> Iterator[Tensor]:
    """The chunks of a batch of stories with their prompts; where objects enter, the first one is rendered."""
    story = stories[0]
    for chunk in range(story.chunks):
        if chunk in dict(story.prompts[1:]):
            prompt = dict(story.prompts)[chunk]
            sampler.set_prompt(pipeline.text.encode([prompt] * len(stories)))
        if chunk == 0 and story.enters:
            truth = render([s.scene for s in stories], chunk_pixels(1), pipeline.files.preset.size[0])
            latents = pipeline.vae.encode((truth * 255).byte().permute(0, 1, 3, 4, 2))
            sampler.extend(latents)
            yield latents
        else:
            yield sampler.next_chunk()


def make_videos(
    variant: str,
    options: Mapping[str, Any],
    seconds: float,
    enters: bool,
    count: int,
    folder: Path | None,
    pipeline: DummyForcingPipeline,
) -> Record:
    """Make and judge one batch of videos."""
    stories = recall_stories(seconds, enters, count)
    prompts = [story.scene.prompt for story in stories]
    sampler, decoder = begin(pipeline, stories, options), pipeline.vae.stream()
    pixels = [decoder.decode(latents).cpu().numpy() for latents in play(pipeline, sampler, stories)]
    videos = np.concatenate(pixels, axis=1)
    if folder is not None:
        name = f"{variant}-{seconds}-{'enters' if enters else 'there'}".replace(" ", "").replace(",", "_")
        save_contact_sheet(folder / f"recall-{name}.png", list(videos[:10]), 16, prompts[:10])
    past = sampler.frames - sampler.chunk_frames
    return {
        "rows": [asdict(judge_recall(*pair)) for pair in zip(videos, stories, strict=True)],
        "past_frames": float(np.mean([past_frames(plan, past) for plan in sampler.plans])),
        "cache_bytes": sampler.cache.nbytes / count,
        "long_heads": [sum(c.total == CAP for row in plan.contexts for c in row) for plan in sampler.plans],
    }


def summarise(record: Record) -> dict[str, object]:
    """Shares of right videos, among those whose object was there and left, with Wilson intervals."""
    valid = [row for row in record["rows"] if row["valid"]]
    found: dict[str, object] = {"videos": len(record["rows"]), "valid": len(valid)}
    for name in ("back", "color", "shape", "size", "same"):
        right = sum(
            row["color"] and row["shape"] and row["size"] if name == "same" else row[name] for row in valid
        )
        low, high = wilson(right, len(valid))
        found[name] = {"right": right, "interval": [round(100 * low, 1), round(100 * high, 1)]}
    return {
        **found,
        "past_frames": round(record["past_frames"], 2),
        "cache_bytes": record["cache_bytes"],
        "long_heads": float(np.mean(record["long_heads"])),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Make, judge, sum up, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--device", nargs="+", default=["cpu"])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--watched", nargs="*", type=int, default=WATCHED, help="heads that see far back")
    parser.add_argument("--seconds", nargs="+", type=float, default=list(SECONDS))
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="where objects are at first"
    )
    parser.add_argument("--count", type=int, default=48, help="stories of each kind")
    parser.add_argument("--watch", type=int, default=6, help="stories that are watched to choose heads")
    parser.add_argument("--sheets", type=Path, help="folder for contact sheets")
    args = parser.parse_args(arguments)
    for folder in (args.output.parent, *([args.sheets] if args.sheets else [])):
        folder.mkdir(parents=True, exist_ok=True)  # now, not after an hour of work
    variants = {name: VARIANTS[name] for name in args.variants}
    if args.watched:
        scores = watch(load(args.model, device=args.device[0], torch_dtype="float32"), args.watch)
        what = "heads that see 111 frames, chosen by where they look when objects come back"
        variants |= {f"watched, {n}": (f"{n} {what}", watched(scores, n)) for n in args.watched}
    cases = [
        (variant, seconds, KINDS[kind])
        for seconds in sorted(args.seconds, reverse=True)
        for kind in args.kinds
        for variant in variants
    ]
    jobs = [
        Job(
            f"{args.model} {(variant, seconds, enters)} {args.count}",
            partial(make_videos, variant, variants[variant][1], seconds, enters, args.count, args.sheets),
        )
        for variant, seconds, enters in cases
    ]
    journal = args.output.with_suffix(".jsonl")
    with Workers(args.model, args.device, args.workers) as workers:
        records = dict(tqdm(workers.run(jobs, journal), total=len(jobs)))
    rows = []
    for (variant, seconds, enters), job in zip(cases, jobs, strict=True):
        about = {"variant": variant, "what": variants[variant][0], "seconds": seconds, "enters": enters}
        rows.append({**about, **summarise(records[job.name])})
        same = rows[-1]["same"]
        print(f"{variant}, {seconds:g} s, {enters=}: same in {same['right']} of {rows[-1]['valid']}")
    write_results(args.output, {"model": args.model, "rows": rows}, torch.device(args.device[0]))
    journal.unlink()


if __name__ == "__main__":
    main()
