"""Samplers that are saved, restored and forked go on bit by bit as if nothing had happened."""

import os
import subprocess
import sys
import weakref
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dummyforcing.errors import BadRequest
from dummyforcing.files.state import read_state, write_state
from dummyforcing.method.policy import parse_policy
from dummyforcing.runtime.fused import FusedWan
from dummyforcing.sampling.block import BlockState
from dummyforcing.sampling.guard import Guard
from dummyforcing.sampling.noise import seeded_noise
from dummyforcing.sampling.rolling import RollingState
from dummyforcing.sampling.sampler import SamplerState
from dummyforcing.sampling.samplers import SAMPLERS
from dummyforcing.sampling.schedule import make_schedule
from tests.oracles import SCHEDULE, SHAPE, small_model, small_prompt

POLICIES = ["dense", "window:1,2", "dummy", "anchored", "official"]
CHUNKS = 6
STATES = {"block": BlockState, "rolling": RollingState, "recompute": SamplerState}

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "local_attention_size": {"local_attention_size": 9},
    "recache": {"recache_frames": 6},
    "no global sink": {"recache_frames": 6, "global_sink": False},
    "teacache": {"skips": (False, True, False, True, False)},
    "skipped first step": {"skips": (True, False, True, False, False)},
    "first schedule": {"first_schedule": make_schedule([1000, 500], shift=5.0)},
    "no end": {"frames": None},
    "guard": {"guard": Guard(every=1, tolerance=0)},
    "wide guard": {"guard": Guard(every=2, tolerance=1), "recache_frames": 3, "global_sink": False},
}


class Rollouts:
    """Samplers with the same arguments, begun or restored, and what they are to give."""

    def __init__(self, loop="block", policy="dummy", batch=1, fused=False, **options):
        self.model = small_model(layers=3, heads=4)
        self.loop, self.batch = loop, batch
        self.rules = (parse_policy(policy), SCHEDULE, (batch, *SHAPE))
        self.options = {"frames": 3 * CHUNKS, "fused": FusedWan(self.model) if fused else None} | options

    def begin(self, **options):
        text, seeds = small_prompt(self.model, self.batch), range(self.batch)
        return SAMPLERS[self.loop](self.model, text, *self.rules, **{"seeds": seeds} | self.options | options)

    def restore(self, state):
        """A sampler that knows nothing of the prompt and the noise but what the state tells."""
        config = self.model.config
        text = torch.zeros(self.batch, config.text_len, config.text_dim)
        seeds = range(100, 100 + self.batch)
        sampler = SAMPLERS[self.loop](self.model, text, *self.rules, seeds=seeds, **self.options)
        sampler.load_state(state)
        return sampler

    def save(self, sampler, path):
        write_state(path, "sampler", "1", sampler.state())

    def read(self, path):
        return self.restore(read_state(path, "sampler", "1", STATES[self.loop]))

    def advance(self, sampler, begin, end):
        """Chunks `begin` to `end`; before chunk 3 the prompt begins to fade into another one."""
        chunks = []
        for number in range(begin, end):
            if number == 3:
                sampler.set_prompt(small_prompt(self.model, self.batch, seed=7), chunks=3)
            chunks.append(sampler.next_chunk())
        return chunks

    def check(self, path):
        """Save before and after the classification and while the prompt fades; restore or fork, and go on."""
        whole = self.begin()
        expected = self.advance(whole, 0, CHUNKS)
        sampler = self.begin()
        for begin, number in pairwise((0, 1, 2, 4)):
            self.advance(sampler, begin, number)
            self.save(sampler, path)
            # What is restored from a file, from the state itself, or forked: the next save shows that none of
            # them changed anything of the sampler that goes on.
            for other in (self.read(path), self.restore(sampler.state()), sampler.fork()):
                assert equal(self.advance(other, number, CHUNKS), expected[number:]), number
                assert other.plans == whole.plans
                assert other.frames == whole.frames
                assert other.cache.nbytes == whole.cache.nbytes
        return whole


def equal(one, other):
    return len(one) == len(other) and all(torch.equal(*pair) for pair in zip(one, other, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy(policy, batch, fused, tmp_path):
    whole = Rollouts(policy=policy, batch=batch, fused=fused).check(tmp_path / "s")
    if policy == "dummy" and batch == 2:
        assert whole.plans[0].roles != whole.plans[1].roles, "the test needs samples with different plans"


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["window:1,2", "dummy"])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(name, policy, tmp_path):
    if policy == "window:1,2" and "guard" in name:
        pytest.skip("heads have no roles")
    Rollouts(policy=policy, **OPTIONS[name]).check(tmp_path / "s")


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_heads_that_are_classified_again(fused, tmp_path):
    """The last save is between the probe that leaves the tolerance and the chunk that follows from it."""
    whole = Rollouts(batch=2, fused=fused, **OPTIONS["guard"]).check(tmp_path / "s")
    assert [plan.chunk for plan in whole.plans] == [4, 4]


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("policy", ["window:2,6", "dummy"])
@pytest.mark.parametrize(
    ("loop", "options"), [("rolling", {"local_attention_size": 14}), ("recompute", {"context_frames": 4})]
)
def test_every_loop(loop, options, policy, fused, tmp_path):
    Rollouts(loop, policy, 2, fused, **options).check(tmp_path / "s")


def test_half_precision(tmp_path):
    rollouts = Rollouts(batch=2)
    rollouts.model.to(torch.bfloat16)
    rollouts.check(tmp_path / "s")


def test_float8(tmp_path):
    rollouts = Rollouts(batch=2)
    rollouts.options["fused"] = FusedWan(rollouts.model, "all")
    rollouts.check(tmp_path / "s")


def test_a_plan_given_at_the_start_stays(tmp_path):
    found = Rollouts()
    sampler = found.begin()
    found.advance(sampler, 0, 2)
    rollouts = Rollouts(plan=sampler.plan)
    first = rollouts.begin()
    rollouts.save(first, tmp_path / "s")
    del rollouts.options["plan"]
    restored = rollouts.read(tmp_path / "s")
    assert restored.plans == (sampler.plan,)
    assert equal(list(restored), list(first))


def test_given_frames_count(tmp_path):
    rollouts = Rollouts()
    given = torch.randn(1, 6, *SHAPE, generator=torch.Generator().manual_seed(1))
    sampler, whole = rollouts.begin(), rollouts.begin()
    for s in (sampler, whole):
        s.extend(given)
    rollouts.save(sampler, tmp_path / "s")
    assert equal(list(rollouts.read(tmp_path / "s")), list(whole))


def test_forks_part_and_do_not_affect_each_other():
    rollouts = Rollouts(batch=2)
    expected = rollouts.advance(rollouts.begin(), 0, CHUNKS)
    sampler = rollouts.begin()
    rollouts.advance(sampler, 0, 4)
    same, changed = sampler.fork(), sampler.fork()
    changed.set_prompt(small_prompt(rollouts.model, 2, seed=9))
    chunks = [[s.next_chunk() for s in (changed, same, sampler)] for _ in range(CHUNKS - 4)]
    others, twins, own = zip(*chunks, strict=True)
    assert equal(list(twins), expected[4:])
    assert equal(list(own), expected[4:])
    assert (others[0] - own[0]).abs().max() > 1e-3
    again = rollouts.begin()
    rollouts.advance(again, 0, 4)
    again.set_prompt(small_prompt(rollouts.model, 2, seed=9))
    assert equal([again.next_chunk() for _ in range(CHUNKS - 4)], list(others))


def test_a_fork_does_not_need_the_original():
    rollouts = Rollouts()
    expected = rollouts.advance(rollouts.begin(), 0, CHUNKS)
    sampler = rollouts.begin()
    rollouts.advance(sampler, 0, 4)
    fork = sampler.fork().fork()
    forgotten = weakref.ref(sampler.cache)
    del sampler
    assert forgotten() is None
    assert equal(rollouts.advance(fork, 4, CHUNKS), expected[4:])


CHILD = """
import sys, torch
from pathlib import Path
from safetensors.torch import save_file
from tests.sampling.test_state import Rollouts
rollouts = Rollouts(batch=2)
sampler = rollouts.read(Path(sys.argv[1]))
save_file({"rest": torch.cat(rollouts.advance(sampler, 4, 6), 1)}, sys.argv[2])
"""


def test_another_process_goes_on(tmp_path):
    rollouts = Rollouts(batch=2)
    sampler = rollouts.begin()
    rollouts.advance(sampler, 0, 4)
    rollouts.save(sampler, tmp_path / "s")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    command = [sys.executable, "-c", CHILD, tmp_path / "s", tmp_path / "rest"]
    subprocess.run(command, check=True, env=environment)
    (rest,) = load_file(tmp_path / "rest").values()
    assert torch.equal(rest, torch.cat(rollouts.advance(sampler, 4, CHUNKS), 1))


def test_the_file_is_as_small_as_the_cache(tmp_path):
    """What is not written yet is not in the file, and what the sampler carries beside the cache is little."""
    rollouts = Rollouts(policy="dense", frames=300)
    sampler = rollouts.begin()
    rollouts.advance(sampler, 0, 2)
    rollouts.save(sampler, tmp_path / "s")
    assert (tmp_path / "s").stat().st_size < 6 / 300 * sampler.cache.nbytes + 40_000


def test_noise_of_unknown_state():
    class Count:
        drawn = 0

        def __call__(self, shape):
            self.drawn += 1
            return torch.randn(shape, generator=torch.Generator().manual_seed(self.drawn))

    sampler = Rollouts().begin(seeds=Count(), frames=None)
    sampler.next_chunk()
    fork = sampler.fork()
    expected = [sampler.next_chunk() for _ in range(2)]
    assert equal([fork.next_chunk() for _ in range(2)], expected)
    with pytest.raises(BadRequest, match="give it seeds"):
        sampler.state()


def test_a_fork_needs_decoded_frames_of_its_own():
    asked = []

    def latents_of(name):
        def first_latent():
            asked.append(name)
            return torch.full((1, 1, *SHAPE), 0.5)

        return first_latent

    rollouts = Rollouts("recompute", context_frames=4, first_latent=latents_of("origin"))
    sampler = rollouts.begin()
    rollouts.advance(sampler, 0, 3)
    with pytest.raises(ValueError, match="a fork needs a first_latent of its own"):
        sampler.fork()
    fork, restored = sampler.fork(latents_of("fork")), rollouts.restore(sampler.state())
    expected = rollouts.advance(sampler, 3, CHUNKS)
    assert asked == ["origin"] * 3
    assert equal(rollouts.advance(fork, 3, CHUNKS), expected)
    assert asked[3:] == ["fork"] * 3
    assert equal(rollouts.advance(restored, 3, CHUNKS), expected)
    with pytest.raises(ValueError, match="if, and only if, this sampler has one"):
        Rollouts("recompute", context_frames=4).begin().fork(latents_of("nobody"))


def test_a_fork_can_leave_out_other_steps():
    rollouts, skips = Rollouts(), (False, True, False, True, False)
    skipping = Rollouts(skips=skips)
    sampler = rollouts.begin()
    first = rollouts.advance(sampler, 0, 1)
    fork, plain = sampler.fork(skips), sampler.fork(())
    assert equal(first + rollouts.advance(plain, 1, CHUNKS), rollouts.advance(rollouts.begin(), 0, CHUNKS))
    restored = skipping.restore(sampler.state())
    assert equal(rollouts.advance(fork, 1, CHUNKS), rollouts.advance(restored, 1, CHUNKS))
    with pytest.raises(ValueError, match="5 calls"):
        sampler.fork([False] * 4)


def test_noise_goes_on_from_its_state():
    source = seeded_noise([3, 4])
    source((2, 5))  # an odd number: a generator keeps half a pair
    other = type(source).from_state(source.state())
    assert torch.equal(source((2, 7)), other((2, 7)))
