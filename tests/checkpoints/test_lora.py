import json
from collections.abc import Container
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dummyforcing.checkpoints.lora import LoRA, merge_lora
from dummyforcing.checkpoints.transformer import WAN_SIZES, open_transformer
from dummyforcing.checkpoints.weights import fill
from dummyforcing.errors import UserError
from dummyforcing.models.wan import CausalWan
from tests.layouts import SMALL, State, diffusers, random_state

GOLDEN = Path(__file__).parents[1] / "golden" / "longlive_lora.safetensors"
RANK = 4
Lora = dict[str, tuple[torch.Tensor, torch.Tensor]]


def layers(state: State) -> list[str]:
    """Every linear layer inside the blocks."""
    return [
        name.removesuffix(".weight")
        for name, w in state.items()
        if name.startswith("blocks.") and w.ndim == 2
    ]


def random_lora(state: State) -> Lora:
    torch.manual_seed(1)
    sizes = {layer: state[f"{layer}.weight"].shape for layer in layers(state)}
    return {
        layer: (torch.randn(RANK, columns), torch.randn(rows, RANK))
        for layer, (rows, columns) in sizes.items()
    }


def named(lora: Lora, down: str, up: str) -> State:
    """Both patterns get the name of the layer."""
    return {down.format(n): a for n, (a, _) in lora.items()} | {up.format(n): b for n, (_, b) in lora.items()}


def merged(path: Path, state: State, *loras: LoRA) -> State:
    save_file(state, path / "base.safetensors")
    return fill(
        *open_transformer(path / "base.safetensors", SMALL, "", loras), "cpu", torch.float64
    ).state_dict()


def expected(state: State, lora: Lora, scale: float) -> State:
    """The sum in float64."""
    result = {name: tensor.double() for name, tensor in state.items()}
    for layer, (down, up) in lora.items():
        result[f"{layer}.weight"] += scale * up.double() @ down.double()
    return result


def kohya(state: State) -> State:
    """Dots become underscores, and every layer has an alpha."""
    names: State = {}
    for name, tensor in state.items():
        layer, _, end = name.partition(".lora_")
        short = "lora_unet_" + layer.replace(".", "_")
        names |= {f"{short}.lora_{end}": tensor, f"{short}.alpha": torch.tensor(8.0)}
    return names


def test_there_are_600_tensors_in_longlives() -> None:
    with torch.device("meta"):
        lora = random_lora(dict(CausalWan(WAN_SIZES["1.3B"]).state_dict()))
    pairs = [(a.numel() * 256 // RANK, b.numel() * 256 // RANK) for a, b in lora.values()]
    assert 2 * len(pairs) == 600
    assert sum(map(sum, pairs)) == 349_962_240


@pytest.mark.parametrize(
    "layout",
    [
        "longlive",
        "peft",
        "peft alpha",
        "peft, diffusers' names",
        "bare",
        "diffusers",
        "down up",
        "kohya",
        "kohya, diffusers' names",
    ],
)
def test_layouts(layout: str, tmp_path: Path) -> None:
    state = random_state()
    lora, scale, path = random_lora(state), 0.5, tmp_path / "lora.safetensors"
    pt = tmp_path / "lora.pt"
    match layout:
        case "longlive":
            tensors = named(lora, "base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight")
            torch.save({"generator_lora": tensors, "critic_lora": {}, "step": 3}, path := pt)
        case "peft":
            wrapped = "base_model.model._fsdp_wrapped_module.{}.lora_"
            torch.save(named(lora, wrapped + "A.default.weight", wrapped + "B.default.weight"), path := pt)
        case "peft alpha":
            (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 2 * RANK}))
            save_file(
                named(lora, "base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight"), path
            )
            scale *= 2
        case "bare":
            save_file(named(lora, "{}.lora_A.weight", "{}.lora_B.weight"), path)
        case "diffusers":
            save_file(
                named(theirs(state, lora), "transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight"),
                path,
            )
        case "peft, diffusers' names":
            before = "base_model.model.{}.lora_"
            save_file(named(theirs(state, lora), before + "A.weight", before + "B.weight"), path)
        case "down up":
            tensors = named(lora, "diffusion_model.{}.lora_down.weight", "diffusion_model.{}.lora_up.weight")
            alphas = {f"diffusion_model.{n}.alpha": torch.tensor(RANK / 2) for n in lora}
            save_file(tensors | alphas, path)
            scale /= 2
        case "kohya":
            save_file(kohya(named(lora, "{}.lora_down.weight", "{}.lora_up.weight")), path)
            scale *= 8 / RANK
        case "kohya, diffusers' names":
            save_file(kohya(named(theirs(state, lora), "{}.lora_down.weight", "{}.lora_up.weight")), path)
            scale *= 8 / RANK
    result = merged(tmp_path, state, LoRA(path, 0.5))
    for name, tensor in expected(state, lora, scale).items():
        torch.testing.assert_close(result[name], tensor, atol=1e-5, rtol=1e-6, msg=name)


def theirs(state: State, lora: Lora) -> Lora:
    """Under the names that diffusers gives the layers."""
    numbers = {f"{n}.weight": torch.tensor(i) for i, n in enumerate(lora)}
    found, names = diffusers(numbers | _rest(state, lora)), list(lora)
    renamed = {name.removesuffix(".weight"): lora[names[int(i)]] for name, i in found.items() if i.ndim == 0}
    assert len(renamed) == len(lora)
    return renamed


def _rest(state: State, lora: Container[str]) -> State:
    return {name: tensor for name, tensor in state.items() if name.removesuffix(".weight") not in lora}


def test_two_loras_add_up(tmp_path: Path) -> None:
    state = random_state()
    lora, path = random_lora(state), tmp_path / "lora.safetensors"
    save_file(named(lora, "{}.lora_A.weight", "{}.lora_B.weight"), path)
    result = merged(tmp_path, state, LoRA(path, 0.25), LoRA(path, 1.0))
    for name, tensor in expected(state, lora, 1.25).items():
        torch.testing.assert_close(result[name], tensor, atol=1e-5, rtol=1e-6)


def test_the_merge_is_in_float32() -> None:
    """In bfloat16 a change of half a rounding step would be lost."""
    weight, change = torch.ones(1, 1).bfloat16(), torch.full((1, 1), 2**-5).bfloat16()
    assert merge_lora(weight, change, change, 1.0).item() == 1 + 2**-10


def test_golden_merge(tmp_path: Path) -> None:
    """The numbers of the public implementation; alpha is not the rank there."""
    with safe_open(GOLDEN, framework="pt") as file:
        meta = json.loads(file.metadata()["meta"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    scale = meta["lora"]["alpha"] / meta["lora"]["rank"]
    assert scale != 1
    checked = [name for name in tensors if name.startswith("merged/")]
    assert checked
    for name in checked:
        weight = name.removeprefix("merged/")
        layer = "base_model.model." + weight.removeprefix("model.").removesuffix(".weight")
        down, up = (tensors[f"{layer}.lora_{part}.weight"] for part in "AB")
        result = merge_lora(tensors[weight], down, up, scale)
        torch.testing.assert_close(result, tensors[name], atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("unknown", r"changes blocks\.9\.ffn\.0, which is no linear layer there"),
        (
            "several",
            r"changes blocks\.5\.ffn\.0, blocks\.6\.ffn\.0, blocks\.7\.ffn\.0 and 1 more, which are no",
        ),
        ("its own names", r"changes lora_unet_blocks_9_ffn_0, which is no linear layer there"),
        ("not linear", r"changes blocks\.0\.norm3, which is no linear layer there"),
        ("half", r"of blocks\.0\.ffn\.0 it has only down"),
        ("shape", r"blocks\.0\.ffn\.0 is \[96, 48\], its changes are \[96, 4\] times \[4, 64\]"),
        ("other", r"is no LoRA that can be merged: it holds blocks\.0\.ffn\.0\.diff_b"),
    ],
)
def test_loras_that_do_not_fit(change: str, message: str, tmp_path: Path) -> None:
    state = random_state()
    tensors = {"blocks.0.ffn.0.lora_A.weight": torch.zeros(4, 48)}
    tensors["blocks.0.ffn.0.lora_B.weight"] = torch.zeros(96, 4)
    match change:
        case "unknown":
            tensors = {name.replace(".0.ffn", ".9.ffn"): tensor for name, tensor in tensors.items()}
        case "several":
            tensors |= {
                n.replace("s.0.", f"s.{i}."): t.clone() for n, t in tensors.items() for i in (5, 6, 7, 8)
            }
        case "its own names":
            tensors = {
                name.replace("blocks.0.ffn.0", "lora_unet_blocks_9_ffn_0"): t for name, t in tensors.items()
            }
        case "not linear":
            tensors = {name.replace("ffn.0", "norm3"): tensor for name, tensor in tensors.items()}
        case "half":
            del tensors["blocks.0.ffn.0.lora_B.weight"]
        case "shape":
            tensors["blocks.0.ffn.0.lora_A.weight"] = torch.zeros(4, 64)
        case "other":
            tensors["blocks.0.ffn.0.diff_b"] = torch.zeros(96)
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match=message):
        merged(tmp_path, state, LoRA(tmp_path / "lora.safetensors"))
