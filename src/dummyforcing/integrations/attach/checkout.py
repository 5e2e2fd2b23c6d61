"""What a checkout of a public repository, or of a fork, offers to attach to; read, not run.

Nothing is imported: forks need packages and GPUs that are not there, and weights that are not there yet.
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from dummyforcing.errors import BadFile
from dummyforcing.integrations.attach.buffers import METHOD
from dummyforcing.integrations.attach.families import ATTRIBUTES, FAMILIES, Family

LARGEST = 2 * 2**20
"""Bytes of the largest file that is read."""
SKIPPED = {".git", ".venv", "venv", "node_modules", "site-packages", "__pycache__"}


@dataclass(frozen=True)
class Found:
    """A class of a checkout."""

    file: str
    """Relative to the checkout."""
    line: int
    name: str
    family: str = ""
    """Of a self-attention: an entry of `FAMILIES` by name; empty: of none."""
    problem: str = ""
    """In one clause what keeps it from being attached to."""


@dataclass(frozen=True)
class Checkout:
    """What was found."""

    attentions: tuple[Found, ...]
    """Classes that are a self-attention with a KV cache, or look like one; where there are none, those that
    look like one without a KV cache."""
    pipelines: tuple[Found, ...]
    """Classes that allocate dense KV buffers, which they need not any more; or cannot do without."""
    unreadable: tuple[str, ...]
    """Files that are no Python of this version."""

    @property
    def families(self) -> tuple[Family, ...]:
        """Whose code it is."""
        names = {found.family for found in self.attentions}
        return tuple(family for family in FAMILIES if family.name in names)


@dataclass
class _Class:
    file: str
    node: ast.ClassDef
    bases: list[str]
    attributes: set[str] = field(default_factory=set)
    methods: dict[str, list[str]] = field(default_factory=dict)
    """The arguments of each."""
    caches: tuple[str, ...] = ()
    """Attributes in which it keeps the KV buffers that it allocates."""


def read_checkout(path: Path) -> Checkout:
    """Find the self-attentions and the pipelines in a folder of Python files, or in one such file.

    Raises:
        BadFile: If there are no Python files.
    """
    if not path.exists():
        raise BadFile(f"There is no {path}", "give the folder of a checkout")
    files = list(_python_files(path))
    if not files:
        raise BadFile(f"{path} holds no Python files", "give the folder of a checkout")
    classes: dict[str, _Class] = {}
    unreadable = []
    for file in files:
        name = str(file.relative_to(path) if path.is_dir() else file.name)
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError, OSError):
            unreadable.append(name)
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                classes[f"{name}:{node.name}"] = _class(name, node)
    by_name = {one.node.name: one for one in classes.values()}
    attentions: list[Found] = []
    without_cache: list[Found] = []
    pipelines: list[Found] = []
    for one in classes.values():
        attributes, methods = _inherited(one, by_name, set())
        place = Found(one.file, one.node.lineno, one.node.name)
        trains = "training" in one.node.name.lower()
        if METHOD in methods and "device" in methods[METHOD] and not trains:
            guided = f"guidance, for which its {' and '.join(one.caches)} take turns, cannot be followed"
            pipelines.append(replace(place, problem=guided) if len(one.caches) > 1 else place)
        if (found := _attention(place, attributes, methods)) is not None:
            (attentions if "kv_cache" in methods["forward"] else without_cache).append(found)
    return Checkout(tuple(attentions or without_cache), tuple(pipelines), tuple(unreadable))


def _python_files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield from [path] if path.suffix == ".py" else []
        return
    for file in sorted(path.rglob("*.py")):
        inside = file.relative_to(path).parts
        if not SKIPPED & set(inside) and file.is_file() and file.stat().st_size <= LARGEST:
            yield file


def _class(file: str, node: ast.ClassDef) -> _Class:
    bases = [base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "") for base in node.bases]
    found = _Class(file, node, bases)
    for method in node.body:
        if isinstance(method, ast.FunctionDef):
            takes = method.args
            found.methods[method.name] = [
                one.arg for one in (*takes.posonlyargs, *takes.args, *takes.kwonlyargs)
            ]
            kept = {
                target.attr
                for statement in ast.walk(method)
                for target in _targets(statement)
                if isinstance(target, ast.Attribute) and getattr(target.value, "id", "") == "self"
            }
            found.attributes |= kept
            if method.name == METHOD:
                found.caches = tuple(sorted(name for name in kept if "cache" in name))
    return found


def _targets(statement: ast.AST) -> list[ast.expr]:
    if isinstance(statement, ast.Assign):
        return [
            part for one in statement.targets for part in (one.elts if isinstance(one, ast.Tuple) else [one])
        ]
    return [statement.target] if isinstance(statement, ast.AnnAssign) else []


def _inherited(
    one: _Class, by_name: Mapping[str, _Class], seen: set[str]
) -> tuple[set[str], dict[str, list[str]]]:
    """Attributes and methods of a class, those of its bases in the checkout included."""
    attributes, methods = set(one.attributes), dict(one.methods)
    for base in one.bases:
        if base in by_name and base not in seen and by_name[base] is not one:
            more, others = _inherited(by_name[base], by_name, {*seen, base})
            attributes |= more
            methods = {**others, **methods}
    return attributes, methods


def _attention(place: Found, attributes: set[str], methods: Mapping[str, list[str]]) -> Found | None:
    """Tell whether a class is a self-attention with a KV cache; None: it is something else."""
    takes = methods.get("forward", [])[1:]
    lacks = [name for name in ATTRIBUTES if name not in attributes]
    has_heads = {"q", "k", "v"} <= attributes or "to_qkv" in attributes
    if not has_heads or not takes or (lacks and "kv_cache" not in takes):
        return None
    family = next((one for one in FAMILIES if one.mark in takes or one.mark in methods), None)
    problem = ""
    if lacks:
        problem = f"it has no {', '.join(lacks)}"
    elif "kv_cache" not in takes:
        problem = f"its forward takes no kv_cache, but {', '.join(takes)}"
    elif family is None:
        problem = f"its forward takes {', '.join(takes)}, and none of {', '.join(f.mark for f in FAMILIES)}"
    named = family.name if family and not problem else ""
    return Found(place.file, place.line, place.name, named, problem)
