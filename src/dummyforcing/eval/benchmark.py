"""Judge a model of the rendered world on the held-out prompts: exact detectors, and all measures of `suite`.

    python -m dummyforcing.eval.benchmark --output benchmarks/results/tiny-quality.json

Every prompt is generated once with each policy, from the same noise. Ground-truth renders of the same scenes
are judged too, plain and after the model's VAE: the ceiling of what any model could reach.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from dummyforcing.threads import spin_briefly

spin_briefly()  # before torch is imported

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from tqdm import tqdm

from dummyforcing.eval.detect import Verdict, summary
from dummyforcing.eval.prompts import MAX_SCENES, benchmark_scenes, two_object_scenes
from dummyforcing.eval.render import render
from dummyforcing.eval.results import write_results
from dummyforcing.eval.suite import aggregate, measure
from dummyforcing.eval.world import Scene
from dummyforcing.fused import Fp8
from dummyforcing.pipeline import Pipeline, load
from dummyforcing.video import save_contact_sheet

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class Settings:
    """What to judge."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """JSON file to write; contact sheets go beside it."""
    model: str = "tiny"
    """Name or folder of a model of the rendered world."""
    policies: tuple[str, ...] = ("dense", "dummy")
    """Cache policies to compare."""
    frames: int = 81
    """Pixel frames per video."""
    limit: int = 64
    """How many of the held-out prompts to use."""
    pairs: bool = True
    """Also the 16 two-object prompts, reported apart."""
    ceiling: bool = True
    """Also ground truth, plain and after the VAE."""
    device: str = "auto"
    """auto, cpu or cuda."""
    fp8: Fp8 = "none"
    """What is computed in float8: none, linear or all; on a CPU it is emulated."""


def judged(
    pipeline: Pipeline, scenes: list[Scene], make: Callable[[int, Scene], Frames], title: str
) -> dict[str, object]:
    """Make and judge one video per scene: the counts, each failure with its reasons, and all measures."""
    preset = pipeline.files.preset
    rows = [
        measure(make(index, scene), scene, preset.chunk_frames, preset.fps)
        for index, scene in enumerate(tqdm(scenes, desc=title))
    ]
    failures = {scene.prompt: row.reasons for scene, row in zip(scenes, rows, strict=True) if row.reasons}
    verdicts = [Verdict(bool(row.color), bool(row.shape), bool(row.motion)) for row in rows]
    return {**summary(verdicts), "failures": failures, "measures": aggregate(rows)}


def ceiling(pipeline: Pipeline, scenes: list[Scene], settings: Settings) -> dict[str, object]:
    """The detector's verdicts on ground truth, and on ground truth after the VAE."""
    size = pipeline.files.preset.size[0]

    def truth(index: int, scene: Scene) -> Frames:
        pixels: Frames = (render([scene], settings.frames, size)[0] * 255).byte().permute(0, 2, 3, 1).numpy()
        return pixels

    def decoded(index: int, scene: Scene) -> Frames:
        latents = pipeline.vae.encode(torch.from_numpy(truth(index, scene))[None])
        pixels: Frames = pipeline.vae.decode(latents)[0].cpu().numpy()
        return pixels

    return {
        "renders": judged(pipeline, scenes, truth, "renders"),
        "renders_after_vae": judged(pipeline, scenes, decoded, "after VAE"),
    }


def _generate(
    pipeline: Pipeline, policy: str, frames: int, videos: list[Frames], index: int, scene: Scene
) -> Frames:
    """One video; the scene's number is its seed, so that every policy gets the same noise."""
    videos.append(pipeline.generate(scene.prompt, frames=frames, seed=index, policy=policy).frames)
    return videos[-1]


def run(settings: Settings) -> None:
    """Generate, judge, write."""
    settings.output.parent.mkdir(parents=True, exist_ok=True)  # now, not after an hour of work
    pipeline = load(settings.model, device=settings.device, fp8=settings.fp8)
    single = benchmark_scenes(min(settings.limit, MAX_SCENES))
    results: dict[str, object] = {
        "model": settings.model,
        "pixel_frames": settings.frames,
        "fp8": settings.fp8,
    }
    if settings.ceiling:
        results["ceiling"] = ceiling(pipeline, single, settings)
    for policy in settings.policies:
        videos: list[Frames] = []
        make = partial(_generate, pipeline, policy, settings.frames, videos)
        part = {"one_object": judged(pipeline, single, make, policy)}
        picture = settings.output.with_name(f"{settings.output.stem}-{policy}.png")
        save_contact_sheet(picture, videos[:32], labels=[scene.prompt for scene in single[:32]])
        if settings.pairs:
            part["two_objects"] = judged(pipeline, two_object_scenes(), make, f"{policy}, pairs")
        results[policy] = part
    write_results(settings.output, results, pipeline.device)


if __name__ == "__main__":
    run(tyro.cli(Settings, description=__doc__))
