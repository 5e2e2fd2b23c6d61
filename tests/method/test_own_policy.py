"""Policies of the user's own: as objects, functions, classes and files; what is wrong with them is said."""

import dataclasses
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dummyforcing.errors import BadRequest
from dummyforcing.method import policy as policies
from dummyforcing.method.criteria import CRITERIA, choose_dummies
from dummyforcing.method.loading import load_policy
from dummyforcing.method.plan import HeadContext, Plan
from dummyforcing.method.policy import Policy, as_policy, dummy, parse_policy
from dummyforcing.method.programming import assign_roles, make_plan

NEAR, FAR = HeadContext(0, 1), HeadContext(1, 9)
ROLES = {"near": NEAR, "far": FAR}
SCORES = torch.rand(4, 5, 3, generator=torch.Generator().manual_seed(0))
FILE = """
from dummyforcing import HeadContext, Policy

class Every:
    roles = {"near": HeadContext(0, 1), "far": HeadContext(1, 9)}
    first_frames = 2

    def __init__(self, step: int = 2):
        self.step = step

    def assign(self, scores):
        return [["near" if head % self.step else "far" for head in range(scores.shape[1])] for _ in scores]

every = Every()

def made(step: int):
    return Every(step)

def configured():
    return Policy("something", roles=Every.roles, assign=every.assign)
"""


class Halves:
    """The first half of each layer sees far."""

    roles = ROLES

    def assign(self, scores: Tensor) -> Sequence[Sequence[str]]:
        half = scores.shape[1] // 2
        return [["far"] * half + ["near"] * (scores.shape[1] - half)] * len(scores)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of policies in the current folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine_of_test.py"
    path.write_text(FILE)
    return path


def test_an_object_with_roles_and_assign_is_a_policy() -> None:
    policy = as_policy(Halves())
    assert (policy.name, policy.initial, policy.classify_at_chunk) == ("Halves", HeadContext(0, None), 1)
    plan = make_plan(policy, SCORES, chunk=1)
    assert plan.roles == (("far", "far", "near", "near", "near"),) * 4
    assert plan.table == Halves.roles
    assert plan.counts == {"near": 12, "far": 8}
    assert plan.policy == "Halves"
    assert plan.num_dummy == 0


@pytest.mark.parametrize("given", [Halves, Halves(), lambda: Halves(), lambda: as_policy(Halves())])
def test_classes_functions_and_objects_are_one(given: object) -> None:
    assert make_plan(as_policy(given), SCORES, 1).roles == make_plan(as_policy(Halves()), SCORES, 1).roles


def test_an_own_policy_that_does_what_dummy_does_gives_its_plan() -> None:
    """Under other names; the oracle is the built-in one."""
    built_in = dummy(6)
    assert built_in.roles is not None
    names = {"dummy": "idle", "sink": "anchor", "neighbor": "follower"}

    def assign(scores: Tensor) -> list[list[str]]:
        return [[names[role] for role in row] for row in assign_roles(scores, built_in.dummy_heads(20))]

    table = {names[role]: context for role, context in built_in.roles.items()}
    own = make_plan(Policy("own", roles=table, assign=assign), SCORES, 1)
    expected = make_plan(built_in, SCORES, 1)
    assert own.contexts == expected.contexts
    assert own.roles == tuple(tuple(names[role] for role in row) for row in expected.roles)
    assert own.scores == expected.scores


def test_any_number_of_roles(tmp_path: Path) -> None:
    """One for each head; the plan is saved and read again."""

    table = {f"head{i}": HeadContext(i % 2, i) for i in range(20)}

    class Each:
        roles = table

        def assign(self, scores: Tensor) -> list[list[str]]:
            scores.zero_()  # it has scores of its own
            return [[f"head{5 * layer + head}" for head in range(5)] for layer in range(4)]

    plan = make_plan(as_policy(Each()), SCORES, 1)
    assert set(plan.counts.values()) == {1}
    assert plan.contexts[3][4] == HeadContext(1, 19)
    assert plan.scores is not None
    assert plan.scores[0][0][0] == pytest.approx(SCORES[0, 0, 0].item())
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_criterion_as_a_function_is_what_it_is_by_name(criterion: str) -> None:
    by_name = dataclasses.replace(dummy(), criterion=criterion, seed=3)
    function = CRITERIA[criterion]
    own = dataclasses.replace(
        dummy(), seed=3, criterion=lambda mass, n, seed: torch.tensor(function(mass, n, seed))
    )
    assert make_plan(own, SCORES, 1) == make_plan(by_name, SCORES, 1)


def test_a_criterion_may_choose_how_many() -> None:
    assert choose_dummies(SCORES, 10, lambda mass, n, seed: (3, 7, 3)) == [3, 7]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            5,
            "Policy 'int' is no policy but int; give a name, a Policy, or an object that has roles",
        ),
        (lambda: None, "is no policy but NoneType"),
        (lambda number: None, r"failed \(TypeError: .*number"),
        (type("Bare", (), {"roles": {}, "assign": print}), "Policy 'Bare' has no roles; give roles="),
    ],
)
def test_what_is_no_policy_is_refused(given: object, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        as_policy(given)


def test_a_role_without_a_word_or_a_context_is_refused() -> None:
    for roles, message in (
        ({"two words": NEAR}, "calls a role 'two words'; name each in one word"),
        ({"": NEAR}, "calls a role ''"),
        ({1: NEAR}, "calls a role 1"),
        ({"far": (0, 3)}, r"has role 'far', which sees \(0, 3\); give HeadContext"),
        (None, "assigns roles, and says nothing of what they see"),
    ):
        with pytest.raises(BadRequest, match=message):
            Policy("own", roles=roles, assign=Halves().assign)  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match="has roles far, and nothing that gives them; give assign=FUNCTION"):
        Policy("own", roles={"far": FAR})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"classify_at_chunk": "2"}, "classify_at_chunk='2'; give a whole number"),
        ({"rows": "all"}, "cannot score 'all' rows; take a number, a Fraction of all, or None"),
        ({"score_pass": "all"}, "cannot score pass 'all'; take 'denoise' or 'commit'"),
        ({"name": 3}, "A policy cannot be called 3"),
        ({"initial": 3}, "heads cannot see 3 under policy"),
        ({"criterion": "magic"}, "There is no criterion 'magic'"),
    ],
)
def test_wrong_fields_are_refused(wrong: Any, message: str) -> None:
    own = Halves()
    vars(own).update(wrong)
    with pytest.raises(BadRequest, match=message):
        as_policy(own)


@pytest.mark.parametrize(
    ("assign", "message"),
    [
        (lambda s: 1 / 0, r"Policy 'own' failed in line \d+ of test_own_policy.py \(ZeroDivisionError"),
        (lambda s: None, r"failed \(TypeError"),
        (lambda s: [["near"]], "gave 1 rows of 1 roles; give 4 rows, one per layer, of 5 roles each"),
        (lambda s: [], "gave 0 rows of no roles"),
        (lambda s: ["near"] * 4, "gave 0 rows"),
        (lambda s: [["near"] * 5] * 3 + [["near"]], "gave 4 rows of 1 or 5 roles"),
        (lambda s: s.argmax(-1), r"gave a head role tensor\(\d\), and does not say what that sees"),
        (lambda s: [["ghost"] * 5] * 4, r"role 'ghost', .*; give one of its roles \(near, far\)"),
    ],
)
def test_what_assign_does_wrong_is_said(assign: Any, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        make_plan(Policy("own", roles=Halves.roles, assign=assign), SCORES, 1)


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (lambda mass, n, seed: mass[99], r"Criterion '<lambda>' failed in line \d+ of test_own_policy.py"),
        (lambda mass, n, seed: [20], "chose head 20; give whole numbers from 0 to 19"),
        (lambda mass, n, seed: [0.5], "chose head 0.5"),
        (lambda mass, n: [0], r"failed \(TypeError"),
    ],
)
def test_what_a_criterion_does_wrong_is_said(criterion: Any, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        make_plan(dataclasses.replace(dummy(), criterion=criterion), SCORES, 1)


@pytest.mark.parametrize("name", ["every", "Every", "Every:2", "made:2", "configured"])
@pytest.mark.parametrize("place", ["mine_of_test.py", "mine_of_test"])
def test_files_and_modules(mine: Path, name: str, place: str) -> None:
    policy = load_policy(f"{place}:{name}")
    assert policy.name == f"{place}:{name}"
    assert policy.sha256 is not None
    assert make_plan(policy, SCORES, 1).roles == (("far", "near", "far", "near", "far"),) * 4
    assert load_policy(f"{mine.parent / 'mine_of_test.py'}:{name}").name == f"mine_of_test.py:{name}"


def test_numbers_are_arguments_and_fields_count(mine: Path) -> None:
    policy = load_policy("mine_of_test.py:made:3")
    assert policy.name == "mine_of_test.py:made:3"
    assert policy.first_frames == 2
    assert make_plan(policy, SCORES, 1).roles[0] == ("far", "near", "near", "far", "near")


def test_a_file_is_read_as_it_is_now(mine: Path) -> None:
    before = load_policy("mine_of_test.py:every")
    mine.write_text(FILE.replace("self.step = step", "self.step = 5"))
    after = load_policy("mine_of_test.py:every")
    assert make_plan(after, SCORES, 1).counts != make_plan(before, SCORES, 1).counts
    assert after.sha256 != before.sha256


def test_a_file_finds_what_lies_beside_it(mine: Path) -> None:
    (mine.parent / "below").mkdir()
    (mine.parent / "below" / "beside_of_test.py").write_text(FILE)
    (mine.parent / "below" / "own_of_test.py").write_text("from beside_of_test import every")
    before = list(sys.path)
    assert load_policy("below/own_of_test.py:every").name == "own_of_test.py:every"
    assert sys.path == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing.py:every", "There is no file nothing.py"),
        ("mine_of_test.py:evry", "There is no 'evry' in mine_of_test.py; the nearest is 'every'"),
        ("mine_of_test.py", "does not name a policy of your own; write FILE.py:NAME or MODULE:NAME"),
        ("mine_of_test.py:every:3", "cannot be read; write mine_of_test.py:every without numbers"),
        ("mine_of_test.py:made", "write mine_of_test.py:made:STEP with whole numbers"),
        ("mine_of_test.py:made:x", "write mine_of_test.py:made:STEP with whole numbers"),
        ("no_module_of_test:every", "There is no module 'no_module_of_test'; install it, or name a file"),
        ("os:sep", "Policy 'os:sep' is no policy but str"),
        ("dummy:many", "write dummy:NEIGHBOR with whole numbers"),
    ],
)
def test_what_cannot_be_loaded_is_said(mine: Path, text: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        load_policy(text)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("a = (", "File broken_of_test.py failed in line 1 of broken_of_test.py"),
        ("import nothing_of_test", r"line 1 of broken_of_test.py \(ModuleNotFoundError"),
        ("\nraise RuntimeError('on\\npurpose')", r"line 2 of broken_of_test.py \(RuntimeError: on purpose\)"),
        ("import sys\nsys.exit(3)", r"line 2 of broken_of_test.py \(SystemExit"),
        ("def made():\n    return {}['key']", r"'broken_of_test.py:made' failed in line 2 .*KeyError"),
        ("def made():\n    import torch\n    torch.zeros(2) @ torch.zeros(3)", "failed in line 3"),
    ],
)
def test_where_code_fails_is_said(mine: Path, code: str, message: str) -> None:
    (mine.parent / "broken_of_test.py").write_text(code)
    with pytest.raises(BadRequest, match=message):
        load_policy("broken_of_test.py:made")


def test_names_alone_run_no_file(mine: Path) -> None:
    mine.write_text("raise RuntimeError('it ran')")
    for text in ("mine_of_test.py:every", "mine_of_test:every", "os:getcwd"):
        with pytest.raises(BadRequest, match="There is no policy"):
            parse_policy(text)


def test_installed_packages_add_names(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(mine.parent))
    added = [
        EntryPoint("steps", "mine_of_test:made", policies.GROUP),
        EntryPoint("fixed", "mine_of_test:every", policies.GROUP),
        EntryPoint("dense", "mine_of_test:every", policies.GROUP),
        EntryPoint("gone", "mine_of_test:nothing", policies.GROUP),
    ]
    monkeypatch.setattr(
        policies, "entry_points", lambda group: EntryPoints(added) if group == policies.GROUP else []
    )
    for load in (parse_policy, load_policy):
        assert (load("steps:3").name, load("fixed").name) == ("steps:3", "fixed")
        assert make_plan(load("steps:3"), SCORES, 1).counts == {"near": 12, "far": 8}
        assert load("dense") == policies.dense()  # built-in names stay as they are
        with pytest.raises(BadRequest, match="'gone' of an installed package failed"):
            load("gone")
        with pytest.raises(BadRequest, match="write steps:STEP with whole numbers"):
            load("steps")
    with pytest.raises(BadRequest, match="the nearest is 'steps'"):
        parse_policy("stepps")
