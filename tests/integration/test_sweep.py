"""Sweeps for real: Ray Tune over streams on the pocket model and nano-size data.

python -m pytest tests/integration/test_sweep.py [--every-method]
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
from mlflow import MlflowClient

from components.core.ray_session import ray_session
from components.data.stream_config import StreamConfig
from components.evaluation.matrix import ScoreMatrix
from components.methods.continual_llava import ContinualLlavaConfig
from components.tracking.config import TrackingConfig
from components.training.config import ClusterConfig, EvaluationConfig, RunConfig
from components.tuning.objective import parse_objective
from components.tuning.search import Search, run_trials
from components.tuning.space import parse_axis, points
from components.tuning.trials import Trial, TrialPlan
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


@pytest.mark.long
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
    assert (folder / "table.md").read_text().count("\n") == 6
    assert "by final_average on validation rows" in output
    check_rows(tmp_path, folder, found)

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    parent = json.loads((folder / "sweep.json").read_text())["mlflow_run"]
    run = client.get_run(parent)
    assert run.info.status == "FINISHED"
    below = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert {each.info.run_id for each in below} == {trial["mlflow_id"] for trial in found.values()}
    assert {each.data.metrics["final_average"] for each in below} == set(averages.values())
    assert {each.data.tags["mlflow.source.name"] for each in below} == {"sweep.py"}  # no file of Ray's


def sample_ids(run: Path) -> dict[str, set[str]]:
    """Task -> the rows that a run was scored on."""
    found: dict[str, set[str]] = {}
    for row in pq.read_table(run / "predictions", columns=["task", "sample_id"]).to_pylist():
        found.setdefault(row["task"], set()).add(row["sample_id"])
    return found


def trained_on(storage: Path, run: Path) -> set[tuple[str, str]]:
    """Name and digest of the training splits, as MLflow holds them."""
    recorded = json.loads((run / "mlflow.json").read_text())["run_id"]
    inputs = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}").get_run(recorded).inputs
    assert inputs is not None
    data = [each.dataset for each in inputs.dataset_inputs]
    return {(each.name, each.digest) for each in data if each.name.endswith("/train")}


def check_rows(storage: Path, folder: Path, found: dict[str, dict]) -> None:  # type: ignore[type-arg]
    """Trials answered validation rows and best.json says so; its run learns from the same rows, answers test rows."""
    for name in found:
        run = folder / name
        assert json.loads((run / "score_matrix.json").read_text())["scored_on"] == "validation"
        for task, ids in sample_ids(run).items():
            assert ids
            assert all(one.startswith(f"{task}-train-") for one in ids)
    content = json.loads((folder / "best.json").read_text())
    assert content["chosen"]["on"] == json.loads((folder / "sweep.json").read_text())["chosen_on"] == "validation"
    assert (content["evaluation"]["split"], content["stream"]["validation"]) == ("test", 0.2)
    command = [sys.executable, "pipelines/coast.py", str(folder / "best.json"), "--storage", str(storage)]
    process = subprocess.run(
        [*command, "--run-id", "again"], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert process.returncode == 0, process.stderr[-3000:]
    assert "validation rows" in process.stdout
    for task, ids in sample_ids(storage / "again").items():
        assert ids == {f"{task}-test-{number:05d}" for number in range(8)}
    trained = {run: trained_on(storage, run) for run in (folder / next(iter(found)), storage / "again")}
    one, again = trained.values()
    assert len(one) == 2
    assert one == again


# ---- the others share one Ray session, without MLflow


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunConfig]:
    """Sequential LoRA on two short tasks."""
    run = replace(
        preset("pocket").with_method("sequential_lora"),
        storage=tmp_path_factory.mktemp("sweeps"),
        stream=StreamConfig(size="nano", order=("chartqa", "iconqa"), test_limit=8),
        evaluation=EvaluationConfig(zero_shot=False),
        tracking=TrackingConfig(enabled=False),
    )
    with ray_session(None, num_workers=1, trials=2):
        yield run


def tried(base: RunConfig, space: str, *, share: bool = False, at_once: int = 2, **options: Any) -> dict[str, Trial]:
    """The trials of one list of values, in a folder of their own."""
    folder = options.pop("folder", base.storage / f"{len(list(base.storage.iterdir()))}")
    goal = parse_objective("final_average")
    listed = tuple(points([parse_axis(space)], num_samples=1, seed=0))
    search = Search(objectives=(goal,), num_tasks=2, listed=listed, **options)
    plan = TrialPlan(
        base=replace(base, storage=folder),
        parent=None,
        shared_dir=folder / "shared" if share else None,
        keep_stopped=search.stopping != "none",
    )
    return {trial.name: trial for trial in run_trials(search, plan, at_once=at_once, on_progress=lambda *_: None)}


@pytest.mark.long
def test_a_trial_that_is_behind_is_ended_and_can_go_on(base: RunConfig) -> None:
    """Rates, one after the other: one that learns and one that hardly moves."""
    longer, rates = replace(base, training=replace(base.training, epochs=4)), "grid(0.02, 1e-6)"
    folder, space = base.storage / "ended", f"training.optimizer.learning_rate={rates}"
    good, slow = tried(longer, space, at_once=1, stopping="asha", folder=folder).values()
    assert (good.state, good.updates) == ("finished", 4 * UPDATES)
    assert good.figures["immediate_average"] > 0  # it learns; at the end of two tasks it has forgotten both
    assert (slow.state, slow.learned) == ("stopped", 1)
    assert 2 * UPDATES <= slow.updates < 4 * UPDATES
    deadline = time.monotonic() + 60  # what the ended trial held is free again, or later trials would starve
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline
        time.sleep(0.5)

    again = tried(longer, space, at_once=1, stopping="asha", folder=folder)
    assert [trial.state for trial in again.values()] == ["finished", "stopped"]
    assert [trial.updates for trial in again.values()] == [good.updates, slow.updates]
    _, whole = tried(longer, space, at_once=1, folder=folder).values()
    assert (whole.state, whole.learned, whole.updates) == ("finished", 2, 4 * UPDATES)


ORDERS = "stream.order=grid(('chartqa', 'iconqa'), ('chartqa', 'docvqa'))"
AND_ONE_THAT_FAILS = "stream.order=grid(('chartqa', 'iconqa'), ('chartqa', 'docvqa'), ('chartqa', 'nope'))"


@pytest.mark.long
def test_a_failing_trial_is_recorded_and_the_others_share_what_they_can(base: RunConfig) -> None:
    """A task that does not exist fails its trial; two orders learn their first task once, and no score changes."""
    *shared, failed = tried(base, AND_ONE_THAT_FAILS, share=True).values()
    assert failed.state == "failed"
    assert "has no task 'nope'" in failed.reason
    second, first = sorted(shared, key=lambda trial: trial.updates)
    assert (second.updates, first.updates) == (UPDATES, 2 * UPDATES)
    (alone,) = tried(base, f"stream.order=grid({second.values['stream.order']})").values()
    assert alone.updates == 2 * UPDATES
    assert {**second.figures, "train_s": 0} == {**alone.figures, "train_s": 0}


def test_two_workers_take_a_task_over_together(base: RunConfig, request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--every-method"):
        pytest.skip("two more runs with two workers; --every-method brings them")
    two = replace(base, cluster=ClusterConfig(num_workers=2))
    trials = tried(two, ORDERS, share=True, at_once=1)
    assert [trial.state for trial in trials.values()] == ["finished"] * 2
    assert sorted(trial.updates for trial in trials.values()) == [UPDATES, 2 * UPDATES]
