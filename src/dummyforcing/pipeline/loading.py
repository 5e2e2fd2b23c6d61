"""Loads the parts of a model from its files, or takes those that were handed in."""

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from dummyforcing.checkpoints.hub import fetch, fetch_lora, find_part
from dummyforcing.checkpoints.lora import LoRA
from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.checkpoints.text_encoder import load_text_encoder
from dummyforcing.checkpoints.transformer import open_transformer
from dummyforcing.checkpoints.vae import load_small_decoder, load_vae
from dummyforcing.checkpoints.weights import fill
from dummyforcing.errors import BadRequest
from dummyforcing.models.text_encoder import TextEncoder, require_text_parts
from dummyforcing.models.wan import CausalWan
from dummyforcing.pipeline.devices import choose_device, choose_dtype
from dummyforcing.pipeline.options import LoadOptions
from dummyforcing.pipeline.parts import Parts
from dummyforcing.presets.preset import SIZE_MULTIPLE
from dummyforcing.runtime.fused import Fp8, arrange
from dummyforcing.runtime.ranks import Ranks
from dummyforcing.vae.codec import VideoDecoder
from dummyforcing.vae.memory import DecoderSizes


def load_parts(files: ModelFiles, options: LoadOptions, ranks: Ranks | None = None) -> Parts:
    """Load a model whose files are found already.

    Args:
        files: The model.
        options: How to load it.
        ranks: GPUs that share its work, each of which loads it; the first one alone has a text encoder.

    Raises:
        UserError: If files are missing or damaged, handed-in parts do not suit the model, or there is no such
            device, dtype or float8 here.
    """
    device, precision, given = options.device, options.torch_dtype, options.transformer
    if given is not None:
        weight = given.patch_embedding.weight
        device, precision = weight.device if device == "auto" else device, precision or weight.dtype
    device = choose_device(device)
    if ranks is not None and device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    dtype = choose_dtype(precision, device)
    _check_parts(files, options)
    loras = [LoRA(fetch_lora(place), scale) for place, scale in files.loras]
    source = fetch(files.transformer) if given is None else given
    opened = open_transformer(source, files.config, files.key, loras)
    vae = _load_vae(files, options, device, files.vae_dtype(dtype))
    model = fill(*opened, device, dtype)
    vae.ranks = ranks
    where = torch.device("cpu") if options.offload else device
    text = None
    if ranks is not None and ranks.rank:
        pass
    elif options.text_encoder is not None and options.tokenizer is not None:
        encoder = options.text_encoder.to(where, dtype).eval()
        text = TextEncoder(encoder, options.tokenizer, model.config.text_len)
    else:
        base = fetch(files.base)
        encoder_path, tokenizer = find_part(base, "text_encoder"), find_part(base, "tokenizer")
        text = load_text_encoder(encoder_path, tokenizer, model.config.text_len, where, dtype)
    return Parts(files.preset, model, text, vae, arrange(model, options.fp8), ranks)


def take_parts(
    files: ModelFiles,
    transformer: WanTransformer3DModel | CausalWan,
    vae: AutoencoderKLWan,
    text_encoder: UMT5EncoderModel | None,
    tokenizer: PreTrainedTokenizerBase | None,
    fp8: Fp8,
) -> Parts:
    """Put parts together that are loaded already: each stays where it is, in its dtype.

    Raises:
        UserError: If they do not suit the model or each other, or there is no float8 here.
    """
    _check_parts(files, LoadOptions(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer))
    weight = transformer.patch_embedding.weight
    model = fill(*open_transformer(transformer, files.config), weight.device, weight.dtype)
    encoder = None
    if text_encoder is not None and tokenizer is not None:
        encoder = TextEncoder(text_encoder.eval(), tokenizer, model.config.text_len)
    decoder = VideoDecoder(vae.eval(), fp8=fp8 != "none")
    return Parts(files.preset, model, encoder, decoder, arrange(model, fp8))


def _check_parts(files: ModelFiles, options: LoadOptions) -> None:
    """Refuse parts that were handed in and do not go with the model, before anything is read."""
    config, name = files.config, files.preset.name
    if (options.text_encoder is None) != (options.tokenizer is None):
        raise BadRequest("A text encoder goes with its tokenizer", "give both of them", "tokenizer")
    if options.text_encoder is not None:
        require_text_parts(options.text_encoder, options.tokenizer)
    if options.text_encoder is not None and options.text_encoder.config.d_model != config.text_dim:
        raise BadRequest(
            f"The text encoder gives {options.text_encoder.config.d_model} channels, but model '{name}' "
            f"takes {config.text_dim}",
            "give the one that it was trained with",
            "text_encoder",
        )
    if options.fp8 == "vae" and isinstance(options.vae, str | Path):
        raise BadRequest("A small decoder has no float8", "leave fp8 or the small decoder out", "fp8")
    if isinstance(options.vae, AutoencoderKLWan):
        channels, stride = options.vae.config.z_dim, DecoderSizes.of(options.vae.config).stride
        theirs = SIZE_MULTIPLE // config.patch_size[-1]
        if (channels, stride) != (config.in_dim, theirs):
            raise BadRequest(
                f"The VAE makes latents of {channels} channels for {stride}x{stride} pixels each, but model "
                f"'{name}' takes {config.in_dim} channels for {theirs}x{theirs}",
                "give the one that it was trained with",
                "vae",
            )


def _load_vae(
    files: ModelFiles, options: LoadOptions, device: torch.device, dtype: torch.dtype
) -> VideoDecoder:
    fp8 = options.fp8 != "none"
    if isinstance(options.vae, AutoencoderKLWan):
        home = torch.device("cpu") if options.offload else device
        return VideoDecoder(options.vae.to(home, dtype).eval(), device, fp8=fp8)
    vae = load_vae(find_part(fetch(files.base), "vae"), device, dtype, options.offload, fp8)
    return vae if options.vae is None else load_small_decoder(Path(options.vae), vae)
