"""Measures on constructed videos whose values are known, and against slow direct computations."""

import math

import numpy as np
import pytest
import torch

from dummyforcing.checkpoints.vae import load_vae
from dummyforcing.evaluation.fidelity import EQUAL_PSNR, compare, psnr, ssim
from dummyforcing.evaluation.metrics import (
    SeamChange,
    changes,
    drifts,
    dynamic_degree,
    frame_statistics,
    luma,
    repetition,
    require_video,
    seam_change,
    seams,
    slope,
    temporal_flicker,
)
from tests.pictures import blur

FPS = 16


def gray(levels, size=24):
    """One flat gray frame per level, `(T, size, size, 3)`."""
    column = np.asarray(levels, np.uint8)[:, None, None, None]
    return np.broadcast_to(column, (len(levels), size, size, 3)).copy()


def texture(frames=1, size=48, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (1, size, size, 3), np.uint8)
    return np.repeat(noise, frames, 0)


# --- change ---------------------------------------------------------------------------------------------


def test_flicker_of_alternating_brightness():
    video = gray([100 + 7 * (-1) ** t for t in range(20)])
    assert changes(video) == pytest.approx(np.full(19, 14 / 255), abs=1e-12)
    assert temporal_flicker(changes(video)) == pytest.approx((255 - 14) / 255, abs=1e-12)
    assert temporal_flicker(changes(texture(5))) == 1
    assert temporal_flicker(changes(texture(1))) is None


def test_change_is_that_of_single_pixels():
    video = np.random.default_rng(1).integers(0, 256, (4, 5, 6, 3), np.uint8)
    slow = [
        sum(abs(int(a) - int(b)) for a, b in zip(video[t].flat, video[t + 1].flat, strict=True)) / 90 / 255
        for t in range(3)
    ]
    assert changes(video) == pytest.approx(np.array(slow), abs=1e-12)


@pytest.mark.parametrize(("chunk_frames", "pixel_frames"), [(3, 81), (3, 33), (1, 17), (2, 29), (3, 9)])
def test_seams_are_where_chunks_begin(chunk_frames, pixel_frames):
    """Against the definition: n latent frames decode to 1 + 4(n - 1) pixel frames."""
    chunk_of = []
    for latent in range((pixel_frames - 1) // 4 + 1):
        chunk_of += [latent // chunk_frames] * (4 if latent else 1)
    assert len(chunk_of) == pixel_frames
    begins = [t for t in range(1, pixel_frames) if chunk_of[t] != chunk_of[t - 1]]
    assert seams(pixel_frames, chunk_frames) == begins


def test_seams_are_those_of_the_decoder(model_folder):
    vae = load_vae(model_folder / "vae", torch.device("cpu"), torch.float32)
    stream, made = vae.stream(), 0
    begins = []
    for _ in range(3):
        begins.append(made)
        made += stream.decode(torch.zeros(1, 3, 16, 4, 4)).shape[1]
    assert seams(made, 3) == begins[1:]


def some_seam_change(change: np.ndarray, chunk_frames: int) -> SeamChange:
    """Of a video that has seams."""
    found = seam_change(change, chunk_frames)
    assert found is not None
    return found


def test_a_jump_at_every_seam():
    """Levels rise by 2 per latent frame and by 8 at a seam; nothing moves in between."""
    levels, level = [], 20
    for latent in range(12):
        if latent:
            level += 8 if latent % 3 == 0 else 2
        levels += [level] * (4 if latent else 1)
    found = some_seam_change(changes(gray(levels)), 3)
    assert found.ratio == pytest.approx(4)
    assert found.excess == pytest.approx(6)
    smooth = some_seam_change(changes(gray(np.arange(45) * 2)), 3)
    assert (smooth.ratio, smooth.excess) == pytest.approx((1, 0))


def test_a_seam_is_compared_with_the_chunks_beside_it():
    """One jump of 9; beside it the borders of latent frames change by 1, elsewhere by 100."""
    change = np.zeros(44)  # 12 latent frames, four chunks
    change[[0, 4]] = 100  # in the first chunk: beside the first seam alone
    change[[12, 16, 24, 28]] = 1  # in the second and third chunk
    change[20] = 9
    found = some_seam_change(change / 255, 3)
    inside = np.mean([(100 + 100 + 1 + 1) / 4, 1, (1 + 1 + 0 + 0) / 4])
    assert found.excess == pytest.approx(3 - inside)
    assert found.ratio == pytest.approx(3 / inside)


def test_seams_of_single_frames_and_of_standing_pictures():
    framewise = np.where(np.arange(16) % 4 == 0, 6.0, 2.0) / 255
    assert some_seam_change(framewise, 1).ratio == pytest.approx(3)
    assert some_seam_change(np.zeros(44), 3).ratio is None
    assert some_seam_change(np.zeros(44), 3).excess == 0
    assert seam_change(np.zeros(8), 3) is None  # a single chunk


def test_dynamic_degree():
    assert dynamic_degree(texture(6)) == 0
    assert dynamic_degree(texture(1)) is None
    video = texture(3, size=20)
    video[1, :5, :8, 1] ^= 0x80  # 40 of 400 pixels change by 128, there and back
    assert dynamic_degree(video) == pytest.approx(40 / 400)
    quiet = gray([100, 108, 100])
    assert dynamic_degree(quiet) == 0
    assert dynamic_degree(quiet, floor=7) == 1
    assert dynamic_degree(gray([255, 0, 255])) == 1  # no overflow


# --- statistics -----------------------------------------------------------------------------------------


def test_statistics_of_known_frames():
    half = gray([0])
    half[:, :, 12:] = 200
    red = np.zeros_like(half)
    red[..., 0] = 255
    found = frame_statistics(np.concatenate([half, red]))
    assert found["brightness"] == pytest.approx([100 / 255, 0.2126])
    assert found["contrast"] == pytest.approx([100 / 255, 0], abs=1e-6)
    assert found["saturation"] == pytest.approx([0, 1])
    # Inside of the border, two of 22 columns have a Laplacian of +200 and -200.
    assert found["sharpness"] == pytest.approx([2 / 22 * 200**2, 0], abs=1e-2)


def test_laplacian_against_loops():
    frame = texture(size=7)[0]
    y = frame.astype(np.float64) @ [0.2126, 0.7152, 0.0722]
    values = [
        y[i - 1, j] + y[i + 1, j] + y[i, j - 1] + y[i, j + 1] - 4 * y[i, j]
        for i in range(1, 6)
        for j in range(1, 6)
    ]
    assert frame_statistics(frame[None])["sharpness"] == pytest.approx([np.var(values)], rel=1e-5)
    assert luma(frame) == pytest.approx(y, rel=1e-5)


def test_blur_lowers_sharpness():
    sharp = torch.from_numpy(texture()).permute(0, 3, 1, 2) / 255
    videos = [sharp, *(blur(sharp, sigma) for sigma in (0.4, 0.7, 1.0, 1.5, 2.5))]
    found = [
        frame_statistics((video.permute(0, 2, 3, 1) * 255).byte().numpy())["sharpness"][0] for video in videos
    ]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == len(found)


def test_slope_of_a_line_and_of_noise():
    t = np.arange(50) / FPS
    assert slope(3 - 0.7 * t, FPS) == pytest.approx(-0.7)
    curve = np.random.default_rng(2).standard_normal(50)
    assert slope(curve, FPS) == pytest.approx(np.polyfit(t, curve, 1)[0])
    assert slope(curve[:1], FPS) is None


def test_drift_of_a_contrast_ramp():
    """A checkerboard whose amplitude grows by one gray level per frame, in red and blue alike."""
    sign = np.where(np.indices((24, 24)).sum(0) % 2, 1, -1)[None, :, :, None]
    video = (128 + sign * (20 + np.arange(40))[:, None, None, None]).astype(np.uint8).repeat(3, 3)
    found = drifts(frame_statistics(video), FPS)
    assert found["contrast"] == pytest.approx(FPS / 255, rel=1e-5)
    assert found["brightness"] == pytest.approx(0, abs=1e-6)
    assert found["saturation"] == 0
    sharpness = (8.0 * np.arange(20, 60)) ** 2  # the Laplacian is 8 amplitudes everywhere
    expected = np.polyfit(np.arange(40) / FPS, sharpness, 1)[0] / sharpness.mean()
    assert found["sharpness"] == pytest.approx(expected, rel=1e-4)
    assert drifts(frame_statistics(texture(30)), FPS) == pytest.approx(
        {"brightness": 0, "contrast": 0, "saturation": 0, "sharpness": 0}
    )
    flat = drifts(frame_statistics(gray(range(50, 90))), FPS)
    assert flat["brightness"] == pytest.approx(FPS / 255)
    assert flat["sharpness"] == 0
    assert set(drifts(frame_statistics(texture()), FPS).values()) == {None}


def test_repetition():
    cycle = [texture(seed=seed)[0] // 2 for seed in range(20)]
    loop = np.stack([cycle[t % 20] for t in range(80)])
    assert repetition(loop, FPS) == pytest.approx(1)
    fade = gray(np.arange(80) * 3)
    assert repetition(fade, FPS) == 0
    there_and_back = gray([abs(40 - t) * 3 for t in range(80)])
    found = repetition(there_and_back, FPS)
    assert found is not None
    assert 0.1 < found < 0.9
    assert repetition(texture(80), FPS) is None
    assert repetition(loop[:47], FPS) is None


# --- fidelity -------------------------------------------------------------------------------------------


def slow_ssim(x, y):
    """SSIM of two gray pictures as its paper writes it, window by window in float64."""
    ticks = np.arange(-5, 6)
    window = np.exp(-(ticks[:, None] ** 2 + ticks[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            both = (window * (a - mean_a) * (b - mean_b)).sum()
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            values.append(
                (2 * mean_a * mean_b + c1)
                * (2 * both + c2)
                / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
            )
    return float(np.mean(values))


def test_ssim_against_its_paper():
    x = texture(size=19)[0, :, :17]
    for y in (x, 255 - x, texture(size=19, seed=3)[0, :, :17], x // 2, (x.astype(int) * 3 // 4 + 30)):
        y = y.astype(np.uint8)
        expected = slow_ssim(*(p.astype(np.float64) @ [0.2126, 0.7152, 0.0722] for p in (x, y)))
        assert ssim(x, y) == pytest.approx(expected, abs=2e-5)


def test_psnr():
    video = texture(3)
    off = np.where(video < 128, video + 5, video - 5)
    assert psnr(off, video) == pytest.approx(10 * math.log10(255**2 / 25))
    assert psnr(gray([0, 0]), gray([255, 255])) == 0
    one = video.copy()
    one[0, 0, 0, 0] ^= 1
    assert psnr(one, video) == pytest.approx(10 * math.log10(255**2 * video.size))
    assert psnr(video, video) == EQUAL_PSNR


def test_compare():
    video, other = texture(3), texture(3, seed=4)
    assert compare(video, video).psnr == EQUAL_PSNR
    assert compare(video, video).ssim == pytest.approx(1, abs=1e-6)
    mixed = np.concatenate([video[:2], other[2:]])
    assert compare(mixed, video).ssim == pytest.approx((2 + ssim(other[2], video[2])) / 3, abs=1e-6)
    with pytest.raises(ValueError, match="cannot be compared"):
        compare(video, other[:2])
    with pytest.raises(ValueError, match="11x11"):
        compare(gray([0], size=10), gray([0], size=10))


@pytest.mark.parametrize(
    "frames", [np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8), np.zeros((2, 2, 8, 3), np.uint8)]
)
def test_what_is_no_video(frames):
    with pytest.raises(ValueError, match="frames must"):
        require_video(frames)
