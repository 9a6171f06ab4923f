"""A finished run whose MLflow record is not whole: the same command completes it from the run's own files, once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from finished_runs import STREAM, TASKS, finished
from mlflow import MlflowClient

from components.core.errors import TrackingError
from components.core.events import Event, Note, RowScored
from components.methods.sequential_lora import SequentialLoraConfig
from components.models.config import BackboneConfig
from components.runs import execute, record
from components.runs.execute import begin_tracking
from components.runs.record import complete_record, rows_in
from components.tracking.config import TrackingConfig, tracking_uri
from components.tracking.outbox import Outbox, is_recorded
from components.training.config import RunConfig
from components.training.devices import Devices
from components.training.plan import Plan, plan_stream

ROWS: list[list[float | None]] = [[10.0, 20.0], [60.0, None], [50.0, 70.0]]  # zero-shot, then after each task
AVERAGES = [(1, 60.0), (2, 60.0)]  # of the tasks learned until then


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Of a run that has finished."""
    config = RunConfig(
        run_id="late",
        storage=tmp_path,
        stream=STREAM,
        backbone=BackboneConfig(name="pocket"),
        method=SequentialLoraConfig(),
        tracking=TrackingConfig(wait_s=60.0),
    )
    run_dir = finished(tmp_path, config, ROWS, zero_shot=True)
    rows = [{"after": "docvqa", "tasks_learned": 1, "train_s": 7.0, "evaluate_s": 3.0}]
    (run_dir / "costs.json").write_text(json.dumps({"trainable_parameters": 5, "updates": 2, "rows": rows}))
    (run_dir / "checkpoints" / "02-iconqa").mkdir(parents=True)
    return plan_stream(config)


def opened_once(plan: Plan) -> str:
    """The MLflow run that a process opened before it died; its id."""
    tracker = begin_tracking(plan, lambda event: None, continued=False)
    tracker.finish("KILLED")
    return str(tracker.run_id)


def points(plan: Plan, run_id: str, key: str) -> list[tuple[int, float]]:
    client = MlflowClient(tracking_uri(plan.config.tracking, plan.run_dir.parent))
    return sorted((point.step, point.value) for point in client.get_metric_history(run_id, key))


def require_whole(plan: Plan, run_id: str) -> None:
    client = MlflowClient(tracking_uri(plan.config.tracking, plan.run_dir.parent))
    assert client.get_run(run_id).info.status == "FINISHED"
    assert points(plan, run_id, "final_average") == AVERAGES
    assert points(plan, run_id, "accuracy/docvqa") == [(0, 10.0), (1, 60.0), (2, 50.0)]
    assert points(plan, run_id, "accuracy/iconqa") == [(0, 20.0), (2, 70.0)]
    assert is_recorded(plan.run_dir)


def test_rows_are_told_as_when_the_run_was_at_work(plan: Plan) -> None:
    rows = list(rows_in(plan.run_dir))
    assert [(row.tasks_learned, row.after, [*row.scores.values()]) for row in rows] == [
        (0, "zero-shot", ROWS[0]),
        (1, TASKS[0], ROWS[1]),
        (2, TASKS[1], ROWS[2]),
    ]
    assert (rows[1].train_s, rows[1].evaluate_s) == (7.0, 3.0)
    assert [row.checkpoint_path for row in rows] == [None, None, str(plan.run_dir / "checkpoints" / "02-iconqa")]


def test_a_run_of_an_earlier_version_is_completed_from_its_matrix(plan: Plan) -> None:
    run_id = opened_once(plan)
    for name in ("mlflow_events.jsonl", "mlflow_sent.json"):  # it had none
        (plan.run_dir / name).unlink(missing_ok=True)
    notes: list[Event] = []
    complete_record(plan, notes.append)
    require_whole(plan, run_id)
    assert points(plan, run_id, "cost/train_s") == [(1, 7.0)]
    assert [note for note in notes if not isinstance(note, Note) or note.warning] == []  # a busy machine is waited for


def test_what_was_queued_is_sent_once_and_then_nothing_is_opened(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = opened_once(plan)
    outbox = Outbox(plan.run_dir)
    for row in rows_in(plan.run_dir):
        outbox.add(row)
    assert not is_recorded(plan.run_dir)
    complete_record(plan, lambda event: None)
    require_whole(plan, run_id)
    opened: list[Plan] = []
    monkeypatch.setattr(record, "begin_tracking", lambda plan, *rest, **options: opened.append(plan))
    complete_record(plan, lambda event: None)
    assert opened == []


def test_a_store_that_is_away_costs_a_warning(plan: Plan) -> None:
    """Nobody listens at port 9; what is queued stays."""
    run_id = opened_once(plan)
    Outbox(plan.run_dir).add(next(iter(rows_in(plan.run_dir))))
    away = replace(plan, config=replace(plan.config, tracking=TrackingConfig(uri="http://127.0.0.1:9")))
    notes: list[Event] = []
    complete_record(away, notes.append)
    (note,) = notes
    assert isinstance(note, Note)
    assert note.warning
    assert note.text.startswith("MLflow does not have all of this run, and its record waits: MLflow at")
    assert json.loads((plan.run_dir / "mlflow.json").read_text())["run_id"] == run_id
    assert [type(queued.event) for queued in Outbox(plan.run_dir).read(0)] == [RowScored]
    assert not is_recorded(plan.run_dir)


def test_a_run_goes_on_without_its_store_and_is_completed_later(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = opened_once(plan)
    monkeypatch.setattr(execute, "cluster_devices", lambda: Devices(gpus=0))  # of Ray, which is not needed here
    away = replace(plan, config=replace(plan.config, tracking=TrackingConfig(uri="http://127.0.0.1:9")))
    notes: list[Event] = []
    tracker = begin_tracking(away, notes.append)
    for row in rows_in(plan.run_dir):
        tracker.handle(row)
    tracker.finish("FINISHED")
    begin, end = (note.text for note in notes if isinstance(note, Note))
    assert begin.startswith("the run goes on, and what it records is queued in its folder: MLflow at")
    assert end.startswith("MLflow does not have all of this run yet (3 events left)")
    complete_record(plan, notes.append)
    require_whole(plan, run_id)
    assert len(notes) == 2


def test_a_store_that_says_no_stops_a_run_that_goes_on(plan: Plan) -> None:
    run_id = opened_once(plan)
    MlflowClient(tracking_uri(plan.config.tracking, plan.run_dir.parent)).delete_run(run_id)
    with pytest.raises(TrackingError, match="was deleted there"):
        begin_tracking(plan, lambda event: None)
