"""Every option of every command says what it is in --help, and what we write there is no wider than the terminal."""

from __future__ import annotations

import shlex
import subprocess
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tyro

from components.core.errors import ConfigError
from components.methods import METHODS
from pipelines import (
    coast,
    completion,
    export,
    judge,
    methods,
    nightly,
    prepare,
    report,
    rescore,
    serve,
    status,
    sweep,
    train_projector,
    unlearn,
)
from pipelines import list as list_command
from pipelines.cli import FIRST, Command
from pipelines.export import Export
from pipelines.judge import Judgement
from pipelines.list import ListOptions
from pipelines.littoral import COMMANDS
from pipelines.methods import Methods
from pipelines.nightly import Nightly
from pipelines.prepare import Prepare
from pipelines.presets import DEFAULT_PRESET, PRESETS, preset
from pipelines.report import Report
from pipelines.rescore import Rescore
from pipelines.serve import Serve
from pipelines.status import StatusOptions
from pipelines.sweep import SweepCommand
from pipelines.train_projector import ProjectorRun
from pipelines.unlearn import Unlearn

Main = Callable[[Sequence[str]], int]
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


def test_every_option_of_a_night_says_what_it_is() -> None:
    assert without_a_sentence(Nightly, Nightly(run=BASE)) == []


@pytest.mark.parametrize(
    "kind",
    [ListOptions, StatusOptions, Report, Rescore, Judgement, Export, Methods, Prepare, ProjectorRun, Serve, Unlearn],
)
def test_every_option_of_the_other_commands_says_what_it_is(kind: type[Any]) -> None:
    assert without_a_sentence(kind) == []


def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], main: Main, *arguments: str) -> str:
    """What a command prints on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert not stop.value.code
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if not line.startswith("usage:")]  # tyro's own line
    assert [line for line in lines if len(line) > 80] == []
    return said


@pytest.mark.parametrize(
    ("main", "first"),
    [(coast.main, FIRST), (sweep.main, sweep.FIRST), (nightly.main, nightly.FIRST)],
    ids=["coast", "sweep", "nightly"],
)
def test_help_fits_a_screen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], main: Main, first: tuple[str, ...]
) -> None:
    said = shown(monkeypatch, capsys, main, "--help")
    assert len(said.splitlines()) <= 42
    assert [option for option in ("--method", *first, "--help-all", "--help SECTION") if option not in said] == []
    whole = shown(monkeypatch, capsys, main, "--help-all")
    assert [
        option for option in (*first, "--training.optimizer.beta1", *METHODS, *PRESETS) if option not in whole
    ] == []


def test_help_of_a_section(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    said = shown(monkeypatch, capsys, coast.main, "--method", "lcia", "--help", "method")
    assert "--method.threshold" in said
    assert "--training.epochs" not in said
    assert "cl_moe" in shown(monkeypatch, capsys, coast.main, "--help", "methods")
    assert "llava-7b" in shown(monkeypatch, capsys, coast.main, "--help", "presets")
    with pytest.raises(ConfigError, match="Did you mean cluster"):
        coast.main(["--help", "clutser"])


@pytest.mark.parametrize(
    "main",
    [
        list_command.main,
        status.main,
        report.main,
        rescore.main,
        judge.main,
        export.main,
        methods.main,
        prepare.main,
        train_projector.main,
        serve.main,
        unlearn.main,
        completion.main,
    ],
)
def test_help_of_the_other_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], main: Main
) -> None:
    assert shown(monkeypatch, capsys, main, "--help") == shown(monkeypatch, capsys, main, "--help-all")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    assert completion.main([shell]) == 0
    said = capsys.readouterr().out
    names = [name.replace("_", "-") for name in COMMANDS]
    assert [word for word in (*names, "sequential-lora", "stream.order", "baseline") if word not in said] == []
    assert list(completion.OPTIONS) == names
    assert said.count(completion.FILES) == 3  # in what is printed where no word fits, too


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["coast", "--stream.na"], ["--stream.name"]),  # whose help has several lines
        (["sweep", "--search", "o"], ["optuna"]),
        (["expo"], ["export"]),
        (["report", "ru"], ["runs"]),  # a folder: no word fits
        (["coast", "--stream.name", "ru"], ["runs"]),
    ],
)
def test_bash_completes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], expected: list[str]
) -> None:
    completion.main(["bash"])
    (tmp_path / "script").write_text(capsys.readouterr().out)
    (tmp_path / "runs").mkdir()
    asked = f"COMP_WORDS=(littoral {shlex.join(words)}); COMP_CWORD={len(words)}"
    done = subprocess.run(
        ["bash", "-c", f'. ./script; {asked}; _tyro_littoral; printf "%s\\n" "${{COMPREPLY[@]}}"'],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == expected
