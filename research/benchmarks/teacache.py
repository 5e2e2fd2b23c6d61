"""What TeaCache saves and costs, by itself and with Dummy Forcing, on a model of the rendered world.

OMP_NUM_THREADS=1 python -m research.benchmarks.teacache --output benchmarks/results/tiny-teacache.json

Every held-out prompt is generated in all variants in turn, from the same noise, so that they meet the same
machine. Times are those of diffusion, without the VAE. Ctrl-C ends it early, with the prompts that are done.
"""

import argparse
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dummyforcing.runtime.threads import spin_briefly

spin_briefly()  # before torch is imported

from tqdm import tqdm

from dummyforcing.evaluation.bootstrap import bootstrap
from dummyforcing.evaluation.fidelity import Fidelity, compare
from dummyforcing.evaluation.results import write_results
from dummyforcing.evaluation.suite import aggregate, differences
from dummyforcing.evaluation.world.measures import SceneMeasures, measure_scene
from dummyforcing.evaluation.world.scene import Scene
from dummyforcing.pipeline.outputs import Video
from dummyforcing.pipeline.pipeline import DummyForcingPipeline, load
from dummyforcing.pipeline.request import make_request
from research.studies.benchmark import verdicts
from research.world.prompts import benchmark_scenes

WARM_UP_FRAMES = 33


@dataclass
class Variant:
    """A way to make the videos, and what was found of it."""

    policy: str
    teacache: str | None
    rows: list[SceneMeasures] = field(default_factory=list)
    fidelity: list[Fidelity] = field(default_factory=list)
    """To the same policy without TeaCache."""
    seconds: list[float] = field(default_factory=list)
    """Of diffusion, per video."""

    def make(self, pipeline: DummyForcingPipeline, scene: Scene, seed: int, frames: int) -> Video:
        """Make a video."""
        return pipeline.generate(
            scene.prompt, seed=seed, num_frames=frames, policy=self.policy, teacache=self.teacache
        )

    def describe(
        self,
        pipeline: DummyForcingPipeline,
        scenes: list[Scene],
        dense: "Variant",
        plain: "Variant",
        frames: int,
    ) -> dict[str, object]:
        """All that was found, ready for JSON.

        Args:
            pipeline: The model.
            scenes: What the videos show.
            dense: The variant that speed-ups are over.
            plain: The same policy without TeaCache.
            frames: Pixel frames per video.
        """
        request = make_request(
            pipeline.files, "a", num_frames=frames, policy=self.policy, teacache=self.teacache
        )
        ratios = [theirs / mine for mine, theirs in zip(self.seconds, dense.seconds, strict=True)]
        return {
            "policy": self.policy,
            "teacache": self.teacache,
            "skipped_steps": pipeline.skipped_steps(request),
            "fps_without_vae": round(len(self.seconds) * frames / sum(self.seconds), 2),
            "speed_up": bootstrap(ratios).as_json(),
            "one_object": verdicts(scenes, self.rows),
            **(
                {"differences": differences(self.rows, plain.rows), "fidelity": aggregate(self.fidelity)}
                if self.fidelity
                else {}
            ),
        }


def main() -> None:
    """Make all videos, judge them and write what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--model", default="tiny", help="name or folder of a model of the rendered world")
    parser.add_argument(
        "--policies", nargs="+", default=["dense", "dummy"], help="the first one is compared with"
    )
    parser.add_argument(
        "--teacache", nargs="+", default=["0.2", "shipped"], help="thresholds and tables, as for generate"
    )
    parser.add_argument("--frames", type=int, default=81, help="pixel frames per video")
    parser.add_argument("--limit", type=int, default=64, help="how many held-out prompts")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    args = parser.parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    pipeline = load(args.model, device=args.device)
    scenes = benchmark_scenes(args.limit)
    variants = [Variant(policy, how) for policy in args.policies for how in (None, *args.teacache)]
    if pipeline.device.type == "cuda":  # kernels are compiled
        for variant in variants:
            variant.make(pipeline, scenes[0], 0, min(args.frames, WARM_UP_FRAMES))
    with suppress(KeyboardInterrupt):
        for seed, scene in enumerate(tqdm(scenes)):
            for variant in variants:
                video = variant.make(pipeline, scene, seed, args.frames)
                if variant.teacache is None:
                    plain = video
                else:
                    variant.fidelity.append(compare(video.frames, plain.frames))
                preset = pipeline.files.preset
                variant.rows.append(measure_scene(video.frames, scene, preset.chunk_frames, preset.fps))
                variant.seconds.append(video.timings.diffusion)
    done = len(variants[-1].seconds)
    scenes = scenes[:done]
    for variant in variants:
        for found in (variant.rows, variant.fidelity, variant.seconds):
            del found[done:]
    without = {variant.policy: variant for variant in variants if variant.teacache is None}
    results: dict[str, object] = {
        "model": args.model,
        "pixel_frames": args.frames,
        "prompts": len(scenes),
        "variants": [
            variant.describe(pipeline, scenes, variants[0], without[variant.policy], args.frames)
            for variant in variants
        ],
    }
    write_results(args.output, results, pipeline.device)


if __name__ == "__main__":
    main()
