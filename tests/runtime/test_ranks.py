"""Several ranks make the video that one makes: processes on this CPU, through Gloo."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from dummyforcing.cache.kv_cache import CacheState
from dummyforcing.method.plan import HeadContext
from dummyforcing.method.policy import parse_policy
from dummyforcing.runtime.fused import FusedWan
from dummyforcing.runtime.ranks import Ranks
from dummyforcing.sampling.guard import Guard
from dummyforcing.sampling.sampler import Sampler
from dummyforcing.sampling.samplers import SAMPLERS
from tests.oracles import SCHEDULE, SHAPE, random_plan, small_model, small_prompt

HEADS = 5
"""Neither two nor three ranks divide them, so that some are cut on the fused path."""
CONTEXTS = [HeadContext(0, 1), HeadContext(1, 0), HeadContext(0, 3), HeadContext(1, 6)]

Case = dict[str, Any]
CASES: dict[str, Case] = {
    **{policy: {"policy": policy} for policy in ("dense", "window:1,2", "dummy", "anchored", "official")},
    "a batch with plans of its own": {"batch": 2},
    "a dense batch": {"policy": "dense", "batch": 2},
    "a given plan": {"plan": 3},
    "another given plan": {"plan": 4, "batch": 2},
    "prompt change": {"change": 3, "recache_frames": 6},
    "prompt change, new first frames": {
        "policy": "window:3,3", "change": 3, "recache_frames": 6, "global_sink": False,
    },
    "local attention": {"policy": "window:1,6", "local_attention_size": 12},
    "TeaCache": {"policy": "dense", "skips": (False, True, False, True, False)},
    "rolling": {"loop": "rolling", "policy": "window:3,3", "local_attention_size": 24},
    "rolling, dense": {"loop": "rolling", "policy": "dense"},
    "recompute": {"loop": "recompute", "context_frames": 3},
    "classified again": {"guard": True},
    "plan change": {"plan": 5, "other": 6},
    "plan change in a batch": {"plan": 6, "other": 7, "batch": 2},
    "fork": {"fork": 3},
    "saved and loaded": {"save": 3},
    "key frames": {"policy": "keyframes:1,2,2", "batch": 2},
    "key frames, prompt change": {"policy": "keyframes:1,2,2", "change": 4, "recache_frames": 3},
    "key frames, saved and loaded": {"policy": "keyframes:1,2,2", "batch": 2, "save": 4},
    "saved and loaded, a batch": {"save": 3, "batch": 2, "policy": "anchored"},
}  # fmt: skip


def rollout(
    ranks: Ranks | None,
    fused: bool,
    *,
    loop: str = "block",
    policy: str = "dummy",
    batch: int = 1,
    plan: int | None = None,
    other: int | None = None,
    change: int | None = None,
    fork: int | None = None,
    save: int | None = None,
    guard: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """All latents of a rollout, its plans and the bytes of its cache.

    Chunk `change` has another prompt, from chunk 3 on there is plan `other`, chunks from `fork` on are made
    by two samplers in turns, and chunks from `save` on by one that loads the state of the first.
    """
    model = small_model(layers=3, heads=HEADS)
    if guard:
        options["guard"] = Guard(every=2, tolerance=0.0)
    if plan is not None:
        pinning = [context for context in CONTEXTS if context.sink] if other else CONTEXTS
        options["plan"] = random_plan(3, HEADS, plan, pinning)

    def start() -> Sampler:
        return SAMPLERS[loop](
            model,
            small_prompt(model, batch),
            parse_policy(policy),
            SCHEDULE,
            (batch, *SHAPE),
            seeds=range(batch),
            frames=18,
            fused=FusedWan(model) if fused else None,
            ranks=ranks,
            **options,
        )

    sampler = start()
    chunks, forked = [], []
    for number in range(6):
        if number == change:
            sampler.set_prompt(small_prompt(model, batch, seed=7))
        if number == 3 and other is not None:
            sampler.cache.apply([random_plan(3, HEADS, other, CONTEXTS)] * batch)
        if number == fork:
            twin = sampler.fork()
        if number == save:
            state = sampler.state()
            if ranks is not None:
                given = [state]
                dist.broadcast_object_list(given)
                state = given[0]
            sampler = start()
            sampler.load_state(state)
        chunks.append(sampler.next_chunk())
        if fork is not None and number >= fork:
            forked.append(twin.next_chunk())
    return {
        "latents": torch.cat(chunks, 1),
        "forked": torch.cat(forked, 1) if forked else None,
        "plans": [plan.roles for plan in sampler.plans],
        "state": sampler.state().passes.cache,
        "bytes": sampler.cache.nbytes,
    }


def run_cases(rank: int, size: int, folder: Path) -> None:
    """What one of the processes does: all cases, on the plain path and on the fused one."""
    torch.set_num_threads(1)
    ranks = None
    if size > 1:
        dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=size)
        ranks = Ranks()
    for name, case in CASES.items():
        for fused in (False, True):
            (folder / f"{name} {fused} {rank}").write_bytes(pickle.dumps(rollout(ranks, fused, **case)))
    if size > 1:
        dist.destroy_process_group()


Found = dict[tuple[str, bool], list[dict[str, Any]]]


def found_by(size: int, folder: Path) -> Found:
    """What each of so many ranks finds in all cases."""
    command = [sys.executable, "-m", "tests.runtime.test_ranks"]
    processes = [
        subprocess.Popen([*command, str(rank), str(size), str(folder)], cwd=Path(__file__).parents[2])
        for rank in range(size)
    ]
    try:
        assert [process.wait(timeout=240) for process in processes] == [0] * size
    finally:
        for process in processes:
            process.kill()
    return {
        (name, fused): [
            pickle.loads((folder / f"{name} {fused} {rank}").read_bytes()) for rank in range(size)
        ]
        for name in CASES
        for fused in (False, True)
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return found_by(1, tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    return found_by(request.param, tmp_path_factory.mktemp("ranks"))


def held(state: CacheState) -> dict[tuple[int, int, int, int], tuple[Tensor, Tensor]]:
    """Keys and values of every layer, sample, head and past frame."""
    found = {}
    for number, layer in enumerate(state.layers):
        for group in layer:
            for row, sample in enumerate(group.samples):
                for column, (head, slots) in enumerate(zip(group.heads, group.slots, strict=True)):
                    tokens = SHAPE[1] * SHAPE[2] // 4
                    for frame in slots.held(state.frames):
                        place = slice(slots.slot(frame) * tokens, (slots.slot(frame) + 1) * tokens)
                        pair = group.k[row, place, column], group.v[row, place, column]
                        found[number, sample, head, frame] = pair
    return found


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("name", CASES)
def test_ranks_make_the_video_of_one(alone: Found, together: Found, name: str, fused: bool) -> None:
    expected, mine = alone[name, fused][0], together[name, fused]
    for one in mine:
        torch.testing.assert_close(one["latents"], expected["latents"], atol=2e-5, rtol=0)
        assert torch.equal(one["latents"], mine[0]["latents"])  # all go on from the same
        assert one["plans"] == expected["plans"]
        if one["forked"] is not None:
            assert torch.equal(one["forked"], one["latents"][:, -one["forked"].shape[1] :])
    theirs, ours = held(mine[0]["state"]), held(expected["state"])
    assert theirs.keys() == ours.keys()
    for place, pair in ours.items():
        for a, b in zip(theirs[place], pair, strict=True):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=0)
    # Heads are shared out: nobody keeps nearly all, and cut ones are kept twice at most.
    assert max(one["bytes"] for one in mine) < expected["bytes"]
    assert sum(one["bytes"] for one in mine) < 2 * expected["bytes"]


if __name__ == "__main__":
    run_cases(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
