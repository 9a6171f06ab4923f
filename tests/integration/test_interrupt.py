"""SIGINT and SIGTERM in the middle of a stream: a checkpoint, one sentence, the exit code, and MLflow knows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from mlflow import MlflowClient

ROOT = Path(__file__).resolve().parents[2]
TASKS = ("chartqa", "docvqa")


def statuses(storage: Path, run_id: str) -> list[str]:
    """Of the stream's run, then of its tasks' runs in order."""
    client = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    run = client.get_run(run_id)
    below = f"tags.`mlflow.parentRunId` = '{run_id}'"
    tasks = sorted(client.search_runs([run.info.experiment_id], below), key=lambda task: task.data.tags["task_index"])
    return [run.info.status, *(task.info.status for task in tasks)]


def ended_by(number: signal.Signals, command: list[str], *, at: str, group: bool = False) -> tuple[int, str, str]:
    """The command's exit code and what it said, when it is sent a signal after the first line that begins with `at`.

    `group`: sent to all of its processes at once, as a terminal does after Ctrl-C.
    """
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    before = []
    for line in process.stdout:
        before.append(line)
        if line.startswith(at):
            break
    else:
        raise AssertionError(f"no line {at!r}: {''.join(before)}{process.stderr and process.stderr.read()}")
    (os.killpg if group else os.kill)(process.pid, number)
    asked = time.monotonic()
    out, said = process.communicate(timeout=240)
    assert time.monotonic() - asked < 120
    assert "Traceback" not in said
    return process.returncode, "".join(before) + out, said


def test_an_interrupted_run_says_so_and_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "pipelines/coast.py", "pocket", "--method", "sequential-lora", "--run-id", "cut"]
    command += ["--storage", str(tmp_path), "--stream.order", *TASKS, "--training.epochs", "12"]
    command += ["--evaluation.limit", "2"]
    code, out, said = ended_by(signal.SIGINT, command, at="Task 1/2", group=True)
    assert code == 130, said
    assert said.splitlines()[-1] == "interrupted: run the same command with the same --run-id to continue"
    assert "stopping in order; a second signal ends it at once" in out
    run_id = json.loads((tmp_path / "cut" / "mlflow.json").read_text())["run_id"]
    assert statuses(tmp_path, run_id) == ["KILLED", "KILLED"]

    code, out, said = ended_by(signal.SIGTERM, command, at="Task 2/2")
    assert "continuing at task 1 of 2, update" in out
    assert code == 143, said
    assert said.splitlines()[-1] == "terminated: run the same command with the same --run-id to continue"
    assert statuses(tmp_path, run_id) == ["KILLED", "FINISHED", "KILLED"]

    again = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=400)
    assert "continuing at task 2 of 2, update" in again.stdout
    assert statuses(tmp_path, run_id) == ["FINISHED", "FINISHED", "FINISHED"]
