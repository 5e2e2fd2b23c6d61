"""The shortcuts of `research/training` against what runs when the models that they made generate."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from dummyforcing.method.policy import parse_policy
from dummyforcing.models.wan import TimeEmbedding
from dummyforcing.sampling.block import BlockSampler
from dummyforcing.sampling.passes import Passes
from dummyforcing.sampling.schedule import make_schedule
from dummyforcing.vae.codec import VideoDecoder
from research.training.data import render, tell_many
from research.training.distill import SIGMAS
from research.training.judge import STEPS
from research.training.networks import SHIFT, TeacherForcing, follow_guided, predict
from research.training.onpolicy import GrowingCache
from research.training.optim import orthogonalize, timed_steps
from research.training.run import CHUNK, Run, Span
from research.training.vae import VAE, WholeClipVAE, places
from tests.oracles import SHAPE, small_model

TOKENS = SHAPE[1] * SHAPE[2] // 4  # per latent frame


@torch.inference_mode()
def test_whole_clips_are_what_the_stream_gives() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {**VAE, "base_dim": 8, "decoder_base_dim": 8}
    streamed, whole = (AutoencoderKLWan(**sizes).eval() for _ in range(2))
    whole.load_state_dict(streamed.state_dict())
    clip = WholeClipVAE(whole)
    decoder = VideoDecoder(streamed)

    pixels = torch.randint(0, 256, (2, 17, 32, 48, 3), dtype=torch.uint8)
    latents = decoder.encode(pixels)
    mean, _ = clip.encode(pixels.permute(0, 4, 1, 2, 3).float() / 127.5 - 1)
    normalised = (mean - decoder._mean) / decoder._std
    torch.testing.assert_close(normalised.transpose(1, 2), latents, atol=1e-5, rtol=0)

    stream = decoder.stream()
    frames = torch.cat([stream.decode_float(chunk) for chunk in latents.split(2, dim=1)], dim=1)
    decoded = clip.decode(mean).clamp(-1, 1).permute(0, 2, 3, 4, 1) * 0.5 + 0.5
    torch.testing.assert_close(decoded, frames, atol=1e-5, rtol=0)
    assert frames.std() > 0.001


class RecordingPasses(Passes):
    """Keeps what goes into the network and what comes out, for every denoising step."""

    seen: list[tuple[Tensor, Tensor]]
    newest: Tensor

    def tokens(self, x: Tensor) -> Tensor:
        self.newest = x
        return super().tokens(x)

    def velocity(self, hidden: Tensor, time: TimeEmbedding) -> Tensor:
        velocity = super().velocity(hidden, time)
        self.seen.append((self.newest, velocity))
        return velocity


def record(sampler: BlockSampler) -> list[tuple[Tensor, Tensor]]:
    """Have the passes of a sampler recorded; the list grows with every denoising step."""
    passes = sampler.passes
    passes.__class__ = RecordingPasses
    assert isinstance(passes, RecordingPasses)
    passes.seen = []
    return passes.seen


@torch.inference_mode()
@pytest.mark.parametrize("chunks", [1, 3])
def test_teacher_forcing_trains_what_a_sampler_runs(chunks: int) -> None:
    """The one pass over [clean | noisy] frames == the steps of a sampler with its cache and commit passes."""
    batch, frames = 2, CHUNK * chunks
    model, schedule = small_model(), make_schedule([1000, 500, 250], shift=3.0)
    embeds = torch.randn(batch, model.config.text_len, model.config.text_dim)
    sampler = BlockSampler(
        model, embeds, parse_policy("dense"), schedule, (batch, *SHAPE),
        chunk_frames=CHUNK, seeds=[0, 1], frames=frames,
    )  # fmt: skip
    seen = record(sampler)
    latents = torch.cat(list(sampler), dim=1)

    one_pass = TeacherForcing(frames, torch.device("cpu"), TOKENS)
    steps = len(schedule.sigmas)
    for step, sigma in enumerate(schedule.sigmas):
        x, expected = (torch.cat(parts, dim=1) for parts in zip(*seen[step::steps], strict=True))
        sigmas = torch.full((batch, frames), sigma)
        velocity = one_pass(model, latents, x, sigmas, embeds)
        assert expected.std() > 0.1
        torch.testing.assert_close(velocity, expected, atol=2e-5, rtol=0)

    if chunks > 1:  # and the past matters
        other = one_pass(model, latents.flip(1), x, sigmas, embeds)
        torch.testing.assert_close(other[:, :CHUNK], expected[:, :CHUNK], atol=2e-5, rtol=0)
        assert (other - expected)[:, CHUNK:].abs().max() > 1e-2


@torch.inference_mode()
def test_own_videos_are_made_as_a_sampler_makes_them() -> None:
    """The growing cache, chunk by chunk == the one pass over [clean | noisy] frames."""
    batch, chunks = 2, 3
    model = small_model()
    text = torch.randn(batch, model.config.text_len, model.config.text_dim)
    clean, noisy = torch.randn(2, batch, CHUNK * chunks, *SHAPE).unbind(0)
    sigma = torch.full((batch, CHUNK * chunks), 0.75)
    one_pass = TeacherForcing(CHUNK * chunks, torch.device("cpu"), TOKENS)
    expected = one_pass(model, clean, noisy, sigma, text)

    cache = GrowingCache(model, batch, chunks, torch.device("cpu"), TOKENS)
    for chunk in range(chunks):
        here = slice(CHUNK * chunk, CHUNK * (chunk + 1))
        frames = tuple(range(here.start, here.stop))
        velocity = predict(model, noisy[:, here], 1000 * sigma[:, here], text, frames, cache.attend)
        torch.testing.assert_close(velocity, expected[:, here], atol=2e-5, rtol=0)
        predict(model, clean[:, here], 0 * sigma[:, here], text, frames, cache.keep)
        cache.length += CHUNK * TOKENS


@torch.inference_mode()
def test_a_guided_path_may_be_followed_in_parts() -> None:
    model = small_model()
    text = torch.randn(2, model.config.text_len, model.config.text_dim)
    x = torch.randn(2, CHUNK, *SHAPE)
    whole = follow_guided(model, x, 1.0, 0.0, text, text[:1], steps=12)
    for begin, end in pairwise((*SIGMAS, 0.0)):
        x = follow_guided(model, x, begin, end, text, text[:1], steps=3)
    torch.testing.assert_close(x, whole, atol=1e-5, rtol=0)


def test_the_levels_are_those_of_the_student() -> None:
    assert make_schedule(STEPS, SHIFT).sigmas == pytest.approx(SIGMAS)


def test_places_are_where_objects_are() -> None:
    """A latent pixel counts if one of its pixels, or of its neighbours', changes without the objects."""
    told = tell_many((1,), 3)
    scenes = [replace(one.scene, sky="night", wall=(0.02, 0.03, 0.08)) for one in told]
    nobody = [replace(s, things=tuple(replace(t, x=9.0, motion="still") for t in s.things)) for s in scenes]
    clips, empty = (render(some, 9, 160, torch.device("cpu")) for some in (scenes, nobody))
    found = places(clips)
    assert found.shape == (3, 3, 1, 20, 20)
    changed = (
        ((clips - empty).abs().amax(1) > 0.3).unflatten(-1, (20, 8)).unflatten(-3, (20, 8)).any(-1).any(-2)
    )
    changed = torch.stack([changed[:, 0], changed[:, 1:5].any(1), changed[:, 5:].any(1)], 1)
    assert (found[:, :, 0] | ~changed).all()
    assert 0.02 < changed.float().mean() <= found.float().mean() < 2.5 * changed.float().mean() + 0.05


def test_calls_share_a_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, now = Run(tmp_path, small=True, pool=1.0), iter(range(10**6))
    monkeypatch.setattr("research.training.optim.time.monotonic", lambda: float(next(now)))
    first = list(timed_steps(run, Span(4, 0.0, 0.5), decay=0.5))
    second = list(timed_steps(run, Span(4, 0.5, 1.0), decay=0.5))
    assert [progress for _, _, progress in first + second] == pytest.approx([i / 8 for i in range(8)])
    assert [rate for _, rate, _ in first[1:]] == [1, 1, 1]
    assert [rate for _, rate, _ in second[1:]] == pytest.approx([0.75, 0.5, 0.25])
    assert first[0][1] == second[0][1] < 0.1  # no state of the optimiser is kept


def test_spans_and_limits(tmp_path: Path) -> None:
    assert Span.parse("60") == Span(60, 0, 1)
    assert Span.parse("540@0.5-1") == Span(540, 0.5, 1)
    for text in ("0", "10@1-0", "10@0-2", "many"):
        with pytest.raises(ValueError, match=r"SECONDS|float"):
            Span.parse(text)
    assert Run(tmp_path, small=True, pool=1.0).within(600) == 600
    assert Run(tmp_path, small=True, pool=1.0, limit=100).within(600) == pytest.approx(85, abs=1)


@pytest.mark.parametrize("shape", [(4, 32, 32), (4, 16, 48), (4, 48, 16)])
def test_orthogonalize(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    out = orthogonalize(matrices).float()
    assert out.shape == shape
    values = torch.linalg.svdvals(out)
    # The iteration's coefficients trade exactness for speed: 0.68 to 1.14 in exact arithmetic.
    assert values.max() < 1.3
    assert (values > 0.5).float().mean() > 0.95  # the smallest of a square random matrix needs more steps
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    assert torch.cosine_similarity(out.flatten(1), (u @ vh).flatten(1)).min() > 0.95
