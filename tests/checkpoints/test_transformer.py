import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dummyforcing.checkpoints.names import native_name
from dummyforcing.checkpoints.tensor_files import open_tensors
from dummyforcing.checkpoints.transformer import WAN_SIZES, count_parameters, open_transformer, read_config
from dummyforcing.checkpoints.weights import fill
from dummyforcing.errors import UserError
from dummyforcing.models.wan import CausalWan, ModelConfig
from tests.layouts import LAYOUTS, SMALL, State, fsdp, other, random_state, under


def load_transformer(folder: Path, dtype: torch.dtype = torch.float32) -> CausalWan:
    return fill(*open_transformer(folder, read_config(folder)), "cpu", dtype)


def load_file_of(path: Path, key: str = "generator_ema", config: ModelConfig = SMALL) -> State:
    return fill(*open_transformer(path, config, key), "cpu", torch.float32).state_dict()


def assert_equal(state: State, expected: State) -> None:
    assert state.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_loads(layout: str, tmp_path: Path) -> None:
    state = random_state()
    LAYOUTS[layout](state, tmp_path / layout)
    assert_equal(load_file_of(tmp_path / layout), state)


def test_the_named_entry_is_taken(tmp_path: Path) -> None:
    state, path = random_state(), tmp_path / "both.pt"
    torch.save({"generator": under("model.", other(state)), "generator_ema": fsdp(state)}, path)
    assert_equal(load_file_of(path), state)
    assert_equal(load_file_of(path, "generator"), other(state))
    with pytest.raises(UserError, match=r"both\.pt holds generator and generator_ema; name one"):
        load_file_of(path, "")


def wrong(path: Path, change: str) -> Path:
    """A file of weights that is wrong in one way."""
    state = random_state()
    match change:
        case "missing":
            del state["blocks.1.ffn.0.bias"]
        case "renamed":
            state["blocks.1.ffn.0.bjas"] = state.pop("blocks.1.ffn.0.bias")
        case "shape":
            state["head.head.bias"] = torch.zeros(3)
        case "not all prefixed":
            state = under("model.", state)
            state["head.modulation"] = state.pop("model.head.modulation")
        case "twice":
            state = {**under("module.", state), **state}
        case "other size":
            state = random_state(replace(SMALL, num_layers=2))
        case "VAE":
            state = {"decoder.conv1.weight": torch.zeros(2), "encoder.conv1.weight": torch.zeros(2)}
        case "LoRA":
            state = {"blocks.0.ffn.0.lora_A.weight": torch.zeros(2, 2)}
    torch.save({"generator_ema": state, "critic": {"a": 1}}, path)
    match change:
        case "truncated":
            path.write_bytes(path.read_bytes()[:-1000])
        case "empty":
            path.write_bytes(b"")
        case "web page":
            path.write_text("<!DOCTYPE html><html>404</html>")
        case "pointer":
            path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
        case "code":
            torch.save({"generator_ema": Path("x")}, path)
        case "tensor":
            torch.save(torch.zeros(3), path)
        case "no tensors":
            torch.save({"step": 3, "names": ["a"]}, path)
        case "only others":
            torch.save({"critic": state}, path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"1 missing \(blocks\.1\.ffn\.0\.bias\)"),
        ("renamed", r"1 missing .*; 1 unexpected \(blocks\.1\.ffn\.0\.bjas, near blocks\.1\.ffn\.0\.bias\)"),
        ("shape", r"1 wrong in shape \(head\.head\.bias \[3\] instead of \[64\]\)"),
        ("not all prefixed", r"95 missing .*; 95 unexpected"),
        ("twice", r"Two of the tensors are patch_embedding\.weight"),
        ("other size", r"27 missing \(blocks\.2\.modulation, "),
        ("VAE", r"weights\.pt is a Wan VAE, not a Wan transformer; put it into a folder"),
        ("LoRA", r"weights\.pt is a LoRA, not a Wan transformer; give it as lora=\".*weights\.pt\" beside"),
        ("truncated", r"ends early: the list of what is in it, at its end, is missing; download it again"),
        ("empty", r"is empty, it has 0 bytes; download it again"),
        ("web page", r"is a web page instead of weights; download the file itself"),
        ("pointer", r"is a Git LFS pointer instead of weights; download the file itself"),
        ("code", r"holds Python objects besides weights, pathlib\.\w+, and reading them could run"),
        ("tensor", r"holds no weights by name, but Tensor"),
        ("no tensors", r"holds no tensors under step, names"),
        ("only others", r"holds no tensors under critic"),
    ],
)
def test_wrong_files(change: str, message: str, tmp_path: Path) -> None:
    path = wrong(tmp_path / "weights.pt", change)
    with pytest.raises(UserError, match=message) as caught:
        load_file_of(path)
    assert "weights.pt" in str(caught.value) or change == "twice"
    assert str(caught.value).count("\n") == 0


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no file .*nothing\.pt"):
        load_file_of(tmp_path / "nothing.pt")


MEASURE = """
import sys, threading, time, torch
from pathlib import Path
from dummyforcing.checkpoints.transformer import count_parameters, open_transformer
from dummyforcing.checkpoints.weights import fill
from dummyforcing.models.wan import ModelConfig

def memory(field):
    return 1024 * int(open("/proc/self/status").read().split(field + ":")[1].split()[0])

def watch():
    while watching:
        peak.append(memory("RssAnon"))
        time.sleep(0.001)

config = ModelConfig(dim=768, ffn_dim=3072, num_heads=12, num_layers=4)
count_parameters(ModelConfig(8, 8, 1, 1))  # torch imports what the meta device needs
before, files, peak, watching = memory("RssAnon"), memory("RssFile"), [], True
watcher = threading.Thread(target=watch)
watcher.start()
model = fill(*open_transformer(Path(sys.argv[1]), config, "generator_ema"), "cpu", torch.bfloat16)
watching = False
watcher.join()
print(max(peak) - before, memory("RssFile") - files, sum(p.nbytes for p in model.parameters()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_while_loading(tmp_path: Path) -> None:
    """Little more than the model itself, and of the other copy in the file nothing is read."""
    config = ModelConfig(dim=768, ffn_dim=3072, num_heads=12, num_layers=4)
    state = {name: torch.zeros(tensor.shape) for name, tensor in on_meta(config).state_dict().items()}
    torch.save({"generator": other(state), "generator_ema": fsdp(state)}, tmp_path / "w.pt")
    wanted = sum(tensor.nbytes for tensor in state.values())
    assert 150e6 < wanted < 250e6
    run = [sys.executable, "-c", MEASURE, str(tmp_path / "w.pt")]
    result = subprocess.run(run, capture_output=True, text=True, check=True)
    anonymous, mapped, model = map(int, result.stdout.split())
    assert model == wanted / 2
    assert anonymous < 1.2 * model
    assert mapped < 1.2 * wanted


def on_meta(config: ModelConfig) -> CausalWan:
    with torch.device("meta"):
        return CausalWan(config)


@pytest.fixture
def transformer(model_folder: Path, tmp_path: Path) -> Path:
    """A copy of a transformer that a test may damage."""
    return Path(shutil.copytree(model_folder / "transformer", tmp_path / "transformer"))


def rewrite(folder: Path, change: Callable[[State], object]) -> None:
    """Put all tensors through `change` into a single file."""
    tensors: State = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
        path.unlink()
    (folder / "model.safetensors.index.json").unlink()
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("size", "tensors", "parameters"), [("1.3B", 825, 1_418_996_800), ("14B", 1095, 14_288_491_584)]
)
def test_public_sizes(size: str, tensors: int, parameters: int) -> None:
    state = on_meta(WAN_SIZES[size]).state_dict()
    assert len(state) == tensors
    assert count_parameters(WAN_SIZES[size]) == parameters


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
    words: dict[str, Any] = {
        "num_attention_heads": 12,
        "attention_head_dim": 128,
        "in_channels": 16,
        "out_channels": 16,
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
    sharded = load_transformer(transformer)
    rewrite(transformer, lambda tensors: None)
    single = load_transformer(transformer, torch.bfloat16)
    assert not any(parameter.requires_grad for parameter in single.parameters())
    for name, weight in sharded.state_dict().items():
        assert torch.equal(single.state_dict()[name], weight.bfloat16())


def test_diffusers_file_loads(transformer: Path) -> None:
    from diffusers import WanTransformer3DModel

    ours = load_transformer(transformer)
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
    loaded = load_transformer(folder)
    assert loaded.config == replace(config, text_len=512)
    assert all(torch.equal(w, ours.state_dict()[n]) for n, w in loaded.state_dict().items())


def test_missing_tensor(transformer: Path) -> None:
    rewrite(transformer, lambda tensors: tensors.pop("blocks.1.ffn.0.bias"))
    with pytest.raises(UserError, match=r"1 missing \(blocks\.1\.ffn\.0\.bias\)"):
        load_transformer(transformer)


def test_unexpected_and_wrong_shape(transformer: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors |= {f"extra.{i}": torch.zeros(1) for i in range(5)}
        tensors["head.head.bias"] = torch.zeros(3)

    rewrite(transformer, change)
    with pytest.raises(UserError) as caught:
        load_transformer(transformer)
    assert "5 unexpected (extra.0, extra.1, extra.2, ...)" in str(caught.value)
    assert "1 wrong in shape (head.head.bias [3] instead of [64])" in str(caught.value)


def test_truncated_file(transformer: Path) -> None:
    shard = sorted(transformer.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(
        UserError, match=rf"{shard.name} ends early: it has [\d,]+ of [\d,]+ bytes; download it again"
    ):
        load_transformer(transformer)


def test_missing_shard_and_no_weights(transformer: Path) -> None:
    shard = sorted(transformer.glob("*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(UserError, match=rf"{shard.name} is missing; download it: it holds \d+ tensors \("):
        open_tensors(transformer)
    for path in transformer.glob("*.safetensors*"):
        path.unlink()
    with pytest.raises(UserError, match="holds no weights"):
        open_tensors(transformer)


def test_tensor_in_two_files(transformer: Path) -> None:
    rewrite(transformer, lambda tensors: None)
    shutil.copy(transformer / "model.safetensors", transformer / "model.fp16.safetensors")
    with pytest.raises(UserError, match="twice"):
        open_tensors(transformer)
