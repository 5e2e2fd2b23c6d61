"""docs/reproduction.md, written from the result files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.pages.claims import CLAIMS, Claim, recommendation
from research.pages.making import table
from research.pages.policies import section
from research.pages.saved import SAVED
from research.pages.verdicts import APART, NONE, number

Result = dict[str, Any]

PICTURES = "images/reproduction"
PARTS = ("removal", "search", "study", "long")
OWN = ("head-lists", "recall-5s", "recall-keyframes", "switches", "tiles", "teacache", "snapshots", "guards")
"""Results of scripts of their own."""
INTRO = """# What we could reproduce

Unless a row says otherwise, figures were measured on the bundled model: 15.2 M parameters, 8 layers of 12
heads, trained from nothing on a rendered world in which exact detectors judge every video. It is 80 times
smaller than the models of the paper ([arXiv:2601.20499](https://arxiv.org/abs/2601.20499)): where we
disagree, the model may be the reason, and we say what we think it is. The prompts are held out: no such
combination of color, shape and motion was trained on. Intervals are 95%, bootstrapped over prompts
(Wilson for shares); differences are paired, with the same prompt and the same noise.

    python -m research.benchmarks.reproduce --device cuda --gpus 4 --workers 64  # everything, then this page
    python -m research.benchmarks.reproduce --trial --output /tmp/trial  # a rehearsal on a laptop

The verdicts are made by rules (`research/pages/claims.py`): a claim *agrees* if the whole interval does, and
is *open* if the interval is too wide to tell. No loss means less than half a point.
"""
REMOVAL = """## What a head's past is worth

Free rollouts diverge: after a few seconds two good videos have nothing in common, and their squared
error says nothing. So a dense rollout is left alone, and each of its denoising calls from chunk 2 on is
asked again: the same noisy latents, the same history, but no past (or only its last frame) for some of
the heads. Damage is the mean squared change of x0, in percent of the variance of x0. Heads are scored in
chunk 1. A factor is how many times the damage of dynamic head programming on the denoising steps
(geometric mean over prompts).
"""
SEARCH = """## Against the best choice there is

From {heads} random heads of the model half are to lose their whole past; all subsets are measured
({sets} sets). *Better* is the share of subsets that do less damage than the criterion's choice: 50% is
chance. *Reached* is how far the choice gets from the mean subset (0%) to the best one (100%).
"""
STUDY = """## Free rollouts: each part alone

{videos} videos of {pixel_frames} pixel frames per row ({prompts} prompts). *Right* is the mean of color,
shape, motion and number of objects, in percent, by exact detectors; the difference to dense is paired.
*Past frames* is what a head sees in the last chunk, mean over heads: the cost. PSNR and SSIM to the
dense video tell how much a method changes the video, not whether that is worse.
"""
BUYS = """## What the saved memory buys

Long contexts, stories, large pictures, fewer steps, branches, guards. Objects that leave and come back
are in the bundled model's training (before its second edition in that of a LoRA for it, which
`recall-5s.json` and `recall.json` are of): an object is there at first, or enters after the first frames;
the prompts then say `leaves` and, after the absence, `comes back`. *The same* is the same color, shape
and size (area within a factor of 1.5) as before it left, among videos in which it
was there and left.

![Objects that leave for 20 seconds and come back, dense cache](images/recall.png)
"""
CALIBRATED = """## Plans by measurement

`dummyforcing heads calibrate` makes heads dummy by the damage of their removal, measured on
{calibrated_on} training prompts, in place of where they look. In {prompts} held-out videos, chunks {chunks}
(from 0) are made again after the same dense past, from the same noise, with a plan. *Error* is the squared
change of the finished latents, in percent of their variance; the factor is how many times that of the
roles that each video finds by itself (geometric mean). At equal cost, as many more heads are dummy as it
takes to see no more past frames than the plan by mean attention.
"""
ANCHORED = """## Anchored contexts

`anchored` gives each role what it leaves out, in two attention calls as before: sink heads also see the
last frame, neighbor heads also the first, dummy heads two frames. We take it where seams are better and
no fewer things are right, beyond the intervals.
"""
OWN_POLICY = """## Your own policy

A policy is any object that says what its roles see, and gives each head one: `examples/own_policy.py` in 30
lines, [Try a policy of your own](guides/own-policy.md) in full. Nothing of this repository has to be
edited to measure one.

### How to add your row

1. Make a video of each held-out prompt with it and with the dense cache, from the same noise, and have them
   judged: `dummyforcing eval benchmarks/held-out.txt --policy mine.py:keep_two --samples 1 --judge -o mine`.
   It goes on after interruptions, and `--shard 0/2`, `--shard 1/2` share the work (see
   [Measure quality](guides/evaluate.md)).
2. Read what it prints: what is worse than dense, in words. `dummyforcing eval compare mine other` pairs
   it with the folder of another policy.
3. Copy `mine/metrics.json` to `benchmarks/results/rows/keep-two.json`, and put the file of the policy
   where others find it, such as `examples/`. The results hold its hash.
4. `python -m research.pages` writes the row below.
"""
ROWS = """Color, shape, motion: videos that are right, in percent, by exact detectors; in brackets the paired
difference to dense in points, with its 95% interval.
"""
LONG = """## Longer videos

*Seam* is the change of the picture from chunk to chunk beyond the change at like places inside of
chunks, in gray levels of 255: 0 is no seam. *Motion* is the share of pixels that move. *Drift* is the
slope of the contrast, in percent of the full range per second. *Same* is the share of objects that are
still the same after they left and came back. *Cache* is that of two videos, which were made together.
"""


def read_results(folder: Path) -> dict[str, Result]:
    """The result files that are there, by part."""
    paths = {part: folder / f"reproduction-{part}.json" for part in PARTS}
    paths |= {"speed": folder / "tiny-speed.json", "checkpoints": folder / "checkpoints.json"}
    paths |= {"long-context": folder / "long-context-cpu.json", "teacache": folder / "tiny-teacache.json"}
    paths |= {
        part: folder / f"{part}.json"
        for part in ("head-lists", "calibrated-plans", "policies", "recall", "recall-5s", "recall-keyframes")
    }
    paths |= {part: folder / f"{part}-cpu.json" for part in ("switches", "tiles", "snapshots", "guards")}
    paths |= {f"rows/{path.stem}": path for path in sorted((folder / "rows").glob("*.json"))}
    paths |= {f"bench-{part}": folder / f"bench-{part}.json" for part in ("480p", "720p", "1080p", "long")}
    return {part: json.loads(path.read_text()) for part, path in paths.items() if path.exists()}


def page(results: dict[str, Result]) -> str:
    """The page, from what `read_results` found."""
    parts = [INTRO]
    if any(results[part]["trial"] for part in PARTS if part in results):
        parts.append("**A rehearsal: two prompts and short videos. None of these figures means anything.**\n")
    parts.append(f"## The claims\n\n{_claims(CLAIMS, results)}\n")
    parts.append(f"{BUYS}\n{_claims(SAVED, results)}\n")
    if "removal" in results:
        parts.append(f"{REMOVAL}\n![Damage over the share of heads]({PICTURES}/removal.png)\n")
        parts.append(_removal(results["removal"]) + "\n")
    if "search" in results:
        found = results["search"]
        parts.append(f"{SEARCH.format(**found)}\n{_search(found)}\n")
    if "study" in results:
        run = results["study"]["runs"]["5 s"]
        parts.append(f"{STUDY.format(**run)}\n![Quality over cost]({PICTURES}/cost.png)\n\n{_study(run)}\n")
    if "calibrated-plans" in results:
        found = results["calibrated-plans"]
        chunks = ", ".join(map(str, found["chunks"]))
        parts.append(f"{CALIBRATED.format(**{**found, 'chunks': chunks})}\n{_calibrated(found)}\n")
    if "study" in results:
        parts.append(f"{ANCHORED}\n{recommendation(results)}\n")
    if "long" in results:
        runs = results["long"]["runs"]
        parts.append(f"{LONG}\n![Measures over the length]({PICTURES}/length.png)\n\n{_long(runs)}\n")
    if "policies" in results:
        parts.append(section(results["policies"]))
    parts.append(OWN_POLICY)
    if rows := {part: r for part, r in results.items() if part.startswith("rows/")}:
        parts.append(f"{ROWS}\n{_rows(rows)}\n")
    parts.append(_sources(results))
    return "\n".join(parts)


def _claims(claims: Sequence[Claim], results: dict[str, Result]) -> str:
    rows = []
    for claim in claims:
        ours, verdict, why = claim.row(results)
        command = {
            "speed": "`python -m research.benchmarks.speed --output benchmarks/results/tiny-speed.json`",
            "long-context": (
                "`python -m research.benchmarks.long_context --output FILE`, [benchmark.md](benchmark.md)"
            ),
            **{part: f"`{results[part]['command']}`" for part in OWN if part in results},
            **{f"bench-{part}": "[benchmark.md](benchmark.md)" for part in ("480p", "720p", "1080p")},
            **{part: f"`python -m research.benchmarks.reproduce --parts {part}`" for part in PARTS},
        }.get(claim.part, "-")
        shown = verdict if verdict in (APART, NONE) else f"**{verdict}**"
        rows.append([claim.text, claim.paper, ours, command, shown, why])
    return table(["claim", "paper", "ours", "command", "verdict", "why"], rows)


def _removal(removal: Result) -> str:
    shown = [p for p in (20, 50, 80) if p in removal["percents"]]
    places = [removal["percents"].index(p) for p in shown]
    rows = [
        [
            name,
            *(number(order[kept]["damage"][i], 100, 2) for kept in ("none", "last") for i in places),
            *(number(order[kept]["factor"][i], 1, 2) for kept in ("none", "last") for i in places),
        ]
        for name, order in removal["orders"].items()
    ]
    header = [
        "order of the heads",
        *(f"{title}, {p}%" for title in ("no past", "last frame left") for p in shown),
        *(f"factor, {title}, {p}%" for title in ("no past", "last") for p in shown),
    ]
    return table(header, rows)


def _search(search: Result) -> str:
    rows = [
        [name, *(number(c[key], 100, unit="%") for key in ("better", "optimum", "reached"))]
        for name, c in search["criteria"].items()
    ]
    return table(["criterion", "better subsets", "hits the best", "reached"], rows)


def _calibrated(found: Result) -> str:
    rows = [
        [
            f"`{plan['policy']}`",
            plan["plan"],
            str(plan["dummies"]),
            f"{plan['past_frames']:.2f}",
            number(plan["error"], 100, 2),
            number(plan["factor"], 1, 2),
        ]
        for plan in found["plans"]
    ]
    return table(["policy", "plan", "dummy heads", "past frames", "error, %", "factor"], rows)


def _cell(part: Result, measure: str, scale: float = 1, digits: int = 1, signed: bool = False) -> str:
    return number(part[measure], scale, digits, signed) if measure in part else "-"


def _study(run: Result) -> str:
    rows = []
    for name, variant in run["variants"].items():
        own, change = variant["measures"], variant.get("against_dense", {})
        rows.append(
            [
                name,
                variant["what"],
                f"{own['past_frames']['mean']:.2f}",
                f"{own['dummies']['mean']:.0f}",
                _cell(own, "semantic", 100),
                _cell(change, "semantic", 100, 1, True),
                _cell(own, "consistency", 100),
                _cell(own, "seam_excess", 1, 3),
                _cell(own, "flicker", 100, 2),
                _cell(own, "sharpness", 1, 0),
                _cell(own, "dynamic", 100),
                _cell(own, "psnr"),
                _cell(own, "ssim", 1, 3),
            ]
        )
    header = [
        "variant",
        "what",
        "past frames",
        "dummy heads",
        "right, %",
        "to dense, points",
        "same, %",
        "seam",
    ]
    return table([*header, "flicker, %", "sharpness", "motion, %", "PSNR, dB", "SSIM"], rows)


def _long(runs: dict[str, Result]) -> str:
    rows = []
    for title, run in runs.items():
        for name, variant in run["variants"].items():
            own, change = variant["measures"], variant.get("against_dense", {})
            rows.append(
                [
                    f"{title} ({run['videos']} videos)",
                    name,
                    f"{own['past_frames']['mean']:.2f}",
                    f"{own['cache_bytes']['mean'] / 1e6:.1f} MB",
                    _cell(own, "semantic", 100),
                    _cell(change, "semantic", 100, 1, True),
                    _cell(own, "consistency", 100),
                    _cell(own, "seam_excess", 1, 3),
                    _cell(change, "seam_excess", 1, 3, True),
                    _cell(own, "dynamic", 100),
                    _cell(change, "dynamic", 100, 1, True),
                    _cell(own, "contrast_drift", 100, 3, True),
                ]
            )
    header = [
        "videos",
        "variant",
        "past frames",
        "cache",
        "right, %",
        "to dense",
        "same, %",
        "seam",
        "to dense",
    ]
    return table([*header, "motion, %", "to dense", "drift"], rows)


def _rows(rows: dict[str, Result]) -> str:
    """A row of each policy that somebody measured with `eval --judge`."""

    def cell(r: Result, measure: str) -> str:
        own, change = r["measures"][measure], r["against_dense"][measure]
        return f"{100 * own['mean']:.1f} ({number(change, 100, 1, True)})"

    lines = []
    for name, r in rows.items():
        settings, judgement = r["settings"], r["judgement"]
        worse = [sentence.partition(":")[0] for sentence in judgement["worse"]]
        lines.append(
            [
                f"`{settings['policy']}`",
                f"{len(r['videos'])} of {settings['frames']} frames, {judgement['prompts']} prompts",
                *(cell(r, measure) for measure in ("color", "shape", "motion")),
                "; ".join(worse) or "nothing was found",
                source(name, r),
            ]
        )
    header = ["policy", "videos", "color, %", "shape, %", "motion, %", "worse than dense", "source"]
    return table(header, lines)


def source(name: str, r: Result) -> str:
    """One line that says where the figures of a result file come from."""
    return (
        f"`{r['command']}` at {r['commit']}, {r['date']}, {r['device']}, torch {r['versions']['torch']}; "
        f"raw: `benchmarks/results/{name}.json`"
    )


def _sources(results: dict[str, Result]) -> str:
    lines = [
        f"- {source(f'reproduction-{part}' if part in PARTS else part, r)}. {r.get('note', '')}".rstrip()
        for part, r in results.items()
        if part in (*PARTS, "head-lists", "calibrated-plans", "policies", "recall")
    ]
    return "\n".join(["## Sources", "", *lines, ""])
