"""Writes small random models in every layout that public checkpoints have."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dummyforcing.checkpoints.names import DIFFUSERS_NAMES
from dummyforcing.models.wan import CausalWan, ModelConfig

SMALL = ModelConfig(dim=48, ffn_dim=96, num_heads=4, num_layers=3, text_len=16, text_dim=16, freq_dim=32)
State = dict[str, Tensor]


def random_state(config: ModelConfig = SMALL, seed: int = 0) -> State:
    torch.manual_seed(seed)
    return {name: torch.randn_like(tensor) for name, tensor in CausalWan(config).state_dict().items()}


def under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def fsdp(state: State) -> State:
    """The names of the parameters inside FSDP: with a wrapper around every part."""
    infix = "_fsdp_wrapped_module."
    named = {}
    for name, tensor in state.items():
        parts = name.split(".")
        place = 2 if parts[0] == "blocks" else 1
        name = ".".join(parts[:place]) + "." + infix + ".".join(parts[place:]) if len(parts) > 1 else name
        named[f"model.{infix}{name}"] = tensor
    return named


def other(state: State) -> State:
    """The same names with other numbers, which must not be read."""
    return {name: tensor + 1 for name, tensor in state.items()}


def diffusers(state: State) -> State:
    """Diffusers' names, looked up in its own class."""
    from diffusers import WanTransformer3DModel

    from dummyforcing.checkpoints.names import native_name

    with torch.device("meta"):
        theirs = WanTransformer3DModel(
            num_attention_heads=SMALL.num_heads,
            attention_head_dim=SMALL.head_dim,
            ffn_dim=SMALL.ffn_dim,
            num_layers=SMALL.num_layers,
            text_dim=SMALL.text_dim,
            freq_dim=SMALL.freq_dim,
        )
    assert DIFFUSERS_NAMES
    return {name: state[native_name(name)] for name in theirs.state_dict()}


def fused(state: State) -> State:
    """q, k and v of self-attention in one matrix, as Krea's code keeps them at run time."""
    result = dict(state)
    for name in state:
        head, found, end = name.partition(".self_attn.q.")
        if found:
            parts = [result.pop(f"{head}.self_attn.{part}.{end}") for part in "qkv"]
            result[f"{head}.self_attn.to_qkv.{end}"] = torch.cat(parts)
    return result


def sharded(state: State, folder: Path) -> None:
    """Three shards with an index."""
    folder.mkdir()
    shards = {name: f"model-0000{i % 3 + 1}-of-00003.safetensors" for i, name in enumerate(state)}
    for shard in set(shards.values()):
        save_file({n: t.contiguous() for n, t in state.items() if shards[n] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (folder / "config.json").write_text(json.dumps(asdict(SMALL)))


def gan(state: State) -> State:
    """What Self-Forcing's GAN training keeps beside the transformer."""
    extras = ["_cls_pred_branch.0.weight", "_register_tokens.0", "_gan_ca_blocks.0._fsdp_wrapped_module.q"]
    return under("model.", state) | {name: torch.zeros(2) for name in extras}


def wan_umt5(state: State) -> State:
    """The names of Wan's own file for a UMT5 encoder of transformers, one layer at a time."""
    layers = 1 + max(int(name.split(".")[2]) for name in state if ".block." in name)
    theirs = {"token_embedding.weight": "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}
    for i in range(layers):
        ours, block = f"blocks.{i}", f"encoder.block.{i}"
        theirs |= {
            f"{ours}.norm1.weight": f"{block}.layer.0.layer_norm.weight",
            f"{ours}.norm2.weight": f"{block}.layer.1.layer_norm.weight",
            **{f"{ours}.attn.{p}.weight": f"{block}.layer.0.SelfAttention.{p}.weight" for p in "qkvo"},
            f"{ours}.pos_embedding.embedding.weight": (
                f"{block}.layer.0.SelfAttention.relative_attention_bias.weight"
            ),
            f"{ours}.ffn.gate.0.weight": f"{block}.layer.1.DenseReluDense.wi_0.weight",
            f"{ours}.ffn.fc1.weight": f"{block}.layer.1.DenseReluDense.wi_1.weight",
            f"{ours}.ffn.fc2.weight": f"{block}.layer.1.DenseReluDense.wo.weight",
        }
    return {name: state[source] for name, source in theirs.items()}


RESIDUAL = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}
RESIDUAL["conv_shortcut"] = "shortcut"


def wan_vae_name(name: str) -> str:
    """The name in Wan's own file of a tensor of diffusers' VAE, told part by part."""
    part, *rest = name.split(".")
    if part in ("quant_conv", "post_quant_conv"):
        return ".".join(["conv1" if part == "quant_conv" else "conv2", *rest])
    match rest:
        case ["conv_in", *end]:
            place = ["conv1", *end]
        case ["norm_out", *end]:
            place = ["head.0", *end]
        case ["conv_out", *end]:
            place = ["head.2", *end]
        case ["mid_block", "attentions", "0", *end]:
            place = ["middle.1", *end]
        case ["mid_block", "resnets", i, kind, *end]:
            place = [f"middle.{2 * int(i)}", RESIDUAL[kind], *end]
        case ["down_blocks", i, ("resample" | "time_conv") as kind, *end]:
            place = [f"downsamples.{i}", kind, *end]
        case ["down_blocks", i, kind, *end]:
            place = [f"downsamples.{i}", RESIDUAL[kind], *end]
        case ["up_blocks", b, "upsamplers", "0", *end]:
            place = [f"upsamples.{4 * int(b) + 3}", *end]
        case ["up_blocks", b, "resnets", j, kind, *end]:
            place = [f"upsamples.{4 * int(b) + int(j)}", RESIDUAL[kind], *end]
    return ".".join([part, *place])


def wan_vae(state: State) -> State:
    """The names of Wan's own file for a VAE of diffusers."""
    return {wan_vae_name(name): tensor for name, tensor in state.items()}


LAYOUTS: dict[str, Callable[[State, Path], object]] = {
    "ema_fsdp.pt": lambda s, p: torch.save({"generator_ema": fsdp(s)}, p),
    "three_copies.pt": lambda s, p: torch.save(
        {
            "generator": under("model.", other(s)),
            "critic": under("model.", other(s)),
            "generator_ema": fsdp(s),
            "step": 600,
        },
        p,
    ),
    "other_generator.pt": lambda s, p: torch.save({"generator": under("model.", s), "critic": other(s)}, p),
    "model_entry.pt": lambda s, p: torch.save({"model": s, "optimizer": {"lr": 1}}, p),
    "flat.pt": lambda s, p: torch.save(s, p),
    "flat_with_step.pt": lambda s, p: torch.save({**s, "step": 3}, p),
    "legacy.pth": lambda s, p: torch.save(s, p, _use_new_zipfile_serialization=False),
    "compiled.pt": lambda s, p: torch.save({"generator_ema": under("module.model._orig_mod.", s)}, p),
    "checkpointed.pt": lambda s, p: torch.save(
        {n.replace("blocks.1.", "blocks.1._checkpoint_wrapped_module."): t for n, t in s.items()}, p
    ),
    "gan.pt": lambda s, p: torch.save({"generator_ema": gan(s)}, p),
    "krea.safetensors": lambda s, p: save_file(under("model.", s), p),
    "native.safetensors": lambda s, p: save_file(s, p),
    "comfy.safetensors": lambda s, p: save_file(under("diffusion_model.", s), p),
    "wrapper.safetensors": lambda s, p: save_file(under("generator.model.", s), p),
    "fused.safetensors": lambda s, p: save_file(under("model.", fused(s)), p),
    "diffusers.safetensors": lambda s, p: save_file(diffusers(s), p),
    "sharded": sharded,
}
"""File name -> how to write it. All are read with the key `generator_ema`."""
