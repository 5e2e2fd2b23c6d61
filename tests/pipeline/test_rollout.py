"""Videos as presets and requests describe them, against samplers and VAE calls put together by hand."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dummyforcing.errors import BadRequest, UserError
from dummyforcing.media.clips import read_mp4, read_video
from dummyforcing.media.video import write_mp4
from dummyforcing.pipeline.choices import choose_policy
from dummyforcing.pipeline.memory import estimate
from dummyforcing.pipeline.pipeline import DummyForcingPipeline, load
from dummyforcing.pipeline.request import make_request
from dummyforcing.presets.preset import ScheduleArgs
from dummyforcing.sampling.block import BlockSampler
from dummyforcing.sampling.noise import seeded_noise
from dummyforcing.sampling.passes import Passes
from dummyforcing.sampling.recompute import RecomputeSampler
from dummyforcing.sampling.sampler import Sampler
from dummyforcing.sampling.schedule import make_schedule
from dummyforcing.sampling.teacache import skip_table

PROMPT, OTHER = "a red ball bounces", "a blue cube spins"
SIZE = (32, 48)


@pytest.fixture(scope="module")
def pipeline(model_folder: Path) -> DummyForcingPipeline:
    return load(model_folder)


def with_preset(pipeline: DummyForcingPipeline, **changes: Any) -> DummyForcingPipeline:
    """The same weights under another preset."""
    files = dataclasses.replace(pipeline.files, preset=dataclasses.replace(pipeline.files.preset, **changes))
    return DummyForcingPipeline.from_parts(files, pipeline.model, pipeline.text, pipeline.vae)


def sampler(
    pipeline: DummyForcingPipeline, kind: Callable[..., Sampler] = BlockSampler, **options: Any
) -> Sampler:
    preset = pipeline.files.preset
    return kind(
        pipeline.model,
        pipeline.text.encode(PROMPT),
        choose_policy(preset, options.pop("policy", "dense")),
        options.pop("schedule", make_schedule(preset.schedule.steps, preset.schedule.shift)),
        (1, pipeline.model.config.in_dim, SIZE[0] // pipeline.vae.stride, SIZE[1] // pipeline.vae.stride),
        chunk_frames=preset.chunk_frames,
        seeds=options.pop("seeds", [5]),
        **options,
    )


def assert_same(frames: np.ndarray, expected: torch.Tensor) -> None:
    """Equal up to the rounding of pixels: caches of other capacity may round otherwise in the last bit."""
    assert np.abs(frames.astype(int) - expected[0].numpy()).max() <= 1


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    n, y, x = np.ogrid[:21, : SIZE[0], : SIZE[1]]
    wave = np.sin((x + 3 * n) / 9) + np.cos(y / 7)
    write_mp4(
        tmp_path / "clip.mp4", np.stack([127 + 55 * wave, 127 - 55 * wave, 60 + 40 * wave], -1).astype("u1")
    )
    return tmp_path / "clip.mp4"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def test_a_clip_is_the_first_chunk(pipeline: DummyForcingPipeline, clip: Path) -> None:
    one = with_preset(pipeline, start="clip")
    video = one.generate(PROMPT, num_frames=21, seed=5, policy="dense", video=clip)
    latents = one.vae.encode(torch.from_numpy(read_video(clip, 9, SIZE, from_end=True))[None])
    by_hand = sampler(one)
    by_hand.extend(latents)
    expected = one.vae.decode(torch.cat([latents, by_hand.next_chunk()], 1))
    assert_same(video.frames, expected)


def test_a_clip_of_images_is_that_of_their_file(pipeline: DummyForcingPipeline, clip: Path) -> None:
    one = with_preset(pipeline, start="clip")
    images = [Image.fromarray(frame) for frame in read_mp4(clip)]
    size = (SIZE[0] - 16, SIZE[1])  # so that they are cut
    for end in ("start", "end"):
        of_file, of_images = (
            make_request(one.files, PROMPT, num_frames=21, size=size, video_from=end, video=video)
            for video in (clip, images)
        )
        assert of_file.start is not None
        np.testing.assert_array_equal(of_images.start, of_file.start)
    with pytest.raises(BadRequest, match="A video of 8 frames is too short; give 9 or more"):
        one.generate(PROMPT, num_frames=21, video=images[:8])


def test_an_image_is_that_of_its_file(pipeline: DummyForcingPipeline, image: Path) -> None:
    one = with_preset(pipeline, start="frame", chunk_frames=1)
    half = Image.open(image).convert("RGBA")
    half.putalpha(100)
    half.save(image)
    of_file, of_image = (
        make_request(one.files, PROMPT, num_frames=9, size=(32, 32), image=picture)
        for picture in (image, half)
    )
    assert of_file.start is not None
    np.testing.assert_array_equal(of_image.start, of_file.start)


def test_an_image_is_the_first_frame(pipeline: DummyForcingPipeline, image: Path) -> None:
    one = with_preset(
        pipeline, start="frame", chunk_frames=1, first_schedule=ScheduleArgs((1000, 700, 300), 5)
    )
    video = one.generate(PROMPT, num_frames=9, seed=5, policy="dense", image=image)
    latents = one.vae.encode(torch.from_numpy(np.asarray(Image.open(image)))[None, None])
    by_hand = sampler(one, first_schedule=make_schedule([1000, 700, 300], 5))
    by_hand.extend(latents)
    made = [by_hand.next_chunk() for _ in range(2)]
    assert_same(video.frames, one.vae.decode(torch.cat([latents, *made], 1)))


@pytest.mark.parametrize("keep", [False, True])
def test_a_context_with_an_encoded_first_frame(
    pipeline: DummyForcingPipeline, image: Path, keep: bool
) -> None:
    """Krea's sampler: an image fills the first chunk; later contexts begin with an encoded pixel frame."""
    one = with_preset(
        pipeline, sampler="recompute", context_frames=3, keep_first_frame=keep, start="chunk", native="dense"
    )
    video = one.generate(PROMPT, num_frames=45, seed=5, policy="dense", image=image)
    latents = one.vae.encode(
        torch.from_numpy(np.asarray(Image.open(image)))[None, None].expand(1, 9, -1, -1, -1)
    )
    stream = one.vae.stream()
    pixels: list[torch.Tensor] = []
    used: list[int] = []

    def first_latent() -> torch.Tensor:
        used.append(sum(p.shape[1] for p in pixels) - 9)
        return one.vae.encode(torch.cat(pixels, 1)[:, used[-1]][:, None])

    by_hand = sampler(one, RecomputeSampler, context_frames=3, first_latent=None if keep else first_latent)
    by_hand.extend(latents)
    pixels.append(stream.decode(latents))
    for _ in range(3):
        pixels.append(stream.decode(by_hand.next_chunk()))
    assert_same(video.frames, torch.cat(pixels, 1))
    assert used == ([] if keep else [12, 24])


def test_a_video_is_made_anew_from_another(pipeline: DummyForcingPipeline, clip: Path) -> None:
    one = with_preset(pipeline, start="chunk")
    video = one.generate(PROMPT, num_frames=21, seed=5, policy="dense", video=clip, strength=0.6)
    source = one.vae.encode(torch.from_numpy(read_video(clip, 21, SIZE))[None])
    schedule = make_schedule([600, 300], 5)
    noted: list[torch.Tensor] = []

    class Noting(Passes):
        def tokens(self, x: torch.Tensor) -> torch.Tensor:
            noted.append(x)
            return super().tokens(x)

    by_hand = sampler(one, schedule=schedule, source=source)
    by_hand.passes.__class__ = Noting
    made = torch.cat([by_hand.next_chunk() for _ in range(2)], 1)
    assert_same(video.frames, one.vae.decode(made))
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(noted[0].shape[1:], generator=generator)[None]
    sigma = schedule.sigmas[0]
    assert 0.8 < sigma < 0.95  # 600 of 1000, shifted by 5
    torch.testing.assert_close(noted[0], (1 - sigma) * source[:, :3] + sigma * noise)


def test_a_long_video_of_several_rollouts(pipeline: DummyForcingPipeline) -> None:
    """CausVid: each further rollout begins with an encoded pixel frame and the last latents."""
    one = with_preset(pipeline, max_frames=9, overlap_frames=3)
    video = one.generate(PROMPT, num_frames=81, seed=5, policy="dense")
    noise = seeded_noise([5])
    pixels, start = [], None
    for _ in range(3):
        by_hand = sampler(one, seeds=noise)
        latents = []
        if start is not None:
            by_hand.extend(start)
            latents.append(start)
        while by_hand.frames < 9:
            latents.append(by_hand.next_chunk())
        made = one.vae.decode(torch.cat(latents, 1))
        start = torch.cat([one.vae.encode(made[:, -9:-8]), latents[-1][:, -2:]], 1)
        pixels.append(made[:, :-9])
    pixels.append(made[:, -9:])
    assert [p.shape[1] for p in pixels] == [24, 24, 24, 9]
    assert_same(video.frames, torch.cat(pixels, 1))
    chunks = list(one.stream(PROMPT, num_frames=93, seed=5, policy="dense"))
    assert [chunk.frames.shape[1] for chunk in chunks] == [1, 8, 12, 3, 21, 3, 21, 3, 21]
    assert len({chunk.cache_bytes for chunk in chunks}) == 1


def test_a_fade_goes_on_where_a_rollout_ends(pipeline: DummyForcingPipeline) -> None:
    """Each of n chunks takes one of n equal steps to the new prompt, whatever rollout it is of."""
    options: dict[str, Any] = {"num_frames": 105, "policy": "dense", "switches": [(1.5, OTHER)], "fade": 4}
    a, b = pipeline.text.encode(PROMPT), pipeline.text.encode(OTHER)

    def shares(one: DummyForcingPipeline) -> list[float]:
        rollout, found = one.rollout(make_request(one.files, PROMPT, **options)), []
        while not rollout.is_done:
            rollout.next_latents()
            mixed = rollout.sampler.prompts.embeds
            found.append(round(float(((mixed - a) * (b - a)).sum() / (b - a).square().sum()), 4))
        return found

    whole = shares(pipeline)
    assert whole == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert shares(with_preset(pipeline, max_frames=9, overlap_frames=3)) == whole


@pytest.mark.parametrize(("recache", "fade"), [(0, 1), (6, 1), (0, 2)])
def test_the_prompt_changes_on_the_way(pipeline: DummyForcingPipeline, recache: int, fade: int) -> None:
    one = with_preset(pipeline, recache_frames=recache)
    # 1 s is pixel frame 16, which latent frame 4 begins before and 5 after: the next chunk begins at 6.
    video = one.generate(PROMPT, num_frames=45, seed=5, policy="dense", switches=[(1.0, OTHER)], fade=fade)
    by_hand = sampler(one, recache_frames=recache, global_sink=one.files.preset.global_sink)
    made = [by_hand.next_chunk() for _ in range(2)]
    by_hand.set_prompt(one.text.encode(OTHER), chunks=fade)
    made += [by_hand.next_chunk() for _ in range(2)]
    assert_same(video.frames, one.vae.decode(torch.cat(made, 1)))
    plain = one.generate(PROMPT, num_frames=45, seed=5, policy="dense")
    assert np.array_equal(video.frames[:21], plain.frames[:21])
    assert not np.array_equal(video.frames[21:33], plain.frames[21:33])


def test_every_sampler_with_every_policy(pipeline: DummyForcingPipeline) -> None:
    """Presets decide the loop; all policies run on each, and a stream is the same video."""
    changes = {
        "block": {},
        "rolling": {"sampler": "rolling", "native": "window:3,6", "local_attention_size": 12},
        "recompute": {"sampler": "recompute", "context_frames": 3},
    }
    for preset in changes.values():
        one = with_preset(pipeline, **preset)
        for policy in ("dense", "native", "dummy"):
            video = one.generate(PROMPT, num_frames=57, seed=1, policy=policy)
            assert len(video.frames) == 57
            assert (video.plan.chunk is not None) == (policy == "dummy")
        pieces = [chunk.frames[0] for chunk in one.stream(PROMPT, num_frames=57, seed=1, policy="dummy")]
        assert np.array_equal(np.concatenate(pieces), video.frames)


@pytest.mark.parametrize(
    ("start", "options", "message"),
    [
        (None, {"image": "image.png"}, "starts from a prompt alone"),
        ("clip", {"image": "image.png"}, "goes on from a clip of 9 pixel frames"),
        ("frame", {"image": "image.png", "video": "clip.mp4"}, "give one of them"),
        ("chunk", {"strength": 0.5}, "A strength goes with a video on models that make one from it"),
        (
            "chunk",
            {"video": "clip.mp4", "strength": 1.5, "num_frames": 21},
            r"strength=1\.5 is out of range; take more than 0 and 1 at most",
        ),
        (
            "chunk",
            {"video": "clip.mp4", "num_frames": 81},
            "is too short, it lasts 1.31 s; give 5.06 s or more",
        ),
        (
            None,
            {"switches": [(4.9, OTHER)]},
            "cannot change at 4.9 s; the last chunk of this video begins at 4.31 s",
        ),
        (None, {"switches": [(0.0, OTHER)]}, "cannot change at 0 s"),
        (None, {"switches": [(1.0, "  ")]}, "prompt to change to is empty"),
        (None, {"switches": [(1.0, OTHER)], "fade": 0}, r"fade=0 is out of range; take 1 or more chunks"),
        (None, {"teacache": 0.0}, "threshold of 0 is out of range"),
        (None, {"teacache": [0]}, "Step 0 cannot be left out"),
        (None, {"teacache": [2]}, "Step 2 cannot be left out: the first one always runs; take 1 to 1"),
    ],
)
def test_what_cannot_be_done_is_refused(
    pipeline: DummyForcingPipeline,
    clip: Path,
    image: Path,
    start: str | None,
    options: dict[str, Any],
    message: str,
) -> None:
    files = with_preset(pipeline, start=start).files
    for name in ("image", "video"):
        if name in options:
            options = {**options, name: image.parent / str(options[name])}
    with pytest.raises(UserError, match=message):
        make_request(files, PROMPT, **options)


def test_teacache_leaves_out_the_steps_of_its_table(pipeline: DummyForcingPipeline) -> None:
    schedule = ScheduleArgs((1000, 750, 500, 250), 3)
    one = with_preset(pipeline, schedule=schedule)
    steps = make_schedule(schedule.steps, schedule.shift)
    timesteps = [*steps.timesteps, 0.0]
    table = skip_table([one.model.embed_time(torch.tensor([[t]])) for t in timesteps], timesteps, 0.2)
    assert any(table)
    skipped = tuple(step for step, is_skipped in enumerate(table) if is_skipped)
    expected = one.vae.decode(torch.cat(list(sampler(one, schedule=steps, skips=table, frames=9)), 1))
    plain = one.generate(PROMPT, num_frames=33, size=SIZE, seed=5, policy="dense").frames
    for teacache in (0.2, skipped):
        options: dict[str, Any] = {
            "num_frames": 33,
            "size": SIZE,
            "seed": 5,
            "policy": "dense",
            "teacache": teacache,
        }
        assert one.skipped_steps(make_request(one.files, PROMPT, **options)) == skipped
        frames = one.generate(PROMPT, **options).frames
        assert_same(frames, expected)
        assert (frames != plain).any()
    assert one.skipped_steps(make_request(one.files, PROMPT)) == ()


@pytest.mark.parametrize("changes", [{"sampler": "rolling"}, {"sampler": "recompute", "context_frames": 3}])
def test_teacache_needs_steps_of_their_own(
    pipeline: DummyForcingPipeline, changes: dict[str, object]
) -> None:
    files = with_preset(pipeline, **changes).files
    with pytest.raises(UserError, match="take a model of sampler 'block'"):
        make_request(files, PROMPT, teacache=0.2)


@pytest.mark.parametrize("policy", ["dense", "native", "dummy", "window:1,2"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"native": "window:1,2", "local_attention_size": 6},
        {"max_frames": 9, "overlap_frames": 3},
        {"sampler": "rolling", "native": "window:3,6", "local_attention_size": 12},
        {"sampler": "recompute", "context_frames": 3},
    ],
    ids=["block", "local_attention_size", "rollouts", "rolling", "recompute"],
)
def test_the_cache_is_as_large_as_estimated(
    pipeline: DummyForcingPipeline, changes: dict[str, object], policy: str
) -> None:
    one = with_preset(pipeline, **changes)
    request = make_request(one.files, PROMPT, num_frames=57, policy=policy)
    largest = max(chunk.cache_bytes for chunk in one.run(request))
    # Pinned keys that move are kept twice; sink heads differ from dummy heads in nothing else.
    assert 0.9 * largest <= estimate(one.files, request, torch.float32).cache <= 1.2 * largest
