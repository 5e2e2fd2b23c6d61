"""The bundled model as it is shipped: its size, its provenance, its words, and that it works."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from dummyforcing.errors import UnknownWordsWarning
from dummyforcing.evaluation.world.scene import MOTIONS
from dummyforcing.models.wan import fingerprint
from dummyforcing.pipeline.pipeline import DummyForcingPipeline, load
from dummyforcing.pipeline.request import make_request
from dummyforcing.pipeline.shipped import read_plan, teacache_table
from dummyforcing.presets.catalog import bundled_folders
from research.world.prompts import FREE, benchmark_scenes
from research.world.wording import Teller
from research.world.world import held_out_kinds

MEGABYTE = 10**6
FOLDER = bundled_folders()["tiny"]


@pytest.fixture(scope="module")
def pipeline() -> DummyForcingPipeline:
    return load("tiny", device="cpu")


def test_size() -> None:
    sizes = [path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(sizes) <= 40 * MEGABYTE
    assert max(sizes) <= 16 * MEGABYTE


@pytest.mark.parametrize("folder", bundled_folders().values(), ids=bundled_folders().keys())
def test_provenance(folder: Path) -> None:
    """Every hash that PROVENANCE.md states is right, and it states one for every file that was made."""
    text = (folder / "PROVENANCE.md").read_text(encoding="utf-8")
    lines = re.findall(r"^([0-9a-f]{64})  (\S+)$", text, re.MULTILINE)
    stated = {path: digest for digest, path in lines}
    made = {path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")}
    made |= {name for name in ("plan.json", "teacache.json") if (folder / name).exists()}
    assert made
    assert made <= set(stated)
    for path, digest in stated.items():
        assert hashlib.sha256((folder / path).read_bytes()).hexdigest() == digest, path


def test_it_reads_what_people_write(pipeline: DummyForcingPipeline) -> None:
    teller = Teller(np.random.default_rng(0))
    told = [teller.tell().scene.prompt for _ in range(1000)]
    assert not any(map(pipeline.text.unknown_words, told))
    assert not any(map(pipeline.text.without_effect, [*told, *(text for text, _ in FREE)]))


def test_other_words_are_named(pipeline: DummyForcingPipeline) -> None:
    """It reads them by their pieces, yet nobody taught what they mean."""
    assert pipeline.text.unknown_words("A redd ball, a Zebra and a zebra!") == ["redd", "Zebra", "zebra"]
    with pytest.warns(UnknownWordsWarning, match="words redd, florr; the nearest that it knows: red, floor"):
        pipeline.stream("a redd ball bounces on a green florr")
    with pytest.warns(UnknownWordsWarning, match="the word qqq; say it in other words"):
        pipeline.stream("a qqq")


def test_known_prompts(pipeline: DummyForcingPipeline) -> None:
    makefile = Path(__file__).parents[2] / "Makefile"
    demo = re.findall(r'dummyforcing generate "(.*?)"', makefile.read_text(encoding="utf-8"))
    assert demo
    for prompt in [*demo, *(scene.prompt for scene in benchmark_scenes())]:
        assert pipeline.text.unknown_words(prompt) == []
        assert pipeline.text.token_count(prompt) <= pipeline.model.config.text_len


def test_shipped_plan(pipeline: DummyForcingPipeline) -> None:
    """It fits the weights, gives what the preset says, and was found without the held-out combinations."""
    plan = read_plan(pipeline.files, "shipped")
    assert plan is not None
    request = make_request(pipeline.files, "a red ball bounces")
    plan.require(
        pipeline.model.config.num_layers, pipeline.model.config.num_heads, fingerprint(pipeline.model)
    )
    assert plan.fingerprint
    assert plan.table == request.policy.roles
    assert plan.num_dummy == request.policy.dummy_heads(96) == plan.counts["dummy"]
    prompts = (Path(__file__).parents[2] / "research/training/plan_prompts.txt").read_text().splitlines()
    assert len(prompts) == 24
    for color, shape, motion in held_out_kinds():
        assert not any(f"{color} {shape} {MOTIONS[motion]}" in prompt for prompt in prompts)
    for prompt in prompts:
        assert pipeline.text.unknown_words(prompt) == []


def test_shipped_teacache(pipeline: DummyForcingPipeline) -> None:
    """It is of these weights and steps, leaves something out, and was found on prompts of training scenes."""
    table = teacache_table(pipeline.files, "shipped")
    table.require(pipeline.files.preset)
    table.require_weights(fingerprint(pipeline.model))
    assert table.steps
    known = (Path(__file__).parents[2] / "research/training/plan_prompts.txt").read_text().splitlines()
    assert set(table.prompts) <= set(known)


def test_preset_is_what_the_weights_are(pipeline: DummyForcingPipeline) -> None:
    preset = json.loads((FOLDER / "preset.json").read_text(encoding="utf-8"))
    assert preset["size"] == [160, 160]
    assert preset["licence"] == "Apache-2.0"
    assert pipeline.model.config.num_layers * pipeline.model.config.num_heads >= 80


def test_one_chunk_shows_what_the_prompt_says(pipeline: DummyForcingPipeline) -> None:
    """Twice the same picture, and there is something red in it."""
    one, two = (pipeline.generate("a red ball bounces", num_frames=9, seed=3) for _ in range(2))
    assert one.frames.shape == (9, 160, 160, 3)
    assert np.array_equal(one.frames, two.frames)
    red, green, blue = one.frames[-1].astype(int).transpose(2, 0, 1)
    share = ((red > 160) & (green < 90) & (blue < 90)).mean()
    assert 0.01 < share < 0.25
