"""Sessions that are saved, restored and forked go on bit by bit as if nothing had happened."""

import os
import subprocess
import sys
import weakref
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dummyforcing.errors import UserError
from dummyforcing.method.policy import parse_policy
from dummyforcing.runtime.fused import FusedWan
from dummyforcing.sampling.guard import Guard
from dummyforcing.sampling.noise import seeded_noise
from dummyforcing.sampling.recompute import RecomputeSampler
from dummyforcing.sampling.samplers import SAMPLERS
from dummyforcing.sampling.schedule import make_schedule
from oracles import SCHEDULE, SHAPE, small_model, small_prompt

POLICIES = ["dense", "window:1,2", "dummy", "anchored", "official"]
CHUNKS = 6

OPTIONS = {
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
    """Sessions with the same arguments, begun or restored, and what they are to give."""

    def __init__(self, sampler="block", policy="dummy", batch=1, fused=False, **options):
        self.model = small_model(layers=3, heads=4)
        self.kind, self.batch = SAMPLERS[sampler], batch
        self.rules = (self.model, parse_policy(policy), SCHEDULE, (batch, *SHAPE))
        self.options = {"frames": 3 * CHUNKS, "fused": FusedWan(self.model) if fused else None} | options

    def begin(self, **options):
        model, *others = self.rules
        text = small_prompt(model, self.batch)
        return self.kind(model, text, *others, seeds=range(self.batch), **self.options | options)

    def restore(self, path, **options):
        return self.kind.restore(path, *self.rules, **self.options | options)

    def advance(self, session, begin, end):
        """Chunks `begin` to `end`; before chunk 3 the prompt begins to fade into another one."""
        chunks = []
        for number in range(begin, end):
            if number == 3:
                session.set_prompt(small_prompt(self.model, self.batch, seed=7), chunks=3)
            chunks.append(session.next_chunk())
        return chunks

    def check(self, path):
        """Save before and after the classification and while the prompt fades; restore or fork, and go on."""
        whole = self.begin()
        expected = self.advance(whole, 0, CHUNKS)
        session = self.begin()
        for begin, number in pairwise((0, 1, 2, 4)):
            self.advance(session, begin, number)
            session.save(path)
            for other in (
                self.restore(path),
                session.fork(),
            ):  # the next save shows that this changed nothing
                assert equal(self.advance(other, number, CHUNKS), expected[number:]), number
                assert other.plans == whole.plans
                assert other.frames == whole.frames
                assert other.cache.nbytes == whole.cache.nbytes
        return whole


def equal(one, other):
    return len(one) == len(other) and all(torch.equal(*pair) for pair in zip(one, other, strict=True))


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy(policy, batch, fused, tmp_path):
    whole = Rollouts(policy=policy, batch=batch, fused=fused).check(tmp_path / "s")
    if policy == "dummy" and batch == 2:
        assert whole.plans[0].roles != whole.plans[1].roles, "the test needs samples with different plans"


@pytest.mark.parametrize("policy", ["window:1,2", "dummy"])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(name, policy, tmp_path):
    if policy == "window:1,2" and "guard" in name:
        pytest.skip("heads have no roles")
    Rollouts(policy=policy, **OPTIONS[name]).check(tmp_path / "s")


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_heads_that_are_classified_anew(fused, tmp_path):
    """The last save is between the probe that leaves the tolerance and the chunk that follows from it."""
    whole = Rollouts(batch=2, fused=fused, **OPTIONS["guard"]).check(tmp_path / "s")
    assert [plan.chunk for plan in whole.plans] == [4, 4]


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("policy", ["window:2,6", "dummy"])
@pytest.mark.parametrize(
    ("sampler", "options"), [("rolling", {"local_attention_size": 14}), ("recompute", {"context_frames": 4})]
)
def test_every_sampler(sampler, options, policy, fused, tmp_path):
    Rollouts(sampler, policy, 2, fused, **options).check(tmp_path / "s")


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
    session = found.begin()
    found.advance(session, 0, 2)
    rollouts = Rollouts(plan=session.plan)
    first = rollouts.begin()
    first.save(tmp_path / "s")
    del rollouts.options["plan"]
    assert rollouts.restore(tmp_path / "s").plans == [session.plan]


def test_given_frames_count(tmp_path):
    rollouts = Rollouts()
    given = torch.randn(1, 6, *SHAPE, generator=torch.Generator().manual_seed(1))
    session, whole = rollouts.begin(), rollouts.begin()
    for s in (session, whole):
        s.extend(given)
    session.save(tmp_path / "s")
    assert equal(list(rollouts.restore(tmp_path / "s")), list(whole))


def test_forks_part_and_do_not_affect_each_other():
    rollouts = Rollouts(batch=2)
    expected = rollouts.advance(rollouts.begin(), 0, CHUNKS)
    session = rollouts.begin()
    rollouts.advance(session, 0, 4)
    same, changed = session.fork(), session.fork()
    changed.set_prompt(small_prompt(rollouts.model, 2, seed=9))
    chunks = [[s.next_chunk() for s in (changed, same, session)] for _ in range(CHUNKS - 4)]
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
    session = rollouts.begin()
    rollouts.advance(session, 0, 4)
    fork = session.fork().fork()
    forgotten = weakref.ref(session.cache)
    del session
    assert forgotten() is None
    assert equal(rollouts.advance(fork, 4, CHUNKS), expected[4:])


CHILD = """
import sys, torch
from safetensors.torch import save_file
from test_snapshot import Rollouts
rollouts = Rollouts(batch=2)
session = rollouts.restore(sys.argv[1])
save_file({"rest": torch.cat(rollouts.advance(session, 4, 6), 1)}, sys.argv[2])
"""


def test_another_process_goes_on(tmp_path):
    rollouts = Rollouts(batch=2)
    session = rollouts.begin()
    rollouts.advance(session, 0, 4)
    session.save(tmp_path / "s")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    command = [sys.executable, "-c", CHILD, tmp_path / "s", tmp_path / "rest"]
    subprocess.run(command, check=True, env=environment)
    (rest,) = load_file(tmp_path / "rest").values()
    assert torch.equal(rest, torch.cat(rollouts.advance(session, 4, CHUNKS), 1))


def test_the_file_is_as_small_as_the_cache(tmp_path):
    """What is not written yet is not in the file, and what the session carries beside the cache is little."""
    rollouts = Rollouts(policy="dense", frames=300)
    session = rollouts.begin()
    rollouts.advance(session, 0, 2)
    session.save(tmp_path / "s")
    assert (tmp_path / "s").stat().st_size < 6 / 300 * session.cache.nbytes + 40_000


@pytest.fixture
def saved(tmp_path):
    """A file, and who wrote it."""
    rollouts, path = Rollouts(local_attention_size=9), tmp_path / "ball.session"
    session = rollouts.begin()
    rollouts.advance(session, 0, 3)
    session.save(path)
    return rollouts, path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 24}, "another number of frames, 18 in place of 24"),
        ({"local_attention_size": 12}, "another local_attention_size, 9 in place of 12"),
        ({"chunk_frames": 1}, "another number of frames per chunk"),
        ({"recache_frames": 3}, "another number of frames to rewrite"),
        ({"skips": (False, True, False, True, False)}, "another list of skipped calls"),
        ({"guard": Guard()}, "another guard"),
    ],
)
def test_other_options_are_refused(options, message, saved):
    rollouts, path = saved
    with pytest.raises(UserError, match=message):
        rollouts.restore(path, **options)


def test_other_models_and_sizes_are_refused(saved):
    rollouts, path = saved
    model, policy, schedule, shape = rollouts.rules
    cases = [
        ((small_model(layers=3, heads=4, seed=1), policy, schedule, shape), "with the model that it began"),
        ((model, policy, schedule, (2, *SHAPE)), "another latent shape"),
        ((model, policy, schedule, (1, 4, 6, 6)), "another latent shape"),
        ((model, parse_policy("dense"), schedule, shape), "another policy"),
        ((model, policy, make_schedule([1000, 500], shift=5.0), shape), "another schedule"),
    ]
    for rules, message in cases:
        with pytest.raises(UserError, match=message):
            rollouts.kind.restore(path, *rules, **rollouts.options)
    with pytest.raises(UserError, match="another sampler, BlockSampler in place of RollingSampler"):
        SAMPLERS["rolling"].restore(path, *rollouts.rules)
    with pytest.raises(UserError, match="another dtype"):
        rollouts.kind.restore(
            path, small_model(3, 4).to(torch.bfloat16), *rollouts.rules[1:], local_attention_size=9
        )


def rewrite(path, change):
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    tensors = load_file(path)
    change(about, tensors)
    save_file(tensors, path, about)


def test_damaged_files_are_refused(saved, tmp_path):
    rollouts, path = saved
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-100] ^= 1
    for damaged in (whole[:-1], whole[:100], b"", b"hello", bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="is damaged or holds no session"):
            rollouts.restore(path)
    path.write_bytes(whole)
    rewrite(path, lambda about, _: about.update(state=about["state"].replace('"frames": 9', '"frames": 6')))
    with pytest.raises(UserError, match="its checksum differs"):
        rollouts.restore(path)
    path.write_bytes(whole)
    rewrite(path, lambda about, _: about.update(version="3"))
    with pytest.raises(UserError, match="of version 3 of the format"):
        rollouts.restore(path)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="holds no session"):
        rollouts.restore(path)
    with pytest.raises(UserError, match="There is no file"):
        rollouts.restore(tmp_path / "none")


def test_a_file_that_cannot_be_written(saved, tmp_path):
    rollouts, path = saved
    with pytest.raises(UserError, match="create it first"):
        rollouts.begin().save(tmp_path / "none" / "s")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_noise_of_unknown_state():
    class Count:
        drawn = 0

        def __call__(self, shape):
            self.drawn += 1
            return torch.randn(shape, generator=torch.Generator().manual_seed(self.drawn))

    rollouts = Rollouts()
    session = rollouts.kind(rollouts.model, small_prompt(rollouts.model), *rollouts.rules[1:], seeds=Count())
    session.next_chunk()
    fork = session.fork()
    expected = [session.next_chunk() for _ in range(2)]
    assert equal([fork.next_chunk() for _ in range(2)], expected)
    with pytest.raises(UserError, match="give it seeds"):
        session.save("never")


def test_a_fork_has_no_decoded_frames():
    rollouts = Rollouts("recompute", context_frames=4, first_latent=lambda: torch.zeros(1, 1, *SHAPE))
    assert rollouts.kind is RecomputeSampler
    with pytest.raises(UserError, match="cannot be forked"):
        rollouts.begin().fork()


def test_noise_goes_on_from_its_state():
    source = seeded_noise([3, 4])
    source((2, 5))  # an odd number: a generator keeps half a pair
    other = type(source).from_state(source.state())
    assert torch.equal(source((2, 7)), other((2, 7)))
