"""Small random VAEs of every layout; the oracle is diffusers' own one-shot decode and encode."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dummyforcing.checkpoints.vae import load_vae, open_vae
from dummyforcing.errors import UserError
from dummyforcing.vae.codec import VideoDecoder
from tests.layouts import wan_vae

LAYOUTS: dict[str, dict[str, Any]] = {
    "wan": {"base_dim": 8, "z_dim": 16, "num_res_blocks": 1},
    "bundled": {
        "base_dim": 8,
        "decoder_base_dim": 12,
        "z_dim": 16,
        "dim_mult": [1, 2, 4],
        "num_res_blocks": 1,
        "temperal_downsample": [True, True],
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
    },
    "wan 2.2": {
        "base_dim": 8,
        "z_dim": 16,
        "num_res_blocks": 1,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "is_residual": True,
    },
}


@pytest.fixture(scope="module", params=LAYOUTS)
def decoder(request: pytest.FixtureRequest) -> VideoDecoder:
    torch.manual_seed(0)
    return VideoDecoder(AutoencoderKLWan(**LAYOUTS[request.param]).eval())


def latents_of(frames: int, seed: int = 0, batch: int = 1) -> Tensor:
    return torch.randn(batch, frames, 16, 4, 6, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def one_shot(decoder: VideoDecoder, latents: Tensor) -> Tensor:
    """What diffusers decodes, as float32 `(B, n, H, W, 3)` in [0, 1]."""
    config = decoder.vae.config
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))
    z = latents.transpose(1, 2) * std + mean
    pixels: Tensor = decoder.vae.decode(z.to(decoder.vae.dtype)).sample.float()
    return (pixels * 0.5 + 0.5).permute(0, 2, 3, 4, 1)


@pytest.mark.parametrize("passes", [0, 96, 10**6], ids=["frame by frame", "two by two", "at once"])
@pytest.mark.parametrize("split", [[7], [3, 3, 1], [1, 2, 4], [1, 1, 1, 1, 1, 1, 1]])
def test_streaming_is_one_shot(
    decoder: VideoDecoder, split: list[int], passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dummyforcing.vae.codec.PASS_PIXELS", passes)
    latents = latents_of(7, batch=2)
    stream = decoder.stream()
    pieces = [stream.decode_float(chunk) for chunk in latents.split(split, dim=1)]
    assert [piece.shape[1] for piece in pieces] == [4 * n - 3 * (i == 0) for i, n in enumerate(split)]
    streamed = torch.cat(pieces, dim=1)
    torch.testing.assert_close(streamed, one_shot(decoder, latents), atol=1e-5, rtol=0)
    assert streamed.shape == (2, 25, 4 * decoder.stride, 6 * decoder.stride, 3)
    assert streamed.std() > 0.01


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_channels_of_zeros_change_nothing(decoder: VideoDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where convolutions get as many channels as suit cuDNN."""
    latents = torch.randn(2, 3, 16, 4, 6)
    expected = decoder.stream().decode_float(latents)
    monkeypatch.setattr("dummyforcing.vae.convolutions.fast_width", lambda channels, device: channels + 5)
    monkeypatch.setattr("dummyforcing.vae.codec.fast_convolutions", lambda vae: nullcontext())
    wide = VideoDecoder(decoder.vae).stream()
    torch.testing.assert_close(wide.decode_float(latents), expected, atol=1e-5, rtol=0)


def test_slow_convolutions_are_avoided(decoder: VideoDecoder) -> None:
    with torch.profiler.profile() as profile:
        decoder.decode(latents_of(2))
    operators = {event.key for event in profile.key_averages()}
    assert "aten::mkldnn_convolution" in operators
    assert not any("slow_conv3d" in name for name in operators)


def test_interleaved_streams_do_not_meet(decoder: VideoDecoder) -> None:
    one, two = latents_of(6, seed=1), latents_of(6, seed=2)
    first, second = decoder.stream(), decoder.stream()
    pieces: list[tuple[Tensor, Tensor]] = []
    for a, b in zip(one.split(2, dim=1), two.split(2, dim=1), strict=True):
        pieces.append((first.decode(a), second.decode(b)))
        decoder.encode(torch.zeros(1, 1, 32, 32, 3, dtype=torch.uint8))  # nor does the encoder
    for latents, mixed in zip((one, two), zip(*pieces, strict=True), strict=True):
        alone = decoder.stream()
        for part, pixels in zip(latents.split(2, dim=1), mixed, strict=True):
            assert torch.equal(alone.decode(part), pixels)
    assert (first.frames, second.frames) == (6, 6)


def test_a_batch_gives_what_its_videos_give_alone(decoder: VideoDecoder) -> None:
    latents = latents_of(3, batch=2)
    together = decoder.stream().decode_float(latents)
    for index in range(2):
        alone = decoder.stream().decode_float(latents[index : index + 1])
        torch.testing.assert_close(together[index : index + 1], alone, atol=2e-5, rtol=0)


def test_uint8_is_the_rounded_float(decoder: VideoDecoder) -> None:
    latents = latents_of(2)
    pixels, exact = decoder.decode(latents), decoder.stream().decode_float(latents)
    assert pixels.dtype == torch.uint8
    assert (pixels.float() - exact * 255).abs().max() <= 0.5


def test_low_precision_latents_are_denormalised_in_float32(decoder: VideoDecoder) -> None:
    latents = latents_of(2).to(torch.bfloat16)
    assert torch.equal(decoder.decode(latents), decoder.decode(latents.float()))


class DtypesOfConvolutions(TorchFunctionMode):
    """Remembers what convolutions are computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.conv2d, F.conv3d):
            self.dtypes.add(args[0].dtype)
        return func(*args, **(kwargs or {}))


def test_bfloat16(decoder: VideoDecoder, tmp_path: Path) -> None:
    """It is computed in bfloat16, and errs no more than diffusers' own decoding in it."""
    decoder.vae.save_pretrained(tmp_path)
    half, latents = load_vae(tmp_path, dtype=torch.bfloat16), latents_of(2)
    with DtypesOfConvolutions() as seen:
        pixels = half.decode(latents).float()
        half.encode(torch.zeros(1, 1, 32, 32, 3, dtype=torch.uint8))
    assert seen.dtypes == {torch.bfloat16}
    difference = pixels - decoder.decode(latents).float()
    assert difference.abs().mean() < 2
    exact = one_shot(decoder, latents)
    ours, theirs = (
        (pixels - exact).abs().mean()
        for pixels in (half.stream().decode_float(latents), one_shot(half, latents))
    )
    assert 0.3 * theirs < ours < 1.3 * theirs


@torch.inference_mode()
def test_encode(decoder: VideoDecoder) -> None:
    pixels = torch.randint(0, 256, (2, 9, 4 * decoder.stride, 6 * decoder.stride, 3), dtype=torch.uint8)
    config = decoder.vae.config
    video = (pixels.float() / 255 * 2 - 1).permute(0, 4, 1, 2, 3)
    mean = decoder.vae.encode(video).latent_dist.mean.transpose(1, 2)
    expected = (mean - torch.tensor(config.latents_mean).view(-1, 1, 1)) / torch.tensor(
        config.latents_std
    ).view(-1, 1, 1)
    latents = decoder.encode(pixels)
    assert latents.shape == (2, 3, 16, 4, 6)
    torch.testing.assert_close(latents, expected, atol=2e-5, rtol=0)
    assert decoder.decode(latents).shape == pixels.shape


@pytest.mark.parametrize("shape", [(1, 4, 32, 32, 3), (1, 5, 36, 32, 3), (1, 5, 32, 36, 3)])
def test_what_cannot_be_encoded(decoder: VideoDecoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=f"multiples of {decoder.stride}"):
        decoder.encode(torch.zeros(shape, dtype=torch.uint8))


def test_saved_and_loaded(decoder: VideoDecoder, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    decoder.vae.save_pretrained(tmp_path)
    capfd.readouterr()
    loaded = load_vae(tmp_path)
    assert capfd.readouterr() == ("", "")
    assert torch.equal(loaded.decode(latents_of(2)), decoder.decode(latents_of(2)))
    assert not any(parameter.requires_grad for parameter in loaded.vae.parameters())


def test_bad_folders(decoder: VideoDecoder, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        load_vae(tmp_path)
    decoder.vae.save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    capfd.readouterr()
    with pytest.raises(UserError, match=r"ends early|holds no weights"):
        load_vae(tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match=r"ends early|holds no weights"):
        load_vae(tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("offload", [False, True])
def test_offloaded_weights_stay_so_when_the_model_comes_back(offload: bool) -> None:
    host, away = torch.device("cpu"), torch.device("meta")  # stands for a GPU
    vae = AutoencoderKLWan(**LAYOUTS["wan"]).eval()
    decoder = VideoDecoder(vae if offload else vae.to(away), away)
    for device in (host, away) if offload else (away,):
        decoder = decoder.at(device, torch.float32)
        assert decoder.device == device
        assert decoder.moves == (offload and device == away)
        assert decoder.vae.device == (host if offload else away)


def test_wans_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under Wan's names and without a config, it decodes and encodes as the VAE that diffusers made."""
    torch.manual_seed(0)
    sizes = {"base_dim": 4}
    ours = VideoDecoder(AutoencoderKLWan(**sizes).eval())
    tensors = wan_vae(ours.vae.state_dict())
    assert len(tensors) == 194
    torch.save(tensors, tmp_path / "Wan2.1_VAE.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"wrong in shape"):
        open_vae(tmp_path / "Wan2.1_VAE.pth")
    monkeypatch.setattr("dummyforcing.checkpoints.vae.WAN_VAE", sizes)
    loaded = load_vae(tmp_path / "Wan2.1_VAE.pth")
    assert torch.equal(loaded.decode(latents_of(2)), ours.decode(latents_of(2)))
    pixels = torch.randint(0, 256, (1, 5, 32, 48, 3), dtype=torch.uint8)
    assert torch.equal(loaded.encode(pixels), ours.encode(pixels))


def test_the_public_vae_is_diffusers_default() -> None:
    with torch.device("meta"):
        vae = AutoencoderKLWan()
    assert len(list(vae.parameters())) == 194
    assert sum(parameter.numel() for parameter in vae.parameters()) == 126_892_531
    assert vae.config.base_dim == 96


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.usefixtures("exact_float32")
def test_on_a_gpu(decoder: VideoDecoder, offload: bool, tmp_path: Path) -> None:
    decoder.vae.save_pretrained(tmp_path)
    latents = latents_of(7, batch=2)
    expected = one_shot(decoder, latents)
    for dtype, most, mean in ((torch.float32, 1e-4, 1e-5), (torch.bfloat16, 0.1, 2 / 255)):
        stream = load_vae(tmp_path, "cuda", dtype, offload).stream()
        pixels = torch.cat([stream.decode_float(part).cpu() for part in latents.split([3, 3, 1], dim=1)], 1)
        gap = (pixels - expected).abs()
        assert gap.max() < most
        assert gap.mean() < mean
