"""Files of released evaluations: a benchmark's annotations, and a model's replies as JSON lines.

Every fault is a `DataError` that names the file and the line, record or question.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeGuard, cast

from components.core.errors import DataError
from components.metrics.released.references import Reference, shown

QuestionId = str | int
GZIP = b"\x1f\x8b"  # what a gzipped file begins with


@dataclass(frozen=True, kw_only=True)
class ReleasedReply:
    """One reply; `line` counts from 1."""

    line: int
    question_id: QuestionId
    text: str


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """One record of an annotation file and the id that its layout gives it (None where a list's record has none)."""

    question_id: QuestionId | None
    reference: Reference


def read_replies(path: Path) -> list[ReleasedReply]:
    """The lines of a result file (merge.jsonl): objects with `question_id` and `text`; other fields are not read.

    A JSON object whose `results` is a list of replies (TRACE's) is read too; a reply's id is then its position, from 1.
    Files may be gzipped.
    """
    whole = file_text(path)
    if (results := _results(whole)) is not None:
        wrong = next((at for at, text in enumerate(results, start=1) if not isinstance(text, str)), None)
        if wrong is not None or not results:
            given = shown(results[wrong - 1]) if wrong else "an empty list"
            raise DataError(f'{path}: "results" must be a list of replies as texts, given: {given}.')
        return [ReleasedReply(line=at, question_id=at, text=str(text)) for at, text in enumerate(results, start=1)]
    predictions: list[ReleasedReply] = []
    for number, line in enumerate(_lines(whole), start=1):
        item = json_object(json_value(line, f"{path} line {number}"), f"{path} line {number}")
        key, text = item.get("question_id"), item.get("text")
        if not _is_id(key):
            raise DataError(f'{path} line {number}: "question_id" must be text or a whole number, given: {shown(key)}.')
        if not isinstance(text, str):
            raise DataError(f'{path} line {number}: "text" must be the reply as text, given: {shown(text)}.')
        predictions.append(ReleasedReply(line=number, question_id=key, text=text))
    if not predictions:
        raise DataError(f"{path} contains no predictions.")
    return predictions


def read_list(path: Path) -> list[Annotation]:
    """A JSON list of records with `question_id` (CoIN's test.json, val.json), or the same as JSON lines (COAST's)."""
    text = file_text(path)
    if text.lstrip()[:1] == "[":
        return _records(path, json_value(text, str(path)))
    lines = [json_value(line, f"{path} line {number}") for number, line in enumerate(_lines(text), start=1)]
    return _records(path, lines)


def read_in_order(path: Path) -> list[Annotation]:
    """A JSON list of records without ids (TRACE's test.json): an id is the record's position, from 1."""
    return [replace(record, question_id=at) for at, record in enumerate(read_list(path), start=1)]


def read_captions(path: Path) -> list[Annotation]:
    """The references of a COCO caption file: `answers` by image id, in the order in which pictures appear."""
    found: dict[QuestionId, list[str]] = {}
    listed = json_object(_json(path), str(path)).get("annotations")
    if not isinstance(listed, list) or not listed:
        raise DataError(f'the list "annotations" of {path} must hold captions, given: {shown(listed)}.')
    for number, value in enumerate(cast("list[object]", listed), start=1):
        entry = json_object(value, f"{path} annotation {number}")
        key, text = entry.get("image_id"), entry.get("caption")
        if not _is_id(key) or not isinstance(text, str):
            raise DataError(
                f'{path} annotation {number} must have an "image_id" and a "caption", given: {shown(entry)}.'
            )
        found.setdefault(key, []).append(text)
    return [Annotation(question_id=key, reference={"answers": captions}) for key, captions in found.items()]


def read_data_list(path: Path) -> list[Annotation]:
    """TextVQA's layout: an object whose `data` is a list of records with `question_id`."""
    return _records(path, json_object(_json(path), str(path)).get("data"), 'the list "data" of ')


def read_questions(path: Path) -> list[Annotation]:
    """GQA's layout, and that of ScienceQA's problems.json: an object with one record per id."""
    questions = json_object(_json(path), str(path))
    return [
        Annotation(question_id=key, reference=json_object(value, f"{path} question {key!r}"))
        for key, value in questions.items()
    ]


def read_split(problems: Path, splits: Path, split: str) -> list[Annotation]:
    """The problems of one ScienceQA split, in its order: `problems` by id, and ids by split in `splits`."""
    listed = json_object(_json(splits), str(splits)).get(split)
    ids = cast("list[object]", listed) if isinstance(listed, list) else []
    if not ids:
        raise DataError(f'{splits} must list the ids of the split "{split}", given: {shown(listed)}.')
    known = {problem.question_id: problem for problem in read_questions(problems)}
    chosen: dict[QuestionId, Annotation] = {}
    for key in ids:
        if not _is_id(key) or key not in known:
            raise DataError(f'{splits} names {shown(key)} in split "{split}", which {problems} lacks.')
        chosen[key] = known[key]
    return list(chosen.values())


def _records(path: Path, records: object, where: str = "") -> list[Annotation]:
    if not isinstance(records, list) or not records:
        raise DataError(f"{where}{path} must be a list of records that is not empty, given: {shown(records)}.")
    return list(_annotations(path, cast("list[object]", records)))


def _annotations(path: Path, records: list[object]) -> Iterator[Annotation]:
    for number, value in enumerate(records, start=1):
        record = json_object(value, f"{path} record {number}")
        key = record.get("question_id")
        if key is not None and not _is_id(key):
            raise DataError(
                f'{path} record {number}: "question_id" must be text or a whole number, given: {shown(key)}.'
            )
        yield Annotation(question_id=key, reference=record)


def _lines(text: str) -> list[str]:
    """The lines of a file without an empty one after the last line break; other breaks (U+2028) may be inside text."""
    return text.removesuffix("\n").split("\n") if text else []


def _results(text: str) -> list[object] | None:
    """The list `results` of a JSON object, or None where the text is no such object."""
    if '"results"' not in text or text.lstrip()[:1] != "{":
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    results = content.get("results") if isinstance(content, dict) else None
    return cast("list[object]", results) if isinstance(results, list) else None


def file_text(path: Path) -> str:
    """A file of UTF-8 text, gzipped or not; raises `DataError`."""
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if content[:2] == GZIP else content).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}).") from error


def _json(path: Path) -> object:
    return json_value(file_text(path), str(path))


def json_value(text: str, where: str) -> object:
    """The value of a text that is JSON; raises `DataError` that names `where`."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not JSON ({error.msg} at character {error.pos + 1}).") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or brackets as deep
        raise DataError(f"{where} is JSON with a number too long or nesting too deep: {error}.") from error


def json_object(value: object, where: str) -> dict[str, object]:
    """The value, which must be an object; raises `DataError` that names `where`."""
    if not isinstance(value, dict):
        raise DataError(f"{where} must be a JSON object, given: {shown(value)}.")
    return cast("dict[str, object]", value)


def _is_id(value: object) -> TypeGuard[QuestionId]:
    return isinstance(value, str | int) and not isinstance(value, bool)
