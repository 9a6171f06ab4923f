"""The one record of a reply, and its files: of this version and of earlier ones."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.core.errors import DataError
from components.evaluation.predictions import (
    PREDICTIONS_SCHEMA,
    Prediction,
    logged_samples,
    mean_score,
    predictions_file,
    read_predictions,
    run_predictions,
    shares,
    slot_usage,
    write_predictions,
)

WHOLE = Prediction(
    after="charts",
    task="icons",
    sample_id="7",
    prompt="Which?",
    prediction="B",
    answers=["B", "b"],
    score=1.0,
    metric="choice",
    well_formed=True,
    repaired_score=1.0,
    compat_score=0.5,
    routed_to="charts",
    slots=[0, 3],
    matched=False,
    oracle_prediction="A",
    oracle_score=0.0,
    chosen_by="acc",
    options=["A", "B"],
    log_likelihoods=[-2.5, -0.125],
    oracle_log_likelihoods=[-0.25, -3.0],
)
PLAIN = Prediction(after="charts", task="charts", sample_id="1", score=0.25)


def test_the_files_columns_are_promised() -> None:
    """Other programs read these files: names, types and order change only with a release note."""
    assert [f"{field.name} {field.type}" for field in PREDICTIONS_SCHEMA] == [
        "after string",
        "task string",
        "sample_id string",
        "prompt string",
        "prediction string",
        "answers list<item: string>",
        "score double",
        "metric string",
        "well_formed bool",
        "repaired_score double",
        "compat_score double",
        "routed_to string",
        "slots list<item: int64>",
        "matched bool",
        "oracle_prediction string",
        "oracle_score double",
        "reply_key string",
        "oracle_reply_key string",
        "answered_in string",
        "chosen_by string",
        "options list<item: string>",
        "log_likelihoods list<item: double>",
        "oracle_log_likelihoods list<item: double>",
    ]
    assert [field.name for field in fields(Prediction)] == PREDICTIONS_SCHEMA.names


def test_what_is_written_is_read(tmp_path: Path) -> None:
    first, suite = predictions_file(tmp_path, 1, "charts"), predictions_file(tmp_path, 1, "charts", suite="pope")
    assert (first.parent.name, first.name) == ("predictions", "01-charts.parquet")
    assert (suite.parent.name, suite.name) == ("general", "01-charts-pope.parquet")
    write_predictions(first, [WHOLE, PLAIN])
    write_predictions(suite, [WHOLE])
    assert pq.read_schema(first).equals(PREDICTIONS_SCHEMA)
    found = list(run_predictions(tmp_path))
    assert found[0] == WHOLE
    assert (found[1].score, found[1].slots, found[1].oracle_score) == (0.25, None, None)
    assert len(found) == 2, "suites are not rows of the matrix"
    assert next(read_predictions(first, ["score"])).prompt == ""
    assert [path.name for path in first.parent.iterdir() if path.is_file()] == [first.name]


def test_files_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """Fewer columns, a column of nothing, whole numbers as scores, and columns that nobody knows any more."""
    rows = [{"after": "a", "task": "a", "sample_id": "1", "score": 1, "routed_to": None, "seconds": 3.0}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "old.parquet")
    assert list(read_predictions(tmp_path / "old.parquet")) == [
        Prediction(after="a", task="a", sample_id="1", score=1.0)
    ]


def test_broken_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("no table")
    pq.write_table(pa.table({"after": ["a"], "task": ["a"]}), tmp_path / "few.parquet")
    for name, words in (("text", "cannot be read as predictions"), ("few", "lacks a column"), ("none", "cannot be")):
        with pytest.raises(DataError, match=words):
            list(read_predictions(tmp_path / f"{name}.parquet"))


def test_figures_by_hand() -> None:
    assert mean_score([WHOLE, PLAIN], "score") == 62.5
    assert mean_score([WHOLE, PLAIN], "compat_score") == 50.0, "only what has the variant"
    assert mean_score([PLAIN], "oracle_score") is None
    assert shares([WHOLE, PLAIN], lambda one: one.is_correct) == {"charts": 0.0, "icons": 1.0}
    assert slot_usage([WHOLE, PLAIN], 4) == {"icons": [1, 0, 0, 1], "charts": [0, 0, 0, 0]}
    assert slot_usage([PLAIN], 4) is None
    samples = logged_samples([WHOLE] * 6)
    assert len(samples) == 4
    assert samples[0]["answers"] == "B | b"
