"""Where a stream will end, estimated from the rows it has so far and from finished runs of the same stream.

Two quantities are estimated, T tasks in all, k of them learned, S the scores:

    kept share of a score per task learned   q = (after + W q0) / (before + W)
    score of a task to come, once learned    the past runs' mean for it + shift * k / (k + 1)

`before` sums all scores seen that a later row measured again, `after` those later ones; q0 is the same ratio over the
past runs, and W = 100 points make it weigh as much as one task with a perfect score. `shift` is how much better
than the past runs this one was on the tasks it has learned, on average. Every score then shrinks by q per task still
to come.

The interval is conformal (Vovk; Lei et al. 2018): each past run is forecast from the others in the same way, and the
misses determine its width. n misses can support a level of n / (n + 1) and no more: 95 % takes 19 past runs. Runs
of one method resemble each other, so a method's own runs never forecast it; equal matrices count once. A weakness
remains: the past runs are other methods, not draws from one population, so with fewer than some dozens of them the
level is nominal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from components.evaluation.matrix import MatrixError, ScoreMatrix
from components.statistics.intervals import LEVEL, Interval

FIGURES = ("final_average", "forgetting")
RANGES = {"final_average": (0.0, 100.0), "forgetting": (-100.0, 100.0)}  # the possible values
PRIOR_POINTS = 100.0  # W in the formulas above
FEWEST = 4  # misses below which an interval would hold less than 80 %


@dataclass(frozen=True, kw_only=True)
class PastRun:
    """A finished run, or one to be forecast."""

    method: str
    matrix: ScoreMatrix


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What is expected at the end of the stream; an interval's level is what the past runs support."""

    num_learned: int
    num_past: int  # misses that the intervals rest on
    figures: dict[str, Interval]


def forecast(run: PastRun, past: Sequence[PastRun], *, level: float = LEVEL) -> Forecast:
    """The final average and forgetting of a run after its `matrix.num_learned` tasks.

    Raises `MatrixError` for no learned task, unseen cells, or no past run of another method on these tasks.
    """
    others = distinct([other for other in past if other.method != run.method])
    _require_forecastable(run, others)
    num_learned = run.matrix.num_learned
    expected = _expected(run.matrix, [other.matrix for other in others])
    missed = _misses(others, num_learned)
    figures = {name: _interval(name, expected[name], missed[name], level) for name in FIGURES}
    return Forecast(num_learned=num_learned, num_past=len(missed[FIGURES[0]]), figures=figures)


def has_triangle(matrix: ScoreMatrix) -> bool:
    """Whether every learned task was scored after every task from its own on (joint learning's are not, and a stream
    without boundaries has none)."""
    if matrix.points is not None:
        return False
    square = matrix.values[1:, : matrix.num_learned]
    return not np.isnan(square[np.tri(len(square), dtype=bool)]).any()


def distinct(past: Sequence[PastRun]) -> list[PastRun]:
    """Runs with equal matrices once: two methods that answer with the same branches are one observation."""
    found: list[PastRun] = []
    for run in past:
        if all(run.matrix != other.matrix for other in found):
            found.append(run)
    return found


def _expected(seen: ScoreMatrix, past: Sequence[ScoreMatrix]) -> dict[str, float]:
    num_tasks, num_learned = len(seen.tasks), seen.num_learned
    kept = _kept_share([seen], prior=_kept_share(past, prior=1.0))
    diagonals = np.array([np.diagonal(matrix.values[1:]) for matrix in past])
    own = np.diagonal(seen.values[1:])
    shift = float((own - diagonals.mean(axis=0)[:num_learned]).mean()) * num_learned / (num_learned + 1)
    to_come = np.clip(diagonals.mean(axis=0)[num_learned:] + shift, 0.0, 100.0)
    rows = seen.values[1:, :num_learned]
    last_before_end = min(num_learned, num_tasks - 1)
    best = [rows[j:last_before_end, j].max() for j in range(last_before_end)]
    tasks_after = num_tasks - np.maximum(np.arange(1, num_tasks + 1), num_learned)
    final = np.concatenate([rows[-1], to_come]) * kept**tasks_after
    before = np.concatenate([best, to_come])[: num_tasks - 1]
    return {"final_average": float(final.mean()), "forgetting": float((before - final[:-1]).mean())}


def _kept_share(matrices: Sequence[ScoreMatrix], prior: float) -> float:
    """Scores over the same tasks' scores one row before, pooled, with `PRIOR_POINTS` of `prior` added."""
    before = after = PRIOR_POINTS
    after *= prior
    for matrix in matrices:
        square = matrix.values[1:, : matrix.num_learned]
        learned_before = np.tri(*square.shape, k=-1, dtype=bool)[1:]
        before += float(square[:-1][learned_before].sum())
        after += float(square[1:][learned_before].sum())
    return after / before


def _misses(past: Sequence[PastRun], num_learned: int) -> dict[str, list[float]]:
    """By figure, how far off each past run is when other methods' runs forecast it after `num_learned` tasks."""
    missed: dict[str, list[float]] = {name: [] for name in FIGURES}
    for run in past:
        others = [other.matrix for other in past if other.method != run.method]
        if others:
            expected, came = _expected(run.matrix.at(num_learned), others), run.matrix.summary()
            for name in FIGURES:
                missed[name].append(abs(expected[name] - came[name]))
    return missed


def _interval(name: str, expected: float, missed: Sequence[float], level: float) -> Interval:
    """The highest level that the misses support, at most `level`; the whole range where they are too few."""
    lowest, highest = RANGES[name]
    count = len(missed)
    if count < FEWEST:
        return Interval(estimate=expected, low=lowest, high=highest, level=1.0)
    rank = min(math.ceil((count + 1) * level), count)
    reach = sorted(missed)[rank - 1]
    return Interval(
        estimate=expected,
        low=max(expected - reach, lowest),
        high=min(expected + reach, highest),
        level=min(level, count / (count + 1)),
    )


def _require_forecastable(run: PastRun, others: Sequence[PastRun]) -> None:
    if run.matrix.points is not None:
        raise MatrixError("a forecast needs the boundaries between tasks, and this run's stream has none.")
    if run.matrix.num_learned == 0 or not has_triangle(run.matrix):
        raise MatrixError(
            f"a forecast of {run.method} needs at least one learned task, and every learned task scored after each "
            "later one; this run has none yet, or learns without rows in between."
        )
    if not others:
        raise MatrixError(
            f"a forecast of {run.method} needs finished runs of other methods on this stream; give some, or records."
        )
    for other in others:
        complete = other.matrix.num_learned == len(other.matrix.tasks) and has_triangle(other.matrix)
        if other.matrix.tasks != run.matrix.tasks or len(other.matrix.tasks) < 2 or not complete:
            raise MatrixError(
                f"a run of {other.method} over {other.matrix.tasks} cannot forecast one of {run.method} over "
                f"{run.matrix.tasks}; give whole runs of the same tasks, two or more, in the same order."
            )
