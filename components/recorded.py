"""Finished streams read back: configuration and matrices from the run's folder, costs from its MLflow run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from components.errors import ConfigError
from components.evaluation.matrix import ScoreMatrix
from components.tracking_config import tracking_uri
from components.training.config import Json, RunConfig


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a stream took, as recorded while it ran."""

    train_s: float
    evaluate_s: float
    trainable_parameters: int  # most in any one task


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """One finished stream."""

    path: Path
    config: RunConfig
    stream_digest: str
    matrix: ScoreMatrix
    oracle: ScoreMatrix | None
    cost: Cost | None  # None for a run without MLflow


def read_run(path: Path) -> FinishedRun:
    """The run in folder `path`; raises `ConfigError` when it is none or has not finished."""
    if not (path / "config.json").is_file():
        raise ConfigError(f"{path} is not the folder of a run; give STORAGE/RUN-ID, such as runs/first.")
    if not (path / "finished.json").is_file():
        raise ConfigError(f"the run in {path} has not finished; run its command again to continue it.")
    content: dict[str, Json] = json.loads((path / "config.json").read_text())
    digest = str(content.pop("stream_digest"))
    config = RunConfig.from_json(content)
    oracle, link = path / "oracle_matrix.json", path / "mlflow.json"
    return FinishedRun(
        path=path,
        config=config,
        stream_digest=digest,
        matrix=ScoreMatrix.read(path / "score_matrix.json"),
        oracle=ScoreMatrix.read(oracle) if oracle.is_file() else None,
        cost=read_cost(tracking_uri(config.tracking, path.parent), json.loads(link.read_text())["run_id"])
        if link.is_file()
        else None,
    )


def read_cost(uri: str, run_id: str) -> Cost:
    """Seconds and parameters of one stream; raises `ConfigError` when the store or the run is gone."""
    if uri.startswith("sqlite") and not Path(urlsplit(uri).path[1:]).is_file():  # MLflow would create an empty one
        raise ConfigError(f"the store {uri} is gone; put it back, or record runs with --tracking.no-enabled.")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(tracking_uri=uri)
    try:
        run = client.get_run(run_id)
        children = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
        seconds = {
            name: sum(point.value for point in client.get_metric_history(run_id, f"cost/{name}"))
            for name in ("train_s", "evaluate_s")
        }
    except MlflowException as error:
        raise ConfigError(f"MLflow at {uri} does not hold the run {run_id} ({error.message}).") from error
    trainable = [int(child.data.params.get("trainable_parameters", 0)) for child in children]
    return Cost(**seconds, trainable_parameters=max(trainable, default=0))
