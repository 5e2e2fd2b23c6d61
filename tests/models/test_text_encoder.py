"""A tiny random UMT5 with a word-level tokenizer made here, as the bundled model has, saved and loaded."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from string import ascii_letters

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, normalizers, trainers
from tokenizers.models import BPE, WordLevel
from tokenizers.normalizers import NFKD, Lowercase, StripAccents
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from dummyforcing.checkpoints.text_encoder import UMT5_XXL, load_text_encoder, open_text_encoder
from dummyforcing.errors import UserError
from dummyforcing.models.text_encoder import PromptTokens, TextEncoder, clean_prompt
from tests.layouts import wan_umt5

WORDS = ["a", "red", "blue", "ball", "cube", "bounces", "spins", "on", "the", "green", "floor"]
TEXT_LEN = 16


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = UMT5Config(
        vocab_size=3 + len(WORDS), d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, pad_token_id=0
    )
    path = tmp_path_factory.mktemp("model")
    UMT5EncoderModel(config).save_pretrained(path / "text_encoder")
    make_tokenizer().save_pretrained(path / "tokenizer")
    return path


def load(folder: Path, dtype: torch.dtype = torch.float32) -> TextEncoder:
    return load_text_encoder(folder / "text_encoder", folder / "tokenizer", TEXT_LEN, dtype=dtype)


@pytest.fixture(scope="module")
def encoder(folder: Path) -> TextEncoder:
    return load(folder)


@pytest.mark.parametrize(
    ("prompt", "cleaned"),
    [
        ("  a red\t ball\n\nbounces ", "a red ball bounces"),
        ("caf\u00c3\u00a9 at night", "caf\u00e9 at night"),  # UTF-8 read as Latin-1
        ("rock &amp; roll", "rock & roll"),
        ("rock &amp;amp; roll", "rock & roll"),  # escaped twice
        ("1 < 2 &amp;amp; 3", "1 < 2 & 3"),  # ftfy leaves entities alone where it sees a tag
        ("a\u00a0red\u3000ball", "a red ball"),
        ("\u201cquoted\u201d", '"quoted"'),
        (" \n ", ""),
    ],
)
def test_clean_prompt(prompt: str, cleaned: str) -> None:
    assert clean_prompt(prompt) == cleaned


def test_equals_the_encoder_without_padding(encoder: TextEncoder) -> None:
    """The oracle sees the bare tokens: no padding, no mask."""
    tokens = [3 + WORDS.index(word) for word in ("a", "red", "ball", "bounces")] + [1]
    with torch.inference_mode():
        expected = encoder.model(input_ids=torch.tensor([tokens])).last_hidden_state
    embeds = encoder.encode(" A red\n ball bounces")
    assert embeds.shape == (1, TEXT_LEN, 32)
    torch.testing.assert_close(embeds[:, :5], expected, atol=1e-6, rtol=0)
    assert embeds[:, :5].abs().sum(-1).min() > 0
    assert (embeds[:, 5:] == 0).all()


def test_a_batch_gives_what_its_prompts_give_alone(encoder: TextEncoder) -> None:
    prompts = ["a red ball", "the blue cube spins on the green floor"]
    together = encoder.encode(prompts)
    for row, prompt in zip(together, prompts, strict=True):
        torch.testing.assert_close(row, encoder.encode(prompt)[0], atol=1e-6, rtol=0)


def test_a_long_prompt_is_cut_but_keeps_its_end_token(encoder: TextEncoder) -> None:
    prompt = "a red ball " * 10
    assert encoder.token_count(prompt) == 31
    cut = encoder.encode(" ".join(prompt.split()[: TEXT_LEN - 1]))
    assert torch.equal(encoder.encode(prompt), cut)
    assert cut[0, -1].abs().sum() > 0


def test_what_of_a_prompt_has_no_effect(encoder: TextEncoder) -> None:
    words = ("a red ball " * 10).split()
    cut = encoder.without_effect(" ".join(words))
    assert cut == " ".join(words[TEXT_LEN - 1 :])
    changed = " ".join(words[: TEXT_LEN - 1]) + " blue cube on the floor" * 3
    assert torch.equal(encoder.encode(changed), encoder.encode(" ".join(words)))
    assert encoder.without_effect(" ".join(words[: TEXT_LEN - 1])) == ""


def test_threads_share_an_encoder(encoder: TextEncoder) -> None:
    """Whatever the others ask of it in between, a prompt has the same embeddings."""
    prompts = ["a red ball", "the blue cube spins on the green floor", "a red ball " * 10, "a ball"]
    alone = [encoder.encode(prompt) for prompt in prompts]
    gate = threading.Barrier(4)

    def work(number: int) -> bool:
        same = True
        for turn in range(30):
            gate.wait()
            prompt = (number + turn) % 4
            match turn % 3:
                case 0:
                    encoder.unknown_words(prompts[prompt])
                case 1:
                    encoder.token_count(prompts[prompt])
                case _:
                    encoder.without_effect(prompts[prompt])
            same &= torch.equal(encoder.encode(prompts[prompt]), alone[prompt])
        return same

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(work, range(4))) == [True] * 4
    finally:
        sys.setswitchinterval(interval)


def test_how_a_tokenizer_cut_and_padded_before_is_forgotten(folder: Path) -> None:
    encoder = load(folder)
    expected = encoder.encode("a red ball on the floor")
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=5, direction="left")
    other = TextEncoder(encoder.model, tokenizer, TEXT_LEN)
    assert torch.equal(other.encode("a red ball on the floor"), expected)


def test_dtype(folder: Path) -> None:
    encoder = load(folder, torch.bfloat16)
    assert encoder.encode("a ball").dtype == torch.bfloat16


@pytest.mark.parametrize("prompt", ["", "  \n", []])
def test_empty_prompts_are_refused(encoder: TextEncoder, prompt: str | list[str]) -> None:
    with pytest.raises(UserError, match="prompt is empty"):
        encoder.encode(prompt)


def test_unknown_words(encoder: TextEncoder) -> None:
    assert encoder.unknown_words("A RED ball, on the floor.") == []
    assert encoder.unknown_words("a Purple dragon  &amp; a red dragon!") == ["Purple", "dragon"]
    assert encoder.known_words() == sorted(WORDS)


def test_words_of_a_model_that_spells_others(tmp_path: Path) -> None:
    """What it was taught is said beside its pieces; without that nothing is unknown."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([NFKD(), StripAccents(), Lowercase()])
    tokenizer.pre_tokenizer = Whitespace()
    letters = trainers.BpeTrainer(
        special_tokens=["<pad>", "</s>", "<unk>"], initial_alphabet=[*ascii_letters]
    )
    tokenizer.train_from_iterator(WORDS, letters)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")
    assert PromptTokens(fast, TEXT_LEN).unknown_words("a zebra") == []
    assert PromptTokens(fast, TEXT_LEN).known_words() == []
    fast.init_kwargs["words"] = WORDS
    fast.save_pretrained(tmp_path)
    tokens = PromptTokens(PreTrainedTokenizerFast.from_pretrained(str(tmp_path)), TEXT_LEN)
    assert tokens.unknown_words("A redd ball, 2 Zebras &amp; a redd-ish floor.") == [
        "redd",
        "2",
        "Zebras",
        "ish",
    ]
    assert tokens.unknown_words("A Réd ball on the FLOOR") == []
    assert tokens.known_words() == sorted(WORDS)


def test_loading_is_silent(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    encoder = load(folder)
    encoder.encode("a red ball " * 10)
    encoder.token_count("a red ball " * 10)
    assert capfd.readouterr() == ("", "")


def test_the_host_keeps_its_log_settings(folder: Path) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load(folder)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def broken_copy(folder: Path, target: Path, change: str) -> Path:
    """A copy of a model folder whose weights lack one tensor, have one too many, and so on."""
    (target / "tokenizer").mkdir()
    (target / "text_encoder").mkdir()
    for file in folder.glob("*/*"):
        (target / file.relative_to(folder)).write_bytes(file.read_bytes())
    path = target / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    name = "encoder.final_layer_norm.weight"
    match change:
        case "missing":
            del tensors[name]
        case "unexpected":
            tensors["stray.weight"] = torch.zeros(1)
        case "mismatched":
            tensors[name] = torch.zeros(7)
    save_file(tensors, path, metadata={"format": "pt"})
    match change:
        case "truncated":
            path.write_bytes(path.read_bytes()[:1000])
        case "no file":
            path.unlink()
        case "no config":
            path.with_name("config.json").unlink()
        case "no tokenizer":
            (target / "tokenizer" / "tokenizer.json").write_text("{")
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"1 missing \(encoder\.final_layer_norm\.weight\)"),
        ("unexpected", r"1 unexpected \(stray\.weight\)"),
        ("mismatched", r"1 wrong in shape \(encoder\.final_layer_norm\.weight \[7\] instead of \[32\]"),
        ("truncated", "ends early"),
        ("no file", "holds no weights"),
        ("no config", r"no config\.json"),
        ("no tokenizer", "no tokenizer that can be read"),
    ],
)
def test_bad_weights(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], change: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load(broken_copy(folder, tmp_path, change))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_wans_own_file(
    folder: Path, encoder: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """Under Wan's names and without a config, the encoder answers as the one that transformers saved."""
    sizes = {name: encoder.model.config.to_dict()[name] for name in UMT5_XXL}
    monkeypatch.setattr("dummyforcing.checkpoints.text_encoder.UMT5_XXL", sizes)
    path = tmp_path / f"models_t5{suffix}"
    tensors = wan_umt5({name: tensor.contiguous() for name, tensor in encoder.model.state_dict().items()})
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    loaded = load_text_encoder(path, folder / "tokenizer", TEXT_LEN)
    assert torch.equal(loaded.encode("a red ball"), encoder.encode("a red ball"))
    del tensors["blocks.1.norm1.weight"]
    torch.save(tensors, tmp_path / "t.pth")
    with pytest.raises(UserError, match=r"1 missing \(encoder\.block\.1\.layer\.0\.layer_norm\.weight\)"):
        open_text_encoder(tmp_path / "t.pth")


def test_embedding_saved_under_both_names(folder: Path, encoder: TextEncoder, tmp_path: Path) -> None:
    copy = broken_copy(folder, tmp_path, "")
    tensors = load_file(copy / "text_encoder" / "model.safetensors")
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].clone()
    save_file(tensors, copy / "text_encoder" / "model.safetensors")
    assert torch.equal(load(copy).encode("a red ball"), encoder.encode("a red ball"))


def test_xxl_is_wans() -> None:
    with torch.device("meta"):
        model = UMT5EncoderModel(UMT5Config.from_dict(UMT5_XXL))
    config = model.config
    assert (config.relative_attention_num_buckets, config.relative_attention_max_distance) == (32, 128)
    assert (config.feed_forward_proj, config.layer_norm_epsilon) == ("gated-gelu", 1e-6)
    assert config.pad_token_id == 0
    assert len(list(model.parameters())) == 242
    assert sum(parameter.numel() for parameter in model.parameters()) == 5_680_910_336
    assert len(wan_umt5(model.state_dict())) == 242
