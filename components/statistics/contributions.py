"""The contribution of every test row to a figure of a run, so that one way of resampling suits every figure.

Each figure of `matrix` is a weighted sum of cells, and a cell is the mean of its test rows. With w the weights, S the
score of a row k of task j after learning i tasks (0..100):

    figure = sum_j mean_k c[j, k]        c[j, k] = sum_i w[i, j] S[i, j, k]

A row is one draw however often it was scored: its scores after every task stay together. `forgetting` takes the best
score before the end; which row of the matrix that is, is taken as observed. A best of noisy scores lies above the
best of the expected ones, so `forgetting` is biased upwards for a method that forgets little; `forgetting_diagonal`
does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from components.evaluation.matrix import MatrixError, ScoreMatrix

ROUNDING = 0.01  # points by which a cell may differ from the mean of its rows; recorded rows have six decimals

Array = NDArray[np.float64]
ItemScores = Mapping[str, Mapping[str, Sequence[float]]]  # after -> task -> 0..1 of every test row, by sample id


class Draw(NamedTuple):
    """What distinguishes runs of one method: the seed and the order of tasks."""

    seed: int
    order: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.seed}" + (f" ({', '.join(self.order)})" if self.order else "")


@dataclass(frozen=True, kw_only=True)
class ScoredRun:
    """A run with every test row's score."""

    seed: int
    matrix: ScoreMatrix
    items: ItemScores


@dataclass(frozen=True, kw_only=True)
class Contributions:
    """What each test row adds to one figure, in points, for runs of one method.

    `by_task[task]` is [runs, rows]; runs are in the order of `draws`, rows are the same in every run. A task
    that has no part in the figure of one order, as the last one has none in forgetting, adds nothing there.
    """

    figure: str
    draws: tuple[Draw, ...]
    by_task: Mapping[str, Array]

    def __post_init__(self) -> None:
        if not self.by_task:
            raise MatrixError(f"{self.figure} has no test rows to resample; give runs with their rows' scores.")
        for task, rows in self.by_task.items():
            if rows.ndim != 2 or len(rows) != len(self.draws) or rows.shape[1] < 2:
                raise MatrixError(
                    f"the rows of {task!r} have the shape {rows.shape} for {len(self.draws)} runs; "
                    "needed is one line a run and at least two test rows."
                )

    def values(self) -> Array:
        """The figure of each run, [runs]."""
        return np.sum([rows.mean(axis=1) for rows in self.by_task.values()], axis=0)

    def row_means(self) -> dict[str, Array]:
        """By task, what each row adds on average over the runs, [rows]."""
        return {task: rows.mean(axis=0) for task, rows in self.by_task.items()}

    def of(self, draws: Sequence[Draw]) -> Contributions:
        """These runs only, in this order."""
        places = [self.draws.index(draw) for draw in draws]
        by_task = {task: rows[places] for task, rows in self.by_task.items()}
        return Contributions(figure=self.figure, draws=tuple(draws), by_task=by_task)

    def minus(self, other: Contributions) -> Contributions:
        """Differences of the runs that both have of a seed and an order, row by row.

        Raises `MatrixError` where there is no such run, and for other rows.
        """
        common = [draw for draw in self.draws if draw in other.draws]
        if not common:
            raise MatrixError(
                f"the seeds {_listed(self.draws, other.draws)} and {_listed(other.draws, self.draws)} have none in "
                "common; a paired comparison needs runs of the same seed and order of tasks."
            )
        mine, theirs = self.of(common), other.of(common)
        differences: dict[str, Array] = {}
        for task in dict.fromkeys([*mine.by_task, *theirs.by_task]):
            first, second = mine.by_task.get(task), theirs.by_task.get(task)
            there = [rows for rows in (first, second) if rows is not None]
            if len(there) == 1 and not there[0].any():
                continue  # it has a part in the figure in orders that are not compared here
            if first is None or second is None or first.shape != second.shape:
                raise MatrixError(f"the two were not scored on the same test rows of {task!r} and cannot be paired.")
            differences[task] = first - second
        return Contributions(figure=self.figure, draws=tuple(common), by_task=differences)


def contributions(figure: str, runs: Sequence[ScoredRun]) -> Contributions:
    """What each row adds to `figure` (see `figure_names.ALIASES`) in runs of one method, of other seeds or orders.

    Raises `MatrixError` for a figure the runs do not have, rows that a run lacks, or rows that contradict its matrix.
    """
    by_run = [_of_run(figure, run) for run in runs]
    if not by_run:
        raise MatrixError(f"{figure} of no runs was asked for; give at least one.")
    by_task: dict[str, Array] = {}
    for task in dict.fromkeys(task for rows in by_run for task in rows):
        counts = sorted({len(rows[task]) for rows in by_run if task in rows})
        if len(counts) > 1:
            raise MatrixError(f"the runs have {counts} test rows of {task!r}; give runs scored on the same rows.")
        by_task[task] = np.stack([rows.get(task, np.zeros(counts[0])) for rows in by_run])
    draws = tuple(Draw(run.seed, tuple(run.matrix.tasks)) for run in runs)
    return Contributions(figure=figure, draws=draws, by_task=by_task)


def _listed(draws: Sequence[Draw], others: Sequence[Draw]) -> str:
    """Their seeds, with the orders where there are several."""
    one_order = len({draw.order for draw in (*draws, *others)}) == 1
    return ", ".join(str(draw.seed) if one_order else str(draw) for draw in draws)


def _of_run(figure: str, run: ScoredRun) -> dict[str, Array]:
    """By task with a part in the figure, what each row adds, [rows]."""
    weights = weights_of(figure, run.matrix)
    names = dict(zip(range(1 - run.matrix.has_zero_shot, len(weights)), run.matrix.after, strict=True))
    found: dict[str, Array] = {}
    for row, column in np.argwhere(weights != 0):
        task, after = run.matrix.tasks[column], names[int(row)]
        scores = 100.0 * np.array(run.items.get(after, {}).get(task, ()), dtype=np.float64)
        cell = run.matrix.values[row, column]
        if not len(scores) or abs(scores.mean() - cell) > ROUNDING:
            held = f"average {scores.mean():.2f}" if len(scores) else "are missing"
            raise MatrixError(
                f"the rows of {task!r} after {after!r} (seed {run.seed}) {held}, the score matrix says {cell:.2f}; "
                "record the run again from its folder."
            )
        part = weights[row, column] * scores
        if task in found and len(found[task]) != len(part):
            raise MatrixError(f"{task!r} was scored on different numbers of rows in one run (seed {run.seed}).")
        found[task] = found[task] + part if task in found else part
    return found


def weights_of(figure: str, matrix: ScoreMatrix) -> Array:
    """[1 + learned tasks, tasks] like `matrix.values`: the figure is the sum of weight times score over all cells."""
    if figure not in (known := matrix.summary()):
        raise MatrixError(f"these runs have no {figure!r}; they have {', '.join(known) or 'no figure yet'}.")
    num_learned = matrix.num_learned
    weights = np.zeros_like(matrix.values)
    square = weights[1:, : len(matrix.counted)]  # a view
    later = np.arange(1, num_learned)
    match figure:
        case "zero_shot_average":
            weights[0] = 1 / len(matrix.tasks)
        case "final_average":
            square[-1] = 1 / len(matrix.counted)
        case "immediate_average":
            np.fill_diagonal(square, 1 / num_learned)
        case "mean_average":
            square[:] = np.tri(num_learned) / np.arange(1, num_learned + 1)[:, None] / num_learned
        case "forward_transfer":
            weights[later, later], weights[0, later] = 1 / len(later), -1 / len(later)
        case "average_over_time":
            square[:] = 1 / square.size
        case "forgetting":
            scores, columns = matrix.values[1:], range(len(matrix.earlier))
            begin = [matrix.since(j) - 1 for j in columns]
            best = np.array(
                [first + int(scores[first:-1, j].argmax()) for j, first in zip(columns, begin, strict=True)]
            )
            square[best, columns], square[-1, columns] = 1 / len(columns), -1 / len(columns)
        case _:  # backward transfer under its names: a sign and a divisor
            part = (-1 if figure == "forgetting_diagonal" else 1) / (len(later) + (figure == "bwt_divisor_t"))
            square[later - 1, later - 1], square[-1, later - 1] = -part, part
    return weights
