"""The public API: a call of the pipeline, what it gives in every form, other ways to the same video."""

import base64
import io
import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from PIL import Image
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.errors import BadFile, BadRequest, NoSuchDevice, UnknownWordsWarning
from dummyforcing.media.clips import read_mp4
from dummyforcing.pipeline.outputs import Chunk, OutputType, Video, VideoOutput
from dummyforcing.pipeline.pipeline import DummyForcingPipeline, load
from dummyforcing.pipeline.rollout import Rollout

PROMPT, OTHER = "a red ball bounces", "a blue cube spins"
FRAMES = 33
PIECES = [1, 8, 12, 12]
"""Pixel frames of the pieces of such a video: the first frame comes by itself."""


@pytest.fixture(scope="module")
def pipe(model_folder: Path) -> DummyForcingPipeline:
    return DummyForcingPipeline.from_pretrained(model_folder, device="cpu")


@pytest.fixture(scope="module")
def videos(pipe: DummyForcingPipeline) -> list[Video]:
    """Two videos of one batch, in 8 bits."""
    return pipe.generate([PROMPT, OTHER], num_frames=FRAMES)


@pytest.fixture(scope="module")
def frames(videos: list[Video]) -> np.ndarray:
    return np.stack([video.frames for video in videos])


@pytest.fixture(scope="module")
def single(pipe: DummyForcingPipeline) -> np.ndarray:
    """One video, `(F, H, W, 3)` in 8 bits."""
    return pipe.generate(PROMPT, num_frames=FRAMES).frames


def levels(values: np.ndarray) -> np.ndarray:
    """The gray levels that values in [0, 1] stand for; they must stand for whole ones."""
    assert values.min() >= 0
    assert values.max() <= 1
    assert np.abs(values * 255 - np.rint(values * 255)).max() < 1e-4
    found: np.ndarray = np.rint(values * 255).astype(np.uint8)
    return found


# What comes out


def test_arrays(pipe: DummyForcingPipeline, frames: np.ndarray, videos: list[Video]) -> None:
    out = pipe([PROMPT, OTHER], num_frames=FRAMES)
    assert isinstance(out, VideoOutput)
    assert isinstance(out.frames, np.ndarray)
    assert (out.frames.shape, out.frames.dtype) == ((2, FRAMES, 32, 48, 3), np.float32)
    assert np.array_equal(levels(out.frames), frames)
    assert out.fps == 16
    assert out.plans == tuple(video.plan for video in videos)
    assert out.cache_bytes == videos[0].cache_bytes
    assert out.timings.pixel_frames == 2 * FRAMES


def test_tensors(pipe: DummyForcingPipeline, frames: np.ndarray) -> None:
    out = pipe([PROMPT, OTHER], num_frames=FRAMES, output_type="pt").frames
    assert isinstance(out, torch.Tensor)
    assert (out.shape, out.dtype) == ((2, FRAMES, 3, 32, 48), torch.float32)
    assert np.array_equal(levels(out.permute(0, 1, 3, 4, 2).numpy()), frames)


def test_images(pipe: DummyForcingPipeline, frames: np.ndarray) -> None:
    out = pipe([PROMPT, OTHER], num_frames=FRAMES, output_type="pil").frames
    assert [len(video) for video in out] == [FRAMES, FRAMES]
    assert {(type(image), image.mode, image.size) for video in out for image in video} == {
        (Image.Image, "RGB", (48, 32))
    }
    assert np.array_equal(np.stack([[np.asarray(image) for image in video] for video in out]), frames)


def test_latents(pipe: DummyForcingPipeline, frames: np.ndarray, videos: list[Video]) -> None:
    out = pipe([PROMPT, OTHER], num_frames=FRAMES, output_type="latent")
    assert isinstance(out.frames, torch.Tensor)
    assert (out.frames.shape, out.frames.dtype) == ((2, 9, 16, 4, 6), torch.float32)
    assert np.abs(pipe.vae.decode(out.frames).numpy().astype(int) - frames).max() <= 1
    assert out.plans == tuple(video.plan for video in videos)
    assert out.cache_bytes == videos[0].cache_bytes
    with pytest.raises(BadRequest, match="Latents are no pixel frames"):
        out.pixels()
    with pytest.raises(BadRequest, match="Latents are no pixel frames"):
        out.save("a.mp4")


@pytest.mark.parametrize("kind", ["np", "pt", "pil"])
def test_every_form_can_be_saved_and_shown(
    pipe: DummyForcingPipeline, frames: np.ndarray, kind: OutputType, tmp_path: Path
) -> None:
    out = pipe([PROMPT, OTHER], num_frames=FRAMES, output_type=kind)
    for index in range(2):
        assert np.array_equal(out.pixels(index), frames[index])
    out.save(tmp_path / "ball.mp4")
    out.save(tmp_path / "cube.mp4", index=1)
    for name, expected in zip(("ball", "cube"), frames, strict=True):
        assert_shows(read_mp4(tmp_path / f"{name}.mp4"), expected)
    with pytest.raises(BadFile, match="does not exist"):
        out.save(tmp_path / "missing" / "ball.mp4")
    assert_played(out._repr_html_(), frames)


def assert_shows(shown: np.ndarray, expected: np.ndarray) -> None:
    """A lossy copy, whose colors have half the resolution: of these frames, in this order."""
    assert shown.shape == expected.shape
    bright, wanted = (video @ np.array([0.2126, 0.7152, 0.0722]) for video in (shown, expected))
    assert np.abs(bright - wanted).mean((1, 2)).max() < 6
    assert np.abs(bright - np.roll(wanted, 1, axis=0)).mean() > 12


def assert_played(html: str, expected: np.ndarray) -> None:
    """HTML has one player per video, whose data PyAV decodes to the frames."""
    found = re.findall(r'<video controls [^>]*width="48" src="data:video/mp4;base64,([^"]+)"></video>', html)
    assert len(found) == len(expected)
    for data, video in zip(found, expected, strict=True):
        with av.open(io.BytesIO(base64.b64decode(data)), "r") as opened:
            stream = opened.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert stream.average_rate == 16
            shown = np.stack([frame.to_ndarray(format="rgb24") for frame in opened.decode(video=0)])
        assert_shows(shown, video)


def test_what_is_shown_in_a_notebook(
    pipe: DummyForcingPipeline, videos: list[Video], frames: np.ndarray
) -> None:
    """The text is a short line, the HTML has the video in it."""
    assert_played(videos[1]._repr_html_(), frames[1:])
    assert re.fullmatch(r"Video\(33 frames of 48x32, 2\.1 s, made at [\d.]+ FPS\)", repr(videos[0]))
    out = pipe(PROMPT, num_frames=9)
    assert re.fullmatch(r"VideoOutput\(frames: \(1, 9, 32, 48, 3\), made at [\d.]+ FPS\)", repr(out))
    out = pipe(PROMPT, num_frames=9, output_type="pil")
    assert re.fullmatch(r"VideoOutput\(frames: 1 x 9 images, made at [\d.]+ FPS\)", repr(out))
    out = pipe(PROMPT, num_frames=9, output_type="latent")
    assert repr(out) == "VideoOutput(frames: (1, 3, 16, 4, 6), made at unknown speed)"
    assert out._repr_html_() == f"<code>{out!r}</code>"
    (chunk, *_) = pipe.stream(PROMPT, num_frames=9)
    assert "array" not in repr(chunk)
    assert len(repr(chunk)) < 500
    assert re.fullmatch(r"DummyForcingPipeline\([\w-]+, on cpu, float32\)", repr(pipe))
    run = pipe.start(PROMPT, num_frames=21)
    run.next_chunk()
    assert repr(run) == f"Rollout(('{PROMPT}',), 3 of 6 latent frames)"
    assert repr(pipe.start(PROMPT, num_frames=None)).endswith(", 0 latent frames)")


# What goes in


def test_a_size_is_a_height_and_a_width(pipe: DummyForcingPipeline) -> None:
    outs = [
        pipe(PROMPT, num_frames=9, **options).frames
        for options in ({"height": 64, "width": 32}, {"size": (64, 32)}, {"size": "32x64"})
    ]
    assert outs[0].shape == (1, 9, 64, 32, 3)
    assert np.array_equal(outs[0], outs[1])
    assert np.array_equal(outs[0], outs[2])
    assert pipe(PROMPT, num_frames=9, height=64).frames.shape == (1, 9, 64, 48, 3)
    assert pipe(PROMPT, num_frames=9, width=64).frames.shape == (1, 9, 32, 64, 3)
    with pytest.raises(
        BadRequest, match=r"Size 48x40 .* is no multiple of 16 pixels; the nearest is 48x32\."
    ):
        pipe(PROMPT, num_frames=9, height=40)


def test_seconds_are_the_nearest_number_of_frames(pipe: DummyForcingPipeline) -> None:
    out = pipe(PROMPT, seconds=1.2)
    assert out.frames.shape[1] == 21
    assert np.array_equal(out.frames, pipe(PROMPT, num_frames=21).frames)
    assert np.array_equal(out.frames, pipe(PROMPT, num_frames=None, seconds=1.2).frames)


def test_a_generator_draws_what_a_seed_does(pipe: DummyForcingPipeline) -> None:
    generator = torch.Generator().manual_seed(7)
    drawn = pipe(PROMPT, num_frames=21, generator=generator).frames
    assert np.array_equal(drawn, pipe(PROMPT, num_frames=21, seed=7).frames)
    assert not np.array_equal(drawn, pipe(PROMPT, num_frames=21, seed=0).frames)
    # It goes on from where it is, as in diffusers.
    assert not np.array_equal(drawn, pipe(PROMPT, num_frames=21, generator=generator).frames)


def test_a_batch_takes_a_list_of_generators(pipe: DummyForcingPipeline) -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    drawn = pipe([PROMPT, OTHER], num_frames=21, generator=generators).frames
    assert np.array_equal(drawn, pipe([PROMPT, OTHER], num_frames=21, seed=5).frames)
    for wrong in (generators[0], generators[:1], [*generators, torch.Generator()]):
        with pytest.raises(BadRequest, match=r"\d generators cannot draw the noise of 2 videos; give a list"):
            pipe([PROMPT, OTHER], num_frames=21, generator=wrong)


def test_the_global_generator_is_left_alone(pipe: DummyForcingPipeline) -> None:
    state = torch.get_rng_state()
    pipe(PROMPT, num_frames=21)
    assert torch.equal(state, torch.get_rng_state())


def test_embeddings_are_a_prompt(pipe: DummyForcingPipeline, frames: np.ndarray) -> None:
    embeds = pipe.text.encode([PROMPT, OTHER])
    assert np.array_equal(levels(pipe(prompt_embeds=embeds, num_frames=FRAMES).frames), frames)
    made = pipe.generate(prompt_embeds=embeds, num_frames=FRAMES)
    assert isinstance(made, list)
    assert np.array_equal(np.stack([video.frames for video in made]), frames)
    one = pipe.generate(prompt_embeds=embeds[:1], num_frames=FRAMES)
    assert isinstance(one, Video)
    assert np.array_equal(one.frames, pipe.generate(PROMPT, num_frames=FRAMES).frames)
    with pytest.raises(BadRequest, match=r"A prompt and prompt_embeds say the same; give one of them\."):
        pipe(PROMPT, prompt_embeds=embeds)
    for wrong in (embeds[0], embeds[:, :3], embeds[..., :3], embeds[:0]):
        with pytest.raises(
            BadRequest, match=r"prompt_embeds of shape \(.*\) do not fit .* give \(B, 16, 16\)"
        ):
            pipe(None, prompt_embeds=wrong)
    with pytest.raises(BadRequest, match="The prompt is empty"):
        pipe()


def test_policies_and_plans(pipe: DummyForcingPipeline) -> None:
    out = pipe(PROMPT, num_frames=FRAMES, policy="window:1,2")
    assert [plan.policy for plan in out.plans] == ["window"]
    assert out.cache_bytes < pipe(PROMPT, num_frames=FRAMES, policy="dense").cache_bytes
    (plan,) = pipe(PROMPT, num_frames=FRAMES).plans
    again = pipe(PROMPT, num_frames=FRAMES, plan=plan)
    assert again.plans == (plan,)


# Steering


def test_a_callback_sees_every_piece(pipe: DummyForcingPipeline, frames: np.ndarray) -> None:
    seen: list[tuple[Rollout, int, Chunk]] = []
    out = pipe(
        [PROMPT, OTHER],
        num_frames=FRAMES,
        callback_on_chunk_end=lambda run, number, chunk: seen.append((run, number, chunk)),
    )
    assert [number for _, number, _ in seen] == [0, 1, 2, 3]
    assert [chunk.frames.shape[1] for _, _, chunk in seen] == PIECES
    assert len({id(run) for run, _, _ in seen}) == 1
    assert np.array_equal(np.concatenate([chunk.frames for _, _, chunk in seen], 1), frames)
    assert np.array_equal(levels(out.frames), frames)
    assert out.timings == seen[-1][2].timings == seen[-1][0].timings


def test_a_callback_sees_the_latents_of_every_chunk(pipe: DummyForcingPipeline) -> None:
    seen: list[torch.Tensor] = []
    out = pipe(
        PROMPT,
        num_frames=FRAMES,
        output_type="latent",
        callback_on_chunk_end=lambda run, number, latents: seen.append(latents),
    )
    assert [latents.shape for latents in seen] == [(1, 3, 16, 4, 6)] * 3
    assert torch.equal(torch.cat(seen, 1), out.frames)


@pytest.mark.parametrize("kind", ["np", "latent"])
def test_a_callback_can_change_the_prompt(pipe: DummyForcingPipeline, kind: OutputType) -> None:
    """After the second chunk: what follows is what a rollout steered by hand shows."""
    run = pipe.start(PROMPT, num_frames=FRAMES)
    by_hand = [run.next_chunk(), run.next_chunk()]
    run.set_prompt(OTHER)
    by_hand.append(run.next_chunk())
    expected = np.concatenate([chunk.frames for chunk in by_hand], 1)

    last = 1 if kind == "latent" else 2  # the second chunk's piece

    def steer(run: Rollout, number: int, chunk: object) -> None:
        if number == last:
            run.set_prompt(OTHER)

    out = pipe(PROMPT, num_frames=FRAMES, output_type=kind, callback_on_chunk_end=steer).frames
    shown = pipe.vae.decode(out).numpy() if kind == "latent" else levels(out)
    assert np.abs(shown.astype(int) - expected).max() <= (1 if kind == "latent" else 0)
    plain = pipe.generate(PROMPT, num_frames=FRAMES).frames
    assert np.array_equal(shown[0, :9], plain[:9])
    assert not np.array_equal(shown[0, 21:], plain[21:])


def test_an_error_of_a_callback_ends_the_call(pipe: DummyForcingPipeline) -> None:
    seen: list[int] = []

    def fail(run: Rollout, number: int, chunk: Chunk) -> None:
        seen.append(number)
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        pipe(PROMPT, num_frames=FRAMES, callback_on_chunk_end=fail)
    assert seen == [0]


@pytest.mark.parametrize(
    ("prompt", "fade", "message"),
    [
        ("", 1, "The prompt is empty"),
        (["a red ball"], 1, "1 prompts cannot be shown by 2 videos; give one for all of them"),
        ([PROMPT, OTHER, OTHER], 1, "3 prompts cannot be shown by 2 videos"),
        ([PROMPT, " "], 1, "The prompt is empty"),
        (OTHER, 0, r"fade=0 is out of range; take 1 or more chunks\."),
        (OTHER, math.nan, r"fade=nan is no whole number"),
        (OTHER, None, r"fade=None is no whole number"),
        (None, 1, r"prompt=None is no text; give a str, or a list of them\."),
        ([PROMPT, 5], 1, r"prompt=.* is no text"),
    ],
)
def test_a_prompt_that_is_refused_changes_nothing(
    pipe: DummyForcingPipeline, prompt: Any, fade: Any, message: str
) -> None:
    run, plain = (pipe.start([PROMPT, OTHER], num_frames=21) for _ in range(2))
    for one in (run, plain):
        one.next_chunk()
    with pytest.raises(BadRequest, match=message):
        run.set_prompt(prompt, fade=fade)
    assert run.prompts == (PROMPT, OTHER)
    assert np.array_equal(run.next_chunk().frames, plain.next_chunk().frames)


def test_new_prompts_of_a_batch(pipe: DummyForcingPipeline) -> None:
    """One for all, or one for each; unknown words are told."""
    run, by_one = (pipe.start([PROMPT, OTHER], num_frames=21) for _ in range(2))
    for one, prompts in ((run, [OTHER, OTHER]), (by_one, OTHER)):
        one.next_chunk()
        one.set_prompt(prompts)
    assert run.prompts == by_one.prompts == (OTHER, OTHER)
    assert np.array_equal(run.next_chunk().frames, by_one.next_chunk().frames)
    with pytest.warns(UnknownWordsWarning, match="does not know the word zebra"):
        run.set_prompt("a red zebra")


# Without end


def test_videos_without_end(pipe: DummyForcingPipeline, single: np.ndarray) -> None:
    """They begin like those that end; `generate` and a call would never come back."""
    run = pipe.start(PROMPT, num_frames=None)
    made = np.concatenate([run.next_chunk().frames for _ in range(3)], 1)
    assert run.request.frames is None
    assert not run.is_done
    assert np.abs(made[0].astype(int) - single).max() <= 1
    streamed = list(itertools.islice(pipe.stream(PROMPT, num_frames=None), 6))
    assert [chunk.frames.shape[1] for chunk in streamed] == [*PIECES, 12, 12]
    assert np.array_equal(np.concatenate([chunk.frames for chunk in streamed[:4]], 1), made)
    calls: list[Callable[..., object]] = [pipe, pipe.generate]
    for call in calls:
        with pytest.raises(BadRequest, match=r"without end is never finished; take start\(\) or stream\(\)"):
            call(PROMPT, num_frames=None)


def test_the_cache_of_a_video_without_end_stays_as_it_is(pipe: DummyForcingPipeline) -> None:
    run = pipe.start(PROMPT, num_frames=None)
    sizes = [run.next_chunk().cache_bytes for _ in range(8)]
    assert len(set(sizes[2:])) == 1


# Rollouts


def test_a_stream_is_the_video(pipe: DummyForcingPipeline, frames: np.ndarray) -> None:
    pieces = list(pipe.stream([PROMPT, OTHER], num_frames=FRAMES))
    assert [piece.frames.shape for piece in pieces] == [(2, n, 32, 48, 3) for n in PIECES]
    assert all(piece.frames.dtype == np.uint8 for piece in pieces)
    assert np.array_equal(np.concatenate([piece.frames for piece in pieces], 1), frames)
    run = pipe.start([PROMPT, OTHER], num_frames=FRAMES)
    assert np.array_equal(np.concatenate([piece.frames for piece in run], 1), frames)
    assert run.is_done
    assert list(run) == []


def test_a_stream_is_checked_before_it_begins(pipe: DummyForcingPipeline) -> None:
    for options in ({"num_frames": 34}, {"size": (33, 48)}, {"policy": "magic"}):
        with pytest.raises(BadRequest):
            pipe.stream(PROMPT, **options)


def test_chunks_one_by_one(pipe: DummyForcingPipeline, single: np.ndarray) -> None:
    """Whole ones, also after a piece of one was taken by the iterator; then the video has its length."""
    run = pipe.start(PROMPT, num_frames=FRAMES)
    chunks = [run.next_chunk() for _ in range(3)]
    assert [chunk.frames.shape for chunk in chunks] == [(1, n, 32, 48, 3) for n in (9, 12, 12)]
    assert np.array_equal(np.concatenate([chunk.frames[0] for chunk in chunks]), single)
    assert [chunk.timings.pixel_frames for chunk in chunks] == [9, 21, 33]
    assert run.is_done
    with pytest.raises(BadRequest, match=r"The video has its length; start one with num_frames=None\."):
        run.next_chunk()
    with pytest.raises(BadRequest, match=r"The video has its length"):
        run.next_latents()

    mixed = pipe.start(PROMPT, num_frames=FRAMES)
    pieces = [next(iter(mixed)), mixed.next_chunk(), *mixed]
    assert [piece.frames.shape[1] for piece in pieces] == PIECES
    assert np.array_equal(np.concatenate([piece.frames[0] for piece in pieces]), single)


def test_a_fork_goes_its_own_way(pipe: DummyForcingPipeline, single: np.ndarray) -> None:
    run = pipe.start(PROMPT, num_frames=FRAMES)
    run.next_chunk()
    same, other = run.fork(), run.fork()
    other.set_prompt(OTHER)
    # Interleaved: none of them affects another.
    made: dict[str, list[np.ndarray]] = {"run": [], "same": [], "other": []}
    for _ in range(2):
        for name, one in (("other", other), ("run", run), ("same", same)):
            made[name].append(one.next_chunk().frames[0])
    assert np.array_equal(np.concatenate(made["run"]), single[9:])
    assert np.array_equal(np.concatenate(made["same"]), single[9:])
    assert not np.array_equal(np.concatenate(made["other"]), single[9:])
    assert (run.prompts, other.prompts) == ((PROMPT,), (OTHER,))
    steered = pipe.start(PROMPT, num_frames=FRAMES)
    steered.next_chunk()
    steered.set_prompt(OTHER)
    assert np.array_equal(made["other"][0], steered.next_chunk().frames[0])


def test_a_fork_in_the_middle_of_a_chunk(pipe: DummyForcingPipeline, single: np.ndarray) -> None:
    run = pipe.start(PROMPT, num_frames=FRAMES)
    next(iter(run))
    fork = run.fork()
    for one in (run, fork):
        assert np.array_equal(np.concatenate([piece.frames[0] for piece in one]), single[1:])


def test_a_rollout_is_saved_and_taken_up(
    pipe: DummyForcingPipeline, single: np.ndarray, tmp_path: Path
) -> None:
    run = pipe.start(PROMPT, num_frames=FRAMES)
    run.next_chunk()
    run.save(tmp_path / "ball.rollout")
    again = pipe.resume(tmp_path / "ball.rollout")
    assert np.array_equal(np.concatenate([piece.frames[0] for piece in again]), single[9:])
    assert np.array_equal(np.concatenate([piece.frames[0] for piece in run]), single[9:])


def test_timings(pipe: DummyForcingPipeline) -> None:
    """They only grow; on a CPU, nothing goes on beside."""
    run = pipe.start([PROMPT, OTHER], num_frames=FRAMES)
    seen = [piece.timings for piece in run]
    assert [timings.pixel_frames for timings in seen] == [2, 18, 42, 66]
    assert run.timings == seen[-1]
    assert len({timings.first_frame for timings in seen}) == 1
    assert seen[0].first_frame > seen[0].diffusion > 0
    for before, after in itertools.pairwise(seen):
        assert 0 < before.diffusion <= after.diffusion
        assert 0 < before.decode < after.decode
        assert before.wall < after.wall
    last = seen[-1]
    assert last.wall == last.diffusion + last.decode
    assert last.fps == 66 / last.wall
    assert last.fps_without_vae == 66 / last.diffusion
    assert pipe(PROMPT, num_frames=9, output_type="latent").timings.pixel_frames == 0


# The model


def test_components(pipe: DummyForcingPipeline) -> None:
    assert list(pipe.components) == ["transformer", "text_encoder", "tokenizer", "vae"]
    assert isinstance(pipe.components["vae"], AutoencoderKLWan)
    assert isinstance(pipe.components["text_encoder"], UMT5EncoderModel)
    assert pipe.components["transformer"] is pipe.model
    assert pipe.components["tokenizer"] is pipe.text.tokenizer


def test_parts_that_are_handed_in(pipe: DummyForcingPipeline, model_folder: Path, single: np.ndarray) -> None:
    vae = AutoencoderKLWan.from_pretrained(model_folder / "vae", low_cpu_mem_usage=False)
    text_encoder = UMT5EncoderModel.from_pretrained(model_folder / "text_encoder").train()
    tokenizer = AutoTokenizer.from_pretrained(str(model_folder / "tokenizer"))
    parts = {"vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer}
    other = load(model_folder, device="cpu", **parts)
    assert all(other.components[name] is part for name, part in parts.items())
    assert np.array_equal(other.generate(PROMPT, num_frames=FRAMES).frames, single)
    # Another VAE makes other pixels of the same latents.
    torch.manual_seed(1)
    vae = AutoencoderKLWan.from_config(vae.config).eval()
    other = load(model_folder, device="cpu", vae=vae)
    latents = other(PROMPT, num_frames=9, output_type="latent").frames
    assert torch.equal(latents, pipe(PROMPT, num_frames=9, output_type="latent").frames)
    made = other.generate(PROMPT, num_frames=9).frames
    assert np.array_equal(made, other.vae.decode(latents)[0].numpy())
    assert not np.array_equal(made, single[:9])


def test_parts_that_do_not_fit(model_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(model_folder / "tokenizer"))
    sizes: dict[str, Any] = {"vocab_size": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    encoder = UMT5EncoderModel(UMT5Config(d_model=24, **sizes))
    for part in ({"text_encoder": encoder}, {"tokenizer": tokenizer}):
        with pytest.raises(BadRequest, match=r"A text encoder goes with its tokenizer; give both of them\."):
            load(model_folder, device="cpu", **part)
    with pytest.raises(BadRequest, match=r"The text encoder gives 24 channels, but model 'random' takes 16"):
        load(model_folder, device="cpu", text_encoder=encoder, tokenizer=tokenizer)
    small: dict[str, Any] = {"base_dim": 4, "num_res_blocks": 1}
    for sizes, found in (
        ({"z_dim": 8}, "8 channels for 8x8 pixels"),
        ({"dim_mult": [1, 2, 4], "temperal_downsample": [True, True]}, "16 channels for 4x4 pixels"),
    ):
        with pytest.raises(BadRequest, match=rf"The VAE makes latents of {found} .* 16 channels for 8x8"):
            load(model_folder, device="cpu", vae=AutoencoderKLWan(**small, **sizes))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_is_saved_and_loaded(model_folder: Path, dtype: str, tmp_path: Path) -> None:
    pipe = load(model_folder, device="cpu", torch_dtype=dtype)
    pipe.save_pretrained(tmp_path / "mine")
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {
        "preset.json",
        "text_encoder",
        "tokenizer",
        "transformer",
        "vae",
    }
    again = load(tmp_path / "mine", device="cpu", torch_dtype=dtype)
    assert again.files.preset == pipe.files.preset
    video, same = (one.generate(PROMPT, num_frames=21) for one in (pipe, again))
    assert np.array_equal(video.frames, same.frames)
    assert video.plan == same.plan
    with pytest.raises(BadFile, match=r"mine: it exists already; give the name of a new folder"):
        pipe.save_pretrained(tmp_path / "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_changed_model_is_saved_as_it_is(model_folder: Path, tmp_path: Path) -> None:
    """Not its files are copied, its weights are written."""
    pipe = load(model_folder, device="cpu")
    with torch.no_grad():
        pipe.model.head.head.weight.mul_(0.5)
    pipe.save_pretrained(tmp_path / "mine")
    again = load(tmp_path / "mine", device="cpu").generate(PROMPT, num_frames=9).frames
    assert np.array_equal(again, pipe.generate(PROMPT, num_frames=9).frames)
    assert not np.array_equal(again, load(model_folder, device="cpu").generate(PROMPT, num_frames=9).frames)


def test_a_model_moves(model_folder: Path, single: np.ndarray) -> None:
    """To a dtype by name or by itself, in place; then it is what is loaded in it."""
    pipe = load(model_folder, device="cpu")
    assert pipe.to("cpu") is pipe
    assert pipe.to(torch.device("cpu"), "float32").dtype == torch.float32
    assert np.array_equal(pipe.generate(PROMPT, num_frames=FRAMES).frames, single)
    expected = load(model_folder, device="cpu", torch_dtype="bfloat16").generate(PROMPT, num_frames=21).frames
    for move in (lambda one: one.to(torch.bfloat16), lambda one: one.to(dtype="bfloat16")):
        moved = move(load(model_folder, device="cpu"))
        parts = (moved.model, moved.text.model, moved.vae.vae)
        assert {weight.dtype for part in parts for weight in part.parameters()} == {torch.bfloat16}
        assert moved.dtype == torch.bfloat16
        assert np.array_equal(moved.generate(PROMPT, num_frames=21).frames, expected)
    with pytest.raises(NoSuchDevice, match="no device 'abacus'"):
        pipe.to("abacus")
    with pytest.raises(BadRequest, match="no dtype 'int4'; take float32 or bfloat16"):
        pipe.to(dtype="int4")
    assert pipe.dtype == torch.float32


def test_float8_stays_when_a_model_moves(model_folder: Path) -> None:
    pipe = load(model_folder, device="cpu", fp8="linear").to(torch.bfloat16)
    assert pipe.fused is not None
    assert pipe.fused.fp8 == "linear"
    fresh = load(model_folder, device="cpu", fp8="linear", torch_dtype="bfloat16")
    made, expected = (one.generate(PROMPT, num_frames=9).frames for one in (pipe, fresh))
    assert np.array_equal(made, expected)


def test_float8_of_the_decoder_alone(model_folder: Path) -> None:
    """The latents are those without it, and a pixel is next to never off by more than rounding makes it."""
    plain, coarse = (load(model_folder, device="cpu", fp8=mode) for mode in ("none", "vae"))
    latents = [pipe(PROMPT, num_frames=21, output_type="latent").frames for pipe in (plain, coarse)]
    assert torch.equal(*latents)
    expected, made = (pipe.generate(PROMPT, num_frames=21).frames for pipe in (plain, coarse))
    gap = np.abs(made.astype(int) - expected)
    assert 0 < gap.mean() < 2
    assert coarse.to(torch.bfloat16).vae.convolutions.fp8
    with pytest.raises(BadRequest, match="small decoder has no float8"):
        load(model_folder, device="cpu", fp8="vae", vae="taew2_1.pth")


def test_the_memory_of_a_vae_that_is_handed_in_is_its_own(model_folder: Path) -> None:
    vae = AutoencoderKLWan(base_dim=16, num_res_blocks=1)
    pipe = load(model_folder, device="cpu", vae=vae)
    assert pipe.files.decoder.width == 16
    assert pipe.files.decoder != ModelFiles.open(model_folder).decoder
