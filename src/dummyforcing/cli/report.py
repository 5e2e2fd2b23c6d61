"""The tables that the command line prints."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from dummyforcing.presets import PUBLIC, Preset, bundled_folders, read_preset

if TYPE_CHECKING:
    from dummyforcing.atlas import Atlas
    from dummyforcing.heads import Policy
    from dummyforcing.pipeline import Chunk


def print_results(last_chunks: "Mapping[str, Chunk]") -> None:
    """Print what a video took, one line for each policy that it was made with.

    Args:
        last_chunks: Name of the policy -> the last chunk of its video.
    """
    table = Table("policy")
    for title in ("pixel frames", "first frame", "FPS without VAE", "FPS with VAE", "cache"):
        table.add_column(title, justify="right")
    for name, chunk in last_chunks.items():
        timings = chunk.timings
        table.add_row(
            name,
            str(timings.pixel_frames),
            f"{timings.first_frame:.2f} s",
            f"{timings.fps_without_vae:.1f}",
            f"{timings.fps:.1f}",
            f"{chunk.cache_bytes / 1e6:.1f} MB",
        )
    Console().print(table)


def print_comparison(chunks: "Sequence[Chunk]", dense: "Sequence[Chunk]") -> None:
    """Print what a video saved against the dense cache from the same noise, and how far the two differ."""
    mine, theirs = chunks[-1], dense[-1]
    faster = mine.timings.fps_without_vae / theirs.timings.fps_without_vae
    faster_with_vae = mine.timings.fps / theirs.timings.fps
    print(
        f"Against the dense cache: speed-up {faster:.2f}x without VAE, {faster_with_vae:.2f}x with VAE; "
        f"cache {theirs.cache_bytes / mine.cache_bytes:.2f}x smaller; PSNR {psnr(chunks, dense):.1f} dB."
    )


def psnr(chunks: "Sequence[Chunk]", reference: "Sequence[Chunk]") -> float:
    """Peak signal-to-noise ratio between two videos of equal length, in dB; infinite if they are equal."""
    errors = [
        np.square(a.frames.astype(np.float32) - b.frames).mean(dtype=np.float64) * a.frames.size
        for a, b in zip(chunks, reference, strict=True)
    ]
    mean = sum(errors) / sum(chunk.frames.size for chunk in chunks)
    return float(10 * np.log10(255**2 / mean)) if mean else float("inf")


def print_atlas(atlas: "Atlas", policy: "Policy") -> None:
    """Print the main figures of an atlas."""
    from dummyforcing.atlas.report import above
    from dummyforcing.atlas.stability import single_videos, stability

    videos, conditions = atlas.mass.shape[0] * atlas.mass.shape[1], int(np.prod(atlas.mass.shape[:4]))
    same, _ = single_videos(atlas, policy)
    scores = atlas.scored(policy)
    quarter = stability(scores, scores.shape[-3] * scores.shape[-2] // 4)
    print(
        f"Measured on {videos} videos under {conditions} conditions: {above(atlas, policy):.0%} of the heads "
        f"spend over 80% on the current chunk, the dummiest quarter has core ratio {quarter.overall:.2f}, "
        f"and a single video finds {same:.0%} of the roles of this plan."
    )


def print_models() -> None:
    """Print the bundled models and the public ones."""
    table = Table.grid(padding=(0, 2, 0, 0))
    bundled = [read_preset(folder) for folder in bundled_folders().values()]
    for preset in [*bundled, *PUBLIC.values()]:
        table.add_row(f"[bold]{preset.name}", "\n".join([*_facts(preset), ""]))
    Console(highlight=False).print(table)
    print("This version loads the bundled models; the others are only listed.")


def _facts(preset: Preset) -> Iterator[str]:
    """What there is to know about a model, line by line."""
    (height, width), steps, chunk = preset.size, len(preset.schedule.steps), preset.chunk_frames
    yield preset.description
    yield (
        f"{width}x{height}, {steps} step{'s' * (steps > 1)}, {chunk} latent frame{'s' * (chunk > 1)} a chunk"
    )
    native = f"native policy {preset.native}" if preset.native else "a sampler of its own"
    yield f"{native}, licence {preset.licence}"
    if (source := preset.source) is None:
        yield "bundled"
        return
    yield f"{source.repo}: {source.file}"
    parts = [("entry", source.key), ("LoRA", source.lora)]
    yield ", ".join([f"Wan {source.size}", *(f"{name} {value}" for name, value in parts if value)])
