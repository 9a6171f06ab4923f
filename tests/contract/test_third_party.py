"""The method of one's own on the pages: installed as a package, found by its entry point, run through the contract."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
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


# Both commands, and then the contract, in one process, since importing takes longer than they do.
ASKED = f"""
import contextlib, io, json, sys
import pytest
from pipelines import coast
from pipelines.littoral import guarded

def said(method):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = guarded(lambda: coast.main(["pocket", "--method", method, "--print-config"]))
    return code, out.getvalue(), err.getvalue()

json.dump([said("shared-down"), said("broken")], open(sys.argv[1], "w"))
sys.exit(pytest.main(["tests/contract/test_methods.py", "--method-contract", "{NAME}", "-q"]))
"""


@dataclass(frozen=True, kw_only=True)
class Installed:
    """What was said where the example package is installed: exit code, stdout and stderr."""

    named: tuple[int, str, str]
    broken: tuple[int, str, str]
    contract: tuple[int, str, str]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "my_method.py").write_text(page_code())
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*install, "--target", str(target), str(source)], check=True, capture_output=True, text=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(target), str(ROOT)))}
    command = [sys.executable, "-c", ASKED, str(source / "said")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (source / "said").is_file(), done.stderr
    named, broken = map(tuple, json.loads((source / "said").read_text()))
    return Installed(named=named, broken=broken, contract=(done.returncode, done.stdout, done.stderr))


def test_the_example_is_short() -> None:
    assert len(page_code().splitlines()) < 40


def test_it_passes_the_contract(installed: Installed) -> None:
    code, out, _ = installed.contract
    assert code == 0, out[-3000:]
    assert int(re.findall(r"(\d+) passed", out + "0 passed")[0]) > 10 or "100%" in out


def test_the_command_line_knows_it(installed: Installed) -> None:
    code, out, err = installed.named
    assert code == 0, err
    assert f'"name": "{NAME}"' in out


def test_an_entry_point_that_names_nothing_is_one_sentence(installed: Installed) -> None:
    code, _, err = installed.broken
    assert code == 1
    assert err.startswith("error: method 'broken' (my_method:Missing) cannot be imported")


def test_without_the_package_it_is_unknown() -> None:
    assert NAME not in METHODS
    with pytest.raises(ConfigError, match="unknown method 'shared_down'"):
        method_config(NAME)
