"""Prompts to embeddings: UMT5 as Wan uses it.

encoder = load_text_encoder(folder / "text_encoder", folder / "tokenizer", text_len=512)
embeds = encoder.encode("a red ball bounces")  # (1, 512, 4096)
"""

import html
import re
from collections.abc import Sequence
from typing import Any

import ftfy
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, UMT5EncoderModel

from dummyforcing.errors import BadRequest

_WORD = re.compile(r"[^\W_]+")


def clean_prompt(prompt: str) -> str:
    """Mend the encoding, resolve HTML entities (twice: they come doubly escaped), collapse whitespace."""
    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return " ".join(text.split())


def require_text_parts(model: object, tokenizer: object) -> None:
    """Refuse what is no text encoder with its tokenizer.

    Raises:
        BadRequest: If it is not.
    """
    for name, part, kind in (
        ("text_encoder", model, UMT5EncoderModel),
        ("tokenizer", tokenizer, PreTrainedTokenizerBase),
    ):
        if not isinstance(part, kind):
            what = "None" if part is None else f"of type {type(part).__name__}"
            raise BadRequest(
                f"The {name} is {what}, and no loaded {kind.__name__}",
                "give one; or no text encoder and no tokenizer, but prompt_embeds",
                name,
            )


class PromptTokens:
    """The tokenizer of a text encoder: which words it knows, and how much of a prompt it reads.

    Several threads may use one. A tokenizer that pads or cuts keeps how it is to do that as its own state,
    which the next call changes for all that are under way. So ours does neither; the encoder cuts and pads.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, text_len: int) -> None:
        """Wrap a loaded tokenizer.

        Args:
            tokenizer: Must append the end-of-sequence token by itself, as T5 tokenizers do.
            text_len: Tokens per prompt, the transformer's `text_len`: longer ones are cut.
        """
        self.tokenizer, self.text_len = tokenizer, text_len
        self._tokenize(["a"])  # it forgets how it padded and cut when it was saved
        self._words = frozenset(getattr(tokenizer, "init_kwargs", {}).get("words", ()))
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        if type(getattr(self._backend, "model", None)).__name__ == "WordLevel":
            self._words = frozenset(tokenizer.get_vocab()) - frozenset(tokenizer.all_special_tokens)

    def _tokenize(self, prompts: Sequence[str], **options: Any) -> Any:
        """Their tokens, end-of-sequence included, of any number."""
        cleaned = [clean_prompt(prompt) for prompt in prompts]
        if not cleaned or not all(cleaned):
            raise BadRequest("The prompt is empty", "say what the video shall show", "prompt")
        # Not verbose: prompts longer than the tokenizer was made for are cut later, knowingly.
        return self.tokenizer(cleaned, add_special_tokens=True, verbose=False, **options)

    def token_count(self, prompt: str) -> int:
        """Count the tokens of a prompt, end-of-sequence included; those above `text_len` are cut."""
        return len(self._tokenize([prompt]).input_ids[0])

    def without_effect(self, prompt: str) -> str:
        """The end of a prompt that there is no room for; empty if there is."""
        text = clean_prompt(prompt)
        offsets = self._tokenize([prompt], return_offsets_mapping=True).offset_mapping[0]
        return text[offsets[self.text_len - 1][0] :].strip() if len(offsets) > self.text_len else ""

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of the prompt, in order and once each, that are not `known_words`; none if all may be."""
        if not self._words or self._backend is None:
            return []
        found = dict.fromkeys(_WORD.findall(clean_prompt(prompt)))
        normalizer = self._backend.normalizer  # as the tokenizer will see them: case, accents
        normalize = normalizer.normalize_str if normalizer else str
        return [word for word in found if normalize(word) not in self._words]

    def known_words(self) -> list[str]:
        """The words that the model was taught, sorted; empty if it was taught a whole language.

        They are the vocabulary of a word-level tokenizer, or `words` in the tokenizer's configuration: one
        that spells words from pieces reads others, too, but the model was never told what they mean.
        """
        return sorted(self._words)


class TextEncoder(PromptTokens):
    """A UMT5 encoder with its tokenizer; several threads may use one."""

    def __init__(self, model: UMT5EncoderModel, tokenizer: PreTrainedTokenizerFast, text_len: int) -> None:
        """Wrap loaded parts.

        Args:
            model: In evaluation mode, wherever and in whatever dtype it shall run.
            tokenizer: See `PromptTokens`.
            text_len: Tokens per prompt: shorter prompts are padded with zeros, longer ones cut.
        """
        super().__init__(tokenizer, text_len)
        self.model = model

    @property
    def reader(self) -> PromptTokens:
        """The tokenizer without the weights: what can be known of prompts in another process."""
        return PromptTokens(self.tokenizer, self.text_len)

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
        found = self._tokenize([prompts] if isinstance(prompts, str) else prompts).input_ids
        tokens = torch.full((len(found), self.text_len), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(tokens)
        for row, kept, one in zip(tokens, mask, found, strict=True):
            one = one if len(one) <= self.text_len else [*one[: self.text_len - 1], one[-1]]
            row[: len(one)], kept[: len(one)] = torch.tensor(one), 1
        tokens, mask = tokens.to(self.model.device), mask.to(self.model.device)
        hidden: Tensor = self.model(input_ids=tokens, attention_mask=mask).last_hidden_state
        return hidden.masked_fill(mask.unsqueeze(-1) == 0, 0)
