"""An MLflow run compared with the files of the run that it records: nothing is missing, and nothing is there twice."""

from __future__ import annotations

import json
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run


def differences(run_dir: Path, uri: str) -> list[str]:
    """What MLflow has otherwise than a finished run's own files, in words; empty when its record is whole."""
    client, run_id = MlflowClient(uri), json.loads((run_dir / "mlflow.json").read_text())["run_id"]
    parent, below = client.get_run(run_id), _below(client, run_id)
    matrix = json.loads((run_dir / "score_matrix.json").read_text())
    updates = json.loads((run_dir / "made_with.json").read_text())["budget"]["updates"]
    tasks: list[str] = matrix["tasks"]
    wrong = [f"{run.info.run_name} is {run.info.status}" for run in [parent, *below] if run.info.status != "FINISHED"]
    if sorted(run.data.tags["task"] for run in below) != sorted(tasks):
        wrong.append(f"{len(below)} runs of {len(tasks)} tasks: {sorted(run.data.tags['task'] for run in below)}")
    for run in below:
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")]
        if sorted(steps) != list(range(1, updates[run.data.tags["task"]] + 1)):
            wrong.append(f"{run.info.run_name} has losses at {sorted(steps)}")
    first = 0 if matrix["rows"][0]["after"] == "zero-shot" else 1
    for task in tasks:
        scores = [row["scores"][task] for row in matrix["rows"]]
        cells = {first + at: score for at, score in enumerate(scores) if score is not None}
        told = [(point.step, point.value) for point in client.get_metric_history(run_id, f"accuracy/{task}")]
        if sorted(told) != sorted(cells.items()):
            wrong.append(f"{task} has {sorted(told)} in MLflow and {sorted(cells.items())} in the matrix")
    kept = sum(1 for path in (run_dir / "checkpoints").iterdir() if path.is_dir())
    versions = [version for version in client.search_model_versions(max_results=10_000) if version.run_id == run_id]
    models = client.search_logged_models([parent.info.experiment_id], f"source_run_id = '{run_id}'", max_results=1000)
    if not len(versions) == len(models) == kept == len(tasks):
        wrong.append(f"{len(versions)} versions of {len(models)} models, {kept} checkpoints and {len(tasks)} tasks")
    return wrong


def _below(client: MlflowClient, run_id: str) -> list[Run]:
    found: list[Run] = []
    token: str | None = None
    experiment = client.get_run(run_id).info.experiment_id
    while token != "":
        page = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run_id}'", page_token=token)
        found, token = [*found, *page], page.token or ""
    return found
