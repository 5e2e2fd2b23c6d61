"""The shortcuts of `research/training` against what runs when the models that they made generate."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file
from torch import Tensor

from dummyforcing.checkpoints.lora import LoRA, merge_loras
from dummyforcing.checkpoints.stored import StoredTensor
from dummyforcing.method.policy import parse_policy
from dummyforcing.models.wan import TimeEmbedding
from dummyforcing.sampling.block import BlockSampler
from dummyforcing.sampling.passes import Passes
from dummyforcing.sampling.schedule import make_schedule
from dummyforcing.vae.codec import VideoDecoder
from research.training.networks import TeacherForcing
from research.training.optim import orthogonalize
from research.training.recall import PHASES, SomeChunks, add_lora, lora_tensors, take_phases
from research.training.run import CHUNK
from research.training.vae import VAE, WholeClipVAE
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
def test_some_chunks_train_what_a_sampler_with_changing_prompts_runs() -> None:
    """Chunks 1, 3 and 4 of five, with prompts that change at chunk 2 (and at 4, in the second clip only)."""
    batch, chunks, noisy = 2, 5, (1, 3, 4)
    model, schedule = small_model(), make_schedule([1000, 500], shift=3.0)
    embeds = torch.randn(batch, PHASES, model.config.text_len, model.config.text_dim)
    phases = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 1, 1, 2]])
    sampler = BlockSampler(
        model, embeds[:, 0], parse_policy("dense"), schedule, (batch, *SHAPE),
        chunk_frames=CHUNK, seeds=[0, 1], frames=CHUNK * chunks,
    )  # fmt: skip
    seen, made = record(sampler), []
    for chunk in range(chunks):
        if chunk in (2, 4):
            sampler.set_prompt(embeds[torch.arange(batch), phases[:, chunk]])
        made.append(sampler.next_chunk())

    take_phases(model)
    one_pass = SomeChunks(chunks, noisy, torch.device("cpu"), TOKENS)
    for step, sigma in enumerate(schedule.sigmas):
        of_step = seen[step :: len(schedule.sigmas)]
        x, expected = (torch.cat([pair[i] for pair in (of_step[c] for c in noisy)], dim=1) for i in (0, 1))
        sigmas = torch.full(x.shape[:2], sigma)
        velocity = one_pass(model, torch.cat(made, 1), x, sigmas, embeds, phases)
        assert expected.std() > 0.1
        torch.testing.assert_close(velocity, expected, atol=2e-5, rtol=0)
    other = one_pass(model, torch.cat(made, 1), x, sigmas, embeds, 0 * phases)
    assert (other - expected)[:, CHUNK:].abs().max() > 1e-2


def test_a_trained_lora_is_one_that_can_be_merged(tmp_path: Path) -> None:
    """The changed model equals one that is loaded with the LoRA's file."""
    model, changed = small_model(), small_model()
    for parameter in add_lora(changed, rank=2):
        torch.nn.init.normal_(parameter, std=0.3)
    save_file(lora_tensors(changed), tmp_path / "lora.safetensors")
    stored = {
        name: StoredTensor(tuple(weight.shape), "float32", partial(torch.Tensor.clone, weight.detach()))
        for name, weight in model.named_parameters()
    }
    merged = merge_loras(stored, [LoRA(tmp_path / "lora.safetensors")])
    assert sum(merged[name].read is not stored[name].read for name in stored) == 10 * len(model.blocks)
    for name, module in changed.named_modules():
        if hasattr(module, "lora_A"):
            whole = module.weight + module.lora_B.half().float() @ module.lora_A.half().float()
            torch.testing.assert_close(merged[f"{name}.weight"].read(), whole, atol=1e-6, rtol=1e-6)


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
