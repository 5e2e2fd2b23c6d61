"""The measures of a growing video, on videos whose measures are known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dummyforcing.media.monitor import Monitor

FPS, CHUNK = 16, 12


def measure(frames, *splits):
    """See a video in pieces; the measures at its end."""
    monitor = Monitor(FPS, CHUNK)
    for piece in np.split(frames, sorted(splits)):
        if len(piece):
            measures = monitor.see(piece)
    return measures


def still(count=121, size=(64, 48), seed=0):
    picture = np.random.default_rng(seed).integers(0, 256, (1, *size, 3), np.uint8)
    return np.repeat(picture, count, 0)


def gray(levels, size=(64, 48)):
    return np.round(levels).astype(np.uint8)[:, None, None, None] * np.ones((1, *size, 3), np.uint8)


def noise(count=241, deviation=20, seed=0):
    values = np.random.default_rng(seed).normal(128, deviation, (count, 64, 48, 3))
    return values.clip(0, 255).astype(np.uint8)


def rolling(steps, size=64):
    """A picture that is pushed to the right by so many pixels in all, frame by frame."""
    wave = 128 + 80 * np.sin(np.arange(size) * 2 * np.pi / size)
    picture = np.repeat(wave[None, :, None], size, 0).repeat(3, 2).astype(np.uint8)
    return np.stack([np.roll(picture, step, 1) for step in steps])


def test_a_constant_video_stands_still():
    found = measure(still())
    assert found.drift == pytest.approx(0, abs=1e-9)
    assert (found.repetition, found.motion) == (0, 0)


def test_a_fade_drifts_by_its_slope():
    """From the middle of the first second to the middle of the newest chunk, at half a level a frame."""
    frames = gray(20 + 0.5 * np.arange(201))
    expected = 0.5 * ((200 - (CHUNK - 1) / 2) - (FPS - 1) / 2)
    found = measure(frames)
    assert found.drift == pytest.approx(expected, abs=0.5)  # levels are rounded
    assert found.motion == pytest.approx(0.5, abs=0.05)
    assert found.repetition == 0


def test_drift_is_the_largest_move_of_a_look():
    rng = np.random.default_rng(0)
    start = still()
    spread = rng.normal(0, 1, (1, 64, 48, 1))
    contrast = np.concatenate([128 + 10 * spread.repeat(60, 0), 128 + 25 * spread.repeat(60, 0)])
    found = measure(contrast.repeat(3, 3).clip(0, 255).astype(np.uint8))
    assert found.drift == pytest.approx(15, abs=0.5)
    for channel in range(3):
        moved = np.concatenate([start // 2, start // 2])
        moved[121:, ..., channel] += 30
        assert measure(moved).drift == pytest.approx(30, abs=1e-3)
    color = np.concatenate([gray(np.full(60, 100)), gray(np.full(60, 100))])
    color[60:] += np.array([10, 0, 246], np.uint8)  # +10, 0, -10: as bright on average, 20 more saturated
    assert measure(color).drift == 20


def test_a_loop_repeats_itself_and_what_moves_on_does_not():
    period = 40
    loop = rolling(np.arange(241) * 64 // period % 64)
    assert measure(loop[: period + CHUNK + 1]).repetition == 1
    assert measure(loop).repetition == 1
    assert measure(loop[: period - 1]).repetition < 0.5
    assert measure(rolling(np.arange(241) * 30 // 241)).repetition < 0.05
    assert measure(gray(10 + np.arange(241))).repetition == 0


def test_a_loop_of_any_period_is_found():
    """Latent frames are compared: a period between theirs costs up to two pixel frames of motion."""
    for period in (36, 41, 47, 50):
        assert measure(rolling(np.arange(361) * 64 // period % 64)).repetition > 0.75, period


def test_noise_repeats_nothing():
    assert measure(noise()).repetition < 0.2
    assert measure(noise(deviation=90)).repetition < 0.2
    quiet = (still(241).astype(int) + noise(deviation=2) - 128).clip(0, 255).astype(np.uint8)
    assert measure(quiet).repetition < 0.1


def test_motion_of_a_video_that_freezes():
    moving = rolling(np.arange(60))
    frozen = np.concatenate([moving, np.repeat(moving[-1:], CHUNK + 1, 0)])
    assert measure(moving).motion > 1
    assert measure(frozen).motion == 0
    assert measure(frozen[:-2]).motion == pytest.approx(measure(moving).motion / CHUNK, rel=0.2)


@settings(max_examples=30, deadline=None)
@given(splits=st.lists(st.integers(0, 150), max_size=12), count=st.integers(1, 150), seed=st.integers(0, 99))
def test_any_split_gives_what_the_whole_gives(splits, count, seed):
    rng = np.random.default_rng(seed)
    frames = rolling(rng.integers(0, 64, count)) // 2 + rng.integers(0, 9, (count, 1, 1, 1), np.uint8)
    assert measure(frames, *(split for split in splits if split < count)) == measure(frames)


@pytest.mark.parametrize("size", [(3, 5), (16, 16), (480, 832)])
def test_pictures_of_any_size(size):
    assert measure(gray(100 + np.arange(30), size)).motion == pytest.approx(1, abs=1e-4)


def test_little_is_kept_of_a_long_video():
    monitor = Monitor(FPS, CHUNK)
    piece = noise(CHUNK)
    for _ in range(400):
        monitor.see(piece)
    kept = monitor._past.nbytes + sum(look.nbytes for look in monitor._looks)
    assert kept < 2 * 600 * 400
