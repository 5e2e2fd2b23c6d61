"""Prompts to embeddings: UMT5 as Wan uses it.

encoder = TextEncoder.load(folder / "text_encoder", folder / "tokenizer", text_len=512)
embeds = encoder.encode("a red ball bounces")  # (1, 512, 4096)
"""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ftfy
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from dummyforcing.checkpoints.components import quiet, read_component_config
from dummyforcing.checkpoints.names import umt5_name
from dummyforcing.checkpoints.tensor_files import StoredTensor, open_tensors
from dummyforcing.checkpoints.transformer import check_names, fill
from dummyforcing.errors import UserError

UMT5_XXL: dict[str, Any] = {
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
}
"""The encoder of every Wan 2.1 model; all else is as `UMT5Config` has it."""


def open_text_encoder(path: Path) -> tuple[UMT5EncoderModel, dict[str, StoredTensor]]:
    """Build a text encoder without weights, and find them.

    Args:
        path: Wan's own file, which is UMT5-XXL, or a folder of transformers with its `config.json`.

    Returns:
        The module on the meta device, and exactly its tensors by name.

    Raises:
        UserError: If a file is missing or damaged, or the tensors are not exactly those of the config.
    """
    sizes = read_component_config(path) if path.is_dir() else UMT5_XXL
    try:
        with torch.device("meta"), quiet():
            model = UMT5EncoderModel(UMT5Config.from_dict(sizes))
    except Exception as error:  # whatever a nonsensical size causes
        raise UserError(f"{path / 'config.json'} does not describe a UMT5 text encoder: {error}.") from error
    tensors = {umt5_name(name): tensor for name, tensor in open_tensors(path).items()}
    if "shared.weight" in tensors:
        tensors.pop("encoder.embed_tokens.weight", None)  # the same tensor, saved twice
    check_names(tensors, model, path)
    return model, tensors


def clean_prompt(prompt: str) -> str:
    """Mend the encoding, resolve HTML entities (twice: they come doubly escaped), collapse whitespace."""
    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return " ".join(text.split())


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load a tokenizer's folder.

    Raises:
        UserError: If it is missing or damaged.
    """
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise UserError(f"{folder} holds no tokenizer that can be read.") from error


class TextEncoder:
    """A UMT5 encoder with its tokenizer; stateless after construction."""

    def __init__(self, model: UMT5EncoderModel, tokenizer: PreTrainedTokenizerFast, text_len: int) -> None:
        """Wrap loaded parts.

        Args:
            model: In evaluation mode, wherever and in whatever dtype it shall run.
            tokenizer: Must append the end-of-sequence token by itself, as T5 tokenizers do.
            text_len: Tokens per prompt, the transformer's `text_len`: shorter prompts are padded with zeros,
                longer ones cut.
        """
        self.model, self.tokenizer, self.text_len = model, tokenizer, text_len

    @classmethod
    def load(
        cls,
        encoder: Path,
        tokenizer: Path,
        text_len: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "TextEncoder":
        """Load a text encoder, as `open_text_encoder` finds it, and a tokenizer's folder.

        Raises:
            UserError: If either is missing or damaged.
        """
        model = fill(*open_text_encoder(encoder), device, dtype)
        model.tie_weights()
        return cls(model, load_tokenizer(tokenizer), text_len)

    def _tokenize(self, prompts: Sequence[str], **options: Any) -> Any:
        cleaned = [clean_prompt(prompt) for prompt in prompts]
        if not cleaned or not all(cleaned):
            raise UserError("the prompt is empty; say what the video shall show.")
        with quiet():
            return self.tokenizer(cleaned, add_special_tokens=True, **options)

    @torch.inference_mode()
    def encode(self, prompts: str | Sequence[str]) -> Tensor:
        """Embed prompts, each by itself: a batch gives what its prompts give alone.

        Args:
            prompts: One prompt or several.

        Returns:
            `(B, text_len, text_dim)` in the model's dtype and on its device; rows after the end-of-sequence
            token are zero.

        Raises:
            UserError: If a prompt is empty.
        """
        tokens = self._tokenize(
            [prompts] if isinstance(prompts, str) else prompts,
            padding="max_length",
            padding_side="right",
            truncation=True,
            max_length=self.text_len,
            return_tensors="pt",
        ).to(self.model.device)
        mask = tokens.attention_mask
        hidden: Tensor = self.model(input_ids=tokens.input_ids, attention_mask=mask).last_hidden_state
        return hidden.masked_fill(mask.unsqueeze(-1) == 0, 0)

    def token_count(self, prompt: str) -> int:
        """How many tokens the prompt has, end-of-sequence included; those above `text_len` are cut."""
        return len(self._tokenize([prompt]).input_ids[0])

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of the prompt, in order and once each, that the tokenizer has no token for.

        Only a word-level vocabulary (the bundled model's) has unknown words; sentencepiece spells them.
        """
        text = clean_prompt(prompt)
        tokens = self._tokenize([prompt], return_offsets_mapping=True)
        pairs = zip(tokens.input_ids[0], tokens.offset_mapping[0], strict=True)
        unknown = (text[start:end] for token, (start, end) in pairs if token == self.tokenizer.unk_token_id)
        return list(dict.fromkeys(word for word in unknown if any(map(str.isalnum, word))))

    def known_words(self) -> list[str]:
        """The vocabulary without special tokens, sorted; meant for a word-level tokenizer."""
        return sorted(set(self.tokenizer.get_vocab()) - set(self.tokenizer.all_special_tokens))
