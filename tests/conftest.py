"""Tiny real components, shared by all tests."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:  # a core for each worker, and for the commands that it runs
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

if hasattr(signal, "SIGHUP"):  # commands that the tests run hear it, also where the tests run under nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

WORDS = ["a", "red", "blue", "ball", "cube", "bounces", "spins", "on", "green", "floor"]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in the layout of the bundled one; do not change its files."""
    folder = tmp_path_factory.mktemp("models") / "random"
    write_model(folder)
    return folder


@pytest.fixture
def exact_float32() -> Iterator[None]:
    """Let a GPU compute float32 products in float32, not in TF32."""
    places: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = False
    yield
    for place, value in zip(places, before, strict=True):
        place.allow_tf32 = value


def write_model(folder: Path, seed: int = 0, size: tuple[int, int] = (32, 48)) -> None:
    """Write a model folder: four real components with random weights, and a preset of a size."""
    from diffusers import AutoencoderKLWan
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(seed)
    text = UMT5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    UMT5EncoderModel(text).save_pretrained(folder / "text_encoder")
    write_tokenizer(folder / "tokenizer")
    vae = AutoencoderKLWan(
        base_dim=8,
        z_dim=16,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        in_channels=12,
        out_channels=12,
        patch_size=2,
    )
    vae.save_pretrained(folder / "vae")
    write_transformer(folder / "transformer")
    preset = {
        "name": folder.name,
        "description": "random weights",
        "licence": "apache-2.0",
        "chunk_frames": 3,
        "schedule": {"steps": [1000, 500], "shift": 5.0, "warp": True},
        "fps": 16,
        "size": list(size),
        "dummy": {"classify_at_chunk": 1, "neighbor_frames": 3, "dummy_fraction": 0.5},
    }
    (folder / "preset.json").write_text(json.dumps(preset))


def link_model(model: Path, folder: Path, **changes: Any) -> Path:
    """Make a folder a model of the same parts as another one, with other values of its preset."""
    for part in ("transformer", "text_encoder", "tokenizer", "vae"):
        if not (folder / part).exists():
            (folder / part).symlink_to(model / part)
    preset = json.loads((model / "preset.json").read_text())
    (folder / "preset.json").write_text(json.dumps({**preset, **changes}))
    return folder


def write_tokenizer(folder: Path) -> None:
    """Write a word-level tokenizer that knows `WORDS`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    vocabulary = {word: i for i, word in enumerate([*special.values(), *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def write_transformer(folder: Path) -> None:
    """Write a causal Wan transformer of 3 layers and 4 heads, in two shards."""
    from dataclasses import asdict

    from huggingface_hub import save_torch_state_dict

    from dummyforcing.models.wan import CausalWan, ModelConfig

    config = ModelConfig(dim=48, ffn_dim=96, num_heads=4, num_layers=3, text_len=16, text_dim=16, freq_dim=32)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(asdict(config)))
    model = CausalWan(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("modulation", "q.weight", "k.weight")):
                parameter.copy_(torch.randn_like(parameter))
    save_torch_state_dict(model.state_dict(), folder, max_shard_size="200KB")
