"""The rows of a score matrix as a user gives them: what is allowed, and which one is the zero-shot row."""

from __future__ import annotations

import math
from collections.abc import Sequence

from components.core.errors import ConfigError

ZERO_SHOT = "zero-shot"  # the name of row 0 in score_matrix.json and in events.RowScored.after

Cell = float | None


class MatrixError(ConfigError, ValueError):
    """Rows that do not form a score matrix, or a figure whose cells were not evaluated."""


def has_zero_shot(tasks: list[str], num_rows: int, after: Sequence[str] | None, zero_shot: bool | None) -> bool:
    """Which rows were given, by the rules in `matrix.ScoreMatrix`."""
    if after is not None:
        found = bool(after) and after[0] == ZERO_SHOT
        expected = [ZERO_SHOT] * found + tasks
        if len(after) != num_rows or list(after) != expected[:num_rows]:
            raise MatrixError(
                f"{num_rows} rows must come after {expected[: max(num_rows, 1)]}, in this order; given: {list(after)}."
            )
        if zero_shot is not None and zero_shot != found:
            raise MatrixError(f"zero_shot={zero_shot} contradicts the row names {list(after)}; give one of the two.")
        return found
    if zero_shot is not None:
        if zero_shot and num_rows == 0:
            raise MatrixError("zero_shot=True needs at least the zero-shot row, no rows were given.")
        return zero_shot
    if num_rows not in (0, len(tasks), len(tasks) + 1):
        raise MatrixError(
            f"{num_rows} rows for {len(tasks)} tasks can be read with or without a zero-shot row; "
            f"give {len(tasks)} or {len(tasks) + 1} rows, or say which with zero_shot= or after=."
        )
    return num_rows == len(tasks) + 1


def checked_row(row: Sequence[Cell], number: int, tasks: list[str]) -> list[float]:
    """One row as floats, NaN for None; raises on a wrong length or a value that is not a finite number."""
    if len(row) != len(tasks):
        raise MatrixError(f"Row {number} holds {len(row)} cells for {len(tasks)} tasks; use None for unseen cells.")
    for task, cell in zip(tasks, row, strict=True):
        if cell is not None and (isinstance(cell, bool | str) or not math.isfinite(cell)):
            raise MatrixError(f"Row {number} scores {task!r} with {cell!r}; allowed are finite numbers and None.")
    return [math.nan if cell is None else float(cell) for cell in row]
