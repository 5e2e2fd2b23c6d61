"""`dummyforcing teacache ...` and `generate --teacache`, as users call them."""

from pathlib import Path

import pytest

from dummyforcing.cli import main
from dummyforcing.sampling.teacache import Calibration
from tests.conftest import write_model
from tests.terminal import believe_in_terminal

PROMPT = "a red ball bounces"


def test_calibrate_show_and_use(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    believe_in_terminal(monkeypatch)
    prompts, path = tmp_path / "prompts.txt", tmp_path / "table.json"
    prompts.write_text(f"{PROMPT}\na blue cube spins\n")
    model = ["--model", str(model_folder)]
    measured = ["--frames", "21", "--seeds", "2", "--error", "1e9", "--policy", "dummy"]
    assert main(["teacache", "calibrate", str(prompts), PROMPT, "-o", str(path), *model, *measured]) == 0
    table = Calibration.load(path)
    assert (table.prompts, table.seeds) == ((PROMPT, "a blue cube spins", PROMPT), (0, 1))
    assert table.steps == (1,)
    printed = capsys.readouterr()
    assert "12/12" in printed.err
    for fact in (
        "1.50x",
        f"{table.sets[0].error:.4f}",
        "6 videos",
        "policy dummy",
        "step 2 of 2, but not in the",
    ):
        assert fact in printed.out
    assert max(len(line) for line in printed.out.splitlines() if str(path) not in line) <= 80

    assert main(["teacache", "show", str(path)]) == 0
    assert capsys.readouterr().out == "".join(printed.out.splitlines(keepends=True)[:-1])
    assert main(["teacache", "show", f"{path}:1e-9"]) == 0
    assert "Within an error of 1e-09:\nTeaCache leaves out no step." in capsys.readouterr().out

    video = ["-o", str(tmp_path / "a.mp4"), *model, "--frames", "21"]
    for file, told in (
        (str(path), "leaves out step 2 of 2, but not in the first chunk."),
        (f"{path}:1e-9", "leaves out no step."),
    ):
        assert main(["generate", PROMPT, *video, "--teacache", file]) == 0
        assert f"TeaCache {told}" in capsys.readouterr().out


def test_the_bundled_model_brings_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["teacache"]) == 0
    printed = capsys.readouterr().out
    assert "Model 'tiny', policy dense, " in printed
    assert "2, 3 and 4" in printed


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for command, example in (
        ([], "--teacache shipped"),
        (["calibrate"], "dummyforcing teacache calibrate prompts.txt --model self-forcing"),
        (["show"], "dummyforcing teacache show shipped:0.3"),
    ):
        with pytest.raises(SystemExit, match="0"):
            main(["teacache", *command, "--help"])
        assert example in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "There are no prompts to measure with; give some"),
        (["none.txt"], "none.txt cannot be read"),
        ([PROMPT, "--seeds", "0"], "0 seeds make no video; take 1 or more (--seeds)."),
        ([PROMPT, "--frames", "9"], "no later chunks"),
        ([PROMPT, "--error", "0"], "take more than 0, such as 0.01 (--error)."),
        ([PROMPT, "-o", "table.txt"], "ends in .json"),
        ([PROMPT, "--model", "rolling-forcing"], "take a model of sampler 'block'"),
    ],
)
def test_bad_options(
    model_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    args: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    model = [] if "--model" in args else ["--model", str(model_folder)]
    assert main(["teacache", "calibrate", *args, *model]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_tables_that_do_not_fit(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path / "other", seed=1)
    path = str(tmp_path / "table.json")
    assert (
        main(["teacache", "calibrate", PROMPT, "-o", path, "--model", str(model_folder), "--frames", "21"])
        == 0
    )
    for args, message in (
        (["--model", str(tmp_path / "other"), "--teacache", path], "measured with model"),
        (["--teacache", path], "but model 'tiny' has 1000 750 500 250 with shift 3"),
        (["--model", str(model_folder), "--teacache", "shipped"], "ships no TeaCache table"),
        (["--teacache", f"{path}:x"], "write FILE:ERROR"),
    ):
        assert main(["generate", PROMPT, "-o", str(tmp_path / "a.mp4"), "--frames", "9", *args]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "a.mp4").exists()
