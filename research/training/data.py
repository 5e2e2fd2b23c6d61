"""Training data for `train_tiny.py`: rendered scenes, their prompts as tokens, pools of encoded latents."""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from dummyforcing.evaluation.world.scene import Scene
from research.world import world
from research.world.render import render as render_world

TEXT_LEN = 32


def build_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """A word-level tokenizer of exactly the words that occur in the world's prompts."""
    rng = np.random.default_rng(0)
    words: set[str] = set()
    for _ in range(20_000):
        words.update(world.random_scene(rng).prompt.split())
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("removed")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TEXT_LEN,
    )
    fast.save_pretrained(folder)
    return fast


def tokenize(tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> Tensor:
    """Token ids, `(B, TEXT_LEN)` int64, 0 where padded."""
    out = tokenizer(prompts, padding="max_length", truncation=True, max_length=TEXT_LEN, return_tensors="pt")
    ids: Tensor = out.input_ids
    return ids


def random_scenes(count: int, rng: np.random.Generator) -> list[Scene]:
    """Fresh training scenes."""
    return [world.random_scene(rng) for _ in range(count)]


def render(scenes: list[Scene], frames: int, size: int, device: torch.device, start: int = 0) -> Tensor:
    """Clips in [-1, 1] as the VAE wants them, `(B, 3, frames, size, size)`."""
    return render_world(scenes, frames, size, device, start).transpose(1, 2) * 2 - 1


class Pool:
    """Encoded clips and their prompts, kept on the device; training draws from it with replacement."""

    def __init__(self, latents: Tensor, tokens: Tensor, empty: Tensor) -> None:
        self.latents, self.tokens, self.empty = latents, tokens, empty

    def sample(self, count: int, drop_text: float = 0.1) -> tuple[Tensor, Tensor]:
        """Latents `(B, F, C, h, w)` float32 and token ids `(B, TEXT_LEN)`, some emptied for guidance."""
        picks = torch.randint(len(self.latents), (count,), device=self.latents.device)
        tokens = self.tokens[picks]
        dropped = torch.rand(count, 1, device=tokens.device) < drop_text
        return self.latents[picks].float(), torch.where(dropped, self.empty, tokens)
