"""The nodes of the ComfyUI pack against the library, under a stand-in for ComfyUI."""

import asyncio
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from fractions import Fraction
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import dummyforcing
from dummyforcing.analysis.plots import save_head_map
from dummyforcing.errors import BadFile, BadRequest
from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.pipeline.pipeline import DummyForcingPipeline, load
from dummyforcing.presets.catalog import PUBLIC, bundled_folders
from tests.comfyui.standin import PACK, Comfy, Interrupted, Patcher, import_pack, modules
from tests.conftest import link_model
from tests.integrations.standins import Pipeline, noise_of, prompt_of, transformer

ROOT = PACK.parents[1]
PROMPT = "a red ball bounces"
WORKFLOWS = sorted(PACK.glob("example_workflows/*.json"))


@pytest.fixture
def comfy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Comfy:
    """ComfyUI, with its modules in place of those that are not installed."""
    for folder in (
        "output",
        "models/dummyforcing",
        "models/diffusion_models",
        "models/loras",
        "models/vae_approx",
    ):
        (tmp_path / folder).mkdir(parents=True)
    made = Comfy(tmp_path)
    for name, module in modules(made).items():
        monkeypatch.setitem(sys.modules, name, module)
    return made


@pytest.fixture
def nodes(comfy: Comfy) -> dict[str, Any]:
    """The nodes by their ids."""
    extension = asyncio.run(import_pack().comfy_entrypoint())
    found = asyncio.run(extension.get_node_list())
    return {node.define_schema().node_id.removeprefix("DummyForcing"): node for node in found}


@pytest.fixture(scope="module")
def pipeline(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> DummyForcingPipeline:
    """A model that goes on from clips."""
    return load(link_model(model_folder, tmp_path_factory.mktemp("clip"), start="clip"))


def variant(model: Path, folder: Path, **preset: Any) -> Path:
    """A model of the same weights with another preset, in a new folder."""
    folder.mkdir()
    return link_model(model, folder, **preset)


def run(node: Any, **given: Any) -> tuple[Any, ...]:
    """Run a node as ComfyUI does: with every widget's default where nothing is given."""
    inputs = node.define_schema().inputs
    defaults = {
        one.id: one.default if one.default is not None else one.options[0]
        for one in inputs
        if hasattr(one, "default") and (one.default is not None or hasattr(one, "options"))
    }
    assert given.keys() <= {one.id for one in inputs}
    with torch.inference_mode():
        result: tuple[Any, ...] = node.execute(**{**defaults, **given}).args
    assert len(result) == len(node.define_schema().outputs)
    return result


def pixels(frames: torch.Tensor) -> np.ndarray:
    """Frames of ComfyUI in 8 bits."""
    assert frames.dtype == torch.float32
    return (frames * 255).round().to(torch.uint8).numpy()


# --- the pack -----------------------------------------------------------------------------------------------


def test_nodes_take_what_they_ask_for(nodes: dict[str, Any]) -> None:
    assert len(nodes) == 7
    for node in nodes.values():
        schema = node.define_schema()
        taken = signature(node.execute).parameters
        assert {one.id for one in schema.inputs} == {*taken}
        for one in schema.inputs:
            assert bool(one.optional) == (taken[one.id].default is not Parameter.empty)
        assert schema.category == "Dummy Forcing"
        assert schema.description.endswith(".")


def test_comfyui_alone_is_enough_to_load_it(tmp_path: Path) -> None:
    code = f"""
import sys
for name in ("tyro", "rich", "matplotlib", "diffusers", "ftfy", "pytest"):
    sys.modules[name] = None
from pathlib import Path
from tests.comfyui.standin import Comfy, import_pack, modules
sys.modules.update(modules(Comfy(Path({str(tmp_path)!r}))))
import asyncio
pack = import_pack()
nodes = asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
print(len([node.define_schema() for node in nodes]), "transformers" in sys.modules, "av" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout == "7 False False\n", done.stderr


def test_metadata_are_those_that_the_registry_asks_for() -> None:
    data = tomllib.loads((PACK / "pyproject.toml").read_text())
    project = data["project"]
    assert re.fullmatch(r"[a-z][a-z0-9-]{1,98}", project["name"])
    assert "comfyui" not in project["name"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert project["version"] == dummyforcing.__version__.partition(".dev")[0]
    assert (PACK / project["license"]["file"]).read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert {"PublisherId", "DisplayName", "Icon"} <= data["tool"]["comfy"].keys()
    assert (PACK / "requirements.txt").read_text().split() == project["dependencies"]
    with Image.open(PACK / "icon.png") as icon:
        assert icon.width == icon.height <= 400


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_example_workflows_are_of_these_nodes(nodes: dict[str, Any], path: Path) -> None:
    workflow = json.loads(path.read_text())
    own = {f"DummyForcing{name}": node for name, node in nodes.items()}
    ours = {node["id"]: node for node in workflow["nodes"] if node["type"] in own}
    assert ours
    for node in ours.values():
        schema = own[node["type"]].define_schema()
        assert [one["name"] for one in node["inputs"]] == [one.id for one in schema.inputs]
        assert [one["type"] for one in node["inputs"]] == [one.kind for one in schema.inputs]
        assert [one["type"] for one in node["outputs"]] == [one.kind for one in schema.outputs]
        values = iter(node["widgets_values"])
        for one in schema.inputs:
            if hasattr(one, "default"):
                value = next(values)
                assert value in one.options if hasattr(one, "options") else True
                assert one.kind != "INT" or one.min <= value <= one.max
                if getattr(one, "control_after_generate", None):
                    assert next(values) == "fixed"
        assert next(values, None) is None
    ends = {node["id"]: node for node in workflow["nodes"]}
    for link, source, slot, target, place, kind in workflow["links"]:
        assert ends[source]["outputs"][slot]["type"] == kind
        assert ends[target]["inputs"][place]["type"] in (kind, "*")
        assert link in ends[source]["outputs"][slot]["links"]
        assert link == ends[target]["inputs"][place]["link"]
    assert path.with_suffix(".jpg").exists()
    assert (ROOT / "docs" / "images" / "comfyui" / f"{path.stem}.png").exists()


def test_the_guide_has_every_node_and_every_input(nodes: dict[str, Any]) -> None:
    guide = (ROOT / "docs" / "guides" / "comfyui.md").read_text()
    schemas = {name: node.define_schema() for name, node in nodes.items()}
    for schema in schemas.values():
        assert f"\n| {schema.display_name} |" in guide
    for name in ("LoadModel", "MakeVideo"):
        _, _, section = guide.partition(f"### {schemas[name].display_name}\n")
        rows = [
            row.split("|")[1] for row in section.partition("\n#")[0].splitlines() if row.startswith("| `")
        ]
        inputs = [one.id for one in schemas[name].inputs if one.id != "model" or name == "LoadModel"]
        assert re.findall(r"`(\w+)`", " ".join(rows)) == inputs


# --- loading ------------------------------------------------------------------------------------------------


def test_models_that_can_be_chosen(comfy: Comfy, nodes: dict[str, Any], model_folder: Path) -> None:
    own = comfy.folder / "models" / "dummyforcing"
    variant(model_folder, own / "mine", name="mine")
    (own / "preset.toml").write_text('like = "tiny"\n')
    (own / "notes.txt").write_text("not a model")
    (choice,) = (one for one in nodes["LoadModel"].define_schema().inputs if one.id == "model")
    assert [*choice.options] == [*bundled_folders(), *PUBLIC, "mine", "preset.toml"]
    (model,) = run(nodes["LoadModel"], model="mine")
    assert model.files.preset.name == "mine"
    assert (model.device.type, model.dtype) == ("cpu", torch.float32)
    assert comfy.room == [4 * sum(model.files.parameters.values())]


def test_options_of_a_model(comfy: Comfy, nodes: dict[str, Any]) -> None:
    lora = comfy.folder / "models" / "loras" / "long.safetensors"
    down, up = torch.randn(4, 384), torch.randn(384, 4)
    layer = "blocks.0.self_attn.q"
    save_file({f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}, lora)
    node = nodes["LoadModel"]
    (plain,) = run(node, model="tiny", torch_dtype="bfloat16", offload=True)
    assert plain.dtype == torch.bfloat16
    assert comfy.room == [2 * plain.files.parameters["transformer"]]
    (tuned,) = run(node, model="tiny", lora="long.safetensors", lora_strength=0.5)
    expected = load("tiny", lora=f"{lora}:0.5")
    for weight, other in zip(tuned.model.parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(weight, other)
    for given, message in (
        ({"base": "no/such folder"}, "no/such folder"),
        ({"fp8": "most"}, "There is no fp8 'most'"),
    ):
        with pytest.raises((BadFile, BadRequest), match=message):
            run(node, model="tiny", **given)


# --- videos -------------------------------------------------------------------------------------------------


def test_a_video_is_that_of_the_library(
    comfy: Comfy, nodes: dict[str, Any], pipeline: DummyForcingPipeline
) -> None:
    frames, video, plan, summary = run(
        nodes["MakeVideo"], model=pipeline, prompt=PROMPT, seed=3, seconds=2.0, width=32, height=32
    )
    expected = pipeline.generate(PROMPT, seed=3, num_frames=33, size=(32, 32), policy="dummy")
    np.testing.assert_array_equal(pixels(frames), expected.frames)
    assert plan == expected.plan
    assert video.components.images is frames
    assert video.components.frame_rate == Fraction(16)
    assert [report.value for report in comfy.reports] == [1, 9, 21, 33]
    for report in comfy.reports:
        assert report.most == 33
        np.testing.assert_array_equal(report.preview, expected.frames[int(report.value) - 1])
    heads = f"heads: {', '.join(f'{count} {role}' for role, count in plan.counts.items())}"
    assert re.fullmatch(
        rf"33 frames of 32x32 \(2\.1 s\), made at \d+\.\d FPS; KV cache \d+ MB; {heads}", summary
    )


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({"num_frames": 21, "policy": "dense"}, {"num_frames": 21, "policy": "dense"}),
        (
            {"num_frames": 45, "changes": "\n1.4: a blue cube spins\n\n", "fade": 2},
            {"num_frames": 45, "switches": [(1.4, "a blue cube spins")], "fade": 2},
        ),
        ({"num_frames": 21, "teacache": "0.3"}, {"num_frames": 21, "teacache": 0.3}),
    ],
)
def test_options_of_a_video(
    nodes: dict[str, Any], pipeline: DummyForcingPipeline, given: dict[str, Any], options: dict[str, Any]
) -> None:
    frames, *_ = run(nodes["MakeVideo"], model=pipeline, prompt=PROMPT, **given)
    np.testing.assert_array_equal(pixels(frames), pipeline.generate(PROMPT, **options).frames)


def test_a_policy_of_numbers(nodes: dict[str, Any], pipeline: DummyForcingPipeline) -> None:
    make = nodes["MakeVideo"]
    for given, options in (
        ({"policy": "window:1,2"}, {"policy": "window:1,2"}),
        ({"policy": "dummy", "dummy_fraction": 0.25}, {"policy": "dummy", "dummy_fraction": 0.25}),
        ({"policy": "long", "budget": "window:5"}, {"policy": "long", "budget": "window:5"}),
    ):
        (policy,) = run(nodes["Policy"], **given)
        assert policy == options
        *_, plan, _ = run(make, model=pipeline, prompt=PROMPT, num_frames=33, custom_policy=policy)
        assert plan == pipeline.generate(PROMPT, num_frames=33, **options).plan
    (policy,) = run(nodes["Policy"], policy="windows")
    with pytest.raises(BadRequest, match="There is no policy 'windows'"):
        run(make, model=pipeline, prompt=PROMPT, custom_policy=policy)


def test_a_video_goes_on_from_frames_and_a_plan(
    nodes: dict[str, Any], pipeline: DummyForcingPipeline
) -> None:
    make = nodes["MakeVideo"]
    frames, _, plan, _ = run(make, model=pipeline, prompt=PROMPT, num_frames=33)
    images = [Image.fromarray(frame) for frame in pixels(frames)]
    more, _, used, _ = run(make, model=pipeline, prompt=PROMPT, num_frames=21, start=frames, plan=plan)
    expected = pipeline.generate(PROMPT, num_frames=21, video=images, plan=plan)
    np.testing.assert_array_equal(pixels(more), expected.frames)
    assert used.roles == plan.roles
    with pytest.raises(BadRequest, match="goes on from a clip of 9 pixel frames, not from an image"):
        run(make, model=pipeline, prompt=PROMPT, start=frames[:1])


def test_a_video_begins_with_an_image(nodes: dict[str, Any], model_folder: Path, tmp_path: Path) -> None:
    model = load(variant(model_folder, tmp_path / "frames", start="frame", chunk_frames=1))
    image = torch.rand(1, 40, 48, 4)
    frames, *_ = run(nodes["MakeVideo"], model=model, prompt=PROMPT, num_frames=9, start=image)
    expected = model.generate(PROMPT, num_frames=9, image=Image.fromarray(pixels(image)[0]))
    np.testing.assert_array_equal(pixels(frames), expected.frames)


def test_a_video_is_made_from_a_clip(nodes: dict[str, Any], model_folder: Path, tmp_path: Path) -> None:
    preset = {"start": "chunk", "sampler": "recompute", "context_frames": 3, "native": "dense"}
    model = load(variant(model_folder, tmp_path / "chunks", **preset))
    clip = torch.rand(24, 32, 48, 3)
    frames, *_ = run(
        nodes["MakeVideo"],
        model=model,
        prompt=PROMPT,
        num_frames=21,
        start=clip,
        strength=0.5,
        policy="native",
    )
    images = [Image.fromarray(frame) for frame in pixels(clip)]
    expected = model.generate(PROMPT, num_frames=21, video=images, strength=0.5, policy="native")
    np.testing.assert_array_equal(pixels(frames), expected.frames)


def test_stop_ends_it_after_a_chunk(
    comfy: Comfy, nodes: dict[str, Any], pipeline: DummyForcingPipeline
) -> None:
    make: Callable[[], Any] = lambda: run(nodes["MakeVideo"], model=pipeline, prompt=PROMPT, num_frames=81)  # noqa: E731
    comfy.stop_after = 3
    with pytest.raises(Interrupted):
        make()
    assert [report.value for report in comfy.reports] == [1, 9, 21]
    comfy.stop_after = None
    frames, *_ = make()
    np.testing.assert_array_equal(pixels(frames), pipeline.generate(PROMPT, num_frames=81).frames)


def test_what_is_refused_is_refused_before_anything_is_made(
    comfy: Comfy, nodes: dict[str, Any], pipeline: DummyForcingPipeline
) -> None:
    for given, message in (
        ({"num_frames": 20}, "20 pixel frames cannot be made .*; take 9 or 21"),
        ({"prompt": " "}, "The prompt is empty"),
        ({"changes": "a blue cube"}, "write SECONDS:PROMPT"),
        ({"width": 40}, "is no multiple of 16 pixels"),
    ):
        with pytest.raises(BadRequest, match=message):
            run(nodes["MakeVideo"], **{"model": pipeline, "prompt": PROMPT, **given})
    assert not comfy.reports
    assert not comfy.room


def test_the_model_leaves_the_gpu_when_it_is_asked_to(
    comfy: Comfy, nodes: dict[str, Any], pipeline: DummyForcingPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves: list[str] = []
    to = DummyForcingPipeline.to

    def moved(model: DummyForcingPipeline, device: Any) -> DummyForcingPipeline:
        moves.append(f"{'away' if device == 'cpu' else 'here'} after {len(comfy.reports)}")
        return to(model, device)

    monkeypatch.setattr(DummyForcingPipeline, "to", moved)
    make = nodes["MakeVideo"]
    run(make, model=pipeline, prompt=PROMPT, num_frames=21)
    assert moves == ["here after 0"]
    assert comfy.given_back == 0
    run(make, model=pipeline, prompt=PROMPT, num_frames=21, keep_loaded=False)
    assert moves[1:] == ["here after 3", "away after 6"]
    comfy.stop_after = 7
    with pytest.raises(Interrupted):
        run(make, model=pipeline, prompt=PROMPT, num_frames=21, keep_loaded=False)
    assert moves[3:] == ["here after 6", "away after 7"]
    assert comfy.given_back == 2
    assert len(comfy.room) == 3
    assert min(comfy.room) > 2**28


# --- head plans ---------------------------------------------------------------------------------------------

PLAN = Plan(
    roles=(("dummy", "sink"), ("neighbor", "dummy")),
    table={"dummy": HeadContext(0, 1), "sink": HeadContext(1, 0), "neighbor": HeadContext(0, 3)},
    policy="dummy",
)


def test_the_head_map_is_that_of_the_library(nodes: dict[str, Any], tmp_path: Path) -> None:
    (drawn,) = run(nodes["HeadMap"], plan=PLAN)
    save_head_map(tmp_path / "map.png", PLAN)
    with Image.open(tmp_path / "map.png") as image:
        np.testing.assert_array_equal(pixels(drawn)[0], np.asarray(image.convert("RGB")))


def test_plans_as_files(comfy: Comfy, nodes: dict[str, Any]) -> None:
    save, read = nodes["SavePlan"], nodes["LoadPlan"]
    before = read.fingerprint_inputs(file="plans/one.json")
    assert run(save, plan=PLAN, file="plans/one.json") == ()
    assert run(read, file="plans/one.json") == run(read, file=str(comfy.folder / "output/plans/one.json"))
    assert (
        run(read, file="plans/one.json")
        == (Plan.load(comfy.folder / "output" / "plans" / "one.json"),)
        == (PLAN,)
    )
    assert read.fingerprint_inputs(file="plans/one.json") != before
    for name in ("../one.json", "", ".", str(comfy.folder / "one.json")):
        with pytest.raises(BadRequest, match="is no file in ComfyUI's output folder"):
            run(save, plan=PLAN, file=name)
    assert [path.name for path in comfy.folder.rglob("*.json")] == ["one.json"]
    with pytest.raises(BadFile, match="cannot be read"):
        run(read, file="two.json")


# --- ComfyUI's own sampler ----------------------------------------------------------------------------------


class ARModel(Patcher):
    """A MODEL around a small AR transformer, and its sampler."""

    def __init__(self, family: str = "self-forcing") -> None:
        network = transformer(family)
        super().__init__(network)
        self.pipeline = Pipeline(network, chunk=3)

    def make(self, model: Patcher) -> torch.Tensor:
        """A video that one of the copies samples."""
        torch.manual_seed(5)
        video: torch.Tensor = model.sample(
            self.pipeline.inference, noise_of(15), [prompt_of(self.pipeline.model)]
        )
        return video

    @property
    def is_attached(self) -> bool:
        return "forward" in vars(self.pipeline.model.blocks[0].self_attn)


def test_only_the_copy_samples_with_dummy_forcing(nodes: dict[str, Any]) -> None:
    model = ARModel()
    plain = model.make(model)
    with dummyforcing.attach(model.pipeline, "anchored") as attachment:
        expected = model.make(model)
    assert not torch.allclose(expected, plain)
    (patched,) = run(nodes["Patch"], model=model, policy="anchored")
    assert patched is not model
    assert patched.model is model.model
    assert not model.is_attached
    torch.testing.assert_close(model.make(patched), expected, rtol=0, atol=0)
    assert not model.is_attached
    torch.testing.assert_close(model.make(model), plain, rtol=0, atol=0)
    torch.testing.assert_close(model.make(patched.clone()), expected, rtol=0, atol=0)
    (planned,) = run(nodes["Patch"], model=patched, policy="dense", plan=attachment.plan)
    with dummyforcing.attach(model.pipeline, plan=attachment.plan):
        expected = model.make(model)
    torch.testing.assert_close(model.make(planned), expected, rtol=0, atol=0)


def test_a_transformer_that_is_called_as_comfyui_calls_its_own(nodes: dict[str, Any]) -> None:
    model = ARModel("comfyui")
    with dummyforcing.attach(model.pipeline.model):
        expected = model.make(model)
    (patched,) = run(nodes["Patch"], model=model)
    torch.testing.assert_close(model.make(patched), expected, rtol=0, atol=0)
    with pytest.raises(AssertionError, match="only attached"):
        model.make(model)


def test_a_second_patch_replaces_the_first(nodes: dict[str, Any]) -> None:
    model = ARModel()
    plain = model.make(model)
    (first,) = run(nodes["Patch"], model=model)
    (second,) = run(nodes["Patch"], model=first, policy="dense")
    torch.testing.assert_close(model.make(second), plain, rtol=0, atol=1e-4)
    assert not torch.allclose(model.make(first), plain, atol=1e-4)


def test_what_stops_sampling_detaches(nodes: dict[str, Any]) -> None:
    model = ARModel()
    (patched,) = run(nodes["Patch"], model=model)

    def stopped() -> None:
        assert model.is_attached
        raise Interrupted

    with pytest.raises(Interrupted):
        patched.sample(stopped)
    assert not model.is_attached


def test_a_patch_that_cannot_work_is_refused_at_once(nodes: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="No transformer that can be attached to was found in this Linear"):
        run(nodes["Patch"], model=Patcher(torch.nn.Linear(2, 2)))
    model = ARModel()
    with pytest.raises(BadRequest, match="This head plan is for 2 layers with 2 heads"):
        run(nodes["Patch"], model=model, plan=PLAN)
    assert not model.is_attached
