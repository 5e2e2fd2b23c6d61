"""`dummyforcing env`: with and without a GPU, with broken packages, and nothing personal in it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dummyforcing import __version__
from dummyforcing.attention.backends import BACKENDS
from dummyforcing.cli import main

NAMES = (
    "dummyforcing",
    "python",
    "torch",
    "CUDA",
    "cuDNN",
    "triton",
    "diffusers",
    "transformers",
    "flash-attn-4",
    "nvidia-cudnn-frontend",
    "av",
)
BREAKS = "print('noise')\nraise RuntimeError('libfoo.so of {home}/x and /data/{user}/y\\nis missing')\n"


def rows(text: str) -> dict[str, str]:
    """The rows of the text, by name."""
    pairs = [line.strip().split("  ", 1) for line in text.splitlines() if line.startswith("  ")]
    return {name: value.strip() for name, value in pairs}


def run(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, with nothing in its environment that says where the Hub's files are."""
    command = [sys.executable, "-m", "dummyforcing", "env", *args]
    others = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
    return subprocess.run(command, capture_output=True, text=True, env=others | environment)


def broken(folder: Path, *modules: str) -> str:
    """A search path on which packages are installed that cannot be imported."""
    home, user = str(Path.home()), "alice"
    for module in modules:
        package = folder.joinpath(*module.split("."))
        package.mkdir(parents=True)
        for parent in package.relative_to(folder).parents[:-1]:
            (folder / parent / "__init__.py").touch()
        (package / "__init__.py").write_text(BREAKS.format(home=home, user=user))
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


def test_text_and_json_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    text = capsys.readouterr().out
    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    shown = rows(text)
    assert set(found["versions"]) == set(NAMES)
    for name, number in found["versions"].items():
        assert shown[name] == (number or ("none" if name in ("CUDA", "cuDNN") else "not installed"))
    assert (shown["dummyforcing"], shown["torch"]) == (__version__, torch.__version__)
    machine = found["machine"]
    assert machine["platform"] == shown["platform"]
    assert f"cores: {os.cpu_count()}, torch threads: {torch.get_num_threads()}" in shown["processor"]
    assert shown["processor"].startswith(machine["processor"])
    assert shown["memory"] == f"{machine['memory_bytes'] / 1e9:.1f} GB"
    assert set(found["attention"]) == set(BACKENDS)
    for part in ("attention", "fast_paths"):
        for name, reason in found[part].items():
            assert shown[name.replace("_", " ")] == ("used" if reason is None else f"not used: {reason}")
    assert list(found["attention"].values()).count(None) == 1
    assert shown["offline"] in ("yes", "no")
    assert "Traceback" not in text
    assert found["problems"] == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    shown = rows(capsys.readouterr().out)
    assert shown["GPU"].startswith("none: ")
    assert shown["sdpa"] == "used"
    assert shown["cudnn"] == shown["flash4"] == "not used: it needs a GPU"
    assert shown["fused with CUDA graphs"].startswith("not used: on a CPU")
    assert shown["float8 linear"] == shown["float8 attention"] == shown["fp8"]
    assert "compute capability 8.9" in shown["fp8"]


def test_gpus_are_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    cards = [("NVIDIA H200", 150_754_820_096, 9, 0), ("NVIDIA L4", 23_660_000_000, 8, 9)]
    made = [
        SimpleNamespace(name=name, total_memory=size, major=major, minor=minor)
        for name, size, major, minor in cards
    ]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(made))
    monkeypatch.setattr(torch.cuda, "get_device_properties", made.__getitem__)
    assert main(["env"]) == 0
    shown = rows(capsys.readouterr().out)
    assert shown["GPU 0"] == "NVIDIA H200, 150.8 GB, compute capability 9.0"
    assert shown["GPU 1"] == "NVIDIA L4, 23.7 GB, compute capability 8.9"
    assert "GPU" not in shown


def test_a_driver_that_fails_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old\n(found version 1)")

    monkeypatch.setattr(torch.cuda, "device_count", fails)
    assert main(["env"]) == 0
    shown = rows(capsys.readouterr().out)
    assert shown["GPU"] == "none: RuntimeError: The NVIDIA driver on your system is too old"


def test_versions_of_cudnn(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for number, said in ((8907, "8.9.7"), (91002, "9.10.2"), (None, "none")):
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda number=number: number)
        assert main(["env"]) == 0
        assert rows(capsys.readouterr().out)["cuDNN"] == said


@pytest.mark.slow
def test_broken_packages_are_told_without_a_traceback(tmp_path: Path) -> None:
    path = broken(tmp_path, "triton", "diffusers", "flash_attn.cute", "cudnn", "av")
    result = run(PYTHONPATH=path, LOGNAME="alice", USER="alice")
    assert (result.returncode, result.stderr) == (0, "")
    shown = rows(result.stdout)
    problem = "but broken: RuntimeError: libfoo.so of ~/x and /data/USER/y"
    for name in ("triton", "diffusers", "flash-attn-4", "nvidia-cudnn-frontend", "av"):
        assert shown[name].endswith(problem), name
        assert "\n" not in shown[name]
    assert shown["flash-attn-4"] == f"installed, {problem}"  # no version is known of it
    assert shown["torch"] == torch.__version__
    assert "noise" not in result.stdout
    found = json.loads(run("--json", PYTHONPATH=path).stdout)
    assert set(found["problems"]) == {"triton", "diffusers", "flash-attn-4", "nvidia-cudnn-frontend", "av"}
    assert found["attention"]["sdpa"] is None or torch.cuda.is_available()


def test_a_broken_torch_is_told_without_a_traceback(tmp_path: Path) -> None:
    result = run(PYTHONPATH=broken(tmp_path, "torch"))
    assert (result.returncode, result.stderr) == (0, "")
    shown = rows(result.stdout)
    assert "but broken: RuntimeError: libfoo.so" in shown["torch"]
    assert shown["CUDA"] == shown["cuDNN"] == "not known"
    assert "cores: " in shown["processor"]
    assert "attention" not in result.stdout


@pytest.mark.slow
def test_nothing_personal(tmp_path: Path) -> None:
    home = tmp_path / "home" / "alice"
    home.mkdir(parents=True)
    private = {"HOME": str(home), "LOGNAME": "alice", "USER": "alice", "HF_TOKEN": "hf_secret"}
    for more, folder, offline in (
        ({}, "~/.cache/huggingface/hub", "no"),
        ({"HF_HOME": str(home / "models"), "HF_HUB_OFFLINE": "1"}, "~/models/hub", "yes"),
        ({"HF_HUB_CACHE": str(tmp_path / "disk" / "project")}, "elsewhere, by HF_HUB_CACHE", "no"),
    ):
        result = run(**private, **more)
        shown = rows(result.stdout)
        assert shown["cache folder"].startswith(f"{folder}, ")
        assert shown["offline"] == offline
        for secret in (str(tmp_path), "alice", "hf_secret", "project", os.uname().nodename):
            assert secret not in result.stdout
