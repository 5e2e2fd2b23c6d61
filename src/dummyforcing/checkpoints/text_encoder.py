"""Files of text encoders: Wan's own UMT5, or a folder of transformers; and tokenizers.

encoder = load_text_encoder(folder / "text_encoder", folder / "tokenizer", text_len=512)
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from dummyforcing.checkpoints.components import quiet, read_component_config
from dummyforcing.checkpoints.names import umt5_name
from dummyforcing.checkpoints.stored import StoredTensor
from dummyforcing.checkpoints.tensor_files import open_tensors
from dummyforcing.checkpoints.weights import check_names, fill
from dummyforcing.errors import BadFile
from dummyforcing.models.text_encoder import TextEncoder

UMT5_XXL: dict[str, Any] = {
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
}
"""The encoder of every Wan 2.1 model; all else is as `UMT5Config` has it."""

TOKENIZER = "spiece_model"
"""A tensor of bytes that ComfyUI's files have beside the weights."""


def open_text_encoder(path: Path) -> tuple[UMT5EncoderModel, dict[str, StoredTensor]]:
    """Build a text encoder without weights, and find them.

    Args:
        path: Wan's own file, which is UMT5-XXL, or a folder of transformers with its `config.json`.

    Returns:
        The module on the meta device, and exactly its tensors by name.

    Raises:
        BadFile: If a file is missing or damaged, or the tensors are not exactly those of the config.
    """
    sizes = read_component_config(path) if path.is_dir() else UMT5_XXL
    try:
        with torch.device("meta"), quiet():
            model = UMT5EncoderModel(UMT5Config.from_dict(sizes))
    except Exception as error:  # whatever a nonsensical size causes
        raise BadFile(
            f"{path / 'config.json'} does not describe a UMT5 text encoder ({error})",
            "give the folder of one",
        ) from error
    tensors = {umt5_name(name): tensor for name, tensor in open_tensors(path).items() if name != TOKENIZER}
    if "shared.weight" in tensors:
        tensors.pop("encoder.embed_tokens.weight", None)  # the same tensor, saved twice
    check_names(tensors, model, path)
    return model, tensors


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load a tokenizer's folder.

    Raises:
        BadFile: If it is missing or damaged.
    """
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise BadFile(f"{folder} holds no tokenizer that can be read", "give the folder of one") from error


def load_text_encoder(
    encoder: Path,
    tokenizer: Path,
    text_len: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> TextEncoder:
    """Load a text encoder, as `open_text_encoder` finds it, and a tokenizer's folder.

    Raises:
        BadFile: If either is missing or damaged.
    """
    model = fill(*open_text_encoder(encoder), device, dtype)
    model.tie_weights()
    return TextEncoder(model, load_tokenizer(tokenizer), text_len)
