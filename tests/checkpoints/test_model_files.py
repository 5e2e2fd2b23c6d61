"""Where a model's files are taken from: its folder, the user's options, or the Hub."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import UMT5Config, UMT5EncoderModel

from dummyforcing.checkpoints.hub import HubFile, fetch, find_base, find_part
from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.checkpoints.transformer import WAN_SIZES
from dummyforcing.errors import UserError
from dummyforcing.pipeline.pipeline import load
from dummyforcing.pipeline.request import make_request
from tests.conftest import write_tokenizer
from tests.layouts import State, fsdp, wan_umt5, wan_vae

PROMPT = "a red ball bounces"


def transformer_state(folder: Path) -> State:
    files = (folder / "transformer").glob("*.safetensors")
    return {name: tensor for path in files for name, tensor in load_file(path).items()}


@pytest.fixture
def public_file(model_folder: Path, tmp_path: Path) -> Path:
    """The random model's transformer as Self-Forcing publishes its own, with its sizes beside."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    torch.save({"generator_ema": fsdp(transformer_state(model_folder))}, folder / "self_forcing_dmd.pt")
    shutil.copy(model_folder / "transformer" / "config.json", folder)
    return folder / "self_forcing_dmd.pt"


@pytest.fixture
def wan_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small text encoder, tokenizer and VAE in the layout of Wan's own repository."""
    torch.manual_seed(0)
    folder = tmp_path / "Wan2.1"
    sizes = {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    monkeypatch.setattr("dummyforcing.checkpoints.text_encoder.UMT5_XXL", sizes)
    monkeypatch.setattr("dummyforcing.checkpoints.vae.WAN_VAE", {"base_dim": 4})
    write_tokenizer(folder / "google" / "umt5-xxl")
    text = UMT5EncoderModel(UMT5Config(**sizes)).state_dict()
    torch.save(wan_umt5(text), folder / "models_t5_umt5-xxl-enc-bf16.pth")
    torch.save(wan_vae(AutoencoderKLWan(base_dim=4).state_dict()), folder / "Wan2.1_VAE.pth")
    (folder / "config.json").write_text("{}")  # of Wan's transformer, which is not needed
    return folder


def test_public_weights_on_our_own_parts(model_folder: Path, public_file: Path) -> None:
    """The same transformer in Self-Forcing's file makes the same video."""
    own = load(model_folder, device="cpu")
    public = load("self-forcing", weights=public_file, base=str(model_folder), device="cpu")
    assert public.files.preset.name == "self-forcing"
    assert public.model.config == own.model.config
    same_steps = replace(public.files.preset, schedule=own.files.preset.schedule)
    public.files = replace(public.files, preset=same_steps)
    public.parts = replace(public.parts, preset=same_steps)
    video = public.generate(PROMPT, num_frames=9, size=(32, 48))
    assert np.array_equal(video.frames, own.generate(PROMPT, num_frames=9).frames)


def test_wans_own_base(public_file: Path, wan_folder: Path) -> None:
    pipeline = load("self-forcing", weights=public_file, base=wan_folder, device="cpu")
    assert pipeline.vae.stride == 8
    assert pipeline.generate(PROMPT, num_frames=9, size=(32, 48)).frames.shape == (9, 32, 48, 3)
    parameters = pipeline.files.parameters
    assert parameters["vae"] == sum(parameter.numel() for parameter in pipeline.vae.vae.parameters())
    assert parameters["transformer"] == sum(parameter.numel() for parameter in pipeline.model.parameters())


def test_a_preset_file(model_folder: Path, public_file: Path, tmp_path: Path) -> None:
    preset = f'like = "self-forcing"\nbase = "{model_folder}"\nsize = [32, 48]\n'
    preset += 'source = { file = "checkpoints/self_forcing_dmd.pt", key = "generator_ema" }\n'
    (tmp_path / "mine.toml").write_text(preset)
    pipeline = load(tmp_path / "mine.toml", device="cpu")
    assert pipeline.files.preset.name == "mine"
    assert pipeline.generate(PROMPT, num_frames=9).frames.shape == (9, 32, 48, 3)


def test_a_lora_changes_the_weights(model_folder: Path, tmp_path: Path) -> None:
    lora = {
        "blocks.0.ffn.0.lora_A.weight": torch.ones(2, 48),
        "blocks.0.ffn.0.lora_B.weight": torch.ones(96, 2),
    }
    save_file(lora, tmp_path / "lora.safetensors")
    path = str(tmp_path / "lora.safetensors")
    before, half, whole = (
        load(model_folder, lora=chosen, device="cpu").model.get_parameter("blocks.0.ffn.0.weight")
        for chosen in ((), f"{path}:0.5", [path])
    )
    torch.testing.assert_close(half - before, torch.ones(96, 48))
    torch.testing.assert_close(whole - before, 2 * torch.ones(96, 48))
    with pytest.raises(UserError, match=r"scale of LoRA .* is no number"):
        ModelFiles.open(model_folder, lora=f"{path}:much")
    with pytest.raises(UserError, match="There is no LoRA file nothing; give FILE or FILE:SCALE"):
        ModelFiles.open(model_folder, lora="nothing:2")


def test_nothing_is_fetched_to_answer_a_request(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("hf_hub_download", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, name, None)
    files = ModelFiles.open("longlive")
    assert files.transformer == HubFile("Efficient-Large-Model/LongLive-1.3B", "models/longlive_base.pt")
    assert files.loras == ((HubFile("Efficient-Large-Model/LongLive-1.3B", "models/lora.pt"), 1.0),)
    assert ModelFiles.open("longlive", weights=model_folder / "transformer").loras == ()
    assert files.base == HubFile("Wan-AI/Wan2.1-T2V-1.3B")
    assert files.config == WAN_SIZES["1.3B"]
    assert files.parameters["text_encoder"] == 5_680_910_336
    assert ModelFiles.open("krea-realtime").config == WAN_SIZES["14B"]
    assert make_request(files, PROMPT).frames == 21


def test_from_the_hub(
    model_folder: Path, public_file: Path, wan_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked of the Hub, and that its answers are used."""
    asked: list[Any] = []

    def download(repo: str, file: str, local_files_only: bool) -> str:
        asked.append((repo, file))
        return str(public_file)

    def snapshot(repo: str, allow_patterns: list[str], local_files_only: bool) -> str:
        asked.append((repo, allow_patterns))
        return str(wan_folder)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    small = ModelFiles.open(model_folder).config
    monkeypatch.setitem(WAN_SIZES, "1.3B", small)
    assert load("self-forcing", device="cpu").model.config == small
    assert asked[0] == ("gdhe17/Self-Forcing", "checkpoints/self_forcing_dmd.pt")
    repo, patterns = asked[1]
    assert repo == "Wan-AI/Wan2.1-T2V-1.3B"
    matching = {"Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth", "google/umt5-xxl/*", "vae/*"}
    assert matching <= set(patterns)
    assert not any(pattern.startswith(("*", "transformer", "diffusion")) for pattern in patterns)
    asked.clear()
    own = load("self-forcing", weights="some-one/fine.tuned:sub/model.pt", base=wan_folder, device="cpu")
    assert own.model.config == small
    assert asked == [("some-one/fine.tuned", "sub/model.pt")]


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("offline mode is enabled"), OSError("no route")])
def test_out_of_reach(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError) as caught:
        fetch(HubFile("gdhe17/Self-Forcing", "checkpoints/self_forcing_dmd.pt"))
    for fact in ("gdhe17/Self-Forcing", "checkpoints/self_forcing_dmd.pt", str(error), 'weights="FILE"'):
        assert fact in str(caught.value)
    with pytest.raises(UserError, match=r'text encoder, tokenizer and VAE of .*give base="FOLDER"'):
        fetch(HubFile("Wan-AI/Wan2.1-T2V-1.3B"))


def test_really_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The library itself, told to stay offline with an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for place in (HubFile("gdhe17/Self-Forcing", "checkpoints/x.pt"), HubFile("Wan-AI/Wan2.1-T2V-1.3B")):
        with pytest.raises(UserError, match="cannot be fetched from the Hugging Face Hub"):
            fetch(place)
        with pytest.raises(UserError, match="is not downloaded yet"):
            fetch(place, here=True)


def test_bases(model_folder: Path, tmp_path: Path) -> None:
    assert find_base(str(model_folder)) == model_folder
    assert find_base("Wan-AI/Wan2.1-T2V-14B-Diffusers") == HubFile("Wan-AI/Wan2.1-T2V-14B-Diffusers")
    for text in ("/nowhere/at/all", "./a/b", "a/b/c", "wan", ""):
        with pytest.raises(UserError, match="There is no folder"):
            find_base(text)
    assert find_part(model_folder, "vae") == model_folder / "vae"
    with pytest.raises(
        UserError, match=r'holds no text encoder: it has no text_encoder or models_t5.*base="FOLDER"'
    ):
        find_part(tmp_path, "text_encoder")


def test_a_folder_with_a_transformer_alone(model_folder: Path, tmp_path: Path) -> None:
    """As `models convert --only transformer` makes it: the preset says where the rest is."""
    folder = tmp_path / "mine"
    folder.mkdir()
    shutil.copytree(model_folder / "transformer", folder / "transformer")
    preset = json.loads((model_folder / "preset.json").read_text())
    (folder / "preset.json").write_text(json.dumps({**preset, "base": str(model_folder)}))
    assert ModelFiles.open(folder).base == model_folder
    (folder / "preset.json").write_text(json.dumps(preset))
    with pytest.raises(UserError, match="holds no text encoder"):
        ModelFiles.open(folder)


def test_missing_weights(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file or folder nowhere; give the transformer's weights"):
        ModelFiles.open("self-forcing", weights="nowhere")
    (tmp_path / "mine.json").write_text((model_folder / "preset.json").read_text())
    with pytest.raises(UserError, match='names no weights; give weights="FILE"'):
        ModelFiles.open(tmp_path / "mine.json")
    with pytest.raises(UserError, match='names no base; give base="FOLDER"'):
        ModelFiles.open(tmp_path / "mine.json", weights=model_folder / "transformer")


def test_krea_decodes_in_float16() -> None:
    files = ModelFiles.open("krea-realtime")
    assert files.vae_dtype(torch.bfloat16) == torch.float16
    assert files.vae_dtype(torch.float32) == torch.float32
    assert ModelFiles.open("self-forcing").vae_dtype(torch.bfloat16) == torch.bfloat16


def test_the_native_policy(model_folder: Path) -> None:
    files = ModelFiles.open("longlive")
    native = make_request(files, PROMPT, policy="native").policy
    assert (native.initial.sink, native.initial.recent) == (3, 6)
    assert make_request(files, PROMPT, policy="dummy").policy.initial == native.initial
    assert make_request(files, PROMPT, policy="dense").policy.initial.recent is None
    assert make_request(ModelFiles.open(model_folder), PROMPT).policy.initial.recent is None


@pytest.mark.parametrize("part", ["model", "text", "vae"])
def test_weights_begin_where_tensors_do(model_folder: Path, part: str) -> None:
    """Matrix products round by alignment: the same weights in another file must make the same video."""
    pipeline = load(model_folder, device="cpu")
    modules = {"model": pipeline.model, "text": pipeline.text.model, "vae": pipeline.vae.vae}
    assert all(weight.data_ptr() % 64 == 0 for weight in modules[part].parameters())
