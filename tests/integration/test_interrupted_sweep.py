"""SIGTERM to a sweep and all that it started: its trials leave checkpoints, and the same command ends the sweep."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from components.core.lock import holder_of

ROOT = Path(__file__).resolve().parents[2]
UPDATES = 30  # of each of the two tasks
PATIENCE_S = 600  # on a busy machine


@pytest.mark.long
@pytest.mark.timeout(3 * PATIENCE_S)
def test_a_sweep_stops_in_order_and_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "pipelines/sweep.py", "pocket", "--method", "sequential-lora", "--sweep-id", "cut"]
    command += ["--storage", str(tmp_path), "--stream.order", "chartqa", "iconqa", "--stream.test-limit", "4"]
    command += ["--training.updates-per-task", str(UPDATES), "--training.checkpoint-every-updates", "5"]
    command += ["--space", "method.rank=grid(2, 4)", "--at-once", "1", "--evaluation.no-zero-shot"]
    folder = tmp_path / "cut"
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + PATIENCE_S
    while not list(folder.glob("*/checkpoint_*/state.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    out, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 143, said
    assert "stopping in order; a second signal ends it at once" in out
    assert said == "terminated: run the same command with the same --sweep-id to continue\n"
    (begun,) = {checkpoint.parent for checkpoint in folder.glob("*/checkpoint_*")}  # the other trial has not begun
    assert holder_of(begun) is None

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    sweep = json.loads((folder / "sweep.json").read_text())["mlflow_run"]
    trial = json.loads((begun / "mlflow.json").read_text())["run_id"]
    experiment = client.get_run(sweep).info.experiment_id
    assert [client.get_run(run).info.status for run in (sweep, trial)] == ["KILLED", "KILLED"]
    tasks = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{trial}'", order_by=["start_time"])
    *learned, stopped = [task.info.status for task in tasks]  # on a busy machine the signal may find the second task
    assert (learned, stopped) in (([], "KILLED"), (["FINISHED"], "KILLED"))

    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert again.returncode == 0, again.stderr
    trials = json.loads((folder / "sweep.json").read_text())["trials"]
    # Each update was made once: the trial went on where it had stopped.
    assert [(each["state"], each["updates"]) for each in trials] == [("finished", 2 * UPDATES)] * 2
    assert {run.info.status for run in client.search_runs([experiment])} == {"FINISHED"}
