"""The whole job, for real: Ray Data, Ray Train, DeepSpeed and MLflow on the pocket model and nano-size data.

    python -m pytest tests/integration/test_stream.py

Every run is a process of its own, as a user starts it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from local_servers import reachable_from_elsewhere
from mlflow import MlflowClient

ROOT = Path(__file__).resolve().parents[2]
SCORES = ("chartqa", "docvqa", "iconqa", "medicalqa")
# Few rows and short answers keep a run short; three epochs make twelve updates a task, enough to change outputs.
COMMON = ("pocket", "--training.epochs", "3", "--training.checkpoint-every-updates", "4")
SUITES = ("--evaluation.suites", "mini-constraints")
UPDATES = 12  # of a task: 3 epochs of 32 rows in batches of 8
TIMEOUT_S = 600


def start(storage: Path, run_id: str, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "pipelines/coast.py", *COMMON, "--storage", str(storage), "--run-id", run_id, *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, output[-3000:]
    return output


def matrix(storage: Path, run_id: str) -> dict:  # type: ignore[type-arg]
    return json.loads((storage / run_id / "score_matrix.json").read_text())


def general(storage: Path, run_id: str) -> dict:  # type: ignore[type-arg]
    return json.loads((storage / run_id / "general.json").read_text())


def decisions(storage: Path, run_id: str) -> dict:  # type: ignore[type-arg]
    return json.loads((storage / run_id / "decisions.json").read_text())


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """With a cache of its own: the first run makes everything, as on a new machine."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LITTORAL_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def uninterrupted(storage: Path) -> str:
    return finish(start(storage, "whole", *SUITES))


def test_a_run_leaves_matrix_predictions_checkpoints(storage: Path, uninterrupted: str) -> None:
    content = matrix(storage, "whole")
    assert content["tasks"] == list(SCORES)
    assert [row["after"] for row in content["rows"]] == ["zero-shot", *SCORES]
    assert content["rows"][1]["scores"]["docvqa"] is None
    assert set(content["summary"]) >= {"final_average", "immediate_average", "mean_average", "bwt", "forgetting"}
    predictions = pq.read_table(storage / "whole" / "predictions")
    assert set(predictions.column_names) >= {
        "after", "task", "sample_id", "prompt", "prediction", "answers", "score", "metric",
    }  # fmt: skip
    assert predictions.num_rows == 16 * (4 + 1 + 2 + 3 + 4) + 2 * 36  # the suite before and after the stream
    assert len(list((storage / "whole" / "checkpoints").glob("*/state.json"))) == 4
    assert "Score matrix" in uninterrupted
    assert "mlflow ui" in uninterrupted
    assert not re.findall(r"\w+Warning: .*|Traceback.*", uninterrupted)  # nobody else's words on the terminal


def test_a_general_suite_is_scored_before_and_after(storage: Path, uninterrupted: str) -> None:
    content = general(storage, "whole")
    assert [row["after"] for row in content["rows"]] == ["zero-shot", SCORES[-1]]
    assert all(set(row["figures"]["mini-constraints"]) >= {"score", "all_fulfilled"} for row in content["rows"])
    kept = content["retention"]["mini-constraints"]
    assert kept["difference"] == pytest.approx(kept["after"] - kept["before"])
    assert "General ability" in uninterrupted
    link = json.loads((storage / "whole" / "mlflow.json").read_text())
    client = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    points = client.get_metric_history(link["run_id"], "general/mini-constraints")
    assert [(point.step, point.value) for point in points] == [(0, kept["before"]), (4, kept["after"])]


def test_oracle_routing_forgets_nothing(storage: Path, uninterrupted: str) -> None:
    oracle = json.loads((storage / "whole" / "oracle_matrix.json").read_text())
    assert oracle["summary"]["forgetting"] == 0.0
    assert oracle["summary"]["bwt"] == 0.0


def test_mlflow_holds_the_stream_and_its_tasks(storage: Path, uninterrupted: str) -> None:
    link = json.loads((storage / "whole" / "mlflow.json").read_text())
    client = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    run = client.get_run(link["run_id"])
    assert run.info.status == "FINISHED"
    summary = matrix(storage, "whole")["summary"]
    for name in ("final_average", "forgetting", "bwt"):
        history = client.get_metric_history(link["run_id"], name)
        assert history[-1].step == 4
        assert history[-1].value == pytest.approx(summary[name])
    accuracy = client.get_metric_history(link["run_id"], "accuracy/chartqa")
    assert sorted(point.step for point in accuracy) == [0, 1, 2, 3, 4]
    children = client.search_runs(
        [run.info.experiment_id], filter_string=f"tags.`mlflow.parentRunId` = '{link['run_id']}'"
    )
    assert len(children) == 4
    assert all(client.get_metric_history(child.info.run_id, "train/loss") for child in children)


def test_decisions_are_kept_and_drawn(storage: Path, uninterrupted: str) -> None:
    content = decisions(storage, "whole")
    assert list(content["tasks"]) == list(content["served"]) == list(SCORES)
    last = content["tasks"][SCORES[-1]]
    assert list(last["w"]) == list(SCORES[:-1])
    assert all(abs(moved) > 1e-3 for moved in last["w_moved"].values())  # scalars learn
    served = content["served"][SCORES[-1]]
    assert all(one["rows"] == sum(one["by"].values()) == 16 for one in served.values())
    client = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    run_id = json.loads((storage / "whole" / "mlflow.json").read_text())["run_id"]
    (point,) = client.get_metric_history(run_id, f"decisions/w/{SCORES[0]}")[-1:]
    assert (point.step, point.value) == (4, pytest.approx(last["w"][SCORES[0]]))


def test_a_finished_run_is_not_trained_again(storage: Path, uninterrupted: str) -> None:
    started = time.monotonic()
    output = finish(start(storage, "whole", *SUITES))
    assert "Score matrix" in output
    assert time.monotonic() - started < 90  # no Ray, no training: only imports and reading


def test_killed_in_the_third_task_and_continued(storage: Path, uninterrupted: str) -> None:
    """SIGKILL the whole process group in the middle of task 3; the same command ends with the same matrix."""
    command = [sys.executable, "pipelines/coast.py", *COMMON, "--storage", str(storage), "--run-id", "killed", *SUITES]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + TIMEOUT_S
    while not unfinished_update(storage / "killed", task=2):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert reachable_from_elsewhere(process.pid) == set()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (storage / "killed" / "finished.json").exists()
    output = finish(start(storage, "killed", *SUITES))
    # Inside the task; behind it where a busy machine let the run finish the task before the signal reached it.
    assert re.search(r"continuing at task (3 of 4, update [48]|3 of 4, update 12|4 of 4, update 0)\b", output), output
    assert matrix(storage, "killed") == matrix(storage, "whole")
    assert general(storage, "killed") == general(storage, "whole")
    assert decisions(storage, "killed") == decisions(storage, "whole")


def unfinished_update(run_dir: Path, *, task: int) -> int:
    """Update of the latest checkpoint if it lies inside `task`, else 0.

    Only what Ray Train has registered counts: files alone, however complete, are not what a continued run starts from.
    """
    try:
        latest = json.loads((run_dir / "checkpoint_manager_snapshot.json").read_text())["latest_checkpoint_result"]
    except (json.JSONDecodeError, FileNotFoundError):  # being written, or not there yet
        return 0
    metrics = latest["metrics"] if latest else {"task": 0, "update": 0}
    return metrics["update"] if metrics["task"] == task and metrics["update"] < UPDATES else 0


@pytest.mark.long
def test_two_workers_learn_what_one_learns(storage: Path, uninterrupted: str) -> None:
    """Under ZeRO-3, which shards most; the other run is of the default stage. Two tasks prove as much as four."""
    short = ("--stream.order", *SCORES[:2], "--stream.test-limit", "4", "--evaluation.no-zero-shot")
    finish(start(storage, "two", "--cluster.num-workers", "2", "--training.zero-stage", "3", *short))
    for task, (one, two) in enumerate(zip(losses(storage, "whole")[:2], losses(storage, "two"), strict=True)):
        assert two == pytest.approx(one, rel=2e-3), f"task {task}"


def losses(storage: Path, run_id: str) -> list[list[float]]:
    """Loss curves per task from MLflow, in stream order."""
    client = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    link = json.loads((storage / run_id / "mlflow.json").read_text())
    parent = client.get_run(link["run_id"])
    children = client.search_runs(
        [parent.info.experiment_id],
        filter_string=f"tags.`mlflow.parentRunId` = '{link['run_id']}'",
        order_by=["attributes.start_time ASC"],
    )
    return [
        [
            point.value
            for point in sorted(client.get_metric_history(child.info.run_id, "train/loss"), key=lambda p: p.step)
        ]
        for child in children
    ]
