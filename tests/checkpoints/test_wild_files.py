"""What people have loads, or is refused in one sentence, the same wherever they give it."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dummyforcing.checkpoints.convert import check_file
from dummyforcing.checkpoints.model_files import ModelFiles
from dummyforcing.checkpoints.quantised import SCALES
from dummyforcing.checkpoints.tensor_files import open_tensors, read_notes
from dummyforcing.checkpoints.text_encoder import open_text_encoder
from dummyforcing.checkpoints.transformer import open_transformer
from dummyforcing.checkpoints.weights import fill
from dummyforcing.cli import main
from dummyforcing.cli.flags import in_flags
from dummyforcing.errors import UserError
from tests import wild
from tests.layouts import SMALL, random_state
from tests.wild import PARTS, WILD, Wild, comfy_scaled, safe, write

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "models.md"
LOADED = [(one, name) for one in WILD for name in one.files if not one.remedy]
REFUSED = [(one, name) for one in WILD for name in one.files if one.remedy]
EXACT = [(one, name) for one, name in LOADED if not one.what.startswith("float8")]


def label(value: object) -> str:
    return value.what[:30] if isinstance(value, Wild) else str(value)


@pytest.mark.parametrize(("one", "name"), EXACT, ids=label)
def test_loads(one: Wild, name: str, tmp_path: Path) -> None:
    path, state = write(one, name, tmp_path)
    loaded = fill(*open_transformer(path, SMALL, "generator_ema"), "cpu", torch.float32).state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(weight, state[n]) for n, weight in loaded.items())
    assert not check_file(path, deep=True).problem
    with pytest.raises(UserError, match=r"holds no preset\.json that says how to run it; name the model"):
        ModelFiles.open(path)


def float8(byte: int) -> float:
    """The number of a byte in E4M3, by its definition: sign, four bits of exponent, three of mantissa."""
    sign, exponent, mantissa = 1 - 2 * (byte >> 7), (byte >> 3) & 15, byte & 7
    if exponent == 0:
        return sign * mantissa / 8 * 2.0**-6
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "name",
    ["comfy.safetensors", "comfy_quant.safetensors", "rows.safetensors", "parts.pt", "one.safetensors"],
)
def test_scales_of_float8(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Each number is the byte's times its scale, and near the one that it was before."""
    one = next(one for one in WILD if name in one.files)
    path, state = write(one, name, tmp_path)
    loaded = fill(*open_transformer(path, SMALL), "cpu", dtype).state_dict()
    layer = "blocks.1.ffn.2"
    content = torch.load(path) if name.endswith(".pt") else load_file(path)
    content = {n.removeprefix("model.diffusion_model."): tensor for n, tensor in content.items()}
    scales = {n.rpartition(".")[0]: tensor for n, tensor in content.items() if n.endswith(SCALES)}
    stored, scale = content[f"{layer}.weight"], scales[layer]
    rows, columns = stored.shape
    parts = scale.reshape(-1, 1).expand(-1, rows * columns // scale.numel()).reshape(rows, columns)
    for row, column in ((0, 0), (7, 5), (47, 95), (20, 16), (20, 15)):
        number = float8(int(stored[row, column].view(torch.uint8))) * float(parts[row, column])
        weight = torch.tensor(number, dtype=torch.float32).to(dtype)
        torch.testing.assert_close(loaded[f"{layer}.weight"][row, column], weight, rtol=1e-6, atol=0)
    for n, weight in state.items():  # a mantissa of three bits; small numbers have less of it
        torch.testing.assert_close(loaded[n].float(), weight, rtol=0.07, atol=float(weight.abs().max()) / 400)
    report = check_file(path, deep=True)
    assert (report.problem, report.tensors, report.dtype) == ("", len(state), "float8_e4m3fn")


@pytest.mark.parametrize("name", ["e4m3.safetensors", "e5m2.pt"])
def test_float8_without_scales(name: str, tmp_path: Path) -> None:
    one = next(one for one in WILD if name in one.files)
    path, state = write(one, name, tmp_path)
    loaded = fill(*open_transformer(path, SMALL), "cpu", torch.float32).state_dict()
    kind = wild.E4M3 if name.startswith("e4") else wild.E5M2
    assert all(torch.equal(loaded[n], weight.to(kind).float()) for n, weight in state.items())
    assert check_file(path, deep=True).dtype == str(kind).removeprefix("torch.")


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (
            torch.ones(5),
            r"scale blocks\.0\.ffn\.0\.scale_weight is \[5\], and its weight \[96, 48\]; take the",
        ),
        (torch.ones(96, 7), r"is \[96, 7\], and its weight \[96, 48\]"),
        (
            torch.ones(96, 2, dtype=torch.uint8),
            "holds weights in float8_e4m3fn with scales in U8; take the model",
        ),
    ],
)
def test_scales_that_do_not_fit(scale: torch.Tensor, message: str, tmp_path: Path) -> None:
    """Such as MXFP8's, which are exponents in bytes, in an order of their own."""
    state = comfy_scaled(random_state()) | {"blocks.0.ffn.0.scale_weight": scale}
    safe()(state, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=message):
        open_transformer(tmp_path / "a.safetensors", SMALL)


def test_a_scale_that_is_not_finite(tmp_path: Path) -> None:
    state = comfy_scaled(random_state()) | {"blocks.0.ffn.0.scale_weight": torch.tensor(float("nan"))}
    safe()(state, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"Tensor blocks\.0\.ffn\.0\.weight of .* is damaged"):
        fill(*open_transformer(tmp_path / "a.safetensors", SMALL), "cpu", torch.float32)


def test_comfys_text_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Float8 with scales, and the tokenizer's bytes among the weights."""
    from transformers import UMT5Config, UMT5EncoderModel

    sizes = {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    monkeypatch.setattr("dummyforcing.checkpoints.text_encoder.UMT5_XXL", sizes)
    torch.manual_seed(0)
    state = UMT5EncoderModel(UMT5Config(**sizes)).state_dict()
    state.pop("encoder.embed_tokens.weight")
    query = "encoder.block.0.layer.0.SelfAttention.q"
    stored = {
        **state,
        "spiece_model": torch.zeros(9, dtype=torch.uint8),
        "scaled_fp8": torch.zeros(2).to(wild.E4M3),
    }
    stored |= {f"{query}.weight": (state[f"{query}.weight"] / 0.01).to(wild.E4M3)}
    safe()(stored | {f"{query}.scale_weight": torch.tensor(0.01)}, tmp_path / "umt5_fp8_scaled.safetensors")
    loaded = fill(
        *open_text_encoder(tmp_path / "umt5_fp8_scaled.safetensors"), "cpu", torch.float32
    ).state_dict()
    assert torch.equal(loaded[f"{query}.weight"], stored[f"{query}.weight"].float() * 0.01)
    assert torch.equal(loaded["shared.weight"], state["shared.weight"])


@pytest.mark.parametrize(("one", "name"), REFUSED, ids=label)
def test_refused_in_a_sentence(
    one: Wild, name: str, tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same by `models check`, as a model, as its weights, and in Python."""
    path, _ = write(one, name, tmp_path)
    weights = ["--model", "self-forcing", "--base", str(model_folder), "--weights", str(path)]
    said = []
    commands = [["models", "check", str(path)], ["generate", "a ball", *weights]]
    if path.is_file() or list(path.glob("*.safetensors")):
        commands.append(["generate", "a ball", "--model", str(path)])
    for command in commands:
        assert main(command) == 2
        said.append(capsys.readouterr().err.removeprefix("Error: ").strip())
    with pytest.raises(UserError, match=one.problem) as caught:
        open_transformer(path, SMALL, "generator_ema")
    text = str(caught.value)
    assert caught.value.remedy.startswith(one.remedy)
    assert str(path) in text
    assert "\n" not in text
    assert "\x1b" not in text
    assert len(text.replace(str(path), "")) < 400
    assert set(said) == {in_flags(text)}
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("one", PARTS, ids=label)
def test_parts_given_as_the_transformer(one: Wild, tmp_path: Path) -> None:
    (name,) = one.files
    path, _ = write(one, name, tmp_path)
    for give in (ModelFiles.open, lambda path: open_transformer(path, SMALL)):
        with pytest.raises(UserError, match=one.problem) as caught:
            give(path)
        assert caught.value.remedy.startswith(one.remedy)


def test_a_file_that_is_not_there_yet(tmp_path: Path) -> None:
    (tmp_path / "a.pt.crdownload").write_bytes(b"x")
    message = r"There is no file .*a\.pt yet, only a\.pt\.crdownload; let the download finish"
    with pytest.raises(UserError, match=message):
        open_tensors(tmp_path / "a.pt")
    with pytest.raises(UserError, match=message):
        ModelFiles.open("self-forcing", weights=tmp_path / "a.pt")


def test_a_file_as_base(tmp_path: Path, model_folder: Path) -> None:
    (tmp_path / "vae.pth").write_bytes(b"x")
    with pytest.raises(UserError, match=r"vae\.pth is a file; give the folder or the Hub repository"):
        ModelFiles.open("self-forcing", weights=model_folder / "transformer", base=tmp_path / "vae.pth")


def test_two_kinds_of_weights_in_a_file(tmp_path: Path) -> None:
    torch.save({"model": random_state(), "ema": random_state(seed=1)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a\.pt holds model and ema; name one of them as the preset's key"):
        open_transformer(tmp_path / "a.pt", SMALL)
    loaded = fill(*open_transformer(tmp_path / "a.pt", SMALL, "ema"), "cpu", torch.float32).state_dict()
    assert torch.equal(loaded["head.head.weight"], random_state(seed=1)["head.head.weight"])


def test_settings_called_model_are_no_weights(tmp_path: Path) -> None:
    torch.save({"model": {"dim": 48}, "state_dict": random_state()}, tmp_path / "a.pt")
    assert len(open_tensors(tmp_path / "a.pt")) == len(random_state())


def test_notes_of_safetensors_by_another_name(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "A.SAFETENSORS.bin", metadata={"format": "pt"})
    assert read_notes(tmp_path / "A.SAFETENSORS.bin") == {"format": "pt"}


@pytest.mark.parametrize(("channels", "out"), [(48, 48), (36, 16)])
def test_other_latents_of_a_model_of_ones_own(channels: int, out: int, tmp_path: Path) -> None:
    """Its config says so, and it makes what it takes; one of pictures and latents does not."""
    config = replace(SMALL, in_dim=channels, out_dim=out)
    safe(wild.channels(channels, out))(random_state(), tmp_path / "a.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(vars(config)))
    if channels == out:
        assert check_file(tmp_path / "a.safetensors", deep=True).part == "Wan transformer, config.json"
        return
    with pytest.raises(UserError, match="is an image-to-video transformer, with 36 channels of input; take"):
        check_file(tmp_path / "a.safetensors")


def test_an_unknown_width_is_told(tmp_path: Path) -> None:
    path, _ = write(WILD[0], "flat.pt", tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"is a Wan transformer of width 48; put its config\.json beside it"):
        check_file(path)


def test_the_guide_has_every_row() -> None:
    """Its table says what happens to each kind of file, in the words of the error."""
    rows = dict(re.findall(r"^\| (.+?) \| (.+?) \|$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE))
    for one in [*WILD, *PARTS]:
        happens = "loads" if not one.remedy else in_flags(one.remedy).rstrip(', "')
        assert happens in rows[one.what].replace("`", ""), one.what
