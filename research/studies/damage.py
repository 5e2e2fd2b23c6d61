"""What each head's past is worth, a job for each video, as records that a journal keeps.

jobs = damage_jobs(prompts, policy)
damage = read_damage(records)        # of all jobs: `damage.plan(policy)`
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from dummyforcing.analysis.head_damage import HeadDamage, MeasuredVideo, Settings, measure_damage
from dummyforcing.files.records import build, to_json
from dummyforcing.method.policy import Policy
from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from research.studies.jobs import Job, Record


def damage_jobs(
    prompts: Sequence[str],
    policy: Policy,
    chunks: Sequence[int] | None = None,
    folder: Path | None = None,
) -> list[Job]:
    """Measure on a video of each prompt, prompt n with seed n.

    Args:
        prompts: What the videos show.
        policy: Says how heads are scored.
        chunks: The chunks to measure; None: as `heads calibrate` does.
        folder: Where a video that was interrupted goes on from; None: it begins again.
    """
    jobs = []
    for seed, prompt in enumerate(prompts):
        kept = folder / f"damage-{seed}" if folder else None
        work = partial(measure, prompt, seed, policy, chunks, kept)
        jobs.append(Job(f"damage, chunks {chunks or 'of calibrate'}, seed {seed}: {prompt}", work))
    return jobs


def measure(
    prompt: str,
    seed: int,
    policy: Policy,
    chunks: Sequence[int] | None,
    kept: Path | None,
    pipeline: DummyForcingPipeline,
) -> Record:
    """The measurement of one video, ready for JSON."""
    measured = measure_damage(pipeline, [prompt], policy, chunks=chunks, seeds=[seed], kept=kept)
    return {
        "settings": json.loads(to_json(asdict(measured.settings))),  # lists, as a journal gives them back
        "prompt": prompt,
        "seed": seed,
        "damage": measured.damage.tolist(),
        "scores": measured.scores.tolist(),
    }


def read_damage(records: Sequence[Record]) -> HeadDamage:
    """The measurement of all videos, each of which counts with the mean over its calls."""
    videos = [
        MeasuredVideo(
            record["prompt"],
            record["seed"],
            (torch.tensor(record["damage"], dtype=torch.float64),),
            torch.tensor(record["scores"]),
        )
        for record in records
    ]
    return HeadDamage(build(Settings, records[0]["settings"], "the measurement of heads"), tuple(videos))
