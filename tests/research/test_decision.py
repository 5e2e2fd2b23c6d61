"""The rule that decides on the default policy, on made-up tables: by hand, and against brute force."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from dummyforcing.evaluation.bootstrap import bootstrap
from research.studies import decision
from research.studies.decision import Contender, Outcome, Table, margin_at, read_table

VIDEOS = 40
DENSE = {"kinds": 1, "found": "given", "frames": 18.0}


def outcome(wrong: int, frames: float, seam: float = 0.0, wrong_at_end: int = 0) -> Outcome:
    """In so many of the videos, the first ones, one verdict is wrong."""
    whole, end = (
        "".join(f"{best - (n < count)}" for n in range(VIDEOS))
        for best, count in ((4, wrong), (3, wrong_at_end))
    )
    return Outcome(frames, seam, {"whole": whole, "end": end})


def contender(
    name: str,
    wrong: Mapping[int, int],
    *,
    frames: float = 2.0,
    kinds: int = 1,
    found: str = "given",
    is_control: bool = False,
    **more: Any,
) -> Contender:
    """A policy with so many wrong verdicts by seconds."""
    outcomes = {seconds: outcome(count, frames, **more) for seconds, count in wrong.items()}
    return Contender(name, kinds, found, is_control, outcomes)


def table(*others: Contender) -> Table:
    dense = contender("dense", dict.fromkeys(others[0].outcomes, 0), frames=18.0)
    return Table([dense, *others])


def test_margins_reach_up_to_their_length() -> None:
    assert [margin_at(s) for s in (1, 5, 6, 10, 11, 30, 60, 600)] == [1, 1, 1, 1, 2, 2, 4, 4]


def test_the_simplest_that_holds_is_the_default() -> None:
    decided = table(
        contender("roles", {5: 0}, kinds=3, found="video"),
        contender("window", {5: 0}),
        contender("measured", {5: 0}, kinds=3, found="model"),
    )
    assert decided.left(5) == ["window", "roles", "measured"]
    assert decided.decide().default == "window"


def test_what_is_better_takes_the_place_of_what_is_simpler() -> None:
    """One video more that is right may be chance; six of 40 are beyond it."""
    for wrong, best in ((1, "window"), (6, "roles")):
        decided = table(contender("window", {60: wrong}), contender("roles", {60: 0}, kinds=2, found="video"))
        assert decided.misses("window", 60) == []
        assert decided.decide().default == best


def test_a_policy_that_loses_to_a_simpler_one_of_its_cost_is_out() -> None:
    wrong = {60: 6}
    simple = contender("window", {60: 0}, frames=3.2)
    for frames, is_out in ((3.0, True), (2.9, False)):  # 0.25 frames more cost the same
        decided = table(simple, contender("roles", wrong, frames=frames, kinds=2, found="video"))
        assert decided.beats("window", "roles", 60)
        assert decided.losses("roles", 60) == (["window"] if is_out else [])
        assert decided.left(60) == ["window"], "the other one beats it there, whatever it costs"
    # What is less simple does not put it out at its cost.
    decided = table(contender("window", wrong), contender("roles", {60: 0}, kinds=2, found="video"))
    assert decided.losses("window", 60) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"frames": 4.01}, "4.01 past frames"),
        ({"seam": 0.051}, "seams +0.051"),
        ({"wrong": {5: 2}}, "-1.2 points (whole)"),
        ({"wrong_at_end": 2}, "-1.7 points (end)"),
    ],
)
def test_what_is_asked(changes: dict[str, Any], said: str) -> None:
    just: dict[str, Any] = {"wrong": {5: 1}, "frames": 4.0, "seam": 0.05, "wrong_at_end": 1}
    assert table(contender("window", **just)).misses("window", 5) == []
    decided = table(contender("window", **{**just, **changes}))
    assert decided.misses("window", 5) == [said]
    assert decided.decide().best == {5: None}
    assert decided.decide().default is None
    assert not decided.decide().is_auto


def test_the_best_may_differ_by_length() -> None:
    short = contender("short", {5: 0, 60: 30})
    long = contender("long", {5: 10, 60: 0}, kinds=2)
    decided = table(short, long).decide()
    assert decided.default is None
    assert decided.best == {5: "short", 60: "long"}
    assert decided.is_auto


def test_controls_beat_and_are_not_chosen() -> None:
    drawn = contender("drawn", {60: 0}, is_control=True)
    decided = table(drawn, contender("roles", {60: 6}, kinds=2, found="video"))
    assert decided.losses("roles", 60) == ["drawn"]
    assert decided.decide().best == {60: None}


def test_in_a_circle_the_simplest_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a", "b", "c"]
    decided = table(*(contender(name, {5: 0}, frames=2 + 0.5 * i) for i, name in enumerate(names)))
    beaten = {("a", "b"), ("b", "c"), ("c", "a")}
    monkeypatch.setattr(decided, "beats", lambda one, other, seconds: (one, other) in beaten)
    monkeypatch.setattr(decided, "losses", lambda name, seconds: [])
    assert decided.left(5) == names


# --- brute force ----------------------------------------------------------------------------------------


def points(one: Sequence[int], other: Sequence[int], verdicts: int) -> tuple[float, float, float]:
    found = bootstrap([100 * (x - y) / verdicts for x, y in zip(one, other, strict=True)], level=0.99)
    return found.value, found.low, found.high


def by_brute_force(
    data: Mapping[str, Any], lengths: Sequence[int]
) -> tuple[str | None, dict[int, str | None]]:
    """The rule once more, in its own words, over plain tables."""
    order = {"given": 0, "video": 1, "model": 2}
    allowed = {5: 1.0, 10: 1.0, 30: 2.0, 60: 4.0}
    left: dict[int, set[str]] = {}
    ranks: dict[int, dict[str, Any]] = {}
    for s in lengths:
        gain = {
            (a, b): [
                points(data[a][s]["whole"], data[b][s]["whole"], 4),
                points(data[a][s]["end"], data[b][s]["end"], 3),
            ]
            for a, b in itertools.permutations(data, 2)
        }
        wins = {
            pair
            for pair, found in gain.items()
            if any(low > 0 for _, low, _ in found) and all(high >= 0 for _, _, high in found)
        }
        rank = {n: (d["kinds"], order[d["found"]], d[s]["frames"], [*data].index(n)) for n, d in data.items()}
        fit = {
            n
            for n, d in data.items()
            if n != "dense"
            and not d["is_control"]
            and d[s]["frames"] <= 4
            and d[s]["seam"] <= 0.05
            and all(mean >= -allowed[s] for mean, _, _ in gain[n, "dense"])
            and not any(
                (m, n) in wins and rank[m][:3] < rank[n][:3] and data[m][s]["frames"] <= d[s]["frames"] + 0.25
                for m in data
            )
        }
        unbeaten = {n for n in fit if not any((m, n) in wins for m in fit)}
        left[s] = unbeaten or fit
        ranks[s] = rank

    def simplest(names: set[str], s: int) -> str | None:
        return min(names, key=lambda n: ranks[s][n]) if names else None

    everywhere = set.intersection(*left.values())
    return simplest(everywhere, lengths[0]), {s: simplest(left[s], s) for s in lengths}


@pytest.mark.parametrize("seed", range(12))
def test_the_rule_is_that_of_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = (5, 30, 60)
    skill = rng.uniform(0.9, 1.0, 7)
    data: dict[str, Any] = {}
    for number, name in enumerate(["dense", *"abcdef"]):
        data[name] = {
            "kinds": int(rng.integers(1, 3)),
            "found": str(rng.choice(decision.FOUND)),
            "is_control": name == "f",
        }
        for s in lengths:
            right = skill[number] ** (s / 30)
            data[name][s] = {
                "frames": 18.0
                if name == "dense"
                else float(rng.choice([2.0, 2.2, 3.0, 3.9, 9.0], p=[0.3, 0.2, 0.2, 0.2, 0.1])),
                "seam": float(rng.choice([0.0, 0.04, 0.06], p=[0.5, 0.4, 0.1])),
                "whole": rng.binomial(4, right, VIDEOS).tolist(),
                "end": rng.binomial(3, right, VIDEOS).tolist(),
            }
    results = {
        "policies": {name: {k: d[k] for k in ("kinds", "found", "is_control")} for name, d in data.items()},
        "lengths": {
            str(s): {
                "policies": {
                    name: {
                        "measures": {"past_frames": {"mean": d[s]["frames"]}},
                        "against_dense": {"seam_excess": {"mean": d[s]["seam"]}},
                        "right": {way: "".join(map(str, d[s][way])) for way in ("whole", "end")},
                    }
                    for name, d in data.items()
                }
            }
            for s in lengths
        },
    }
    decided = read_table(results).decide()
    assert (decided.default, dict(decided.best)) == by_brute_force(data, lengths)
