"""The results of a benchmark as tables and sentences."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from rich.table import Table

Row = dict[str, Any]


def benchmark_report(results: dict[str, Any]) -> Iterator[Table | str]:
    """One table for every size, then what the columns mean and the speed-ups over dense."""
    rows = results["configurations"]
    steps = len(results["schedule"])
    batches = any("one_after_another" in row for row in rows)
    for (height, width), group in groupby(rows, lambda row: row["size"]):
        table = Table(f"{width}x{height}")
        titles = ["FPS", "with VAE", "first", "p50/p99", "cache", "peak", "of floor"]
        for title in titles + ["x singly"] * batches:
            table.add_column(title, justify="right")
        for row in group:
            table.add_row(label(row, steps), *_figures(row), *[_gain(row)] * batches)
        yield table
    rates = " and ".join(
        f"{rate:.3g} ({results['dtype'] if name == 'plain' else name})"
        for name, rate in results["matmul_tflops"].items()
        if rate
    )
    yield (
        f"FPS: pixel frames per second in the second half of {results['pixel_frames']}, medians of "
        f"{results['repeats']}. First: the first pixel frame, the prompt encoded.\n"
        "p50/p99: latency of a chunk's diffusion in the second half.\n"
        f"Floor: the counted work at the rate of large matrix products, {rates} TFLOP/s."
    )
    if batches:
        yield (
            "Batch: so many videos made together; FPS are those of all of them. x singly: against "
            "the same videos made one after another, without and with the VAE."
        )
    yield from _speed_ups(rows, steps)


def viewers_report(results: dict[str, Any]) -> Iterator[Table | str]:
    """How viewers fared, a row for each number of them, and how many the server would let in."""
    table = Table()
    for title in ("viewers", "of them stalled", "stalls", "stalled in all", "later by", "first picture"):
        table.add_column(title, justify="right")
    for row in results["rows"]:
        table.add_row(
            f"{row['viewers']}",
            f"{row['viewers_with_stalls']}",
            f"{row['stalls']}",
            f"{row['stalled_seconds']:.1f} s",
            f"{row['slowed_s']['p50']:.1f} s",
            f"{row['first_picture_s']['p50']:.2f} s",
        )
    yield table
    alone = results["first_picture_alone_s"]["p50"]
    yield (
        f"{results['model']}, {results['size']}, {results['policy']}: a chunk takes "
        f"{results['chunk_seconds']:.2f} s of the device, and a session {results['session_gb']:.1f} GB. By "
        f"itself the server lets {results['admits']} in; here it let in everybody. First picture of somebody "
        f"alone: {alone:.2f} s.\n"
        "Later by: how much longer the video took to watch, played slower where little of it was there."
    )


def label(row: Row, steps: int) -> str:
    """Name a row among the others of its size.

    Args:
        row: Of the results.
        steps: Of the model's schedule.
    """
    parts = [row["policy"]]
    parts += [f"fp8 {row['fp8']}"] if row["fp8"] != "none" else []
    gpus = row.get("gpus", 1)  # which older results don't tell
    parts += [f"{gpus} GPUs"] if gpus > 1 else []
    batch = row.get("batch", 1)
    parts += [f"batch {batch}"] if batch > 1 else []
    parts += [f"{row['steps']}/{steps} steps"] if row["skip_steps"] else []
    return ", ".join(parts)


def _figures(row: Row) -> Iterator[str]:
    yield f"{row['fps']:.1f}"
    yield f"{row['fps_end_to_end']:.1f}" if "fps_end_to_end" in row else "-"
    yield f"{row['first_frame_ms']:.0f} ms" if "first_frame_ms" in row else "-"
    yield f"{row['latency_ms']['p50']:.0f}/{row['latency_ms']['p99']:.0f} ms"
    cache = row["cache_bytes"]
    yield f"{cache / 1e9:.2f} GB" if cache >= 1e8 else f"{cache / 1e6:.1f} MB"
    yield "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:.1f} GB"
    yield f"{row['floor_fraction']:.0%}"


def _gain(row: Row) -> str:
    """How much faster a batch is than its videos one after another."""
    alone = row.get("one_after_another", {})
    return (
        " / ".join(f"{row[key] / alone[key]:.2f}x" for key in ("fps", "fps_end_to_end") if key in alone)
        or "-"
    )


def _speed_ups(rows: list[Row], steps: int) -> Iterator[str]:
    """Speed-ups over `dense` with the same precision and steps."""
    keys = ("size", "fp8", "skip_steps", "gpus", "batch")
    for dense in (row for row in rows if row["policy"] == "dense"):
        for row in rows:
            if row is not dense and all(row.get(key) == dense.get(key) for key in keys):
                yield (
                    f"{row['size'][1]}x{row['size'][0]}: {label(row, steps)} is "
                    f"{row['fps'] / dense['fps']:.2f}x as fast as dense (whole videos: "
                    f"{row['fps_video'] / dense['fps_video']:.2f}x); its cache is "
                    f"{dense['cache_bytes'] / row['cache_bytes']:.2f}x smaller."
                )
