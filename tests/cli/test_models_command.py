"""`dummyforcing models ...`, as users call it."""

import re
import shutil
from pathlib import Path

import pytest

from dummyforcing.cli import main
from dummyforcing.presets.catalog import PUBLIC

PROMPT = "a red ball bounces on a green floor"


@pytest.mark.parametrize("args", [["models"], ["models", "list"]])
def test_list(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 0
    printed = capsys.readouterr().out
    for fact in (*PUBLIC, "tiny", "cc-by-nc-sa-4.0", "apache-2.0", "gdhe17/Self-Forcing"):
        assert fact in printed
    for fact in ("160x160, 4 steps", "native policy window:3,6", "Wan 14B", "LoRA models/lora.pt"):
        assert fact in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "show", "krea-realtime"]) == 0
    printed = capsys.readouterr().out
    for fact in ("krea/krea-realtime-video: krea-realtime-video-14b.safetensors", "Wan-AI/Wan2.1-T2V-14B"):
        assert fact in printed
    for fact in ("14.29 billion", "cc-by-nc-sa-4.0", "1000 750 500 250 0, shift 5", "recompute"):
        assert fact in printed
    assert re.search(r"transformer +│ +28\.6 │ +28\.6 │", printed)
    assert re.search(r"text encoder +│ +11\.4 │ +0\.0 │", printed)
    assert "24 GB card: does not fit" in printed
    assert "80 GB card: fits\n" in printed
    assert max(map(len, printed.splitlines())) <= 80
    assert main(["models", "show", "self-forcing", "--size", "1920x1088"]) == 0
    printed = capsys.readouterr().out
    assert "16 GB card: fits with --offload, decoded in " in printed
    assert re.search(r"40 GB card: fits, decoded in \d tiles", printed)


def test_show_what_a_request_needs(capsys: pytest.CaptureFixture[str]) -> None:
    totals = []
    for options in (["--policy", "dense"], ["--policy", "dummy"], ["--size", "416x240"], ["--frames", "9"]):
        assert main(["models", "show", "self-forcing", *options]) == 0
        totals.append(float(re.findall(r"total +│ +([\d.]+) │", capsys.readouterr().out)[0]))
    dense, dummy, small, short = totals
    assert dense > dummy > short > small
    assert main(["models", "show", "rolling-forcing"]) == 0
    assert "15 latent frames at once" in capsys.readouterr().out
    assert main(["models", "show", "self-forcing", "--policy", "nothing"]) == 2


def test_check(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "check", "tiny"]) == 0
    assert capsys.readouterr().out.count("OK") == 4
    assert main(["models", "check", str(model_folder / "vae")]) == 0
    assert "Wan VAE" in capsys.readouterr().out
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    shutil.rmtree(folder / "tokenizer" / "tokenizer.json", ignore_errors=True)
    (folder / "tokenizer" / "tokenizer.json").write_text("{")
    assert main(["models", "check", str(folder)]) == 2
    printed = capsys.readouterr()
    assert printed.out.count("OK") == 3
    assert "tokenizer: " in printed.out
    assert re.search(r"Error: 1 of the 4 parts of '.*' cannot be used; see above\.$", printed.err.strip())


def test_convert_and_use(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "mine"
    assert main(["models", "convert", str(model_folder), "-o", str(output)]) == 0
    printed = capsys.readouterr().out
    assert f"Wrote {output}/transformer/diffusion_pytorch_model.safetensors: " in printed
    assert f"--model {output}" in printed
    args = ["generate", PROMPT, "-o", str(tmp_path / "a.mp4"), "--model", str(output), "--frames", "9"]
    assert main(args) == 0
    assert main(["models", "convert", "tiny", "-o", str(output)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_options_of_generate(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The transformer of one folder with the rest of another."""
    args = ["generate", PROMPT, "-o", str(tmp_path / "a.mp4"), "--frames", "9", "--model", str(model_folder)]
    weights = str(model_folder / "transformer")
    assert main([*args, "--weights", weights, "--base", str(model_folder)]) == 0
    assert main([*args, "--lora", "nothing:1", "--lora", "more"]) == 2
    assert "no LoRA file nothing" in capsys.readouterr().err
    assert main([*args, "--base", "nothing"]) == 2
    assert "There is no folder nothing" in capsys.readouterr().err
