"""Prompts to embeddings: UMT5 as Wan uses it.

encoder = load_text_encoder(folder / "text_encoder", folder / "tokenizer", text_len=512)
embeds = encoder.encode("a red ball bounces")  # (1, 512, 4096)
"""

import html
from collections.abc import Sequence
from typing import Any

import ftfy
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from dummyforcing.errors import BadRequest


def clean_prompt(prompt: str) -> str:
    """Mend the encoding, resolve HTML entities (twice: they come doubly escaped), collapse whitespace."""
    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return " ".join(text.split())


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

    def _tokenize(self, prompts: Sequence[str], **options: Any) -> Any:
        cleaned = [clean_prompt(prompt) for prompt in prompts]
        if not cleaned or not all(cleaned):
            raise BadRequest("The prompt is empty", "say what the video shall show", "prompt")
        # Not verbose: prompts longer than the tokenizer was made for are cut here, knowingly.
        return self.tokenizer(cleaned, add_special_tokens=True, verbose=False, **options)

    @torch.inference_mode()
    def encode(self, prompts: str | Sequence[str]) -> Tensor:
        """Embed prompts, each by itself: a batch gives what its prompts give alone.

        Args:
            prompts: One prompt or several.

        Returns:
            `(B, text_len, text_dim)` in the model's dtype and on its device; rows after the end-of-sequence
            token are zero.

        Raises:
            BadRequest: If a prompt is empty.
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
        """Count the tokens of a prompt, end-of-sequence included; those above `text_len` are cut."""
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
