"""Write the tables of the READMEs and of docs/ from the committed results, docs/models.md from presets.

python -m research.pages.tables           # rewrite them
python -m research.pages.tables --check   # fail if they are out of date
"""

import json
from pathlib import Path
from typing import Any

import torch

from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.pipeline.memory import estimate
from dummyforcing.pipeline.pipeline import load as load_pipeline
from dummyforcing.pipeline.request import make_request
from dummyforcing.presets.catalog import PUBLIC, bundled_folders, find_preset
from dummyforcing.presets.preset import Preset
from research.pages import viewers as crowds
from research.pages.front import CHINESE, ENGLISH, figures
from research.pages.hotpath import speed_page
from research.pages.making import RESULTS, ROOT, fill, main, table
from research.pages.page import page, read_results, source
from research.pages.realtime import block, read_speed
from research.pages.several import FAMILIES, RUNS, attached, saved, several
from research.pages.sizing import BATCHES, STREAMS, batches, streams
from research.pages.verdicts import against, cost, negated, number, order, runs

LIVE = ("live-cpu", "live-gpu", "live-h100")
"""Results of viewers that watch in real time."""
CARDS = (12, 16, 24, 40, 48, 80)
"""Memory of common GPUs, GB."""


def load(name: str) -> dict[str, Any]:
    """A result file."""
    data: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return data


def percent(part: dict[str, Any]) -> str:
    """A rate with its 95% interval."""
    low, high = part["interval"]
    return f"{part['percent']:.0f}% ({low:.0f}-{high:.0f})"


def speed() -> str:
    """What the default command takes as a whole, and the pipeline alone."""
    measured = load("tiny-speed")
    rows = [
        [
            policy,
            f"{r['wall_s']:.1f} s",
            f"{r['peak_memory_mb']:.0f} MB",
            f"{r['first_frame_s']:.2f} s",
            f"{r['fps_without_vae']:.1f}",
            f"{r['fps']:.1f}",
            f"{r['cache_bytes'] / 1e6:.1f} MB",
        ]
        for policy in ("dense", "dummy")
        for r in [measured[policy]]
    ]
    header = ["cache", "whole command", "peak memory", "first frame", "FPS without VAE", "FPS", "KV cache"]
    origin = source("tiny-speed", measured)
    return f"{table(header, rows)}\n\nMedians of {measured['runs']} runs in turns: {origin}."


def quality() -> str:
    """What the exact detectors say of the held-out prompts."""
    names = {(policy, s): f"tiny-quality-{policy}{s}" for s in ("", "-10s") for policy in ("dense", "dummy")}
    results = {key: load(name) for key, name in names.items()}
    ceiling = load("tiny-quality-ceiling")["ceiling"]
    parts = {
        "rendered truth": ceiling["renders"],
        "rendered truth after the VAE": ceiling["renders_after_vae"],
    }
    for (policy, suffix), result in results.items():
        parts[f"{policy}, {suffix.removeprefix('-') or '5s'}"] = result[policy]["one_object"]
    for policy in ("dense", "dummy"):
        parts[f"{policy}, 5s, two objects"] = results[policy, ""][policy]["two_objects"]
    keys = ("color", "shape", "color_and_shape", "motion")
    rows = [
        [title, str(part["count"]), *(percent(part[key]) for key in keys)] for title, part in parts.items()
    ]
    header = ["videos", "prompts", "color", "shape", "color and shape", "motion"]
    sources = "\n".join(f"- {source(name, load(name))}" for name in ("tiny-quality-ceiling", *names.values()))
    return f"{table(header, rows)}\n\n{sources}"


def study() -> str:
    """The study's main figures in words."""
    results = read_results(RESULTS)
    random = [order(results, "random", "factor", percent)["mean"] for percent in (20, 50)]
    bare, packed = (order(results, "dhp, denoise", "damage", 50, kept)["mean"] for kept in ("none", "last"))
    loss = {run: negated(against(results, "dummy", "dense", "semantic", run)) for run in ("5 s", "30 s")}
    past = [cost(results, policy) for policy in ("anchored", "dummy")]
    seams = [
        runs(results)["5 s"]["variants"][policy]["measures"]["seam_excess"]["mean"]
        for policy in ("anchored", "dummy")
    ]
    plan = negated(against(results, "mass plan", "dummy", "semantic"))
    commit = order(results, "dhp, commit", "factor", 20)["mean"]
    offloaded = results["checkpoints"]["self-forcing"]["offloaded"]["gpu_peak_gb"]
    lines = [
        f"random heads that lose their past do {random[0]:.1f} times the damage of those that dynamic head "
        f"programming picks at 20% of the heads, {random[1]:.1f} times at 50%; heads scored in the commit "
        f"pass, as the public code does, {commit:.1f} times at 20%",
        "at 50%, the last frame in place of no past cuts the damage from "
        f"{100 * bare:.1f}% to {100 * packed:.1f}%",
        f"5 s videos lose {number(loss['5 s'], 100)} points against dense, **30 s videos "
        f"{number(loss['30 s'], 100)}**; one plan for all videos another {number(plan, 100)}",
        f"`anchored` takes the change across chunk seams from {seams[1]:.3f} to {seams[0]:.3f} gray levels, "
        f"for {past[0]:.2f} past frames per head in place of {past[1]:.2f}",
        f"at the sizes of the 1.3B models, 480p took {offloaded:.1f} GB of an H200's memory with `--offload`",
    ]
    head = "On the bundled model, but for the last line, with 95% intervals:"
    return "\n".join([head, "", *(f"- {line}" for line in lines)])


def measured() -> str:
    """What loading and sampling the public models took, from random weights in their own files."""
    results = json.loads((RESULTS / "checkpoints.json").read_text())
    rows = []
    for name, result in results.items():
        if name not in PUBLIC:
            continue
        loading = sum(stage["seconds"] for stage in result["stages"].values())
        videos = {**result["videos"], "dummy, `--offload`": result["offloaded"]}
        for policy, video in videos.items():
            rates = [f"{video[key]:.1f}" for key in ("fps_without_vae", "fps")]
            steps = len(PUBLIC[name].schedule.steps)
            if PUBLIC[name].sampler == "rolling" and len(video["chunks"]) < 2 * steps:
                rates = ["-", "-"]  # too short for windows that neither grow nor shrink
            sizes = [f"{video[key]:.1f} GB" for key in ("cache_gb", "gpu_peak_gb")]
            first = f"{video['first_frame_s']:.2f} s"
            rows.append([f"`{name}`", policy, f"{loading:.1f} s", first, *rates, *sizes])
    header = ["model", "policy", "loading", "first frame", "FPS without VAE", "FPS", "cache", "peak memory"]
    return f"{table(header, rows)}\n\n{source('checkpoints', load('checkpoints'))}"


def cards() -> str:
    """Which GPU a model fits, by the estimate that the command line uses."""
    rows = []
    for name, preset in PUBLIC.items():
        files, totals = ModelFiles.open(name), []
        for policy in ("native", "dummy"):
            need = estimate(files, make_request(files, "any", policy=policy), torch.bfloat16).on_gpu()
            totals += [need.total / 1e9, need.offloaded().total / 1e9]
        smallest = next((card for card in CARDS if totals[-1] < 0.95 * card), None)
        card = f"{smallest} GB" if smallest else "more than 80 GB"
        rows.append([f"`{name}`", preset.native, *(f"{total:.1f} GB" for total in totals), card])
    header = ["model", "native policy", "native", "native, `--offload`", "dummy", "dummy, `--offload`"]
    return table([*header, "smallest card"], rows)


def support(preset: Preset) -> str:
    """What Dummy Forcing does with a model."""
    if preset.sampler == "block":
        return "yes"
    held = preset.context_frames or (preset.local_attention_size or 0) - preset.current_frames
    return f"yes, of {held} past frames at most"


def models() -> str:
    """The page of all models."""
    rows = []
    presets = [*(find_preset(name)[0] for name in bundled_folders()), *PUBLIC.values()]
    for preset in presets:
        source = preset.source if preset.source and preset.source.repo else None
        steps = [preset.schedule, preset.first_schedule]
        counts = [f"{len(schedule.steps)}" for schedule in steps if schedule]
        where = f"`{source.repo}`: `{source.file}`" if source else "bundled"
        rows.append(
            [
                f"`{preset.name}`",
                preset.description,
                where + (f", `{source.lora}`" if source and source.lora else ""),
                preset.licence,
                preset.sampler,
                " (first chunk ".join(counts) + ")" * (len(counts) - 1),
                str(preset.chunk_frames),
                f"`{preset.native}`",
                support(preset),
            ]
        )
    header = ["name", "model", "files on the Hugging Face Hub", "licence of the weights", "sampler", "steps"]
    header += ["frames a chunk", "native context", "Dummy Forcing"]
    notes = "\n".join(f"- `{preset.name}`: {preset.note}" for preset in presets if preset.note)
    memory = f"{MEMORY_INTRODUCTION}\n{cards()}"
    measures = f"{MEASURED_INTRODUCTION}\n{measured()}"
    listed = f"{MODELS_INTRODUCTION}\n{table(header, rows)}\n\n{notes}\n"
    return f"{listed}\n{PRESET_FILE}\n{memory}\n\n{measures}\n"


MODELS_INTRODUCTION = """# Models

Written by `python -m research.pages.tables` from `presets/public.toml`. Frames are latent frames;
`dummyforcing models show NAME` tells everything about one model, the memory that it takes included. Weights
are never part of this package: they are fetched from the Hugging Face Hub when a model is first used. Text
encoder, tokenizer and VAE come from `Wan-AI/Wan2.1-T2V-1.3B`, or `-14B` for Krea.

Loaders are tested on files in each published layout, with exact names and shapes; no published weights have
been run with this version. [How to use public models and your own](guides/models.md) has the commands.
"""

PRESET_FILE = """## A preset of your own

A model of your own is a file, TOML or JSON, that says how it differs from one of these,

```toml
like = "self-forcing"
source = { file = "my_finetune.pt", key = "generator_ema" }
```

or a folder with `text_encoder/`, `tokenizer/`, `vae/`, `transformer/` and `preset.json`, as
`dummyforcing models convert` and `pipe.save_pretrained(folder)` write it.
"""

MEMORY_INTRODUCTION = """## Memory

GPU memory for 81 pixel frames at 832x480 in bfloat16, as `dummyforcing models show` estimates it: weights,
cache and intermediate values. With `--offload` the text encoder (11.4 GB) stays in the main memory and the
VAE's weights come only to decode. Other sizes, lengths and policies: `dummyforcing models show NAME --size
--frames --policy`.
"""

MEASURED_INTRODUCTION = """## Measured

Random weights of the real sizes, written in each model's own layout, loaded and sampled by the real code at
832x480 with 81 pixel frames: UMT5-XXL, transformer and Wan VAE. They are right for speed and memory, and say
nothing about quality; no published weights have been run with this version. FPS are of the second half of the
video; first frames are not warmed up. In this run a video's cache was still held while the next one was made
(mended since), so the peaks of every row but a model's first are too high by up to that cache. Most of what
Rolling Forcing and Krea attend to is current, so Dummy Forcing has little to leave out there. 81 pixel frames
are too few to time Rolling Forcing: after the classification its windows only shrink, and those are gathered.
"""


def viewers() -> str:
    """How many viewers a machine has time for, and how a long session fares."""
    parts = []
    for name in LIVE:
        measured = load(name)
        what = (
            f"model `{measured['model']}`"
            if measured["weights"] != "random"
            else f"{measured['model']}'s sizes"
        )
        conditions = [what, measured["size"], f"{measured['fps']} FPS", "VAE included"]
        conditions += [f"`--fp8 {measured['fp8']}`"] if measured["fp8"] != "none" else []
        rows = [
            [
                str(row["viewers"]),
                str(row["viewers_with_stalls"]),
                str(row["stalls"]),
                f"{row['stalled_seconds']:.1f} s",
                f"{row['slowed_s']['p50']:.1f} s",
                f"{row['first_picture_s']['p50']:.2f} s",
            ]
            for row in sorted(measured["rows"], key=lambda row: row["viewers"])
        ]
        header = ["viewers", "of them stalled", "stalls", "stalled in all", "later by", "first picture"]
        seconds = f"{measured['rows'][0]['seconds']:.0f} s"
        admits = f"the server lets {measured['admits']} in"
        told = f"{', '.join(conditions)}; all begin within a second, and watch for {seconds}; {admits}"
        length = 12 / measured["fps"]
        costs = (
            f"A chunk of {length:.2f} s of video takes {measured['chunk_seconds']:.2f} s of the device; a "
            f"session takes {measured['session_gb']:.1f} GB, {measured['held_chunks']} chunks to go back to "
            "included"
        )
        parts.append(
            f"**{device(measured)}**: {told}.\n\n{table(header, rows)}\n\n{costs}: {source(name, measured)}."
        )
    soak = load("live-soak")
    row = soak["rows"][0]
    first, visible = soak["first_picture_alone_s"], row["steer_visible"]
    parts.append(
        f"A viewer of the bundled model for {row['seconds'] / 60:.0f} minutes, with another prompt every "
        f"10 s ({device(soak)}): first picture after {first['p50']:.2f} s (median; 95% within "
        f"{first['p95']:.2f} s), a new prompt visible after {visible['p50']:.2f} s ({visible['p95']:.2f} s), "
        f"{row['stalls']} stalls ({row['stalled_seconds']:.1f} s), memory of the process "
        f"{row['rss_before_mb']} MB before and {row['rss_after_mb']} MB after: {source('live-soak', soak)}."
    )
    return "\n\n".join(parts)


def replicas() -> str:
    """What Ray costs a server, and how soon a video goes on whose replica was killed."""
    name = "replicas-cpu"
    measured = load(name)
    plain, ray, kept = (measured[part] for part in ("plain", "ray", "kept"))
    found = measured["recoveries"]
    seconds, chunks = ([one[part] for one in found] for part in ("seconds", "chunk"))
    return (
        f"Measured with the bundled model ({device(measured)}, with other work on it): besides what the "
        f"device takes for a chunk, {1e3 * plain['own']:.0f} ms pass between two chunks in one process, "
        f"{1e3 * ray['own']:.0f} ms with a replica of Ray, and {1e3 * kept['own']:.0f} ms if snapshots are "
        f"taken. From the kill of a replica to the next chunk of its viewer: {min(seconds):.1f} to "
        f"{max(seconds):.1f} s, on a core that takes {min(chunks):.1f} to {max(chunks):.1f} s for each "
        f"chunk: those since the newest snapshot are made again. {source(name, measured)}."
    )


def words() -> str:
    """What the bundled model was taught."""
    known = load_pipeline("tiny").text.known_words()
    return f"It knows {len(known)} words: {', '.join(known)}."


def device(measured: dict[str, Any]) -> str:
    """The device that a result is of."""
    return str(measured["device"])


def made() -> dict[Path, str]:
    """All of these pages by path."""
    docs, results, real_time = ROOT / "docs", read_results(RESULTS), read_speed(RESULTS)
    measured = {name: load(name) for name in (*RUNS, *STREAMS, "gpus-2-exchange", "attach")}
    measured |= {name: load(name) for name in BATCHES if (RESULTS / f"{name}.json").exists()}

    def filled(path: Path, **blocks: str) -> str:
        return fill(path.read_text(encoding="utf-8"), blocks)

    english, chinese, judged = ROOT / "README.md", ROOT / "README.zh-CN.md", docs / "quality.md"
    pages = {
        english: filled(english, figures=figures(results, ENGLISH)),
        docs / "index.md": filled(docs / "index.md", figures=figures(results, ENGLISH)),
        chinese: filled(chinese, figures=figures(results, CHINESE)),
        judged: filled(judged, quality=quality(), study=study()),
        docs / "guides" / "serve.md": filled(docs / "guides" / "serve.md", replicas=replicas()),
        docs / "guides" / "how-many-gpus.md": filled(
            docs / "guides" / "how-many-gpus.md",
            streams=streams(measured),
            batches=batches(measured),
            viewers=viewers(),
            crowds=crowds.block(crowds.read()),
        ),
        docs / "guides" / "gpus.md": filled(docs / "guides" / "gpus.md", several=several(measured)),
        docs / "guides" / "attach.md": filled(docs / "guides" / "attach.md", attached=attached(measured)),
        docs / "start.md": filled(docs / "start.md", words=words()),
        docs / "models.md": models(),
        docs / "reproduction.md": page(results),
    }
    for name in FAMILIES:
        family = docs / "attach" / f"{name}.md"
        pages[family] = filled(family, saved=saved(name))
    if text := speed_page(RESULTS, block(real_time), speed()):
        pages[docs / "speed.md"] = text
    return pages


if __name__ == "__main__":
    main(made, __doc__)
