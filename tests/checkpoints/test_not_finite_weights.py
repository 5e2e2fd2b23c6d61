"""Weights that are NaN or infinite: an error that names the tensor, wherever weights are read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dummyforcing.checkpoints.convert import check_file, check_model, convert
from dummyforcing.checkpoints.lora import LoRA
from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.checkpoints.text_encoder import load_text_encoder
from dummyforcing.checkpoints.transformer import open_transformer
from dummyforcing.checkpoints.vae import load_small_decoder, load_vae
from dummyforcing.checkpoints.weights import fill
from dummyforcing.errors import BadFile, NotFinite, UserError
from dummyforcing.pipeline.pipeline import load
from dummyforcing.vae.small_decoder import SmallLayers
from tests.layouts import LAYOUTS, SMALL, random_state

NAN, INF = float("nan"), float("inf")
NAME = "blocks.1.ffn.0.weight"


def spoil(path: Path, part: str, value: float = NAN, place: int = -1) -> tuple[str, Path]:
    """Put one number into the last tensor of a part of a model folder whose name has `part` in it."""
    for file in sorted(path.glob("*.safetensors")):
        tensors = load_file(file)
        for name in sorted(tensors, reverse=True):
            if part in name:
                tensors[name].view(-1)[place] = value
                save_file(tensors, file, {"format": "pt"})
                return name, file
    raise AssertionError(f"no {part} in {path}")


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


@pytest.mark.parametrize(("value", "word"), [(NAN, "NaN"), (INF, "infinite"), (-INF, "infinite")])
@pytest.mark.parametrize("place", [0, -1])
def test_transformer(value: float, word: str, place: int, folder: Path) -> None:
    name, file = spoil(folder / "transformer", "ffn", value, place)
    message = rf"^Tensor {name} of {file} is damaged: 1 of [\d,]+ numbers is {word}; download the file again"
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(BadFile, match=message):
            load(folder, torch_dtype=dtype, device="cpu")


@pytest.mark.parametrize("part", ["text_encoder", "vae"])
def test_the_other_parts(part: str, folder: Path) -> None:
    name, file = spoil(folder / part, "")
    with pytest.raises(BadFile, match=rf"^Tensor {name} of {file} is damaged: 1 of"):
        load(folder, device="cpu")
    reader: dict[str, Callable[[], object]] = {
        "vae": lambda: load_vae(folder / "vae"),
        "text_encoder": lambda: load_text_encoder(folder / "text_encoder", folder / "tokenizer", 16),
    }
    with pytest.raises(BadFile, match=f"{name} of {file}"):
        reader[part]()


def test_small_decoder(tmp_path: Path) -> None:
    from diffusers import AutoencoderKLWan

    from dummyforcing.vae.codec import VideoDecoder

    torch.manual_seed(0)
    state = SmallLayers().state_dict()
    state["decoder.1.weight"][0, 0, 0, 0] = INF
    torch.save(state, tmp_path / "small.pth")
    vae = VideoDecoder(AutoencoderKLWan(base_dim=4, num_res_blocks=1).eval())
    with pytest.raises(
        BadFile, match=r"Tensor decoder\.1\.weight of .*small\.pth is damaged: 1 of .* infinite"
    ):
        load_small_decoder(tmp_path / "small.pth", vae)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout: str, tmp_path: Path) -> None:
    """The tensor is named as it is in the file."""
    state = random_state()
    own = "blocks.1.self_attn.k.weight"
    state[own][3, 5] = NAN
    path = tmp_path / layout
    LAYOUTS[layout](state, path)
    theirs = {"fused": r"to_qkv\.weight", "diffusers": r"attn1\.to_k\.weight"}
    name = theirs.get(layout.removesuffix(".safetensors"), r"self_attn\.k\.weight")
    with pytest.raises(
        BadFile, match=rf"^Tensor \S*1\.\S*{name} of {path}\S* is damaged: 1 of [\d,]+ numbers"
    ):
        fill(*open_transformer(path, SMALL, "generator_ema"), "cpu", torch.float32)


def test_too_large_for_the_dtype(tmp_path: Path) -> None:
    state = random_state()
    state[NAME][0, 0] = 1e5
    path = tmp_path / "w.safetensors"
    save_file(state, path)
    for dtype in (torch.float32, torch.bfloat16):
        fill(*open_transformer(path, SMALL), "cpu", dtype)
    message = rf"Tensor {NAME} of {path} is too large for float16: 1 of 4,608 numbers is infinite once it is"
    with pytest.raises(BadFile, match=message):
        fill(*open_transformer(path, SMALL), "cpu", torch.float16)


def lora(down: Tensor | None = None, up: Tensor | None = None) -> dict[str, Tensor]:
    layer = NAME.removesuffix(".weight")
    return {
        f"{layer}.lora_A.weight": torch.ones(2, 48) if down is None else down,
        f"{layer}.lora_B.weight": torch.ones(96, 2) if up is None else up,
    }


@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
@pytest.mark.parametrize("value", [NAN, INF])
def test_loras(part: str, value: float, tmp_path: Path) -> None:
    """Zero times infinity is NaN; but the LoRA is to blame, not what it was merged into."""
    save_file(random_state(), tmp_path / "w.safetensors")
    tensors = lora(torch.zeros(2, 48), torch.zeros(96, 2))
    name = next(name for name in tensors if part in name)
    tensors[name][1, 1] = value
    save_file(tensors, tmp_path / "lora.safetensors")
    opened = open_transformer(tmp_path / "w.safetensors", SMALL, "", [LoRA(tmp_path / "lora.safetensors")])
    with pytest.raises(BadFile, match=rf"^Tensor {name} of \S*lora\.safetensors is damaged: 1 of"):
        fill(*opened, "cpu", torch.float32)


def test_a_weight_under_a_lora(tmp_path: Path) -> None:
    state = random_state()
    state[NAME][2, 2] = NAN
    save_file(state, tmp_path / "w.safetensors")
    save_file(lora(), tmp_path / "lora.safetensors")
    opened = open_transformer(tmp_path / "w.safetensors", SMALL, "", [LoRA(tmp_path / "lora.safetensors")])
    with pytest.raises(
        BadFile, match=rf"^Tensor {NAME} of \S*w\.safetensors is damaged: 1 of 4,608 numbers is NaN"
    ):
        fill(*opened, "cpu", torch.float32)


def test_a_lora_that_is_too_strong(tmp_path: Path) -> None:
    save_file(random_state(), tmp_path / "w.safetensors")
    save_file(lora(1e20 * torch.ones(2, 48), 1e20 * torch.ones(96, 2)), tmp_path / "lora.safetensors")
    for scale, is_fine in ((1e-10, True), (1.0, False)):
        used = LoRA(tmp_path / "lora.safetensors", scale)
        opened = open_transformer(tmp_path / "w.safetensors", SMALL, "", [used])
        if is_fine:
            fill(*opened, "cpu", torch.float32)
            continue
        message = (
            r"^blocks\.1\.ffn\.0 with the LoRA in \S*lora\.safetensors is not finite at strength 1: 4,608 of"
        )
        with pytest.raises(NotFinite, match=message):
            fill(*opened, "cpu", torch.float32)


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "vae"])
def test_nothing_is_converted(part: str, folder: Path, tmp_path: Path) -> None:
    name, file = spoil(folder / part, "")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(BadFile, match=f"{name} of {file} is damaged"):
        list(convert(ModelFiles.open(folder), tmp_path / "new", torch.bfloat16))
    assert sorted(tmp_path.iterdir()) == before


def test_nothing_is_saved(folder: Path, tmp_path: Path) -> None:
    """Weights that were changed after they had been loaded."""
    pipe = load(folder, device="cpu")
    with torch.no_grad():
        pipe.model.get_parameter("blocks.0.ffn.0.weight")[0, 0] = NAN
    before = sorted(tmp_path.iterdir())
    with pytest.raises(BadFile, match=r"Tensor blocks\.0\.ffn\.0\.weight is damaged: 1 of"):
        pipe.save_pretrained(tmp_path / "new")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "vae"])
def test_a_deep_check_reads_the_weights(part: str, folder: Path) -> None:
    assert not any(report.problem for report in check_model(ModelFiles.open(folder), deep=True))
    name, file = spoil(folder / part, "")
    assert not any(report.problem for report in check_model(ModelFiles.open(folder)))
    problems = {r.part: r.problem for r in check_model(ModelFiles.open(folder), deep=True) if r.problem}
    assert list(problems) == [part]
    assert problems[part].startswith(f"Tensor {name} of {file} is damaged: 1 of")
    assert not check_file(folder / part).problem
    assert check_file(folder / part, deep=True).problem == problems[part]


def test_a_deep_check_counts(folder: Path) -> None:
    for part in ("ffn", "cross_attn", "head.head"):
        spoil(folder / "transformer", part)
    (report, *_) = check_model(ModelFiles.open(folder), deep=True)
    assert report.problem.startswith("3 of 96 tensors cannot be used. Tensor ")


@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
def test_a_deep_check_of_a_lora(part: str, folder: Path, tmp_path: Path) -> None:
    tensors = lora()
    name = next(name for name in tensors if part in name)
    tensors[name][0, 0] = INF
    path = tmp_path / "lora.safetensors"
    save_file(tensors, path)
    files = ModelFiles.open(folder, lora=str(path))
    assert not any(report.problem for report in check_model(files))
    problems = {report.part: report.problem for report in check_model(files, deep=True) if report.problem}
    assert list(problems) == ["transformer", "LoRA"]
    for problem in problems.values():
        assert problem.startswith(f"Tensor {name} of {path} is damaged: 1 of")
    with pytest.raises(UserError, match=name):
        load(folder, lora=str(path), device="cpu")


def test_the_bundled_model_is_finite() -> None:
    reports = check_model(ModelFiles.open("tiny"), deep=True)
    assert [report.part for report in reports if report.problem] == []


def test_no_nan_in_the_files_of_a_model(folder: Path, tmp_path: Path) -> None:
    """A preset whose numbers JSON has no words for."""
    preset = json.loads((folder / "preset.json").read_text())
    preset["schedule"]["shift"] = NAN
    (folder / "preset.json").write_text(json.dumps(preset))
    with pytest.raises(UserError, match=r"preset\.json is not a preset \(NaN is no number of JSON\)"):
        list(convert(ModelFiles.open(folder), tmp_path / "new", torch.float32, ("vae",)))
    assert not (tmp_path / "new").exists()
