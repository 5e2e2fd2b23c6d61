"""What is refused on the command line: one sentence in flags, with the flag that is to blame."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dummyforcing.cli import COMMANDS, Group, main
from dummyforcing.cli.flags import in_flags, told
from dummyforcing.errors import BadFile, BadRequest
from dummyforcing.pipeline.option import documented
from dummyforcing.pipeline.options import LoadOptions, VideoOptions

PROMPT = "a red ball bounces on a green floor"
NEEDED = {
    "generate": [PROMPT],
    "heads": [PROMPT],
    "heads calibrate": ["--prompts", "p.txt", "-o", "plan.json"],
    "eval": ["p.txt"],
    "bench": [],
    "teacache calibrate": [PROMPT],
    "models show": ["tiny"],
}
"""What each command that makes videos cannot do without."""


def commands() -> Iterator[tuple[str, Callable[..., None]]]:
    """Every command by its words."""
    for name, command in COMMANDS.items():
        if isinstance(command, Group):
            yield from ((f"{name} {part}", function) for part, function in command.commands.items())
        else:
            yield name, command


def out_of_bounds() -> Iterator[tuple[str, str, str]]:
    """Every option with bounds of every command, with values beyond each of them: command, flag, value."""
    for name, command in commands():
        for one in documented(VideoOptions):
            about, flags = one.about, getattr(command, "flags", {})
            if one.name not in flags:
                continue
            values = [] if about.least is None else [about.least - 1]
            values += [] if about.above is None else [about.above]
            values += [] if about.most is None else [about.most + 1]
            values += [float("nan")] * (bool(values) and about.kind is float)
            yield from ((name, flags[one.name], f"{value}") for value in values)


OUT_OF_BOUNDS = list(out_of_bounds())
OTHERS = [
    ("generate", "--frames", "80"),
    ("generate", "--size", "100x64"),
    ("generate", "--size", "big"),
    ("generate", "--policy", "sparse"),
    ("generate", "--policy", "window:1"),
    ("generate", "--policy long --budget", "much"),
    ("generate", "--policy long --budget", "1kB"),
    ("generate", "--budget", "1GB"),
    ("generate", "--policy dense --dummy-fraction", "0.5"),
    ("generate", "--policy dense --reclassify", "0.5"),
    ("generate", "--teacache", "0"),
    ("generate", "--teacache", "-1"),
    ("generate", "--switch", "soon:a ball"),
    ("generate", "--switch", "90:a ball"),
    ("generate", "--switch", "0:a ball"),
    ("generate", "--switch", "1: "),
    ("generate", "--strength", "0.5"),
    ("generate", "--device", "tpu"),
    ("generate", "--device", "cuda:99"),
    ("generate", "--base", "nowhere"),
    ("generate", "--weights", "nowhere"),
    ("generate", "--lora", "nowhere"),
    ("heads", "--policy", "dense"),
    ("heads", "--seeds", "0"),
    ("heads", "--steps", "9"),
    ("heads", "--steps", "first"),
    ("heads", "--chunks", "0"),
    ("heads", "--chunks", "1,,2"),
    ("heads", "--frames 9 --chunks", "1"),
    ("eval", "--samples", "0"),
    ("eval", "--shard", "2/2"),
    ("eval", "--dimension", "fun"),
    ("teacache calibrate", "--seeds", "0"),
    ("teacache calibrate", "--error", "0"),
    ("teacache calibrate", "--error", "nan"),
    ("teacache calibrate", "--frames", "9"),
    ("bench", "--frames", "0"),
    ("bench", "--sizes", "100x64"),
    ("bench", "--sizes", "big"),
    ("bench", "--policies", "sparse"),
    ("bench", "--policies", "long:1,2,3"),
    ("bench", "--policies", "long:9999"),
    ("bench", "--skip-steps", "0"),
    ("bench", "--skip-steps", "9"),
    ("bench", "--repeats", "0"),
    ("bench", "--warm-up-chunks", "0"),
    ("models show", "--policy", "sparse"),
    ("generate", "--gpus", "0"),
]
"""Commands, flags and values that are refused for other reasons."""


def test_every_bound_is_there() -> None:
    """The list above is made of the options; so that it does not become empty by accident:"""
    tried = {(name, flag) for name, flag, _ in OUT_OF_BOUNDS}
    for flag in ("frames", "seconds", "seed", "dummy-fraction", "reclassify", "strength", "fade"):
        assert ("generate", f"--{flag}") in tried
    assert {name for name, _ in tried} == NEEDED.keys()
    numbers = [one.name for one in documented(LoadOptions) if one.about.kind in (int, float)]
    assert numbers == ["gpus"]  # of which there is one test below


@pytest.mark.parametrize(("command", "flag", "value"), [*OUT_OF_BOUNDS, *OTHERS])
def test_a_bad_value_names_its_flag(
    command: str,
    flag: str,
    value: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text(PROMPT)
    assert main([*command.split(), *NEEDED[command], *flag.split(), value]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"Error: [A-Z0-9-].*; .*\.\n", printed.err)
    blamed = flag.split()[-1]
    assert len(re.findall(rf"{blamed}(?![\w-])", printed.err)) == 1
    assert not re.search(r"\b[a-z_]+=|None", printed.err), "Python"
    assert [path.name for path in tmp_path.iterdir()] == ["p.txt"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("take num_frames=41", "take --frames 41"),
        ("take num_frames=41.", "take --frames 41."),
        ("take offload=True.", "take --offload."),
        ('take policy="dummy" offload=True (3 GB)', "take --policy dummy --offload (3 GB)"),
        ("guard=2.5 is out of range", "--reclassify 2.5 is out of range"),
        ("seed=-1 is out of range", "--seed -1 is out of range"),
        ("seconds=1e-09 is", "--seconds 1e-09 is"),
        ("num_frames= and seconds= say", "--frames and --seconds say"),
        ('torch_dtype="bfloat16" or fp8="none".', "--dtype bfloat16 or --fp8 none."),
        ('model="self-forcing" weights="my file.pt"', "--model self-forcing --weights 'my file.pt'"),
        (
            'weights="FILE" (and lora="FILE" if there is one)',
            "--weights FILE (and --lora FILE if there is one)",
        ),
        ('size="416x240"; policy="window:3,6"', "--size 416x240; --policy window:3,6"),
        ("generator=4 and prompt_embeds=x", "generator=4 and prompt_embeds=x"),
    ],
)
def test_python_is_said_in_flags(text: str, said: str) -> None:
    assert in_flags(text) == said


def test_a_command_has_flags_of_its_own() -> None:
    flags = {"size": "--sizes"}
    assert in_flags('size="64x64" or policy="dummy"', flags) == "--sizes 64x64 or --policy dummy"


def test_the_flag_to_blame_is_named_once() -> None:
    flags = {"size": "--size", "guard": "--reclassify"}
    assert told(BadRequest("sizes differ", "take one", "size"), flags) == "Sizes differ; take one (--size)."
    assert told(BadRequest("size=3 is bad", "take 4", "size"), flags) == "--size 3 is bad; take 4."
    assert told(BadRequest("The one", "see --size-of it", "size"), flags).endswith("--size-of it (--size).")
    assert told(BadRequest("No", "go", "seed"), flags) == "No; go."  # the command has no such flag
    assert told(BadRequest("No", "go"), flags) == "No; go."
    assert told(BadFile("/a/b is damaged", "copy it"), flags) == "/a/b is damaged; copy it."
    assert told(BadFile("a.json is damaged", "copy it"), flags) == "a.json is damaged; copy it."


@pytest.mark.parametrize(
    ("gigabytes", "remedy"), [(0.6, "--policy dummy"), (0.4, "--policy dummy --dtype bfloat16")]
)
def test_what_would_fit_is_said_in_flags(
    gigabytes: float,
    remedy: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dummyforcing.pipeline.memory.available_memory", lambda device: 1e9 * gigabytes)
    assert main(["generate", PROMPT, "--policy", "dense", "--frames", "477"]) == 2
    message = capsys.readouterr().err
    assert re.search(rf"only {gigabytes} GB are free; take {remedy} \(0\.\d GB\)\.$", message)
    assert list(tmp_path.iterdir()) == []
