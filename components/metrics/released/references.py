"""Reading the fields of one record of a released annotation file; a field that is missing or odd is a `DataError`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

from components.core.errors import DataError
from components.metrics.released.evalai import NUM_ANSWERS

Reference = Mapping[str, object]
Rule = Callable[[str, Reference], float]  # (prediction, reference) -> score in 0..1


def text_field(reference: Reference, name: str) -> str:
    """A field that must be text."""
    value = reference.get(name)
    if not isinstance(value, str):
        raise DataError(f'"{name}" of a reference must be text, given: {shown(value)}.')
    return value


def list_field(reference: Reference, name: str) -> list[object]:
    """A field that must be a list."""
    value = reference.get(name)
    if not isinstance(value, list):
        raise DataError(f'"{name}" of a reference must be a list, given: {shown(value)}.')
    return cast("list[object]", value)


def ten_answers(reference: Reference) -> list[str]:
    """The ten people's answers in `answers`: text (TextVQA), or objects with the text in `answer` (VQAv2, VizWiz)."""
    answers = [_person(value) for value in list_field(reference, "answers")]
    if len(answers) != NUM_ANSWERS:
        raise DataError(f'"answers" of a reference must hold {NUM_ANSWERS} answers, given: {len(answers)}.')
    return answers


def accepted_answers(reference: Reference) -> list[str]:
    """`answers`, a list of text that holds at least one, or else the one text `answer` (COAST's test files)."""
    if "answers" not in reference:
        return [text_field(reference, "answer")]
    answers = [value for value in list_field(reference, "answers") if isinstance(value, str)]
    if not answers or len(answers) != len(list_field(reference, "answers")):
        raise DataError(f'"answers" of a reference must be a list of text, given: {shown(reference["answers"])}.')
    return answers


def shown(value: object) -> str:
    """A value for an error message, cut to a readable length; `None` stands for a missing field."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _person(value: object) -> str:
    if isinstance(value, dict):
        value = cast("dict[str, object]", value).get("answer")
    if not isinstance(value, str):
        raise DataError(f'every one of "answers" must be text or hold the text "answer", given: {shown(value)}.')
    return value
