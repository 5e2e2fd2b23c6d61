"""VBench's table, totals and files."""

import json
from pathlib import Path

import pytest

from dummyforcing.errors import UserError
from dummyforcing.evaluation import vbench
from dummyforcing.evaluation.vbench import DIMENSIONS, read_info, read_results, scores, total

# quality, semantic, total as published; rounded to two digits each
PUBLISHED = [
    (84.73, 81.03, 84.00),
    (84.22, 80.47, 83.47),
    (84.63, 80.98, 83.90),
    (84.77, 81.93, 84.20),
    (84.77, 81.61, 84.14),
    (84.90, 78.68, 83.66),
    (84.15, 78.76, 83.07),
]


@pytest.mark.parametrize(("quality", "semantic", "published"), PUBLISHED)
def test_published_totals(quality, semantic, published):
    """The inputs are rounded to 0.005 and so is the total."""
    assert total(quality, semantic) == pytest.approx(published, abs=0.0101)


def test_the_table():
    groups = [dimension.group for dimension in DIMENSIONS.values()]
    assert (groups.count("quality"), groups.count("semantic")) == (7, 9)
    assert sum(d.weight for d in DIMENSIONS.values() if d.group == "quality") == 6.5
    assert sum(d.weight for d in DIMENSIONS.values() if d.group == "semantic") == 9


def test_scores_by_hand():
    lowest = {name: dimension.low for name, dimension in DIMENSIONS.items()}
    highest = {name: dimension.high for name, dimension in DIMENSIONS.items()}
    assert scores(lowest) == vbench.Scores(0, 0, 0)
    found = scores(highest)
    assert (found.quality, found.semantic, found.total) == pytest.approx((100, 100, 100))
    # dynamic degree counts half: 0.5 of 6.5 of the quality, 1 of 9 of the semantic score is one dimension
    found = scores({**lowest, "dynamic_degree": 1.0})
    assert (found.quality, found.total) == pytest.approx((100 * 0.5 / 6.5, 80 * 0.5 / 6.5))
    found = scores({**lowest, "scene": 0.4111})
    assert (found.semantic, found.total) == pytest.approx((100 * 0.5 / 9, 20 * 0.5 / 9))


def test_a_missing_dimension_is_no_zero():
    raw = {name: 0.5 for name in DIMENSIONS if name != "scene"}
    found = scores({**raw, "appearance_style": 0.2})
    assert (found.semantic, found.total) == (None, None)
    assert found.quality is not None
    assert scores({}) == vbench.Scores(None, None, None)


@pytest.mark.parametrize(
    ("raw", "message"), [({"imaging_quality": 67.2}, "by 100"), ({"fun": 1}, "it has sub")]
)
def test_scores_that_cannot_be(raw, message):
    with pytest.raises(UserError, match=message):
        scores(raw)


def test_read_results(tmp_path: Path):
    (tmp_path / "a_eval_results.json").write_text(json.dumps({"scene": [0.5, [{"video_path": "x"}]]}))
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "b_eval_results.json").write_text(json.dumps({"human action": 0.75}))
    (tmp_path / "a_full_info.json").write_text("[]")
    assert read_results(tmp_path) == {"scene": 0.5, "human_action": 0.75}
    assert read_results(tmp_path / "a_eval_results.json") == {"scene": 0.5}
    (tmp_path / "c_eval_results.json").write_text(json.dumps({"scene": [0.6]}))
    with pytest.raises(UserError, match="two different scores of scene"):
        read_results(tmp_path)
    for text in ("[1]", "{", '{"scene": []}', '{"scene": "good"}'):
        (tmp_path / "c_eval_results.json").write_text(text)
        with pytest.raises(UserError, match="does not hold"):
            read_results(tmp_path / "c_eval_results.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no \\*_eval"):
        read_results(tmp_path / "empty")


@pytest.fixture
def info(tmp_path: Path) -> Path:
    """Three dimensions: two of one prompt each, one of both; the other 13 have none."""
    path = tmp_path / "info.json"
    entries = [
        {"prompt_en": "a cat", "dimension": ["temporal_flickering", "color"]},
        {"prompt_en": "a dog", "dimension": ["scene", "color"]},
    ]
    path.write_text(json.dumps(entries))
    return path


def test_info(info: Path, tmp_path: Path):
    assert read_info(info)["color"] == ["a cat", "a dog"]
    assert read_info(info)["human_action"] == []
    with pytest.raises(UserError, match="not VBench's"):
        read_info(tmp_path / "none.json")
