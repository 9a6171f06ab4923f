"""Sweeps for real: Ray Tune over streams on the pocket model and nano-size data, every sweep a process of its own.

python -m pytest tests/integration/test_sweep.py
"""

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

from components.evaluation.matrix import ScoreMatrix
from components.methods.continual_llava import ContinualLlavaConfig
from pipelines.presets import preset

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 900
pytestmark = pytest.mark.timeout(2 * TIMEOUT_S)
TASKS = ("--stream.order", "chartqa", "iconqa", "--stream.test-limit", "8")
UPDATES = 8  # of a task: 2 epochs of 32 rows in batches of 8


def start(storage: Path, sweep_id: str, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "pipelines/sweep.py", "pocket", "--storage", str(storage), "--sweep-id", sweep_id]
    return subprocess.Popen(
        [*command, *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == code, output[-3000:]
    assert "Traceback" not in output
    return output


def trials(folder: Path) -> dict[str, dict]:  # type: ignore[type-arg]
    return {trial["name"]: trial for trial in json.loads((folder / "sweep.json").read_text())["trials"]}


def test_a_sweep_is_killed_and_goes_on(tmp_path: Path) -> None:
    """Pool size x rank; two of the four only, to be short. All figures come from the trials' own matrices."""
    space = ("--space", "method.slots_per_task=grid(4, 8)", "method.rank=grid(2)", *TASKS)
    folder = tmp_path / "killed"
    process = start(tmp_path, "killed", *space, "--at-once", "1")
    deadline = time.monotonic() + TIMEOUT_S
    while not list(folder.glob("*/finished.json")):
        assert process.poll() is None, "the sweep ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    first = next(folder.glob("*/finished.json")).parent
    before = (first / "finished.json").read_text()

    output = finish(start(tmp_path, "killed", *space))
    assert (first / "finished.json").read_text() == before  # not run again
    found = trials(folder)
    assert {name: trial["state"] for name, trial in found.items()} == {
        "slots_per_task-4_rank-2": "finished",
        "slots_per_task-8_rank-2": "finished",
    }
    averages: dict[str, float] = {}
    for name, trial in found.items():
        summary = ScoreMatrix.read(folder / name / "score_matrix.json").summary()
        assert {figure: trial["figures"][figure] for figure in summary} == summary
        averages[name] = summary["final_average"]
    best = preset(str(folder / "best.json"))
    wins = averages["slots_per_task-8_rank-2"] > averages["slots_per_task-4_rank-2"]
    assert isinstance(best.method, ContinualLlavaConfig)
    assert best.method.slots_per_task == (8 if wins else 4)
    assert best.stream.order == ("chartqa", "iconqa")
    assert (folder / "pareto.png").stat().st_size > 5000
    assert (folder / "table.md").read_text().count("\n") == 4
    assert "Best by final_average" in output

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    parent = json.loads((folder / "sweep.json").read_text())["mlflow_run"]
    run = client.get_run(parent)
    assert run.info.status == "FINISHED"
    below = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert {each.info.run_id for each in below} == {trial["mlflow_id"] for trial in found.values()}
    assert {each.data.metrics["final_average"] for each in below} == set(averages.values())


def test_a_failing_trial_is_recorded_and_a_slow_one_is_ended(tmp_path: Path) -> None:
    """Rates: one that learns, one that hardly moves and one that bursts, one after the other."""
    rates = "training.optimizer.learning_rate=grid(0.02, 1e-6, 1e30)"
    asha = ("--stopping", "asha", "--grace", "1", "--at-once", "1", "--metric", "final_average")
    options = ("--method", "sequential-lora", "--space", rates, *asha, *TASKS, "--training.epochs", "4")
    output = finish(start(tmp_path, "rates", *options), code=1)
    found = trials(tmp_path / "rates")
    good, slow, burst = (found[f"learning_rate-{rate}"] for rate in ("0.02", "1e-06", "1e+30"))
    assert good["state"] == "finished"
    assert good["updates"] == 4 * UPDATES
    assert (slow["state"], slow["learned"], slow["updates"]) == ("stopped", 1, 2 * UPDATES)
    assert burst["state"] == "failed"
    assert "the loss of task chartqa became" in burst["reason"]
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert client.get_run(slow["mlflow_id"]).info.status == "KILLED"
    assert "of 96 updates of the plain sweep were made" in output


@pytest.mark.parametrize("workers", [1, 2])
def test_orders_share_their_first_tasks(tmp_path: Path, workers: int) -> None:
    """Two orders begin alike and two settings differ in scoring only: what they share changes no score."""
    orders = "stream.order=grid(('chartqa', 'iconqa'), ('chartqa', 'docvqa'))"
    options = ("--space", orders, "--stream.test-limit", "8", "--cluster.num-workers", str(workers))
    finish(start(tmp_path, "shared", *options))
    shared = trials(tmp_path / "shared")
    assert sorted(trial["updates"] for trial in shared.values()) == [UPDATES, 2 * UPDATES]
    if workers == 1:
        finish(start(tmp_path, "alone", *options, "--no-share"))
        alone = trials(tmp_path / "alone")
        assert [trial["updates"] for trial in alone.values()] == [2 * UPDATES] * 2
        for name in shared:
            files = [tmp_path / sweep / name / "score_matrix.json" for sweep in ("shared", "alone")]
            one, other = (ScoreMatrix.read(file) for file in files)
            assert one == other
