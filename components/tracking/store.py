"""MLflow: one parent run per stream, one child run per task. Only this package imports it, and late.

The driver opens a tracker and hands it the events of the stream; workers never see MLflow. Everything goes by explicit
run id through `MlflowClient`, so neither an active run nor MLFLOW_RUN_ID in the environment can divert it. Trouble at
opening raises `TrackingError`; trouble later is retried, then told as a warning, and never stops the training.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from components.core.events import Note
from components.core.location import Location, Place
from components.core.lock import Held, locked
from components.core.naming import flatten_params, metric_names
from components.core.secrets import without_secrets
from components.tracking.charts import View, view_link
from components.tracking.config import (
    DatasetRecord,
    Status,
    Tracker,
    TrackingConfig,
    sqlite_path,
    tracking_uri,
    ui_command,
)
from components.tracking.doubles import in_use, remove_doubles
from components.tracking.moved_storage import follow_moved_storage
from components.tracking.new_database import new_database
from components.tracking.points import Point, points
from components.tracking.registry import Version, register
from components.tracking.retry import StoreError, told
from components.tracking.tracker import StreamTracker

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Run
    from PIL.Image import Image

    from components.evaluation.matrix import ScoreMatrix

LOCK_TIMEOUT_S = 60  # how long another run may take to make the tables of a new database
OPEN_TIMEOUT_S = 8  # how long an unreachable server may keep a run from starting
INSTEAD = "start that server, correct tracking.uri (or MLFLOW_TRACKING_URI), or turn tracking.enabled off"
METRICS_PER_BATCH, PARAMS_PER_BATCH = 1000, 100  # MLflow's limits
TAG_CHARS, DIGEST_CHARS = 5000, 36  # likewise
MOST_RUNS = 50_000  # that a search gives at once
_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def open_tracker(
    config: TrackingConfig,
    storage: Place,
    run_name: str,
    params: Mapping[str, object],
    tags: Mapping[str, str],
    datasets: Sequence[DatasetRecord] = (),
    resume_run_id: str | None = None,
    *,
    tasks: Sequence[str] = (),
    on_note: Callable[[Note], None] | None = None,
) -> Tracker:
    """Begin the parent run of a stream, or go on with `resume_run_id`.

    `params` may be nested (see `naming.flatten_params`). `tags` should name "stream", "method", "backbone" and
    "seed"; `tasks` are the stream's, for the charts of their scores. `on_note` hears of trouble after opening.

    Raises:
        TrackingError: the store cannot be reached within about `OPEN_TIMEOUT_S`, cannot be written, or lacks the run.
    """
    if not config.enabled:
        return Tracker()
    uri = tracking_uri(config, storage)
    with told(f"MLflow at {without_secrets(uri)} cannot be used", INSTEAD):
        store = open_store(uri, config.experiment, storage)
        tracker = StreamTracker(store, ui=ui_command(uri), tags=tags, on_note=on_note)
        with waiting_at_most(OPEN_TIMEOUT_S):
            tracker.begin(run_name, flatten_params(params), datasets, resume_run_id, tasks)
    return tracker


def record_variant(
    config: TrackingConfig,
    storage: Place,
    run_id: str,
    variant: str,
    matrix: ScoreMatrix,
    facts: Mapping[str, object],
) -> None:
    """Add a variant of a finished stream's scores to its run: `variant`/accuracy/TASK and /FIGURE over tasks
    learned, and `variant`_matrix.json with `facts`. Recording again replaces the file and repeats the points.

    Raises:
        TrackingError: the store cannot be reached, or lacks the run.
    """
    uri = tracking_uri(config, storage)
    names = metric_names(matrix.tasks)
    with told(f"MLflow at {without_secrets(uri)} cannot be used", "start that server or put the file back"):
        store = open_store(uri, config.experiment, storage)
        for number, row in enumerate(matrix.rows):
            learned = number if matrix.has_zero_shot else number + 1
            cells = dict(zip(matrix.tasks, row, strict=True))
            values = {f"{variant}/accuracy/{names[task]}": cell for task, cell in cells.items() if cell is not None}
            values |= {f"{variant}/{name}": value for name, value in matrix.at(learned).summary().items()}
            store.put_points(run_id, points(values, step=learned))
        content = matrix.to_dict(stream="", method="", backbone="", seed=0, extra=facts)
        store.put_json(run_id, content, f"{variant}_matrix.json")


def open_store(uri: str, experiment: str, storage: Place) -> MlflowStore:
    """Import mlflow, connect, and find or create the experiment; to be called in `retry.translated`."""
    check_reachable(uri)
    from mlflow import MlflowClient

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(
        logging.CRITICAL
    )  # tracebacks of what is raised and told anyway
    with _alone_at(uri), waiting_at_most(OPEN_TIMEOUT_S):
        follow_moved_storage(uri, storage)
        with new_database(uri):
            client = MlflowClient(tracking_uri=uri)
        return MlflowStore(client, _experiment_id(client, uri, experiment, storage), served=_is_served(uri))


def _experiment_id(client: MlflowClient, uri: str, name: str, storage: Place) -> str:
    """The experiment called `name`, created if there is none."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        database = sqlite_path(uri)
        beside = database.parent if database is not None and isinstance(storage, Location) else storage
        place = None if _is_served(uri) else (beside.resolve() / "mlflow-artifacts").as_uri()
        try:
            return client.create_experiment(name, artifact_location=place)
        except MlflowException as error:  # another run may have created it in this moment
            found = client.get_experiment_by_name(name)
            if found is None:
                raise error
    if found.lifecycle_stage == "deleted":
        raise StoreError(
            f"the experiment {name!r} was deleted there; restore it or choose another tracking.experiment",
            transient=False,
        )
    return found.experiment_id


def _is_served(uri: str) -> bool:
    """Whether a server is between us and the store: it has its own place for artifacts."""
    return uri.startswith(("http", "databricks"))


@contextmanager
def _alone_at(uri: str) -> Iterator[None]:
    """One process at a time: MLflow creates the tables of a new sqlite file, which two runs at once would break."""
    path = sqlite_path(uri)
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    file, end = path.with_name(f".{path.name}.lock"), time.monotonic() + LOCK_TIMEOUT_S
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(file, keep_waiting=lambda _: time.monotonic() < end))
        except Held as error:
            raise StoreError(f"{error} holds {file}, for {LOCK_TIMEOUT_S} s now", transient=False) from error
        yield


def program(started: str) -> str:
    """What recorded a run, by the path that its process was started with: trials of a sweep run in Ray's processes."""
    name = Path(started).name or "littoral"
    return "sweep.py" if name == "default_worker.py" else name


class MlflowStore:
    """One MLflow experiment. Calls raise what MLflow raises (see `retry.translated`); repeating one does no harm."""

    def __init__(self, client: MlflowClient, experiment_id: str, *, served: bool) -> None:
        self._client, self._experiment_id, self._served = client, experiment_id, served

    def create_run(self, name: str, tags: Mapping[str, str]) -> str:
        known = {"mlflow.source.type": "JOB", "mlflow.source.name": program(sys.argv[0])}
        if user := os.environ.get("USER"):
            known["mlflow.user"] = user
        run = self._client.create_run(self._experiment_id, run_name=name, tags=known | _short(tags))
        return run.info.run_id

    def reopen_run(self, run_id: str) -> dict[str, str]:
        """Reopen a run and return the parameters it has so far."""
        run = self._client.get_run(run_id)
        if run.info.lifecycle_stage == "deleted":
            raise StoreError(f"the run {run_id} was deleted there; restore it", transient=False)
        self._experiment_id = run.info.experiment_id
        self._client.update_run(run_id, status="RUNNING")
        return dict(run.data.params)

    def close_run(self, run_id: str, status: Status) -> None:
        self._client.set_terminated(run_id, status)

    def children(self, run_id: str) -> dict[str, str]:
        """Task name -> run id of the runs below a stream's run."""
        below = f"tags.`mlflow.parentRunId` = '{run_id}'"
        runs = self._client.search_runs([self._experiment_id], below, max_results=MOST_RUNS)
        by_task: dict[str, list[Run]] = {}
        for run in runs:
            if "task" in run.data.tags:
                by_task.setdefault(run.data.tags["task"], []).append(run)
        return {task: in_use(several).info.run_id for task, several in by_task.items()}

    def remove_doubles(self, run_id: str) -> None:
        """Of what a stalled store was asked for again, leave one of each."""
        remove_doubles(self._client, self._experiment_id, run_id)

    def unfinished(self, run_id: str) -> list[str]:
        """Run ids of the tasks below a stream's run whose status is not FINISHED."""
        below = f"tags.`mlflow.parentRunId` = '{run_id}' AND attributes.status != 'FINISHED'"
        runs = self._client.search_runs([self._experiment_id], below, max_results=MOST_RUNS)
        return [run.info.run_id for run in runs if "task" in run.data.tags]

    def running(self, run_id: str) -> list[str]:
        """Run ids below a stream's or a sweep's run that are open, and those below them, these first."""
        query = f"tags.`mlflow.parentRunId` = '{run_id}' AND attributes.status = 'RUNNING'"
        found = [
            run.info.run_id for run in self._client.search_runs([self._experiment_id], query, max_results=MOST_RUNS)
        ]
        return [each for one in found for each in (*self.running(one), one)]

    def steps(self, run_id: str, key: str) -> set[int]:
        """The steps at which a metric is recorded."""
        return {metric.step for metric in self._client.get_metric_history(run_id, key)}

    def put_params(self, run_id: str, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        entities = [Param(key, value) for key, value in params.items()]
        for start in range(0, len(entities), PARAMS_PER_BATCH):
            self._client.log_batch(run_id, params=entities[start : start + PARAMS_PER_BATCH], synchronous=True)

    def put_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        entities = [RunTag(key, value) for key, value in _short(tags).items()]
        self._client.log_batch(run_id, tags=entities, synchronous=True)

    def put_points(self, run_id: str, points: Sequence[Point], model_id: str | None = None) -> None:
        from mlflow.entities import Metric

        names = {point.key: "/".join(metric_names([part])[part] for part in point.key.split("/")) for point in points}
        entities = [Metric(names[p.key], p.value, p.timestamp_ms, p.step, model_id=model_id) for p in points]
        for start in range(0, len(entities), METRICS_PER_BATCH):
            self._client.log_batch(run_id, metrics=entities[start : start + METRICS_PER_BATCH], synchronous=True)

    def put_datasets(self, run_id: str, records: Sequence[DatasetRecord]) -> None:
        if records:
            self._client.log_inputs(run_id, datasets=[_dataset_input(record) for record in records])

    def put_image(self, run_id: str, key: str, image: Image, step: int) -> None:
        self._client.log_image(run_id, image, key=key, step=step, synchronous=True)

    def put_json(self, run_id: str, content: Mapping[str, object], file: str) -> None:
        self._client.log_dict(run_id, dict(content), file)

    def get_json(self, run_id: str, file: str) -> dict[str, object] | None:
        if not any(item.path == file for item in self._client.list_artifacts(run_id)):
            return None
        with tempfile.TemporaryDirectory() as folder:
            content = json.loads(Path(self._client.download_artifacts(run_id, file, folder)).read_text("utf-8"))
        return content if isinstance(content, dict) else None

    def put_table(self, run_id: str, columns: Sequence[str], rows: Sequence[Sequence[object]], file: str) -> None:
        # MlflowClient.log_table would append to a table that is already there; this replaces it.
        tag = self._client.get_run(run_id).data.tags.get("mlflow.loggedArtifacts", "[]")
        tables = json.loads(tag)
        self._client.log_text(run_id, json.dumps({"columns": columns, "data": rows}), file)
        listed = json.dumps([*tables, {"path": file, "type": "table"}])
        if {"path": file, "type": "table"} not in tables and len(listed) <= TAG_CHARS:  # more are files like others
            self._client.set_tag(run_id, "mlflow.loggedArtifacts", listed)

    def put_model(self, run_id: str, name: str, tags: Mapping[str, str], step: int) -> str:
        from mlflow.entities import LoggedModelOutput

        legal = metric_names([name.replace(".", "_")])[name.replace(".", "_")]
        query = f"name = '{legal}' AND source_run_id = '{run_id}'"
        first = [{"field_name": "creation_time", "ascending": True}]
        found = self._client.search_logged_models([self._experiment_id], query, max_results=1, order_by=first)
        if found:
            return found[0].model_id
        known = _short(tags) | {"mlflow.model.isExternal": "true"}
        model = self._client.create_logged_model(
            self._experiment_id, name=legal, source_run_id=run_id, tags=known, model_type="adapter"
        )
        self._client.finalize_logged_model(model.model_id, "READY")
        self._client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
        return model.model_id

    def put_view(self, view: View) -> None:
        self._client.set_experiment_tag(self._experiment_id, *view.tag)

    def view_link(self, key: str) -> str:
        return view_link(without_secrets(self._client.tracking_uri), self._experiment_id, key)

    def put_version(self, version: Version) -> None:
        plain = replace(version, source=without_secrets(version.source), tags=_short(version.tags))
        register(self._client, plain, served=self._served)


def _dataset_input(record: DatasetRecord) -> DatasetInput:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=record.name,
        digest=record.digest[:DIGEST_CHARS],
        source_type="local",
        source=json.dumps({"uri": without_secrets(record.uri)}),
        profile=json.dumps({"num_rows": record.num_rows, "sha256": record.digest}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", record.context)])


def _short(tags: Mapping[str, str]) -> dict[str, str]:
    return {key: without_secrets(value)[:TAG_CHARS] for key, value in tags.items()}


@contextmanager
def waiting_at_most(seconds: int) -> Iterator[None]:
    """One try and a short time limit for HTTP stores while a run opens; MLflow reads both from the environment."""
    quick = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds)}
    before = {name: os.environ[name] for name in quick}
    os.environ.update(quick)
    try:
        yield
    finally:
        os.environ.update(before)


def check_reachable(uri: str) -> None:
    """Fail fast for a database server that does not answer; SQLAlchemy under MLflow would try for minutes."""
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme in _DATABASE_PORTS:
        parts = urlsplit(uri)
        address = (parts.hostname or "localhost", parts.port or _DATABASE_PORTS[scheme])
        socket.create_connection(address, timeout=OPEN_TIMEOUT_S).close()
