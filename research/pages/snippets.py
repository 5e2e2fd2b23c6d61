"""Hooks of mkdocs: code by name, and pages with room for wide tables.

`--8<-- "path.py:Class.method"` on a page includes a function or class by its name. Lines and marks in the
code would have to be kept up to date; names break the build when they are gone.
"""

import ast
import re
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
INCLUDE = re.compile(r'^(?P<indent> *)--8<-- "(?P<path>[^":]+\.py):(?P<name>[A-Za-z_][\w.]*)"$', re.MULTILINE)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Put code in place of the names; leave out the table of contents where tables are wide."""
    if page.file.src_uri in config["extra"]["wide_pages"]:
        page.meta["hide"] = ["toc"]

    def put(found: re.Match[str]) -> str:
        return textwrap.indent(code(ROOT / found["path"], found["name"]), found["indent"])

    return INCLUDE.sub(put, markdown)


def code(path: Path, name: str) -> str:
    """The code of a function or class, without the indentation that it has in its class.

    Raises:
        ValueError: If there is none of that name.
    """
    text = path.read_text(encoding="utf-8")
    node: ast.AST = ast.parse(text)
    for part in name.split("."):
        children = {
            child.name: child
            for child in ast.iter_child_nodes(node)
            if isinstance(child, ast.FunctionDef | ast.ClassDef)
        }
        if part not in children:
            raise ValueError(f"{path} has no {name}")
        node = children[part]
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return textwrap.dedent("\n".join(text.splitlines()[first - 1 : node.end_lineno]))
