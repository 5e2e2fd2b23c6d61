"""Does it remember? Objects of the rendered world leave for 5, 10 and 20 seconds, and come back.

python benchmarks/recall.py --device cuda --workers 6 --output benchmarks/results/recall.json

After the first seconds the prompts do not name the object any more. Where it `enters`, it is not there at
first, so that the first frame tells nothing of it: the first chunk is rendered then, all later ones are made.
Every variant gets the same stories and the same noise.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from fractions import Fraction
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # one process per core; before torch is imported

import numpy as np
import torch
from tqdm import tqdm

from dummyforcing.eval.detect import wilson
from dummyforcing.eval.jobs import Job, Record, Workers
from dummyforcing.eval.recall import chunk_pixels, judge_recall, recall_stories
from dummyforcing.eval.render import render
from dummyforcing.eval.results import write_results
from dummyforcing.eval.study import past_frames
from dummyforcing.heads import long
from dummyforcing.pipeline import Pipeline
from dummyforcing.request import Options
from dummyforcing.video import save_contact_sheet

CAP = 111
"""Past frames that reach from the end of the longest story to its beginning."""
SECONDS = (5, 10, 20)
FAR = replace(long(CAP), last_frames=9, classify_at_chunk=6)
"""Policy `long`, with heads scored later and by what they give to frames beyond a window's nine."""
VARIANTS: dict[str, tuple[str, Options]] = {
    "dense": ("every head sees the whole past", {"policy": "dense"}),
    "window 0+9": ("every head: the 9 last frames", {"policy": "window:0,9"}),
    "window 3+6": ("every head: 3 first, 6 last frames", {"policy": "window:3,6"}),
    "dummy": ("Dummy Forcing with the model's settings", {"policy": "dummy"}),
    "anchored": ("every role also sees what it leaves out", {"policy": "anchored"}),
    "long": ("the cost of a window of 12, some heads see 111 frames", {"policy": f"long:{CAP}"}),
    "long, far": ("the same, heads chosen in chunk 6 by mass beyond 9 frames", {"policy": FAR}),
    "long, 24": ("as long, at the cost of a window of 24", {"policy": f"long:{CAP}", "budget": "window:24"}),
    "long, far, 24": ("the same of 24", {"policy": replace(FAR, budget=Fraction(21))}),
}
"""What each is, and how it is made."""


def make_videos(
    variant: str, seconds: float, enters: bool, count: int, folder: Path | None, pipeline: Pipeline
) -> Record:
    """Make and judge one batch of videos, whose stories have the same length."""
    stories = recall_stories(seconds, enters, count)
    prompts, size = [story.scene.prompt for story in stories], pipeline.files.preset.size[0]
    request = pipeline.files.request(prompts, frames=chunk_pixels(stories[0].chunks), **VARIANTS[variant][1])
    session, decoder = pipeline.rollout(request).session, pipeline.vae.stream()
    later = dict(stories[0].prompts[1:])
    pixels = []
    for chunk in range(stories[0].chunks):
        if chunk in later:
            session.set_prompt(pipeline.text.encode([later[chunk]] * count))
        if chunk == 0 and enters:
            truth = render([story.scene for story in stories], chunk_pixels(1), size)
            latents = pipeline.vae.encode((truth * 255).byte().permute(0, 1, 3, 4, 2))
            session.extend(latents)
        else:
            latents = session.next_chunk()
        pixels.append(decoder.decode(latents).cpu().numpy())
    videos = np.concatenate(pixels, axis=1)
    if folder is not None:
        name = f"{variant}-{seconds}-{'enters' if enters else 'there'}".replace(" ", "").replace(",", "_")
        save_contact_sheet(folder / f"recall-{name}.png", list(videos[:10]), 16, prompts[:10])
    past = session.frames - session.chunk_frames
    return {
        "rows": [asdict(judge_recall(*pair)) for pair in zip(videos, stories, strict=True)],
        "past_frames": float(np.mean([past_frames(plan, past) for plan in session.plans])),
        "cache_bytes": session.cache.nbytes / count,
        "long_heads": [sum(c.total == CAP for row in plan.contexts for c in row) for plan in session.plans],
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
    parser.add_argument("--model", default="tiny-long")
    parser.add_argument("--device", nargs="+", default=["cpu"])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seconds", nargs="+", type=float, default=list(SECONDS))
    parser.add_argument("--count", type=int, default=48, help="stories of each kind")
    parser.add_argument("--sheets", type=Path, help="folder for contact sheets")
    args = parser.parse_args(arguments)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    cases = [
        (v, s, e) for s in sorted(args.seconds, reverse=True) for e in (True, False) for v in args.variants
    ]
    jobs = [
        Job(f"{args.model} {case} {args.count}", partial(make_videos, *case, args.count, args.sheets))
        for case in cases
    ]
    journal = args.output.with_suffix(".jsonl")
    with Workers(args.model, args.device, args.workers) as workers:
        records = dict(tqdm(workers.run(jobs, journal), total=len(jobs)))
    rows = []
    for (variant, seconds, enters), job in zip(cases, jobs, strict=True):
        about = {"variant": variant, "what": VARIANTS[variant][0], "seconds": seconds, "enters": enters}
        rows.append({**about, **summarise(records[job.name])})
        print(
            variant,
            seconds,
            enters,
            {k: v for k, v in rows[-1].items() if k in ("valid", "long_heads")},
            {k: rows[-1][k]["right"] for k in ("back", "color", "shape", "size", "same")},
            flush=True,
        )  # type: ignore[index]
    write_results(args.output, {"model": args.model, "rows": rows}, torch.device(args.device[0]))
    journal.unlink()


if __name__ == "__main__":
    main()
