"""Tables of docs/guides/gpus.md and docs/guides/attach.md: several GPUs, and attached code, as measured."""

from typing import Any

import torch

from dummyforcing.bench.plans import plan_of
from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.pipeline.request import make_request
from research.pages.making import table
from research.pages.page import source

FAMILIES = ("self-forcing", "causal-forcing", "longlive", "causvid")
"""Those whose buffers an attachment makes much smaller."""
RUNS = ("gpus-2", "gpus-2-1080p", "gpus-4", "gpus-4-1080p")
"""Results of `dummyforcing bench --gpus`."""
NAMES = {480: "480p", 720: "720p", 1088: "1080p"}
WAYS = {
    "alone": "Self-Forcing's own code",
    "official code": "official Dummy Forcing",
    "attention, dense": "attached, `attention`, dense",
    "attention, dummy": "attached, `attention`, dummy",
    "fused, dummy": "attached, `fused`, dummy",
    "fused, dummy, fp8": "attached, `fused`, dummy, fp8 linear",
    "our engine, dummy": "our engine, dummy",
    "our engine, dummy, fp8": "our engine, dummy, fp8 linear",
}


def beside_one(result: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """What was measured on several GPUs, each with the same on one GPU in the same run."""
    alone = {
        (*row["size"], row["policy"], row["fp8"]): row for row in result["configurations"] if row["gpus"] == 1
    }
    return [
        (row, alone[(*row["size"], row["policy"], row["fp8"])])
        for row in result["configurations"]
        if row["gpus"] > 1
    ]


def several(results: dict[str, dict[str, Any]]) -> str:
    """One video on several GPUs, beside one of the same card in the same run."""
    rows = []
    for name in RUNS:
        for row, alone in beside_one(results[name]):
            rows.append(
                [
                    NAMES[row["size"][0]],
                    row["fp8"],
                    f"{row['gpus']}",
                    *(
                        f"{row[key]:.1f} ({row[key] / alone[key]:.2f}x)"
                        for key in ("fps", "fps_video", "fps_end_to_end")
                    ),
                    f"{alone['first_frame_ms']:.0f} / {row['first_frame_ms']:.0f} ms",
                    f"{row['latency_ms']['p50']:.0f} / {row['latency_ms']['p99']:.0f} ms",
                    f"{row['peak_bytes'] / 1e9:.1f} GB ({row['peak_bytes'] / alone['peak_bytes'] - 1:+.0%})",
                ]
            )
    rows.sort(key=lambda row: (list(NAMES.values()).index(row[0]), row[1] != "none", int(row[2])))
    header = [
        "size", "fp8", "GPUs", "FPS without VAE, steady", "without VAE, whole video", "FPS with VAE, steady",
        "first frame, 1 / all", "chunk, p50 / p99", "memory of a GPU",
    ]  # fmt: skip
    origins = ", ".join(source(name, results[name]) for name in RUNS)
    share = ", ".join(
        f"{row['communication_share']:.0%} at {row['size']}"
        for row in results["gpus-2-exchange"]["rows"]
        if row["gpus"] > 1 and row["fp8"] == "none"
    )
    notes = dict.fromkeys(results[name]["note"] for name in RUNS if "note" in results[name])
    exchange = source("gpus-2-exchange", results["gpus-2-exchange"])
    return (
        f"{table(header, rows)}\n\nWan 1.3B with random weights, bfloat16, policy `dummy` with a fixed plan, "
        f"81 pixel frames, cuDNN's attention; in brackets against one GPU in the same run: {origins}. Of a "
        f"pass on two GPUs the exchange of heads takes {share} ({exchange}). {' '.join(notes)}"
    )


def saved(name: str) -> str:
    """What the KV cache of a family takes, its own and an attached one, counted."""
    files = ModelFiles.open(name)

    def gigabytes(**options: Any) -> float:
        request = make_request(files, "any", size="480p", num_frames=files.preset.pixel_frames(21), **options)
        return float(request.cache_frames() * files.frame_bytes(request.size, torch.bfloat16)) / 1e9

    own, before = gigabytes(policy="native"), gigabytes(policy="dummy")
    after = gigabytes(policy="dummy", plan=plan_of("dummy", files.config))
    return (
        f"What it saves, counted at 480p in bfloat16: its own KV buffers take {own:.1f} GB; attached with "
        f"`dummy`, the cache takes {before:.1f} GB until the heads are sorted, and {after:.1f} GB "
        "from then on."
    )


def attached(results: dict[str, dict[str, Any]]) -> str:
    """Self-Forcing's code with and without us, beside the official code and our own engine."""
    found = results["attach"]["rows"]
    sizes = list(dict.fromkeys(row["size"] for row in found))
    rows = []
    for way, name in WAYS.items():
        cells = [row for size in sizes for row in found if (row["size"], row["way"]) == (size, way)]
        rows.append(
            [name, *(text for row in cells for text in (f"{row['fps']:.1f}", f"{row['bytes'] / 1e9:.1f} GB"))]
        )
    header = ["", *(text for size in sizes for text in (f"{size}, FPS", f"{size}, memory"))]
    return (
        f"{table(header, rows)}\n\nWan 1.3B with random weights, bfloat16, 81 pixel frames, whole videos, "
        "no VAE, cuDNN's attention for all; memory beside the weights: "
        f"{source('attach', results['attach'])}."
    )
