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
    for (height, width), group in groupby(rows, lambda row: row["size"]):
        table = Table(f"{width}x{height}")
        for title in ("FPS", "with VAE", "first", "p50/p99", "cache", "peak", "of floor"):
            table.add_column(title, justify="right")
        for row in group:
            table.add_row(label(row, steps), *_figures(row))
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
    yield from _speed_ups(rows, steps)


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


def _speed_ups(rows: list[Row], steps: int) -> Iterator[str]:
    """Speed-ups over `dense` with the same precision and steps."""
    keys = ("size", "fp8", "skip_steps", "gpus")
    for dense in (row for row in rows if row["policy"] == "dense"):
        for row in rows:
            if row is not dense and all(row.get(key) == dense.get(key) for key in keys):
                yield (
                    f"{row['size'][1]}x{row['size'][0]}: {label(row, steps)} is "
                    f"{row['fps'] / dense['fps']:.2f}x as fast as dense (whole videos: "
                    f"{row['fps_video'] / dense['fps_video']:.2f}x); its cache is "
                    f"{dense['cache_bytes'] / row['cache_bytes']:.2f}x smaller."
                )
