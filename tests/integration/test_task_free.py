"""Streams without boundaries, for real: learned, scored over time, recorded, reported; killed and continued.

python -m pytest tests/integration/test_task_free.py [-m long]
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from checkpoint_bits import learned_bits
from mlflow import MlflowClient

from components.evaluation.figure_names import NO_BOUNDARIES, WITH_BOUNDARIES
from components.evaluation.matrix import ScoreMatrix
from components.tracking.config import sqlite_uri

ROOT = Path(__file__).resolve().parents[2]
TASKS = ("docvqa", "iconqa")
SEGMENTS = ("segment-1", "segment-2", "segment-3")
SMALL = ("--stream.order", *TASKS, "--stream.test-limit", "4", "--cluster.threads-per-worker", "1")
TIMEOUT_S = 300


def stream_file(folder: Path, mixture: str) -> str:
    path = folder / f"{abs(hash(mixture))}.toml"
    path.write_text(f'name = "blurred"\nfrom = "mini-coast-domain"\n[mixture]\n{mixture}')
    return str(path)


def command(storage: Path, run_id: str, *options: str) -> list[str]:
    return [sys.executable, "pipelines/coast.py", "pocket", "--storage", str(storage), "--run-id", run_id, *options]


def finish(storage: Path, run_id: str, *options: str) -> str:
    asked = command(storage, run_id, *options)
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return done.stdout


@pytest.mark.long
def test_a_blurred_stream_is_scored_over_time(tmp_path: Path) -> None:
    """One run in three segments over two tasks, in MLflow and in a report."""
    name = stream_file(tmp_path, 'kind = "gaussian"\nwidth = 0.5\nsegments = 3\n')
    output = finish(tmp_path, "mixed", "--stream.name", name, "--method", "sequential-lora", *SMALL)
    assert "mixture: gaussian, width 0.5 tasks, 3 segments, seed 0" in output
    assert NO_BOUNDARIES in " ".join(output.split())
    folder = tmp_path / "mixed"
    content = json.loads((folder / "score_matrix.json").read_text())
    assert (content["tasks"], content["points"]) == ([*TASKS], [*SEGMENTS])
    assert [row["after"] for row in content["rows"]] == ["zero-shot", *SEGMENTS]
    assert all(row["scores"][task] is not None for row in content["rows"] for task in TASKS)
    assert not WITH_BOUNDARIES & content["summary"].keys()
    assert {"final_average", "average_over_time", "forgetting"} <= content["summary"].keys()
    replies = pq.read_table(folder / "predictions").group_by(["after", "task"]).aggregate([("score", "mean")])
    means = {(one["after"], one["task"]): 100.0 * one["score_mean"] for one in replies.to_pylist()}
    assert means == {
        (row["after"], task): pytest.approx(row["scores"][task]) for row in content["rows"] for task in TASKS
    }

    link = json.loads((folder / "mlflow.json").read_text())
    client = MlflowClient(sqlite_uri(tmp_path / "mlflow.db"))
    run = client.get_run(link["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["mixture"] == "gaussian, width 0.5 tasks, 3 segments, seed 0"
    assert not WITH_BOUNDARIES & run.data.metrics.keys()
    over_time = client.get_metric_history(link["run_id"], "average_over_time")
    matrix = ScoreMatrix.from_dict(content)
    assert [(point.step, point.value) for point in over_time] == [
        (learned, pytest.approx(matrix.at(learned).average_over_time())) for learned in (1, 2, 3)
    ]
    told = subprocess.run(
        [sys.executable, "pipelines/report.py", str(folder), "--html", str(tmp_path / "page")],
        cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert "The stream has no boundaries between its tasks" in (tmp_path / "page" / "report.html").read_text()


@pytest.mark.long
def test_a_width_of_zero_is_the_ordinary_stream(tmp_path: Path) -> None:
    """Tensors, losses and replies, bit for bit; and the same through replay, which stores rows of each segment."""
    name = stream_file(tmp_path, 'kind = "gaussian"\nwidth = 0\n')
    everything = ("--evaluation.unseen", "--training.epochs", "2")
    for method in ("moelora", "replay"):
        finish(tmp_path, f"plain-{method}", "--method", method, *everything, *SMALL)
        finish(tmp_path, f"zero-{method}", "--stream.name", name, "--method", method, *everything, *SMALL)
        plain, zero = (tmp_path / f"{kind}-{method}" for kind in ("plain", "zero"))
        assert [*learned_bits(plain).values()] == [*learned_bits(zero).values()]
        for ours, theirs in zip(
            *(sorted((one / "predictions").glob("*.parquet")) for one in (zero, plain)), strict=True
        ):
            kept = ["task", "sample_id", "prediction", "score"]
            assert pq.read_table(ours, columns=kept).equals(pq.read_table(theirs, columns=kept))
        assert losses(tmp_path, f"zero-{method}") == losses(tmp_path, f"plain-{method}")


@pytest.mark.long
def test_killed_inside_a_segment_and_continued(tmp_path: Path) -> None:
    """SIGKILL to everything in the second segment; the same command ends with an undisturbed run's bits."""
    name = stream_file(tmp_path, 'kind = "blurry"\nshare = 0.5\nsegments = 3\n')
    options = ("--stream.name", name, "--method", "moelora", *SMALL)
    options += ("--training.epochs", "4", "--training.checkpoint-every-updates", "2")
    finish(tmp_path, "whole", *options)
    process = subprocess.Popen(
        command(tmp_path, "killed", *options),
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + TIMEOUT_S
    while not inside(tmp_path / "killed", segment=1):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert "continuing at task" in finish(tmp_path, "killed", *options)
    assert learned_bits(tmp_path / "killed") == learned_bits(tmp_path / "whole")
    matrices = [json.loads((tmp_path / run_id / "score_matrix.json").read_text()) for run_id in ("killed", "whole")]
    assert matrices[0] == matrices[1]
    for file in sorted((tmp_path / "whole" / "predictions").glob("*.parquet")):
        assert pq.read_table(file).equals(pq.read_table(tmp_path / "killed" / "predictions" / file.name))
    refused = subprocess.run(
        command(tmp_path, "more", "--continue-from", str(tmp_path / "whole"), "--stream.name", "mini-coin"),
        cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert refused.returncode == 1
    assert "learned a stream without boundaries" in refused.stdout + refused.stderr


def inside(run_dir: Path, *, segment: int) -> bool:
    """Whether the latest checkpoint that Ray Train has registered is inside that segment, or later."""
    try:
        latest = json.loads((run_dir / "checkpoint_manager_snapshot.json").read_text())["latest_checkpoint_result"]
    except (json.JSONDecodeError, FileNotFoundError):  # being written, or not there yet
        return False
    metrics = latest["metrics"] if latest else {"task": 0, "update": 0}
    return metrics["task"] >= segment and metrics["update"] > 0


def losses(storage: Path, run_id: str) -> list[list[float]]:
    """The loss of every update by task or segment, from MLflow."""
    client = MlflowClient(sqlite_uri(storage / "mlflow.db"))
    link = json.loads((storage / run_id / "mlflow.json").read_text())
    children = client.search_runs(
        [client.get_run(link["run_id"]).info.experiment_id],
        filter_string=f"tags.`mlflow.parentRunId` = '{link['run_id']}'",
        order_by=["attributes.start_time ASC"],
    )
    histories = [client.get_metric_history(child.info.run_id, "train/loss") for child in children]
    assert all(histories)
    return [[point.value for point in sorted(history, key=lambda point: point.step)] for history in histories]
