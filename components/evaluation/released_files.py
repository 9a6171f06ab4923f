"""The files that released evaluations exchange: a benchmark's annotations, and a model's replies as JSON lines.

Every fault is a `DataError` that names the file and the line, record or question.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard, cast

from components.errors import DataError
from components.evaluation.scorers.references import Reference, shown

QuestionId = str | int


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One reply; `line` counts from 1."""

    line: int
    question_id: QuestionId
    text: str


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """One record of an annotation file and the id that its layout gives it (None where a list's record has none)."""

    question_id: QuestionId | None
    reference: Reference


def read_predictions(path: Path) -> list[Prediction]:
    """The lines of a result file (merge.jsonl): objects with `question_id` and `text`; other fields are not read."""
    predictions: list[Prediction] = []
    for number, line in enumerate(_lines(_text(path)), start=1):
        item = _object(_parsed(line, f"{path} line {number}"), f"{path} line {number}")
        key, text = item.get("question_id"), item.get("text")
        if not _is_id(key):
            raise DataError(f'{path} line {number}: "question_id" must be text or a whole number, given: {shown(key)}.')
        if not isinstance(text, str):
            raise DataError(f'{path} line {number}: "text" must be the reply as text, given: {shown(text)}.')
        predictions.append(Prediction(line=number, question_id=key, text=text))
    if not predictions:
        raise DataError(f"{path} holds no predictions.")
    return predictions


def read_list(path: Path) -> list[Annotation]:
    """A JSON list of records with `question_id` (CoIN's test.json, val.json), or the same as JSON lines (COAST's)."""
    text = _text(path)
    if text.lstrip()[:1] == "[":
        return _records(path, _parsed(text, str(path)))
    lines = [_parsed(line, f"{path} line {number}") for number, line in enumerate(_lines(text), start=1)]
    return _records(path, lines)


def read_data_list(path: Path) -> list[Annotation]:
    """TextVQA's layout: an object whose `data` is a list of records with `question_id`."""
    return _records(path, _object(_json(path), str(path)).get("data"), 'the list "data" of ')


def read_questions(path: Path) -> list[Annotation]:
    """GQA's layout, and that of ScienceQA's problems.json: an object with one record per id."""
    questions = _object(_json(path), str(path))
    return [
        Annotation(question_id=key, reference=_object(value, f"{path} question {key!r}"))
        for key, value in questions.items()
    ]


def read_split(problems: Path, splits: Path, split: str) -> list[Annotation]:
    """The problems of one ScienceQA split, in its order: `problems` by id, and ids by split in `splits`."""
    listed = _object(_json(splits), str(splits)).get(split)
    ids = cast("list[object]", listed) if isinstance(listed, list) else []
    if not ids:
        raise DataError(f'{splits} must list the ids of the split "{split}", given: {shown(listed)}.')
    known = {problem.question_id: problem for problem in read_questions(problems)}
    chosen: dict[QuestionId, Annotation] = {}
    for key in ids:
        if not _is_id(key) or key not in known:
            raise DataError(f'{splits} names {shown(key)} in split "{split}", which {problems} does not hold.')
        chosen[key] = known[key]
    return list(chosen.values())


def _records(path: Path, records: object, where: str = "") -> list[Annotation]:
    if not isinstance(records, list) or not records:
        raise DataError(f"{where}{path} must be a list of records that is not empty, given: {shown(records)}.")
    return list(_annotations(path, cast("list[object]", records)))


def _annotations(path: Path, records: list[object]) -> Iterator[Annotation]:
    for number, value in enumerate(records, start=1):
        record = _object(value, f"{path} record {number}")
        key = record.get("question_id")
        if key is not None and not _is_id(key):
            raise DataError(
                f'{path} record {number}: "question_id" must be text or a whole number, given: {shown(key)}.'
            )
        yield Annotation(question_id=key, reference=record)


def _lines(text: str) -> list[str]:
    """The lines of a file without an empty one after the last line break; other breaks (U+2028) may be inside text."""
    return text.removesuffix("\n").split("\n") if text else []


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error


def _json(path: Path) -> object:
    return _parsed(_text(path), str(path))


def _parsed(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not JSON ({error.msg} at character {error.pos + 1}).") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or brackets as deep
        raise DataError(f"{where} is JSON of an absurd size: {error}.") from error


def _object(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise DataError(f"{where} must be a JSON object, given: {shown(value)}.")
    return cast("dict[str, object]", value)


def _is_id(value: object) -> TypeGuard[QuestionId]:
    return isinstance(value, str | int) and not isinstance(value, bool)
