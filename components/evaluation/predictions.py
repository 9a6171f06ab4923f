"""Predictions: every reply of a run with its scores, kept as one Parquet file per row of the score matrix.

`Prediction`'s fields are the file's columns. Only this module knows them; everything else writes and reads
`Prediction`s.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from components.core.errors import DataError
from components.core.files import whole_file
from components.core.location import AnyPlace, Place
from components.core.reading import why

PREDICTIONS_FOLDER = "predictions"  # in a run's folder
_MADE_OF = b"littoral.made_of"  # in a file's metadata
CORRECT_FROM = 0.5  # a score from which a reply counts as right: ANLS's own threshold
SAMPLES_LOGGED = 4  # predictions per task sent to the tracker to look at

PREDICTIONS_SCHEMA = pa.schema(
    [
        ("after", pa.string()),
        ("task", pa.string()),
        ("sample_id", pa.string()),
        ("prompt", pa.string()),
        ("prediction", pa.string()),
        ("answers", pa.list_(pa.string())),
        ("score", pa.float64()),
        ("metric", pa.string()),
        ("well_formed", pa.bool_()),
        ("repaired_score", pa.float64()),
        ("compat_score", pa.float64()),
        ("routed_to", pa.string()),
        ("slots", pa.list_(pa.int64())),
        ("matched", pa.bool_()),
        ("oracle_prediction", pa.string()),
        ("oracle_score", pa.float64()),
        ("reply_key", pa.string()),
        ("oracle_reply_key", pa.string()),
        ("answered_in", pa.string()),
        ("chosen_by", pa.string()),
        ("options", pa.list_(pa.string())),
        ("log_likelihoods", pa.list_(pa.float64())),
        ("oracle_log_likelihoods", pa.list_(pa.float64())),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """One reply to one test row. Scores are 0..1; what has a default may be missing from files of earlier versions."""

    after: str  # "zero-shot" or the task learned last
    task: str  # the task or suite of the row
    sample_id: str
    prompt: str = ""
    prediction: str = ""  # the reply itself
    answers: Sequence[str] = ()  # accepted answers
    score: float
    metric: str = ""
    well_formed: bool | None = None  # whether the reply has the form that the prompt asked for
    repaired_score: float | None = None  # with the answer inside a reply of the wrong form counted
    compat_score: float | None = None  # by the released script's rule; None where the release has none
    routed_to: str | None = None  # None for a method that does not route
    slots: Sequence[int] | None = None
    matched: bool | None = None  # False: nothing matched the row and a fallback answered it
    oracle_prediction: str | None = None  # the reply with the task known; None where it was not asked for
    oracle_score: float | None = None
    reply_key: str | None = None  # a digest of all that made the reply: see reuse.py; None: it is not known
    oracle_reply_key: str | None = None  # of the oracle's reply where that is a computation of its own
    answered_in: str | None = None  # the earlier row of the matrix whose reply was kept; None: there was none
    chosen_by: str | None = None  # the rule by which the reply was chosen among `options`; None: it was generated
    options: Sequence[str] | None = None
    log_likelihoods: Sequence[float] | None = None  # natural, of all tokens of each option given the prompt
    oracle_log_likelihoods: Sequence[float] | None = None  # with the task known; None where it was not asked for

    @property
    def is_correct(self) -> bool:
        """Whether the reply counts as right."""
        return self.score >= CORRECT_FROM


# ---- files


def predictions_file(run_dir: AnyPlace, learned: int, after: str, *, suite: str | None = None) -> AnyPlace:
    """Where the predictions after `learned` tasks are kept; those of a general suite in a folder of their own."""
    folder, name = run_dir / PREDICTIONS_FOLDER, f"{learned:02d}-{after}"
    return folder / f"{name}.parquet" if suite is None else folder / "general" / f"{name}-{suite}.parquet"


def write_predictions(path: Place, predictions: Sequence[Prediction], made_of: Mapping[str, str] | None = None) -> None:
    """Write one file; a reader sees all of it or none. `made_of`: by task, a digest of what its replies came from."""
    columns = {name: [getattr(one, name) for one in predictions] for name in PREDICTIONS_SCHEMA.names}
    schema = (
        PREDICTIONS_SCHEMA if made_of is None else PREDICTIONS_SCHEMA.with_metadata({_MADE_OF: json.dumps({**made_of})})
    )
    with whole_file(path, durable=True) as partial:
        pq.write_table(pa.Table.from_pydict(columns, schema=schema), partial)


def made_of(path: Place) -> Mapping[str, str]:
    """By task, what `write_predictions` was told; empty for a file that is missing, damaged, or of an older version."""
    try:
        with _parquet(path) as file:
            found = json.loads((file.schema_arrow.metadata or {})[_MADE_OF])
    except (OSError, pa.ArrowException, ValueError, KeyError):
        return {}
    return found if isinstance(found, dict) else {}


def read_predictions(path: Place, columns: Iterable[str] = PREDICTIONS_SCHEMA.names) -> Iterator[Prediction]:
    """One file's predictions in order. `columns`: read only these, for speed; the others keep their defaults.

    Raises `DataError` for a file without ids or scores, or one that is not Parquet.
    """
    wanted = set(columns) | {"after", "task", "sample_id", "score"}
    try:
        with _parquet(path) as file:
            there = set(file.schema_arrow.names)
            schema = pa.schema([field for field in PREDICTIONS_SCHEMA if field.name in wanted & there])
            table = file.read(columns=schema.names).select(schema.names).cast(schema)
        table.validate(full=True)  # without it, bytes that are no UTF-8 would raise below
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read as predictions ({why(error)}); restore it from a copy.") from error
    try:
        for batch in table.to_batches():
            for row in batch.to_pylist():
                yield Prediction(**{name: value for name, value in row.items() if value is not None})
    except TypeError as error:
        raise DataError(f"{path} lacks a column that predictions need ({error}).") from error


def _parquet(path: Place) -> pq.ParquetFile:
    return pq.ParquetFile(path if isinstance(path, Path) else path.open())


def run_predictions(run_dir: Place, columns: Iterable[str] = PREDICTIONS_SCHEMA.names) -> Iterator[Prediction]:
    """All predictions in a run's folder, in the order they were made; general suites are not among them."""
    for path in sorted((run_dir / PREDICTIONS_FOLDER).glob("*.parquet"), key=lambda each: each.name):
        yield from read_predictions(path, columns)


# ---- figures of one row of the matrix, by task


def by_task(predictions: Iterable[Prediction]) -> dict[str, list[Prediction]]:
    """The predictions of each task, tasks in the order they come in."""
    found: dict[str, list[Prediction]] = {}
    for one in predictions:
        found.setdefault(one.task, []).append(one)
    return found


def mean_score(predictions: Iterable[Prediction], column: str) -> float | None:
    """0..100: the mean of one column of scores over the predictions that have it; None without any."""
    scores: list[float] = [value for one in predictions if (value := getattr(one, column)) is not None]
    return 100.0 * sum(scores) / len(scores) if scores else None


def shares(predictions: Iterable[Prediction], holds: Callable[[Prediction], bool]) -> dict[str, float]:
    """0..1 by task: the share of its predictions for which `holds`."""
    return {task: sum(map(holds, found)) / len(found) for task, found in sorted(by_task(predictions).items())}


def slot_usage(predictions: Sequence[Prediction], num_slots: int | None) -> dict[str, list[int]] | None:
    """How often each of the method's slots was used for each task; None for a method without slots."""
    if num_slots is None or not any(one.slots for one in predictions):
        return None
    usage: dict[str, list[int]] = {}
    for one in predictions:
        counts = usage.setdefault(one.task, [0] * num_slots)
        for slot in one.slots or ():
            counts[slot] += 1
    return usage


def logged_samples(predictions: Iterable[Prediction]) -> list[dict[str, str | float]]:
    """The first `SAMPLES_LOGGED` predictions of each task as a tracker's table shows them."""
    return [
        {
            "task": one.task,
            "sample_id": one.sample_id,
            "prompt": one.prompt,
            "prediction": one.prediction,
            "answers": " | ".join(one.answers),
            "score": one.score,
        }
        for found in by_task(predictions).values()
        for one in found[:SAMPLES_LOGGED]
    ]
