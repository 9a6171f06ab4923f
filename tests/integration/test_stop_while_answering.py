"""A run that is asked to stop while two workers answer: test rows, and general suites after the last task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from components.core.errors import StreamStopped
from components.core.events import EvaluationProgress, Event, EventHandler, RowScored
from components.core.ray_session import ray_session
from components.evaluation.general import GeneralScores
from components.evaluation.matrix import MATRIX_FILE
from components.evaluation.predictions import by_task, predictions_file, read_predictions
from components.training.config import ClusterConfig, RunConfig
from components.training.driver import run_stream
from components.training.plan import Plan, plan_stream
from components.training.run_folder import FINISHED_FILE, finished_result
from components.training.stopping import request_stop
from pipelines.presets import pocket


@pytest.fixture
def plan(tmp_path: Path) -> Iterator[Plan]:
    """Two tasks and a suite, answered row by row, so that there is time to ask."""
    preset = pocket()
    config = RunConfig(
        run_id="asked",
        storage=tmp_path,
        stream=replace(preset.stream, size="mini", order=("chartqa", "docvqa")),  # rows for a second or two
        backbone=preset.backbone,
        training=replace(preset.training, updates_per_task=2),
        evaluation=replace(preset.evaluation, suites=("mini-constraints",), batch_size=1, oracle_routing=False),
        cluster=ClusterConfig(num_workers=2, threads_per_worker=1),
    )
    with ray_session(None, num_workers=2):
        yield plan_stream(config)


def asking(plan: Plan, when: Callable[[Event], bool]) -> tuple[EventHandler, list[Event]]:
    """A handler that asks the run to stop at the first event for which `when` is true, and what it was given."""
    seen: list[Event] = []

    def handle(event: Event) -> None:
        if when(event) and not any(map(when, seen)):
            request_stop(plan.run_dir)
        seen.append(event)

    return handle, seen


@pytest.mark.long
def test_it_leaves_without_a_row_and_is_not_finished_before_its_suites(plan: Plan) -> None:
    first, seen = asking(plan, lambda event: isinstance(event, EvaluationProgress) and event.task == "docvqa")
    with pytest.raises(StreamStopped, match="after 0 of 2 tasks; the same command"):
        run_stream(plan, first)
    assert not any(isinstance(event, RowScored) for event in seen)
    assert not (plan.run_dir / MATRIX_FILE).exists()

    last, seen = asking(plan, lambda event: isinstance(event, RowScored) and event.tasks_learned == 2)
    with pytest.raises(StreamStopped, match="after 2 of 2 tasks, before its general suites were scored"):
        run_stream(plan, last)
    assert [event.tasks_learned for event in seen if isinstance(event, RowScored)] == [0, 1, 2]
    answered = {(event.after, event.task) for event in seen if isinstance(event, EvaluationProgress)}
    assert ("zero-shot", "chartqa") not in answered, "it was answered whole before the first stop"
    assert ("zero-shot", "docvqa") in answered
    kept = predictions_file(plan.run_dir, 0, "zero-shot")
    assert [len(rows) for rows in by_task(read_predictions(kept)).values()] == [100, 100]
    assert not list(plan.run_dir.glob("predictions/.*")), "cells that are in their row's file"
    assert not (plan.run_dir / FINISHED_FILE).exists()
    assert finished_result(plan) is None

    whole = run_stream(plan, lambda _: None)
    assert whole.general.has(2, "mini-constraints")
    assert whole.matrix.num_learned == 2
    assert GeneralScores.read(plan.run_dir / "general.json") == whole.general
