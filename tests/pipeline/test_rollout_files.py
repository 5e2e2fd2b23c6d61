"""Rollouts that are saved, resumed and forked go on bit by bit as if nothing had happened."""

import dataclasses
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dummyforcing.errors import BadFile
from dummyforcing.files.state import write_state
from dummyforcing.media.clips import read_video
from dummyforcing.media.monitor import Measures, Monitor
from dummyforcing.media.video import write_mp4
from dummyforcing.method.plan import Plan
from dummyforcing.pipeline.options import VideoOptions, choose
from dummyforcing.pipeline.pipeline import DummyForcingPipeline, load
from dummyforcing.pipeline.rollout import Rollout
from dummyforcing.pipeline.saved import KIND, VERSION
from dummyforcing.presets.preset import ScheduleArgs
from dummyforcing.runtime.fused import FusedWan
from dummyforcing.sampling.guard import Guard
from dummyforcing.vae.small_decoder import SmallDecoder, SmallLayers
from tests.conftest import write_model

PROMPT, OTHER = "a red ball bounces", "a blue cube spins"
SIZE = (32, 48)
CHUNKS = 5
ROLLING: dict[str, Any] = {"sampler": "rolling", "native": "window:3,6", "local_attention_size": 12}
RECOMPUTE: dict[str, Any] = {"sampler": "recompute", "context_frames": 3}
PARTS: dict[str, Any] = {"max_frames": 9, "overlap_frames": 3}
"""A video of several parts; the second one begins with the fourth chunk."""
LATER: dict[str, Any] = {"switches": [(1.0, OTHER), (2.5, PROMPT)]}
"""The prompt changes before the third and the last chunk."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A video of five chunks."""

    preset: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What differs in the preset."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prompt: str | Sequence[str] | None = PROMPT
    tiles: int | None = None
    start: int = 0
    """Pixel frames of the clip that the video begins with."""
    at_chunk_1: Callable[[Rollout], None] | None = None
    """What is done before the second chunk."""
    fused: bool = False
    small: bool = False
    """Whether a small decoder is in place of the VAE's own."""
    points: Sequence[int] = (1, 2, 4)
    """After so many chunks another process goes on."""

    def pipeline(self, pipe: DummyForcingPipeline) -> DummyForcingPipeline:
        """The same weights under the case's preset."""
        files = dataclasses.replace(pipe.files, preset=dataclasses.replace(pipe.files.preset, **self.preset))
        vae = pipe.vae
        if self.small:
            torch.manual_seed(1)
            vae = SmallDecoder(SmallLayers().eval().requires_grad_(False), vae)
        return DummyForcingPipeline.from_parts(
            files, pipe.model, pipe.text, vae, FusedWan(pipe.model) if self.fused else None
        )

    def begin(self, pipe: DummyForcingPipeline, clip: Path) -> Rollout:
        """Start the video."""
        pipe = self.pipeline(pipe)
        options = {name: value() if callable(value) else value for name, value in self.options.items()}
        seed = {} if "generator" in options else {"seed": 5}
        options = {"num_frames": 57, "size": f"{SIZE[1]}x{SIZE[0]}"} | seed | options
        if "video" in options:
            options["video"] = clip
        request = pipe.request(self.prompt, choose(VideoOptions, options))
        if self.start:
            request = dataclasses.replace(request, start=read_video(clip, self.start, SIZE))
        return Rollout(pipe.parts, request, self.tiles)

    def resume(self, path: Path, pipe: DummyForcingPipeline) -> Rollout:
        """Take the video up again."""
        return self.pipeline(pipe).resume(path)

    def advance(self, run: Rollout, begin: int, end: int) -> list["Made"]:
        """Chunks `begin` to `end`."""
        made = []
        for number in range(begin, end):
            if number == 1 and self.at_chunk_1:
                self.at_chunk_1(run)
            chunk = run.next_chunk()
            made.append(Made(chunk.frames, chunk.plans, chunk.cache_bytes, chunk.measures, run.prompts))
        return made


@dataclasses.dataclass
class Made:
    """A chunk, with all that a caller can see of it but for the clock."""

    frames: np.ndarray
    plans: tuple[Plan, ...]
    cache_bytes: int
    measures: tuple[Measures, ...]
    prompts: tuple[str, ...]


def assert_equal(made: Sequence[Made], expected: Sequence[Made]) -> None:
    """Bit by bit."""
    assert len(made) == len(expected)
    for one, other in zip(made, expected, strict=True):
        assert np.array_equal(one.frames, other.frames)
        assert one.plans == other.plans
        assert one.cache_bytes == other.cache_bytes
        assert one.measures == other.measures
        assert one.prompts == other.prompts


def fade_into_other(run: Rollout) -> None:
    run.set_prompt(OTHER, fade=4)


def embeds() -> Tensor:
    return torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(2))


CASES = {
    "block": Case(),
    "dense": Case(options={"policy": "dense"}),
    "fused": Case(fused=True),
    "local attention": Case({"native": "window:1,2", "local_attention_size": 6}),
    "rolling": Case(ROLLING),
    "rolling, native": Case(ROLLING, {"policy": "native"}),
    "recompute": Case(RECOMPUTE),
    "recompute, first frame kept": Case(RECOMPUTE | {"keep_first_frame": True}),
    "recompute, longer context": Case(RECOMPUTE | {"context_frames": 5}),
    "parts": Case(PARTS, points=(2, 3, 4)),
    "parts, dense": Case(PARTS, {"policy": "dense"}, points=(2, 3, 4)),
    "parts, fade": Case(PARTS, at_chunk_1=fade_into_other, points=(2, 3, 4)),
    "no end": Case(options={"num_frames": None}),
    "batch": Case(prompt=(PROMPT, OTHER)),
    "batch, rolling": Case(ROLLING, prompt=(PROMPT, OTHER)),
    "batch, recompute": Case(RECOMPUTE, prompt=(PROMPT, OTHER)),
    "fade": Case({"recache_frames": 6}, at_chunk_1=fade_into_other),
    "fade, rolling": Case(ROLLING, at_chunk_1=fade_into_other),
    "fade, recompute": Case(RECOMPUTE, at_chunk_1=fade_into_other),
    "switches": Case(options=LATER),
    "switches that fade": Case(options=LATER | {"fade": 2}),
    "switches, rewritten": Case({"recache_frames": 6, "global_sink": True}, LATER),
    "switches, batch of parts": Case(PARTS, LATER, (PROMPT, "a green cube"), points=(2, 3, 4)),
    "clip": Case({"start": "clip"}, {"video": True}, points=(0, 1, 2)),
    "clip, rolling": Case(ROLLING | {"start": "clip"}, {"video": True}, points=(0, 1, 2)),
    "clip of two chunks": Case(start=21, points=(0, 1, 2)),
    "clip of two chunks, recompute": Case(RECOMPUTE, start=21, points=(0, 1, 2)),
    "clip of two chunks, batch": Case(prompt=(PROMPT, OTHER), start=21, points=(0, 1, 2)),
    "source": Case({"start": "chunk"}, {"video": True, "strength": 0.6}),
    "source, recompute": Case(RECOMPUTE | {"start": "chunk"}, {"video": True}),
    "tiles": Case(tiles=2),
    "tiles, parts": Case(PARTS, tiles=2, points=(2, 3, 4)),
    "small decoder": Case(small=True),
    "guard": Case(options={"guard": Guard(every=1, tolerance=0)}),
    "teacache": Case(options={"teacache": (1,)}),
    "other first steps": Case({"first_schedule": ScheduleArgs((1000, 700, 300), 5)}),
    "long": Case(options={"policy": "long:6", "budget": "window:6"}),
    "key frames": Case(options={"policy": "keyframes:1,1,1"}, prompt=(PROMPT, OTHER), points=(2, 3, 4)),
    "generator": Case(options={"generator": lambda: torch.Generator().manual_seed(9)}),
    "embeds": Case(options={"prompt_embeds": embeds}, prompt=None),
}


@pytest.fixture(scope="module")
def pipe(model_folder: Path) -> DummyForcingPipeline:
    return load(model_folder, device="cpu")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    n, y, x = np.ogrid[:57, : SIZE[0], : SIZE[1]]
    wave = np.sin((x + 3 * n) / 9) + np.cos(y / 7)
    write_mp4(path, np.stack([127 + 55 * wave, 127 - 55 * wave, 60 + 40 * wave], -1).astype("u1"))
    return path


Elsewhere = dict[str, tuple[list[Made], dict[int, list[Made]]]]

CHILD = """
import pickle, sys
from pathlib import Path
from tests.pipeline.test_rollout_files import CASES, CHUNKS, load
folder, pipe = Path(sys.argv[1]), load(sys.argv[2], device="cpu")
for place, case in enumerate(CASES.values()):
    for point in case.points:
        run = case.resume(folder / f"{place}.{point}", pipe)
        (folder / f"{place}.{point}.made").write_bytes(pickle.dumps(case.advance(run, point, CHUNKS)))
"""


@pytest.fixture(scope="module")
def elsewhere(
    pipe: DummyForcingPipeline, clip: Path, model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Elsewhere:
    """What each rollout gave to its end, and what another process made of each of its files."""
    folder = tmp_path_factory.mktemp("rollouts")
    whole: dict[str, list[Made]] = {}
    for place, (name, case) in enumerate(CASES.items()):
        run, whole[name] = case.begin(pipe, clip), []
        for point in range(CHUNKS):
            run.save(folder / f"{place}.{point}")
            whole[name] += case.advance(run, point, point + 1)
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here.parents[1]), *sys.path])}
    subprocess.run([sys.executable, "-c", CHILD, folder, model_folder], check=True, env=environment)
    return {
        name: (
            whole[name],
            {
                point: pickle.loads((folder / f"{place}.{point}.made").read_bytes())
                for point in CASES[name].points
            },
        )
        for place, name in enumerate(CASES)
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_another_process_goes_on(
    name: str, elsewhere: Elsewhere, pipe: DummyForcingPipeline, clip: Path
) -> None:
    """To save changes nothing, and what is resumed goes on as the video that nobody interrupted."""
    whole, resumed = elsewhere[name]
    case = CASES[name]
    assert_equal(whole, case.advance(case.begin(pipe, clip), 0, CHUNKS))
    counts = [made.frames.shape[1] for made in whole]
    assert counts == ([9, 12, 3, 21, 12] if "parts" in name else [9, 12, 12, 12, 12])
    for point in case.points:
        assert_equal(resumed[point], whole[point:])
    assert all(made.frames.std() > 1 for made in whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_forks_and_their_origin_do_not_affect_each_other(
    name: str, elsewhere: Elsewhere, pipe: DummyForcingPipeline, clip: Path
) -> None:
    case, whole = CASES[name], elsewhere[name][0]
    run, forks = case.begin(pipe, clip), {}
    for point in range(CHUNKS):
        if point in (1, 3):
            changed = run.fork()
            changed.set_prompt("a green cube")
            others = [changed.next_chunk().frames for _ in range(point, CHUNKS)]
            pairs = zip(others, whole[point:], strict=True)
            assert not all(np.array_equal(one, other.frames) for one, other in pairs)
            forks[point] = run.fork()
        assert_equal(case.advance(run, point, point + 1), whole[point : point + 1])
    again = forks[3].fork()
    for point, fork in forks.items():
        assert_equal(case.advance(fork, point, CHUNKS), whole[point:])
    assert_equal(case.advance(again, 3, CHUNKS), whole[3:])


def test_what_waits_to_be_handed_out_is_saved(pipe: DummyForcingPipeline, tmp_path: Path) -> None:
    """The first frame of a video comes by itself; what is resumed then goes on with the rest of its chunk."""
    path = tmp_path / "ball.rollout"
    whole = [chunk.frames for chunk in pipe.start(PROMPT, num_frames=33)]
    run = pipe.start(PROMPT, num_frames=33)
    first = next(iter(run)).frames
    assert first.shape[1] == 1
    run.save(path)
    for other in (pipe.resume(path), run.fork(), run):
        pieces = [first, *(chunk.frames for chunk in other)]
        assert [piece.shape[1] for piece in pieces] == [1, 8, 12, 12]
        assert all(np.array_equal(*pair) for pair in zip(pieces, whole, strict=True))
    resumed = pipe.resume(path)
    assert resumed.next_chunk().frames.shape[1] == 8
    assert resumed.next_chunk().frames.shape[1] == 12


def test_latents_that_nobody_decoded_are_saved(pipe: DummyForcingPipeline, tmp_path: Path) -> None:
    """A recomputed context begins with a decoded frame: what it needs is decoded when it is needed."""
    case = Case(RECOMPUTE)
    run, whole = (case.pipeline(pipe).start(PROMPT, num_frames=57) for _ in range(2))
    for _ in range(2):
        assert torch.equal(run.next_latents(), whole.next_latents())
    run.save(tmp_path / "ball.rollout")
    resumed, fork = case.resume(tmp_path / "ball.rollout", pipe), run.fork()
    for _ in range(3):
        expected = whole.next_latents()
        assert all(torch.equal(one.next_latents(), expected) for one in (resumed, fork, run))
    assert resumed.is_done


def test_a_resumed_video_is_measured_from_its_beginning(pipe: DummyForcingPipeline, tmp_path: Path) -> None:
    run = pipe.start([PROMPT, OTHER], num_frames=93)
    begun = [run.next_chunk() for _ in range(4)]
    run.save(tmp_path / "ball.rollout")
    resumed = pipe.resume(tmp_path / "ball.rollout")
    rest = [resumed.next_chunk() for _ in range(4)]
    for video in range(2):
        monitor = Monitor(pipe.files.preset.fps, 12)
        seen = [monitor.see(chunk.frames[video]) for chunk in [*begun, *rest]]
        assert [chunk.measures[video] for chunk in [*begun, *rest]] == seen
        assert seen[-1].repetition > 0


def test_a_resumed_video_is_saved_again(pipe: DummyForcingPipeline, clip: Path, tmp_path: Path) -> None:
    for name in ("switches that fade", "clip of two chunks", "source", "parts", "guard", "generator"):
        case, path = CASES[name], tmp_path / "ball.rollout"
        run, whole = case.begin(pipe, clip), case.advance(case.begin(pipe, clip), 0, CHUNKS)
        for point in range(CHUNKS):
            run.save(path)
            run = case.resume(path, pipe)
            assert_equal(case.advance(run, point, point + 1), whole[point : point + 1])
        assert run.is_done


def test_the_file_holds_what_is_needed(pipe: DummyForcingPipeline, tmp_path: Path) -> None:
    """About as much as the cache, of which what is not written yet is no part, and no model."""
    path, weights = tmp_path / "ball.rollout", sum(p.nbytes for p in pipe.model.parameters())
    run = pipe.start(PROMPT, num_frames=1209, policy="dense")
    run.next_chunk()
    run.save(path)
    one = path.stat().st_size
    run.next_chunk()
    run.save(path)
    per_chunk = run.sampler.cache.nbytes * 3 / 303
    assert one + per_chunk <= path.stat().st_size < one + per_chunk + 10_000
    assert one < weights


# --- what is refused


@pytest.fixture
def saved(pipe: DummyForcingPipeline, tmp_path: Path) -> Path:
    run = pipe.start(PROMPT, num_frames=57)
    run.next_chunk()
    run.next_chunk()
    run.save(tmp_path / "ball.rollout")
    return tmp_path / "ball.rollout"


def refuse(pipe: DummyForcingPipeline, path: Path, message: str) -> None:
    """One clear sentence: what is wrong with which file, and what would work."""
    with pytest.raises(BadFile, match=message) as caught:
        pipe.resume(path)
    text = str(caught.value)
    assert text.count("; ") == 1
    assert text.endswith(".")
    assert "\n" not in text
    assert str(path) in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (ROLLING, "another sampler, block in place of rolling; resume it with what it began with"),
        (RECOMPUTE, "another sampler, block in place of recompute"),
        ({"schedule": ScheduleArgs((1000, 250), 5.0)}, r"another schedule, .*500.* in place of .*250"),
        (
            {"first_schedule": ScheduleArgs((1000, 250), 5.0)},
            r"another first schedule, None in place of .*250",
        ),
        ({"chunk_frames": 1}, "another number of frames per chunk, 3 in place of 1"),
        ({"local_attention_size": 6}, "another local attention size, None in place of 6"),
        ({"recache_frames": 3}, "another number of frames to rewrite, 0 in place of 3"),
        ({"global_sink": True}, "another global sink, False in place of True"),
        (PARTS, r"another length of a part, .* in place of \(9, 3\)"),
    ],
)
def test_other_rules_are_refused(
    changes: dict[str, Any], message: str, saved: Path, pipe: DummyForcingPipeline
) -> None:
    refuse(Case(changes).pipeline(pipe), saved, f"was saved with {message}")


def test_other_contexts_are_refused(pipe: DummyForcingPipeline, clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "ball.rollout"
    CASES["recompute"].begin(pipe, clip).save(path)
    other = CASES["recompute, longer context"].pipeline(pipe)
    refuse(other, path, r"another number of context frames, \(3, False\) in place of \(5, False\)")
    kept = CASES["recompute, first frame kept"].pipeline(pipe)
    refuse(kept, path, r"another number of context frames, \(3, False\) in place of \(3, True\)")


def test_rules_are_refused_before_they_get_in_the_way(pipe: DummyForcingPipeline, tmp_path: Path) -> None:
    """A policy that the other sampler could not have is not what is wrong."""
    pipe.start(PROMPT, policy="official").save(tmp_path / "ball.rollout")
    refuse(Case(RECOMPUTE).pipeline(pipe), tmp_path / "ball.rollout", "another sampler, block in place of")


def test_other_models_are_refused(saved: Path, pipe: DummyForcingPipeline, tmp_path: Path) -> None:
    write_model(tmp_path / "other", seed=1)
    other = load(tmp_path / "other", device="cpu")
    refuse(other, saved, "was saved with model [0-9a-f]{16}, but this model is [0-9a-f]{16}; resume it with")


def test_other_precisions_are_refused(saved: Path, model_folder: Path) -> None:
    half = load(model_folder, device="cpu", torch_dtype="bfloat16")
    refuse(half, saved, "another dtype of the cache, torch.float32 in place of torch.bfloat16")
    half = load(model_folder, device="cpu", fp8="all")
    refuse(half, saved, "another dtype of the cache, torch.float32 in place of torch.float8_e4m3fn")


def test_other_decoders_are_refused(saved: Path, pipe: DummyForcingPipeline) -> None:
    refuse(Case(small=True).pipeline(pipe), saved, "another decoder, VideoDecoder in place of SmallDecoder")


def rewrite(path: Path, change: Callable[[dict[str, str], dict[str, Tensor]], None]) -> None:
    with safe_open(path, framework="pt") as file:
        about = dict(file.metadata())
    tensors = load_file(path)
    change(about, tensors)
    save_file(tensors, path, about)


def test_damaged_files_are_refused(saved: Path, pipe: DummyForcingPipeline) -> None:
    whole = saved.read_bytes()
    flipped = bytearray(whole)
    flipped[-100] ^= 1
    for damaged in (whole[:-1], whole[:100], b"", b"hello", bytes(flipped)):
        saved.write_bytes(damaged)
        refuse(pipe, saved, "is damaged or no Dummy Forcing rollout|is damaged .its checksum differs.")

    def earlier(about: dict[str, str], tensors: dict[str, Tensor]) -> None:
        state = about["state"].replace('"frames": 6', '"frames": 3')
        assert state != about["state"]
        about["state"] = state

    saved.write_bytes(whole)
    rewrite(saved, earlier)
    refuse(pipe, saved, "its checksum differs")
    saved.write_bytes(whole)
    assert pipe.resume(saved).frames == 6


def test_other_files_are_refused(saved: Path, pipe: DummyForcingPipeline, tmp_path: Path) -> None:
    rewrite(saved, lambda about, _: about.update(version="2"))
    refuse(pipe, saved, "is of version 2 of the format, and this library reads 4; use the version")
    save_file({"weight": torch.zeros(3)}, saved)
    refuse(pipe, saved, "is damaged or no Dummy Forcing rollout; give a Dummy Forcing rollout that was saved")
    write_state(saved, "head plan", "4", Measures(1.0, 1.0, 1.0))
    refuse(pipe, saved, "is damaged or no Dummy Forcing rollout")
    for state in (Measures(1.0, 1.0, 1.0), Guard()):  # nothing that a rollout holds, and a part of one
        write_state(saved, KIND, VERSION, state)
        refuse(pipe, saved, "is damaged or no Dummy Forcing rollout")
    refuse(pipe, tmp_path / "none", "There is no file .*none; give a Dummy Forcing rollout")
    refuse(pipe, tmp_path, "There is no file")


def test_a_file_that_cannot_be_written(pipe: DummyForcingPipeline, saved: Path, tmp_path: Path) -> None:
    whole, run = saved.read_bytes(), pipe.start(PROMPT)
    with pytest.raises(BadFile, match="create it first"):
        run.save(tmp_path / "none" / "ball.rollout")
    with pytest.raises(BadFile, match="it is a folder"):
        run.save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [saved.name]
    assert saved.read_bytes() == whole
