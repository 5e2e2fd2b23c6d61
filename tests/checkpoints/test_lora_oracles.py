"""LoRA files that PEFT and diffusers write or read themselves: merged here, they are what these merge."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from diffusers.loaders.lora_pipeline import WanLoraLoaderMixin
from safetensors.torch import save_file
from torch import Tensor

from dummyforcing.checkpoints.lora import LoRA
from dummyforcing.checkpoints.names import native_name
from dummyforcing.checkpoints.transformer import empty_diffusers, open_transformer
from dummyforcing.checkpoints.weights import fill
from dummyforcing.errors import BadRequest
from dummyforcing.models.wan import CausalWan
from tests.layouts import SMALL, State, random_state

peft = pytest.importorskip("peft")
pytest.importorskip("accelerate")

NAMES = {native_name(name): name for name, _ in empty_diffusers(SMALL).named_parameters()}
LAYERS = [n.removesuffix(".weight") for n, w in random_state().items() if "blocks." in n and w.ndim == 2]
RANK = 4


def diffusers_model() -> WanTransformer3DModel:
    model = WanTransformer3DModel.from_config(dict(empty_diffusers(SMALL).config)).eval()
    model.load_state_dict({NAMES[name]: tensor for name, tensor in random_state().items()})
    return model


def merged(source: Any, *loras: LoRA) -> State:
    return fill(*open_transformer(source, SMALL, "", loras), "cpu", torch.float32).state_dict()


def randomise(model: torch.nn.Module) -> None:
    """Adapters begin as no change at all."""
    generator = torch.Generator().manual_seed(7)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = torch.randn(weight.shape, generator=generator)


def assert_merged(found: State, right: State) -> None:
    """The same numbers, of which a LoRA changed many."""
    before = random_state()
    assert found.keys() == right.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, right[name], atol=1e-5, rtol=1e-5)
    changed = sum(not torch.allclose(found[name], before[name]) for name in found)
    assert changed >= 3


def lora_config(kind: str, query: str, up: str, *others: str) -> Any:
    """PEFT's configuration for layers of these names."""
    options: dict[str, Any] = {"r": RANK, "lora_alpha": 10, "target_modules": [query, up, *others]}
    if kind == "patterns":
        options["rank_pattern"] = {up: 2, f"blocks.1.{query}": 8}
        options["alpha_pattern"] = {up: 3, f"blocks.1.{query}": 5}
    return peft.LoraConfig(**options, use_rslora=kind == "stabilised")


KINDS = ("alpha", "stabilised", "patterns")


@pytest.mark.parametrize("kind", KINDS)
def test_peft_saves(kind: str, tmp_path: Path) -> None:
    """Wan's own names, after `base_model.model.`, and `adapter_config.json`."""
    model = CausalWan(SMALL)
    model.load_state_dict(random_state())
    save_file(random_state(), tmp_path / "base.safetensors")
    wrapped = peft.get_peft_model(model, lora_config(kind, "self_attn.q", "ffn.0", "self_attn.k", "ffn.2"))
    randomise(wrapped)
    wrapped.save_pretrained(tmp_path / "lora")
    right = wrapped.merge_and_unload().state_dict()
    assert_merged(merged(tmp_path / "base.safetensors", LoRA(tmp_path / "lora")), right)


@pytest.mark.parametrize("writer", ["model", "pipeline"])
@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_saves(kind: str, writer: str, tmp_path: Path) -> None:
    """Its own names, bare or after `transformer.`, and the configuration in the file's metadata."""
    model = diffusers_model()
    model.add_adapter(lora_config(kind, "attn1.to_q", "ffn.net.0.proj", "to_k", "to_out.0"))
    randomise(model)
    if writer == "model":
        model.save_lora_adapter(tmp_path)
    else:
        WanPipeline.save_lora_weights(
            tmp_path,
            transformer_lora_layers=peft.get_peft_model_state_dict(model),
            transformer_lora_adapter_metadata=model.peft_config["default"].to_dict(),
        )
    found = merged(diffusers_model(), LoRA(tmp_path))
    with pytest.raises(BadRequest, match="LoRA layers that are not merged"):
        merged(model)
    model.fuse_lora()
    model.unload_lora()
    assert_merged(found, {native_name(name): tensor for name, tensor in model.state_dict().items()})
    assert_merged(merged(model), found)


def written(name: Callable[[str], str], down: str, up: str, alpha: float | None) -> State:
    """A random LoRA under the names of a tool; `name` makes them of Wan's own."""
    generator, state, tensors = torch.Generator().manual_seed(7), random_state(), {}
    for layer in LAYERS:
        rows, columns = state[f"{layer}.weight"].shape
        tensors[f"{name(layer)}.{down}.weight"] = torch.randn(RANK, columns, generator=generator)
        tensors[f"{name(layer)}.{up}.weight"] = torch.randn(rows, RANK, generator=generator)
        if alpha is not None:
            tensors[f"{name(layer)}.alpha"] = torch.tensor(alpha)
    return tensors


def kohya(layer: str) -> str:
    return "lora_unet_" + layer.replace(".", "_")


def native(layer: str) -> str:
    return f"diffusion_model.{layer}"


def theirs(layer: str) -> str:
    return f"transformer.{NAMES[f'{layer}.weight'].removesuffix('.weight')}"


FILES: dict[str, Callable[[], dict[str, Tensor]]] = {
    "kohya": lambda: written(kohya, "lora_down", "lora_up", 3.0),
    "diffusion_model, A and B": lambda: written(native, "lora_A", "lora_B", None),
    "diffusion_model, A and B, alpha": lambda: written(native, "lora_A", "lora_B", 3.0),
    "diffusion_model, down and up": lambda: written(native, "lora_down", "lora_up", None),
    "diffusion_model, down and up, alpha": lambda: written(native, "lora_down", "lora_up", 3.0),
    "transformer, A and B": lambda: written(theirs, "lora_A", "lora_B", None),
    "transformer, down and up": lambda: written(theirs, "lora.down", "lora.up", None),
}


@pytest.mark.parametrize("title", FILES)
def test_diffusers_reads(title: str, tmp_path: Path) -> None:
    """Files in all namings that diffusers itself converts."""
    save_file(FILES[title](), tmp_path / "lora.safetensors")
    model = diffusers_model()
    converted = WanLoraLoaderMixin.lora_state_dict(tmp_path / "lora.safetensors")
    WanLoraLoaderMixin.load_lora_into_transformer(converted, transformer=model)
    model.fuse_lora()
    model.unload_lora()
    found = merged(diffusers_model(), LoRA(tmp_path / "lora.safetensors"))
    assert_merged(found, {native_name(name): tensor for name, tensor in model.state_dict().items()})
