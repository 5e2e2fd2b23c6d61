"""An option is written once: keyword, flag, preset, documentation follow; what makes no sense is refused."""

import inspect
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from PIL import Image

from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.cli.flags import FlagsOf, Given, command
from dummyforcing.errors import BadFile, BadRequest
from dummyforcing.media.video import write_mp4
from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.pipeline.option import documented, option
from dummyforcing.pipeline.options import (
    REFUSED,
    CallOptions,
    LoadOptions,
    VideoOptions,
    choose,
    with_options,
)
from dummyforcing.pipeline.pipeline import DummyForcingPipeline, load
from dummyforcing.pipeline.request import make_request
from dummyforcing.presets.catalog import read_preset

PROMPT = "a red ball bounces"
KINDS = (LoadOptions, VideoOptions, CallOptions)


@pytest.fixture(scope="module")
def pipeline(model_folder: Path) -> DummyForcingPipeline:
    return load(model_folder, device="cpu")


@dataclass(frozen=True, kw_only=True)
class TurningOptions(VideoOptions):
    """Options of videos, and one more."""

    turns: int = option(2, kind=int, flag="spin", metavar="TURNS", unit="turns", least=0, most=9)
    """How often the camera goes round the scene; it begins
    and ends in front. In Python also a number of NumPy."""


WRONG: dict[str, list[object]] = {
    "num_frames": [9.0, "9", [9], True, np.array([9]), 9j],
    "seconds": ["1", [1], True, b"1"],
    "size": [(16,), (16.0, 16.0), ("16", "16"), (None, None), 16, (16, 16, 16), {}, np.array([16, 16])],
    "height": [[64], 64.0, "64"],
    "seed": [None, 1.5, "1", True],
    "generator": [5, "x", [None], np.random.default_rng()],
    "prompt_embeds": [np.zeros((1, 2, 3)), [1.0], "text"],
    "policy": [None, 5, [], b"dummy"],
    "dummy_fraction": ["0.5", [0.5], True],
    "budget": [5, []],
    "plan": [5, [5], b"plan.json"],
    "guard": ["0.1", [0.1], True],
    "image": [5, b"a.png", ["a.png"]],
    "switches": [5, None, [5], [()], [(1,)], [(1, 2)], [("1", "a")], [(1, "a", 3)], {1: "a"}],
    "fade": [None, "1", [1], 1.5, math.nan, True],
    "teacache": [[1.5], {1: 2}, ["1"], True, np.array([1.5])],
    "output_type": [5, None, []],
    "progress": [5, "yes"],
    "callback_on_chunk_end": [5, "f"],
    "weights": [5, b"a"],
    "lora": [None, 5, [5]],
    "device": [None, 5],
    "torch_dtype": [5, [], np.dtype("float32")],
    "offload": [1, "yes"],
    "vae": [5, []],
    "text_encoder": [5, "umt5"],
    "tokenizer": [5, "umt5"],
}


@pytest.mark.parametrize("name", WRONG)
def test_values_of_another_type_are_refused(name: str) -> None:
    kind: Any = next(kind for kind in KINDS if any(one.name == name for one in fields(kind)))
    for value in WRONG[name]:
        with pytest.raises(BadRequest, match=rf"^{name}=.* is no .*; give ") as caught:
            choose(kind, {name: value})
        assert caught.value.option == name
        assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("name", "value", "plain"),
    [
        ("seed", np.int64(3), 3),
        ("seed", torch.tensor(3), 3),
        ("num_frames", np.array(9), 9),
        ("dummy_fraction", np.float32(0.5), 0.5),
        ("guard", np.float32(0.5), 0.5),
        ("teacache", [np.int64(1)], [1]),
        ("size", (np.int64(64), np.int32(96)), (64, 96)),
        ("switches", [(np.float64(1.5), "a")], [(1.5, "a")]),
    ],
)
def test_numbers_of_other_libraries_become_plain(name: str, value: object, plain: object) -> None:
    chosen = getattr(choose(VideoOptions, {name: value}), name)
    assert chosen == plain
    assert json.loads(json.dumps(chosen)) == json.loads(json.dumps(plain))
    with pytest.raises(BadRequest, match="out of range"):
        choose(VideoOptions, {"seed": np.int64(-3)})


def test_values_of_every_type_that_is_named_are_taken() -> None:
    for name, value in {
        "num_frames": None,
        "size": "480p",
        "seconds": 2,
        "generator": (torch.Generator(), torch.Generator()),
        "prompt_embeds": torch.nn.Parameter(torch.zeros(1, 2, 3)),
        "plan": Path("a.json"),
        "teacache": "shipped",
        "switches": ["1:a", (2, "b")],
    }.items():
        chosen = getattr(choose(VideoOptions, {name: value}), name)
        assert chosen is value or chosen == value
    assert choose(LoadOptions, {"torch_dtype": torch.bfloat16}).torch_dtype is torch.bfloat16
    assert choose(LoadOptions, {"device": torch.device("cpu")}).device == torch.device("cpu")


# One option more


def test_a_new_option_is_a_keyword() -> None:
    assert choose(TurningOptions, {}).turns == 2
    chosen = choose(TurningOptions, {"turns": 5, "seed": 7})
    assert (chosen.turns, chosen.seed, chosen.num_frames) == (5, 7, 81)
    with pytest.raises(BadRequest, match=r"^turns=10 is out of range; take 0 or more and 9 at most turns\.$"):
        choose(TurningOptions, {"turns": 10})
    with pytest.raises(BadRequest, match=r"^There is no option 'turn'; the nearest is 'turns'\.$"):
        choose(TurningOptions, {"turn": 1})
    with pytest.raises(BadRequest, match="There is no option 'turns'"):
        choose(VideoOptions, {"turns": 1})


def test_a_new_option_is_an_argument_of_methods() -> None:
    class Owner:
        @property
        def option_defaults(self) -> dict[str, Any]:
            return {"turns": 4}

        @with_options(TurningOptions)
        def film(self, prompt: str | None, options: TurningOptions) -> tuple[str | None, TurningOptions]:
            """Make a film."""
            return prompt, options

    owner = Owner()
    prompt, options = owner.film("a ball", turns=3)
    assert (prompt, options) == ("a ball", TurningOptions(turns=3))
    assert owner.film("a ball")[1].turns == 4
    assert owner.film()[0] is None
    signature = inspect.signature(owner.film)
    assert list(signature.parameters) == ["prompt", *(one.name for one in fields(TurningOptions))]
    assert signature.parameters["turns"].default == 2
    assert signature.parameters["turns"].kind is inspect.Parameter.KEYWORD_ONLY
    assert owner.film.__doc__ == "Make a film."


def test_a_new_option_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    given: list[dict[str, Any]] = []

    @command(video=FlagsOf(TurningOptions))
    def film(*, video: Given) -> None:
        """Make a film.

        Args:
            video: Flags of the video.
        """
        given.append(dict(video))

    tyro.cli(film, args=["--spin", "3", "--frames", "33"])
    tyro.cli(film, args=[])
    assert given == [{"turns": 3, "num_frames": 33}, {}]
    with pytest.raises(SystemExit):
        tyro.cli(film, args=["--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--spin TURNS" in shown
    assert "How often the camera goes round the scene; it begins and ends in front. (default: 2)" in shown
    assert "number of NumPy" not in shown


def test_a_preset_sets_a_new_option(model_folder: Path, tmp_path: Path) -> None:
    preset = json.loads((model_folder / "preset.json").read_text())
    (tmp_path / "mine.json").write_text(json.dumps({**preset, "options": {"turns": 6, "policy": "dense"}}))
    defaults = read_preset(tmp_path / "mine.json").options
    assert choose(TurningOptions, {}, defaults) == TurningOptions(turns=6, policy="dense")
    assert choose(TurningOptions, {"turns": 0}, defaults) == TurningOptions(turns=0, policy="dense")
    with pytest.raises(BadRequest, match=r"turns=60 is out of range"):
        choose(TurningOptions, {}, {"turns": 60})
    with pytest.raises(BadRequest, match=r"There is no option 'turn'; the nearest is 'turns'"):
        choose(TurningOptions, {}, {"turn": 1})


def test_a_new_option_is_documented() -> None:
    known = {one.name: one for one in documented(TurningOptions)}
    text = "How often the camera goes round the scene; it begins and ends in front."
    assert known["turns"].text == f"{text} In Python also a number of NumPy."
    assert (known["turns"].flag, known["turns"].default, known["turns"].about.unit) == ("spin", 2, "turns")
    assert list(known) == [one.name for one in fields(TurningOptions)]
    assert all(known[one.name] == one for one in documented(VideoOptions))


# All options


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_is_described(kind: type) -> None:
    """A sentence with a full stop; flags are called like options, in dashes, or as they say."""
    found = list(documented(kind))
    assert [one.name for one in found] == [one.name for one in fields(kind)]
    for one in found:
        assert one.text[0].isupper()
        assert one.text.endswith(".")
        assert one.default is not MISSING
        assert set(one.about.instead_of) < {other.name for other in found}
    flags = [one.flag for one in found if one.about.is_flag]
    assert len(set(flags)) == len(flags)


@pytest.mark.parametrize("method", ["__call__", "generate", "stream", "start"])
def test_the_methods_of_the_pipeline_have_all_options(pipeline: DummyForcingPipeline, method: str) -> None:
    """Those that a method names itself; `generate` takes them as they come."""
    kind = CallOptions if method == "__call__" else VideoOptions
    parameters = inspect.signature(getattr(pipeline, method)).parameters
    if method != "generate":
        assert list(parameters) == ["prompt", *(one.name for one in fields(kind))]
    call: Callable[..., object] = getattr(pipeline, method)
    with pytest.raises(BadRequest, match=r"^There is no option 'num_frame'; the nearest is 'num_frames'\.$"):
        call(PROMPT, num_frame=9)


def bounds() -> Iterator[tuple[str, Any, bool]]:
    """Numbers at the bounds of every option that has some, just inside and just outside."""
    for one in documented(CallOptions):
        about, step = one.about, 1 if one.about.kind is int else 1e-9
        if about.least is not None:
            yield from ((one.name, about.least, True), (one.name, about.least - step, False))
        if about.above is not None:
            yield from ((one.name, about.above + step, True), (one.name, about.above, False))
        if about.most is not None:
            yield from ((one.name, about.most, True), (one.name, about.most + step, False))


@pytest.mark.parametrize(("name", "value", "is_fine"), list(bounds()))
def test_bounds(name: str, value: float, is_fine: bool) -> None:
    if is_fine:
        assert getattr(choose(CallOptions, {name: value}), name) == value
        return
    with pytest.raises(BadRequest, match=rf"^{name}={value} is out of range; take .*\.$") as caught:
        choose(CallOptions, {name: value})
    assert caught.value.option == name


def test_which_options_have_bounds() -> None:
    bounded = {name for name, _, _ in bounds()}
    assert bounded == {
        "num_frames",
        "seconds",
        "height",
        "width",
        "seed",
        "dummy_fraction",
        "guard",
        "strength",
        "fade",
    }


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_frames", "33", r"num_frames='33' is no whole number; give a whole number\."),
        ("num_frames", 33.0, r"num_frames=33\.0 is no whole number"),
        ("num_frames", True, r"num_frames=True is no whole number"),
        ("num_frames", 0, r"num_frames=0 is out of range; take 1 or more pixel frames\."),
        ("seconds", "5", r"seconds='5' is no number; give a number\."),
        ("seconds", math.nan, r"seconds=nan is out of range; take more than 0 s\."),
        ("seconds", -1.5, r"seconds=-1\.5 is out of range; take more than 0 s\."),
        ("strength", 0, r"strength=0 is out of range; take more than 0 and 1 at most\."),
        (
            "seed",
            2**63,
            r"seed=9223372036854775808 is out of range; take 0 or more and 9223372036854775807 at",
        ),
        ("fade", 0, r"fade=0 is out of range; take 1 or more chunks\."),
        ("output_type", "numpy", r"There is no output_type 'numpy'; take np, pt, pil, latent\."),
        ("fram", 1, r"There is no option 'fram'; take num_frames, seconds, size, "),
        ("sede", 1, r"There is no option 'sede'; the nearest is 'seed'\."),
        ("polcy", "dense", r"There is no option 'polcy'; the nearest is 'policy'\."),
        ("neighbour", 1, r"There is no option 'neighbour'; "),
    ],
)
def test_what_makes_no_sense_is_refused(name: str, value: object, message: str) -> None:
    with pytest.raises(BadRequest, match=f"^{message}"):
        choose(CallOptions, {name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("torch_dtype", "float64", r"There is no torch_dtype 'float64'; take float32, bfloat16\."),
        ("fp8", "some", r"There is no fp8 'some'; take none, linear, all\."),
        ("dtype", "float32", r"There is no option 'dtype'; the nearest is 'torch_dtype'\."),
        ("weight", "a.pt", r"There is no option 'weight'; the nearest is 'weights'\."),
        ("num_frames", 9, r"There is no option 'num_frames'; take weights, base, lora, device, "),
    ],
)
def test_what_cannot_be_loaded_is_refused(name: str, value: object, message: str, model_folder: Path) -> None:
    with pytest.raises(BadRequest, match=f"^{message}"):
        DummyForcingPipeline.from_pretrained(model_folder, **{name: value})


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("method", ["__call__", "generate", "stream", "start"])
def test_what_diffusers_has_and_we_have_not(pipeline: DummyForcingPipeline, method: str, name: str) -> None:
    call: Callable[..., object] = getattr(pipeline, method)
    with pytest.raises(BadRequest, match=rf"^There is no {name}: \S.* \S.*; leave it out\.$") as caught:
        call(PROMPT, **{name: 1})
    assert caught.value.option == name


def test_why_there_are_no_steps_and_no_guidance() -> None:
    for name, reason in (
        ("num_inference_steps", "these models are distilled to the steps of their preset"),
        ("guidance_scale", "guidance is distilled into these models"),
        ("negative_prompt", "guidance is distilled into these models"),
    ):
        with pytest.raises(BadRequest) as caught:
            choose(VideoOptions, {name: None})
        assert str(caught.value) == f"There is no {name}: {reason}; leave it out."


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"num_frames": 33}, {"seconds": 2.0}),
        ({"size": "48x32"}, {"height": 32}),
        ({"size": (32, 48)}, {"width": 48}),
        ({"seed": 0}, {"generator": torch.Generator()}),
    ],
)
def test_two_ways_to_say_the_same(
    pipeline: DummyForcingPipeline, first: dict[str, Any], second: dict[str, Any]
) -> None:
    """Each by itself is fine, and so is either beside None."""
    (one,), (other,) = first, second
    for options in ({**first, **second}, {**second, **first}):
        with pytest.raises(BadRequest, match=rf"^{one}= and {other}= say the same in other words; give one"):
            pipeline.stream(PROMPT, **options)
    for options in (first, second, {**first, other: None}):
        choose(VideoOptions, options)
    assert choose(VideoOptions, {"height": 32, "width": 48}).height == 32


@pytest.mark.parametrize(
    ("preset", "given", "frames"),
    [
        ({"seconds": 1.0}, {}, 6),
        ({"seconds": 1.0}, {"num_frames": 33}, 9),
        ({"seconds": 1.0}, {"num_frames": None}, None),
        ({"num_frames": 33}, {}, 9),
        ({"num_frames": 33}, {"seconds": 1.0}, 6),
    ],
)
def test_what_is_given_wins_over_the_preset(
    model_folder: Path, preset: dict[str, Any], given: dict[str, Any], frames: int | None
) -> None:
    """In other words, too."""
    files = ModelFiles.open(model_folder)
    files = replace(files, preset=replace(files.preset, options=preset))
    assert make_request(files, PROMPT, **given).frames == frames


def test_options_of_a_preset_reach_every_method(model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "mine"))
    preset = json.loads((folder / "preset.json").read_text())
    preset["options"] = {"num_frames": 9, "size": [32, 32], "policy": "window:1,2"}
    (folder / "preset.json").write_text(json.dumps(preset))
    pipe = load(folder, device="cpu")
    assert pipe(PROMPT).frames.shape == (1, 9, 32, 32, 3)
    assert pipe.generate(PROMPT).plan.policy == "window"
    assert sum(chunk.frames.shape[1] for chunk in pipe.stream(PROMPT)) == 9
    assert pipe.start(PROMPT).request.frames == 3
    assert pipe.generate(PROMPT, height=48, policy="dense", seconds=1.2).frames.shape == (21, 48, 48, 3)


# Models


def of_preset(model_folder: Path, **changes: Any) -> ModelFiles:
    files = ModelFiles.open(model_folder)
    return replace(files, preset=replace(files.preset, **changes))


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"sampler": "rolling"}, "writes its past again"), ({"local_attention_size": 12}, "spans 12 frames")],
)
def test_a_model_that_cannot_keep_key_frames(model_folder: Path, changes: dict[str, Any], why: str) -> None:
    files = of_preset(model_folder, **changes)
    plan = Plan.uniform(files.config.num_layers, files.config.num_heads, HeadContext(1, 3, 2))
    for options in ({"policy": "keyframes"}, {"plan": plan}):
        with pytest.raises(BadRequest, match=why):
            make_request(files, PROMPT, num_frames=33, **options)
    make_request(of_preset(model_folder), PROMPT, num_frames=33, policy="keyframes:1,2,3")


def test_a_rolling_model_makes_no_video_from_another(model_folder: Path, tmp_path: Path) -> None:
    """An image that fills its first chunk is fine."""
    clip, image = tmp_path / "clip.mp4", tmp_path / "image.png"
    write_mp4(clip, np.zeros((33, 32, 48, 3), np.uint8))
    Image.new("RGB", (48, 32)).save(image)
    rolling = of_preset(model_folder, sampler="rolling", start="chunk")
    with pytest.raises(
        BadRequest, match=r"has sampler 'rolling', which makes no video from another; leave the"
    ):
        make_request(rolling, PROMPT, num_frames=33, video=clip)
    begun = make_request(rolling, PROMPT, num_frames=33, image=image)
    assert begun.start is not None
    assert begun.start.shape == (9, 32, 48, 3)
    block = of_preset(model_folder, start="chunk")
    source = make_request(block, PROMPT, num_frames=33, video=clip).source
    assert source is not None
    assert source.shape == (33, 32, 48, 3)
    with pytest.raises(
        BadRequest, match=r"^A video without end cannot be made from another; give num_frames\.$"
    ):
        make_request(block, PROMPT, num_frames=None, video=clip)


def test_prompts_of_a_video_without_end(model_folder: Path) -> None:
    files = ModelFiles.open(model_folder)
    request = make_request(files, PROMPT, num_frames=None, switches=[(100.0, "a blue cube")])
    assert [switch.frame for switch in request.switches] == [402]
    for seconds in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(BadRequest, match=rf"The prompt cannot change at {seconds:g} s; more than 0 s"):
            make_request(files, PROMPT, num_frames=None, switches=[(seconds, "a blue cube")])


def test_files_with_rules_of_their_own_are_named(model_folder: Path, tmp_path: Path) -> None:
    """What a class refuses is a bad request in Python, and a bad file where it was read from one."""
    from dummyforcing.media.story import Scene, Story

    with pytest.raises(BadRequest, match="without scenes"):
        Story(5.0, ())
    with pytest.raises(BadRequest, match="begins at 1 s"):
        Story(5.0, (Scene("a", 1.0),))
    (tmp_path / "story.yaml").write_text("{seconds: 5, scenes: []}")
    with pytest.raises(BadFile, match=r"story\.yaml: A story without scenes shows nothing; give one"):
        Story.load(tmp_path / "story.yaml")
