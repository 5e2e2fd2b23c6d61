"""The strength of LoRAs in all layouts that public tools write, measured on the merged weights.

How strongly up @ down was added to a weight follows from the weights alone. What is right is worked out here
by the formulas: alpha / rank, and alpha / sqrt(rank) where a LoRA is rank-stabilised.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dummyforcing.checkpoints.hub import HubFile, fetch_lora
from dummyforcing.checkpoints.lora import LoRA, describe, parse_lora, read_lora
from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.checkpoints.transformer import open_transformer
from dummyforcing.errors import BadFile, UserError
from tests.layouts import SMALL, random_state

Q, V, UP, DOWN = "blocks.0.self_attn.q", "blocks.2.cross_attn.v", "blocks.1.ffn.0", "blocks.0.ffn.2"
RANKS = {Q: 4, V: 4, UP: 4, DOWN: 4}
MIXED = {Q: 2, V: 4, UP: 8, DOWN: 1}
THEIRS = {
    Q: "blocks.0.attn1.to_q",
    V: "blocks.2.attn2.to_v",
    UP: "blocks.1.ffn.net.0.proj",
    DOWN: "blocks.0.ffn.net.2",
}
"""What diffusers calls them."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    save_file(random_state(), path)
    return path


def matrices(ranks: Mapping[str, int] = RANKS) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer -> down and up."""
    generator = torch.Generator().manual_seed(3)
    state = random_state()
    return {
        layer: (
            torch.randn(rank, state[f"{layer}.weight"].shape[1], generator=generator),
            torch.randn(state[f"{layer}.weight"].shape[0], rank, generator=generator),
        )
        for layer, rank in ranks.items()
    }


def named(name: str, ranks: Mapping[str, int] = RANKS, down: str = "lora_A", up: str = "lora_B") -> Any:
    """The matrices; `name` gets the layer's name, or that with underscores, or that of diffusers."""
    tensors: dict[str, Tensor] = {}
    for layer, (a, b) in matrices(ranks).items():
        own = name.format(layer, layer.replace(".", "_"), THEIRS[layer])
        tensors |= {f"{own}.{down}.weight": a, f"{own}.{up}.weight": b}
    return tensors


def alphas(name: str, values: Mapping[str, float]) -> dict[str, Tensor]:
    return {
        name.format(layer, layer.replace(".", "_")) + ".alpha": torch.tensor(value)
        for layer, value in values.items()
    }


def strengths(base: Path, lora: LoRA, ranks: Mapping[str, int] = RANKS) -> dict[str, float]:
    """How strongly each layer's change was added; all other weights must be as before."""
    before = open_transformer(base, SMALL)[1]
    after = open_transformer(base, SMALL, "", [lora])[1]
    found, changes = {}, matrices(ranks)
    for name, tensor in after.items():
        change = tensor.read() - before[name].read()
        layer = name.removesuffix(".weight")
        if layer not in changes:
            assert not change.any()
            continue
        down, up = changes[layer]
        factor = float((change * (up @ down)).sum() / (up @ down).square().sum())
        torch.testing.assert_close(change, factor * (up @ down), atol=1e-4, rtol=1e-4)
        found[layer] = factor
    return found


@dataclass(frozen=True)
class Case:
    """A LoRA on disk, and how strong it is."""

    tensors: Any
    right: Mapping[str, float]
    metadata: dict[str, str] | None = None
    config: dict[str, Any] | None = None
    """`adapter_config.json` beside it."""
    ranks: Mapping[str, int] = field(default_factory=lambda: RANKS)
    suffix: str = "safetensors"


def every(strength: float) -> dict[str, float]:
    return dict.fromkeys(RANKS, strength)


PEFT = "base_model.model.{}"
ALPHA = {Q: 8.0, V: 1.0, UP: 3.0, DOWN: 0.5}
OWN = {layer: ALPHA[layer] / MIXED[layer] for layer in ALPHA}
EMBEDDED = {"transformer.r": 4, "transformer.lora_alpha": 10, "transformer.use_dora": False}
WHOLE = {  # what PEFT 0.21 writes of a LoRA that has nothing special, as far as it could matter
    "peft_type": "LORA",
    "peft_version": "0.21.2",
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.1,
    "lora_bias": False,
    "bias": "none",
    "use_rslora": False,
    "use_dora": False,
    "use_qalora": False,
    "use_bdlora": None,
    "fan_in_fan_out": False,
    "layer_replication": None,
    "init_lora_weights": True,
    "alpha_pattern": {},
    "rank_pattern": {},
    "loftq_config": {},
    "eva_config": None,
    "kasa_config": None,
    "target_modules": ["q", "v"],
}

CASES = {
    "no word of it": Case(named("{}"), every(1)),
    "kohya, alpha and rank per layer": Case(
        named("lora_unet_{1}", MIXED, "lora_down", "lora_up") | alphas("lora_unet_{1}", ALPHA),
        OWN,
        ranks=MIXED,
    ),
    "kohya, two underscores": Case(
        named("lora_unet__{1}", MIXED, "lora_down", "lora_up") | alphas("lora_unet__{1}", ALPHA),
        OWN,
        ranks=MIXED,
    ),
    "kohya, metadata of another alpha": Case(
        named("lora_unet_{1}", MIXED, "lora_down", "lora_up") | alphas("lora_unet_{1}", ALPHA),
        OWN,
        {"ss_network_alpha": "16", "ss_network_dim": "32"},
        ranks=MIXED,
    ),
    "kohya, made smaller": Case(
        named("lora_unet_{1}", MIXED, "lora_down", "lora_up") | alphas("lora_unet_{1}", ALPHA),
        OWN,
        {"ss_network_alpha": "Dynamic", "ss_network_dim": "Dynamic"},
        ranks=MIXED,
    ),
    "kohya, alpha in the metadata alone": Case(
        named("lora_unet_{1}", RANKS, "lora_down", "lora_up"),
        every(0.25),
        {"ss_network_alpha": "1.0", "ss_network_dim": "4", "ss_scale_weight_norms": "None"},
    ),
    # The converters multiply the matrices by alpha / rank and keep the metadata.
    "kohya, converted": Case(
        named("diffusion_model.{}"), every(1), {"ss_network_alpha": "1.0", "ss_network_dim": "32"}
    ),
    "ComfyUI": Case(
        named("diffusion_model.{}", MIXED, "lora_down", "lora_up") | alphas("diffusion_model.{}", ALPHA),
        OWN,
        ranks=MIXED,
    ),
    "lora_A with alphas": Case(named("{}", MIXED) | alphas("{}", ALPHA), OWN, ranks=MIXED),
    "alphas of one element, in bfloat16": Case(
        named("{}", MIXED) | {n: t[None].bfloat16() for n, t in alphas("{}", ALPHA).items()}, OWN, ranks=MIXED
    ),
    "some layers have an alpha": Case(named("{}") | alphas("{}", {Q: 8.0}), every(1) | {Q: 2.0}),
    "alphas that are numbers": Case(
        named("{}", MIXED) | {f"{layer}.alpha": value for layer, value in ALPHA.items()},
        OWN,
        ranks=MIXED,
        suffix="pt",
    ),
    "PEFT": Case(named(PEFT), every(2), config={"r": 4, "lora_alpha": 8}),
    "PEFT, all of its fields": Case(named(PEFT), every(2), config=WHOLE),
    "PEFT, an adapter's name": Case(
        named(PEFT, down="lora_A.style-2", up="lora_B.style-2"), every(2), config={"r": 4, "lora_alpha": 8}
    ),
    "PEFT, stabilised": Case(named(PEFT), every(4), config={**WHOLE, "use_rslora": True}),
    "PEFT, patterns": Case(
        named(PEFT, MIXED),
        {Q: 16 / 2, V: 3 / 4, UP: 8 / 8, DOWN: 5 / 1},
        config={
            **WHOLE,
            "rank_pattern": {"self_attn.q": 2, r"blocks\.1\.ffn\.0": 8, "2": 1},
            "alpha_pattern": {Q: 16, "v": 3, "^blocks.0.ffn.2": 5},
        },
        ranks=MIXED,
    ),
    "PEFT, patterns, stabilised": Case(
        named(PEFT, MIXED),
        {Q: 16 / sqrt(2), V: 8 / 2, UP: 8 / sqrt(8), DOWN: 8},
        config={
            **WHOLE,
            "use_rslora": True,
            "rank_pattern": {Q: 2, UP: 8, DOWN: 1},
            "alpha_pattern": {"q": 16, "self_attn.q": 32},  # the first one that fits counts
        },
        ranks=MIXED,
    ),
    "PEFT, FSDP": Case(
        named("base_model.model._fsdp_wrapped_module.{}"),
        every(4),
        config={**WHOLE, "alpha_pattern": {"[qv02]": 16}},
    ),
    "diffusers": Case(
        named("transformer.{2}"), every(2.5), {"format": "pt", "lora_adapter_metadata": json.dumps(EMBEDDED)}
    ),
    "diffusers, patterns, stabilised": Case(
        named("transformer.{2}"),
        every(5) | {Q: 1.5, UP: 6 / 2},
        {
            "lora_adapter_metadata": json.dumps(
                {
                    **EMBEDDED,
                    "transformer.use_rslora": True,
                    "transformer.alpha_pattern": {"attn1.to_q": 3.0, "ffn.net.0.proj": 6},
                    "text_encoder.lora_alpha": 77,
                }
            )
        },
    ),
    "diffusers, no component": Case(
        named("transformer.{2}"),
        every(2.5),
        {"lora_adapter_metadata": json.dumps({"r": 4, "lora_alpha": 10})},
    ),
    **{
        f"{key} in the metadata": Case(named("diffusion_model.{}"), every(3), {key: "12", "rank": "4"})
        for key in ("lora_alpha", "network_alpha", "alpha")
    },
    "stabilised, in the metadata": Case(named("{}"), every(6), {"lora_alpha": "12", "use_rslora": "True"}),
    "not stabilised, in the metadata": Case(
        named("{}"), every(3), {"lora_alpha": "12", "use_rslora": "False"}
    ),
    "alpha at the top": Case(
        {"generator_lora": named(PEFT), "lora_alpha": 8, "step": 3, "critic_lora": {}}, every(2), suffix="pt"
    ),
    "a configuration at the top": Case(
        {"generator_lora": named(PEFT), "lora_config": {"r": 4, "lora_alpha": 2}}, every(0.5), suffix="pt"
    ),
    "places that agree": Case(
        named("{}") | alphas("{}", every(6)), every(1.5), {"lora_alpha": "6"}, {"r": 4, "lora_alpha": 6}
    ),
}


def write(case: Case, folder: Path, name: str = "lora") -> Path:
    path = folder / f"{name}.{case.suffix}"
    if case.suffix == "safetensors":
        save_file(case.tensors, path, case.metadata)
    else:
        torch.save(case.tensors, path)
    if case.config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(case.config))
    return path


@pytest.mark.parametrize("title", CASES)
def test_strengths(title: str, base: Path, tmp_path: Path) -> None:
    case = CASES[title]
    path = write(case, tmp_path)
    assert strengths(base, LoRA(path), case.ranks) == pytest.approx(case.right, rel=1e-3)
    half = strengths(base, LoRA(*parse_lora(f"{path}:-0.5")), case.ranks)
    assert half == pytest.approx({layer: -0.5 * right for layer, right in case.right.items()}, rel=1e-3)


@pytest.mark.parametrize("name", ["adapter_model", "pytorch_lora_weights", "any"])
@pytest.mark.parametrize(
    "title", ["PEFT", "PEFT, patterns, stabilised", "diffusers", "kohya, alpha and rank per layer"]
)
def test_a_folder_is_as_strong_as_its_file(title: str, name: str, base: Path, tmp_path: Path) -> None:
    case = CASES[title]
    write(case, tmp_path, name)
    found = strengths(base, LoRA(*parse_lora(f"{tmp_path}:2")), case.ranks)
    assert found == pytest.approx({layer: 2 * right for layer, right in case.right.items()}, rel=1e-3)


def test_a_folder_of_peft_from_torch_save(base: Path, tmp_path: Path) -> None:
    torch.save(named(PEFT), tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_config.json").write_text(json.dumps(WHOLE))
    save_file({"other": torch.zeros(1)}, tmp_path / "optimizer.safetensors")
    assert strengths(base, LoRA(tmp_path)) == pytest.approx(every(2), rel=1e-3)


def test_two_loras_of_other_strengths_add_up(base: Path, tmp_path: Path) -> None:
    files = []
    for title in ("PEFT", "diffusers"):
        (tmp_path / title).mkdir()
        files.append(LoRA(write(CASES[title], tmp_path / title)))
    before, after = open_transformer(base, SMALL)[1], open_transformer(base, SMALL, "", files)[1]
    for layer, (down, up) in matrices().items():
        change = after[f"{layer}.weight"].read() - before[f"{layer}.weight"].read()
        torch.testing.assert_close(change, 4.5 * up @ down, atol=1e-4, rtol=1e-4)


NAN, INF = float("nan"), float("inf")
A, B = f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"
Q_DOWN, Q_UP = matrices()[Q]


def plain(extra: Mapping[str, object] = MappingProxyType({}), **options: Any) -> Case:
    """One that says nothing of its strength, but for what is put to it."""
    return Case({**named("{}"), **extra}, {}, **options)


def noted(**metadata: str) -> Case:
    return plain(metadata=metadata)


def kohya(**metadata: str) -> Case:
    return Case(named("lora_unet_{1}", RANKS, "lora_down", "lora_up"), {}, metadata)


def peft(**config: object) -> Case:
    return Case(named(PEFT), {}, config=config)


REFUSED: dict[str, tuple[Case, str]] = {
    "alpha of two numbers": (
        plain({f"{Q}.alpha": torch.ones(2)}),
        rf"{Q}\.alpha is \[2\], and a strength is",
    ),
    "alpha of no number": (plain({f"{Q}.alpha": torch.ones(0)}), rf"{Q}\.alpha is \[0\], and a strength is"),
    "alpha without matrices": (plain({"blocks.1.ffn.2.alpha": torch.ones(())}), "it has only alpha"),
    "alpha inf as a number": (
        plain({f"{Q}.alpha": INF}, suffix="pt"),
        rf"{Q}\.alpha is inf, no finite number",
    ),
    "no lora_alpha": (peft(r=4), "it has no lora_alpha"),
    "another rank": (peft(r=8, lora_alpha=8), "has rank 8, but its matrices have rank 4"),
    "another rank of a layer": (
        peft(**WHOLE | {"rank_pattern": {"ffn.0": 2}}),
        rf"says that {UP} has rank 2, but its matrices have rank 4",
    ),
    "a pattern of no layer": (peft(**WHOLE | {"alpha_pattern": {"to_q": 2}}), "'to_q', which fits no layer"),
    "no pattern": (peft(**WHOLE | {"alpha_pattern": {"(": 2}}), r"alpha_pattern: '\(' is no pattern"),
    "a pattern of no number": (peft(**WHOLE | {"alpha_pattern": {"q": "x"}}), "alpha_pattern: q is 'x', no"),
    "a list of patterns": (peft(**WHOLE | {"alpha_pattern": ["q"]}), r"alpha_pattern is \['q'\], no table"),
    "another method": (peft(peft_type="LOHA", r=4), "has peft_type 'LOHA'"),
    "broken metadata": (noted(lora_adapter_metadata="{"), "lora_adapter_metadata of .* does not describe"),
    "metadata of another component": (
        noted(lora_adapter_metadata='{"unet.lora_alpha": 3}'),
        "lora_adapter_metadata of .* has no lora_alpha",
    ),
    "two alphas": (noted(alpha="2", lora_alpha="4"), "says lora_alpha 4 and alpha 2"),
    "metadata of another rank": (
        noted(lora_alpha="8", rank="16"),
        "The file's rank is 16, but .* has rank 4",
    ),
    "kohya's rank": (
        kohya(ss_network_alpha="1", ss_network_dim="8"),
        "ss_network_dim is 8, but .* has rank 4 and no alpha",
    ),
    "kohya's alpha": (kohya(ss_network_alpha="nan"), "ss_network_alpha of .* is 'nan', no finite number"),
    "a tensor against the configuration": (
        plain(alphas("{}", every(4)), config={"r": 4, "lora_alpha": 8}),
        r"has strength 1 by alpha 4, but 2 by lora_alpha 8 in adapter_config\.json",
    ),
    "metadata against the configuration": (
        plain(metadata={"lora_alpha": "4"}, config={"r": 4, "lora_alpha": 8}),
        r"has strength 2 by .* adapter_config\.json, but 1 by lora_alpha 4 in the file's metadata",
    ),
    "a LoHa": (Case({f"{Q}.hada_w1_a": Q_DOWN, f"{Q}.hada_w1_b": Q_UP}, {}), "hada_w1_., a part of a LoHa"),
    "a LoKr": (Case({f"{Q}.lokr_w1": Q_DOWN, f"{Q}.lokr_w2": Q_UP}, {}), "lokr_w., a part of a LoKr"),
    "something unheard of": (plain({f"{Q}.gate": torch.ones(4)}), rf"it holds {Q}\.gate;"),
    "a layer twice, with a prefix": (
        plain({f"transformer.{A}": Q_DOWN.clone()}),
        rf"changes {Q} twice, by .*{Q}\.lora_A\.weight and by .*{Q}\.lora_A\.weight",
    ),
    "a layer twice, by two adapters": (
        Case(named("{}", RANKS, "lora_A.a", "lora_B.a") | named("{}", RANKS, "lora_A.b", "lora_B.b"), {}),
        r"twice, by .*lora_[AB]\.a\.weight and by .*lora_[AB]\.b\.weight",
    ),
    "a layer twice, by other names of its matrices": (
        plain(named("{}", RANKS, "lora_down", "lora_up")),
        r"twice, by .*lora_[AB]\.weight and by .*lora_(down|up)\.weight",
    ),
    "a layer twice, with underscores": (
        plain(named("lora_unet_{1}", RANKS, "lora_down", "lora_up")),
        r"twice, by .*lora_[AB]\.weight and by lora_unet_.*lora_(down|up)\.weight",
    ),
    "nothing": (Case({}, {}), "it is empty"),
    "nothing in a torch.save file": (Case({"generator_lora": {}}, {}, suffix="pt"), "holds no tensors"),
    "ranks that disagree": (
        plain({A: Q_DOWN[:3].clone()}),
        rf"the matrices of {Q} disagree on its rank, 3 and 4",
    ),
    "rank 0": (
        plain({A: Q_DOWN[:0].clone(), B: Q_UP[:, :0].clone()}),
        r"its changes are \[48, 0\] times \[0, 48\]",
    ),
    "convolutions": (
        plain({A: Q_DOWN[..., None, None].clone(), B: Q_UP[..., None, None].clone()}),
        r"its changes are \[48, 4, 1, 1\] times \[4, 48, 1, 1\]",
    ),
    "whole numbers": (
        plain({A: Q_DOWN.to(torch.int8), B: Q_UP.to(torch.int8)}),
        rf"{Q}\.lora_A\.weight of .* is I8",
    ),
}
REFUSED |= {
    f"alpha {value}": (
        plain({f"{Q}.alpha": torch.tensor(value)}),
        rf"{Q}\.alpha is {value}, no finite number",
    )
    for value in (NAN, INF, -INF)
}
REFUSED |= {
    f"lora_alpha {value}": (peft(r=4, lora_alpha=value), r"adapter_config\.json: lora_alpha is .*, no finite")
    for value in ("much", None, True, [8])
}
REFUSED |= {
    f"lora_alpha {value}": (
        peft(r=4, lora_alpha=value),
        r"adapter_config\.json .*: -?\w+ is no number of JSON",
    )
    for value in (NAN, INF)
}
SWITCHES: dict[str, object] = {
    "use_dora": True,
    "use_qalora": True,
    "use_something_new": True,
    "peft_type": "LOKR",
    "init_lora_weights": "pissa_niter_16",
    "layer_replication": [[0, 2]],
    "fan_in_fan_out": True,
    "use_rslora": "maybe",
    "kasa_config": {"a": 1},
    "lora_bias": True,
}
REFUSED |= {
    key: (peft(**WHOLE | {key: value}), rf"adapter_config\.json has {key} .*, which is not understood")
    for key, value in SWITCHES.items()
}
REFUSED |= {
    f"metadata {key} {value}": (noted(**{key: value}), rf"{key} of .* is '{value}', no finite number")
    for key, value in (("lora_alpha", "nan"), ("alpha", "wan"), ("network_alpha", "inf"))
}
REFUSED |= {
    f"metadata {key}": (noted(**{key: "0.5"}), rf"has {key} '0\.5', which is not understood")
    for key in ("lora_scale", "scaling", "strength", "network_multiplier")
}
OTHERS = {
    "lora_magnitude_vector": "the magnitudes of a DoRA",
    "lora_magnitude_vector.weight": "the magnitudes of a DoRA",
    "dora_scale": "the magnitudes of a DoRA",
    "lora_mid.weight": "a part of a LoRA with three matrices",
    "lora_B.bias": "the bias of a LoRA",
    "diff": "a weight or its whole difference",
    "diff_b": "a weight or its whole difference",
    "weight": "a weight or its whole difference",
    "oft_blocks": "a part of an OFT",
    "vera_lambda_b": "a part of a VeRA",
}
REFUSED |= {
    name: (
        plain({f"{Q}.{name}": torch.ones(4)}),
        rf"is no LoRA that can be merged: it holds {Q}\.{name}, {what};",
    )
    for name, what in OTHERS.items()
}


@pytest.mark.parametrize("title", REFUSED)
def test_what_is_not_understood_is_refused(title: str, base: Path, tmp_path: Path) -> None:
    case, message = REFUSED[title]
    with pytest.raises(UserError, match=message):
        strengths(base, LoRA(write(case, tmp_path)))


def test_a_configuration_that_is_none(base: Path, tmp_path: Path) -> None:
    path = write(CASES["PEFT"], tmp_path)
    for text in ("{", "[]", '"lora"', "\xff"):
        (tmp_path / "adapter_config.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(BadFile, match=r"adapter_config\.json does not describe a LoRA"):
            strengths(base, LoRA(path))


def test_folders_that_are_not_clear(base: Path, tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=r"holds no LoRA, no adapter_model\.safetensors or"):
        strengths(base, LoRA(tmp_path))
    for name in ("first", "second"):
        write(CASES["no word of it"], tmp_path, name)
    with pytest.raises(BadFile, match=r"several LoRAs: first\.safetensors, second\.safetensors; give one"):
        strengths(base, LoRA(tmp_path))


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999", "NaN", "infinity"])
def test_scales_that_are_not_finite(text: str, base: Path, model_folder: Path, tmp_path: Path) -> None:
    path = write(CASES["no word of it"], tmp_path)
    message = r"The scale of LoRA .* is .*(nan|inf), no finite number"
    with pytest.raises(UserError, match=message):
        parse_lora(f"{path}:{text}")
    with pytest.raises(UserError, match=message):
        ModelFiles.open(model_folder, lora=f"{path}:{text}")
    with pytest.raises(UserError, match=message):
        strengths(base, LoRA(path, float(text)))


def test_a_preset_with_a_scale_that_is_not_finite(base: Path, tmp_path: Path) -> None:
    """TOML has words for them."""
    write(CASES["no word of it"], tmp_path)
    preset = tmp_path / "mine.toml"
    preset.write_text(
        'like = "self-forcing"\nbase = "some-one/base"\n'
        f'source = {{ file = "{base}", lora = "lora.safetensors", lora_scale = nan }}\n'
    )
    with pytest.raises(
        UserError, match=r"mine\.toml: source: lora_scale cannot be nan; give a finite number"
    ):
        ModelFiles.open(preset)


def test_a_lora_is_described(base: Path, tmp_path: Path) -> None:
    tensors = open_transformer(base, SMALL)[1]
    path = write(CASES["PEFT, patterns"], tmp_path)
    times = "times 0.5 as asked for"
    assert describe(read_lora(path, tensors), 0.5) == [
        f"1 layer ({DOWN}) of rank 1, strength 5, {times} (alpha_pattern 5 in adapter_config.json)",
        f"1 layer ({Q}) of rank 2, strength 8, {times} (alpha_pattern 16 in adapter_config.json)",
        f"1 layer ({UP}) of rank 8, strength 1, {times} (lora_alpha 8 in adapter_config.json)",
        f"1 layer ({V}) of rank 4, strength 0.75, {times} (alpha_pattern 3 in adapter_config.json)",
    ]
    (tmp_path / "adapter_config.json").unlink()
    save_file(named("{}"), tmp_path / "plain.safetensors")
    assert describe(read_lora(tmp_path / "plain.safetensors", tensors)) == [
        "4 layers of rank 4, strength 1 (no alpha, so it is the rank)"
    ]
    save_file(named("{}") | alphas("{}", {Q: 2.0}), tmp_path / "plain.safetensors")
    assert describe(read_lora(tmp_path / "plain.safetensors", tensors)) == [
        f"3 layers ({DOWN}, ...) of rank 4, strength 1 (no alpha, so it is the rank)",
        f"1 layer ({Q}) of rank 4, strength 0.5 (alpha 2)",
    ]


@pytest.mark.parametrize("has_config", [True, False])
def test_a_configuration_beside_a_lora_on_the_hub(
    has_config: bool, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    path = write(CASES["PEFT"], tmp_path)
    config = tmp_path / "adapter_config.json"
    kept = config.read_text()
    config.unlink()
    asked = []

    def download(repo: str, file: str, local_files_only: bool) -> str:
        asked.append((repo, file, local_files_only))
        if file.endswith(".safetensors"):
            return str(path)
        if not has_config:
            raise EntryNotFoundError("404")
        config.write_text(kept)
        return str(config)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    found = fetch_lora(HubFile("some-one/style", "loras/adapter_model.safetensors"))
    assert strengths(base, LoRA(found)) == pytest.approx(every(2 if has_config else 1), rel=1e-3)
    assert [file for _, file, _ in asked] == ["loras/adapter_model.safetensors", "loras/adapter_config.json"]


def test_a_lora_on_the_hub_that_is_here_while_its_configuration_is_not(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, nobody can know; with a network that fails, it is an error."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    path = write(CASES["no word of it"], tmp_path)
    error: Exception = LocalEntryNotFoundError("offline")

    def download(repo: str, file: str, local_files_only: bool) -> str:
        if file == "adapter_model.safetensors":
            return str(path)
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    place = HubFile("some-one/style", "adapter_model.safetensors")
    assert fetch_lora(place) == path
    error = OSError("no route")
    with pytest.raises(BadFile, match=r"adapter_config\.json of some-one/style cannot be fetched"):
        fetch_lora(place)
