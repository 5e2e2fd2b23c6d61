"""docs/speed.md, written from the result files: frames per second, targets, attention, float8, VAE."""

import json
from pathlib import Path
from statistics import mean
from typing import Any

from dummyforcing.bench.report import label
from research.pages.making import table
from research.pages.page import source

Result = dict[str, Any]

INTRODUCTION = """# Speed

Written by `python -m research.pages.tables` from `benchmarks/results/`. But for the last table, on one GPU:
the 1.3B models' shapes with random weights, right for speed and memory, silent on quality. 4 denoising steps
and a commit pass, chunks of 3 latent frames, videos of 81 pixel frames, a fixed plan of 180 dummy, 90 sink
and 90 neighbor heads spread unevenly over 30 layers. [Measuring speed](benchmark.md) says what each figure
means and how to measure on your own machine.
"""
OVERVIEW = """## Sizes, caches and precisions

*FPS* is the second half of a video and *whole video* all of it, both without the VAE; *with VAE* is the
second half of whole videos, decoded, on the host. *Of the floor* is the time that the counted work takes at
the rate of large matrix products, over the measured time.
"""
CPU = """## On a CPU

The bundled model, 81 pixel frames (5 s) of 160x160:
"""
TARGETS = """## Against our targets

FPS are pixel frames per second of the second half of a video; ratios to dense are of whole videos with
the same kernels. *Official* is the public Dummy Forcing code on the same kind of GPU with the same
attention kernel, as far as we measured it.
"""
LONG_VIDEO = """The long-context plan attends to as many keys as the window, but most of them in one or two
heads a layer: 24 of 360 heads see 120 frames. Their keys are attended to in parts, side by side (see
Attention). The whole video is the first of its length in the process: kernels are built on the way.
"""
FLAT = """{chunks} chunks of Dummy Forcing at 480p in one video: {fps:.1f} FPS, chunk latency p50/p99
{p50:.0f} / {p99:.0f} ms, and the peak of the GPU's memory ({peak:.1f} GB without the VAE) grew by {growth}
bytes after the third chunk.
"""
WARM_UP = """## Warm-up

The first video of a process compiles the kernels (Triton and FlashAttention-4 keep what they compiled on
disk) and records CUDA graphs. A later video of the same shapes records its two graphs while the GPU
works; a change of the plan does the same. Seconds of the first, uncounted video of every configuration,
in the order in which they ran:
"""
ATTENTION = """## Attention

One layer of 12 heads: packed heads see 4 frames, neighbor heads 6, or 120 as with a long context. *Side by
side* is how the library calls them, each length on a stream of its own, and the keys of few long heads in
parts that are merged; *heads as sequences* and *one launch* are ragged calls over all heads, keys whole.
The library takes FlashAttention-4 where it is installed, else cuDNN; float8 is an option.
TFLOP/s:
"""
FLOAT8 = """## Float8

Linear layers in e4m3: a scale per token for activations, made by the kernel that computes them, and a
scale per output channel for weights. Attention in e4m3 unscaled, with queries and keys normalised by the
model and outputs times 16. Relative error of the velocity in one pass, by denoising step, everything else
equal:
"""
QUALITY = """What it does to videos, by the exact detectors on the bundled model (float8 emulated on a CPU):
"""
VAE = """## VAE

The streamed decoder against diffusers' own, bfloat16, four chunks; differences in gray levels of 255.
"""


def speed_page(folder: Path, overview: str, cpu: str) -> str | None:
    """The page; None if not all of its results are there.

    Args:
        folder: Of the result files.
        overview: The part of `realtime.block`, with its own sources.
        cpu: The table of the bundled model, likewise.
    """
    names = [
        "bench-480p",
        "bench-720p",
        "bench-1080p",
        "bench-long",
        "bench-flat",
        "attention",
        "fp8",
        "fp8-tiny",
        "vae",
    ]
    names += [f"tiny-quality-dummy{suffix}" for suffix in ("", "-fp8-linear", "-fp8-all")]
    paths = {name: folder / f"{name}.json" for name in names}
    if not all(path.exists() for path in paths.values()):
        return None
    results = {name: json.loads(path.read_text()) for name, path in paths.items()}
    origins = "\n".join(
        f"- {source(name, result)}"
        for name, result in results.items()
        if f"benchmarks/results/{name}.json" not in overview
    )
    parts = [INTRODUCTION, f"{OVERVIEW}\n{overview}\n", targets(results), warm_up(results)]
    parts += [attention(results["attention"]), float8(results), vae(results["vae"]), f"{CPU}\n{cpu}\n"]
    parts.append(f"## Sources of the other tables\n\n{origins}\n")
    return "\n".join(parts)


def targets(results: dict[str, Result]) -> str:
    """What was aimed at, and what came out."""
    sizes = {size: _rows(results[f"bench-{size}"]) for size in ("480p", "720p", "1080p")}
    long = _rows(results["bench-long"])

    def fps(size: str, mode: str, skips: bool = False) -> float:
        return float(sizes[size]["dummy", mode, skips]["fps"])

    def ratio(size: str) -> float:
        rows = sizes[size]
        return float(rows["dummy", "none", False]["fps_video"] / rows["dense", "none", False]["fps_video"])

    best = max(row.get("fps_end_to_end", 0) for key, row in sizes["480p"].items() if not key[2])
    first = min(
        row["first_frame_ms"] for key, row in sizes["480p"].items() if key[0] == "dummy" and not key[2]
    )

    def over_window(figure: str) -> float:
        far, near = (long[name, "none", False][figure] for name in ("long:24,117", "window:3,6"))
        return float(far / near)

    table_of = [
        ("480p, bfloat16", "31.9", 65, 80, fps("480p", "none"), ""),
        ("480p, float8 linear layers", "-", 85, 100, fps("480p", "linear"), ""),
        (
            "480p, the same without one of four steps (TeaCache)",
            "-",
            105,
            120,
            fps("480p", "linear", True),
            "",
        ),
        ("720p, bfloat16", "14.4", 21, 25, fps("720p", "none"), ""),
        ("720p, float8 linear layers", "-", 26, 32, fps("720p", "linear"), ""),
        ("1080p, bfloat16", "4.7", 5.8, 6.5, fps("1080p", "none"), ""),
        ("1080p, float8 linear layers", "-", 7, 10, fps("1080p", "linear"), ""),
        ("1080p, float8 attention, too", "-", 7, 10, fps("1080p", "all"), ""),
        ("over dense, 480p", "1.14", 1.45, 1.6, ratio("480p"), "x"),
        ("over dense, 720p", "1.58", 1.75, 2.0, ratio("720p"), "x"),
        ("over dense, 1080p", "2.01", 2.1, 2.5, ratio("1080p"), "x"),
        ("480p with Wan's VAE, frames on the host, all steps", "-", 34, 50, best, ""),
        ("240 latent frames: long-context plan over window", "1.03 (paper)", 1, 1, over_window("fps"), "x"),
        (
            "the same, whole videos, kernels built on the way",
            "1.03 (paper)",
            1,
            1,
            over_window("fps_video"),
            "x",
        ),
    ]
    rows = [
        [
            what,
            official,
            f"{must:g}{x}",
            f"{aim:g}{x}",
            f"{found:.2f}{x}" if x else f"{found:.1f}",
            _verdict(found, must, aim),
        ]
        for what, official, must, aim, found, x in table_of
    ]
    rows.append(
        [
            "first pixel frame at 480p, warm, prompt encoded",
            "-",
            "250 ms",
            "150 ms",
            f"{first:.0f} ms",
            _verdict(-first, -250, -150),
        ]
    )
    header = ["what", "official", "target", "stretch", "measured", ""]
    flat = results["bench-flat"]["configurations"][0]
    told = FLAT.format(
        chunks=2 * flat["latency_ms"]["chunks"],
        fps=flat["fps"],
        p50=flat["latency_ms"]["p50"],
        p99=flat["latency_ms"]["p99"],
        peak=flat["peak_bytes"] / 1e9,
        growth=flat["memory_growth_bytes"],
    )
    return f"{TARGETS}\n{table(header, rows)}\n\n{LONG_VIDEO}\n{told}"


def warm_up(results: dict[str, Result]) -> str:
    """What comes before the first chunk that counts."""
    rows = []
    for size in ("480p", "720p", "1080p"):
        result = results[f"bench-{size}"]
        steps = len(result["schedule"])
        seconds = [f"{label(row, steps)}: {row['warm_up_s']:.1f}" for row in result["configurations"]]
        rows.append([size, "; ".join(seconds)])
    return f"{WARM_UP}\n{table(['size', 'seconds'], rows)}\n"


def attention(result: Result) -> str:
    """Ways by shapes."""
    parts = ("size", "packed", "neighbor", "frames")
    shapes = list(dict.fromkeys(tuple(r[part] for part in parts) for r in result["rows"]))
    found = {(r["way"], *(r[part] for part in parts)): r for r in result["rows"]}
    rows = []
    for way in dict.fromkeys(r["way"] for r in result["rows"]):
        cells = [found[way, *shape] for shape in shapes]
        rates = [f"{cell['tflops']:.0f}" if "tflops" in cell else "-" for cell in cells]
        rows.append([way, *rates, f"{cells[0]['error']:.4f}" if "error" in cells[0] else "-"])
    header = [
        f"{size}, {packed} packed, {neighbor} that see {frames}" for size, packed, neighbor, frames in shapes
    ]
    return f"{ATTENTION}\n{table(['way', *header, 'error against cuDNN'], rows)}\n"


def float8(results: dict[str, Result]) -> str:
    """Errors, and what they do."""
    rows = []
    for name, title in (("fp8", "1.3B, random weights"), ("fp8-tiny", "bundled model, trained weights")):
        for mode, steps in results[name]["against_float32"].items():
            plain = results[name]["against_plain"].get(mode)
            cells = [f"{100 * e:.1f}%" for e in steps]
            against = f"{100 * mean(plain):.1f}%" if plain else "-"
            rows.append([title, mode, results[name]["dtype"], *cells, against])
    steps = [f"step {number + 1}" for number in range(4)]
    errors = table(["model", "way", "dtype", *steps, "mean, against plain"], rows)
    alone = []
    for name, title in (("fp8", "1.3B"), ("fp8-tiny", "bundled")):
        blocks = [mean(block) for block in results[name]["one_block_in_float8"]]
        alone.append(f"{title} {100 * min(blocks):.1f} to {100 * max(blocks):.1f}%")
    by_block = (
        f"With one block alone in float8 the error is: {'; '.join(alone)}. No block stands out, so "
        "none is left out by default; `FusedWan(keep=...)` leaves some out."
    )
    quality = []
    for suffix, title in (("", "float32"), ("-fp8-linear", "float8, linear"), ("-fp8-all", "float8, all")):
        part = results[f"tiny-quality-dummy{suffix}"]["dummy"]["one_object"]
        kinds = [_percent(part[kind]) for kind in ("color", "shape", "motion")]
        quality.append([title, str(part["count"]), *kinds])
    header = ["bundled model, Dummy Forcing", "prompts", "color", "shape", "motion"]
    return f"{FLOAT8}\n{errors}\n\n{by_block}\n\n{QUALITY}\n{table(header, quality)}\n"


def vae(result: Result) -> str:
    """Decoders by size."""
    rows = []
    for size in ("480p", "720p", "1080p"):
        found = result[size]
        for name in ("diffusers", "ours"):
            one, error = found[name], found["gray_levels"][f"{name} - float32"]
            rows.append(
                [
                    size,
                    name,
                    f"{one['pixel_frames_per_s']:.1f}",
                    f"{one['first_frame_ms']:.0f} ms",
                    f"{one['memory_gb']:.1f} GB",
                    f"{error['max']:.1f} at most, {error['mean']:.2f} on average",
                ]
            )
    header = ["video", "decoder", "pixel frames/s", "first frame", "memory beside weights", "against float32"]
    return f"{VAE}\n{table(header, rows)}\n"


def _rows(result: Result) -> dict[tuple[str, str, bool], Result]:
    return {(r["policy"], r["fp8"], bool(r["skip_steps"])): r for r in result["configurations"]}


def _verdict(found: float, must: float, aim: float) -> str:
    return "stretch met" if found >= aim else "met" if found >= must else "**missed**"


def _percent(part: Result) -> str:
    low, high = part["interval"]
    return f"{part['percent']:.0f}% ({low:.0f}-{high:.0f})"
