"""Scored cells that a restarted run takes up: the same replies, and only where they were made from the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from components.core.events import Event, Note
from components.data.rows import Shard, Split
from components.data.suite import Suite
from components.data.tasks import Task
from components.evaluation.predictions import Prediction, predictions_file, read_predictions
from components.methods.base import MethodState
from components.training.kept_cells import KeptCells, state_digest


def split(name: str, sha256: str = "ab") -> Split:
    return Split(
        path=Path(name), task=name, split="test", shards=(Shard(file="0.parquet", rows=2, bytes=9, sha256=sha256),)
    )


CHARTS, ICONS = (Task(name=name, train=split(name), test=split(name), max_new_tokens=8) for name in ("charts", "icons"))
POPE = Suite(name="pope", test=split("pope"), max_new_tokens=4, scoring="mean")


def cell(task: str) -> list[Prediction]:
    replies = [("1", "a bar", 1 / 3, [1, 2], True), ("2", "", 0.0, None, None)]
    return [
        Prediction(
            after="charts",
            task=task,
            sample_id=sample_id,
            prompt="What?",
            prediction=text,
            answers=["a bar", "bars"],
            score=score,
            metric="anls",
            slots=slots,
            matched=matched,
        )
        for sample_id, text, score, slots, matched in replies
    ]


def kept(run_dir: Path, state: str = "s") -> KeptCells:
    return KeptCells(run_dir, 1, "charts", state=state)


def test_a_cell_outlives_the_process_that_scored_it(tmp_path: Path) -> None:
    kept(tmp_path).put(CHARTS, None, cell("charts"))
    again = kept(tmp_path)
    assert again.take(CHARTS, 2, None) == cell("charts")
    assert again.take(ICONS, 2, None) is None
    assert not list((tmp_path / "predictions").glob("*.parquet")), "a row counts when it is whole"


def test_the_row_takes_the_place_of_its_cells_and_gives_them_back(tmp_path: Path) -> None:
    first = kept(tmp_path)
    first.put(CHARTS, None, cell("charts"))
    second = kept(tmp_path)
    assert second.take(CHARTS, 2, None)
    second.put(ICONS, None, cell("icons"))
    table = cell("charts") + cell("icons")
    second.join(table)
    row = predictions_file(tmp_path, 1, "charts")
    assert [path.name for path in row.parent.iterdir()] == [row.name]
    assert list(read_predictions(row)) == table
    after = kept(tmp_path)
    assert [after.take(task, 2, None) for task in (CHARTS, ICONS)] == [cell("charts"), cell("icons")]
    written = row.read_bytes()
    after.join(table)
    assert row.read_bytes() == written, "a row that was taken up ends with the same bytes"


def test_a_suite_is_taken_from_its_own_file(tmp_path: Path) -> None:
    kept(tmp_path).put(POPE, None, cell("pope"))
    assert predictions_file(tmp_path, 1, "charts", suite="pope").is_file()
    assert kept(tmp_path).take(POPE, 2, None) == cell("pope")


@pytest.mark.parametrize(
    ("task", "num_rows", "oracle", "state"),
    [
        (replace(CHARTS, test=split("charts", "cd")), 2, None, "s"),
        (replace(CHARTS, max_new_tokens=9), 2, None, "s"),
        (CHARTS, 1, None, "s"),
        (CHARTS, 2, "charts", "s"),
        (CHARTS, 2, None, "other"),
    ],
)
def test_what_was_made_from_anything_else_is_answered_again(
    tmp_path: Path, task: Task, num_rows: int, oracle: str | None, state: str
) -> None:
    kept(tmp_path).put(CHARTS, None, cell("charts"))
    assert kept(tmp_path, state).take(task, num_rows, oracle) is None


def test_damaged_and_foreign_files_are_answered_again(tmp_path: Path) -> None:
    kept(tmp_path).put(CHARTS, None, cell("charts"))
    (path,) = (tmp_path / "predictions" / ".01-charts").iterdir()
    whole = path.read_bytes()
    for content in (whole[:-9], whole[: len(whole) // 2], b"", whole.replace(b"PAR1", b"PAR2")):
        path.write_bytes(content)
        assert kept(tmp_path).take(CHARTS, 2, None) is None
    path.write_bytes(whole)
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)  # as an earlier version wrote it
    assert kept(tmp_path).take(CHARTS, 2, None) is None


def test_the_user_hears_what_is_not_answered_again(tmp_path: Path) -> None:
    said: list[Event] = []
    fresh = kept(tmp_path)
    fresh.put(CHARTS, None, cell("charts"))
    fresh.tell(said.append, 2)
    assert said == []
    again = kept(tmp_path)
    again.take(CHARTS, 2, None)
    again.tell(said.append, 2)
    assert said == [Note(text="scoring after charts: 1 of 2 had been scored before this start")]


def test_every_bit_of_a_methods_state_counts() -> None:
    tensors = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3, dtype=torch.int64), "h": torch.ones(2).bfloat16()}
    state = MethodState(tensors=tensors, structure={"tasks": ["charts"]})
    one = state_digest(state)
    assert state_digest(MethodState(tensors=dict(reversed(tensors.items())), structure=state.structure)) == one
    other = [
        replace(state, structure={"tasks": ["icons"]}),
        replace(state, tensors=tensors | {"a": torch.nextafter(tensors["a"], torch.tensor(9.0))}),
        replace(state, tensors=tensors | {"a": tensors["a"].reshape(2, 1)}),
        replace(state, tensors=tensors | {"b": torch.tensor(3, dtype=torch.int32)}),
        replace(state, tensors={"c" if name == "a" else name: value for name, value in tensors.items()}),
    ]
    assert one not in map(state_digest, other)
    assert len(set(map(state_digest, other))) == len(other)
