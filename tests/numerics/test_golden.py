"""No number of two tiny runs has changed, and what the comparison would and would not notice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from golden_runs import COMMAND, METHODS, differences, golden_config, golden_file, golden_lines

from components.training.config import RunConfig

OPTIONS = {"continual_llava": "alignment_learning_rate", "lcia": "kappa"}  # one that enters a formula of the method


@pytest.fixture(params=METHODS, ids=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


def changed(method: str, config: RunConfig, folder: Path, *, noise: float = 0.0) -> list[str]:
    expected = golden_file(method).read_text(encoding="utf-8").splitlines()
    return differences(expected, golden_lines(config, folder, noise=noise))


def test_no_number_has_changed(method: str, tmp_path: Path) -> None:
    found = changed(method, golden_config(method), tmp_path)
    message = "\n".join(found[:10])
    assert not found, (
        f"{len(found)} lines of {golden_file(method).name} differ, first:\n{message}\n"
        f"If the change is meant to alter numbers, run `{COMMAND}` and commit the files with it, saying why."
    )


def test_rounding_of_another_machine_is_within_the_tolerance(method: str, tmp_path: Path) -> None:
    assert changed(method, golden_config(method), tmp_path, noise=1e-6) == []


def test_another_seed_is_noticed(method: str, tmp_path: Path) -> None:
    found = changed(method, golden_config(method, seed=1), tmp_path)
    assert len([line for line in found if " update " in line]) == 14
    assert len([line for line in found if " norm " in line]) >= 12


def test_a_thousandth_in_a_formula_is_noticed(method: str, tmp_path: Path) -> None:
    config = golden_config(method)
    name = OPTIONS[method]
    nearly = replace(config.method, **{name: getattr(config.method, name) * 1.001})
    assert len(changed(method, replace(config, method=nearly), tmp_path)) >= 10
