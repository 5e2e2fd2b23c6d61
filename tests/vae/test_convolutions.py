"""Decoding with our own convolutions and in float8, through their references; the oracle is diffusers."""

import importlib.util
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from dummyforcing.kernels.constants import FP8, MARGIN
from dummyforcing.vae.codec import DecoderStream, VideoDecoder
from dummyforcing.vae.convolutions import Form
from tests.interpreter import INTERPRETED, run_interpreted
from tests.vae.test_codec import LAYOUTS, latents_of, one_shot

WIDE = {"base_dim": 32, "decoder_base_dim": 32}
"""As many channels as our kernel takes."""


def make_vae(layout: str, **sizes: Any) -> AutoencoderKLWan:
    torch.manual_seed(0)
    vae = AutoencoderKLWan(**{**LAYOUTS[layout], **sizes}).eval()
    for module in vae.modules():
        if hasattr(module, "gamma"):  # gains that differ, as those of trained models
            module.gamma.data.uniform_(0.2, 3)
    return vae


def decode(stream: DecoderStream, latents: Tensor, split: list[int]) -> Tensor:
    return torch.cat([stream.decode_float(part) for part in latents.split(split, 1)], 1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tiles", [1, 2])
def test_our_convolutions_decode_as_diffusers_does(layout: str, tiles: int) -> None:
    """Their bias, their residual and the repetition of pixels are in the convolution."""
    decoder = VideoDecoder(make_vae(layout, **WIDE))
    decoder.convolutions.in_one_kernel = True  # as on a GPU
    latents = latents_of(5, batch=2)
    ours = decode(decoder.stream(tiles), latents, [3, 2])
    torch.testing.assert_close(ours, one_shot(decoder, latents), atol=2e-5, rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_float8_is_near(layout: str) -> None:
    """Its mantissa has three bits where bfloat16's has seven: it rounds 16 times as coarsely."""
    exact, latents = VideoDecoder(make_vae(layout)), latents_of(5, batch=2)
    half = VideoDecoder(make_vae(layout).bfloat16())
    errors = [
        (decoder.stream().decode_float(latents) - one_shot(exact, latents)).std()
        for decoder in (half, VideoDecoder(exact.vae, fp8=True))
    ]
    assert 2 * errors[0] < errors[1] < 16 * errors[0]


def test_a_split_changes_nothing_in_float8() -> None:
    decoder, latents = VideoDecoder(make_vae("wan"), fp8=True), latents_of(6, batch=2)
    expected = decode(decoder.stream(), latents, [6])
    for tiles, split in ((1, [1, 2, 3]), (2, [3, 3])):
        # A value between two of float8 goes up or down with the rounding of the sums before it.
        gap = (decode(decoder.stream(tiles), latents, split) - expected).abs()
        assert gap.mean() < 1e-3


@pytest.mark.parametrize("tiles", [1, 2])
def test_a_stream_goes_on_in_the_other_precision(tiles: int) -> None:
    """Its state is that of the dtype, whatever the past was rounded to."""
    vae, latents = make_vae("bundled"), latents_of(6)
    exact, fp8 = VideoDecoder(vae), VideoDecoder(vae, fp8=True)
    expected = decode(exact.stream(tiles), latents, [3, 3])[:, -12:]
    for first, second in ((fp8, fp8), (fp8, exact), (exact, fp8)):
        stream = first.stream(tiles)
        stream.decode(latents[:, :3])
        state = stream.state()
        assert all(past.dtype == torch.float32 for past in state.features.values())
        again = second.stream(tiles)
        again.load_state(state, latents.shape[3])
        ours = again.decode_float(latents[:, 3:])
        assert (ours - expected).std() < 0.2 * expected.std()
        if first is second:
            assert torch.equal(ours, stream.decode_float(latents[:, 3:]))


def test_what_a_form_takes_it_gives_back() -> None:
    x = torch.linspace(-3, 3, 24).view(1, 1, 1, 2, 12).to(FP8).float()
    form = Form(12, 16, FP8, MARGIN, 8.0)
    taken = form.take(x)
    assert taken.dtype == FP8
    assert taken.shape == (1, 1, 2, 4, 16)
    assert torch.equal(taken[:, :, :1, :2, :12].float(), 8 * x)
    assert taken.float().count_nonzero() == x.count_nonzero()
    assert torch.equal(form.give(taken, torch.float32), x)


@pytest.mark.parametrize("gain", [1e-3, 1.0, 30.0])
def test_what_a_normalisation_gives_fits_float8(gain: float) -> None:
    """Even where one channel has all of a pixel."""
    vae = make_vae("wan")
    norms = [module for module in vae.decoder.modules() if hasattr(module, "gamma")]
    for norm in norms:
        norm.gamma.data.fill_(gain)
    convolutions = VideoDecoder(vae, fp8=True).convolutions
    forms = [convolutions.form(conv) for conv in convolutions.norms if isinstance(conv, nn.Conv3d)]
    assert sum(form.dtype == FP8 for form in forms) > 10
    for form in forms:
        assert form.dtype != FP8 or 224 <= form.channels**0.5 * gain * form.gain <= 448


@pytest.mark.skipif(not INTERPRETED, reason="for Triton's interpreter")
def test_the_kernels_decode_as_diffusers_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them together, each where the decoder calls it."""
    vae, latents = make_vae("wan", **WIDE), torch.randn(1, 3, 16, 2, 4)
    expected = one_shot(VideoDecoder(vae), latents)
    decoder = VideoDecoder(vae.half())
    decoder.convolutions.in_one_kernel = True
    for module in ("conv", "vae"):
        monkeypatch.setattr(f"dummyforcing.kernels.{module}.runs_in_triton", lambda x: True)
    ours = decode(decoder.stream(), latents, [2, 1])
    assert (ours - expected).std() < 5e-3 * expected.std()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(torch.cuda.is_available() or INTERPRETED, reason="the kernels run here")
def test_in_the_interpreter() -> None:
    assert "skipped" not in run_interpreted(__file__, "-k", "test_the_kernels_decode")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.usefixtures("exact_float32")
def test_on_a_gpu(layout: str, fp8: bool) -> None:
    """No farther from float32 than what torch computes of the same numbers, but for float8's sums."""
    vae, latents = make_vae(layout, **WIDE), latents_of(5, batch=2)
    expected = one_shot(VideoDecoder(vae), latents)
    emulated = VideoDecoder(vae, fp8=True).stream().decode_float(latents)
    stream = VideoDecoder(vae.to("cuda", torch.bfloat16), fp8=fp8).stream()
    error = (decode(stream, latents, [3, 2]).cpu() - expected).std()
    assert error < (1.5 * (emulated - expected).std() if fp8 else 0.03 * expected.std())
