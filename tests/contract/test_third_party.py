"""The method of one's own on the pages: installed as a package, found by its entry point, run through the contract."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from components.core.errors import ConfigError
from components.methods import METHODS, method_config

ROOT = Path(__file__).resolve().parents[2]
NAME = "shared_down"
PROJECT = f"""
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "my-littoral-method"
version = "1.0"

[project.entry-points."littoral.methods"]
{NAME} = "my_method:SharedDownConfig"
broken = "my_method:Missing"

[tool.setuptools]
py-modules = ["my_method"]
"""


def page_code() -> str:
    """The one Python block of the page."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "guides" / "add-a-method.md").read_text(), re.DOTALL)
    return code


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the example package is installed."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "my_method.py").write_text(page_code())
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*install, "--target", str(target), str(source)], check=True, capture_output=True, text=True)
    return {**os.environ, "PYTHONPATH": str(target)}


def run(environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_the_example_is_short() -> None:
    assert len(page_code().splitlines()) < 40


def test_it_passes_the_contract(environment: dict[str, str]) -> None:
    result = run(environment, "-m", "pytest", "tests/contract/test_methods.py", "--method-contract", NAME, "-q")
    assert result.returncode == 0, result.stdout[-3000:]
    assert int(re.findall(r"(\d+) passed", result.stdout + "0 passed")[0]) > 10 or "100%" in result.stdout


def test_the_command_line_knows_it(environment: dict[str, str]) -> None:
    result = run(environment, "-m", "pipelines.coast", "pocket", "--method", "shared-down", "--print-config")
    assert result.returncode == 0, result.stderr
    assert f'"name": "{NAME}"' in result.stdout


def test_an_entry_point_that_names_nothing_is_one_sentence(environment: dict[str, str]) -> None:
    result = run(environment, "-m", "pipelines.coast", "pocket", "--method", "broken", "--print-config")
    assert result.returncode == 1
    assert result.stderr.startswith("error: method 'broken' (my_method:Missing) cannot be imported")


def test_without_the_package_it_is_unknown() -> None:
    assert NAME not in METHODS
    with pytest.raises(ConfigError, match="unknown method 'shared_down'"):
        method_config(NAME)
