"""Tables of the names in public checkpoints, one for each layout, and what the names tell.

The text encoder's names are those of transformers, the VAE's those of diffusers: their classes run here.
"""

import re
from collections.abc import Iterable, Mapping

from dummyforcing.errors import BadFile

DIFFUSERS_NAMES = {
    r"^condition_embedder\.text_embedder\.linear_1\.": "text_embedding.0.",
    r"^condition_embedder\.text_embedder\.linear_2\.": "text_embedding.2.",
    r"^condition_embedder\.time_embedder\.linear_1\.": "time_embedding.0.",
    r"^condition_embedder\.time_embedder\.linear_2\.": "time_embedding.2.",
    r"^condition_embedder\.time_proj\.": "time_projection.1.",
    r"^scale_shift_table$": "head.modulation",
    r"^proj_out\.": "head.head.",
    r"\.scale_shift_table$": ".modulation",
    r"\.attn1\.": ".self_attn.",
    r"\.attn2\.": ".cross_attn.",
    r"\.to_([qkv])\.": r".\1.",
    r"\.to_out\.0\.": ".o.",
    r"\.norm2\.": ".norm3.",
    r"\.ffn\.net\.0\.proj\.": ".ffn.0.",
    r"\.ffn\.net\.2\.": ".ffn.2.",
}
"""Patterns in diffusers' parameter names and what Wan calls the same thing."""

UMT5_NAMES = {
    r"^token_embedding\.": "shared.",
    r"^norm\.": "encoder.final_layer_norm.",
    r"^blocks\.(\d+)\.norm1\.": r"encoder.block.\1.layer.0.layer_norm.",
    r"^blocks\.(\d+)\.attn\.": r"encoder.block.\1.layer.0.SelfAttention.",
    r"^blocks\.(\d+)\.pos_embedding\.embedding\.": (
        r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias."
    ),
    r"^blocks\.(\d+)\.norm2\.": r"encoder.block.\1.layer.1.layer_norm.",
    r"^blocks\.(\d+)\.ffn\.gate\.0\.": r"encoder.block.\1.layer.1.DenseReluDense.wi_0.",
    r"^blocks\.(\d+)\.ffn\.fc1\.": r"encoder.block.\1.layer.1.DenseReluDense.wi_1.",
    r"^blocks\.(\d+)\.ffn\.fc2\.": r"encoder.block.\1.layer.1.DenseReluDense.wo.",
}
"""Patterns in the names of Wan's own UMT5 file, and what transformers calls the same thing."""

VAE_NAMES = {
    r"^conv1\.": "quant_conv.",
    r"^conv2\.": "post_quant_conv.",
    r"^(en|de)coder\.conv1\.": r"\1coder.conv_in.",
    r"^(en|de)coder\.head\.0\.": r"\1coder.norm_out.",
    r"^(en|de)coder\.head\.2\.": r"\1coder.conv_out.",
    r"^(en|de)coder\.middle\.0\.": r"\1coder.mid_block.resnets.0.",
    r"^(en|de)coder\.middle\.1\.": r"\1coder.mid_block.attentions.0.",
    r"^(en|de)coder\.middle\.2\.": r"\1coder.mid_block.resnets.1.",
    r"^encoder\.downsamples\.": "encoder.down_blocks.",
    r"\.residual\.0\.": ".norm1.",
    r"\.residual\.2\.": ".conv1.",
    r"\.residual\.3\.": ".norm2.",
    r"\.residual\.6\.": ".conv2.",
    r"\.shortcut\.": ".conv_shortcut.",
}
"""Patterns in the names of Wan's own VAE file, and what diffusers calls the same thing."""

VAE_UPSAMPLES = re.compile(r"^decoder\.upsamples\.(\d+)\.")
"""The decoder's stages, counted through: three residual blocks and an upsampler make one of diffusers'."""

WRAPPED = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod")
"""What FSDP, checkpointing and torch.compile call the module inside."""

WRAPPERS = re.compile("|".join(rf"{name}\." for name in WRAPPED) + r"|^module\.")
"""What training leaves anywhere in the names."""

PREFIXES = ("generator.", "model.", "diffusion_model.", "transformer.")
"""What stands before every name, depending on which object was saved; several, one after the other."""

IGNORED = ("_cls_pred_branch.", "_register_tokens.", "_gan_ca_blocks.")
"""Parts that Self-Forcing's GAN training puts beside the transformer."""

WHOLE = "model.diffusion_model."
"""Begins the transformer's names in a file that holds all of a model."""

OTHER_PARTS = ("first_stage_model.", "vae.", "cond_stage_model.", "text_encoders.", "clip_vision.")
"""Begin the names of what else is in there: VAE, text and image encoders."""

OTHER_ADAPTERS = {
    "the magnitudes of a DoRA": re.compile(r"lora_magnitude_vector|dora_scale"),
    "a part of a LoHa": re.compile(r"\.hada_[wt]"),
    "a part of a LoKr": re.compile(r"\.lokr_[wt]"),
    "a part of a LoRA with three matrices": re.compile(r"\.(lora_mid|lora_E)\b"),
    "a part of an OFT": re.compile(r"\.(oft_|boft_)"),
    "a part of a VeRA": re.compile(r"\.vera_"),
    "the vector of an IA3": re.compile(r"\.ia3_"),
    "the bias of a LoRA": re.compile(r"\.lora_(A|B|down|up)(\.[\w-]+)?\.bias$"),
    "a weight or its whole difference": re.compile(r"\.(diff|diff_b|set_weight|w_norm|b_norm|weight|bias)$"),
}
"""Parts of adapters that are no matrices of a plain LoRA, told by their names."""

KINDS = {
    "a LoRA": re.compile(
        r"\.(lora_(A|B|down|up|mid|E|magnitude_vector)|lora\.(down|up)|dora_scale|hada_\w+|lokr_\w+|oft_\w+)(\.|$)"
    ),
    "a Wan image-to-video transformer": re.compile(
        r"(^|\.)(img_emb|image_embedder)\.|\.(k_img|add_k_proj)\."
    ),
    "a VACE transformer": re.compile(r"(^|\.)vace_(blocks|patch_embedding)\."),
    "a Wan transformer for camera, pose or speech": re.compile(
        r"(^|\.)(control_adapter|ref_conv|pose_patch_embedding|face_adapter|motion_encoder|casual_audio_encoder)\."
    ),
    "a model of Stable Diffusion": re.compile(
        r"(^|\.)(input_blocks|down_blocks\.\d+\.attentions|joint_blocks)\."
    ),
    "a model of Flux or HunyuanVideo": re.compile(r"(^|\.)(double_blocks|single_transformer_blocks)\."),
    "a CLIP encoder": re.compile(r"(^|\.)vision_model\.|^visual\."),
    "a Wan transformer": re.compile(r"(^|\.)patch_embedding\.weight$"),
    "a Wan VAE": re.compile(r"^decoder\.(conv1|conv_in)\.weight$"),
    "a UMT5 text encoder": re.compile(r"^(token_embedding|shared|encoder\.embed_tokens)\.weight$"),
    "a small decoder": re.compile(r"^decoder\.\d+\.(conv\.\d+\.)?weight$"),
}
"""What weights are, told by a name that only they have."""

PLACES = {
    "a LoRA": 'give it as lora="{}" beside a model',
    "a Wan VAE": 'put it into a folder with the text encoder, base="FOLDER"',
    "a UMT5 text encoder": 'put it into a folder with the VAE, base="FOLDER"',
    "a small decoder": 'give it as vae="{}"',
    "a Wan transformer": 'give it as weights="{}"',
}
"""Where those that a model can have belong."""


def native_name(name: str) -> str:
    """Wan's own name of a parameter that may be called as in diffusers; Wan's names stay as they are."""
    return _renamed(name, DIFFUSERS_NAMES)


def flat_name(name: str) -> str:
    """Like `native_name`, of a name whose dots were written as underscores."""
    patterns = {old.replace(r"\.", "_"): new.replace(".", "_") for old, new in DIFFUSERS_NAMES.items()}
    return _renamed(name, patterns)


def umt5_name(name: str) -> str:
    """Transformers' name of a text encoder's parameter, which may be called as in Wan's file."""
    return _renamed(name, UMT5_NAMES)


def vae_name(name: str) -> str:
    """Diffusers' name of a VAE's parameter, which may be called as in Wan's file."""
    if found := VAE_UPSAMPLES.match(name):
        block, place = divmod(int(found[1]), 4)
        part = "upsamplers.0" if place == 3 else f"resnets.{place}"
        name = f"decoder.up_blocks.{block}.{part}.{name[found.end() :]}"
    return _renamed(name, VAE_NAMES)


def bare_names(names: Iterable[str]) -> dict[str, str]:
    """A transformer's names without what training and saving put around them.

    Returns:
        Name in the file -> Wan's or diffusers' name; names that belong to no transformer are left out.
    """
    bare = {name: WRAPPERS.sub("", name) for name in names}
    ignored = (*IGNORED, *OTHER_PARTS) if any(short.startswith(WHOLE) for short in bare.values()) else IGNORED
    kept = {name: short for name, short in bare.items() if not short.startswith(ignored)}
    while prefix := next((p for p in PREFIXES if kept and all(n.startswith(p) for n in kept.values())), ""):
        kept = {name: short.removeprefix(prefix) for name, short in kept.items()}
    return kept


def _renamed(name: str, patterns: Mapping[str, str]) -> str:
    for pattern, replacement in patterns.items():
        name = re.sub(pattern, replacement, name)
    return name


def kind_of(names: Iterable[str]) -> str | None:
    """Tell the kind of weights by their names: an entry of `KINDS`."""
    known = list(names)
    return next((kind for kind, mark in KINDS.items() if any(map(mark.search, known))), None)


def wrong_kind(place: object, kind: str | None, wanted: str = "") -> BadFile:
    """The error for weights of another kind.

    Args:
        place: Their file or folder, or what else holds them.
        kind: What they are; None: nothing that is known.
        wanted: What they should be; empty: whatever a model can have.
    """
    if kind is None:
        return BadFile(
            f"{place} holds no Wan transformer, LoRA, UMT5 text encoder or Wan VAE", "give another file"
        )
    if wanted and kind in PLACES:
        return BadFile(f"{place} is {kind}, not {wanted}", PLACES[kind].format(place))
    return BadFile(f"{place} is {kind}", "take a causal text-to-video model; dummyforcing models lists them")
