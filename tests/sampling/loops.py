"""Samplers of all loops with small models, each with rules like those of the public models that have it."""

import dataclasses
from collections import defaultdict

import torch
from torch import Tensor

from dummyforcing.method.policy import dense, dummy, window
from dummyforcing.sampling.passes import Passes
from dummyforcing.sampling.samplers import SAMPLERS
from dummyforcing.sampling.schedule import make_schedule
from tests.oracles import SHAPE, small_prompt

TWO, THREE = (make_schedule(steps, shift=5.0) for steps in ([1000, 500], [1000, 600, 300]))
NATIVE = {
    "block": (window(3, 3), {"local_attention_size": 9}),
    "rolling": (window(3, 12), {"local_attention_size": 15}),
    "recompute": (dense(), {"context_frames": 6}),
}


def start(loop, model, policy="native", seeds=(0,), prompt=None, schedule=THREE, **options):
    native, rules = NATIVE[loop]
    if policy == "native":
        policy = native
    elif policy == "dummy":
        policy = dataclasses.replace(dummy(), initial=native.initial, rows=None)
    batch = 1 if callable(seeds) else len(seeds)
    prompt = small_prompt(model, batch) if prompt is None else prompt
    shape = (batch, *SHAPE)
    return SAMPLERS[loop](model, prompt, policy, schedule, shape, seeds=seeds, **rules | options)


def video(*args, frames=24, **options):
    return torch.cat(list(start(*args, frames=frames, **options)), 1)


class NotingPasses(Passes):
    """Passes that note which latents become past, by the chunk that is being made."""

    committed: dict[int, list[Tensor]]

    def commit(self, x0, text, call, scorer=None, pinned=True):
        self.committed[call.chunk].append(x0)
        super().commit(x0, text, call, scorer, pinned)


def committed(sampler):
    """Notes from now on which latents a sampler makes past: those of every pass, by chunk."""
    passes = sampler.passes
    assert type(passes) is Passes
    passes.__class__ = NotingPasses
    assert isinstance(passes, NotingPasses)
    passes.committed = defaultdict(list)
    return passes.committed
