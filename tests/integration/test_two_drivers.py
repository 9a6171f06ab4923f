"""Two commands with one run id: the second is refused, or waits and finds the finished run; the first is unharmed."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

ROOT = Path(__file__).resolve().parents[2]


def start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.long
def test_the_second_is_refused_or_waits(tmp_path: Path) -> None:
    command = [sys.executable, "pipelines/coast.py", "pocket", "--method", "sequential-lora", "--run-id", "one"]
    command += ["--storage", str(tmp_path), "--stream.order", "chartqa", "docvqa", "--training.epochs", "10"]
    first = start(command)
    assert first.stdout is not None
    for line in first.stdout:
        if line.startswith("Task 1/2"):
            break
    refused, waiting = start(command), start([*command, "--wait"])
    _, said = refused.communicate(timeout=200)
    holder = f"process {first.pid} on {socket.gethostname()} since 20"
    assert refused.returncode == 1
    assert said.startswith(f"error: run one is already running in {tmp_path / 'one'} ({holder}")
    assert said.count("\n") == 1
    out, said = first.communicate(timeout=300)
    assert first.returncode == 0, said
    found, said = waiting.communicate(timeout=200)
    assert waiting.returncode == 0, said
    assert f"waiting for run one, which {holder}" in found
    assert "Task 1/2" not in found  # it learned nothing
    assert found.splitlines()[-1] == out.splitlines()[-1]  # the result in a sentence
    assert not (tmp_path / "one" / ".lock").exists()
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert sorted(run.info.status for run in runs) == ["FINISHED"] * 3  # the stream and its tasks, once
