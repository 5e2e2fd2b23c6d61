"""What it costs to take the past away from some heads, measured on the dense path's own inputs and history.

Free rollouts diverge chaotically, so their errors say little. Here a dense rollout runs undisturbed; each of
its denoising calls is asked again, with the same noisy latents and the same history, but with less of the
past for some heads. The damage is the mean squared change of x0, relative to the variance of x0.

Heads one at a time are measured by `analysis/head_damage.py`; here it is sets of heads, which need a mask.
"""

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dummyforcing.analysis.head_damage import HeadDamage
from dummyforcing.evaluation.bootstrap import bootstrap
from dummyforcing.method.criteria import CURRENT_THRESHOLD, choose_dummies
from dummyforcing.method.plan import Plan
from dummyforcing.method.policy import Policy
from dummyforcing.method.programming import make_plan
from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from research.studies.dense_path import SCORED_CHUNK, DenseCall, DensePath, open_path
from research.studies.jobs import Record

PERCENTS = tuple(range(10, 101, 10))
"""Shares of all heads that lose their past, in percent."""
KEPT = {"none": 0, "last": 1}
"""What the heads keep: nothing, or the last frame (the packed one)."""
RANDOM_DRAWS = 3


def damages(path: DensePath, call: DenseCall, removed: Sequence[Sequence[int]], kept: int) -> Tensor:
    """What each of several removals does to the answer of one call.

    Args:
        path: The path of the call.
        call: The call.
        removed: The heads that lose their past, counted through all layers; one entry per removal.
        kept: How many last frames these heads keep.

    Returns:
        Mean squared change of x0 over the variance of x0, one per removal, float64, on the CPU.
    """
    config, past = path.model.config, call.chunk * path.chunk_frames
    seen = torch.ones(len(removed), config.num_layers * config.num_heads, past, dtype=torch.bool)
    for row, heads in zip(seen, removed, strict=True):
        row[list(heads), : past - kept] = False
    seen = seen.view(-1, config.num_layers, config.num_heads, past).to(path.device)
    together = 64 if path.device.type == "cuda" else 8
    errors = [
        (path.again(call, part) - call.x0).double().square().flatten(1).mean(1)
        for part in torch.split(seen, together)
    ]
    return (torch.cat(errors) / call.x0.double().var(correction=0)).cpu()


def _alone(path: DensePath, calls: Sequence[DenseCall]) -> Tensor:
    """Sets of one head each, on a path that was run anyway: what `head_damage` gives of the same video."""
    config = path.model.config
    every = [[head] for head in range(config.num_layers * config.num_heads)]
    return torch.stack([damages(path, call, every, 0) for call in calls]).mean(0)


def fixed_plans(damage: HeadDamage, policy: Policy) -> dict[str, Plan]:
    """Two plans for all videos, from the means over some videos.

    Args:
        damage: Of each head's removal alone, on these videos.
        policy: Tells the number of dummy heads, the contexts, and how the other heads are sorted.

    Returns:
        `mass plan`, by the policy; in `measured plan` the dummy heads are those that alone cost least.
    """
    by_mass = make_plan(policy, damage.scores, damage.settings.chunks[0], damage.settings.fingerprint)
    return {"mass plan": by_mass, "measured plan": damage.plan(policy)}


def measured_ranking(damage: HeadDamage) -> list[int]:
    """All heads, those that alone cost least first."""
    return [int(head) for head in damage.damage.flatten().argsort(stable=True)]


def orders(scores: dict[str, Tensor], alone: Tensor, elsewhere: list[int], seed: int) -> dict[str, list[int]]:
    """All heads in the order in which they lose their past, by criterion and by the passes scored.

    Args:
        scores: From `DensePath.scores`.
        alone: What each head's removal alone did while the heads were scored, `(heads,)`: it takes a call per
            head, but tells how much attention mass leaves unsaid.
        elsewhere: From `measured_ranking`, of other videos.
        seed: Of the random draws.
    """
    count = scores["denoise"][..., 0].numel()
    by_pass = {name: choose_dummies(mass, count) for name, mass in scores.items() if "last" not in name}
    draws = {
        f"random {i}": choose_dummies(scores["denoise"], count, "random", RANDOM_DRAWS * seed + i)
        for i in range(RANDOM_DRAWS)
    }
    return {
        **{f"dhp, {name}": order for name, order in by_pass.items()},
        "measured": alone.argsort(stable=True).tolist(),
        "measured elsewhere": elsewhere,
        "dearest": choose_dummies(scores["denoise"], count, "dearest"),
        "current": choose_dummies(scores["denoise"], count, "current"),
        "current, commit": choose_dummies(scores["commit"], count, "current"),
        "current and last": choose_dummies(scores["denoise, last frame as current"], count, "current"),
        **draws,
    }


def measure_removal(
    prompt: str,
    seed: int,
    chunks: Sequence[int],
    percents: Sequence[int],
    elsewhere: list[int],
    pipeline: DummyForcingPipeline,
) -> Record:
    """The damage when growing shares of the heads lose their past, mean over all calls of some chunks.

    Args:
        prompt: Of the video.
        seed: Of its noise.
        chunks: Chunks to measure, from 2 on: heads are scored in chunk 1.
        percents: Shares of all heads.
        elsewhere: From `measured_ranking`, of other videos.
        pipeline: The model.

    Returns:
        The prompt; for each order of heads and each of `KEPT` the damage at each of `percents`; the share of
        heads with more than `CURRENT_THRESHOLD` of their attention on the current chunk; and the cheapest
        quarter of the heads by the scores of each step.
    """
    path = open_path(pipeline, prompt, seed)
    calls = [call for call in path.calls(max(chunks) + 1) if call.chunk in {SCORED_CHUNK, *chunks}]
    ranking = _ranking(path, calls, elsewhere, seed)
    asked = [call for call in calls if call.chunk in chunks]
    removals = {
        (name, percent): tuple(sorted(order[: round(len(order) * percent / 100)]))
        for name, order in ranking.items()
        for percent in percents
    }
    distinct = list(dict.fromkeys(removals.values()))  # all heads are the same removal in any order
    damage: dict[str, dict[str, list[float]]] = {name: {} for name in ranking}
    for kept, frames in KEPT.items():
        means = torch.stack([damages(path, call, distinct, frames) for call in asked]).mean(0).tolist()
        of = dict(zip(distinct, means, strict=True))
        for name in ranking:
            damage[name][kept] = [float(f"{of[removals[name, percent]]:.6g}") for percent in percents]
    scores = path.scores()
    steps = [name for name in scores if name.startswith("step ")]
    return {
        "prompt": prompt,
        "percents": list(percents),
        "damage": damage,
        "above": float((scores["denoise"][..., 2] > CURRENT_THRESHOLD).double().mean()),
        "cheapest": {name: ranking[f"dhp, {name}"][: len(ranking["dearest"]) // 4] for name in steps},
    }


def _ranking(
    path: DensePath, calls: Sequence[DenseCall], elsewhere: list[int], seed: int
) -> dict[str, list[int]]:
    """The orders of a finished path, of whose calls those of the scored chunk are among `calls`."""
    alone = _alone(path, [call for call in calls if call.chunk == SCORED_CHUNK])
    return orders(path.scores(), alone, elsewhere, seed)


def summarise_removal(results: Sequence[Record]) -> Record:
    """Mean damages with intervals over prompts, and how many times that of `dhp, denoise` the others do.

    The factors are geometric means over prompts. The random draws count as one order, their mean.
    """

    def by_prompt(name: str, kept: str) -> NDArray[np.float64]:
        """`(prompts, percents)`: mean over random draws and over the videos of a prompt."""
        groups: dict[str, list[list[float]]] = {}
        for result in results:
            for order, damage in result["damage"].items():
                if order == name or (name == "random" and order.startswith("random ")):
                    groups.setdefault(result["prompt"], []).append(damage[kept])
        return np.array([np.mean(group, 0) for group in groups.values()])

    names = [name for name in results[0]["damage"] if not name.startswith("random")]
    table: Record = {}
    for name in [*names, "random"]:
        table[name] = {}
        for kept in KEPT:
            own, dhp = by_prompt(name, kept), by_prompt("dhp, denoise", kept)
            factors = [bootstrap(column) for column in np.log(own / dhp).T]
            table[name][kept] = {
                "damage": [bootstrap(column).as_json() for column in own.T],
                "factor": [
                    {"mean": math.exp(f.value), "interval": [math.exp(f.low), math.exp(f.high)], "n": f.count}
                    for f in factors
                ],
            }
    sets = [[set(heads) for heads in result["cheapest"].values()] for result in results]
    return {
        "percents": results[0]["percents"],
        "videos": len(results),
        "orders": table,
        "above": bootstrap([result["above"] for result in results]).as_json(),
        "core": {
            "all": _core([one for video in sets for one in video]),
            "steps of a video": float(np.mean([_core(video) for video in sets])),
            "videos at a step": float(np.mean([_core(step) for step in zip(*sets, strict=True)])),
        },
    }


def _core(sets: Sequence[set[int]]) -> float:
    """Share of the heads of a set that are in all sets, which are of one size."""
    return len(set.intersection(*sets)) / len(sets[0])


def search_subsets(
    prompt: str,
    seed: int,
    chunk: int,
    sets: int,
    size: int,
    elsewhere: list[int],
    pipeline: DummyForcingPipeline,
) -> Record:
    """Compare the choices of several criteria with the best and the worst of all choices.

    Each set is a random few of the model's heads, half of which are to lose their whole past. All subsets
    are measured, in all denoising steps of one chunk.

    Args:
        prompt: Of the video.
        seed: Of its noise, and of the sets.
        chunk: The chunk to measure, from 2 on.
        sets: How many sets of heads.
        size: Heads of a set; 10 have 252 subsets.
        elsewhere: From `measured_ranking`, of other videos.
        pipeline: The model.

    Returns:
        The prompt and, for each set, its heads, the least, mean and largest damage, and for each criterion
        the damage of its choice and the share of subsets that are better.
    """
    path = open_path(pipeline, prompt, seed)
    calls = list(path.calls(chunk + 1))
    asked = [call for call in calls if call.chunk == chunk]
    found_orders = _ranking(path, calls, elsewhere, seed)
    ranking = {name: order for name, order in found_orders.items() if "random" not in name}
    generator = torch.Generator().manual_seed(seed)
    total = len(ranking["dearest"])
    found = []
    for _ in range(sets):
        heads = sorted(torch.randperm(total, generator=generator)[:size].tolist())
        subsets = list(combinations(heads, size // 2))
        damage = torch.stack([damages(path, call, subsets, 0) for call in asked]).mean(0)
        choices = {}
        for name, order in ranking.items():
            choice = tuple(sorted(sorted(heads, key=order.index)[: size // 2]))
            own = damage[subsets.index(choice)]
            choices[name] = {"damage": own.item(), "better": (damage < own).double().mean().item()}
        found.append(
            {
                "heads": heads,
                "least": damage.min().item(),
                "mean": damage.mean().item(),
                "largest": damage.max().item(),
                "choices": choices,
            }
        )
    return {"prompt": prompt, "sets": found}


def summarise_search(results: Sequence[Record]) -> Record:
    """Per criterion, with intervals over prompts: better subsets, and how much of the possible is reached.

    `reached` is 1 where the choice is the best of all subsets and 0 where it is as good as the mean subset.
    """
    choices: dict[str, dict[str, list[Record]]] = {}
    for result in results:
        for found in result["sets"]:
            span = found["mean"] - found["least"]
            for name, choice in found["choices"].items():
                entry = {
                    "better": choice["better"],
                    "optimum": float(choice["better"] == 0),
                    "reached": (found["mean"] - choice["damage"]) / span,
                }
                choices.setdefault(name, {}).setdefault(result["prompt"], []).append(entry)
    return {
        "sets": sum(len(result["sets"]) for result in results),
        "heads": len(results[0]["sets"][0]["heads"]),
        "criteria": {
            name: {
                key: bootstrap(
                    [float(np.mean([e[key] for e in group])) for group in groups.values()]
                ).as_json()
                for key in ("better", "optimum", "reached")
            }
            for name, groups in choices.items()
        },
    }
