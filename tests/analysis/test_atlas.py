"""The head atlas: masses against full attention, statistics of constructed sets, merged plans, the report."""

import base64
import dataclasses
import html.parser
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from dummyforcing.analysis.atlas import ROLES, Atlas, Settings, role_codes
from dummyforcing.analysis.recorder import frame_bins, record
from dummyforcing.analysis.report import above, write_report
from dummyforcing.analysis.stability import agreement, core_ratio, findings, jaccard, single_videos, stability
from dummyforcing.errors import UnknownWordsWarning, UserError
from dummyforcing.method.criteria import Role
from dummyforcing.method.policy import official, parse_policy
from dummyforcing.method.programming import assign_roles
from dummyforcing.pipeline.pipeline import DummyForcingPipeline, load
from dummyforcing.pipeline.request import make_request
from tests.oracles import Seen, watched

PROMPTS = ["a red ball bounces on a green floor", "a blue cube spins"]
LAYERS, HEADS = 3, 4
EVERY_ROW = dataclasses.replace(parse_policy("dummy"), rows=None)


@pytest.fixture(scope="module")
def pipeline(model_folder: Path) -> DummyForcingPipeline:
    return load(model_folder, device="cpu")


@pytest.fixture(scope="module")
def measured(pipeline: DummyForcingPipeline) -> Atlas:
    return record(pipeline, PROMPTS, EVERY_ROW, num_frames=33, seeds=(3, 4))


def settings(
    prompts: int = 1, seeds: int = 1, chunks: int = 1, steps: int = 1, commit: bool = True
) -> Settings:
    return Settings(
        prompts=tuple(f"prompt <{i}>" for i in range(prompts)),
        seeds=tuple(range(seeds)),
        chunks=tuple(range(1, chunks + 1)),
        calls=(*range(steps), *[None] * commit),
        first_frames=1,
        rows="256",
        row_seed=0,
        model="made up",
        fingerprint="abc",
        native="dense",
        chunk_frames=3,
        size=(32, 48),
        device="cpu",
        dtype="float32",
    )


def made_up(seed: int = 0, layers: int = 4, heads: int = 5, bins: int = 7, **axes: Any) -> Atlas:
    """An atlas of random masses."""
    about = settings(**axes)
    shape = tuple(map(len, (about.prompts, about.seeds, about.chunks, about.calls)))
    rng = np.random.default_rng(seed)
    mass = rng.dirichlet(np.full(bins, 0.5), (*shape, layers, heads)).astype(np.float32)
    return Atlas(mass, about)


# Recording


def test_masses_are_those_of_full_attention(pipeline: DummyForcingPipeline, measured: Atlas) -> None:
    """Every bin of every condition, from recorded queries and keys by one softmax over the whole past."""
    calls: dict[tuple[int, int], list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def note(seen: Seen) -> None:
        calls.setdefault((seen.call.chunk, seen.layer), []).append((seen.q, seen.k))

    assert measured.mass.shape == (2, 2, 2, 3, LAYERS, HEADS, 7)
    assert measured.settings.calls == (0, 1, None)
    for number, prompt in enumerate(PROMPTS):
        calls.clear()
        request = make_request(pipeline.files, prompt, num_frames=33, seed=4, policy="dense")
        sampler = pipeline.rollout(request).sampler
        watched(sampler, note)
        list(sampler)
        assert set(calls) == {(chunk, layer) for chunk in range(3) for layer in range(LAYERS)}
        for (chunk, layer), made in calls.items():
            if chunk == 0:
                continue
            past = [calls[earlier, layer][-1][1] for earlier in range(chunk)]
            assert len(made) == 3
            for place, (q, k) in enumerate(made):
                keys = torch.cat([*past, k], 1)
                weights = torch.einsum("blhd,bshd->hls", q.double(), keys.double())
                frames = (weights / q.shape[-1] ** 0.5).softmax(-1).mean(1).unflatten(-1, (3 * chunk + 3, -1))
                by_frame = frames.sum(-1)
                expected = torch.full((HEADS, 7), torch.nan, dtype=torch.float64)
                expected[:, 0] = by_frame[:, -3:].sum(-1)
                expected[:, -1] = by_frame[:, 0]
                for back in range(1, 3 * chunk):
                    expected[:, back] = by_frame[:, 3 * chunk - back]
                found = torch.from_numpy(measured.mass[number, 1, chunk - 1, place, layer]).double()
                torch.testing.assert_close(found, expected, atol=2e-5, rtol=0, equal_nan=True)


def test_regions_add_up(measured: Atlas) -> None:
    assert np.allclose(measured.regions.sum(-1), 1, atol=1e-5)
    assert np.array_equal(measured.regions[..., 0], measured.mass[..., -1])


def test_bins_follow_the_frames_that_slots_hold() -> None:
    frames = torch.tensor([[0, 12, 13, 14, 9, 10, 11], [1, 0, 11, 10, 14, 13, 12]])
    assert frame_bins(frames, 3, 1, 6).tolist() == [[5, 0, 0, 0, 3, 2, 1], [4, 5, 1, 2, 0, 0, 0]]
    assert frame_bins(frames, 3, 2, 4).tolist() == [[3, 0, 0, 0, 3, 2, 1], [3, 3, 1, 2, 0, 0, 0]]


def test_a_part_is_that_part_of_the_whole(pipeline: DummyForcingPipeline, measured: Atlas) -> None:
    part = record(pipeline, PROMPTS[1:], EVERY_ROW, num_frames=33, seeds=[4], chunks=[2], calls=[None, 1])
    assert part.settings.calls == (1, None)
    assert part.settings.chunks == (2,)
    assert np.array_equal(part.mass, measured.mass[1:, 1:, 1:, [1, 2]], equal_nan=True)


def test_plan_of_one_video_is_the_one_that_the_video_finds(pipeline: DummyForcingPipeline) -> None:
    """Same rows, same steps, same chunk: the atlas and a rollout agree."""
    request = make_request(pipeline.files, PROMPTS[0], seed=5)
    found = pipeline.find_plan(request)
    watched = record(pipeline, PROMPTS[:1], request.policy, seeds=[5], chunks=[1], calls=[0, 1])
    plan = watched.plan(request.policy)
    assert plan.roles == found.roles
    assert (plan.chunk, plan.num_dummy, plan.fingerprint) == (1, 6, found.fingerprint)
    assert plan.scores is not None
    assert found.scores is not None
    assert np.allclose(plan.scores, found.scores, atol=1e-6)


def test_far_frames_share_a_bin(pipeline: DummyForcingPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    one = record(pipeline, PROMPTS[:1], EVERY_ROW, num_frames=33, calls=[0])
    monkeypatch.setattr("dummyforcing.analysis.recorder.MOST_DISTANCES", 2)
    other = record(pipeline, PROMPTS[:1], EVERY_ROW, num_frames=33, calls=[0])
    assert np.allclose(one.mass[:, :, 1, ..., 2:-1].sum(-1), other.mass[:, :, 1, ..., 2], atol=1e-6)
    assert np.allclose(one.regions, other.regions, atol=1e-6)


def test_every_chunk_is_counted_and_words_are_warned_of_once(pipeline: DummyForcingPipeline) -> None:
    done = []
    with pytest.warns(UnknownWordsWarning, match="purple") as warned:
        record(
            pipeline,
            ["a purple ball", "a purple cube"],
            EVERY_ROW,
            num_frames=33,
            chunks=[1],
            calls=[0],
            on_chunk=lambda: done.append(1),
        )
    assert len(done) == 4
    assert len(warned) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunks": [0]}, "no chunk 0 to watch; there are 1 to 2"),
        ({"chunks": [3]}, "no chunk 3"),
        ({"calls": [2]}, "no denoising step 2 to watch; there are 0 to 1"),
        ({"calls": []}, "nothing to watch"),
        ({"chunks": []}, "nothing to watch"),
        ({"num_frames": 9}, "make it longer"),
        ({"num_frames": 10}, "take 9 or 21"),
    ],
)
def test_what_cannot_be_watched(
    pipeline: DummyForcingPipeline, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        record(pipeline, PROMPTS, EVERY_ROW, **{"num_frames": 33, **options})


# Merging


@pytest.mark.parametrize("score_pass", ["denoise", "commit"])
def test_merged_plan_is_that_of_the_mean_scores(score_pass: Literal["denoise", "commit"]) -> None:
    atlas = made_up(prompts=3, seeds=2, chunks=2, steps=4)
    policy = dataclasses.replace(parse_policy("dummy"), score_pass=score_pass, num_dummy=7)
    scores = torch.zeros(4, 5, 3, dtype=torch.float64)
    calls = [4] if score_pass == "commit" else range(4)
    conditions = [(p, s, c, k) for p in range(3) for s in range(2) for c in range(2) for k in calls]
    for condition in conditions:
        mass = torch.from_numpy(atlas.mass[condition]).double()
        scores += torch.stack([mass[..., -1], mass[..., 1:-1].sum(-1), mass[..., 0]], -1) / len(conditions)
    plan = atlas.plan(policy)
    assert plan.roles == assign_roles(scores, 7)
    assert (plan.chunk, plan.score_pass, plan.num_dummy, plan.fingerprint) == (None, score_pass, 7, "abc")
    assert plan.counts["dummy"] == 7
    plan.require(4, 5, "abc")


def test_plans_that_cannot_be_found() -> None:
    with pytest.raises(UserError, match="does not classify heads"):
        made_up().plan(parse_policy("dense"))
    with pytest.raises(UserError, match="scores the commit pass"):
        made_up(commit=False).plan(official())
    with pytest.raises(UserError, match="scores denoising steps"):
        made_up(steps=0).plan(parse_policy("dummy"))


# Statistics


def test_jaccard() -> None:
    sets = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], dtype=bool)
    third = 1 / 3
    right: list[list[float]] = [
        [1, third, 1, 0, 0],
        [third, 1, third, 0, 0],
        [1, third, 1, 0, 0],
        [0, 0, 0, 1, 1],
        [0, 0, 0, 1, 1],
    ]
    assert np.allclose(jaccard(sets), right)


def test_core_ratio() -> None:
    sets = np.zeros((2, 3, 10), dtype=bool)
    sets[0, 0, [0, 1, 2, 3]] = sets[0, 1, [0, 1, 2, 4]] = sets[0, 2, [0, 1, 5, 6]] = True
    sets[1, :, [0, 7, 8, 9]] = True
    assert core_ratio(sets, [0, 1]) == 1 / 4
    assert core_ratio(sets, [1]) == (2 / 4 + 1) / 2
    assert core_ratio(sets, [0]) == pytest.approx((1 / 4 + 1 / 4 + 1 / 4) / 3)
    assert core_ratio(np.zeros((3, 5), dtype=bool), [0]) == 1


def test_stability_tells_what_the_dummy_heads_depend_on() -> None:
    """Heads 0-3 are dummy; in step 1, head 3 gives way to head 4. Nothing else matters."""
    scores = np.full((3, 2, 2, 2, 1, 10, 3), 0.4)
    scores[..., :4, :2] = 0.1
    scores[:, :, :, 1, :, 3, :2] = 0.4
    scores[:, :, :, 1, :, 4, :2] = 0.1
    found = stability(scores, 4)
    assert found.overall == 3 / 4
    assert found.along == {"prompt": (3, 1.0), "seed": (2, 1.0), "chunk": (2, 1.0), "step": (2, 3 / 4)}
    pairs, alike = 24 * 23, 24 * 11
    assert found.similarity == pytest.approx((alike + (pairs - alike) * 3 / 5) / pairs)
    assert found.chance == pytest.approx(0.4 / 1.6)
    alone = stability(scores[:1, :1, :1, :1], 4)
    assert (alone.overall, alone.along, alone.similarity) == (1, {}, 1)


def test_chance_is_what_random_sets_give() -> None:
    scores = np.random.default_rng(0).random((40, 1, 1, 1, 20, 10, 3)).astype(np.float32)
    found = stability(scores, 50)
    assert found.similarity == pytest.approx(found.chance, abs=0.01)
    assert found.overall < 0.05


def test_role_codes_are_the_roles() -> None:
    scores = torch.rand(2, 3, 4, 5, 3, generator=torch.Generator().manual_seed(0)).numpy()
    codes = role_codes(scores, 6)
    roles = assign_roles(torch.from_numpy(scores[1, 2]), 6)
    assert [[ROLES[code] for code in row] for row in codes[1, 2]] == [list(row) for row in roles]
    assert codes.shape == (2, 3, 4, 5)


def test_agreement() -> None:
    codes = {role: ROLES.index(role) for role in Role}
    d, s, n = codes[Role.DUMMY], codes[Role.SINK], codes[Role.NEIGHBOR]
    a, b = np.array([[d, d, s, n]], np.int8), np.array([[d, s, s, s]], np.int8)
    assert agreement(a, b) == (0.5, 0.5)
    assert agreement(a, a) == (1, 1)


def test_findings_are_one_chunk_and_pass_each() -> None:
    atlas = made_up(prompts=3, chunks=2, steps=2)
    found = {finding.name: finding.codes for finding in findings(atlas, parse_policy("dummy"))}
    assert list(found) == ["denoising, chunk 1", "denoising, chunk 2", "commit, chunk 1", "commit, chunk 2"]
    for name, place, calls in (("denoising, chunk 2", 1, [0, 1]), ("commit, chunk 1", 0, [2])):
        alone = Atlas(atlas.mass[:, :, [place]][:, :, :, calls], settings(3, 1, 1, len(calls), False))
        roles = alone.plan(parse_policy("dummy")).roles
        assert [[ROLES[code] for code in row] for row in found[name]] == [list(row) for row in roles]


def test_single_videos_equal_the_plan_if_there_is_one_video() -> None:
    assert single_videos(made_up(chunks=1, steps=3), parse_policy("dummy")) == (1, 1)
    assert single_videos(made_up(prompts=5, steps=3), parse_policy("dummy"))[0] < 0.9
    assert single_videos(made_up(chunks=1, steps=3), parse_policy("long:50")) == (1, 1)


# Files


def test_atlas_survives_saving(measured: Atlas, tmp_path: Path) -> None:
    kept = dataclasses.replace(measured.settings, made={"command": "x y", "versions": {"torch": "2"}})
    Atlas(measured.mass, kept).save(tmp_path / "a.npz")
    loaded = Atlas.load(tmp_path / "a.npz")
    assert loaded.settings == kept
    assert loaded.mass.dtype == np.float32
    assert np.array_equal(loaded.mass, measured.mass, equal_nan=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_files_that_are_no_atlas(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(UserError, match="cannot be read"):
        Atlas.load(path)
    good = made_up()
    good.save(path)
    whole = path.read_bytes()
    fields = json.loads(str(np.load(path)["settings"]))
    for content in (b"", b"PK\x03\x04", b"text", whole[:-30]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is not an atlas"):
            Atlas.load(path)
    for wrong in ({"format": "other"}, {"prompts": ["one", "two"]}, {"strange": 1}):
        np.savez(path, mass=good.mass, settings=np.array(json.dumps({**fields, **wrong})))
        with pytest.raises(UserError, match="is not an atlas"):
            Atlas.load(path)
    with pytest.raises(UserError, match="cannot write"):
        good.save(tmp_path / "none" / "a.npz")


# The report


class Page(html.parser.HTMLParser):
    """The tags, pictures and text of a page; every tag must be closed in order."""

    VOID = ("meta", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.references: list[str | None] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.mark.parametrize("axes", [{"prompts": 2, "seeds": 2, "chunks": 3, "steps": 2}, {}, {"steps": 0}])
def test_report_is_one_file_that_needs_nothing_else(axes: dict[str, int], tmp_path: Path) -> None:
    atlas = made_up(**axes)
    policy = official() if axes == {"steps": 0} else parse_policy("dummy")
    write_report(tmp_path / "r.html", atlas, policy)
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.references) == page.tags.count("img") == 6
    for reference in page.references:
        assert reference is not None
        kind, _, data = reference.partition(",")
        assert kind == "data:image/svg+xml;base64"
        svg = base64.b64decode(data)
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        links = re.findall(rb'(?:href|src)="(?!#|data:)[^"]*"', svg)
        assert links == []
    assert not re.search(r"https?:|url\(|@import|<script|<link", text)
    words = " ".join(page.text)
    assert "prompt <0>" in words
    assert "fingerprint abc" in words
    assert "nan" not in words


def test_report_tells_what_was_measured(tmp_path: Path) -> None:
    """A quarter of the heads at 90%, always the same ones: the figures of the paper, nearly."""
    mass = np.zeros((2, 1, 2, 3, 4, 5, 4), np.float32)
    mass[..., 0] = np.where(np.arange(20).reshape(4, 5) < 5, 0.9, 0.4)
    mass[..., 1] = (1 - mass[..., 0]) * np.where(np.arange(20).reshape(4, 5) % 2, 0.7, 0.3)
    mass[..., -1] = 1 - mass[..., 0] - mass[..., 1]
    about = dataclasses.replace(settings(2, 1, 2, 2), made={"command": "dummyforcing heads <&>"})
    atlas = Atlas(mass, about)
    policy = dataclasses.replace(parse_policy("dummy"), dummy_fraction=0.25)
    assert above(atlas, policy) == 0.25
    write_report(tmp_path / "r.html", atlas, policy)
    words = " ".join(Page((tmp_path / "r.html").read_text(encoding="utf-8")).text)
    for fact in ("25%", "1.00", "5 / 20", "100%", "dummyforcing heads <&>", "2 prompts", "arXiv:2601.20499"):
        assert fact in words
