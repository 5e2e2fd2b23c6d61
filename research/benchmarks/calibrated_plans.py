"""Plans by measured damage against plans by attention, on prompts that neither has seen.

python -m research.benchmarks.calibrated_plans --work runs/calibrated-plans.measured \
    --output benchmarks/results/calibrated-plans.json

Some chunks are made again after the same dense past, from the same noise, with a plan in place of the dense
cache. The error is the mean squared change of the finished latents over their variance. What is measured of
the heads goes on after an interruption.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dummyforcing.analysis.head_damage import HeadDamage, measure_damage
from dummyforcing.evaluation.bootstrap import bootstrap
from dummyforcing.evaluation.results import write_results
from dummyforcing.method.plan import Plan
from dummyforcing.method.policy import Policy
from dummyforcing.method.programming import make_plan
from dummyforcing.pipeline.pipeline import DummyForcingPipeline, load
from dummyforcing.pipeline.request import make_request
from dummyforcing.sampling.block import BlockSampler
from research.studies.study import past_frames

ROOT = Path(__file__).parents[2]
POLICIES = ("dummy", "anchored")
CHUNKS = (2, 4, 6)
"""Chunks that are made with plans; heads are classified in chunk 1."""
REFERENCE = "classified"
"""The plan that others are compared with: of each video's own attention, as a video finds it."""


def fixed_plans(damage: HeadDamage, policy: Policy, past: int) -> dict[str, Plan]:
    """Plans for all videos.

    Args:
        damage: Measured on training prompts.
        policy: With roles.
        past: Past frames, for the cost.

    Returns:
        `one for all`: by mean attention; `calibrated`: by damage, as many dummy heads;
        `calibrated, equal cost`: with as many more as it takes to cost no more than `one for all`.
    """
    by_attention = make_plan(policy, damage.scores, damage.settings.chunks[0], damage.settings.fingerprint)
    total = sum(by_attention.counts.values())
    candidates = (
        damage.plan(replace(policy, num_dummy=count)) for count in range(by_attention.num_dummy, total + 1)
    )
    cost = past_frames(by_attention, past)
    equal = next(plan for plan in candidates if past_frames(plan, past) <= cost)
    return {"one for all": by_attention, "calibrated": damage.plan(policy), "calibrated, equal cost": equal}


@torch.inference_mode()
def chunk_errors(sampler: BlockSampler, plans: Mapping[str, Plan]) -> dict[str, float]:
    """Make the next chunk, and tell how far off it would be with each plan."""
    made = {}
    for name, plan in plans.items():
        fork = sampler.fork()
        fork.cache.apply([plan])
        made[name] = fork.next_chunk().double()
    x0 = sampler.next_chunk().double()
    variance = x0.var(correction=0)
    return {name: float((latents - x0).square().mean() / variance) for name, latents in made.items()}


def judge(
    pipeline: DummyForcingPipeline, prompt: str, seed: int, fixed: Mapping[str, Mapping[str, Plan]]
) -> list[dict[str, Any]]:
    """The errors of all plans in one video.

    Args:
        pipeline: The model.
        prompt: Of the video.
        seed: Of its noise.
        fixed: Policy -> the plans for all videos.

    Returns:
        A row for each policy and plan: the mean error over the chunks, and the past frames that a head sees
        in the last of them, mean over heads.
    """
    size = pipeline.files.preset.chunk_frames
    frames = pipeline.files.preset.pixel_frames((CHUNKS[-1] + 1) * size)
    plans: dict[tuple[str, str], Plan] = {}
    for policy, table in fixed.items():
        request = make_request(pipeline.files, prompt, num_frames=frames, seed=seed, policy=policy)
        plans[policy, REFERENCE] = pipeline.find_plan(request)
        plans |= {(policy, name): plan for name, plan in table.items()}
    sampler = pipeline.rollout(
        make_request(pipeline.files, prompt, num_frames=frames, seed=seed, policy="dense")
    ).sampler
    assert isinstance(sampler, BlockSampler)
    names = {f"{policy}, {name}": plan for (policy, name), plan in plans.items()}
    errors: dict[str, list[float]] = {name: [] for name in names}
    for chunk in range(CHUNKS[-1] + 1):
        if chunk not in CHUNKS:
            sampler.next_chunk()
            continue
        for name, error in chunk_errors(sampler, names).items():
            errors[name].append(error)
    return [
        {
            "prompt": prompt,
            "policy": policy,
            "plan": name,
            "error": sum(errors[f"{policy}, {name}"]) / len(CHUNKS),
            "past_frames": past_frames(plan, CHUNKS[-1] * size),
            "dummies": plan.num_dummy,
        }
        for (policy, name), plan in plans.items()
    ]


def summarise(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over prompts, each with how many times the error of `REFERENCE` it is (geometric mean)."""
    found = []
    for policy, plan in dict.fromkeys((row["policy"], row["plan"]) for row in rows):
        mine, theirs = (
            [row for row in rows if (row["policy"], row["plan"]) == (policy, name)]
            for name in (plan, REFERENCE)
        )
        own, other = (np.array([row["error"] for row in part]) for part in (mine, theirs))
        factor = bootstrap(np.log(own / other))
        found.append(
            {
                "policy": policy,
                "plan": plan,
                "past_frames": sum(row["past_frames"] for row in mine) / len(mine),
                "dummies": mine[0]["dummies"],
                "error": bootstrap(own).as_json(),
                "factor": {
                    "mean": math.exp(factor.value),
                    "interval": [math.exp(factor.low), math.exp(factor.high)],
                    "n": factor.count,
                },
            }
        )
    return found


def main() -> None:
    """Measure on training prompts, judge on held-out ones."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny", help="name or folder of a model of the rendered world")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--calibrated-on", type=int, default=8, help="training prompts")
    parser.add_argument("--prompts", type=int, default=16, help="held-out prompts")
    parser.add_argument("--work", type=Path, required=True, help="file of what was measured so far")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    pipeline = load(args.model, device=args.device, torch_dtype="float32")
    training = (ROOT / "research/training/plan_prompts.txt").read_text(encoding="utf-8").splitlines()
    held_out = (ROOT / "benchmarks/held-out.txt").read_text(encoding="utf-8").splitlines()
    policies = {name: make_request(pipeline.files, "any", policy=name).policy for name in POLICIES}
    calls = len(pipeline.files.preset.schedule.steps) * args.calibrated_on
    with tqdm(desc="measuring", total=calls, bar_format="{l_bar}{bar}| {elapsed}<{remaining}") as bar:
        damage = measure_damage(
            pipeline, training[: args.calibrated_on], policies["dummy"], kept=args.work, on_head=bar.update
        )
    past = CHUNKS[-1] * pipeline.files.preset.chunk_frames
    fixed = {name: fixed_plans(damage, policy, past) for name, policy in policies.items()}
    every = max(1, len(held_out) // args.prompts)
    chosen = held_out[::every][: args.prompts]
    rows = [
        row
        for seed, prompt in enumerate(tqdm(chosen, "judging"))
        for row in judge(pipeline, prompt, seed, fixed)
    ]
    about = {
        "model": args.model,
        "calibrated_on": len(damage.videos),
        "prompts": len(chosen),
        "chunks": list(CHUNKS),
        "plans": summarise(rows),
    }
    write_results(args.output, about, pipeline.device)


if __name__ == "__main__":
    main()
