"""The matrix of a stream without boundaries: figures by loops of our own, and what shows them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import rich.console
from hypothesis import given
from hypothesis import strategies as st

from components.console.eta import PlannedTask, TimeLeft
from components.console.live import Console
from components.core.events import RowScored
from components.evaluation.budget import lost_points
from components.evaluation.figure_names import LABELS, NO_BOUNDARIES, WITH_BOUNDARIES, WITHOUT_BOUNDARIES
from components.evaluation.headline import headline
from components.evaluation.heatmap import draw_score_matrix
from components.evaluation.ledger import differences
from components.evaluation.matrix import MatrixError, ScoreMatrix
from components.evaluation.matrix_rows import MatrixRow, matrix_of
from components.evaluation.predictions import Prediction
from components.reporting.curves import curves
from components.reporting.facts import boundary_notes
from components.reporting.heatmap_table import score_map
from components.reporting.replies import lost_rows
from components.reporting.tables import scores
from components.runs.results import FinishedRun
from components.statistics.contributions import ScoredRun, contributions, weights_of
from components.statistics.forecast import PastRun, forecast, has_triangle
from components.tracking.history import ScoreHistory
from components.training.config import RunConfig

TASKS, POINTS = ["a", "b"], ["segment-1", "segment-2", "segment-3"]
ROWS = [[10.0, 20.0], [50.0, 30.0], [80.0, 60.0], [70.0, 90.0]]
MATRIX = ScoreMatrix(TASKS, ROWS, ["zero-shot", *POINTS], points=POINTS)


def test_figures_by_hand() -> None:
    assert MATRIX.summary() == pytest.approx(
        {
            "final_average": (70 + 90) / 2,
            "average_over_time": (50 + 30 + 80 + 60 + 70 + 90) / 6,
            "forgetting": ((80 - 70) + (60 - 90)) / 2,
            "zero_shot_average": 15,
        }
    )
    assert lost_points(MATRIX) == {"a": 10.0, "b": -30.0}
    assert (MATRIX.num_learned, MATRIX.counted, MATRIX.earlier) == (3, TASKS, TASKS)


@given(st.integers(1, 5), st.integers(1, 7), st.data())
def test_figures_are_what_loops_give(tasks: int, points: int, data: st.DataObject) -> None:
    names, steps = [f"task{j}" for j in range(tasks)], [f"segment-{i}" for i in range(points)]
    rows = data.draw(
        st.lists(st.lists(st.floats(0, 100), min_size=tasks, max_size=tasks), min_size=points, max_size=points)
    )
    summary = ScoreMatrix(names, rows, steps, points=steps).summary()
    assert summary["final_average"] == pytest.approx(sum(rows[-1]) / tasks)
    assert summary["average_over_time"] == pytest.approx(sum(sum(row) for row in rows) / points / tasks)
    if points == 1:
        assert "forgetting" not in summary
    else:
        lost = [max(row[j] for row in rows[:-1]) - rows[-1][j] for j in range(tasks)]
        assert summary["forgetting"] == pytest.approx(sum(lost) / tasks, abs=1e-9)


@pytest.mark.parametrize("name", sorted(WITH_BOUNDARIES))
def test_no_figure_that_needs_boundaries_is_given(name: str) -> None:
    """Even where there are as many points as tasks, so that the cells would be there."""
    square = ScoreMatrix(TASKS, ROWS[1:3], POINTS[:2], points=POINTS[:2])
    assert name not in square.summary()
    ordinary = ScoreMatrix(TASKS, [[10.0, 20.0], *ROWS[1:3]], ["zero-shot", *TASKS])
    assert name in ordinary.summary()
    assert not WITHOUT_BOUNDARIES & ordinary.summary().keys()
    with pytest.raises(MatrixError, match="boundaries"):
        ordinary.average_over_time()
    with pytest.raises(MatrixError, match=r"needs the moment at which a task was learned"):
        square.bwt()
    assert set(square.summary()) <= set(LABELS)


def test_it_goes_through_json_and_grows_row_by_row(tmp_path: Path) -> None:
    MATRIX.write(tmp_path / "m.json", stream="s", method="m", backbone="b", seed=0)
    content = json.loads((tmp_path / "m.json").read_text())
    assert content["points"] == POINTS
    assert ScoreMatrix.read(tmp_path / "m.json") == MATRIX
    rows = [
        MatrixRow(after=after, scores=dict(zip(TASKS, row, strict=True)))
        for after, row in zip(MATRIX.after, ROWS, strict=True)
    ]
    for count in range(1, 5):
        so_far = matrix_of(TASKS, rows[:count], points=POINTS)
        assert so_far == MATRIX.at(count - 1)
    assert MATRIX.at(0).summary() == {"zero_shot_average": 15}
    assert ScoreMatrix(TASKS, ROWS[:3], ["zero-shot", *TASKS]) != MATRIX
    with pytest.raises(MatrixError, match="must come after"):
        ScoreMatrix(TASKS, ROWS[1:], ["segment-1", "segment-3", "segment-2"], points=POINTS)
    with pytest.raises(MatrixError, match="allowed is one a point"):
        ScoreMatrix(TASKS, ROWS, zero_shot=False, points=POINTS)


def scored_run(matrix: ScoreMatrix) -> ScoredRun:
    """Ten rows a task; so many of them right as the matrix says."""
    items = {
        after: {
            task: [1.0] * int(cell // 10) + [0.0] * (10 - int(cell // 10))
            for task, cell in zip(TASKS, row, strict=True)
        }
        for after, row in zip(matrix.after, ROWS, strict=True)
    }
    return ScoredRun(seed=0, matrix=matrix, items=items)


@pytest.mark.parametrize("figure", ["final_average", "average_over_time", "forgetting", "zero_shot_average"])
def test_what_rows_add_sums_up_to_the_figure(figure: str) -> None:
    weights = weights_of(figure, MATRIX)
    assert float(np.nansum(weights * MATRIX.values)) == pytest.approx(MATRIX.summary()[figure])
    added = contributions(figure, [scored_run(MATRIX)])
    assert sum(float(rows.mean()) for rows in added.by_task.values()) == pytest.approx(MATRIX.summary()[figure])


def test_the_console_says_what_is_left_out() -> None:
    out = io.StringIO()
    console = Console(rich.console.Console(file=out, width=200))
    segments = [
        PlannedTask(name=name, train_rows=40, test_rows=32, num_updates=5, holds="a 30, b 10") for name in POINTS
    ]
    console.print_plan(segments, zero_shot=True)
    console.print_matrix(MATRIX)
    text = " ".join(out.getvalue().split())
    assert "segment train rows test rows updates train rows of" in text
    assert "a 30, b 10" in text
    assert "hardly learned" not in text, "a task is learned over several segments"
    assert "Average over time (A_AUC)" in text
    assert "BWT" not in text
    assert NO_BOUNDARIES in text


def test_time_left_counts_all_tasks_after_every_segment() -> None:
    left = TimeLeft(
        tasks=[PlannedTask(name=name, train_rows=8, test_rows=32, num_updates=4, holds="a 8") for name in POINTS],
        zero_shot_left=True,
    )
    assert left.answers_left() == 4 * 32
    left.add(event(0), 1.0)
    assert (left.answers_left(), left.evaluation_seconds()) == (3 * 32, pytest.approx(3 * 2.0))
    left.add(event(1), 2.0)
    assert (left.answers_left(), left.updates_left()) == (2 * 32, 8)


def event(learned: int) -> RowScored:
    return RowScored(
        tasks_learned=learned,
        after=MATRIX.after[learned],
        points=POINTS,
        scores=dict(zip(TASKS, ROWS[learned], strict=True)),
        routing_accuracy=None,
        slot_usage=None,
        train_s=1.0,
        evaluate_s=2.0,
        peak_memory_bytes=1.0,
        checkpoint_path=None,
    )


def test_mlflow_has_the_same_figures_after_every_point() -> None:
    history = ScoreHistory()
    for learned in range(4):
        history = history.with_row(event(learned)) or history
        metrics = history.metrics(event(learned))
        assert {name: metrics[name] for name in MATRIX.at(learned).summary()} == MATRIX.at(learned).summary()
        assert not WITH_BOUNDARIES & metrics.keys()
    assert history.matrix() == MATRIX
    assert ScoreHistory.from_content(history.to_content({})) == history
    text = history.markdown()
    assert NO_BOUNDARIES in text
    assert all(f"| {point} |" in text for point in POINTS)
    assert "| segment-3 |" in history.markdown(most=len(text) - 1)


def test_pictures_and_tables_mark_no_diagonal() -> None:
    drawn = score_map("m", [MATRIX, MATRIX])
    assert [name for name, _ in drawn.rows] == ["zero-shot", *POINTS]
    assert not any(cell.marked for _, cells in drawn.rows for cell in cells)
    assert [cells[-1].value for _, cells in drawn.rows] == [15.0, 40.0, 70.0, 80.0]
    assert scores([MATRIX, MATRIX]) == ["70.0 ± 0.0", "90.0 ± 0.0", "80.0 ± 0.0", "-10.0 ± 0.0"]
    image = draw_score_matrix(MATRIX, "m")
    assert image.width > 200
    wide = ScoreMatrix([f"t{j}" for j in range(14)], [[50.0] * 14] * 3, POINTS, points=POINTS)
    assert draw_score_matrix(wide, "m").width > 200


def run(matrix: ScoreMatrix) -> FinishedRun:
    return FinishedRun(
        path=Path("none"),
        config=RunConfig(run_id="r"),
        stream_digest="d",
        stream_name="s",
        finished="2026",
        matrix=matrix,
        oracle=None,
        cost=None,
    )


def test_curves_are_over_points() -> None:
    found = {one.title: one for one in curves({"line": [run(MATRIX)]}, {"r": {}})}
    assert list(found) == ["average of all tasks", "a", "b"]
    assert [point.value for point in found["average of all tasks"].points] == [40.0, 70.0, 80.0]
    assert [(point.after, point.value) for point in found["b"].points] == list(
        zip(POINTS, [30.0, 60.0, 90.0], strict=True)
    )
    assert boundary_notes([run(MATRIX)]) == [NO_BOUNDARIES]
    assert boundary_notes([run(ScoreMatrix(TASKS, ROWS[:3]))]) == []


def reply(after: str, task: str, sample: str, right: bool) -> Prediction:
    return Prediction(
        after=after,
        task=task,
        sample_id=sample,
        prompt="p",
        prediction="x",
        answers=("x",),
        score=float(right),
        metric="exact",
    )


def test_a_row_is_lost_when_any_earlier_point_had_it() -> None:
    told = {
        "kept": "0111",
        "lost": "0010",
        "lost early": "0100",
        "never": "0000",
        "only before": "1000",
        "late": "0001",
    }
    replies = [
        reply(after, "b", sample, right[number] == "1")
        for sample, right in told.items()
        for number, after in enumerate(MATRIX.after)
    ]
    found = lost_rows(run(MATRIX), replies)
    assert [sample for _, sample in found] == ["lost", "lost early"]
    assert [one.after for one in found["b", "lost"].replies] == ["segment-2", "segment-3"]


def test_no_forecast_and_no_published_row() -> None:
    past = PastRun(method="m", matrix=MATRIX)
    assert not has_triangle(MATRIX)
    with pytest.raises(MatrixError, match="needs the boundaries between tasks"):
        forecast(past, [PastRun(method="n", matrix=MATRIX)])
    assert differences("mini-coin", "moelora", MATRIX, {}) == []


def test_a_stream_in_one_sentence() -> None:
    assert headline(MATRIX) == "Gained as much on some tasks as it lost, most on a (80.0 to 70.0); best b (90.0)."
    fallen = ScoreMatrix(TASKS, [[80.0, 60.0], [70.0, 20.0]], POINTS[:2], points=POINTS[:2])
    assert headline(fallen) == (
        "Lost 25.0 points of the tasks' best scores on average, most on b (60.0 to 20.0); best a (70.0)."
    )
