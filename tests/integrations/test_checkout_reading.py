"""What `dummyforcing attach --check` says of folders of Python files."""

import inspect
import json
import textwrap

import pytest

from dummyforcing.cli import main
from dummyforcing.errors import BadFile
from dummyforcing.integrations.attach.checkout import read_checkout
from tests.integrations.standins import ATTENTIONS

INIT = """
    def __init__(self, dim, num_heads):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o: nn.Module = nn.Linear(dim, dim)
        self.norm_q = self.norm_k = nn.Identity()
"""


def source(name: str, family: str, base: str = "nn.Module", init: str = INIT) -> str:
    """A class with the signature of a family's stand-in, which is that of its repository."""
    taken = inspect.signature(ATTENTIONS[family].forward).parameters
    arguments = ", ".join(f"{n}=None" if p.default is not p.empty else n for n, p in taken.items())
    fuse = "\n    def fuse_projections(self):\n        pass\n" if family == "krea" else ""
    forward = f"\n    def forward({arguments}):\n        pass\n"
    return f"import torch.nn as nn\n\nclass {name}({base}):{init}{fuse}{forward}"


@pytest.mark.parametrize("family", ATTENTIONS)
def test_each_family_is_told_by_its_signature(family, tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "m.py").write_text(source("Renamed", family))
    found = read_checkout(tmp_path)
    assert [(one.name, one.family, one.file, one.problem) for one in found.attentions] == [
        ("Renamed", family, "deep/er/m.py", "")
    ]
    assert [one.name for one in found.families] == [family]


def test_what_a_base_class_in_another_file_has_counts(tmp_path):
    (tmp_path / "base.py").write_text(source("Base", "self-forcing"))
    (tmp_path / "fork.py").write_text(source("Fork", "longlive", base="base.Base", init=""))
    found = {one.name: one.family for one in read_checkout(tmp_path).attentions}
    assert found == {"Base": "self-forcing", "Fork": "longlive"}


def test_near_misses_are_explained(tmp_path):
    (tmp_path / "a.py").write_text(
        source("NoNorm", "self-forcing").replace("self.norm_q = self.norm_k", "self.n")
    )
    (tmp_path / "b.py").write_text(source("Unknown", "self-forcing").replace("cache_start", "somewhere"))
    (tmp_path / "c.py").write_text(source("Bidirectional", "self-forcing").replace("kv_cache", "mask"))
    found = {one.name: one.problem for one in read_checkout(tmp_path).attentions}
    assert found.keys() == {"NoNorm", "Unknown"}
    assert found["NoNorm"] == "it has no norm_q, norm_k"
    assert "none of sink_recache_after_switch" in found["Unknown"]


def test_what_has_no_cache_is_told_of_where_nothing_else_is_found(tmp_path):
    (tmp_path / "c.py").write_text(source("Renamed", "self-forcing").replace("kv_cache", "memory"))
    (found,) = read_checkout(tmp_path).attentions
    assert found.problem.startswith("its forward takes no kv_cache, but x, seq_lens")
    assert not read_checkout(tmp_path).families


def test_a_pipeline_with_guidance_cannot_be_used(tmp_path, capsys):
    (tmp_path / "m.py").write_text(source("Attention", "self-forcing"))
    pipeline = """
    class Guided:
        def _initialize_kv_cache(self, batch_size, dtype, device):
            self.kv_cache_pos, self.kv_cache_neg = [], []

    class Plain:
        def _initialize_kv_cache(self, batch_size, dtype, device):
            self.kv_cache1 = []
    """
    (tmp_path / "p.py").write_text(textwrap.dedent(pipeline))
    guided, plain = read_checkout(tmp_path).pipelines
    assert (
        guided.problem
        == "guidance, for which its kv_cache_neg and kv_cache_pos take turns, cannot be followed"
    )
    assert not plain.problem
    assert main(["attach", "--check", str(tmp_path)]) == 0
    assert "Guided  cannot be used: guidance" in capsys.readouterr().out


def test_pipelines_and_files_that_are_no_python(tmp_path):
    pipeline = """
    class Pipeline:
        def _initialize_kv_cache(self, batch_size, dtype, device):
            pass

    class TrainingPipeline(Pipeline):
        pass

    class Other:
        def _initialize_kv_cache(self):
            pass
    """
    (tmp_path / "p.py").write_text(textwrap.dedent(pipeline))
    (tmp_path / "bad.py").write_text("def broken(:\n")
    (tmp_path / "bytes.py").write_bytes(b"\xff\xfe\x00")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "no.py").write_text(source("Hidden", "self-forcing"))
    found = read_checkout(tmp_path)
    assert [one.name for one in found.pipelines] == ["Pipeline"]
    assert found.unreadable == ("bad.py", "bytes.py")
    assert not found.attentions


def test_a_single_file_and_nothing(tmp_path):
    path = tmp_path / "m.py"
    path.write_text(source("One", "causvid"))
    assert [one.family for one in read_checkout(path).attentions] == ["causvid"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    for nothing in (tmp_path / "empty", tmp_path / "notes.txt"):
        with pytest.raises(BadFile, match="no Python files"):
            read_checkout(nothing)
    with pytest.raises(BadFile, match="There is no"):
        read_checkout(tmp_path / "missing")


def test_the_command(tmp_path, capsys):
    (tmp_path / "m.py").write_text(source("Renamed", "self-forcing"))
    assert main(["attach", "--check", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "m.py:3  Renamed  can be attached to, as self-forcing" in said
    assert 'dummyforcing.attach(pipeline, policy="dummy")' in said
    assert main(["attach", "--check", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["families"] == ["self-forcing"]
    (tmp_path / "m.py").write_text("class A:\n    pass\n")
    assert main(["attach", "--check", str(tmp_path)]) == 2
    assert "has no self-attention that can be attached to" in capsys.readouterr().err
