import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dummyforcing.checkpoints.convert import check_file, check_model, convert
from dummyforcing.checkpoints.hub import HubFile
from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.checkpoints.transformer import WAN_SIZES
from dummyforcing.errors import UserError
from dummyforcing.models.wan import CausalWan
from dummyforcing.pipeline.pipeline import load
from dummyforcing.presets.catalog import find_preset
from tests.layouts import SMALL, diffusers, fsdp, random_state

PROMPT = "a red ball bounces"


@pytest.fixture
def public(model_folder: Path, tmp_path: Path) -> ModelFiles:
    """Self-Forcing's preset and layout with a small random transformer."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    torch.save({"generator_ema": fsdp(random_state())}, folder / "w.pt")
    shutil.copy(model_folder / "transformer" / "config.json", folder)
    return ModelFiles.open("self-forcing", weights=folder / "w.pt", base=model_folder)


def local(place: Path | HubFile) -> Path:
    """A place that is none on the Hub."""
    assert isinstance(place, Path)
    return place


def test_a_converted_model_makes_the_same_video(
    public: ModelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dummyforcing.checkpoints.convert.SHARD_BYTES", 200_000)
    written = list(convert(public, tmp_path / "mine", torch.float32))
    assert sum(path.parts[0] == "transformer" for path in written) > 1
    assert all((tmp_path / "mine" / path).is_file() for path in written)
    assert (tmp_path / "mine" / "transformer" / "diffusion_pytorch_model.safetensors.index.json").exists()
    options = {"num_frames": 9, "size": (32, 48)}
    mine = load(tmp_path / "mine", device="cpu")
    theirs = load("self-forcing", weights=local(public.transformer), base=local(public.base), device="cpu")
    assert np.array_equal(mine.generate(PROMPT, **options).frames, theirs.generate(PROMPT, **options).frames)


def test_what_is_written(public: ModelFiles, tmp_path: Path) -> None:
    list(convert(public, tmp_path / "mine", torch.bfloat16))
    folder = tmp_path / "mine"
    parts = {"preset.json", "transformer", "text_encoder", "tokenizer", "vae"}
    assert {path.name for path in folder.iterdir()} == parts
    tensors = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    state = diffusers(random_state())
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensor, state[name].bfloat16()) for name, tensor in tensors.items())
    data = json.loads((folder / "preset.json").read_text())
    assert "source" not in data
    assert "base" not in data
    preset, _ = find_preset(folder)
    assert preset.schedule == public.preset.schedule
    assert preset.max_frames == 21
    # The libraries' own loaders read it too.
    from diffusers import AutoencoderKLWan
    from transformers import UMT5EncoderModel

    vae = AutoencoderKLWan.from_pretrained(folder / "vae", low_cpu_mem_usage=False)
    expected, ours = load(local(public.base), device="cpu"), vae.state_dict()
    assert all(torch.equal(ours[n], t.bfloat16()) for n, t in expected.vae.vae.state_dict().items())
    text = UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(text[n], t.bfloat16()) for n, t in expected.text.model.state_dict().items())


def test_the_transformer_alone(public: ModelFiles, tmp_path: Path) -> None:
    list(convert(public, tmp_path / "mine", torch.bfloat16, ["transformer"]))
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"preset.json", "transformer"}
    files = ModelFiles.open(tmp_path / "mine")
    assert files.base == public.base
    assert load(tmp_path / "mine", device="cpu").model.config == SMALL


def test_a_lora_is_merged(public: ModelFiles, tmp_path: Path) -> None:
    lora = {"blocks.0.ffn.0.lora_A.weight": torch.ones(2, 48)}
    lora["blocks.0.ffn.0.lora_B.weight"] = torch.ones(96, 2)
    save_file(lora, tmp_path / "l.safetensors")
    files = ModelFiles.open(
        "self-forcing",
        weights=local(public.transformer),
        base=local(public.base),
        lora=f"{tmp_path / 'l.safetensors'}:0.5",
    )
    list(convert(files, tmp_path / "mine", torch.float32, ["transformer"]))
    tensors = load_file(tmp_path / "mine" / "transformer" / "diffusion_pytorch_model.safetensors")
    expected = random_state()["blocks.0.ffn.0.weight"] + 1
    torch.testing.assert_close(tensors["blocks.0.ffn.net.0.proj.weight"], expected)


def test_nothing_is_left_of_a_failure(public: ModelFiles, model_folder: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(model_folder, tmp_path / "base"))
    (base / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"x")
    (tmp_path / "there").mkdir()
    before = sorted(tmp_path.iterdir())
    files = ModelFiles.open("self-forcing", weights=local(public.transformer), base=model_folder)
    broken = ModelFiles(**{**vars(files), "base": base})
    with pytest.raises(UserError, match="damaged, incomplete"):
        list(convert(broken, tmp_path / "mine", torch.bfloat16))
    with pytest.raises(UserError, match="there: it exists already; give the name of a new folder"):
        list(convert(files, tmp_path / "there", torch.bfloat16))
    with pytest.raises(UserError, match="does not exist; create it first"):
        list(convert(files, tmp_path / "no" / "mine", torch.bfloat16))
    stopped = convert(files, tmp_path / "mine", torch.bfloat16)
    next(stopped)
    assert isinstance(stopped, Generator)
    stopped.close()
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_disk_full(public: ModelFiles, tmp_path: Path) -> None:
    args = ["models", "convert", "self-forcing", "-o", tmp_path / "mine"]
    args += ["--weights", public.transformer, "--base", public.base]
    result = subprocess.run(
        [sys.executable, "-m", "dummyforcing", *map(str, args)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    assert result.returncode == 2
    assert "annot write" in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints"}


def test_check_model(public: ModelFiles, model_folder: Path, tmp_path: Path) -> None:
    reports = {report.part: report for report in check_model(public)}
    assert list(reports) == ["transformer", "text_encoder", "vae", "tokenizer"]
    assert not any(report.problem for report in reports.values())
    transformer = reports["transformer"]
    parameters = sum(tensor.numel() for tensor in random_state().values())
    assert (transformer.tensors, transformer.parameters, transformer.dtype) == (96, parameters, "float32")
    base = Path(shutil.copytree(model_folder, tmp_path / "base"))
    shutil.rmtree(base / "tokenizer")
    (base / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    broken = ModelFiles(**{**vars(public), "base": base})
    problems = {report.part: report.problem for report in check_model(broken)}
    assert not problems["transformer"]
    assert "holds no weights" in problems["vae"]
    assert "holds no tokenizer" in problems["tokenizer"]


def test_check_what_is_not_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    reports = check_model(ModelFiles.open("longlive"))
    assert all("not downloaded yet" in report.problem for report in reports)
    assert list(tmp_path.iterdir()) == []


def zeros(shapes: dict[str, torch.Size]) -> dict[str, torch.Tensor]:
    """Tensors that take no room: each repeats one number."""
    return {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("size", WAN_SIZES)
def test_check_a_file_of_a_public_size(size: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in CausalWan(WAN_SIZES[size]).state_dict().items()}
    torch.save({"generator": {f"model.{name}": t for name, t in zeros(shapes).items()}}, tmp_path / "w.pt")
    report = check_file(tmp_path / "w.pt")
    assert report.part == f"Wan transformer, {size}"
    assert report.parameters == {"1.3B": 1_418_996_800, "14B": 14_288_491_584}[size]
    lora = {f"{n.removesuffix('.weight')}.lora_A.weight": (4, s[1]) for n, s in shapes.items() if len(s) == 2}
    lora |= {n.replace("_A.", "_B."): (shapes[n.replace("lora_A.", "")][0], 4) for n in lora}
    torch.save(zeros(lora), tmp_path / "lora.pt")  # type: ignore[arg-type]
    assert check_file(tmp_path / "lora.pt").part == f"LoRA for {size}"
    del shapes["head.head.bias"]
    torch.save(zeros(shapes), tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"1 missing \(head\.head\.bias\)"):
        check_file(tmp_path / "w.pt")


def test_check_other_files(model_folder: Path, tmp_path: Path) -> None:
    assert check_file(model_folder / "transformer").part == "Wan transformer, config.json"
    assert check_file(model_folder / "text_encoder").part == "UMT5 text encoder"
    assert check_file(model_folder / "vae").part == "Wan VAE"
    torch.save({"blocks.0.ffn.0.lora_A.weight": torch.zeros(2, 7)}, tmp_path / "lora.pt")
    with pytest.raises(UserError, match="it has only down"):
        check_file(tmp_path / "lora.pt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="holds no Wan transformer, LoRA"):
        check_file(tmp_path / "a.pt")
    torch.save({"patch_embedding.weight": torch.zeros(7, 16, 1, 2, 2)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"width 7; put its config\.json beside it"):
        check_file(tmp_path / "a.pt")
