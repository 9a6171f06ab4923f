"""A finished run's folder, damaged file by file: what is told, what is mended at once, what is answered again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from components.core.checkpoint import write_checkpoint
from components.core.errors import DataError
from components.core.events import Event, Note
from components.data.stream_config import StreamConfig
from components.evaluation.general import GeneralScores
from components.evaluation.manifest import note_digests
from components.evaluation.predictions import Prediction, read_predictions, write_predictions
from components.evaluation.suite_figures import figures
from components.methods.sequential_lora import SequentialLoraConfig
from components.models.config import BackboneConfig
from components.tracking.config import TrackingConfig
from components.training.config import EvaluationConfig, RunConfig
from components.training.mending import find_damage, mend, mend_finished
from components.training.plan import Again, Plan, plan_stream
from components.training.stream_state import StreamState

TASKS = ("docvqa", "iconqa")
ROWS = {"00-zero-shot": TASKS, "01-docvqa": TASKS[:1], "02-iconqa": TASKS}
ASKED = 4
SUITE = "mini-constraints"
# Right answers of 4 by row and task: the scores below follow by hand.
RIGHT = {"00-zero-shot": (1, 0), "01-docvqa": (3,), "02-iconqa": (2, 4)}
SCORES = [[25.0, 0.0], [75.0, None], [50.0, 100.0]]


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    config = RunConfig(
        run_id="r",
        storage=tmp_path_factory.mktemp("runs"),
        stream=StreamConfig(size="nano", order=TASKS),
        backbone=BackboneConfig(name="pocket"),
        method=SequentialLoraConfig(rank=4),
        evaluation=EvaluationConfig(limit=ASKED, suites=(SUITE,)),
        tracking=TrackingConfig(enabled=False),
    )
    return plan_stream(config)


@pytest.fixture
def plan(planned: Plan) -> Plan:
    run = planned.run_dir
    shutil.rmtree(run, ignore_errors=True)
    files = []
    for name, tasks in ROWS.items():
        after = name.partition("-")[2]
        rows = [
            Prediction(after=after, task=task, sample_id=f"{number}", score=float(number < right), metric="exact")
            for task, right in zip(tasks, RIGHT[name], strict=True)
            for number in range(ASKED)
        ]
        files.append(run / "predictions" / f"{name}.parquet")
        write_predictions(files[-1], rows)
    general = GeneralScores()
    for learned, after in ((0, "zero-shot"), (2, "iconqa")):
        suite = planned.suites[0]
        rows = [
            Prediction(after=after, task=SUITE, sample_id=row.sample_id, score=1.0, answers=row.answers, prompt="?")
            for row in suite.test.rows(with_image=False)
        ]
        files.append(run / "predictions" / "general" / f"{learned:02d}-{after}-{SUITE}.parquet")
        write_predictions(files[-1], rows)
        general = general.plus(learned, after, SUITE, figures(suite.scoring, [*read_predictions(files[-1])]))
    general.write(run / "general.json", 75.0)
    note_digests(run, files)
    matrix = {
        "tasks": TASKS,
        "rows": [
            {"after": name.partition("-")[2], "scores": dict(zip(TASKS, row, strict=True))}
            for name, row in zip(ROWS, SCORES, strict=True)
        ],
    }
    (run / "score_matrix.json").write_text(json.dumps(matrix))
    (run / "finished.json").write_text('{"finished": "2026-01-02T03:04:05+00:00"}')
    for name in ("01-docvqa", "02-iconqa"):
        (run / "checkpoints" / name).mkdir(parents=True)
        write_checkpoint(run / "checkpoints" / name, {}, {})
    return planned


def mended(plan: Plan) -> tuple[bool, list[str]]:
    said: list[Event] = []
    whole = mend_finished(plan, said.append)
    return whole, [event.text for event in said if isinstance(event, Note)]


def contents(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_whole_folder_is_left_as_it_is(plan: Plan) -> None:
    before = contents(plan.run_dir)
    assert mended(plan) == (True, [])
    assert contents(plan.run_dir) == before


def edited(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


MENDED: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a score edited": ("score_matrix.json", lambda path: edited(path, "75.0", "95.0")),
    "the last row gone": ("score_matrix.json", lambda path: edited(path, path.read_text()[-70:], "}]}")),
    "matrix empty": ("score_matrix.json", lambda path: path.write_bytes(b"")),
    "matrix gone": ("score_matrix.json", lambda path: path.unlink()),
    "general cut": ("general.json", lambda path: path.write_bytes(path.read_bytes()[:50])),
    "general gone": ("general.json", lambda path: path.unlink()),
    "general edited": ("general.json", lambda path: edited(path, '"score": 100', '"score": 40')),
    "marker empty": ("finished.json", lambda path: path.write_bytes(b"")),
    "marker of another shape": ("finished.json", lambda path: path.write_text('{"finished": 5}')),
    "manifest cut": ("manifest.json", lambda path: path.write_bytes(path.read_bytes()[:50])),
}


@pytest.mark.parametrize(("name", "damage"), MENDED.values(), ids=MENDED)
def test_mended_from_the_predictions(plan: Plan, name: str, damage: Callable[[Path], object]) -> None:
    damage(plan.run_dir / name)
    whole, said = mended(plan)
    assert whole
    assert len(said) == 1
    assert name in said[0]
    assert "\n" not in said[0]
    rows = json.loads((plan.run_dir / "score_matrix.json").read_text())["rows"]
    assert [[*row["scores"].values()] for row in rows] == SCORES
    assert "finished" in json.loads((plan.run_dir / "finished.json").read_text())
    assert GeneralScores.read(plan.run_dir / "general.json").figures[2][SUITE]["score"] == 100.0
    assert mended(plan) == (True, [])


def without_a_row(path: Path) -> None:
    write_predictions(path, [*read_predictions(path)][1:])


def with_other_scores(path: Path) -> None:
    """The same mean, so that only the digest can tell."""
    rows = [*read_predictions(path)]
    write_predictions(path, [replace(row, score=1.0 - row.score) if row.task == "docvqa" else row for row in rows])


ANSWERED_AGAIN: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: path.unlink(),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "empty": lambda path: path.write_bytes(b""),
    "a row gone": without_a_row,
    "scores edited": with_other_scores,
}


@pytest.mark.parametrize("damage", ANSWERED_AGAIN.values(), ids=ANSWERED_AGAIN)
def test_predictions_are_answered_again(plan: Plan, damage: Callable[[Path], object]) -> None:
    damage(plan.run_dir / "predictions" / "02-iconqa.parquet")
    found = find_damage(plan, learned=2)
    assert found.again == Again(rows=(2,))
    assert found.told[0].startswith("predictions/02-iconqa.parquet of run r ")
    assert mended(plan) == (False, [])
    assert not (plan.run_dir / "finished.json").exists()


def test_a_suite_is_answered_again(plan: Plan) -> None:
    (plan.run_dir / "predictions" / "general" / f"00-zero-shot-{SUITE}.parquet").unlink()
    assert find_damage(plan, learned=2).again == Again(suites=((0, SUITE),))
    assert not mended(plan)[0]


def test_without_a_manifest_row_counts_and_scores_tell(plan: Plan) -> None:
    (plan.run_dir / "manifest.json").unlink()
    assert mended(plan) == (True, [])
    path = plan.run_dir / "predictions" / "01-docvqa.parquet"
    write_predictions(path, [replace(row, score=0.5) for row in read_predictions(path)])
    assert find_damage(plan, learned=2).again == Again(rows=(1,))


def test_what_cannot_be_mended_is_named(plan: Plan) -> None:
    (plan.run_dir / "predictions" / "01-docvqa.parquet").unlink()
    shutil.rmtree(plan.run_dir / "checkpoints" / "01-docvqa")
    with pytest.raises(DataError, match=r"01-docvqa\.parquet .* is gone; restore one of them") as refused:
        mended(plan)
    assert "\n" not in str(refused.value)
    assert (plan.run_dir / "finished.json").exists()


def test_a_run_that_goes_on_has_the_rows_of_its_checkpoint(plan: Plan) -> None:
    stored = find_damage(plan, learned=1).rows
    said: list[Event] = []
    assert mend(plan, StreamState(index=1, rows=stored), said.append).again == Again()
    assert said == []  # it was killed after a row was scored, which is no damage
    rows = json.loads((plan.run_dir / "score_matrix.json").read_text())["rows"]
    assert [[*row["scores"].values()] for row in rows] == SCORES[:2]
    assert mend(plan, None, said.append).again == Again()
    assert not (plan.run_dir / "score_matrix.json").exists()
