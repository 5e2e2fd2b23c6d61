"""NaN on the command line: exit code 2, a sentence, and no file; and the strength of LoRAs, printed."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dummyforcing.cli import main
from dummyforcing.presets.catalog import FOLDER
from dummyforcing.sampling.passes import Passes

PROMPT = "a red ball bounces on a green floor"


@pytest.fixture
def spoilt(model_folder: Path, tmp_path: Path) -> Path:
    """A model with one NaN in the last of its transformer's files."""
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    *_, file = sorted((folder / "transformer").glob("*.safetensors"))
    tensors = load_file(file)
    name = next(name for name in sorted(tensors) if name.endswith("weight"))
    tensors[name].view(-1)[7] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    return folder


def test_weights(spoilt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, plan = tmp_path / "o.mp4", tmp_path / "p.json"
    args = [
        "generate",
        PROMPT,
        "--model",
        str(spoilt),
        "--frames",
        "33",
        "-o",
        str(out),
        "--save-plan",
        str(plan),
    ]
    assert main(args) == 2
    error = capsys.readouterr().err
    assert re.search(
        r"Error: Tensor \S+\.weight of \S+\.safetensors is damaged: 1 of [\d,]+ numbers is NaN", error
    )
    assert "Traceback" not in error
    for command in (
        ["heads", PROMPT, "-o", str(tmp_path / "h.png")],
        ["teacache", "calibrate", "-o", str(plan)],
    ):
        assert main([*command, "--model", str(spoilt)]) == 2
    assert main(["models", "convert", str(spoilt), "-o", str(tmp_path / "new")]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("is_old", [True, False])
def test_a_chunk(
    is_old: bool,
    model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The chunks before it are sound, and yet nothing is left of the video; an older one stays."""
    whole = Passes.velocity

    def velocity(self: Passes, *args: Any) -> torch.Tensor:
        return whole(self, *args) + (float("nan") if self.cache.frames >= 6 else 0)

    monkeypatch.setattr(Passes, "velocity", velocity)
    out, plan, sheet = tmp_path / "o.mp4", tmp_path / "p.json", tmp_path / "s.png"
    if is_old:
        out.write_bytes(b"old")
    args = ["generate", PROMPT, "--model", str(model_folder), "--frames", "45", "-o", str(out)]
    assert main([*args, "--save-plan", str(plan), "--sheet", str(sheet), "--compare"]) == 2
    assert "Error: Chunk 2 of the video (latent frames 6 to 8) cannot be shown" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == (["o.mp4"] if is_old else [])
    assert not is_old or out.read_bytes() == b"old"


def test_a_deep_check(spoilt: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "check", str(spoilt)]) == 0
    assert main(["models", "check", str(model_folder), "--deep"]) == 0
    capsys.readouterr()
    assert main(["models", "check", str(spoilt), "--deep"]) == 2
    printed = capsys.readouterr()
    assert printed.out.count("OK") == 3
    assert re.search(
        r"^transformer: Tensor \S+ of \S+ is damaged: 1 of [\d,]+ numbers is NaN", printed.out, re.M
    )
    assert "1 of the 4 parts" in printed.err
    assert main(["models", "check", str(spoilt / "transformer"), "--deep"]) == 2


# --- the strength of LoRAs ---------------------------------------------------------------------------------

LAYER, OTHER = "blocks.0.self_attn.q", "blocks.2.ffn.0"


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """Of PEFT, in its folder, for the sizes of the bundled model."""
    folder = tmp_path / "style"
    folder.mkdir()
    config = json.loads((FOLDER / "tiny" / "transformer" / "config.json").read_text())
    dim, hidden = config["dim"], config["ffn_dim"]
    sizes = {LAYER: (dim, dim), OTHER: (hidden, dim)}
    tensors = {}
    for layer, (rows, columns) in sizes.items():
        tensors[f"base_model.model.{layer}.lora_A.weight"] = torch.zeros(4, columns)
        tensors[f"base_model.model.{layer}.lora_B.weight"] = torch.zeros(rows, 4)
    save_file(tensors, folder / "adapter_model.safetensors")
    about = {"r": 4, "lora_alpha": 8, "use_rslora": True, "alpha_pattern": {OTHER: 1}}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return folder


FACTS = [
    f"  1 layer ({LAYER}) of rank 4, strength 4 (lora_alpha 8, rank-stabilised, in adapter_config.json)",
    f"  1 layer ({OTHER}) of rank 4, strength 0.5 (alpha_pattern 1, rank-stabilised, in adapter_config.json)",
]


@pytest.mark.parametrize("is_folder", [True, False])
def test_strengths_are_printed(is_folder: bool, lora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = lora if is_folder else lora / "adapter_model.safetensors"
    assert main(["models", "check", str(path), "--deep"]) == 0
    printed = capsys.readouterr().out
    assert "OK" in printed
    assert printed.splitlines()[-3:] == [f"LoRA for model tiny: {path}", *FACTS]


def test_strengths_of_a_models_loras(lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own.safetensors"
    layer = "blocks.0.self_attn.q"
    matrices = {"lora_down": torch.zeros(3, 384), "lora_up": torch.zeros(384, 3)}
    save_file({f"{layer}.{part}.weight": matrix for part, matrix in matrices.items()}, own)
    preset = tmp_path / "mine.toml"
    preset.write_text(f'like = "tiny"\nsource = {{ file = "{FOLDER}/tiny/transformer", lora = "{own}" }}\n')
    assert main(["models", "check", str(preset), "--lora", f"{lora}:0.5"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("OK") == 6
    times = [fact.replace(" (lora", ", times 0.5 as asked for (lora") for fact in FACTS[:1]]
    assert set(times) <= set(printed.splitlines())
    assert "  1 layer of rank 3, strength 1 (no alpha, so it is the rank)" in printed.splitlines()


def test_a_lora_that_cannot_be_used(lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = lora / "adapter_config.json"
    config.write_text(json.dumps({"r": 8, "lora_alpha": 8}))
    assert main(["models", "check", str(lora)]) == 2
    assert "has rank 8, but its matrices have rank 4" in capsys.readouterr().err
    assert main(["models", "check", "tiny", "--lora", str(lora)]) == 2
    printed = capsys.readouterr()
    assert "LoRA: " in printed.out
    assert "2 of the 5 parts of 'tiny' cannot be used" in printed.err
    args = ["generate", PROMPT, "--lora", str(lora), "--frames", "9", "-o", str(tmp_path / "o.mp4")]
    assert main(args) == 2
    config.write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    for scale in ("nan", "inf"):
        assert main([*args[:3], f"{lora}:{scale}", *args[4:]]) == 2
        assert f"is {scale}, no finite number" in capsys.readouterr().err
    assert not (tmp_path / "o.mp4").exists()
