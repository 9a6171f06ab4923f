"""Every option of every command says what it is in --help, and what we write there is no wider than the terminal."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import tyro

from components.methods import METHODS
from pipelines.cli import Command
from pipelines.judge import Judgement
from pipelines.methods import Methods
from pipelines.prepare import Prepare
from pipelines.presets import DEFAULT_PRESET, preset
from pipelines.report import Report
from pipelines.rescore import Rescore
from pipelines.sweep import SweepCommand
from pipelines.train_projector import ProjectorRun

ROOT = Path(__file__).resolve().parents[2]
BASE = preset(DEFAULT_PRESET)


def without_a_sentence(kind: type[Any], default: object = None) -> list[str]:
    """Options whose help is empty beside their default value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # tyro will name this function otherwise
        parser = tyro.extras.get_parser(kind) if default is None else tyro.extras.get_parser(kind, default=default)
    found: list[str] = []
    for action in parser._actions:
        text = (action.help or "").partition("(default")[0].partition("(required")[0]
        if not any(letter.isalpha() for letter in text):
            found.append("".join(action.option_strings[:1]) or action.dest)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_every_option_of_a_run_says_what_it_is(method: str) -> None:
    assert without_a_sentence(Command, Command(run=BASE.with_method(method))) == []


def test_every_option_of_a_sweep_says_what_it_is() -> None:
    assert without_a_sentence(SweepCommand, SweepCommand(run=BASE)) == []


@pytest.mark.parametrize("kind", [Report, Rescore, Judgement, Methods, Prepare, ProjectorRun])
def test_every_option_of_the_other_commands_says_what_it_is(kind: type[Any]) -> None:
    assert without_a_sentence(kind) == []


@pytest.mark.parametrize("pipeline", ["coast", "sweep", "report", "judge", "methods"])
def test_help_fits_the_terminal(pipeline: str) -> None:
    command = [sys.executable, f"pipelines/{pipeline}.py", "--help"]
    environment = os.environ | {"COLUMNS": "80", "PYTHONPATH": str(ROOT)}
    said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=300)
    lines = [line for line in said.stdout.splitlines() if not line.startswith("usage:")]  # tyro's own line
    assert [line for line in lines if len(line) > 80] == []
    assert "Examples:" in said.stdout or pipeline in ("report", "judge", "methods")
