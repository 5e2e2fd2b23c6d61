"""Damaged files of every format: read as they are, or refused with a sentence, and never a traceback.

Hypothesis changes valid documents at any place, and the bytes of their files.
"""

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dummyforcing.checkpoints.components import read_component_config
from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.checkpoints.tensor_files import open_tensors
from dummyforcing.checkpoints.transformer import read_config
from dummyforcing.checkpoints.vae import decoder_sizes
from dummyforcing.errors import UserError
from dummyforcing.evaluation.prompts import PromptSet
from dummyforcing.files.text import read_prompts
from dummyforcing.media.story import Story
from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.pipeline.pipeline import DummyForcingPipeline, load
from dummyforcing.pipeline.request import make_request
from dummyforcing.presets.catalog import read_preset
from dummyforcing.sampling.teacache import Calibration
from dummyforcing.server.settings import read_settings
from dummyforcing.server.web.access import read_keys
from tests.conftest import link_model
from tests.files.documents import CALIBRATION, CONFIG, PRESET

PLAN = Plan.uniform(3, 2, HeadContext(1, 2)).to_fields() | {"scores": [[[0.2, 0.3, 0.5]] * 2] * 3}
STORY = {"seconds": 3.0, "fade": 1, "scenes": [{"prompt": "a red ball"}, {"at": 1.5, "prompt": "a cube"}]}
INDEX = {"metadata": {"total_size": 4}, "weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}

QUIET = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

NUMBERS = st.one_of(
    st.sampled_from([0, -1, 1, 2, 3, 0.5, 1e308, -1e-9, 10**30, 10**400, True]),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
)
VALUES = st.recursive(
    st.none() | NUMBERS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in inside:
        yield (*where, name)
        yield from places(item, (*where, name))


@st.composite
def changed(draw: st.DrawFn, document: dict[str, Any]) -> Any:
    """A document with another value somewhere, or one value less or more."""
    document = deepcopy(document)
    *way, last = draw(st.sampled_from(list(places(document))))
    around = document
    for name in way:
        around = around[name]
    match draw(st.sampled_from(["number", "value", "gone", "twice"])):
        case "number":
            around[last] = draw(NUMBERS)
        case "value":
            around[last] = draw(VALUES)
        case "gone":
            del around[last]
        case _ if isinstance(around, list):
            around.insert(last, around[last])
        case _:
            around[draw(st.text(max_size=4))] = draw(VALUES)
    return document


def read_index(path: Path) -> object:
    """Read the weights that an index lists; of these there is one file."""
    write_one(path.parent / "one.safetensors")
    return open_tensors(path.parent)


def write_one(path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, path)


def read_story(path: Path) -> object:
    story = Story.load(path)
    files = ModelFiles.open("self-forcing")
    return make_request(files, story.prompt, **story.options(files.preset))


VAE = {"base_dim": 8, "z_dim": 16, "dim_mult": [1, 2, 4], "num_res_blocks": 1, "patch_size": 2}
JSON: dict[str, tuple[str, dict[str, Any], Callable[[Path], object]]] = {
    "preset": ("preset.json", PRESET, read_preset),
    "preset like another": ("a.json", {"like": "longlive", "fps": 24, "dummy": {}}, read_preset),
    "plan": ("plan.json", PLAN, Plan.load),
    "table": ("t.json", CALIBRATION, lambda path: Calibration.load(path).steps),
    "transformer": ("config.json", CONFIG, lambda path: read_config(path.parent)),
    "component": ("config.json", VAE, lambda path: read_component_config(path.parent)),
    "VAE": ("config.json", VAE, lambda path: decoder_sizes(path.parent)),
    "index": ("a.safetensors.index.json", INDEX, read_index),
    "story": ("story.yaml", STORY, read_story),
}
TEXTS: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    **{name: (file, json.dumps(document), read) for name, (file, document, read) in JSON.items()},
    "YAML": ("story.yaml", yaml.safe_dump(STORY), read_story),
    "TOML": (
        "a.toml",
        'like = "longlive"\nfps = 24\nsource = { file = "a.pt", lora_scale = 0.5 }\n',
        read_preset,
    ),
    "settings": ("s.toml", 'port = 8123\ncors = ["http://a.b"]\n', lambda path: read_settings({}, path)),
    "keys": (
        "keys",
        f"{'k' * 40}\n# {'l' * 40}\n",
        lambda path: read_keys(read_settings({"api_key_file": str(path)})),
    ),
    "prompts": ("p.txt", "a red ball\na cube\n", read_prompts),
    "table of prompts": ("p.csv", 'id,prompt,seed\n1,"a ball, red",7\n2,a cube,\n', PromptSet.read),
    "rows of prompts": ("p.jsonl", '{"prompt": "a ball", "seed": 7}\n{"prompt": "a"}\n', PromptSet.read),
}


def says_so(read: Callable[[Path], object], path: Path) -> None:
    """Read a file, or have it refused in a sentence."""
    said = ""
    try:
        read(path)
    except UserError as error:
        said = str(error)
    assert len(said) < 1000


@pytest.mark.parametrize("kind", JSON)
def test_changed_documents(tmp_path: Path, kind: str) -> None:
    name, document, read = JSON[kind]
    path = tmp_path / name
    path.write_text(json.dumps(document))
    read(path)

    @QUIET
    @given(changed(document))
    def check(one: Any) -> None:
        path.write_text(json.dumps(one))
        says_so(read, path)

    check()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("VAE", {"patch_size": 1e308}),
        ("preset", {"max_frames": 10**400}),
        ("preset", {"chunk_frames": 10**400}),
        ("preset like another", {"like": []}),
        ("preset like another", {"like": ["1" * 5000]}),
    ],
)
def test_numbers_and_names_that_were_not_refused(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    name, document, read = JSON[kind]
    (tmp_path / name).write_text(json.dumps({**document, **changes}))
    with pytest.raises(UserError) as refused:
        read(tmp_path / name)
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("kind", TEXTS)
def test_changed_bytes(tmp_path: Path, kind: str) -> None:
    name, text, read = TEXTS[kind]
    path, whole = tmp_path / name, text.encode()

    @QUIET
    @given(
        st.integers(0, len(whole)),
        st.integers(0, 8),
        st.binary(max_size=4) | st.sampled_from(list(b"[{:-&*")),
    )
    def check(at: int, gone: int, new: bytes | int) -> None:
        new = bytes([new]) if isinstance(new, int) else new
        path.write_bytes(whole[:at] + new + whole[at + gone :])
        says_so(read, path)

    check()


NUMBERS_OF_PRESETS: dict[str, list[Any]] = {
    "chunk_frames": [0, -1, 1, 2, 4, 22],
    "schedule": [
        {"steps": steps, "shift": shift, "warp": warp}
        for steps in ([], [1000], [250, 1000], [2000], [1000, 1000], [500, 250], [999.5], [1000, -1], [0])
        for shift in (0, -3, 3)
        for warp in (True, False)
    ],
    "max_frames": [0, 3, 6, 9, 21],
    "overlap_frames": [-3, 0, 1, 3, 6, 21],
    "local_attention_size": [0, 2, 3, 4, 9],
    "recache_frames": [-1, 0, 1, 12],
    "native": ["dense", "window:1,2", "window:0,0", "x"],
    "fps": [0, 16, 1, -4],
    "size": [[32, 48], [16, 16], [0, 16], [31, 48]],
    "dummy": [{"classify_at_chunk": n, "neighbor_frames": k} for n in (0, 1, 2) for k in (0, 1, 3)],
}


def test_a_preset_that_is_taken_makes_the_video_that_it_says(
    pipeline: DummyForcingPipeline, model_folder: Path, tmp_path: Path
) -> None:
    link_model(model_folder, tmp_path)
    choices = [(name, value) for name, values in NUMBERS_OF_PRESETS.items() for value in values]
    taken = 0

    @settings(parent=QUIET, max_examples=80)
    @given(st.lists(st.sampled_from(choices), max_size=2).map(dict))
    def check(numbers: dict[str, Any]) -> None:
        nonlocal taken
        (tmp_path / "preset.json").write_text(json.dumps({**PRESET, **numbers}))
        try:
            files = ModelFiles.open(tmp_path)
            chunks = 3
            frames = files.preset.pixel_frames(chunks * files.preset.chunk_frames)
            made = DummyForcingPipeline.from_parts(files, pipeline.model, pipeline.text, pipeline.vae)
            video = made.generate("a red ball", num_frames=frames)
        except UserError:
            return
        taken += 1
        assert video.frames.shape == (frames, *files.preset.size, 3)
        assert video.frames.std() > 1

    check()
    assert taken > 10


@pytest.fixture(scope="module")
def pipeline(model_folder: Path) -> DummyForcingPipeline:
    return load(model_folder)


def test_plans_of_a_model_fit_it(tmp_path: Path, pipeline: DummyForcingPipeline) -> None:
    """What is read of a changed plan can be given to the model, or is refused."""
    path = tmp_path / "plan.json"
    config = pipeline.model.config
    plan = Plan.uniform(config.num_layers, config.num_heads, HeadContext(1, 2)).to_fields()

    @settings(parent=QUIET, max_examples=40)
    @given(changed(plan))
    def check(one: Any) -> None:
        path.write_text(json.dumps(one))
        try:
            video = pipeline.generate("a red ball", num_frames=21, plan=path)
        except UserError:
            return
        assert video.frames.shape[0] == 21

    check()
