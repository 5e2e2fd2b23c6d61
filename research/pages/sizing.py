"""Tables of docs/guides/how-many-gpus.md: what a GPU has time and memory for, as measured."""

from typing import Any

import torch

from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.pipeline.request import make_request
from dummyforcing.server.engine import FULL
from research.pages.making import table
from research.pages.page import source

Result = dict[str, Any]

STREAMS = ("bench-480p", "bench-720p", "gpus-2", "gpus-4", "gpus-2-1080p", "gpus-4-1080p")
"""Results of `dummyforcing bench`, with the VAE."""
BATCHES = ("batch-cpu", "batch-480p")
"""Results of `dummyforcing bench --batch`; those that are there."""
NAMES = {480: "480p", 720: "720p", 1088: "1080p"}


def streams(results: dict[str, Result]) -> str:
    """How many streams in real time each card has time for, with how much memory."""
    rows: dict[tuple[Any, ...], list[str]] = {}
    for name in STREAMS:
        found, preset = results[name], ModelFiles.open(results[name]["model"]).preset
        for row in found["configurations"]:
            if row["policy"] != "dummy" or row["skip_steps"] or "fps_end_to_end" not in row:
                continue
            gpus, fps = row.get("gpus", 1), row["fps_end_to_end"]
            size, card = NAMES[row["size"][0]], found["device"].removeprefix("NVIDIA ").split()[0]
            each = FULL * fps / preset.fps / gpus
            told = f"{int(each)}" if each >= 1 else f"1 on {gpus} GPUs" if each * gpus >= 1 else "none"
            rows.setdefault(
                (list(NAMES).index(row["size"][0]), row["fp8"] != "none", row["fp8"], card, gpus),
                [
                    preset.name, size, row["fp8"], card, str(gpus), f"{row['fps']:.1f}", f"{fps:.1f}",
                    told, f"{row['peak_bytes'] / 1e9:.1f} GB", f"{further(found['model'], row) / 1e9:.1f} GB",
                ],
            )  # fmt: skip
    header = [
        "model", "size", "fp8", "card", "GPUs of a stream", "FPS without VAE", "FPS with VAE",
        "streams in real time per GPU", "VRAM of a GPU, one stream", "each further stream",
    ]  # fmt: skip
    origins = "; ".join(source(name, results[name]) for name in STREAMS)
    return (
        f"{table(header, [rows[key] for key in sorted(rows)])}\n\nWan 1.3B with random weights, bfloat16, "
        f"policy `dummy` with a fixed plan, second half of 81 pixel frames. Real time is 16 FPS with the "
        f"VAE; of a GPU's time a server gives out {FULL:.0%}. A further stream shares the weights; its "
        f"memory (cache and decoder, shared out over the GPUs of a stream) is counted: {origins}."
    )


def further(model: str, row: Result) -> float:
    """Bytes of a GPU that one more stream takes, as the server counts them, without chunks to go back to."""
    files = ModelFiles.open(model)
    size: tuple[int, int] = (row["size"][0], row["size"][1])
    request = make_request(files, "any", size=size, num_frames=row_frames(files), policy="dummy")
    itemsize = 1 if row["fp8"] == "all" else 2
    cache = float(request.cache_frames()) * files.frame_bytes(size, torch.bfloat16) * itemsize / 2
    rows, columns = (side // files.decoder.stride for side in size)
    return (cache + files.decoder.memory((1, 0, rows, columns), 2).working) / float(row.get("gpus", 1))


def row_frames(files: ModelFiles) -> int:
    """Pixel frames of a video of seven chunks."""
    return files.preset.pixel_frames(7 * files.preset.chunk_frames)


def batches(results: dict[str, Result]) -> str:
    """Videos made together in one pass against the same videos one after another."""
    rows, origins = [], []
    for name in (one for one in BATCHES if one in results):
        found = results[name]
        origins.append(source(name, found))
        for row in (one for one in found["configurations"] if one["batch"] > 1):
            alone, (height, width) = row["one_after_another"], row["size"]
            rows.append(
                [
                    found["model"], f"{width}x{height}", row["policy"], found["device"], str(row["batch"]),
                    f"{row['fps']:.1f} ({row['fps'] / alone['fps']:.2f}x)",
                    f"{row['fps_end_to_end']:.1f} ({row['fps_end_to_end'] / alone['fps_end_to_end']:.2f}x)",
                    f"{row['latency_ms']['p50']:.0f} / {row['latency_ms']['p99']:.0f} ms",
                    f"{row['cache_bytes'] / 1e6:.0f} MB",
                ]
            )  # fmt: skip
    header = [
        "model", "size", "policy", "device", "batch", "FPS of all, without VAE", "with VAE",
        "chunk, p50 / p99", "cache",
    ]  # fmt: skip
    return (
        f"{table(header, rows)}\n\nEach video of a batch has a head plan of its own; in brackets against the "
        f"same videos one after another, in turns with the batch: {'; '.join(origins)}."
    )
