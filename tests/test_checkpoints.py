import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dummyforcing.checkpoints import (
    WAN_SIZES,
    load_transformer,
    native_name,
    read_config,
    read_headers,
)
from dummyforcing.errors import UserError
from dummyforcing.model import CausalWan, ModelConfig

CPU = torch.device("cpu")


def on_meta(config: ModelConfig) -> CausalWan:
    with torch.device("meta"):
        return CausalWan(config)


@pytest.fixture
def transformer(model_folder: Path, tmp_path: Path) -> Path:
    """A copy of a transformer that a test may damage."""
    return Path(shutil.copytree(model_folder / "transformer", tmp_path / "transformer"))


def rewrite(folder: Path, change: object) -> None:
    """Put all tensors through `change` (a function of the dict) into a single file."""
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
        path.unlink()
    (folder / "model.safetensors.index.json").unlink()
    change(tensors)  # type: ignore[operator]
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("size", "tensors", "parameters"), [("1.3B", 825, 1_418_996_800), ("14B", 1095, 14_288_491_584)]
)
def test_public_sizes(size: str, tensors: int, parameters: int) -> None:
    state = on_meta(WAN_SIZES[size]).state_dict()
    assert len(state) == tensors
    assert sum(tensor.numel() for tensor in state.values()) == parameters


@pytest.mark.parametrize("size", WAN_SIZES)
def test_every_diffusers_name_is_one_native_name(size: str) -> None:
    from diffusers import WanTransformer3DModel

    config = WAN_SIZES[size]
    with torch.device("meta"):
        theirs = WanTransformer3DModel(
            num_attention_heads=config.num_heads,
            attention_head_dim=config.head_dim,
            ffn_dim=config.ffn_dim,
            num_layers=config.num_layers,
        )
    shapes = [(native_name(name), weight.shape) for name, weight in theirs.state_dict().items()]
    ours = {name: weight.shape for name, weight in on_meta(config).state_dict().items()}
    assert len(shapes) == len(ours)
    assert dict(shapes) == ours
    assert all(native_name(name) == name for name in ours)


def test_config_in_diffusers_words(tmp_path: Path) -> None:
    words = {"num_attention_heads": 12, "attention_head_dim": 128, "in_channels": 16, "out_channels": 16}
    words |= {
        "ffn_dim": 8960,
        "num_layers": 30,
        "patch_size": [1, 2, 2],
        "_class_name": "WanTransformer3DModel",
    }
    (tmp_path / "config.json").write_text(json.dumps(words))
    assert read_config(tmp_path) == WAN_SIZES["1.3B"]


@pytest.mark.parametrize("text", ["{", "{}", '{"dim": 4}', "[]"])
def test_bad_config(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json does not describe a Wan transformer"):
        read_config(tmp_path)


def test_shards_and_single_file_and_dtype(transformer: Path) -> None:
    assert len(list(transformer.glob("*.safetensors"))) > 1
    sharded = load_transformer(transformer, CPU, torch.float32)
    rewrite(transformer, lambda tensors: None)
    single = load_transformer(transformer, CPU, torch.bfloat16)
    assert not any(parameter.requires_grad for parameter in single.parameters())
    for name, weight in sharded.state_dict().items():
        assert torch.equal(single.state_dict()[name], weight.bfloat16())


def test_diffusers_file_loads(transformer: Path) -> None:
    from diffusers import WanTransformer3DModel

    ours = load_transformer(transformer, CPU, torch.float32)
    config = ours.config
    theirs = WanTransformer3DModel(
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        ffn_dim=config.ffn_dim,
        num_layers=config.num_layers,
        text_dim=config.text_dim,
        freq_dim=config.freq_dim,
    )
    theirs.load_state_dict({name: ours.state_dict()[native_name(name)] for name in theirs.state_dict()})
    folder = transformer.parent / "diffusers"
    theirs.save_pretrained(folder)
    loaded = load_transformer(folder, CPU, torch.float32)
    assert loaded.config == replace(config, text_len=512)
    assert all(torch.equal(w, ours.state_dict()[n]) for n, w in loaded.state_dict().items())


def test_missing_tensor(transformer: Path) -> None:
    rewrite(transformer, lambda tensors: tensors.pop("blocks.1.ffn.0.bias"))
    with pytest.raises(UserError, match=r"1 missing \(blocks\.1\.ffn\.0\.bias\)"):
        load_transformer(transformer, CPU, torch.float32)


def test_unexpected_and_wrong_shape(transformer: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors |= {f"extra.{i}": torch.zeros(1) for i in range(5)}
        tensors["head.head.bias"] = torch.zeros(3)

    rewrite(transformer, change)
    with pytest.raises(UserError) as caught:
        load_transformer(transformer, CPU, torch.float32)
    assert "5 unexpected (extra.0, extra.1, extra.2, ...)" in str(caught.value)
    assert "1 wrong in shape (head.head.bias [3] instead of [64])" in str(caught.value)


def test_truncated_file(transformer: Path) -> None:
    shard = sorted(transformer.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError, match=f"{shard.name} is damaged or incomplete"):
        load_transformer(transformer, CPU, torch.float32)


def test_missing_shard_and_no_weights(transformer: Path) -> None:
    shard = sorted(transformer.glob("*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(UserError, match=rf"{shard.name} is missing; it holds \d+ tensors \("):
        read_headers(transformer)
    for path in transformer.glob("*.safetensors*"):
        path.unlink()
    with pytest.raises(UserError, match="holds no weights"):
        read_headers(transformer)


def test_tensor_in_two_files(transformer: Path) -> None:
    rewrite(transformer, lambda tensors: None)
    shutil.copy(transformer / "model.safetensors", transformer / "model.fp16.safetensors")
    with pytest.raises(UserError, match="twice"):
        read_headers(transformer)
