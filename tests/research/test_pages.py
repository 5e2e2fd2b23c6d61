"""Pages that are made: none is out of date, and what they include is there."""

import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from research.pages import architecture, cli_reference, concept, options_reference
from research.pages.making import ROOT, fill, stale
from research.pages.page import page
from research.pages.snippets import code

DOCS = ROOT / "docs"


@pytest.mark.parametrize("maker", [architecture, cli_reference, concept, options_reference])
def test_no_page_is_out_of_date(maker: ModuleType) -> None:
    assert stale(maker.made()) == []


def test_marks_must_be_there_once() -> None:
    assert fill("a <!-- x -->old<!-- /x --> b", {"x": "new"}) == "a <!-- x -->\nnew\n<!-- /x --> b"
    for text in ("nothing", "<!-- x --> <!-- x --> <!-- /x -->"):
        with pytest.raises(ValueError, match="must be there once"):
            fill(text, {"x": "new"})


def test_code_is_included_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "code.py"
    path.write_text(
        "x = 1\n\n\nclass A:\n    @property\n    def b(self):\n        return 2\n\n\ndef c(): ...\n"
    )
    assert code(path, "A.b") == "@property\ndef b(self):\n    return 2"
    assert code(path, "c") == "def c(): ..."
    with pytest.raises(ValueError, match=r"has no A\.d"):
        code(path, "A.d")


def test_help_has_every_command_and_no_boxes() -> None:
    names = [name for name, _ in cli_reference.commands()]
    assert {"generate", "heads", "models convert", "teacache calibrate"} <= set(names)
    text = cli_reference.help_of("generate")
    assert "\noptions:\n" in text
    assert "--frames N" in text
    assert not re.search(r"[─│╭\x1b]|-{8}", text)


def test_arrows_lead_down_but_for_weights() -> None:
    rows = architecture.layers()
    depth = {name: number for number, row in enumerate(rows) for name in row}
    found = architecture.imports()
    assert set(found) - {"__main__"} <= set(depth)
    drawn = set(architecture.drawn(found, rows))
    assert all(other in found[name] for name, other in drawn)
    upwards = {pair for pair in drawn if depth[pair[1]] < depth[pair[0]]}
    assert upwards == {("checkpoints", "models"), ("checkpoints", "vae")}


def test_pages_and_examples_are_all_listed() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2].partition("\n\n")[0]
    listed = set(re.findall(r"[\w/-]+\.md", nav))
    assert listed == {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    guides = "".join(path.read_text(encoding="utf-8") for path in DOCS.rglob("guides/*.md"))
    for path in (ROOT / "examples").iterdir():
        assert f'--8<-- "examples/{path.name}"' in guides, path.name


def test_results_of_eval_become_rows() -> None:
    share = {"mean": 0.5, "interval": [0.25, 0.75], "n": 8}
    less = {"mean": -0.125, "interval": [-0.25, -0.05], "n": 8}
    measures = ("color", "shape", "motion")
    result = {
        "command": "dummyforcing eval",
        "commit": "abc",
        "date": "2026-01-02",
        "device": "a machine",
        "versions": {"torch": "2"},
        "settings": {"policy": "mine.py:keep_two", "frames": 81},
        "videos": {f"prompt-{i}.mp4": {} for i in range(8)},
        "measures": dict.fromkeys(measures, share),
        "against_dense": dict.fromkeys(measures, less),
        "judgement": {"worse": ["it is less sharp: 1, dense 2"], "prompts": 8},
    }
    (row,) = [line for line in page({"rows/mine": result}).splitlines() if "keep_two` |" in line]
    assert "| 8 of 81 frames, 8 prompts | 50.0 (-12.5 (-25.0 to -5.0)) |" in row
    assert "| it is less sharp | `dummyforcing eval` at abc" in row
    assert "`benchmarks/results/rows/mine.json`" in row


def test_both_readmes_say_the_same() -> None:
    english, chinese = (
        (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md")
    )

    def targets(text: str) -> list[str]:
        return [link for link in re.findall(r"\]\(([^)]+)\)", text) if "README" not in link]

    def figures(text: str) -> list[str]:
        return re.findall(r"\d+\.\d+", text.partition("<!-- figures -->")[2].partition("<!-- /figures")[0])

    def lines(text: str) -> list[str]:
        blocks = re.findall(r"```(?:python)?\n(.*?)```", text, re.DOTALL)
        return [line.partition("  #")[0] for block in blocks for line in block.splitlines()]

    for part in (targets, figures, lines):
        assert part(english) == part(chinese)
    for link in targets(english):
        assert link.startswith("https://") or (ROOT / link).exists(), link


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_workflows_and_templates_can_be_read(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)
