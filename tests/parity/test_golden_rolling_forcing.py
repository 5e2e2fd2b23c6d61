"""Rolling Forcing of the public code: every window and every clean pass."""

import pytest
import torch
from goldenfile import TOLERANCE, assert_near, files_of, read
from rollout import commit_flow, in_order, schedule_tensors

from dummyforcing.method.policy import window
from dummyforcing.models.wan import CausalWan
from dummyforcing.sampling.rolling import RollingSampler


class NotingRolling(RollingSampler):
    """Notes all windows; the public code runs a clean pass after each, even if it is overwritten later."""

    def __init__(self, golden, **options):
        meta = golden.meta
        anchor, reach = meta["frames_per_block"], meta["max_attention_frames"]
        self.noted, self.number = {}, 0
        super().__init__(
            golden.model,
            golden["prompt_embeds"],
            window(anchor, local_attention_size - anchor),
            golden.schedule,
            golden.latent_shape,
            chunk_frames=anchor,
            local_attention_size=local_attention_size,
            seeds=in_order(draws(golden)),
            **options,
        )
        self.model.unpatchify = self.note_flow

    def note_flow(self, *args):
        self.flow = CausalWan.unpatchify(self.model, *args)
        return self.flow

    def _run_window(self):
        x0 = super()._run_window()
        self.noted[f"window{self.number}/clean/flow"] = commit_flow(self, x0)
        self.number += 1
        return x0

    def _denoise_window(self, x, steps):
        x0 = super()._denoise_window(x, steps)
        timesteps = torch.tensor([self.schedule.timesteps[step] for step in steps])
        prefix = f"window{self.number}"
        self.noted[f"{prefix}/timestep"] = timesteps.repeat_interleave(self.chunk_frames)[None]
        self.noted[f"{prefix}/flow"], self.noted[f"{prefix}/x0"] = self.flow, x0
        return x0


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
    session = NotingRolling(golden, frames=golden["noise"].shape[1])
    session.noted["latents"] = torch.cat(list(session), 1)
    assert session.number == len(golden.meta["windows"])
    session.noted |= {f"schedule/{key}": t for key, t in schedule_tensors(golden.schedule).items()}
    inputs = ("model.", "noise", "prompt_embeds")
    used = {n for n in golden.tensors if "/renoise/" in n or n.startswith(inputs)}
    assert set(golden.tensors) == used | set(session.noted)
    for key, value in session.noted.items():
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
    session = NotingRolling(golden)
    full = sum(window["end_block"] == window["window"] for window in golden.meta["windows"])
    chunks = full - len(golden.schedule.sigmas) + 1
    assert chunks > 1
    latents = torch.cat([session.next_chunk() for _ in range(chunks)], 1)
    assert_near(latents, golden["latents"][:, : latents.shape[1]], "latents")


@pytest.mark.parametrize("path", files_of("rolling_forcing"))
def test_anchor_rules_matter(path):
    """The comparison itself: it would fail with the anchor in late clean passes."""
    golden = read(path)

    class Pinned(NotingRolling):
        def _keeps_pinned(self, step):
            return True

    session = Pinned(golden, frames=golden["noise"].shape[1])
    latents = torch.cat(list(session), 1)
    assert (latents - golden["latents"]).abs().max() > 10 * TOLERANCE
