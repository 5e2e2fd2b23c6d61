"""Result files: the command that they record is one that works elsewhere, too."""

import sys
from importlib.machinery import ModuleSpec

import pytest
import torch

from dummyforcing.evaluation.results import provenance


@pytest.mark.parametrize(
    ("program", "module", "command"),
    [
        ("/home/ada/venvs/gpu/bin/dummyforcing", None, "dummyforcing bench --size '1 k'"),
        ("/home/ada/venvs/gpu/bin/dummyforcing.exe", None, "dummyforcing bench --size '1 k'"),
        ("benchmarks/speed.py", None, "python benchmarks/speed.py bench --size '1 k'"),
        ("/x/__main__.py", "dummyforcing.__main__", "python -m dummyforcing bench --size '1 k'"),
        ("/x/live.py", "research.benchmarks.live", "python -m research.benchmarks.live bench --size '1 k'"),
    ],
)
def test_command_names_no_folder_of_this_machine(
    program: str, module: str | None, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModuleSpec(module, None) if module else None
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    monkeypatch.setattr(sys, "argv", [program, "bench", "--size", "1 k"])
    assert provenance(torch.device("cpu"))["command"] == command
