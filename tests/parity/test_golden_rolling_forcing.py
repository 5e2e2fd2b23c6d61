"""Rolling Forcing of the public code: every window and every clean pass."""

import pytest
import torch

from dummyforcing.method.policy import window
from dummyforcing.sampling import rolling
from dummyforcing.sampling.passes import Passes
from dummyforcing.sampling.rolling import RollingSampler
from dummyforcing.sampling.schedule import COMMIT_TIMESTEP
from tests.parity.goldenfile import TOLERANCE, assert_near, files_of, read
from tests.parity.rollout import commit_flow, in_order, schedule_tensors, show_estimates


class NotingRolling(RollingSampler):
    """Notes all windows; the public code runs a clean pass after each, even if it is overwritten later."""

    def __init__(self, golden, **options):
        meta = golden.meta
        anchor, size = meta["frames_per_block"], meta["max_attention_frames"]
        self.noted, self.number = {}, 0
        super().__init__(
            golden.model,
            golden["prompt_embeds"],
            window(anchor, size - anchor),
            golden.schedule,
            golden.latent_shape,
            chunk_frames=anchor,
            local_attention_size=size,
            seeds=in_order(draws(golden)),
            **options,
        )
        self.passes.__class__ = TimedPasses

    def next_chunk(self, received=None):
        with show_estimates(rolling, self.note_window):
            return super().next_chunk(received)

    def note_window(self, velocity, x0, sigmas):
        prefix, frames = f"window{self.number}", self.chunk_frames
        assert isinstance(self.passes, TimedPasses)
        timesteps = torch.tensor(self.passes.timesteps)
        self.noted[f"{prefix}/timestep"] = timesteps.repeat_interleave(frames)[None]
        self.noted[f"{prefix}/flow"], self.noted[f"{prefix}/x0"] = velocity, x0
        self.noted[f"{prefix}/clean/flow"] = commit_flow(
            self.passes, x0[:, :frames], self.prompts.text, self.call(None), self.heads.is_planned
        )
        self.number += 1


class TimedPasses(Passes):
    """Passes that keep the timesteps of the newest window."""

    def time(self, timesteps, frames):
        if COMMIT_TIMESTEP not in timesteps:
            self.timesteps = timesteps
        return super().time(timesteps, frames)


class PinnedPasses(TimedPasses):
    """Passes that always see the anchor."""

    def commit(self, x0, text, call, scorer=None, pinned=True):
        super().commit(x0, text, call, scorer, pinned=True)


def draws(golden):
    """The file's noise in the order of the windows: the block that enters, then re-noising."""
    blocks = golden["noise"].split(golden.meta["frames_per_block"], dim=1)
    for entry in golden.meta["windows"]:
        number = entry["window"]
        if number < len(blocks):
            yield blocks[number]
        for block in entry["renoised_blocks"]:
            yield golden[f"window{number}/renoise/block{block}"]


@pytest.mark.parametrize("path", files_of("rolling_forcing"))
def test_rollout(path):
    golden = read(path)
    sampler = NotingRolling(golden, frames=golden["noise"].shape[1])
    sampler.noted["latents"] = torch.cat(list(sampler), 1)
    assert sampler.number == len(golden.meta["windows"])
    sampler.noted |= {f"schedule/{key}": t for key, t in schedule_tensors(golden.schedule).items()}
    inputs = ("model.", "noise", "prompt_embeds")
    used = {n for n in golden.tensors if "/renoise/" in n or n.startswith(inputs)}
    assert set(golden.tensors) == used | set(sampler.noted)
    for key, value in sampler.noted.items():
        exact = key.startswith("schedule/") or key.endswith("/timestep")
        assert_near(value, golden[key], key, 0 if exact else TOLERANCE)


@pytest.mark.parametrize("path", files_of("rolling_forcing"))
def test_the_noise_is_all_used(path):
    golden = read(path)
    left = list(draws(golden))
    stored = {n for n in golden.tensors if "/renoise/" in n}
    assert len(left) == golden.meta["blocks"] + len(stored)


@pytest.mark.parametrize("path", files_of("rolling_forcing"))
def test_endless_rollout_begins_alike(path):
    """Without a known length the window never shrinks: all chunks that finish before that are the same."""
    golden = read(path)
    sampler = NotingRolling(golden)
    full = sum(window["end_block"] == window["window"] for window in golden.meta["windows"])
    chunks = full - len(golden.schedule.sigmas) + 1
    assert chunks > 1
    latents = torch.cat([sampler.next_chunk() for _ in range(chunks)], 1)
    assert_near(latents, golden["latents"][:, : latents.shape[1]], "latents")


@pytest.mark.parametrize("path", files_of("rolling_forcing"))
def test_anchor_rules_matter(path):
    """The comparison itself: it would fail with the anchor in late clean passes."""
    golden = read(path)

    sampler = NotingRolling(golden, frames=golden["noise"].shape[1])
    sampler.passes.__class__ = PinnedPasses
    latents = torch.cat(list(sampler), 1)
    assert (latents - golden["latents"]).abs().max() > 10 * TOLERANCE
