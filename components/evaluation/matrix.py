"""The score matrix of a stream and every figure that is computed from it. Pure numpy.

`S[i, j]` is the score (0..100) on task j after learning i tasks, i = 0 is the model before any training ("zero-shot").
In the formulas tasks count from 1, T is the number of tasks learned so far, and the sums run over learned tasks only:
a running stream's figures are those of the stream that would have ended now.

A stream without boundaries has P points in time in place of the T tasks' ends: `S[i, j]` is the score on task j at the
i-th point. All tasks count at every point, and figures that need the moment at which a task was learned are left out.

A figure that needs a cell which was not evaluated raises `MatrixError`; nothing is filled in. `summary()` gives the
figures that can be computed and leaves the others out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from components.core.errors import ConfigError
from components.core.files import write_text
from components.core.location import Place
from components.core.reading import read_object, understood

ZERO_SHOT = "zero-shot"  # the name of row 0 in score_matrix.json and in events.RowScored.after
MATRIX_FILE = "score_matrix.json"

Cell = float | None


class MatrixError(ConfigError, ValueError):
    """Rows that do not form a score matrix, or a figure whose cells were not evaluated."""


class ScoreMatrix:
    """Scores of every task after every task.

    `rows[r][j]` is a score or None for a cell that was not evaluated. Which row is which:

    - `after` given (names as in score_matrix.json): it must read `["zero-shot"?, tasks[0], tasks[1], ...]`.
    - else `zero_shot` given: row 0 is (True) or is not (False) the zero-shot row.
    - else the number of rows decides: T + 1 rows = with zero-shot, T rows = without, 0 rows = nothing yet. Any other
      number could be read both ways and raises `MatrixError`; so does a partial matrix without one of the two above.

    `points`: of a stream without boundaries, what its rows are named after; above, they then stand for the tasks.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        rows: Sequence[Sequence[Cell]],
        after: Sequence[str] | None = None,
        *,
        zero_shot: bool | None = None,
        points: Sequence[str] | None = None,
    ) -> None:
        self.tasks, self.points = list(tasks), None if points is None else list(points)
        if not self.tasks:
            raise MatrixError("A score matrix needs at least one task, none was given.")
        if len(set(self.tasks)) < len(self.tasks) or ZERO_SHOT in self.tasks:
            raise MatrixError(f"Task names must differ from each other and from {ZERO_SHOT!r}, given: {self.tasks}.")
        if points is not None and (not points or len(set(points)) < len(points) or ZERO_SHOT in points):
            raise MatrixError(
                f"Points in time must differ from each other and from {ZERO_SHOT!r}, given: {self.points}."
            )
        self.has_zero_shot = _has_zero_shot(self.steps, len(rows), after, zero_shot)
        self.num_learned = len(rows) - self.has_zero_shot
        if self.num_learned > len(self.steps):
            each = "task" if points is None else "point"
            raise MatrixError(f"{len(rows)} rows were given for {len(self.steps)} {each}s; allowed is one a {each}.")
        # Row i = after i tasks; row 0 stays empty (NaN) without zero-shot, so that indices mean the same either way.
        self._cells = np.full((self.num_learned + 1, len(self.tasks)), np.nan)
        for number, row in enumerate(rows):
            self._cells[number + (not self.has_zero_shot)] = _checked_row(row, number, self.tasks)

    @classmethod
    def from_scores(
        cls,
        tasks: Sequence[str],
        rows: Sequence[tuple[str, Mapping[str, Cell]]],
        *,
        points: Sequence[str] | None = None,
    ) -> ScoreMatrix:
        """From `(after, {task: score})` pairs, the shape of `events.RowScored`; an absent task is an unseen cell."""
        for after, scores in rows:
            unknown = sorted(set(scores) - set(tasks))
            if unknown:
                raise MatrixError(f"The row after {after!r} scores {unknown}, which the stream {list(tasks)} lacks.")
        cells = [[scores.get(task) for task in tasks] for _, scores in rows]
        return cls(tasks, cells, [after for after, _ in rows], points=points)

    # ---- the cells

    @property
    def steps(self) -> list[str]:
        """What the rows after zero-shot are named after: the tasks, or the points in time."""
        return self.tasks if self.points is None else self.points

    @property
    def counted(self) -> list[str]:
        """The tasks over which figures of now are: those learned so far; without boundaries all, from the first point.

        They are the first ones of `tasks`.
        """
        if self.points is None:
            return self.tasks[: self.num_learned]
        return self.tasks if self.num_learned else []

    @property
    def earlier(self) -> list[str]:
        """The tasks that can have been forgotten: those before the last one; without boundaries all, from the second
        point."""
        if self.points is None:
            return self.counted[:-1]
        return self.tasks if self.num_learned > 1 else []

    def since(self, column: int) -> int:
        """The first row of `values` from which a task counts: that after it; without boundaries the first point's."""
        return column + 1 if self.points is None else 1

    @property
    def rows(self) -> list[list[Cell]]:
        """The rows as they were given: zero-shot first if there is one, None for unseen cells."""
        cells = self._cells if self.has_zero_shot else self._cells[1:]
        return [[None if math.isnan(cell) else float(cell) for cell in row] for row in cells]

    @property
    def after(self) -> list[str]:
        """What each of `rows` comes after: "zero-shot" or a task's name."""
        return [ZERO_SHOT] * self.has_zero_shot + self.steps[: self.num_learned]

    @property
    def values(self) -> NDArray[np.float64]:
        """A copy as [1 + learned tasks or points, tasks]; row 0 is zero-shot, NaN where unseen."""
        return self._cells.copy()

    def at(self, num_learned: int) -> ScoreMatrix:
        """The matrix as it was after `num_learned` tasks (0..learned)."""
        if not 0 <= num_learned <= self.num_learned:
            raise MatrixError(f"This matrix has 0 to {self.num_learned} learned tasks, asked for {num_learned}.")
        keep = num_learned + self.has_zero_shot
        return ScoreMatrix(self.tasks, self.rows[:keep], self.after[:keep], points=self.points)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ScoreMatrix):
            return NotImplemented
        mine, theirs = ((one.tasks, one.points, one.after, one.rows) for one in (self, other))
        return mine == theirs

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        points = "" if self.points is None else f", points={self.points!r}"
        return f"ScoreMatrix({self.tasks!r}, {self.rows!r}, {self.after!r}{points})"

    # ---- the figures

    def final_average(self) -> float:
        """(1/T) sum_j S[T, j], at the last point. Also called MFN, Last, Avg.ACC, AP, ACC, OP."""
        return float(self._learned("final_average", 1)[-1].mean())

    def immediate_average(self) -> float:
        """(1/T) sum_j S[j, j], each task scored right after it was learned. Also MFT, New.ACC, Imd."""
        self._learned("immediate_average", 1, cells="diagonal")
        return float(self._diagonal().mean())

    def mean_average(self) -> float:
        """(1/T) sum_i (1/i) sum_{j <= i} S[i, j], the mean of the running averages. Also MAA, MAP."""
        scores = self._learned("mean_average", 1, cells="triangle")
        return float(np.mean([scores[i, : i + 1].mean() for i in range(len(scores))]))

    def average_over_time(self) -> float:
        """(1/(P T)) sum_i sum_j S[i, j] over the P points of a stream without boundaries. Also A_AUC (Koh et al. 2022,
        arXiv 2110.10031): the area under the curve of the average, every point counting alike.
        """
        if self.points is None:
            raise MatrixError("average_over_time is of streams without boundaries; this one has mean_average.")
        return float(self._learned("average_over_time", 1, cells="all").mean())

    def bwt(self, divisor: Literal["T-1", "T"] = "T-1") -> float:
        """(1/divisor) sum_{j < T} (S[T, j] - S[j, j]), backward transfer; negative = forgetting. CoIN divides by T.

        With "T-1", MFN = MFT + ((T-1)/T) * BWT holds for every matrix.
        """
        if divisor not in ("T-1", "T"):
            raise MatrixError(f"bwt has no divisor {divisor!r}; allowed are 'T-1' and 'T'.")
        scores = self._learned("bwt", 2, cells="diagonal and last")
        total = float((scores[-1] - self._diagonal())[:-1].sum())
        return total / (len(scores) - (divisor == "T-1"))

    def forgetting(self, reference: Literal["max", "diagonal"] = "max") -> float:
        """(1/(T-1)) sum_{j < T} (best_j - S[T, j]); positive = forgetting.

        "max": best_j = max over i in j..T-1 of S[i, j]. "diagonal": best_j = S[j, j], which makes it -BWT. Without
        boundaries, "max" is over all points before the last one, and the mean over all tasks.
        """
        if reference not in ("max", "diagonal"):
            raise MatrixError(f"forgetting has no reference {reference!r}; allowed are 'max' and 'diagonal'.")
        if reference == "diagonal":
            return 0.0 - self.bwt()  # not -x, which would write a loss of nothing as -0.0
        scores = self._learned("forgetting", 2, cells="triangle" if self.points is None else "all")
        lost = [scores[self.since(j) - 1 : -1, j].max() - scores[-1, j] for j in range(len(self.earlier))]
        return float(np.mean(lost))

    def forward_transfer(self) -> float:
        """(1/(T-1)) sum_{j > 1} (S[j-1, j] - S[0, j]): what earlier tasks give to the next one, over zero-shot."""
        self._learned("forward_transfer", 2, cells="none")
        next_task = np.arange(1, self.num_learned)
        gains = self._cells[next_task, next_task] - self._cells[0, next_task]
        if np.isnan(gains).any():
            raise MatrixError(
                "forward_transfer needs the zero-shot row and every task scored just before it is learned; "
                "evaluate unseen tasks too."
            )
        return float(gains.mean())

    def zero_shot_average(self) -> float:
        """(1/tasks) sum_j S[0, j] over all tasks of the stream, before any training."""
        if np.isnan(self._cells[0]).any():
            raise MatrixError("zero_shot_average needs a zero-shot row over every task; evaluate before training.")
        return float(self._cells[0].mean())

    def summary(self) -> dict[str, float]:
        """Every figure whose cells are there, by canonical name (see `figure_names.py`)."""
        figures = {
            "final_average": self.final_average,
            "immediate_average": self.immediate_average,
            "mean_average": self.mean_average,
            "average_over_time": self.average_over_time,
            "bwt": self.bwt,
            "bwt_divisor_t": lambda: self.bwt("T"),
            "forgetting": self.forgetting,
            "forgetting_diagonal": lambda: self.forgetting("diagonal"),
            "forward_transfer": self.forward_transfer,
            "zero_shot_average": self.zero_shot_average,
        }
        values: dict[str, float] = {}
        for name, figure in figures.items():
            try:
                values[name] = figure()
            except MatrixError:
                continue  # not enough tasks or cells yet: leaving a figure out is what the contract above says
        return values

    def _diagonal(self) -> NDArray[np.float64]:
        return np.diagonal(self._cells[1:, : self.num_learned])

    def _learned(self, figure: str, at_least: int, cells: str = "last") -> NDArray[np.float64]:
        """The learned square [T, T], or all points [P, T], after checking that it has enough rows and holds the cells
        that are needed."""
        if self.points is not None and cells not in ("last", "all"):
            raise MatrixError(f"{figure} needs the moment at which a task was learned; this stream has no boundaries.")
        if self.num_learned < at_least:
            each = "learned tasks" if self.points is None else "points in time"
            raise MatrixError(f"{figure} needs at least {at_least} {each}, this matrix has {self.num_learned}.")
        square = self._cells[1:, : len(self.counted)]
        last = np.zeros_like(square, dtype=bool)
        last[-1] = True
        diagonal = np.eye(*square.shape, dtype=bool)
        needed = {
            "none": np.zeros_like(last),
            "last": last,
            "diagonal": diagonal,
            "diagonal and last": diagonal | last,
            "triangle": np.tri(*square.shape, dtype=bool),
            "all": np.ones_like(last),
        }[cells]
        missing = np.argwhere(needed & np.isnan(square))
        if len(missing):
            i, j = missing[0]
            raise MatrixError(f"{figure} needs {self.tasks[j]!r} scored after {self.steps[i]!r}; it was not evaluated.")
        return square

    # ---- score_matrix.json

    def to_dict(
        self, *, stream: str, method: str, backbone: str, seed: int, extra: Mapping[str, object] | None = None
    ) -> dict[str, object]:
        """The content of score_matrix.json; `extra` adds keys (for example the oracle rows), never replaces one."""
        content: dict[str, object] = {
            "stream": stream,
            "method": method,
            "backbone": backbone,
            "seed": seed,
            "tasks": self.tasks,
            **({} if self.points is None else {"points": self.points}),
            "rows": [
                {"after": after, "scores": dict(zip(self.tasks, row, strict=True))}
                for after, row in zip(self.after, self.rows, strict=True)
            ],
            "summary": self.summary(),
        }
        clash = sorted(set(content) & set(extra or {}))
        if clash:
            raise MatrixError(f"extra must not replace {clash} of score_matrix.json; choose other names.")
        return content | dict(extra or {})

    @classmethod
    def from_dict(cls, content: Mapping[str, object]) -> ScoreMatrix:
        """The inverse of `to_dict`, over `tasks`, `points` and `rows`; raises `MatrixError` when they are missing or
        broken."""
        tasks, rows, points = content.get("tasks"), content.get("rows"), content.get("points")
        if not isinstance(tasks, list) or not isinstance(rows, list) or not isinstance(points, list | None):
            raise MatrixError("A score_matrix.json has lists 'tasks' and 'rows'; this content does not.")
        for row in rows:
            if not isinstance(row, dict) or not isinstance(row.get("scores"), dict) or "after" not in row:
                raise MatrixError(
                    f"A row of score_matrix.json has 'after' and 'scores', this one does not: {row!r:.200}."
                )
        return cls.from_scores(
            [str(task) for task in tasks],
            [(str(row["after"]), row["scores"]) for row in rows],
            points=None if points is None else [str(point) for point in points],
        )

    def write(self, path: Place, **facts: Any) -> None:
        """Write score_matrix.json whole or not at all (a file beside it, then a rename); `facts` as for `to_dict`."""
        content = self.to_dict(**facts)
        write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: Place) -> ScoreMatrix:
        """From a score_matrix.json; raises `MatrixError` when it is missing or not one."""
        advice = "restore the score matrix from a copy"
        content = read_object(path, MatrixError, advice)
        with understood(path, MatrixError, advice):
            return cls.from_dict(content)


def when(row: str) -> str:
    """When the row of this name is scored, in a sentence: `before training`, or `after docvqa`."""
    return "before training" if row == ZERO_SHOT else f"after {row}"


def _has_zero_shot(steps: list[str], num_rows: int, after: Sequence[str] | None, zero_shot: bool | None) -> bool:
    """Which rows were given, by the rules in `ScoreMatrix`."""
    if after is not None:
        found = bool(after) and after[0] == ZERO_SHOT
        expected = [ZERO_SHOT] * found + steps
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
    if num_rows not in (0, len(steps), len(steps) + 1):
        raise MatrixError(
            f"{num_rows} rows for {len(steps)} tasks can be read with or without a zero-shot row; "
            f"give {len(steps)} or {len(steps) + 1} rows, or say which with zero_shot= or after=."
        )
    return num_rows == len(steps) + 1


def _checked_row(row: Sequence[Cell], number: int, tasks: list[str]) -> list[float]:
    """One row as floats, NaN for None; raises on a wrong length or a value that is not a finite number."""
    if len(row) != len(tasks):
        raise MatrixError(f"Row {number} has {len(row)} cells for {len(tasks)} tasks; use None for unseen cells.")
    for task, cell in zip(tasks, row, strict=True):
        if cell is not None and (isinstance(cell, bool | str) or not math.isfinite(cell)):
            raise MatrixError(f"Row {number} scores {task!r} with {cell!r}; allowed are finite numbers and None.")
    return [math.nan if cell is None else float(cell) for cell in row]
