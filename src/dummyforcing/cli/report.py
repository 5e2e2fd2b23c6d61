"""The tables that the command line prints."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from rich.table import Table

from dummyforcing.cli.terminal import tell
from dummyforcing.presets.catalog import PUBLIC, bundled_folders, find_preset
from dummyforcing.presets.preset import Preset, ScheduleArgs

if TYPE_CHECKING:
    import torch

    from dummyforcing.analysis.atlas import Atlas
    from dummyforcing.checkpoints.convert import PartReport
    from dummyforcing.checkpoints.model_files import ModelFiles
    from dummyforcing.method.plan import Plan
    from dummyforcing.method.policy import Policy
    from dummyforcing.pipeline.memory import MemoryEstimate
    from dummyforcing.pipeline.outputs import Chunk
    from dummyforcing.pipeline.request import Request
    from dummyforcing.sampling.teacache import Calibration


LONG = 10
"""Seconds from which on a video is long: it is told how it fared."""


def print_results(last_chunks: "Mapping[str, Chunk]", fps: int) -> None:
    """Print what a video took, one line for each policy that it was made with, and how a long one fared.

    Args:
        last_chunks: Name of the policy -> the last chunk of its video.
        fps: Pixel frames per second.
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
    tell(table)
    for name, chunk in last_chunks.items():
        if chunk.timings.pixel_frames >= LONG * fps:
            measures = chunk.measures[0]
            tell(
                f"At the end of {name}: drift {measures.drift:.1f} gray levels since the first second, "
                f"repetition {measures.repetition:.2f}, motion {measures.motion:.2f} gray levels a frame."
            )


def print_plans(plans: "Sequence[tuple[float, Plan]]") -> None:
    """Print when heads were classified again, and how many of them have another role than before.

    Args:
        plans: Each plan of a video, and the second from which on it holds.
    """
    for (_, before), (seconds, after) in pairwise(plans):
        roles = zip(sum(before.roles, ()), sum(after.roles, ()), strict=True)
        changed = [role != other for role, other in roles]
        tell(
            f"Heads classified again at {seconds:.1f} s: {sum(changed)} of {len(changed)} have another role."
        )
    if len(plans) < 2:
        tell("No heads were classified again: where they look has stayed within the tolerance.")


def print_scenes(scenes: "Sequence[tuple[int, str]]", asked: Sequence[float], fps: int) -> None:
    """Print when each prompt begins, which it does with a chunk.

    Args:
        scenes: From `Request.scenes`.
        asked: The seconds that were asked for.
        fps: Pixel frames per second.
    """
    for start, prompt in scenes:
        tell(f"{start / fps:5.1f} s  {prompt}")
    later = [
        f"at {start / fps:.1f} s for {seconds:g} s"
        for (start, _), seconds in zip(scenes, asked, strict=True)
        if start / fps - seconds >= 0.05
    ]
    if later:
        tell(f"A prompt takes effect where a chunk begins: {', '.join(later)}.")


def print_skips(skipped: "Sequence[int]", steps: int, but_first: bool) -> None:
    """Print which denoising steps TeaCache leaves out; a calibrated table spares the first chunk."""
    told = f"step {_numbers(skipped)} of {steps}" if skipped else "no step"
    tell(f"TeaCache leaves out {told}{', but not in the first chunk' * bool(skipped and but_first)}.")


def print_calibration(table: "Calibration") -> None:
    """Print what was measured of every set of steps, and which of them is left out."""
    grid = Table("left out")
    has_first = all(found.first for found in table.sets)
    for title in ("speed-up", "error", "± over videos", *(["first chunk"] if has_first else [])):
        grid.add_column(title, justify="right")
    for found in table.sets:
        style = "bold" if found.steps == table.steps else None
        first = [f"{fmean(found.first):.4f}"] if has_first else []
        figures = (f"{table.speed_up(found.steps):.2f}x", f"{found.error:.4f}", f"{found.spread:.4f}", *first)
        grid.add_row(_numbers(found.steps), *figures, style=style)
    tell(grid)
    count, steps = len(table.prompts) * len(table.seeds), len(table.schedule.steps)
    tell(
        f"Model '{table.model}', policy {table.policy}, {count} video{'s' * (count > 1)} of {table.frames} "
        f"pixel frames.\nWithin an error of {table.error:g}:"
    )
    print_skips(table.steps, steps, but_first=True)


def _numbers(steps: "Sequence[int]") -> str:
    """Steps as people count them, from 1."""
    *others, last = (str(step + 1) for step in steps)
    return f"{', '.join(others)} and {last}" if others else last


def print_atlas(atlas: "Atlas", policy: "Policy") -> None:
    """Print the main figures of an atlas."""
    from dummyforcing.analysis.report import above
    from dummyforcing.analysis.stability import single_videos, stability

    videos, conditions = atlas.mass.shape[0] * atlas.mass.shape[1], int(np.prod(atlas.mass.shape[:4]))
    same, _ = single_videos(atlas, policy)
    scores = atlas.scored(policy)
    quarter = stability(scores, scores.shape[-3] * scores.shape[-2] // 4)
    tell(
        f"Measured on {videos} videos under {conditions} conditions: {above(atlas, policy):.0%} of the heads "
        f"spend over 80% on the current chunk, the dummiest quarter has core ratio {quarter.overall:.2f}, "
        f"and a single video finds {same:.0%} of the roles of this plan."
    )


def all_models() -> list[Preset]:
    """The bundled models and the public ones."""
    return [*(find_preset(name)[0] for name in bundled_folders()), *PUBLIC.values()]


def print_models() -> None:
    """Print the bundled models and the public ones."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for preset in all_models():
        table.add_row(f"[bold]{preset.name}", "\n".join([*_facts(preset), ""]))
    tell(table)
    tell("All about one of them, and the memory it takes: dummyforcing models show NAME")


def _facts(preset: Preset) -> Iterator[str]:
    """Describe a model among the others, line by line."""
    (height, width), steps, chunk = preset.size, len(preset.schedule.steps), preset.chunk_frames
    yield preset.description
    yield (
        f"{width}x{height}, {steps} step{'s' * (steps > 1)}, {chunk} latent frame{'s' * (chunk > 1)} a chunk"
    )
    sampler = "" if preset.sampler == "block" else f"sampler {preset.sampler}, "
    yield f"{sampler}native policy {preset.native}, licence {preset.licence}"
    if (source := preset.source) is None or not source.repo:
        yield "bundled"
        return
    yield f"{source.repo}: {source.file}"
    parts = [("entry", source.key), ("LoRA", source.lora)]
    yield ", ".join([f"Wan {preset.architecture}", *(f"{name} {value}" for name, value in parts if value)])


def print_model(files: "ModelFiles") -> None:
    """Print all that a preset says, and where the model's files are."""
    preset, config = files.preset, files.config
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, value in (
        ("model", f"[bold]{preset.name}[/bold]: {preset.description}"),
        ("licence", " ".join([preset.licence, *([f"({preset.note})"] if preset.note else [])])),
        ("transformer", f"{files.transformer}{f', entry {files.key}' if files.key else ''}"),
        *(("LoRA", f"{place}, scale {scale:g}") for place, scale in files.loras),
        ("text encoder, VAE", str(files.base)),
        (
            "architecture",
            f"{config.num_layers} layers, {config.num_heads} heads, width {config.dim}: "
            f"{files.parameters['transformer'] / 1e9:.2f} billion parameters",
        ),
        ("sampler", _sampler(preset)),
        ("noise levels", _schedule(preset.schedule)),
        *([("of the first chunk", _schedule(preset.first_schedule))] if preset.first_schedule else []),
        (
            "native policy",
            preset.native
            + (
                f", positions relative to {preset.local_attention_size} frames"
                * bool(preset.local_attention_size)
            ),
        ),
        (
            "Dummy Forcing",
            f"{preset.dummy.dummy_fraction:.0%} of the heads dummy, neighbor heads keep "
            f"{preset.dummy.neighbor_frames} frames, classified at chunk {preset.dummy.classify_at_chunk}",
        ),
        ("trained length", _length(preset)),
        ("starts from", STARTS[preset.start]),
        ("video", f"{preset.size[1]}x{preset.size[0]}, {preset.fps} frames per second"),
    ):
        table.add_row(f"[dim]{name}", value)
    tell(table)


STARTS = {
    None: "a prompt",
    "frame": "a prompt, or an image as its first frame",
    "clip": "a prompt, or a clip of whole chunks",
    "chunk": "a prompt, or an image that fills the first chunk",
}


def _sampler(preset: Preset) -> str:
    chunk = f"{preset.chunk_frames} latent frames at a time"
    match preset.sampler:
        case "rolling":
            count = preset.current_frames
            return f"rolling: {count} latent frames at once, {preset.chunk_frames} of them done at a time"
        case "recompute":
            return f"recompute: {chunk}, after the last {preset.context_frames} were computed again"
        case _:
            return f"block: {chunk}"


def _schedule(schedule: ScheduleArgs) -> str:
    steps = " ".join(f"{step:g}" for step in schedule.steps)
    return f"{steps}, shift {schedule.shift:g}{'' if schedule.warp else ', not warped'}"


def _length(preset: Preset) -> str:
    if preset.max_frames is None:
        return "any"
    count = preset.pixel_frames(preset.max_frames)
    return f"{preset.max_frames} latent frames, {count} pixel frames ({count / preset.fps:.1f} s)"


CARDS_GB = (12, 16, 24, 40, 80)
"""GPUs by the number on the box; that is in GiB, and the 7% between are left to CUDA."""


Needs: TypeAlias = "Mapping[str, Sequence[MemoryEstimate]]"
"""What a video needs on a GPU with everything there and with --offload, in one tile and in more."""


def memory_needs(files: "ModelFiles", request: "Request", dtype: "torch.dtype") -> Needs:
    """Estimate what a video needs on a GPU."""
    from dummyforcing.pipeline.memory import estimates

    return {
        how: [estimate.on_gpu() for estimate in estimates(files, request, dtype, offload=offload)]
        for how, offload in (("all there", False), ("--offload", True))
    }


def print_memory(files: "ModelFiles", request: "Request", dtype: "torch.dtype", choices: Needs) -> None:
    """Print what a video needs by part, and which GPUs can make it."""
    from dummyforcing.vae.memory import fewest_tiles

    table = Table(f"GB on a GPU, {str(dtype).removeprefix('torch.')}")
    for title in choices:
        table.add_column(title, justify="right")
    for name in ("text_encoder", "transformer", "vae", "cache", "activations", "total"):
        parts = (f"{getattr(needs[0], name) / 1e9:.1f}" for needs in choices.values())
        table.add_row(name.replace("_", " "), *parts, end_section=name == "activations")
    (height, width), count = request.size, files.preset.pixel_frames(request.length)
    tell(f"\n{count} pixel frames of {width}x{height}, policy {request.policy.name}:")
    tell(table)
    for card in CARDS_GB:
        for how, needs in choices.items():
            tiles = fewest_tiles((need.total for need in needs), card * 1e9)
            if needs[tiles - 1].total <= card * 1e9:
                how = f"fits{' with --offload' * (how == '--offload')}"
                verdict = how if tiles == 1 else f"{how}, decoded in {tiles} tiles"
                break
        else:
            verdict = "does not fit"
        tell(f"{card} GB card: {verdict}")


def print_reports(reports: "Sequence[PartReport]") -> None:
    """Print what was found of a model's parts, problems below the table."""
    table = Table("part")
    for title in ("tensors", "parameters", "dtype", "state"):
        table.add_column(title, justify="right")
    for report in reports:
        counts = (f"{report.tensors}", f"{report.parameters:,}") if report.tensors else ("", "")
        table.add_row(
            report.part.replace("_", " "), *counts, report.dtype, "problem" if report.problem else "OK"
        )
    tell(table)
    for report in reports:
        tell(f"{report.part.replace('_', ' ')}: {report.problem or report.place}")
        for fact in report.facts:
            tell(f"  {fact}")
