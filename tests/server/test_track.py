"""Tracks against videos of the pipeline that are made in one go: bit by bit the same."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from dummyforcing.errors import BadRequest
from dummyforcing.media.frames import Frames
from dummyforcing.pipeline.options import VideoOptions, choose
from dummyforcing.pipeline.pipeline import DummyForcingPipeline, load
from dummyforcing.server.replicas.track import Made, Track

PROMPT, OTHER, THIRD = "a red ball bounces", "a blue cube spins", "a green floor"
CHUNKS = 8


@pytest.fixture(scope="module")
def small(model_folder: Path) -> DummyForcingPipeline:
    return load(model_folder)


def options(**more: object) -> dict[str, object]:
    return {"size": (32, 48), "seed": 5, **more}


def track(pipeline: DummyForcingPipeline, held: int = 64, **more: object) -> Track:
    chosen = choose(VideoOptions, options(num_frames=None) | more, pipeline.option_defaults)
    return Track(pipeline.rollout(pipeline.request(PROMPT, chosen)), held)


@cache
def whole(pipeline: DummyForcingPipeline, *changes: tuple[int, str], fade: int = 1) -> list[np.ndarray]:
    """The chunks of a video whose prompt changes where some chunks begin."""
    preset = pipeline.files.preset
    chunk = preset.chunk_frames
    starts = [0] + [preset.pixel_frames(number * chunk) for number in range(1, CHUNKS)]
    switches = [(starts[number] / preset.fps, prompt) for number, prompt in changes]
    count = preset.pixel_frames(CHUNKS * chunk)
    frames = pipeline.generate(PROMPT, **options(num_frames=count, switches=switches, fade=fade)).frames
    return np.split(frames, starts[1:])


def check(made: list[tuple[Made, Frames]], expected: list[np.ndarray], first: int = 0) -> None:
    assert [one.index for one, _ in made] == list(range(first, first + len(made)))
    for one, frames in made:
        assert np.array_equal(frames, expected[one.index]), f"chunk {one.index}"
        assert one.frames == len(frames)
        assert one.first_frame == sum(map(len, expected[: one.index]))


def test_chunks_are_those_of_the_video(small: DummyForcingPipeline) -> None:
    mine = track(small)
    check([mine.make() for _ in range(CHUNKS)], whole(small))


@pytest.mark.parametrize("fade", [1, 3])
@pytest.mark.parametrize("made", [3, 4, 5, 6])
def test_a_prompt_from_a_chunk_on(small: DummyForcingPipeline, made: int, fade: int) -> None:
    """Whether the chunk is to come or was made already: it is as if the prompt had been known before."""
    mine = track(small)
    expected, plain = whole(small, (4, OTHER), fade=fade), whole(small)
    check([mine.make() for _ in range(made)], plain)
    assert mine.set_prompt(OTHER, fade, at=4) == 4
    first = mine.index
    assert first == min(made, 4)
    rest = [mine.make() for _ in range(CHUNKS - first)]
    check(rest, expected, first)
    assert [one.prompt for one, _ in rest] == [PROMPT] * (4 - first) + [OTHER] * (CHUNKS - 4)


def test_a_prompt_in_place_of_one_that_is_not_shown_yet(small: DummyForcingPipeline) -> None:
    mine = track(small)
    made = [mine.make() for _ in range(3)]
    mine.set_prompt(OTHER, 1, at=5)
    made.append(mine.make())
    assert mine.set_prompt(THIRD, 1, at=5) == 5
    made += [mine.make() for _ in range(CHUNKS - 4)]
    check(made, whole(small, (5, THIRD)))
    assert [one.prompt for one, _ in made] == [PROMPT] * 5 + [THIRD] * 3


def test_taken_back_the_same_chunks_come_again(small: DummyForcingPipeline) -> None:
    mine = track(small)
    check([mine.make() for _ in range(6)], whole(small))
    mine.rewind(2)
    assert mine.held == (0, 1, 2)
    check([mine.make() for _ in range(CHUNKS - 3)], whole(small), 3)


def test_taken_back_before_a_prompt_it_is_not_shown(small: DummyForcingPipeline) -> None:
    mine = track(small)
    [mine.make() for _ in range(3)]
    mine.set_prompt(OTHER, 1, at=3)
    [mine.make() for _ in range(3)]
    mine.rewind(2)
    assert mine.place.prompt == PROMPT
    rest = [mine.make() for _ in range(CHUNKS - 3)]
    check(rest, whole(small), 3)
    assert {one.prompt for one, _ in rest} == {PROMPT}


def test_taken_back_within_a_prompt_it_stays(small: DummyForcingPipeline) -> None:
    mine = track(small)
    [mine.make() for _ in range(3)]
    mine.set_prompt(OTHER, 1, at=3)
    [mine.make() for _ in range(3)]
    mine.rewind(4)
    rest = [mine.make() for _ in range(CHUNKS - 5)]
    check(rest, whole(small, (3, OTHER)), 5)
    assert {one.prompt for one, _ in rest} == {OTHER}


def test_branches_and_their_origin_go_on_in_turns(small: DummyForcingPipeline) -> None:
    mine = track(small)
    made = [mine.make() for _ in range(5)]
    other, third = mine.fork(2), mine.fork(4)
    other.set_prompt(OTHER, 1, at=other.index)
    forked: dict[str, list[tuple[Made, Frames]]] = {"other": [], "third": []}
    for _ in range(3):
        made.append(mine.make())
        forked["other"].append(other.make())
        forked["third"].append(third.make())
    check(made, whole(small))
    check(forked["other"], whole(small, (3, OTHER)), 3)
    check(forked["third"], whole(small), 5)
    other.rewind(4)
    check([other.make()], whole(small, (3, OTHER)), 5)


def test_as_many_are_held_as_there_is_room_for(small: DummyForcingPipeline) -> None:
    mine = track(small, held=5)
    made = [mine.make() for _ in range(CHUNKS)]
    assert made[-1][0].held == (3, 4, 5, 6, 7)
    with pytest.raises(BadRequest, match="held are 3 to 7"):
        mine.rewind(2)
    with pytest.raises(BadRequest, match="held are 3 to 7"):
        mine.fork(2)


def test_where_nothing_is_held_a_prompt_comes_later(small: DummyForcingPipeline) -> None:
    mine = track(small, held=4)
    made = [mine.make() for _ in range(7)]
    assert mine.set_prompt(OTHER, 1, at=2) == 7
    check([*made, mine.make()], whole(small, (7, OTHER)))


def test_a_video_with_an_end(small: DummyForcingPipeline) -> None:
    preset = small.files.preset
    mine = track(small, num_frames=preset.pixel_frames(3 * preset.chunk_frames))
    assert [mine.make()[0].is_last for _ in range(3)] == [False, False, True]
    mine.rewind(0)
    assert not mine.make()[0].is_last
