"""A run that continues from a learned task of another one learns what a run of that order learns from scratch.

    python -m pytest tests/integration/test_continue_from.py

One Ray session serves all runs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from checkpoint_bits import method_bits
from mlflow import MlflowClient

from components.core.errors import StreamStopped
from components.core.events import Event, RowScored, StepDone, TaskStarted
from components.core.ray_session import ray_session
from components.methods import METHODS
from components.runs.execute import run_and_record
from components.tracking.config import sqlite_uri
from components.training.config import ClusterConfig, RunConfig
from components.training.driver import run_stream
from components.training.fork import new_origin
from components.training.plan import plan_stream
from components.training.stopping import request_stop
from pipelines.presets import pocket

A, B, C = "iconqa", "docvqa", "chartqa"
UPDATES = 3  # of a task


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("runs")
    with ray_session(None, num_workers=1):
        yield folder


def config_of(method: str, run_id: str, storage: Path, *order: str) -> RunConfig:
    preset = pocket()
    return replace(
        preset,
        run_id=f"{method.replace('_', '-')}-{run_id}",
        storage=storage,
        stream=replace(preset.stream, size="nano", order=order, test_limit=4),
        method=METHODS[method].tiny(),
        training=replace(preset.training, updates_per_task=UPDATES, checkpoint_every_updates=2),
        cluster=ClusterConfig(num_workers=1, threads_per_worker=1),
    )


def matrix(run_dir: Path) -> dict:  # type: ignore[type-arg]
    return json.loads((run_dir / "score_matrix.json").read_text())


def check_same(forked: Path, scratch: Path) -> None:
    """Tensors, structure, scores and replies after both added tasks, and the row that was taken over."""
    for name in (f"01-{A}", f"02-{C}", f"03-{B}"):
        ours, theirs = (method_bits(run / "checkpoints" / name) for run in (forked, scratch))
        assert ours == theirs, name
        states = [json.loads((run / "checkpoints" / name / "state.json").read_text()) for run in (forked, scratch)]
        assert states[0]["method_structure"] == states[1]["method_structure"]
        replies = [pq.read_table(run / "predictions" / f"{name}.parquet") for run in (forked, scratch)]
        assert replies[0].equals(replies[1]), name
    ours, theirs = matrix(forked), matrix(scratch)
    assert ours["tasks"] == theirs["tasks"] == [A, C, B]
    assert ours["rows"][1:] == theirs["rows"][1:]
    assert ours["rows"][0]["scores"] == {**theirs["rows"][0]["scores"], C: None}  # the first run had no such task


@pytest.mark.long
def test_sequential_lora_stopped_goes_on_without_the_first_run(storage: Path) -> None:
    """And MLflow has its lineage."""
    method = "sequential_lora"
    first = plan_stream(config_of(method, "first", storage, A, B))
    run_and_record(first, lambda _: None)
    scratch = plan_stream(config_of(method, "scratch", storage, A, C, B))
    run_stream(scratch, lambda _: None)

    config = config_of(method, "fork", storage, C, B)
    forked = plan_stream(config, new_origin(config, first.run_dir, 1, score_again=False))

    events: list[Event] = []

    def stop(event: Event) -> None:
        events.append(event)
        if isinstance(event, TaskStarted):
            request_stop(forked.run_dir)

    with pytest.raises(StreamStopped, match=r"after [12] of 3 tasks"):
        run_and_record(forked, stop)
    parent = json.loads((first.run_dir / "mlflow.json").read_text())["run_id"]
    shutil.rmtree(first.run_dir)
    run_and_record(plan_stream(config), events.append)
    check_same(forked.run_dir, scratch.run_dir)
    assert not any(isinstance(event, StepDone) and event.task == A for event in events)
    assert list(dict.fromkeys(event.after for event in events if isinstance(event, RowScored))) == [C, B]
    assert matrix(forked.run_dir)["taken_over"] == {"rows": 2, "run": "sequential-lora-first", "at_task": 1}

    client = MlflowClient(sqlite_uri(storage / "mlflow.db"))
    run = client.get_run(json.loads((forked.run_dir / "mlflow.json").read_text())["run_id"])
    assert run.info.status == "FINISHED"
    tags = run.data.tags
    assert (tags["continued_from"], tags["continued_at_task"]) == ("sequential-lora-first", "1")
    assert (tags["continued_from_task"], tags["continued_from_run"]) == (A, parent)
    versions = client.search_model_versions(f"name = '{tags['continued_from_model']}' AND run_id = '{parent}'")
    assert "1" in {version.tags["tasks_learned"] for version in versions}
    assert run.inputs is not None
    inputs = {each.dataset.name for each in run.inputs.dataset_inputs}
    assert {f"{task}/{split}" for task in (A, B, C) for split in ("train", "test")} <= inputs
    steps = {point.step for point in client.get_metric_history(run.info.run_id, f"accuracy/{A}")}
    assert steps == {0, 1, 2, 3}


@pytest.mark.long
def test_continual_llava_with_the_last_row_scored_again(storage: Path) -> None:
    method = "continual_llava"
    first = plan_stream(config_of(method, "first", storage, A, B))
    run_stream(first, lambda _: None)
    scratch = plan_stream(config_of(method, "scratch", storage, A, C, B))
    run_stream(scratch, lambda _: None)

    config = config_of(method, "fork", storage, C, B)
    forked = plan_stream(config, new_origin(config, first.run_dir, 1, score_again=True))
    events: list[Event] = []
    run_stream(forked, events.append)
    assert [event.after for event in events if isinstance(event, RowScored)] == [A, C, B]
    check_same(forked.run_dir, scratch.run_dir)
