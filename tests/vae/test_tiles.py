"""Decoding in tiles is exact; the oracles are diffusers' own decoding, and its gradients for the halo."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from dummyforcing.errors import UserError
from dummyforcing.presets.catalog import FOLDER as ASSETS
from dummyforcing.vae import tiles as vae_tiles
from dummyforcing.vae.codec import VideoDecoder
from dummyforcing.vae.memory import DecoderSizes
from dummyforcing.vae.stream import StreamedDecoder
from dummyforcing.vae.tiles import Rows, rows_needed, split_rows
from tests.oracles import most_allocated
from tests.vae.test_codec import LAYOUTS, one_shot

SIZES = LAYOUTS | {"wan, all layers": {"base_dim": 8, "z_dim": 16}}
HEIGHT = 40


def make_vae(layout: str) -> AutoencoderKLWan:
    torch.manual_seed(0)
    return AutoencoderKLWan(**SIZES[layout]).eval().requires_grad_(False)


def latents_of(frames: int, height: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, frames, 16, height, 3, generator=torch.Generator().manual_seed(1))


def decode(decoder: VideoDecoder, latents: Tensor, tiles: int | None, split: Sequence[int]) -> Tensor:
    stream = decoder.stream(tiles)
    return torch.cat([stream.decode_float(part) for part in latents.split(list(split), dim=1)], dim=1)


@pytest.mark.parametrize("rows", [(0, 1), (0, 15), (15, 20), (18, 19), (13, 39), (39, 40), (0, 40)])
@pytest.mark.parametrize("layout", SIZES)
def test_rows_needed_are_those_that_the_output_depends_on(layout: str, rows: Rows) -> None:
    """By the gradient of the rows wanted, at each resolution: no row more and none less."""
    layers: Any = make_vae(layout).decoder.double()
    channels = layers.up_blocks[0].resnets[0].conv1.in_channels
    x = torch.randn(1, channels, 1, HEIGHT, 2, dtype=torch.float64, requires_grad=True)
    inputs = [x]
    for block in layers.up_blocks:
        inputs.append(block(inputs[-1], first_chunk=True))
    output = layers.conv_out(layers.nonlinearity(layers.norm_out(inputs.pop())))
    needed = rows_needed(layers, rows, HEIGHT)
    first, end = needed[-1]
    scale = output.shape[3] // HEIGHT
    assert (first, end) == (rows[0] * scale, rows[1] * scale)
    wanted = output[:, :, :, first:end]
    gradients = torch.autograd.grad((wanted * torch.randn_like(wanted)).sum(), inputs)
    for gradient, (first, end) in zip(gradients, needed[:-1], strict=True):
        seen = gradient.abs().amax((0, 1, 2, 4)).nonzero().flatten().tolist()
        assert seen == list(range(first, end))


@pytest.mark.parametrize(("height", "tiles"), [(40, 2), (31, 4), (17, 17)])
@pytest.mark.parametrize("layout", SIZES)
def test_tiles_are_one_shot(layout: str, height: int, tiles: int) -> None:
    """At inner edges, too; of 17 tiles of one row all are wider by their halo than by themselves."""
    decoder, latents = VideoDecoder(make_vae(layout)), latents_of(3, height)
    expected = one_shot(decoder, latents)
    torch.testing.assert_close(decode(decoder, latents, tiles, [2, 1]), expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "passes"), [(1, 0), (2, 10**6)], ids=["frame by frame", "at once"])
@pytest.mark.parametrize("split", [[6], [1, 3, 2], [3, 1, 1, 1]])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tiles_in_streams(
    layout: str, batch: int, split: list[int], passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dummyforcing.vae.codec.PASS_PIXELS", passes)
    decoder, latents = VideoDecoder(make_vae(layout)), latents_of(6, 9, batch)
    expected = one_shot(decoder, latents)
    torch.testing.assert_close(decode(decoder, latents, 4, split), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", [0, 1], ids=["above", "below"])
@pytest.mark.parametrize("level", range(3))
def test_a_halo_that_is_one_row_smaller_shows(level: int, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def less(layers: Any, rows: Rows, height: int) -> list[Rows]:
        needed = [list(rows) for rows in rows_needed(layers, rows, height)]
        if rows[side] != (0, height)[side]:  # an inner edge
            needed[level][side] += (1, -1)[side]
        return [(first, end) for first, end in needed]

    decoder, latents = VideoDecoder(make_vae("bundled")), latents_of(2, HEIGHT)
    expected = decode(decoder, latents, 1, [2])
    assert (decode(decoder, latents, 2, [2]) - expected).abs().max() < 5e-6
    monkeypatch.setattr(vae_tiles, "rows_needed", less)
    assert (decode(decoder, latents, 2, [2]) - expected).abs().max() > 2e-5


def test_split_rows() -> None:
    assert split_rows(7, 3) == [(0, 2), (2, 4), (4, 7)]
    assert split_rows(4, 4) == [(0, 1), (1, 2), (2, 3), (3, 4)]


@pytest.mark.parametrize("tiles", [-1, 0, 6])
def test_tiles_that_cannot_be(tiles: int) -> None:
    with pytest.raises(UserError, match=r"5 rows of latents cannot make .* take 1 to 5"):
        VideoDecoder(make_vae("wan")).stream(tiles).decode(latents_of(1, 5))


def test_as_few_tiles_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decided once, with the first latents, by the estimate."""
    decoder, latents = VideoDecoder(make_vae("wan")), latents_of(4, 90)
    needs = [decoder.sizes.memory((1, 3, 90, 3), 4, tiles) for tiles in range(1, 91)]
    totals = [need.working + need.waiting for need in needs]
    assert totals[0] > totals[1] > totals[2]
    for free, tiles in (
        (totals[0], 1),
        (totals[0] - 1, 2),
        (totals[1] - 1, 3),
        (0, 1 + totals.index(min(totals))),
    ):
        monkeypatch.setattr("dummyforcing.vae.codec.available_memory", lambda device, free=free: free)
        stream = decoder.stream()
        assert stream.tiles is None
        pixels = [stream.decode(latents[:, :3])]
        monkeypatch.setattr("dummyforcing.vae.codec.available_memory", lambda device: 0)
        pixels.append(stream.decode(latents[:, 3:]))
        assert stream.tiles == tiles
        expected = decoder.stream(1).decode(latents)
        assert (torch.cat(pixels, 1).int() - expected.int()).abs().max() <= 1


def test_on_the_way_to_gray_levels_a_pixel_takes_nine_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three channels three times: of layers that take nothing, this alone is left of the estimate."""
    decoder = VideoDecoder(AutoencoderKLWan(base_dim=4).eval())
    latents, shape = torch.randn(1, 3, 16, 16, 10), (1, 12, 128, 80, 3)
    monkeypatch.setattr(StreamedDecoder, "__call__", lambda *_: torch.zeros(shape))
    stream = decoder.stream(1)
    most = most_allocated(lambda: stream.decode(latents))
    assert most == pytest.approx(DecoderSizes(0.0, 8).memory((1, 3, 16, 10), 4).working, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("tiles", [1, 2, 4])
@pytest.mark.parametrize("passes", [100, 1000], ids=["frame by frame", "at once"])
def test_the_estimate_bounds_what_is_allocated(
    tiles: int, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dummyforcing.vae.codec.PASS_PIXELS", passes)
    monkeypatch.setattr("dummyforcing.vae.memory.PASS_PIXELS", passes)
    torch.manual_seed(0)
    decoder = VideoDecoder(AutoencoderKLWan(base_dim=16).eval())
    latents = torch.randn(1, 4, 16, 16, 10)
    stream = decoder.stream(tiles)
    pixels: list[Tensor] = []
    most = most_allocated(lambda: pixels.extend(map(stream.decode, latents.split([1, 3], dim=1))))
    need = decoder.sizes.memory((1, 3, 16, 10), 4, tiles)
    assert 0.5 * (need.working + need.waiting) < most < need.working + need.waiting
    assert pixels[1].shape == (1, 12, 128, 80, 3)


def test_more_tiles_work_in_less_memory() -> None:
    needs = [DecoderSizes().memory((1, 3, 136, 240), 2, tiles) for tiles in range(1, 137)]
    working = [need.working for need in needs]
    assert working == sorted(working, reverse=True)
    assert needs[0].waiting == 0
    assert working[0] == pytest.approx(23.3e9, rel=0.05)  # 23.1 GB on an H200
    assert working[-1] < 0.15 * working[0]


def test_sizes_of_a_config() -> None:
    bundled = json.loads((ASSETS / "tiny" / "vae" / "config.json").read_text())
    assert DecoderSizes.of(bundled) == DecoderSizes(24 / 4, 8)
    with torch.device("meta"):
        assert DecoderSizes.of(AutoencoderKLWan().config) == DecoderSizes() == DecoderSizes.of({})
    assert DecoderSizes.of(make_vae("wan 2.2").config) == DecoderSizes(2, 16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("layout", SIZES)
@pytest.mark.usefixtures("exact_float32")
def test_on_a_gpu(layout: str) -> None:
    """There the tiles that wait are in the main memory."""
    vae, latents = make_vae(layout), latents_of(6, 40, 2)
    expected = one_shot(VideoDecoder(vae), latents)
    decoder = VideoDecoder(vae.cuda())
    for tiles in (1, 3, 40):
        pixels = decode(decoder, latents, tiles, [3, 2, 1]).cpu()
        torch.testing.assert_close(pixels, expected, atol=1e-4, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_tiles_spare_the_memory_of_a_gpu() -> None:
    torch.manual_seed(0)
    with torch.device("cuda"):
        decoder = VideoDecoder(AutoencoderKLWan().to(torch.bfloat16).eval().requires_grad_(False))
    latents, most = torch.randn(1, 7, 16, 60, 104), {}
    for tiles in (1, 4):
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        stream = decoder.stream(tiles)
        for part in latents.split([1, 3, 3], dim=1):
            stream.decode(part)
        most[tiles] = torch.cuda.max_memory_allocated() - held
        assert most[tiles] < decoder.sizes.memory((1, 3, 60, 104), 2, tiles).working
        del stream
    assert most[4] < 0.5 * most[1]
