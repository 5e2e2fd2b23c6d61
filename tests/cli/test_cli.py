import json
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dummyforcing.analysis.atlas import Atlas
from dummyforcing.cli import DESCRIPTION, main
from dummyforcing.cli.generate import generate
from dummyforcing.cli.heads import heads
from dummyforcing.errors import UserError
from dummyforcing.evaluation.results import provenance
from dummyforcing.media.montage import CAPTION_HEIGHT
from dummyforcing.method.plan import Plan
from dummyforcing.pipeline import request
from dummyforcing.pipeline.pipeline import load
from dummyforcing.presets.catalog import bundled_folders
from dummyforcing.presets.preset import SIZES
from tests.conftest import write_model
from tests.terminal import OnTerminal, believe_in_terminal

PROMPT = "a red ball bounces on a green floor"


def frame_count(path: Path) -> int:
    """Decode a whole video."""
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "dummyforcing", *map(str, args)]


@pytest.fixture
def model(model_folder: Path) -> str:
    return str(model_folder)


def test_generate(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    believe_in_terminal(monkeypatch)
    output = tmp_path / "ball.mp4"
    assert main(["generate", PROMPT, "-o", str(output), "--model", model, "--frames", "21"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["ball.mp4"]
    assert frame_count(output) == 21
    printed = capsys.readouterr()
    for title in ("pixel frames", "first frame", "FPS without", "FPS with VAE", "cache", "dummy", "21", "MB"):
        assert title in printed.out
    assert "Against" not in printed.out
    assert "21/21" in printed.err
    assert "FPS" in printed.err


def test_compare_and_plans(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, plan = tmp_path / "a.mp4", tmp_path / "plan.json"
    options = ["--model", model, "--seconds", "2", "--size", "48x32", "--save-plan", str(plan), "--compare"]
    assert main(["generate", PROMPT, "-o", str(output), *options]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4", "a-compare.mp4", "plan.json"}
    assert frame_count(output) == frame_count(tmp_path / "a-compare.mp4") == 33
    with av.open(str(tmp_path / "a-compare.mp4")) as container:
        assert container.streams.video[0].width > 2 * 48
    printed = capsys.readouterr().out
    for fact in ("dummy", "dense", "speed-up", "smaller; PSNR"):
        assert fact in printed
    assert Plan.load(plan).counts["dummy"] == 6

    again = ["--model", model, "--frames", "9", "--plan", str(plan), "--policy", "dense"]
    assert main(["generate", PROMPT, "-o", str(tmp_path / "b.mp4"), *again]) == 0
    assert "dummy" in capsys.readouterr().out


def test_dense_against_itself(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", model, "--frames", "9", "--policy", "dense", "--compare"]
    assert main(["generate", PROMPT, "-o", str(tmp_path / "a.mp4"), *options]) == 0
    assert "cache 1.00x smaller; PSNR inf dB" in capsys.readouterr().out


def test_unknown_words_are_a_warning(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["-o", str(tmp_path / "a.mp4"), "--model", model, "--frames", "9", "--compare"]
    assert main(["generate", "a purple ball", *options]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "purple" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith("Warning: Model 'random' does not know the word purple; it knows a, ball,")


def test_a_story_and_its_sheet(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    story, told, same = (tmp_path / name for name in ("story.yaml", "a.mp4", "b.mp4"))
    other = "a blue cube spins"
    story.write_text(f"seconds: 2\nfade: 2\nscenes: [{{prompt: {PROMPT}}}, {{at: 1, prompt: {other}}}]\n")
    sheet = ["--sheet", str(tmp_path / "a.png")]
    assert main(["generate", "--story", str(story), "-o", str(told), "--model", model, *sheet]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == [f"  0.0 s  {PROMPT}", f"  1.3 s  {other}"]  # with the chunk of pixel frame 21
    assert Image.open(tmp_path / "a.png").size == (8 * 48, 2 * (32 + 2 * CAPTION_HEIGHT))

    options = ["--model", model, "--seconds", "2", "--switch", f"1:{other}", "--fade", "2"]
    assert main(["generate", PROMPT, "-o", str(same), *options]) == 0
    assert same.read_bytes() == told.read_bytes()


def test_the_sheet_of_a_video_with_one_prompt(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["-o", str(tmp_path / "a.mp4"), "--model", model, "--frames", "21"]
    assert main(["generate", PROMPT, *options, "--sheet", str(tmp_path / "a.png")]) == 0
    assert Image.open(tmp_path / "a.png").size == (8 * 48, 32 + 2 * CAPTION_HEIGHT)
    assert "0.0 s" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", [["generate", PROMPT], ["heads", PROMPT], ["eval", "p.txt"], ["models", "show"]]
)
def test_sizes_by_name(
    command: list[str], model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The name reaches the request; nothing that large is made here."""
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text(PROMPT)
    asked: list[tuple[int, int]] = []
    check = request.check_request

    def noting(*args: Any) -> request.Request:
        asked.append(check(*args).size)
        raise UserError("Enough is known", "stop here")

    monkeypatch.setattr(request, "check_request", noting)
    own = [model] if command[0] == "models" else ["--model", model]
    for name, size in {**SIZES, "640x352": (352, 640)}.items():
        assert main([*command, *own, "--size", name]) == 2
        assert asked.pop() == size


def test_teacache_is_told(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["-o", str(tmp_path / "a.mp4"), "--model", model, "--frames", "9"]
    for threshold, told in (("1e9", "leaves out step 2 of 2."), ("1e-9", "leaves out no step.")):
        assert main(["generate", PROMPT, *options, "--teacache", threshold]) == 0
        assert f"TeaCache {told}" in capsys.readouterr().out


def test_a_long_video_is_told_how_it_fared(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["-o", str(tmp_path / "a.mp4"), "--model", model, "--seconds"]
    pattern = r"At the end of dummy: drift \d+\.\d gray levels since the first second, repetition 0\.\d\d, mo"
    for seconds in ("20", "5"):
        assert main(["generate", PROMPT, *options, seconds]) == 0
        assert bool(re.search(pattern, capsys.readouterr().out)) == (seconds == "20")


def test_heads_classified_again_are_told(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["-o", str(tmp_path / "a.mp4"), "--model", model, "--frames", str(9 + 12 * 43)]
    for tolerance, told in (
        ("0", r"Heads classified again at 32\.\d s: \d of 12 have another role\."),
        ("1", r"No heads were classified again: where they look has stayed within the tolerance\."),
    ):
        assert main(["generate", PROMPT, *options, "--reclassify", tolerance]) == 0
        assert re.search(told, capsys.readouterr().out)


def test_heads(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture, plan = tmp_path / "heads.png", tmp_path / "plan.json"
    options = ["-o", str(picture), "--model", model, "--dummy-fraction", "0.25", "--save-plan", str(plan)]
    assert main(["heads", PROMPT, *options]) == 0
    found = capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "dummy: 3 heads, see the last frame" in found
    assert len([line for line in found.splitlines() if line.startswith("layer")]) == 3

    picture.unlink()
    assert main(["heads", "--plan", str(plan), "-o", str(picture)]) == 0
    assert capsys.readouterr().out == found.replace(f"Wrote {plan}: {plan.stat().st_size} bytes.\n", "")
    assert picture.exists()


def test_heads_atlas(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    believe_in_terminal(monkeypatch)
    prompts, report, kept, plan = (tmp_path / name for name in ("p.txt", "a.html", "a.npz", "plan.json"))
    prompts.write_text(f"{PROMPT}\n\n  a blue cube spins \n")
    options = ["--model", model, "--prompts", str(prompts), "--steps", "all", "--chunks", "all"]
    files = ["-o", str(report), "--save", str(kept), "--save-plan", str(plan)]
    assert main(["heads", *options, "--frames", "33", "--seeds", "2", "--seed", "4", *files]) == 0
    printed = capsys.readouterr()
    assert "12/12" in printed.err
    assert "4 videos under 24 conditions" in printed.out
    assert "dummy: 6 heads, see the last frame" in printed.out
    assert {path.name for path in tmp_path.iterdir()} == {"p.txt", "a.html", "a.npz", "plan.json"}
    atlas = Atlas.load(kept)
    assert atlas.settings.prompts == (PROMPT, "a blue cube spins")
    assert (atlas.settings.seeds, atlas.settings.chunks, atlas.settings.calls) == (
        (4, 5),
        (1, 2),
        (0, 1, None),
    )
    assert atlas.settings.made == provenance(torch.device("cpu"))
    found = Plan.load(plan)
    assert found.chunk is None
    assert "a blue cube spins" in report.read_text()

    again = ["heads", "--atlas", str(kept), "--model", model]
    assert main([*again, "-o", str(tmp_path / "b.html"), "--save-plan", str(tmp_path / "same.json")]) == 0
    assert Plan.load(tmp_path / "same.json") == found
    assert (tmp_path / "b.html").read_text() == report.read_text()
    capsys.readouterr()
    assert (
        main([*again, "-o", str(tmp_path / "b.png"), "--policy", "official", "--dummy-fraction", "0.25"]) == 0
    )
    assert "dummy: 3 heads, see the last frame" in capsys.readouterr().out
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


def test_heads_atlas_of_a_part(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--model", model, "--steps", "1,commit", "--chunks", "2", "--frames", "33", "--save", "a.npz"]
    assert main(["heads", PROMPT, *options]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"a.npz", "heads.html"}
    settings = Atlas.load("a.npz").settings
    assert (settings.prompts, settings.chunks, settings.calls) == ((PROMPT,), (2,), (1, None))


def test_shipped_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["heads", "--plan", "shipped", "-o", str(tmp_path / "h.png")]) == 0
    assert "dummy: 48 heads" in capsys.readouterr().out
    options = ["-o", str(tmp_path / "a.mp4"), "--frames", "9", "--plan", "shipped"]
    assert main(["generate", PROMPT, *options, "--save-plan", str(tmp_path / "p.json")]) == 0
    assert Plan.load(tmp_path / "p.json") == Plan.load(bundled_folders()["tiny"] / "plan.json")


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["generate"],
        ["heads"],
        ["heads", "import"],
        ["heads", "calibrate"],
        ["eval"],
        ["bench"],
        ["models"],
        *(["models", c] for c in ("show", "check", "convert")),
    ],
)
def test_help_is_fast_and_teaches(args: list[str]) -> None:
    code = "import sys\nfrom dummyforcing.cli import main\ntry:\n    main(sys.argv[1:])\nfinally:\n"
    code += "    print([n for n in ('torch', 'rich', 'numpy', 'diffusers') if n in sys.modules])"
    run = [sys.executable, "-c", code, *args, "--help"]
    result = subprocess.run(run, capture_output=True, text=True, check=True)
    assert result.stdout.endswith("[]\n")
    assert f"dummyforcing {' '.join(args or ['generate'])} " in result.stdout
    if args == ["generate"]:
        for flag in (
            "model",
            "weights",
            "base",
            "lora",
            "frames",
            "seconds",
            "size",
            "seed",
            "policy",
            "plan",
        ):
            assert f"--{flag} " in result.stdout
        for flag in ("dummy-fraction", "save-plan", "compare", "device", "dtype", "output"):
            assert f"--{flag} " in result.stdout


def test_examples_of_the_help_use_known_words() -> None:
    """The bundled model understands every prompt that the help shows."""
    text = DESCRIPTION + str(generate.__doc__) + str(heads.__doc__)
    prompts = re.findall(r"dummyforcing (?:generate|heads) \"(.*?)\"", text)
    assert len(prompts) >= 5
    config = json.loads((bundled_folders()["tiny"] / "tokenizer" / "tokenizer_config.json").read_text())
    assert {word for prompt in prompts for word in prompt.split()} <= set(config["words"])


# Bad input: one sentence, exit code 2, and nothing is left behind.


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Run a command that must be refused and give its message."""

    def run(*args: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        assert main([str(arg) for arg in args]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert sorted(tmp_path.rglob("*")) == before
        message = printed.err.strip().splitlines()[-1]
        assert message.startswith("Error: ")
        assert message.endswith(".")
        return message

    return run


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([""], "prompt is empty"),
        ([" \n"], "prompt is empty"),
        ([PROMPT, "--size", "100x64"], "nearest is 96x64"),
        ([PROMPT, "--size", "big"], "take 480p, 720p, 1080p, or width x height such as 832x480"),
        ([], "either a prompt or a story; give a prompt, or --story"),
        ([PROMPT, "--story", "a.yaml"], "either a prompt or a story; give a prompt, or --story"),
        (["--story", "nowhere.yaml"], "nowhere.yaml cannot be read"),
        ([PROMPT, "--switch", "1:a blue cube", "--switch", "1.1:a red cube"], "in the same chunk"),
        ([PROMPT, "--sheet", "a.jpg"], "ends in .png"),
        *(
            (["--story", "a.yaml", *given], "leave out --frames, --seconds, --switch, --fade")
            for given in (["--frames", "81"], ["--seconds", "5"], ["--switch", "2:a"], ["--fade", "0"])
        ),
        ([PROMPT, "--size", "999984x999984"], "GB of memory"),
        ([PROMPT, "--frames", "80"], "take 69 or 81"),
        ([PROMPT, "--frames", "81", "--seconds", "5"], "give one of them"),
        ([PROMPT, "--seconds", "-1"], "take more than 0"),
        (
            [PROMPT, "--policy", "sparse"],
            "take dense, window, keyframes, dummy, anchored, long, official, native",
        ),
        ([PROMPT, "--policy", "window:1"], "window:"),
        ([PROMPT, "--policy", "dense", "--dummy-fraction", "0.5"], "has no dummy heads"),
        (
            [PROMPT, "--dummy-fraction", "2"],
            "--dummy-fraction 2.0 is out of range; take 0 or more and 1 at most.",
        ),
        ([PROMPT, "--plan", "nowhere.json"], "nowhere.json cannot be read"),
        ([PROMPT, "--seed", "-3"], "out of range"),
        ([PROMPT, "--teacache", "0"], "take a number above 0"),
        ([PROMPT, "--reclassify", "2"], "--reclassify 2.0 is out of range; take 0 or more and 1 at most."),
        ([PROMPT, "--reclassify", "0.1", "--policy", "dense"], "take policy dummy, or no guard"),
    ],
)
def test_bad_options(refused, model: str, tmp_path: Path, args: list[str], message: str) -> None:
    assert message in refused("generate", *args, "-o", tmp_path / "a.mp4", "--model", model)


def test_unknown_models(refused, tmp_path: Path) -> None:
    message = refused("generate", PROMPT, "-o", tmp_path / "a.mp4", "--model", "sora")
    assert "no model or folder 'sora'; take tiny, self-forcing, " in message
    assert "nearest is 'causvid'" in refused(
        "generate", PROMPT, "-o", tmp_path / "a.mp4", "--model", "causvit"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(refused, model: str, tmp_path: Path) -> None:
    args = ("generate", PROMPT, "-o", tmp_path / "a.mp4", "--model", model, "--device", "cuda")
    assert "no GPU 'cuda' that torch can use" in refused(*args)


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "vae"])
def test_damaged_weights(refused, model: str, tmp_path: Path, part: str) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    args = ("generate", PROMPT, "-o", tmp_path / "a.mp4", "--model", folder)
    weights = next((folder / part).glob("*.safetensors"))
    tensors = load_file(weights)
    name = sorted(tensors)[0]

    save_file({other: tensor for other, tensor in tensors.items() if other != name}, weights)
    message = refused(*args)
    assert "missing" in message
    assert name in message

    save_file(tensors | {name: torch.zeros(2, 3, 5)}, weights)
    assert name in refused(*args)

    save_file(tensors, weights)
    weights.write_bytes(weights.read_bytes()[:-50])
    assert weights.name in refused(*args)
    weights.unlink()
    assert part in refused(*args)


def test_plan_of_another_model(refused, model: str, tmp_path: Path) -> None:
    write_model(tmp_path / "other", seed=1)
    plan = tmp_path / "plan.json"
    load(tmp_path / "other", device="cpu").generate(PROMPT, num_frames=21).plan.save(plan)
    refused_args = ("generate", PROMPT, "-o", tmp_path / "a.mp4", "--model", model, "--plan", plan)
    assert "made with model" in refused(*refused_args)
    plan.write_text("{}")
    assert "is not a head plan" in refused(*refused_args)


@pytest.mark.parametrize("option", ["--output", "--save-plan"])
def test_output_that_cannot_be_written(refused, tmp_path: Path, option: str) -> None:
    """Found out before the model, which does not exist here, is looked for."""
    suffix = ".mp4" if option == "--output" else ".json"
    args = ["generate", PROMPT, "--model", "nothing", "--output", tmp_path / "ok.mp4", option]
    assert "does not exist" in refused(*args, tmp_path / "no" / f"a{suffix}")
    assert f"ends in {suffix}" in refused(*args, tmp_path / "a.gif")
    (tmp_path / f"folder{suffix}").mkdir()
    assert "is a folder" in refused(*args, tmp_path / f"folder{suffix}")
    if Path("/proc").is_dir():
        assert "annot write /proc/a" in refused(*args, f"/proc/a{suffix}")


def test_bad_atlas_options(refused, model: str, tmp_path: Path) -> None:
    prompts, report = tmp_path / "p.txt", tmp_path / "a.html"
    for content, message in ((b"", "holds no prompts"), (b"\xff\xfea", "are no text")):
        prompts.write_bytes(content)
        assert message in refused("heads", "--prompts", prompts, "-o", report)
    prompts.write_text(PROMPT)
    source = ("heads", "--prompts", prompts, "--model", model, "-o", report)
    for options, message in (
        (["--steps", "first"], "write all, or a list such as 1,3,commit"),
        (["--chunks", "1,,2"], "write all, or a list such as 1,3."),
        (["--steps", "7"], "no denoising step 7 to watch; there are 0 to 1"),
        (["--chunks", "0"], "no chunk 0 to watch; there are 1 to 6"),
        (["--seeds", "0"], "take 1 or more"),
        (["--policy", "dense"], "does not classify heads"),
        (["--save", tmp_path / "a.zip"], "ends in .npz"),
    ):
        assert message in refused(*source, *options)
    assert "cannot be read" in refused("heads", "--prompts", tmp_path / "none.txt")
    assert "cannot be read" in refused("heads", "--atlas", tmp_path / "none.npz", "-o", report)
    assert "is not an atlas" in refused("heads", "--atlas", prompts, "-o", report)
    assert "as .png only" in refused("heads", "--plan", "shipped", "-o", report)
    assert "ships no head plan" in refused(
        "heads", "--plan", "shipped", "--model", model, "-o", tmp_path / "a.png"
    )


@pytest.mark.slow
def test_ctrl_c_leaves_no_atlas(model: str, tmp_path: Path) -> None:
    files = ("-o", tmp_path / "a.html", "--save", tmp_path / "a.npz", "--save-plan", tmp_path / "p.json")
    run = OnTerminal(command("heads", PROMPT, "--model", model, "--frames", 9 + 12 * 50, *files))
    run.wait_for(r" [1-9]\d*/51 ")
    run.process.send_signal(signal.SIGINT)
    code, _, shown = run.finish()
    assert code == 130
    assert shown.rstrip().endswith("Interrupted.")
    assert list(tmp_path.iterdir()) == []


def test_heads_needs_one_source(refused, tmp_path: Path) -> None:
    for sources in ([], [PROMPT, "--plan", "p.json"], [PROMPT, "--atlas", "a.npz"]):
        message = refused("heads", *sources, "-o", tmp_path / "h.png")
        assert "too little or too much to show; give a prompt or --prompts, to watch the heads" in message
        assert "--plan, to show a head plan, or --atlas, to show measurements." in message
    assert "ends in .png or .html" in refused("heads", PROMPT, "-o", tmp_path / "h.pdf")


def test_plan_of_a_video_without_one(refused, model: str, tmp_path: Path) -> None:
    args = ("generate", PROMPT, "-o", tmp_path / "a.mp4", "--model", model, "--frames", "9")
    assert "finds none in 9 pixel frames" in refused(*args, "--save-plan", tmp_path / "p.json")


@pytest.mark.slow
def test_disk_full(model: str, tmp_path: Path) -> None:
    result = subprocess.run(
        command("generate", PROMPT, "-o", tmp_path / "a.mp4", "--model", model, "--size", "96x96"),
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert result.returncode == 2
    assert "annot write" in result.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
