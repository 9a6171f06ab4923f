"""Where things are, and the few habits of source files that neither ruff nor import-linter checks."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for folder in ("components", "pipelines") for path in (ROOT / folder).rglob("*.py"))
SCRIPTS = (".ci/run", "clusters/local.sh", "locks/update")
# What never belongs into a commit: what runs, builds and editors leave, drawers for everything, weights and data.
JUNK = re.compile(
    r"^(runs|mlruns|prepared|build|dist|site|venv)/"
    r"|(^|/)(\.venv|__pycache__|node_modules|\.idea|\.vscode|\.DS_Store)(/|$)"
    r"|(^|/)(utils?|helpers|misc|common)\.py$"
    r"|\.(pyc|orig|rej|bak|swp|log|pkl|pickle|pt|pth|bin|ckpt|db|sqlite|egg-info|parquet|zip|tar|gz)$"
)
# What starts Ray or runs inside it; the pure functions of the other modules may be tested without.
RAY_MODULES = {"components.serving.application", "components.training.evaluate", "components.training.worker"}
# Packages whose `__init__` offers names; elsewhere importing one component must not import others.
PUBLIC_PACKAGES = {
    "components.exporting",
    "components.models.families",
    "components.methods",
    "components.metrics",
    "components.data.embedded.mini_coast",
}


def tracked() -> list[str]:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    return listing.stdout.splitlines()


def test_no_junk_is_tracked() -> None:
    assert [name for name in tracked() if JUNK.search(name)] == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_executable_and_parse(name: str) -> None:
    assert os.access(ROOT / name, os.X_OK)
    assert (ROOT / name).read_text().startswith("#!/usr/bin/env bash\n")
    subprocess.run(["bash", "-n", name], cwd=ROOT, check=True)


def test_package_files_are_empty() -> None:
    filled = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in SOURCES
        if path.name == "__init__.py" and path.read_text().strip()
    }
    assert filled <= PUBLIC_PACKAGES


def test_the_wheel_carries_every_file_beside_the_code() -> None:
    """What the tests run from a checkout would otherwise be missing once installed."""
    packed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    found = {path for package, patterns in packed.items() for each in patterns for path in _folder(package).glob(each)}
    files = [path for path in (ROOT / "components").rglob("*") if path.is_file()]
    assert [path for path in files if path.suffix not in (".py", ".pyc") and path not in found] == []


def _folder(package: str) -> Path:
    return ROOT.joinpath(*package.split("."))


def test_pipelines_shadow_no_module() -> None:
    """A script started by its path puts `pipelines/` first on sys.path: no name there may hide an installed module."""
    names = [path.stem for path in (ROOT / "pipelines").glob("*.py") if path.stem != "__init__"]
    assert [name for name in names if importlib.util.find_spec(name) is not None] == []


def test_default_tests_start_no_ray() -> None:
    quick = [path for kind in ("unit", "contract", "numerics") for path in (ROOT / "tests" / kind).rglob("*.py")]
    starting = [
        (path.name, name)
        for path in quick
        for name in imported(path)
        if name.partition(".")[0] == "ray" or name in RAY_MODULES
    ]
    assert starting == []


def imported(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


# What only looks, or makes a value that nothing else sees: `python -O` leaves the call out together with its assert.
LOOKING = {"isinstance", "len", "all", "any", "int", "float", "bool", "set", "sorted", "str"}
LOOKING |= {"numel", "sum", "get_submodule", "issubset", "startswith", "is_contiguous", "dim", "is_floating_point"}


def test_no_assert_does_work() -> None:
    assert [(path.name, line) for path in SOURCES for line in working_asserts(path.read_text())] == []


def test_a_working_assert_would_be_found() -> None:
    assert working_asserts("assert data.count() == 3\nassert (x := f()) > 1\nassert next(rows, None) is None") == [
        1,
        2,
        3,
    ]


def working_asserts(source: str) -> list[int]:
    """Lines of asserts that do more than look."""
    asserts = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assert)]
    return [each.lineno for each in asserts if any(_may_work(node) for node in ast.walk(each.test))]


def _may_work(node: ast.AST) -> TypeGuard[ast.expr]:
    if isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        return name not in LOOKING
    return isinstance(node, ast.NamedExpr | ast.Await | ast.Yield | ast.YieldFrom)


@pytest.mark.long
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


def test_test_files_have_names_of_their_own() -> None:
    """pytest takes a file for another one's module where both are called the same and neither is in a package."""
    together = [path for path in tracked() if re.fullmatch(r"tests/(?!integration).*test_\w+\.py", path)]
    names = [path.rpartition("/")[2] for path in together]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_what_is_printed_goes_through_the_neutral_ones() -> None:
    """Replies, names and errors may hold escape sequences: `print_text` and `Terminal` write them out."""
    own = {"visible.py", "terminal.py"}
    found = [f"{path.name}: {line}" for path in SOURCES if path.name not in own for line in raw(path.read_text())]
    assert found == [], "print with components.core.visible.print_text or components.console.terminal.Terminal"


def test_raw_printing_would_be_found() -> None:
    assert raw("import rich.console\nprint(1)\nrich.console.Console()") == ["print(1)", "rich.console.Console()"]
    assert raw("from rich.console import Console as C\nC(width=3)\nTerminal().print(2)") == ["C(width=3)"]


def raw(source: str) -> list[str]:
    """Calls of `print`, and consoles of rich itself."""
    tree = ast.parse(source)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "rich.console"]
    names = {alias.asname or alias.name for node in imports for alias in node.names if alias.name == "Console"}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [ast.unparse(node) for node in calls if ast.unparse(node.func) in {"print", "rich.console.Console", *names}]


# What unpickles, or runs code that comes with a model. PyTorch's restricted reader (`weights_only`) builds tensors
# alone; those of SENT read what this program has pickled itself, here or in a process of its own.
UNPICKLING = {"load", "loads", "Unpickler", "read_pickle"}
UNPICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "torch", "numpy", "np", "pandas", "pd", "marshal", "shelve"}
SENT = {
    "components/data/formats/ray_map.py": 2,
    "components/training/entry.py": 1,  # to see that an exception can be sent
    "components/training/pickled.py": 1,
}


def test_nothing_is_unpickled_from_disk() -> None:
    found = {path.relative_to(ROOT).as_posix(): len(unpickled(path.read_text())) for path in SOURCES}
    assert {name: count for name, count in found.items() if count} == SENT


def test_unpickling_would_be_found() -> None:
    assert unpickled("torch.load(p)\ntorch.load(p, weights_only=True)\njson.load(f)") == ["torch.load(p)"]
    assert len(unpickled("pickle.load(f)\nnp.load(p)\nAutoModel.from_pretrained(n, trust_remote_code=True)")) == 3


def unpickled(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        owner, _, name = ast.unparse(node.func).rpartition(".")
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        reads = owner in UNPICKLERS and name in UNPICKLING and given.get("weights_only") != "True"
        if reads or given.get("trust_remote_code", "False") != "False":
            found.append(ast.unparse(node))
    return found
