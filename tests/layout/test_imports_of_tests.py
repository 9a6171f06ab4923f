"""What tests, benchmarks and campaigns import from the program exists there: many of them run by hand only."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "tests").rglob("*.py"))


@cache
def names_in(module: str) -> frozenset[str] | None:
    """Names at the top of a module of ours, those in its conditions included; None where there is no such module."""
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not file.is_file():
        return frozenset() if path.is_dir() else None
    found = {each.stem for each in path.iterdir()} if path.is_dir() else set[str]()
    waiting: list[ast.stmt] = [*ast.parse(file.read_text()).body]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {each.asname or each.name for each in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.For | ast.With):
            found |= {
                each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
            }
        elif isinstance(node, ast.If | ast.Try):
            waiting += [
                *node.body,
                *node.orelse,
                *(each for handler in getattr(node, "handlers", ()) for each in handler.body),
            ]
    return frozenset(found)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_name_that_a_test_imports_exists(file: Path) -> None:
    missing = [
        f"{node.module}.{each.name}"
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("components", "pipelines")
        for each in node.names
        if each.name not in (names_in(str(node.module)) or ())
    ]
    assert not missing
