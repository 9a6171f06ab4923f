"""Printed commands, pasted into a real shell: every argument arrives, and the program is this environment's."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from components.core import shell

ROOT = Path(__file__).resolve().parents[2]
HARD = ["my stream", "50%41 #1?x", "it's", 'a "quoted" one', "$HOME", "a;b & c", "ü", "*", "back\\slash", "", "`id`"]


def test_every_argument_arrives_as_it_was() -> None:
    program = "import json, sys; print(json.dumps(sys.argv[1:]))"
    line = shell.command_line(sys.executable, "-c", program, *HARD)
    told = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)
    assert json.loads(told.stdout) == HARD


def test_python_is_named_by_path_unless_the_shell_finds_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    for name in ("python", "mlflow"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert shell.python() == str(folder / "python")
    monkeypatch.chdir(tmp_path)
    assert shell.python() == ".venv/bin/python"
    assert shell.tool_command("mlflow", "ui") == ".venv/bin/mlflow ui"
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")  # activated
    assert shell.python() == "python"
    assert shell.tool_command("mlflow", "ui") == "mlflow ui"
    assert shell.tool_command("ray", "status") == "ray status"  # not installed here: the name is all there is to say


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_pipeline_is_found_from_where_the_command_is_printed(
    elsewhere: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path if elsewhere else ROOT)
    line = shell.pipeline_command("coast.py", "--stream.name", tmp_path / "my stream")
    program, script, *rest = shlex.split(line)
    assert subprocess.run([program, "-c", ""], check=True).returncode == 0
    assert Path(script).is_absolute() == elsewhere
    assert Path(script).resolve() == ROOT / "pipelines" / "coast.py"
    assert rest == ["--stream.name", str(tmp_path / "my stream")]
