"""Free rollouts under many cache policies: the same prompts and noise, judged and compared with dense.

A variant is what `DummyForcingPipeline.generate` is told; the table `variants` holds all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.evaluation.fidelity import compare
from dummyforcing.evaluation.metrics import Frames
from dummyforcing.evaluation.suite import aggregate, differences
from dummyforcing.evaluation.world.measures import SceneMeasures, measure_scene
from dummyforcing.evaluation.world.scene import Scene
from dummyforcing.method.criteria import Role
from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.method.policy import Policy
from dummyforcing.pipeline.outputs import Video
from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from dummyforcing.pipeline.request import make_request
from dummyforcing.presets.preset import PIXEL_FRAMES_PER_FRAME, Preset
from research.studies.jobs import Job, Record

LONG_VARIANTS = ("dense", "window 3+6", "window 1+1", "dummy", "anchored", "mass plan", "measured plan")
REFERENCES = ("dense", "dummy", "mass plan")
"""What all variants are compared with."""


@dataclass(frozen=True)
class Variant:
    """One way to generate."""

    what: str
    """In a few words, for tables."""
    options: Mapping[str, Any]
    """What `generate` is told besides the prompts, the length and the seed."""


@dataclass(frozen=True)
class Run:
    """Videos of one length, with some variants."""

    name: str
    frames: int
    """Pixel frames."""
    scenes: tuple[Scene, ...]
    repeats: int
    """Videos per scene and variant, each from its own noise."""
    variants: tuple[str, ...]
    plans: Mapping[str, Plan]
    """Of the variants that are one plan for all videos."""
    batch: int
    """Videos made together. They are what they would be alone, up to rounding."""


@dataclass(frozen=True, kw_only=True)
class Row(SceneMeasures):
    """All that is known of one video by itself."""

    semantic: float
    """Mean of the verdicts on color, shape, motion and count."""
    past_frames: float
    """Past frames that a head sees in the last chunk, mean over heads: the cost."""
    cache_bytes: float
    """Of the KV cache at the end; of the whole batch."""
    dummies: int
    """Heads with the role."""


@dataclass(frozen=True, kw_only=True)
class PairedRow(Row):
    """One video beside the dense one that the same noise made."""

    psnr: float | None
    """To the dense video, dB; None for the dense video itself."""
    ssim: float | None
    """To the dense video; None for the dense video itself."""


def variants(files: ModelFiles, plans: Mapping[str, Plan], seed: int = 0) -> dict[str, Variant]:
    """All variants by name.

    Args:
        files: Of the model, whose own settings `dummy` has.
        plans: From `removal.fixed_plans`.
        seed: Of the random heads.
    """
    base = make_request(files, "any", policy="dummy").policy
    assert base.roles is not None
    neighbor = base.roles[Role.NEIGHBOR]
    all_past = HeadContext(0, None)

    def contexts(dummy: HeadContext, sink: HeadContext, others: HeadContext) -> Policy:
        return replace(base, roles={Role.DUMMY: dummy, Role.SINK: sink, Role.NEIGHBOR: others})

    def chosen(**fields: Any) -> Mapping[str, Any]:
        return {"policy": replace(base, **fields)}

    nothing, last, first = HeadContext(0, 0), HeadContext(0, 1), HeadContext(1, 0)
    removed = contexts(nothing, all_past, all_past)
    packed = contexts(last, all_past, all_past)
    unpacked = contexts(nothing, first, neighbor)
    return {
        "dense": Variant("every head sees the whole past", {"policy": "dense"}),
        "window 3+6": Variant("every head: 3 first, 6 last frames", {"policy": "window:3,6"}),
        "window 1+1": Variant("every head: the first, the last frame", {"policy": "window:1,1"}),
        "window 0+2": Variant("every head: the last two frames", {"policy": "window:0,2"}),
        "dummy": Variant("Dummy Forcing with the model's settings", {"policy": "dummy"}),
        "anchored": Variant("every role also sees what it leaves out", {"policy": "anchored"}),
        "official": Variant("as the public code: commit scores, short start", {"policy": "official"}),
        "removal": Variant("dummy heads: no past; others: all", {"policy": removed}),
        "removal, packed": Variant("dummy heads: the last frame; others: all", {"policy": packed}),
        "roles, not packed": Variant("as dummy, but dummy heads see no past", {"policy": unpacked}),
        "neighbor 3": Variant("neighbor heads: 3 last frames", {"policy": "dummy:3"}),
        "neighbor 9": Variant("neighbor heads: 9 last frames", {"policy": "dummy:9"}),
        "25% dummy": Variant("a quarter of the heads", {"policy": "dummy", "dummy_fraction": 0.25}),
        "75% dummy": Variant("three quarters of the heads", {"policy": "dummy", "dummy_fraction": 0.75}),
        "chunk 2": Variant("classified at chunk 2", chosen(classify_at_chunk=2)),
        "chunk 3": Variant("classified at chunk 3", chosen(classify_at_chunk=3)),
        "commit scores": Variant("scored in the commit pass", chosen(score_pass="commit")),
        "current": Variant("criterion: most current mass", chosen(criterion="current")),
        "current and last": Variant(
            "criterion: most mass on current and last frame", chosen(criterion="current", last_frames=1)
        ),
        "current > 80%": Variant("criterion: current mass above 0.8", chosen(criterion="threshold")),
        "random heads": Variant("control: as many heads, drawn", chosen(criterion="random", seed=seed)),
        "dearest heads": Variant("control: the heads that cost most", chosen(criterion="dearest")),
        **{
            name: Variant("one for all videos, from the first chunk on", {"plan": p})
            for name, p in plans.items()
        },
    }


def study_jobs(run: Run) -> list[Job]:
    """The work of a run, in batches of pairs. Pair n is scene n modulo their number, made from seed n."""
    total = len(run.scenes) * run.repeats
    found = []
    for start in range(0, total, run.batch):
        pairs = range(start, min(start + run.batch, total))
        name = f"{run.name}, {run.frames} frames, pairs {pairs.start}-{pairs[-1]}, {', '.join(run.variants)}"
        scenes = [run.scenes[pair % len(run.scenes)] for pair in pairs]
        found.append(Job(name, partial(make_rows, scenes, start, run)))
    return found


def make_rows(scenes: Sequence[Scene], seed: int, run: Run, pipeline: DummyForcingPipeline) -> Record:
    """Generate and measure a batch with each variant.

    Args:
        scenes: One per video.
        seed: Of the first video; the others follow.
        run: What the batch belongs to.
        pipeline: The model.

    Returns:
        `first`, the number of the first pair, and per variant one row per scene, as dicts.
    """
    prompts, preset = [scene.prompt for scene in scenes], pipeline.files.preset
    table = variants(pipeline.files, run.plans, seed)
    dense = pipeline.generate(prompts, num_frames=run.frames, seed=seed, policy="dense")
    rows = {}
    for name in run.variants:
        videos = dense
        if name != "dense":
            videos = pipeline.generate(prompts, num_frames=run.frames, seed=seed, **table[name].options)
        rows[name] = [
            asdict(compared(video, scene, None if video is reference else reference.frames, preset))
            for video, scene, reference in zip(videos, scenes, dense, strict=True)
        ]
    return {"first": seed, "rows": rows}


def compared(video: Video, scene: Scene, reference: Frames | None, preset: Preset) -> PairedRow:
    """Measure one video, and compare it with the dense one of the same pair."""
    # One pixel frame of each latent frame is enough, and four times as fast.
    each = slice(None, None, PIXEL_FRAMES_PER_FRAME)
    fidelity = None if reference is None else compare(video.frames[each], reference[each])
    return PairedRow(
        **asdict(make_row(video, scene, preset)),
        psnr=fidelity.psnr if fidelity else None,
        ssim=fidelity.ssim if fidelity else None,
    )


def make_row(video: Video, scene: Scene, preset: Preset) -> Row:
    """Measure one video."""
    found = asdict(measure_scene(video.frames, scene, preset.chunk_frames, preset.fps)) | {"reasons": ()}
    past = preset.latent_frames(len(video.frames)) - preset.chunk_frames
    return Row(
        **found,
        semantic=float(np.mean([found[name] for name in ("color", "shape", "motion", "count")])),
        past_frames=past_frames(video.plan, past),
        cache_bytes=float(video.cache_bytes),
        dummies=video.plan.counts.get(Role.DUMMY, 0),
    )


def past_frames(plan: Plan, past: int) -> float:
    """Past frames that a head sees when there are `past` of them, mean over heads."""
    seen = [past if c.total is None else min(past, c.total) for row in plan.contexts for c in row]
    return sum(seen) / len(seen)


def summarise_run(run: Run, results: Sequence[Record], files: ModelFiles) -> Record:
    """What a run found: per variant the means with intervals, and the paired differences to `REFERENCES`.

    Videos of one prompt are not independent: each prompt counts as one value.
    """
    results = sorted(results, key=lambda result: int(result["first"]))
    rows = {name: [PairedRow(**row) for r in results for row in r["rows"][name]] for name in run.variants}
    prompts = [run.scenes[pair % len(run.scenes)].prompt for pair in range(len(rows["dense"]))]
    table = variants(files, run.plans)
    return {
        "pixel_frames": run.frames,
        "prompts": len(run.scenes),
        "videos": len(prompts),
        "variants": {
            name: {
                "what": table[name].what,
                "measures": aggregate(own, groups=prompts),
                **{
                    f"against_{other}": differences(own, rows[other], groups=prompts)
                    for other in REFERENCES
                    if other != name and other in rows
                },
            }
            for name, own in rows.items()
        },
    }
