"""Ctrl-C in the middle of a stream: one sentence, exit code 130, and MLflow knows; the same command goes on."""

from __future__ import annotations

import json
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


def test_an_interrupted_run_says_so_and_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "pipelines/coast.py", "pocket", "--method", "sequential-lora", "--run-id", "cut"]
    command += ["--storage", str(tmp_path), "--stream.order", *TASKS]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Task 2/2"):
            break
    process.send_signal(signal.SIGINT)
    asked = time.monotonic()
    _, said = process.communicate(timeout=240)
    assert process.returncode == 130, said
    assert time.monotonic() - asked < 120
    assert said.splitlines()[-1] == "interrupted: run the same command with the same --run-id to continue"
    assert "Traceback" not in said
    run_id = json.loads((tmp_path / "cut" / "mlflow.json").read_text())["run_id"]
    assert statuses(tmp_path, run_id) == ["KILLED", "FINISHED", "KILLED"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=400)
    assert statuses(tmp_path, run_id) == ["FINISHED", "FINISHED", "FINISHED"]
