"""The README, .ci/run, pyproject.toml and constraints.txt say the same about installing and running."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
RUN_TESTS = ".venv/bin/python -m pytest -n auto"
RUN_INTEGRATION = '.venv/bin/python -m pytest tests/integration -m "not cluster and not long" -n 2'
# Alone: `ray start` wants the machine.
RUN_CLUSTER = '.venv/bin/python -m pytest tests/integration -m "cluster and not long"'
RUN_MAIN_JOB = ".venv/bin/python pipelines/coast.py"


def commands() -> list[str]:
    """The README's install-and-do commands: one line each, in their order."""
    return [line for line in README.splitlines() if line.startswith("python3 -m venv")]


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for extra in project["optional-dependencies"].values() for line in extra]
    lines = [*project["dependencies"], *extras]
    return [Requirement(line) for line in lines if not line.startswith("littoral[")]  # an extra that takes in another


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.partition("==") for line in lines if line and not line.startswith("#")]
    return {name: version for name, _, version in pins}


def test_two_commands_install_and_run() -> None:
    main_job, tests = commands()
    install, _, last = tests.rpartition(" && ")
    assert last == RUN_TESTS
    assert main_job == f"{install.replace('[assets,dev]', '[assets]')} && {RUN_MAIN_JOB}"


def test_ci_runs_the_readmes_test_command() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    install, _, last = commands()[1].rpartition(" && ")
    assert install in lines
    assert last in lines
    assert lines.index(install) < lines.index(last) < lines.index(RUN_INTEGRATION) < lines.index(RUN_CLUSTER)


@pytest.mark.parametrize("requirement", requirements(), ids=lambda requirement: requirement.name)
def test_every_dependency_is_pinned_within_its_bounds(requirement: Requirement) -> None:
    assert requirement.name in constraints()
    assert Version(constraints()[requirement.name]) in requirement.specifier


def test_constraints_pin_nothing_else() -> None:
    assert constraints().keys() - {requirement.name for requirement in requirements()} == set()
