"""Stories: the file, and that a video gets exactly its prompts at the chunks that it says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dummyforcing.errors import UserError
from dummyforcing.media.story import Scene, Story
from dummyforcing.pipeline.pipeline import DummyForcingPipeline, load
from dummyforcing.pipeline.request import make_request
from dummyforcing.presets.catalog import bundled_folders, read_preset

PROMPTS = ["a red ball bounces", "a blue cube spins", "a red cube bounces"]
STORY = f"""
seconds: 3.6
fade: 2
scenes:
  - prompt: {PROMPTS[0]}
  - {{at: 1, prompt: {PROMPTS[1]}}}
  - at: 2.5
    prompt: {PROMPTS[2]}
"""


@pytest.fixture(scope="module")
def pipeline(model_folder: Path) -> DummyForcingPipeline:
    return load(model_folder, device="cpu")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "story.yaml"
    path.write_text(STORY)
    return path


def by_hand(pipeline: DummyForcingPipeline, chunks: int, switches: dict[int, str], fade: int) -> torch.Tensor:
    """Latents of a video whose prompt is set at these chunks."""
    preset = pipeline.files.preset
    frames = preset.pixel_frames(chunks * preset.chunk_frames)
    sampler = pipeline.rollout(make_request(pipeline.files, PROMPTS[0], num_frames=frames, seed=5)).sampler
    made = []
    for chunk in range(chunks):
        if chunk in switches:
            sampler.set_prompt(pipeline.text.encode([switches[chunk]]), chunks=fade)
        made.append(sampler.next_chunk())
    return torch.cat(made, 1)


def test_the_file(path: Path) -> None:
    story = Story.load(path)
    assert story == Story(3.6, (Scene(PROMPTS[0]), Scene(PROMPTS[1], 1.0), Scene(PROMPTS[2], 2.5)), fade=2)
    path.write_text(STORY.replace("fade: 2\n", "").replace("  - prompt", "  - at: 0\n    prompt"))
    assert Story.load(path) == Story(3.6, story.scenes)


def test_every_prompt_begins_where_the_file_says(pipeline: DummyForcingPipeline, path: Path) -> None:
    """Chunks begin at pixel frames 0, 9, 21, 33, 45: 1 s lies after the second, 2.5 s after the fourth."""
    story = Story.load(path)
    options = story.options(pipeline.files.preset)
    assert options["num_frames"] == 57
    request = make_request(pipeline.files, story.prompt, **options)
    assert request.scenes == ((0, PROMPTS[0]), (21, PROMPTS[1]), (45, PROMPTS[2]))

    expected = by_hand(pipeline, 5, {2: PROMPTS[1], 4: PROMPTS[2]}, story.fade)
    rollout = pipeline.rollout(make_request(pipeline.files, story.prompt, seed=5, **options))
    assert torch.equal(torch.cat([rollout.next_latents() for _ in range(5)], 1), expected)
    video = pipeline.generate(story.prompt, seed=5, **options)
    assert np.array_equal(video.frames, pipeline.vae.decode(expected)[0].numpy())


@pytest.mark.parametrize("chunk", range(1, 5))
def test_a_prompt_may_begin_with_any_chunk(pipeline: DummyForcingPipeline, chunk: int) -> None:
    """Also the one that classifies the heads, 1, and the last one; up to there nothing changes."""
    preset = pipeline.files.preset
    at = preset.pixel_frames(chunk * preset.chunk_frames) / preset.fps
    story = Story(3.5, (Scene(PROMPTS[0]), Scene(PROMPTS[1], at)))
    rollout = pipeline.rollout(make_request(pipeline.files, story.prompt, seed=5, **story.options(preset)))
    made = torch.cat([rollout.next_latents() for _ in range(5)], 1)
    assert torch.equal(made, by_hand(pipeline, 5, {chunk: PROMPTS[1]}, 1))
    plain = by_hand(pipeline, 5, {}, 1)
    first = chunk * preset.chunk_frames
    assert torch.equal(made[:, :first], plain[:, :first])
    assert not torch.equal(made[:, first : first + preset.chunk_frames], plain[:, first:][:, :3])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"is None, not a table; give its fields: seconds, scenes, fade\.$"),
        (
            "a red ball bounces",
            "is 'a red ball bounces', not a table; give its fields: seconds, scenes, fade",
        ),
        ("seconds: [", r"is not a story, it is no YAML \(.*line 1"),
        ("scenes: []", "field 'seconds' is missing"),
        ("seconds: 5", "field 'scenes' is missing"),
        ("{seconds: 5, scenes: []}", "without scenes shows nothing; give one"),
        ("{seconds: 5, scenes: a ball}", "scenes cannot be 'a ball'; give a list of tables"),
        ("{seconds: long, scenes: [{prompt: a}]}", "seconds cannot be 'long'; give a number"),
        ("{seconds: 5, length: 3, scenes: [{prompt: a}]}", "no field 'length'; take seconds, scenes, fade"),
        ("{seconds: 5, 3: 3, scenes: [{prompt: a}]}", "no field '3'; take"),
        ("{seconds: 5, scenes: [{prompt: a}, {at: 2}]}", "field 'prompt' is missing"),
        ("{seconds: 5, scenes: [{prompt: 3}]}", "prompt cannot be 3; give text"),
        ("{seconds: 5, scenes: [{promt: a}]}", "no field 'promt'; the nearest is 'prompt'"),
        ("{seconds: 5, scenes: [{prompt: a, at: 1}]}", "first scene .* at 1 s; let it begin at 0"),
        ("{seconds: 5, scenes: [{prompt: a}, {prompt: b}]}", "Scene 2 .* at 0 s, the one before at 0 s"),
        (
            "{seconds: 5, scenes: [{prompt: a}, {prompt: b, at: 2}, {prompt: c, at: 1}]}",
            "Scene 3 of a story begins at 1 s, the one before at 2 s; give every scene but the first an 'at'",
        ),
        ("{seconds: 5, scenes: [{prompt: a}, {prompt: b, at: .nan}]}", "Scene 2 of a story begins at nan s"),
    ],
)
def test_what_is_no_story_is_refused(path: Path, text: str, message: str) -> None:
    path.write_text(text)
    with pytest.raises(UserError, match=message) as refusal:
        Story.load(path)
    assert "\n" not in str(refusal.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.yaml cannot be read \(No such file"):
        Story.load(tmp_path / "no.yaml")
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is no YAML"):
        Story.load(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("seconds", "scenes", "fade", "message"),
    [
        (
            5,
            [(0, "a"), (4.9, "b")],
            1,
            "cannot change at 4.9 s; the last chunk of this video begins at 4.31 s",
        ),
        (0.5, [(0, "a"), (0.1, "b")], 1, "cannot change at 0.1 s; the last chunk .* begins at 0.00 s"),
        (5, [(0, "a"), (2, "b"), (2.01, "c")], 1, "'b' and 'c' would begin in the same chunk; leave 0.75 s"),
        (5, [(0, "a"), (float("inf"), "b")], 1, "cannot change at inf s"),
        (5, [(0, "a"), (2, " ")], 1, "prompt to change to is empty"),
        (5, [(0, " "), (2, "a")], 1, "prompt is empty"),
        (5, [(0, "a"), (2, "b")], 0, r"fade=0 is out of range; take 1 or more chunks\.$"),
        (0, [(0, "a")], 1, "cannot last 0 seconds"),
        (float("inf"), [(0, "a")], 1, "cannot last inf seconds"),
    ],
)
def test_what_no_video_can_tell_is_refused(
    pipeline: DummyForcingPipeline, seconds: float, scenes: list[tuple[float, str]], fade: int, message: str
) -> None:
    story = Story(seconds, tuple(Scene(prompt, at) for at, prompt in scenes), fade)
    with pytest.raises(UserError, match=message):
        make_request(pipeline.files, story.prompt, **story.options(pipeline.files.preset))


def test_the_example_is_told_in_words_that_the_model_knows() -> None:
    story = Story.load(Path(__file__).parents[2] / "examples" / "story.yaml")
    folder = bundled_folders()["tiny"]
    assert story.options(read_preset(folder / "preset.json"))["num_frames"] == 477
    words = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text())["words"]
    assert {word for scene in story.scenes for word in scene.prompt.split()} <= set(words)
