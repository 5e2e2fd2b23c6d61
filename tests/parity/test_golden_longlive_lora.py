"""LongLive of the public code with its LoRA merged into the weights."""

import copy

import pytest
import torch

from tests.parity.goldenfile import assert_near, cases, files_of, read
from tests.parity.rollout import run, schedule_tensors
from tests.parity.test_golden_longlive import sampler_of


def merged(golden):
    """The file with its LoRA merged: W + alpha / rank * B A, in float32."""
    lora, prefix = golden.meta["lora"], "base_model.model."
    weights = {n.removeprefix(prefix): t for n, t in golden.tensors.items() if n.startswith(prefix)}
    golden = copy.copy(golden)
    golden.tensors = dict(golden.tensors)
    for name in [n.removesuffix(".lora_A.weight") for n in weights if n.endswith(".lora_A.weight")]:
        down, up = weights.pop(f"{name}.lora_A.weight"), weights.pop(f"{name}.lora_B.weight")
        golden.tensors[f"model.{name}.weight"] = (
            golden.tensors[f"model.{name}.weight"] + lora["alpha"] / lora["rank"] * up @ down
        )
    assert not weights
    return golden


@pytest.mark.parametrize(("path", "name"), cases("longlive_lora"))
def test_rollout(path, name):
    golden = merged(read(path))
    noted = run(sampler_of(golden), golden.chunks(name))
    for key, expected in golden.under(name).items():
        assert_near(noted[key], expected, f"{name}/{key}")


@pytest.mark.parametrize("path", files_of("longlive_lora"))
def test_every_tensor_of_the_file_is_used(path):
    golden = merged(read(path))
    for name, expected in golden.under("merged").items():
        assert_near(golden[name], expected, name, 1e-6)
        assert (read(path)[name] - expected).abs().max() > 1e-3
    variants = tuple(f"{name}/" for name in golden.meta["variants"])
    prefixes = ("model.", "base_model.model.", "merged/", "renoise/", "schedule/", *variants)
    assert {n for n in golden.tensors if not n.startswith(prefixes)} == {"noise", "prompt_embeds/p0"}
    stored = golden.under("schedule")
    assert all(torch.equal(stored.pop(key), t) for key, t in schedule_tensors(golden.schedule).items())
    assert not stored
