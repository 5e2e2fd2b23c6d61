"""Training data for `train_tiny.py`: told scenes, their prompts as tokens, pools of encoded latents."""

import multiprocessing as mp
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from dummyforcing.evaluation.world.scene import Scene
from research.world.render import draw, prepare
from research.world.wording import SLOTS, Teller, Told, mistype

REGISTERS = 16
"""Tokens before every prompt whose embeddings hold what it says, whatever its words."""
WORDS = 48
"""Tokens of the prompt itself, at most."""
TEXT_LEN = REGISTERS + WORDS
VOCABULARY = 1500
END = "</w>"


def tell_many(seed: Sequence[int], count: int) -> list[Told]:
    """Training scenes, some of them with a slip of the pen."""
    rng = np.random.default_rng(seed)
    teller = Teller(rng)
    return [teller.tell() for _ in range(count)]


def _tell(job: tuple[tuple[int, ...], int]) -> list[Told]:
    return tell_many(*job)


def tell_in_batches(seed: tuple[int, ...], count: int, batch: int, small: bool) -> Iterator[list[Told]]:
    """`count` training scenes in batches, told ahead by all cores that this process has a share of."""
    jobs = [((*seed, i), batch) for i in range(-(-count // batch))]
    if small:
        yield from map(_tell, jobs)
        return
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun
    with mp.get_context("fork").Pool(max(1, (os.cpu_count() or 1) // processes)) as pool:
        yield from pool.imap(_tell, jobs)


def told_prompts(seed: int, count: int, small: bool) -> tuple[list[str], Tensor]:
    """Prompts, a quarter of them mistyped, and what they say, `(count, len(SLOTS))` int64; on all cores.

    A few are of objects that leave or come back.
    """
    rows: list[tuple[str, tuple[int, ...]]] = []
    rng = np.random.default_rng(seed)
    teller = Teller(rng)
    for told in tell_in_batches((seed,), count, min(4000, count), small):
        rows += [teller.errand() if rng.random() < 0.04 else (t.scene.prompt, t.slots) for t in told]
    prompts = [mistype(prompt, rng) if rng.random() < 0.25 else prompt for prompt, _ in rows]
    return prompts, torch.tensor([slots for _, slots in rows])


def build_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Byte-pair pieces of the world's sentences, after `REGISTERS` tokens that every prompt begins with."""
    if (folder / "tokenizer.json").exists():
        return PreTrainedTokenizerFast.from_pretrained(str(folder))
    registers = [f"<slot{i}>" for i in range(REGISTERS)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix=END))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("removed")]
    )
    tokenizer.decoder = decoders.BPEDecoder(suffix=END)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "</s>", "<unk>", *registers],
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyz0123456789"),
        end_of_word_suffix=END,
        show_progress=False,
    )
    prompts = [told.scene.prompt for told in tell_many((0,), 20_000)]
    teller = Teller(np.random.default_rng(1))
    prompts += [teller.errand()[0] for _ in range(1000)]
    # Prompts with other words get a warning: they are read, but nobody taught what they mean.
    words = sorted({word for prompt in prompts for word in re.findall(r"[^\W_]+", prompt.lower())})
    # Every letter may also end a word: so there is a piece for whatever is typed.
    prompts += [f"{letter} x{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"] * 3
    tokenizer.train_from_iterator(prompts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join([*registers, "$A", "</s>"]),
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ["</s>", *registers]],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TEXT_LEN,
    )
    fast.init_kwargs["words"] = words
    fast.save_pretrained(folder)
    return fast


def tokenize(tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> Tensor:
    """Token ids, `(B, TEXT_LEN)` int64, 0 where padded."""
    out = tokenizer(prompts, padding="max_length", truncation=True, max_length=TEXT_LEN, return_tensors="pt")
    ids: Tensor = out.input_ids
    return ids


def render(scenes: list[Scene], frames: int, size: int, device: torch.device, start: int = 0) -> Tensor:
    """Clips in [-1, 1] as the VAE wants them, `(B, 3, frames, size, size)`."""
    drawn = _draw_on(device.type)(prepare(scenes, frames, device, start), size)
    return torch.unflatten(drawn, 0, (len(scenes), frames)).transpose(1, 2) * 2 - 1


@cache
def _draw_on(kind: str) -> Callable[[dict[str, Tensor], int], Tensor]:
    """The world's `draw`, compiled on a GPU: its hundred small operations are one kernel then."""
    return torch.compile(draw) if kind == "cuda" else draw


class Pool:
    """Encoded clips and the embeddings of their prompts, kept on the device; drawn with replacement."""

    def __init__(self, latents: Tensor, places: Tensor, text: Tensor, empty: Tensor) -> None:
        """Keep them.

        Args:
            latents: `(N, F, C, h, w)` bfloat16.
            places: Where objects are, `(N, F, 1, h, w)` bool.
            text: `(N, TEXT_LEN, text_dim)` bfloat16.
            empty: That of no prompt, `(1, TEXT_LEN, text_dim)`.
        """
        self.latents, self.places, self.text, self.empty = latents, places, text, empty

    def sample(self, count: int, drop_text: float = 0.1) -> tuple[Tensor, Tensor, Tensor]:
        """Latents `(B, F, C, h, w)` float32, where objects are, and the text, sometimes that of no prompt."""
        picks = torch.randint(len(self.latents), (count,), device=self.latents.device)
        dropped = torch.rand(count, 1, 1, device=self.latents.device) < drop_text
        text = torch.where(dropped, self.empty, self.text[picks]).float()
        return self.latents[picks].float(), self.places[picks], text


SLOT_REGISTERS = [
    4 * (int(name[-1]) - 1)
    + {"color": 0, "shade": 0, "shape": 1, "size": 1, "material": 2, "motion": 3}[name[:-2]]
    if name[-1].isdigit()
    else 12 + ("relation", "floor", "sky", "camera").index(name)
    for name in SLOTS
]
"""The register that each of `SLOTS` is read from."""
