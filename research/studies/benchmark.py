"""Judge a model of the rendered world on the held-out prompts: exact detectors, and all measures of `suite`.

    python -m research.studies.benchmark --output benchmarks/results/tiny-quality.json

Every prompt is generated once with each policy, from the same noise. Ground-truth renders of the same scenes
are judged too, plain and after the model's VAE: the ceiling of what any model could reach.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from dummyforcing.runtime.threads import spin_briefly

spin_briefly()  # before torch is imported

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from tqdm import tqdm

from dummyforcing.evaluation.results import write_results
from dummyforcing.evaluation.suite import aggregate
from dummyforcing.evaluation.world.detect import Verdict
from dummyforcing.evaluation.world.measures import SceneMeasures, measure_scene
from dummyforcing.evaluation.world.scene import Scene
from dummyforcing.media.montage import save_contact_sheet
from dummyforcing.pipeline.outputs import Video
from dummyforcing.pipeline.pipeline import DummyForcingPipeline, load
from dummyforcing.runtime.fused import Fp8
from research.world.prompts import MAX_SCENES, benchmark_scenes, two_object_scenes
from research.world.render import render
from research.world.verdicts import listed

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
    limit: int = 96
    """How many of the held-out prompts to use."""
    pairs: bool = True
    """Also the 48 two-object prompts, reported apart."""
    ceiling: bool = True
    """Also ground truth, plain and after the VAE."""
    device: str = "auto"
    """auto, cpu or cuda."""
    fp8: Fp8 = "none"
    """What is computed in float8: none, linear or all; on a CPU it is emulated."""
    teacache: str | None = None
    """TeaCache as for `generate`: a threshold, a calibrated table, or shipped; by default all steps run."""
    skip_steps: tuple[int, ...] = ()
    """Denoising steps to leave out instead, from 0."""


def judged(
    pipeline: DummyForcingPipeline, scenes: list[Scene], make: Callable[[int, Scene], Frames], title: str
) -> dict[str, object]:
    """Make and judge one video per scene."""
    preset = pipeline.files.preset
    rows = [
        measure_scene(make(index, scene), scene, preset.chunk_frames, preset.fps)
        for index, scene in enumerate(tqdm(scenes, desc=title))
    ]
    return verdicts(scenes, rows)


def verdicts(scenes: list[Scene], rows: list[SceneMeasures]) -> dict[str, object]:
    """What was found of one video per scene: what is wrong with which, and all measures."""
    found = [Verdict(bool(row.color), bool(row.shape), bool(row.motion), row.reasons) for row in rows]
    return {**listed(scenes, found), "measures": aggregate(rows)}


def ceiling(pipeline: DummyForcingPipeline, scenes: list[Scene], settings: Settings) -> dict[str, object]:
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
    pipeline: DummyForcingPipeline,
    policy: str,
    settings: Settings,
    videos: list[Video],
    index: int,
    scene: Scene,
) -> Frames:
    """One video; the scene's number is its seed, so that every policy gets the same noise."""
    skips = settings.skip_steps or settings.teacache
    video = pipeline.generate(
        scene.prompt, num_frames=settings.frames, seed=index, policy=policy, teacache=skips
    )
    videos.append(video)
    return video.frames


def run(settings: Settings) -> None:
    """Generate, judge, write."""
    settings.output.parent.mkdir(parents=True, exist_ok=True)  # now, not after an hour of work
    pipeline = load(settings.model, device=settings.device, fp8=settings.fp8)
    single = benchmark_scenes(min(settings.limit, MAX_SCENES))
    results: dict[str, object] = {
        "model": settings.model,
        "pixel_frames": settings.frames,
        "fp8": settings.fp8,
        "teacache": settings.skip_steps or settings.teacache,
    }
    if settings.ceiling:
        results["ceiling"] = ceiling(pipeline, single, settings)
    for policy in settings.policies:
        videos: list[Video] = []
        make = partial(_generate, pipeline, policy, settings, videos)
        part: dict[str, object] = {"one_object": judged(pipeline, single, make, policy)}
        picture = settings.output.with_name(f"{settings.output.stem}-{policy}.png")
        save_contact_sheet(
            picture, [v.frames for v in videos[:32]], labels=[scene.prompt for scene in single[:32]]
        )
        seconds = sum(video.timings.diffusion for video in videos)
        part["fps_without_vae"] = round(len(videos) * settings.frames / seconds, 2)
        if settings.pairs:
            part["two_objects"] = judged(pipeline, two_object_scenes(), make, f"{policy}, pairs")
        results[policy] = part
    write_results(settings.output, results, pipeline.device)


if __name__ == "__main__":
    run(tyro.cli(Settings, description=__doc__))
