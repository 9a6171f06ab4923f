"""The metric of composed constraints."""

from __future__ import annotations

from collections.abc import Sequence

from components.core.errors import DataError
from components.metrics.constraints import constraint


def constraints(prediction: str, answers: Sequence[str]) -> float:
    """The share of constraints that the reply fulfils; `answers` are the constraints (components.metrics.constraints).

    One that cannot be read counts as not fulfilled; `check_answers` finds it early.
    """
    if not prediction.strip() or not answers:
        return 0.0
    return sum(_fulfilled(prediction, text) for text in answers) / len(answers)


def _fulfilled(prediction: str, text: str) -> bool:
    try:
        return constraint(text).fulfilled(prediction)
    except DataError:
        return False
