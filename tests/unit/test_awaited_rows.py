"""Rows that are scored beside training: what a checkpoint says of them, and what a run that goes on makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.core.errors import ConfigError
from components.core.events import Event
from components.data.stream_config import StreamConfig
from components.evaluation.manifest import note_digests
from components.evaluation.matrix_rows import MatrixRow
from components.evaluation.predictions import Prediction, predictions_file, write_predictions
from components.methods import METHODS
from components.models.config import BackboneConfig
from components.tracking.config import TrackingConfig
from components.training.awaiting import rows_awaited
from components.training.beside import RowsBeside
from components.training.config import EvaluationConfig, RunConfig
from components.training.fork import new_origin
from components.training.mending import mend
from components.training.plan import Again, Plan, plan_stream
from components.training.run_folder import claim_run_dir
from components.training.stream_state import StreamState

TASKS = ("docvqa", "iconqa", "chartqa")
ASKED = 2


def planned(storage: Path, method: str = "sequential_lora", **evaluation: object) -> Plan:
    config = RunConfig(
        run_id="r",
        storage=storage,
        stream=StreamConfig(size="nano", order=TASKS),
        backbone=BackboneConfig(name="pocket"),
        method=METHODS[method].tiny(),
        evaluation=EvaluationConfig(limit=ASKED, **evaluation),  # type: ignore[arg-type]
        tracking=TrackingConfig(enabled=False),
    )
    return plan_stream(config)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return planned(tmp_path)


def row(after: str, **scores: float) -> MatrixRow:
    return MatrixRow(after=after, scores={task: scores.get(task) for task in TASKS})


def test_a_checkpoint_says_how_many_rows_it_lacks_and_an_older_one_lacks_none() -> None:
    state = StreamState(index=2, update=3, rows=[row("zero-shot", docvqa=50.0)], awaited=2)
    stored = json.loads(json.dumps({"stream_state": state.to_json()}))
    assert StreamState.read(stored, None) == state
    del stored["stream_state"]["awaited"]
    assert StreamState.read(stored, None).awaited == 0


def test_rows_that_are_awaited_are_the_last_ones(plan: Plan) -> None:
    assert rows_awaited(plan, StreamState(index=0, update=4, awaited=1)) == [0]
    assert rows_awaited(plan, StreamState(index=2, awaited=1)) == [2]
    assert rows_awaited(plan, StreamState(index=2, learned=True, awaited=2)) == [1, 2]
    assert rows_awaited(plan, StreamState(index=2)) == []


def test_tasks_that_no_row_scores_are_filled_in(tmp_path: Path) -> None:
    plan = planned(tmp_path, "joint")  # scored after the last task only
    assert [each.scored for each in plan.schedule] == [False, False, True]
    assert rows_awaited(plan, StreamState(index=2, awaited=3)) == [0]
    zero = row("zero-shot", docvqa=50.0, iconqa=0.0, chartqa=0.0)
    assert plan.rows_before([zero], 3) == [zero, row("docvqa"), row("iconqa")]
    assert plan.rows_before([zero, row("docvqa")], 3) == [zero, row("docvqa"), row("iconqa")]
    assert plan.rows_before([zero], 1) == [zero]
    assert plan.rows_before([], 0) == []
    assert plan.rows_before([], 2) == [row("docvqa")]  # without a zero-shot row


def test_learning_waits_where_scoring_is_too_far_behind() -> None:
    def going_on() -> None:
        pass

    rows = RowsBeside((), rank=1, bound=2, going_on=going_on)  # not rank 0, so no scorer is asked
    assert (rows.is_empty, rows.is_full) == (True, False)
    rows.hand_over(0, train_s=0.0, rows=[])
    assert (rows.is_empty, rows.is_full) == (False, False)
    rows.hand_over(1, train_s=0.0, rows=[])
    assert (rows.is_empty, rows.is_full) == (False, True)


def scored(plan: Plan, learned: int, tasks: tuple[str, ...]) -> MatrixRow:
    """A row's predictions in the run's folder: of each task the first answer is right, so every score is 50."""
    after = plan.after(learned)
    path = predictions_file(plan.run_dir, learned, after)
    table = [
        Prediction(after=after, task=task, sample_id=f"{number}", score=float(number == 0), metric="exact")
        for task in tasks
        for number in range(ASKED)
    ]
    write_predictions(path, table)
    note_digests(plan.run_dir, [path])
    return row(after, **dict.fromkeys(tasks, 50.0))


def test_what_is_awaited_is_no_damage(plan: Plan) -> None:
    rows, said = [scored(plan, 0, TASKS), scored(plan, 1, TASKS[:1])], list[Event]()
    at = StreamState(index=2, update=4, rows=rows, awaited=1)
    matrix = plan.run_dir / "score_matrix.json"
    assert mend(plan, at, said.append).again == Again()
    assert [len(json.loads(matrix.read_text())["rows"]), len(said)] == [2, 1]  # the matrix was missing, and only that

    last = predictions_file(plan.run_dir, 2, plan.after(2))
    scored(plan, 2, TASKS[:2])  # killed after the scorer had written them
    before, said = last.read_bytes(), []
    assert mend(plan, at, said.append).again == Again()
    assert (said, last.read_bytes()) == ([], before)

    last.write_bytes(before[:-9])  # cut: it is answered anew when the row is taken up
    assert mend(plan, at, said.append).again == Again()
    assert (said, last.exists()) == ([], False)

    # Without `awaited`, as in a run that is scored in turn, the same folder is damaged.
    assert mend(plan, StreamState(index=2, update=4, rows=rows), said.append).again == Again(rows=(2,))


def test_before_the_first_row_nothing_is_missing(tmp_path: Path) -> None:
    plan, said = planned(tmp_path, suites=("mini-constraints",)), list[Event]()
    assert mend(plan, StreamState(index=0, update=4, awaited=1), said.append).again == Again()
    assert said == []


def test_a_run_whose_rows_are_missing_is_not_continued_from(plan: Plan) -> None:
    claim_run_dir(plan)
    for number, task in enumerate(TASKS[:2], start=1):
        folder = plan.run_dir / "checkpoints" / f"{number:02d}-{task}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text("{}")
    matrix = plan.run_dir / "score_matrix.json"
    rows = [{"after": "zero-shot", "scores": dict.fromkeys(TASKS, 50.0)}]
    matrix.write_text(json.dumps({"tasks": TASKS, "rows": rows}))
    with pytest.raises(ConfigError, match="run r ended before its row docvqa was scored; give its own command once"):
        new_origin(plan.config, plan.run_dir, None, score_again=False)
    rows.append({"after": "docvqa", "scores": {"docvqa": 50.0, "iconqa": None, "chartqa": None}})
    matrix.write_text(json.dumps({"tasks": TASKS, "rows": rows}))
    assert new_origin(plan.config, plan.run_dir, None, score_again=False).score_again
