"""Where things are: names that people and scripts lean on, and the habits of every source file."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import TypeGuard

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {".ci", "clusters", "components", "docs", "pipelines", "tests"}
FILES = {
    ".gitignore",
    ".pre-commit-config.yaml",
    ".rayignore",
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "assets.txt",
    "constraints.txt",
    "mkdocs.yml",
    "pyproject.toml",
}
SOURCES = sorted(path for folder in ("components", "pipelines") for path in (ROOT / folder).rglob("*.py"))
QUICK_TESTS = sorted(
    path for kind in ("unit", "contract", "numerics") for path in (ROOT / "tests" / kind).rglob("*.py")
)
# What starts Ray or runs inside it; the pure functions of the other modules may be tested without.
RAY_MODULES = {f"components.training.{name}" for name in ("evaluate", "worker")}  # driver starts Ray only when it runs


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_the_promised_files_are_there() -> None:
    promised = FILES | {
        ".ci/run",
        "clusters/local.sh",
        "clusters/README.md",
        "pipelines/coast.py",
        "pipelines/prepare.py",
        "pipelines/rescore.py",
    }
    assert [name for name in sorted(promised) if not (ROOT / name).is_file()] == []


def test_nothing_else_is_tracked_at_the_top() -> None:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    top = {name.partition("/")[0] for name in listing.stdout.splitlines()}
    assert top - FOLDERS - FILES == set()


@pytest.mark.parametrize("name", [".ci/run", "clusters/local.sh"])
def test_scripts_are_executable_and_parse(name: str) -> None:
    assert os.access(ROOT / name, os.X_OK)
    assert (ROOT / name).read_text().startswith("#!/usr/bin/env bash\n")
    subprocess.run(["bash", "-n", name], cwd=ROOT, check=True)


@pytest.mark.parametrize("path", [path for path in SOURCES if path.name != "__init__.py"], ids=relative)
def test_every_source_file_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_there_is_no_drawer_for_everything() -> None:
    assert [relative(path) for path in SOURCES if path.stem in ("utils", "util", "helpers", "misc", "common")] == []


def test_package_files_are_empty() -> None:
    """Importing one component must not import others; the exceptions are a package's public names."""
    full = {f"components/{name}/__init__.py" for name in ("methods", "data/embedded/mini_coast", "metrics")}
    filled = {relative(path) for path in SOURCES if path.name == "__init__.py" and path.read_text().strip()}
    assert filled <= full


def test_pipelines_shadow_no_module() -> None:
    """A script started by its path puts `pipelines/` first on sys.path: no name there may hide an installed module."""
    names = [path.stem for path in (ROOT / "pipelines").glob("*.py") if path.stem != "__init__"]
    assert [name for name in names if importlib.util.find_spec(name) is not None] == []


def test_clusters_hold_no_python() -> None:
    assert list((ROOT / "clusters").rglob("*.py")) == []


@pytest.mark.parametrize("path", QUICK_TESTS, ids=relative)
def test_default_tests_start_no_ray(path: Path) -> None:
    names = imported(path)
    assert {name for name in names if name.partition(".")[0] == "ray"} == set()
    assert names & RAY_MODULES == set()


# What only looks, or makes a value that nothing else sees: `python -O` leaves the call out together with its assert.
LOOKING = {"isinstance", "len", "all", "any", "int", "float", "bool", "set", "sorted", "str"}
LOOKING |= {"numel", "sum", "get_submodule", "issubset", "startswith", "is_contiguous", "dim", "is_floating_point"}


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_no_assert_does_work(path: Path) -> None:
    asserts = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)]
    working = [node for each in asserts for node in ast.walk(each.test) if _may_work(node)]
    assert [f"line {node.lineno}" for node in working] == []


def _may_work(node: ast.AST) -> TypeGuard[ast.expr]:
    if isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        return name not in LOOKING
    return isinstance(node, ast.NamedExpr | ast.Await | ast.Yield | ast.YieldFrom)


def test_a_working_assert_would_be_found() -> None:
    tree = ast.parse("assert data.count() == 3\nassert (x := f()) > 1\nassert next(rows, None) is None")
    assert sum(_may_work(node) for node in ast.walk(tree)) == 4


def test_optimised_python_plans_and_prepares_the_same(tmp_path: Path) -> None:
    """`python -O` leaves asserts out."""
    environment = {**os.environ, "LITTORAL_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    told = []
    for flags in ([], ["-O"]):
        out = tmp_path / f"stream{len(told)}"
        prepare = ["pipelines/prepare.py", "mini-coast-domain", "--size", "nano", "--out", str(out)]
        plan = ["pipelines/coast.py", "pocket", "--stream.name", str(out), "--run-id", "x", "--storage", str(tmp_path)]
        for arguments in (prepare, [*plan, "--dry-run"]):
            command = [sys.executable, *flags, *arguments]
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        told.append({path.name: path.read_bytes() for path in sorted(out.rglob("*.parquet"))})
    assert told[0] == told[1] != {}
